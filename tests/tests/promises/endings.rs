//! However a client ends its session, it is charged once, nothing of it stays behind, and the next one gets another
//! browser.

use std::path::Path;

use anyhow::Result;
use serde_json::json;
use tests::{Cdp, Customer, Gateway, Session, eventually};

#[tokio::test]
async fn the_client_vanishes() -> Result<()> {
    let gateway = Gateway::start().await?;
    ends_charged(&gateway, async |session| session.vanish()).await
}

#[tokio::test]
async fn the_client_closes_the_browser() -> Result<()> {
    let gateway = Gateway::start().await?;
    let close = async |mut session: Cdp| {
        session.send(json!({ "method": "Browser.close" })).await?;
        assert_eq!(session.ending().await?.code(), Some(1000));
        Ok(())
    };
    ends_charged(&gateway, close).await
}

#[tokio::test]
async fn the_client_closes_the_connection() -> Result<()> {
    let gateway = Gateway::start().await?;
    let close = async |session: Cdp| {
        assert_eq!(session.close().await?.code(), Some(1000));
        Ok(())
    };
    ends_charged(&gateway, close).await
}

async fn ends_charged(gateway: &Gateway, end: impl AsyncFnOnce(Cdp) -> Result<()>) -> Result<()> {
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let mut session = gateway.connect(&customer).await?;
    let browser = session.browser().await?;
    let profile = browser.option("--user-data-dir")?;
    assert!(Path::new(&profile).exists());

    end(session).await?;

    browser.ended().await?;
    eventually("the profile is gone", async || Ok(!Path::new(&profile).exists())).await?;
    is_charged_once(gateway, &customer).await?;
    assert_ne!(gateway.connect(&customer).await?.browser().await?, browser);
    Ok(())
}

async fn is_charged_once(gateway: &Gateway, customer: &Customer) -> Result<()> {
    let account = gateway.settled(customer).await?;
    assert_eq!(account.balance, 90_000);
    assert_eq!(account.retry_credits, 0);
    assert!(matches!(account.sessions[..], [Session { lost: false, charged: 10_000, .. }]), "{account:?}");
    Ok(())
}
