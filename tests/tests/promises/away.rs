//! While the Redis is away nobody is cut off, no minute is lost or billed twice, and new sessions are refused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tests::{Builder, Cdp, Customer, Gateway, Redis, Refusal, Request, StandIn, State, Way, eventually};

/// Micro-dollars.
const PRICE: u64 = 10_000;
const MINUTE_PRICE: u64 = 2_000;
const FUNDS: u64 = 100_000_000;

fn on(url: &str, browser: &StandIn) -> Builder {
    Gateway::builder().set("STORE_URL", url).fixed(browser, 100)
}

/// Status and words of `/readyz`.
async fn readiness(gateway: &Gateway) -> Result<(u16, String)> {
    let answer = gateway.ask_admin(Request::get("/readyz")).await?;
    Ok((answer.status, answer.text().await?))
}

async fn is_away(gateway: &Gateway) -> Result<()> {
    eventually("the gateway says that its ledger is away", async || {
        let (status, words) = readiness(gateway).await?;
        Ok(status == 503 && words.contains("the ledger is away"))
    })
    .await
}

async fn is_ready(gateway: &Gateway) -> Result<()> {
    eventually("the gateway is ready", async || Ok(readiness(gateway).await?.0 == 200)).await
}

async fn owes(gateway: &Gateway, sessions: u64) -> Result<()> {
    eventually("so many sessions are owed", async || {
        Ok(gateway.metric("ufb_gateway_owed_sessions").await? as u64 == sessions)
    })
    .await
}

async fn have_begun(gateway: &Gateway, customer: &Customer, sessions: usize) -> Result<()> {
    eventually("the beginnings are noted", async || {
        let account = gateway.account(customer).await?;
        Ok(account.sessions.iter().filter(|session| session.state == State::Open).count() == sessions)
    })
    .await
}

async fn answers(session: &mut Cdp) -> Result<Value> {
    session.call("Browser.getVersion", json!({})).await
}

/// Each session's minutes, by its record, and what they were charged.
async fn minutes(gateway: &Gateway, customer: &Customer) -> Result<Vec<(u64, u64)>> {
    let shown = gateway.command(&["customer", "show", &customer.id]).await?;
    let number = |session: &Value, name: &str| session[name].as_u64().unwrap_or_default();
    let sessions = shown["sessions"].as_array().into_iter().flatten();
    Ok(sessions
        .map(|session| {
            let started = number(session, "duration").div_ceil(60_000).max(1);
            assert_eq!(number(session, "minutes"), started, "{session}");
            (started, number(session, "chargedMicros"))
        })
        .collect())
}

#[tokio::test]
async fn sessions_outlive_a_minute_without_redis_and_are_billed_to_the_minute() -> Result<()> {
    const OUTAGE: Duration = Duration::from_secs(60);
    let (mut redis, browser) = (Redis::start().await?, StandIn::start().await?);
    let gateway = on(&redis.url(), &browser).set("PLANS_ENTERPRISE_SESSION_MINUTES", 1).start().await?;
    let customer = gateway.prepaid_customer("enterprise", FUNDS).await?;
    let mut lasting = gateway.connect(&customer).await?;
    let mut leaving = gateway.connect(&customer).await?;
    have_begun(&gateway, &customer, 2).await?;

    redis.kill()?;
    let gone = Instant::now();
    is_away(&gateway).await?;
    let refused: Refusal = gateway.connect(&customer).await.expect_err("no price is set aside").downcast()?;
    assert_eq!((refused.status, refused.code.as_str()), (503, "ledger_away"));
    assert!(refused.retry_after.is_some());
    assert_eq!(gateway.ask_admin(Request::get("/healthz")).await?.status, 200);
    // A second minute starts meanwhile, which nobody set aside.
    let mut second = tokio::time::interval(Duration::from_secs(1));
    while gone.elapsed() < OUTAGE {
        second.tick().await;
        answers(&mut lasting).await?;
        answers(&mut leaving).await?;
    }
    leaving.close().await?;
    owes(&gateway, 2).await?;

    redis.start_again().await?;
    is_ready(&gateway).await?;
    owes(&gateway, 0).await?;
    eventually("the minute of the one that runs is billed, and the one that ended", async || {
        let account = gateway.account(&customer).await?;
        Ok(account.running == 1 && account.balance <= FUNDS - 2 * (PRICE + MINUTE_PRICE))
    })
    .await?;
    answers(&mut lasting).await?;
    gateway.connect(&customer).await?.close().await?;
    lasting.close().await?;
    let account = gateway.settled(&customer).await?;
    let minutes = minutes(&gateway, &customer).await?;
    assert_eq!(minutes.len(), 3);
    for (minutes, charged) in &minutes {
        assert_eq!(*charged, PRICE + (minutes - 1) * MINUTE_PRICE);
    }
    assert!(minutes.iter().filter(|(minutes, _)| *minutes >= 2).count() == 2, "{minutes:?}");
    assert_eq!(account.balance, FUNDS - minutes.iter().map(|(_, charged)| charged).sum::<u64>());
    Ok(())
}

#[tokio::test]
async fn what_a_gateway_kept_when_it_was_killed_the_next_one_commits() -> Result<()> {
    let (mut redis, browser) = (Redis::start().await?, StandIn::start().await?);
    let mut gateway = on(&redis.url(), &browser).start().await?;
    let customer = gateway.prepaid_customer("enterprise", FUNDS).await?;
    let ended = gateway.connect(&customer).await?;
    have_begun(&gateway, &customer, 1).await?;

    redis.kill()?;
    is_away(&gateway).await?;
    ended.close().await?;
    owes(&gateway, 1).await?;
    gateway.kill()?;
    redis.start_again().await?;
    gateway.start_again().await?;
    // By how it ended, which only that one saw; a session of a dead gateway would be `gateway lost`.
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.sessions[0].cause.as_deref(), Some("client closed"));
    assert_eq!((account.sessions[0].charged, account.balance), (PRICE, FUNDS - PRICE));
    owes(&gateway, 0).await
}

#[tokio::test]
async fn a_gateway_that_alone_lost_its_way_ends_what_others_settled_and_serves_on() -> Result<()> {
    let (redis, browser) = (Redis::start().await?, StandIn::start().await?);
    let way = Way::to(&redis)?;
    let lost = on(&way.url(), &browser).start().await?;
    let other = on(&redis.url(), &browser).start().await?;
    let customer = other.prepaid_customer("enterprise", FUNDS).await?;
    let (mut doomed, mut safe) = (lost.connect(&customer).await?, other.connect(&customer).await?);
    have_begun(&other, &customer, 2).await?;

    way.cut();
    is_away(&lost).await?;
    eventually("the other takes it for dead", async || {
        Ok(other.metric("ufb_gateway_swept_sessions_total").await? as u64 == 1)
    })
    .await?;
    answers(&mut doomed).await?;

    way.mend();
    is_ready(&lost).await?;
    assert_eq!(doomed.ending().await?.code(), Some(1013));
    answers(&mut safe).await?;
    safe.close().await?;
    lost.connect(&customer).await?.close().await?;
    let account = other.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (FUNDS - 3 * PRICE, 3));
    Ok(())
}

#[tokio::test]
async fn new_sessions_are_on_credit_up_to_a_bound_where_the_operator_says_so() -> Result<()> {
    const EXPOSURE: u64 = 25_000;
    let (mut redis, browser) = (Redis::start().await?, StandIn::start().await?);
    let gateway = on(&redis.url(), &browser).set("STORE_UNSECURED_EXPOSURE", EXPOSURE).start().await?;
    // It pays for one session and a half.
    let customer = gateway.prepaid_customer("enterprise", PRICE + PRICE / 2).await?;
    let stranger = gateway.prepaid_customer("enterprise", FUNDS).await?;
    gateway.connect(&customer).await?.close().await?;
    gateway.settled(&customer).await?;

    redis.kill()?;
    eventually("it says so", async || Ok(readiness(&gateway).await?.1.contains("on credit"))).await?;
    assert_eq!(readiness(&gateway).await?.0, 200);
    let (mut lasting, leaving) = (gateway.connect(&customer).await?, gateway.connect(&customer).await?);
    answers(&mut lasting).await?;
    leaving.close().await?;
    // A third one would be too much, and nobody knows the stranger.
    for customer in [&customer, &stranger] {
        let refused: Refusal = gateway.connect(customer).await.expect_err("it is refused").downcast()?;
        assert_eq!(refused.code, "ledger_away");
    }
    owes(&gateway, 2).await?;

    redis.start_again().await?;
    owes(&gateway, 0).await?;
    answers(&mut lasting).await?;
    lasting.close().await?;
    let account = gateway.settled(&customer).await?;
    let mut charged: Vec<_> = account.sessions.iter().map(|session| session.charged).collect();
    charged.sort_unstable();
    // What was not there is written off.
    assert_eq!((account.balance, charged), (0, vec![0, PRICE / 2, PRICE]));
    Ok(())
}

/// Starts and ends sessions until it is told to stop. How many there were.
async fn churn(gateway: &Gateway, customer: &Customer, stop: &AtomicBool, done: &AtomicU64) -> Result<u64> {
    let mut sessions = 0;
    while !stop.load(Ordering::Relaxed) {
        match gateway.connect(customer).await {
            Ok(mut session) => match answers(&mut session).await {
                Ok(_) => {
                    sessions += 1;
                    session.close().await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                // Its price was on its way when the Redis went: it had its 101, and no more.
                Err(closed) => ensure!(closed.to_string().contains("Again"), "{closed}"),
            },
            Err(error) => {
                let refusal: Refusal = error.downcast()?;
                ensure!(refusal.code == "ledger_away", "{refusal}");
                // As its `Retry-After` asks for; nobody waits for it.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    Ok(sessions)
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_restarts_in_the_middle_of_load() -> Result<()> {
    const CHURNING: usize = 8;
    const LASTING: usize = 20;
    const BEFORE_AND_AFTER: u64 = 100;
    let (mut redis, browser) = (Redis::start().await?, StandIn::start().await?);
    let (one, other) =
        tokio::try_join!(on(&redis.url(), &browser).start(), on(&redis.url(), &browser).start())?;
    let customer = one.prepaid_customer("enterprise", FUNDS).await?;
    let gateways = [&one, &other];
    let mut lasting =
        try_join_all((0..LASTING).map(|number| gateways[number % 2].connect(&customer))).await?;

    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let churning =
        try_join_all((0..CHURNING).map(|number| churn(gateways[number % 2], &customer, &stop, &done)));
    let restart = async {
        let so_many_more = async || {
            let before = done.load(Ordering::Relaxed);
            eventually("sessions come and go", async || {
                Ok(done.load(Ordering::Relaxed) >= before + BEFORE_AND_AFTER)
            })
            .await
        };
        so_many_more().await?;
        redis.kill()?;
        for gateway in gateways {
            is_away(gateway).await?;
        }
        redis.start_again().await?;
        so_many_more().await?;
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (churned, ()) = tokio::try_join!(churning, restart)?;
    for session in &mut lasting {
        answers(session).await?;
    }
    for session in lasting {
        session.close().await?;
    }
    let sessions = churned.iter().sum::<u64>() + LASTING as u64;
    for gateway in gateways {
        owes(gateway, 0).await?;
    }
    assert_eq!(one.settled(&customer).await?.balance, FUNDS - sessions * PRICE);
    Ok(())
}
