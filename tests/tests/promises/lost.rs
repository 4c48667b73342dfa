//! A session whose browser died costs nothing, and its customer is told.

use anyhow::Result;
use tests::{Gateway, Session};

#[tokio::test]
async fn a_killed_browser_is_given_back() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let mut session = gateway.connect(&customer).await?;
    let browser = session.browser().await?;
    assert_eq!(gateway.account(&customer).await?.balance, 90_000);

    browser.kill()?;

    assert_eq!(session.ending().await?.code(), Some(1011));
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, 100_000);
    assert_eq!(account.retry_credits, 1);
    assert!(matches!(account.sessions[..], [Session { lost: true, charged: 0, .. }]), "{account:?}");

    // The retry is paid for by the credit, and gets another browser.
    let mut retry = gateway.connect(&customer).await?;
    assert_ne!(retry.browser().await?, browser);
    assert_eq!(gateway.account(&customer).await?.balance, 100_000);
    Ok(())
}
