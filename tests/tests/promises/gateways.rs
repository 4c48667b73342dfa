//! Several gateways on one Redis are one: no cent is spent twice, and what one leaves when it dies the others settle.

use anyhow::Result;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::{Cdp, Customer, Gateway, Redis, Refusal, Request, StandIn, State, eventually};

/// Micro-dollars.
const PRICE: u64 = 10_000;
const PAID_FOR: usize = 100;
const ASKED: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn four_hundred_starts_over_two_gateways_with_money_for_a_hundred() -> Result<()> {
    let (redis, browser) = (Redis::start().await?, StandIn::start().await?);
    let gateway = || Gateway::builder().set("STORE_URL", redis.url()).fixed(&browser, 250).start();
    let (mut one, other) = tokio::try_join!(gateway(), gateway())?;
    let customer = one.prepaid_customer("enterprise", (2 + PAID_FOR as u64) * PRICE).await?;
    // Who of the two gets how much of the rest is chance.
    let mut sessions = [vec![one.connect(&customer).await?], vec![other.connect(&customer).await?]];

    let start = async |number: usize| {
        let gateway = [&one, &other][number % 2];
        (number % 2, start(gateway, &customer).await)
    };
    let answers = join_all((0..ASKED).map(start)).await;
    for (gateway, answer) in answers {
        sessions[gateway].extend(answer?);
    }
    let [ones, others] = sessions;
    let all = ones.len() + others.len();
    assert_eq!(all, 2 + PAID_FOR);
    assert_eq!(one.account(&customer).await?.balance, 0);
    // A session that is killed before its beginning is noted costs nothing.
    eventually("all beginnings are noted", async || {
        let ledgers = [running(&one, &customer).await?, running(&other, &customer).await?];
        Ok(ledgers.iter().all(|ledger| ledger.len() == all && ledger.iter().all(|is| is == "running")))
    })
    .await?;

    one.kill()?;
    eventually("the other gateway has settled its sessions", async || {
        Ok(other.account(&customer).await?.running as usize == others.len())
    })
    .await?;
    assert_eq!(other.metric("ufb_gateway_swept_sessions_total").await? as usize, ones.len());
    // To the minute, and not the sessions of the one that lives.
    assert_eq!(other.account(&customer).await?.balance, 0);
    for mut session in others {
        session.call("Browser.getVersion", json!({})).await?;
        session.close().await?;
    }
    let account = other.settled(&customer).await?;
    assert_eq!(account.balance, 0);
    // One that was held ahead and that nobody took is no session of anybody.
    let mut posted = account.sessions.iter().filter(|session| session.state == State::Posted);
    assert!(posted.all(|session| session.charged == PRICE), "{account:?}");

    // It comes back as another one, and finds nothing to settle.
    one.start_again().await?;
    assert_eq!(one.settled(&customer).await?.balance, 0);
    Ok(())
}

/// A session whose browser answers; none where the money is spent, which its client is told before its 101 or behind it.
async fn start(gateway: &Gateway, customer: &Customer) -> Result<Option<Cdp>> {
    let mut session = match gateway.connect(customer).await {
        Ok(session) => session,
        Err(refused) => {
            assert_eq!(refused.downcast::<Refusal>()?.code, "insufficient_balance");
            return Ok(None);
        }
    };
    match session.call("Browser.getVersion", json!({})).await {
        Ok(_) => Ok(Some(session)),
        Err(closed) => {
            assert!(closed.to_string().contains("4402"), "{closed}");
            Ok(None)
        }
    }
}

/// The state of all that run, as a gateway knows it: one that does not serve a session knows it from the ledger.
async fn running(gateway: &Gateway, customer: &Customer) -> Result<Vec<String>> {
    let mut states = Vec::new();
    let mut next = String::new();
    loop {
        let list = Request::get(&format!("/api/sessions?show=running&limit=100{next}")).key(&customer.key);
        let page = gateway.ask(list).await?.json().await?;
        let status = |session: &Value| session["status"].as_str().unwrap_or_default().to_owned();
        states.extend(page["sessions"].as_array().into_iter().flatten().map(status));
        let Some(after) = page["next"].as_str() else { return Ok(states) };
        next = format!("&after={after}");
    }
}

#[tokio::test]
async fn two_gateways_with_browsers_of_their_own_share_an_account() -> Result<()> {
    let redis = Redis::start().await?;
    let gateway = || Gateway::builder().set("STORE_URL", redis.url()).start();
    let (mut one, other) = tokio::try_join!(gateway(), gateway())?;
    let customer = one.prepaid_customer("starter", 2 * PRICE).await?;

    let mut doomed = one.connect(&customer).await?;
    let mut lasting = other.connect(&customer).await?;
    doomed.browser().await?;
    lasting.browser().await?;
    let refused: Refusal = one.connect(&customer).await.expect_err("the money is spent").downcast()?;
    assert_eq!(refused.code, "insufficient_balance");
    eventually("both beginnings are noted", async || {
        Ok(other.account(&customer).await?.sessions.iter().all(|session| session.state == State::Open))
    })
    .await?;

    one.kill()?;
    eventually("what it left is settled", async || Ok(other.account(&customer).await?.running == 1)).await?;
    let account = other.account(&customer).await?;
    let swept = account.sessions.iter().find(|session| session.state == State::Posted);
    assert_eq!(swept.and_then(|session| session.cause.as_deref()), Some("gateway lost"));
    lasting.call("Browser.getVersion", json!({})).await?;
    lasting.close().await?;
    let account = other.settled(&customer).await?;
    assert_eq!((account.balance, account.retry_credits), (0, 0));
    Ok(())
}
