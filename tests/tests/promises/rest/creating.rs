//! A session that is made over REST, from its creation to its end.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Gateway, Pid, StandIn, eventually};
use tokio::process::Command;

use super::{attach, create, creation, done, end, get};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");

#[tokio::test]
async fn created_connected_and_ended() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 25_000).await?;

    let body =
        json!({ "sessionId": "s1", "trackingId": "nightly", "metadata": { "job": 7 }, "timeout": 60_000 });
    let created = done(&gateway, creation(&customer, &body)).await?;
    assert_eq!((&created["sessionId"], &created["status"]), (&json!("s1"), &json!("waiting")), "{created}");
    assert_eq!(
        (&created["costPerSession"], &created["costPerSessionMicros"]),
        (&json!(0.01), &json!(10_000))
    );
    assert_eq!(
        (&created["accountBalance"], &created["accountBalanceMicros"]),
        (&json!(0.015), &json!(15_000))
    );
    assert_eq!(created["remainingSessions"], 1);

    let mut session = attach(&gateway, &created).await?;
    let browser = session.browser().await?;
    let shown = get(&gateway, &customer, "/api/sessions/s1").await?;
    assert_eq!((&shown["status"], &shown["trackingId"]), (&json!("running"), &json!("nightly")), "{shown}");
    assert_eq!((&shown["metadata"], &shown["cost"]), (&json!({ "job": 7 }), &json!(0.01)), "{shown}");
    assert_eq!(shown["containerId"], created["containerId"]);
    let name = shown["containerId"].as_str().and_then(|name| name.strip_prefix("process-"));
    assert_eq!(Pid::new(name.unwrap_or_default().parse()?)?, browser, "{shown}");
    // Its minutes count from its creation.
    assert_eq!((&shown["startedAt"], &shown["expiresAt"]), (&created["startedAt"], &created["expiresAt"]));

    let ended = done(&gateway, end(&customer, "s1")).await?;
    assert_eq!(session.ending().await?.code(), Some(4410));
    browser.ended().await?;
    assert_eq!((&ended["status"], &ended["actualCost"]), (&json!("completed"), &json!(0.01)), "{ended}");
    let shown = get(&gateway, &customer, "/api/sessions/s1").await?;
    assert_eq!((&shown["timeout"], &shown["containerId"]), (&json!(60_000), &json!(null)), "{shown}");
    assert_eq!(
        (&shown["cause"], &shown["duration"]),
        (&json!("ended by owner"), &ended["duration"]),
        "{shown}"
    );
    assert_eq!(ended["message"], "ended by owner: it cost $0.01", "{ended}");
    assert!(ended["duration"].as_u64() > Some(0), "{ended}");

    let account = gateway.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (15_000, 1));
    ensure!(!gateway.process().output()?.contains("ufs_"), "a token is in the log");
    Ok(())
}

#[tokio::test]
async fn playwright_connects_to_both_urls() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.customer("starter").await?;
    for (id, url) in [("a", "cdpUrl"), ("b", "browserUrl")] {
        let created = create(&gateway, &customer, id).await?;
        let url = created[url].as_str().context("no such URL")?;
        let mut script = Command::new("node");
        let script = script.current_dir(CLIENTS).args(["title.mjs", url]).kill_on_drop(true);
        let output = script.output().await?;
        ensure!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8(output.stdout)?.trim(), "It works");
    }
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.sessions.len(), 2, "{account:?}");
    assert!(account.sessions.iter().all(|session| session.cause.as_deref() != Some("never connected")));
    Ok(())
}

#[tokio::test]
async fn nobody_connects() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway =
        Gateway::builder().fixed(&browser, 2).set("SESSION_CONNECT_TIMEOUT", "100ms").start().await?;
    let customer = gateway.prepaid_customer("starter", 25_000).await?;
    create(&gateway, &customer, "s1").await?;

    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, 15_000, "it is charged like any other");
    assert_eq!(account.sessions[0].cause.as_deref(), Some("never connected"));
    Ok(())
}

#[tokio::test]
async fn whoever_asks_for_one_leaves_before_there_is_a_browser() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Arc::new(Gateway::builder().fixed(&browser, 1).start().await?);
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let _only = gateway.connect(&customer).await?;
    let asking = {
        let (gateway, customer) = (Arc::clone(&gateway), customer.clone());
        tokio::spawn(async move { create(&gateway, &customer, "s1").await })
    };
    eventually("it waits", async || Ok(gateway.account(&customer).await?.running == 2)).await?;

    asking.abort();
    eventually("it is voided", async || Ok(gateway.account(&customer).await?.running == 1)).await?;
    assert_eq!(gateway.account(&customer).await?.balance, 90_000);
    assert_eq!(get(&gateway, &customer, "/api/sessions/s1").await?["status"], "voided");
    Ok(())
}

#[tokio::test]
async fn its_own_timeout_ends_it() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 2).start().await?;
    let customer = gateway.customer("starter").await?;
    let created = done(&gateway, creation(&customer, &json!({ "timeout": 300 }))).await?;
    let mut session = attach(&gateway, &created).await?;
    assert_eq!(session.ending().await?.code(), Some(4408));
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.sessions[0].cause.as_deref(), Some("time limit"));
    Ok(())
}

#[tokio::test]
async fn a_killed_gateway_leaves_none_open() -> Result<()> {
    let browser = StandIn::start().await?;
    let mut gateway = Gateway::builder().fixed(&browser, 2).start().await?;
    let customer = gateway.prepaid_customer("starter", 25_000).await?;
    create(&gateway, &customer, "s1").await?;
    gateway.kill()?;
    gateway.start_again().await?;

    gateway.settled(&customer).await?;
    let shown: Value = get(&gateway, &customer, "/api/sessions/s1").await?;
    assert_eq!(shown["cause"], "gateway lost", "{shown}");
    Ok(())
}
