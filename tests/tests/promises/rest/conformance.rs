//! The OpenAPI document holds for the running server, as a program finds that nobody here wrote.

use anyhow::{Result, ensure};
use tests::{Gateway, StandIn};
use tokio::process::Command;

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");
/// For each operation and phase: enough to meet every field, few enough to be done in seconds.
const EXAMPLES: &str = "40";
/// The same requests each time; another number finds other ones.
const SEED: &str = "20270115";

#[tokio::test]
async fn schemathesis_finds_no_fault() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder()
        .fixed(&browser, 1_000)
        .set("PLANS_ENTERPRISE_CONCURRENT_SESSIONS", 10_000)
        .start()
        .await?;
    let customer = gateway.customer("enterprise").await?;
    let origin = format!("http://{}", gateway.door());

    // It keeps notes where it runs.
    let directory = tempfile::tempdir()?;
    let mut schemathesis = Command::new(format!("{CLIENTS}/.venv-schemathesis/bin/schemathesis"));
    schemathesis
        .current_dir(directory.path())
        .args(["run", &format!("{origin}/openapi.json"), "--checks", "all"])
        .args(["--header", &format!("Authorization: Bearer {}", customer.key)])
        .args(["--max-examples", EXAMPLES, "--seed", SEED])
        .args(["--request-timeout", "10", "--no-color", "--output-sanitize", "false"])
        .kill_on_drop(true);
    let output = schemathesis.output().await?;
    let words = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{words}{}", String::from_utf8_lossy(&output.stderr));
    // It exits with a code that is not 0 where the log has a fault.
    gateway.command(&["audit", &customer.id]).await?;
    Ok(())
}
