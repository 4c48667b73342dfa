//! Another program has the ledger's file locked while sessions begin and end.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::Gateway;

/// Longer than the ledger waits for another's lock; it lasts until the script's input ends.
const LOCK: &str = "import sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
file.execute('BEGIN IMMEDIATE')
print('locked', flush=True)
sys.stdin.read()";

fn lock(gateway: &Gateway) -> Result<Child> {
    let mut child = Command::new("python3")
        .args(["-c", LOCK])
        .arg(gateway.data().join("ledger.db"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().context("it is piped")?).read_line(&mut said)?;
    ensure!(said == "locked\n", "it said {said:?}");
    Ok(child)
}

#[tokio::test]
async fn a_session_that_the_ledger_could_not_be_told_of_in_time_is_charged_once_it_can() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    let mut first = gateway.connect(&customer).await?;
    first.call("Browser.getVersion", json!({})).await?;
    first.close().await?;
    gateway.settled(&customer).await?;

    let mut locked = lock(&gateway)?;
    let mut session = gateway.connect(&customer).await?;
    session.call("Browser.getVersion", json!({})).await?;
    assert_eq!(session.ending().await?.code(), Some(1013), "it is told to come back");
    drop(locked.stdin.take());
    ensure!(locked.wait()?.success());

    let account = gateway.settled(&customer).await?;
    assert_eq!(account.sessions.len(), 2);
    assert_eq!(account.balance, 980_000, "{:?}", account.sessions);
    Ok(())
}
