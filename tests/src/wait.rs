use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Longer than anything here takes on a machine that does other work too; reached only by what failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(20);

/// Waits until `condition` is true of something that another process does and tells nobody of.
///
/// # Errors
///
/// It did not become true; `what` says in words what should have.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !condition().await? {
        ensure!(started.elapsed() < PATIENCE, "still not true: {what}");
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}
