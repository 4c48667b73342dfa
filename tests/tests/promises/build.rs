//! What `deploy/build` lets the program do so that it can take notes.

use std::path::Path;

use anyhow::{Result, ensure};
use tokio::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/build");

#[tokio::test]
async fn the_work_that_is_noted_can_be_done() -> Result<()> {
    let output = Command::new(Path::new(SCRIPT)).arg("--rehearse").kill_on_drop(true).output().await?;
    ensure!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(())
}
