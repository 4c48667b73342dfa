//! A gateway that is killed in the midst of a session loses no money, bills none twice and leaves no browser behind.

use anyhow::Result;
use tests::{Gateway, Session, State, eventually};

#[tokio::test]
async fn a_killed_gateway_is_settled_by_the_next() -> Result<()> {
    let mut gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let mut session = gateway.connect(&customer).await?;
    session.browser().await?;
    // A session that is killed before its beginning is noted costs nothing.
    eventually("the session's beginning is noted", async || {
        Ok(gateway.account(&customer).await?.sessions[0].state == State::Open)
    })
    .await?;
    let browsers = gateway.browsers()?;
    assert!(!browsers.is_empty());

    gateway.kill()?;
    gateway.start_again().await?;

    for browser in browsers {
        browser.ended().await?;
    }
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, 90_000);
    assert!(
        matches!(account.sessions[..], [Session { state: State::Posted, charged: 10_000, .. }]),
        "{account:?}"
    );
    assert_eq!(account.sessions[0].cause.as_deref(), Some("gateway lost"));

    // A second start finds nothing left to settle.
    gateway.kill()?;
    gateway.start_again().await?;
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, 90_000);
    gateway.connect(&customer).await?.browser().await?;
    Ok(())
}
