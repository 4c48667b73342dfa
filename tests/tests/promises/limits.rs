//! What a client may do to a session, and for how long.

use anyhow::Result;
use serde_json::json;
use tests::Gateway;

#[tokio::test]
async fn a_session_ends_at_its_longest() -> Result<()> {
    let gateway = Gateway::builder().set("SESSION_MAX_DURATION", "300ms").start().await?;
    let customer = gateway.customer("starter").await?;
    let mut session = gateway.connect(&customer).await?;
    assert_eq!(session.ending().await?.code(), Some(4408));
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.sessions[0].cause.as_deref(), Some("time limit"));
    Ok(())
}

#[tokio::test]
async fn a_silent_session_ends() -> Result<()> {
    let gateway = Gateway::builder().set("SESSION_IDLE_TIMEOUT", "200ms").start().await?;
    let customer = gateway.customer("starter").await?;
    let mut session = gateway.connect(&customer).await?;
    session.call("Browser.getVersion", json!({})).await?;
    assert_eq!(session.ending().await?.code(), Some(4408));
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.sessions[0].cause.as_deref(), Some("idle"));
    Ok(())
}
