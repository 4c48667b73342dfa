//! A new gateway takes the doors over from the one that runs: nobody is refused, and open sessions end as they like.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use tests::{Cdp, Gateway, Request, Session, StandIn, State, eventually};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// 200 a second.
const EVERY: Duration = Duration::from_millis(5);
/// Connects before the first take-over, between the two, and after the second.
const CONNECTS: usize = 300;
const PRICE: u64 = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn under_200_connects_a_second_none_is_refused() -> Result<()> {
    let browser = StandIn::start().await?;
    let mut gateway = Gateway::builder().fixed(&browser, 50).start().await?;
    let all = 3 * CONNECTS;
    let customer = gateway.prepaid_customer("enterprise", u64::try_from(all)? * PRICE).await?;
    let (url, door) = (format!("/?token={}", customer.key), gateway.door());
    let (progress, mut begun) = tokio::sync::watch::channel(0);
    let load = tokio::spawn(async move {
        let (mut connects, mut ticks) = (JoinSet::new(), interval(EVERY));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in 1..=all {
            ticks.tick().await;
            let request = Request::websocket(&url);
            connects.spawn(async move {
                let mut session = request.send(door).await?.into_cdp().await?;
                session.call("Browser.getVersion", json!({})).await?;
                session.close().await
            });
            progress.send_replace(number);
        }
        connects.join_all().await.into_iter().collect::<Result<Vec<_>>>()
    });

    for number in [CONNECTS, 2 * CONNECTS] {
        begun.wait_for(|begun| *begun >= number).await?;
        let mut old = gateway.take_over().await?;
        assert_eq!(old.end().await?, Some(0));
        eventually("the new one has noticed", async || {
            Ok(gateway.process().output()?.matches("and nothing of it is left").count() == number / CONNECTS)
        })
        .await?;
    }

    assert_eq!(gateway.door(), door);
    let endings = load.await??;
    assert_eq!(endings.len(), all);
    assert!(endings.iter().all(|ending| ending.code() == Some(1000)), "{endings:?}");
    assert_eq!(gateway.settled(&customer).await?.balance, 0);
    Ok(())
}

#[tokio::test]
async fn an_open_session_goes_on_until_it_ends() -> Result<()> {
    let mut gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let mut session = gateway.connect(&customer).await?;
    session.call("Browser.getVersion", json!({})).await?;

    let mut old = gateway.take_over().await?;

    works(&mut gateway.connect(&customer).await?).await?;
    works(&mut session).await?;
    let account = gateway.account(&customer).await?;
    assert!(account.sessions.iter().any(|session| session.state == State::Open), "{account:?}");
    let refused = gateway.take_over().await.err().context("a third process took over")?;
    ensure!(format!("{refused:#}").contains("does not hand its doors over"), "{refused:#}");

    session.close().await?;
    assert_eq!(old.end().await?, Some(0));
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, 80_000);
    assert!(account.sessions.iter().all(|session| !session.lost), "{account:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_killed_predecessor_leaves_is_cleared_away() -> Result<()> {
    let mut gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let mut session = gateway.connect(&customer).await?;
    let browser = session.browser().await?;
    let profile = std::path::PathBuf::from(browser.option("--user-data-dir")?);
    let old = gateway.take_over().await?;

    old.pid()?.signal(Signal::KILL)?;

    browser.ended().await?;
    eventually("its profiles are gone", async || Ok(!profile.parent().context("no parent")?.exists()))
        .await?;
    let account = gateway.settled(&customer).await?;
    assert!(matches!(account.sessions[..], [Session { lost: false, .. }]), "{account:?}");
    works(&mut gateway.connect(&customer).await?).await?;
    Ok(())
}

#[tokio::test]
async fn who_asks_for_the_doors_and_does_not_come_to_serve_changes_nothing() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 2).start().await?;
    let customer = gateway.customer("starter").await?;

    let mut asks = UnixStream::connect(gateway.data().join("gateway.sock"))?;
    ensure!(asks.read(&mut [0; 1_024])? > 0, "it was offered nothing");
    works(&mut gateway.connect(&customer).await?).await?;
    drop(asks);

    works(&mut gateway.connect(&customer).await?).await?;
    assert_eq!(gateway.ask_admin(Request::get("/readyz")).await?.status, 200);
    Ok(())
}

async fn works(session: &mut Cdp) -> Result<()> {
    session.call("Browser.getVersion", json!({})).await.map(drop)
}
