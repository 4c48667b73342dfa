//! Scripts that worked with a browser of one's own work here, with and without TLS.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::Gateway;
use tokio::process::Command;

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");

#[tokio::test]
async fn playwright() -> Result<()> {
    works_through_both_doors("node", "playwright.mjs").await
}

#[tokio::test]
async fn puppeteer() -> Result<()> {
    works_through_both_doors("node", "puppeteer.mjs").await
}

#[tokio::test]
async fn playwright_for_python() -> Result<()> {
    works_through_both_doors(".venv/bin/python", "playwright_py.py").await
}

async fn works_through_both_doors(interpreter: &str, script: &str) -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;

    for url in [gateway.ws_url(&customer), gateway.wss_url(&customer)] {
        let checked = run(interpreter, script, &url, &gateway.certificate()).await?;
        assert_eq!(checked["replyBytes"], 20_000_000);
        assert_eq!(checked["requestBytes"], 5_000_000);
        assert_eq!(checked["clicked"], true);
        assert_eq!(checked["secondContext"], true);
    }

    let account = gateway.settled(&customer).await?;
    assert_eq!(account.sessions.len(), 2);
    assert_eq!(account.balance, 80_000);
    assert!(account.sessions.iter().all(|session| !session.lost), "{account:?}");
    Ok(())
}

/// Runs a client's script to its end. The answer is what it says it checked.
async fn run(interpreter: &str, script: &str, url: &str, certificate: &Path) -> Result<Value> {
    let mut command = Command::new(interpreter);
    command
        .current_dir(CLIENTS)
        .args([script, url])
        .env("NODE_EXTRA_CA_CERTS", certificate)
        .kill_on_drop(true);
    let output = command.output().await?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}
