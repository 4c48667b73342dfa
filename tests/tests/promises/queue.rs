//! A pool that is empty: who waits is served in turn, and who would wait in vain is told so and when to come back.

use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::{Cdp, Customer, Gateway, Refusal, Request, StandIn, eventually};
use tokio::task::JoinHandle;

/// What Debian calls the browser's real program.
const CHROMIUM: &str = "/usr/lib/chromium/chromium-headless-shell";
/// Connects of one customer at once, all of which the plan `enterprise` allows.
const FLOOD: usize = 100;

#[tokio::test]
async fn an_exhausted_pool_recovers() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 2).start().await?;
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    let first = gateway.connect(&customer).await?;
    let _second = gateway.connect(&customer).await?;
    let waiting = connect(&gateway, &customer);
    waits(&gateway, 1).await?;

    first.close().await?;

    let mut third = waiting.await??;
    third.call("Browser.getVersion", json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn a_flood_does_not_keep_a_calm_customer_waiting() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).set("SESSION_START_TIMEOUT", "1m").start().await?;
    let flooding = gateway.customer("enterprise").await?;
    let calm = gateway.prepaid_customer("starter", 10_000).await?;
    let session = gateway.connect(&flooding).await?;
    let (arrivals, mut arrived) = tokio::sync::mpsc::channel(FLOOD);
    for _ in 0..FLOOD {
        let (claim, arrivals) = (connect(&gateway, &flooding), arrivals.clone());
        tokio::spawn(async move { arrivals.send(claim.await?).await.context("the test is over") });
    }
    waits(&gateway, FLOOD).await?;
    let waiting = connect(&gateway, &calm);
    waits(&gateway, FLOOD + 1).await?;

    // One browser becomes free for the customer who came first, the next one for the other.
    session.close().await?;
    arrived.recv().await.context("one of the flood")??.close().await?;

    let mut session = waiting.await??;
    session.call("Browser.getVersion", json!({})).await?;
    ensure!(arrived.is_empty(), "the flood had two in a row");
    session.close().await?;
    assert_eq!(gateway.settled(&calm).await?.balance, 0);
    Ok(())
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_the_queue() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    let _only = gateway.connect(&customer).await?;
    let waiting = connect(&gateway, &customer);
    waits(&gateway, 1).await?;
    assert_eq!(gateway.account(&customer).await?.balance, 980_000);

    waiting.abort();

    eventually("its price is back", async || Ok(gateway.account(&customer).await?.balance == 990_000)).await
}

#[tokio::test]
async fn browsers_that_do_not_start_are_told_at_once_until_they_do() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let binary = directory.path().join("browser");
    let gateway = Gateway::builder()
        .set("POOL_PROCESS_BINARY", binary.display())
        // Not the test's to wait for: nothing can be warm.
        .set("SESSION_START_TIMEOUT", "2s")
        .start()
        .await?;
    let customer = gateway.prepaid_customer("starter", 10_000).await?;
    eventually("the breaker is open", async || Ok(gateway.metric("ufb_pool_breaker_open").await? == 1.0))
        .await?;

    let refusal = gateway.connect(&customer).await.expect_err("there is no browser").downcast::<Refusal>()?;
    assert_eq!((refusal.status, refusal.code.as_str()), (503, "no_browser"), "{refusal}");
    assert!(refusal.retry_after.is_some(), "{refusal}");
    assert_eq!(gateway.account(&customer).await?.balance, 10_000);

    symlink(CHROMIUM, binary)?;
    eventually("browsers start again", async || Ok(gateway.metric("ufb_pool_idle_browsers").await? == 1.0))
        .await?;
    gateway.connect(&customer).await?.call("Browser.getVersion", json!({})).await?;
    Ok(())
}

/// Connects on a task of its own; aborting it hangs up.
fn connect(gateway: &Gateway, customer: &Customer) -> JoinHandle<Result<Cdp>> {
    let (request, door) = (Request::websocket(&format!("/?token={}", customer.key)), gateway.door());
    tokio::spawn(async move { request.send(door).await?.into_cdp().await })
}

/// Waits until so many claims wait.
async fn waits(gateway: &Gateway, claims: usize) -> Result<()> {
    let claims = u32::try_from(claims)?;
    eventually(
        "they wait",
        async || Ok(gateway.metric("ufb_pool_waiting_claims").await? == f64::from(claims)),
    )
    .await
}
