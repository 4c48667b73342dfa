//! What a client may do to a session, and for how long.

use anyhow::{Context, Result};
use serde_json::json;
use tests::{Gateway, Request};

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

#[tokio::test]
async fn a_session_ends_when_it_asked_to() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.customer("starter").await?;
    let starts = [
        format!("ws://gateway/?timeout=300&trackingId=nightly-7&sessionId=mine&token={}", customer.key),
        // Discovery hands the parameters on.
        gateway.discover(&customer, "/json/version?timeout=300&trackingId=nightly-7").await?
            ["webSocketDebuggerUrl"]
            .as_str()
            .context("no URL")?
            .to_owned(),
    ];
    for url in starts {
        let mut session = gateway.open(&url).await?;
        assert_eq!(session.ending().await?.code(), Some(4408));
        let account = gateway.settled(&customer).await?;
        assert_eq!(account.sessions[0].cause.as_deref(), Some("time limit"));
    }
    let listed = gateway.ask(Request::get("/api/sessions").key(&customer.key)).await?.json().await?;
    let sessions = listed["sessions"].as_array().context("no sessions")?;
    assert_eq!(sessions.len(), 2);
    assert!(sessions.iter().all(|session| session["trackingId"] == "nightly-7"), "{listed}");
    assert!(sessions.iter().any(|session| session["sessionId"] == "mine"), "{listed}");
    Ok(())
}
