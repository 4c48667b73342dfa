//! Two sessions never spend the same cent, however many ask at once.

use anyhow::Result;
use futures_util::future::join_all;
use serde_json::json;
use tests::{Cdp, Gateway, Refusal, StandIn};

/// Micro-dollars.
const PRICE: u64 = 10_000;
const PAID_FOR: usize = 50;
const ASKED: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_starts_with_money_for_fifty() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 250).start().await?;
    let customer = gateway.prepaid_customer("enterprise", 50 * PRICE).await?;

    let answers = join_all((0..ASKED).map(|_| gateway.connect(&customer))).await;
    let (started, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);

    assert_eq!(started.len(), PAID_FOR);
    let mut sessions = started.into_iter().collect::<Result<Vec<Cdp>>>()?;
    for session in &mut sessions {
        session.call("Browser.getVersion", json!({})).await?;
    }
    for error in refused.into_iter().filter_map(Result::err) {
        let refusal: Refusal = error.downcast()?;
        assert_eq!(refusal.status, 402, "{refusal}");
        assert_eq!(refusal.code, "insufficient_balance", "{refusal}");
        assert_eq!(refusal.problem["currentBalance"].as_f64(), Some(0.0), "{refusal}");
        assert_eq!(refusal.problem["requiredBalance"].as_f64(), Some(0.01), "{refusal}");
        assert_eq!(refusal.problem["requiredBalanceMicros"], PRICE, "{refusal}");
        assert!(refusal.problem["topUpUrl"].is_string(), "{refusal}");
    }
    assert_eq!(gateway.account(&customer).await?.balance, 0);

    for session in sessions {
        session.close().await?;
    }
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, 0);
    assert!(account.sessions.iter().all(|session| session.charged == PRICE), "{account:?}");
    Ok(())
}
