//! A gateway that is asked to stop ends its sessions in an orderly way, settles them, and leaves nothing behind.

use std::sync::Arc;

use anyhow::Result;
use futures_util::future::try_join_all;
use serde_json::json;
use tests::{Gateway, Request, Session, StandIn, State, eventually};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const SESSIONS: u64 = 50;
const PRICE: u64 = 10_000;
/// Unread by then, so that the client's own end is in the middle of a stream.
const MUCH: u64 = 100_000;

#[tokio::test]
async fn open_sessions_end_with_1001_and_are_settled() -> Result<()> {
    let mut gateway = Gateway::builder().set("SESSION_DRAIN_DEADLINE", "500ms").start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let mut session = gateway.connect(&customer).await?;
    session.call("Browser.getVersion", json!({})).await?;
    let browsers = gateway.browsers()?;

    gateway.terminate()?;

    assert_eq!(session.ending().await?.code(), Some(1001));
    assert_eq!(gateway.exit_code().await?, Some(0));
    for browser in browsers {
        browser.ended().await?;
    }
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, 90_000);
    assert!(matches!(account.sessions[..], [Session { state: State::Posted, .. }]), "{account:?}");
    assert_eq!(account.sessions[0].cause.as_deref(), Some("gateway draining"));
    Ok(())
}

/// Some wait, some are in the middle of much to say, some leave when they hear of it.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_sessions_under_load() -> Result<()> {
    let browser = StandIn::start().await?;
    let mut gateway =
        Gateway::builder().fixed(&browser, 50).set("SESSION_DRAIN_DEADLINE", "500ms").start().await?;
    let customer = gateway.prepaid_customer("professional", SESSIONS * PRICE).await?;
    let sessions = try_join_all((0..SESSIONS).map(|_| gateway.connect(&customer))).await?;
    let (all_open, drains) = (Arc::new(Barrier::new(51)), Arc::new(Barrier::new(11)));
    let mut clients = JoinSet::new();
    for (number, mut session) in sessions.into_iter().enumerate() {
        let (all_open, drains) = (Arc::clone(&all_open), Arc::clone(&drains));
        clients.spawn(async move {
            session.call("Browser.getVersion", json!({})).await?;
            all_open.wait().await;
            match number {
                0..10 => {
                    drains.wait().await;
                    return session.close().await;
                }
                10..30 => {
                    let command = json!({ "method": "Browser.getVersion" });
                    // It ends in the middle of them.
                    while session.send(command.clone()).await.is_ok() && session.waiting_bytes()? < MUCH {}
                }
                _ => {}
            }
            session.ending().await
        });
    }
    all_open.wait().await;

    gateway.terminate()?;
    eventually("it drains", async || Ok(gateway.ask_admin(Request::get("/readyz")).await?.status == 503))
        .await?;
    drains.wait().await;

    let endings = clients.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    let with = |code| endings.iter().filter(|ending| ending.code() == Some(code)).count();
    assert_eq!((with(1000), with(1001)), (10, 40), "{endings:?}");
    assert_eq!(gateway.exit_code().await?, Some(0));
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, 0);
    assert!(gateway.browsers()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_draining_gateway_takes_no_new_session() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.customer("starter").await?;
    let mut session = gateway.connect(&customer).await?;
    assert_eq!(gateway.ask_admin(Request::get("/readyz")).await?.status, 200);

    gateway.ask_admin(Request::post("/drain")).await?;

    assert_eq!(gateway.ask_admin(Request::get("/readyz")).await?.status, 503);
    assert!(gateway.connect(&customer).await.is_err());
    // The session that was open goes on.
    session.call("Browser.getVersion", json!({})).await?;
    session.close().await?;
    Ok(())
}

#[tokio::test]
async fn two_gateways_do_not_share_a_directory() -> Result<()> {
    let gateway = Gateway::start().await?;
    let words = gateway.start_another().await?;
    assert!(words.contains("another gateway runs"), "{words}");
    Ok(())
}
