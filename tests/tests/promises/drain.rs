//! A gateway that is asked to stop ends its sessions in an orderly way, settles them, and leaves nothing behind.

use anyhow::Result;
use serde_json::json;
use tests::{Gateway, Request, Session, State};

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
