//! The Redis is lost and a replica takes its place: no session is cut, also where the replica had not heard of it, and
//! each is charged once. And a Redis that is far is reached by TLS.

use anyhow::Result;
use serde_json::json;
use tests::{Gateway, Redis, SecureRedis, StandIn, State, WatchedRedis, eventually};

/// Micro-dollars.
const PRICE: u64 = 10_000;
const FUNDS: u64 = 1_000_000;

#[tokio::test]
async fn sessions_outlive_a_failover_and_are_charged_once() -> Result<()> {
    let (mut redis, browser) = (WatchedRedis::start().await?, StandIn::start().await?);
    let gateway = Gateway::builder().set("STORE_URL", redis.url()).fixed(&browser, 10).start().await?;
    let customer = gateway.prepaid_customer("enterprise", FUNDS).await?;
    let mut known = gateway.connect(&customer).await?;
    eventually("its beginning is noted", async || {
        Ok(gateway.account(&customer).await?.sessions.iter().all(|session| session.state == State::Open))
    })
    .await?;
    redis.replicated().await?;
    redis.deafen_replica()?;
    let mut unknown = gateway.connect(&customer).await?;
    // What its browser says comes when it is held, which its 101 may go ahead of.
    unknown.call("Browser.getVersion", json!({})).await?;

    redis.kill_master()?;
    redis.promoted().await?;
    eventually("the session that the replica had not heard of is held again", async || {
        // Sentinel names the new master a moment after it has become it.
        Ok(gateway.account(&customer).await.is_ok_and(|account| account.running == 2))
    })
    .await?;
    for session in [&mut known, &mut unknown] {
        session.call("Browser.getVersion", json!({})).await?;
    }
    let mut new = gateway.connect(&customer).await?;
    new.call("Browser.getVersion", json!({})).await?;
    for session in [known, unknown, new] {
        session.close().await?;
    }
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, FUNDS - 3 * PRICE);
    assert!(account.sessions.iter().all(|session| session.charged == PRICE), "{account:?}");
    Ok(())
}

#[tokio::test]
async fn a_redis_is_reached_by_tls_and_only_if_its_certificate_is_trusted() -> Result<()> {
    let ((redis, port), browser) = (Redis::with_tls().await?, StandIn::start().await?);
    let gateway = || {
        let url = format!("rediss://127.0.0.1:{port}");
        Gateway::builder().set("STORE_URL", url).fixed(&browser, 2)
    };
    assert!(gateway().start().await.is_err(), "its certificate is nobody's");

    let gateway = gateway().environment("SSL_CERT_FILE", redis.certificate().display()).start().await?;
    let customer = gateway.prepaid_customer("enterprise", FUNDS).await?;
    gateway.connect(&customer).await?.close().await?;
    assert_eq!(gateway.settled(&customer).await?.balance, FUNDS - PRICE);
    assert_ne!(redis.ask(&["DBSIZE"])?.trim(), "0");
    Ok(())
}

#[tokio::test]
async fn a_cluster_and_sentinels_are_reached_by_tls() -> Result<()> {
    let browser = StandIn::start().await?;
    let (cluster, watched) = (SecureRedis::cluster().await?, SecureRedis::watched().await?);
    let stores = [
        (&cluster, format!("rediss+cluster://127.0.0.1:{}", cluster.last_port())),
        (&watched, format!("rediss+sentinel://127.0.0.1:{}/main", watched.last_port())),
    ];
    for (redis, url) in stores {
        let gateway = || Gateway::builder().set("STORE_URL", &url).fixed(&browser, 2);
        assert!(gateway().start().await.is_err(), "its certificate is nobody's");

        let gateway = gateway().environment("SSL_CERT_FILE", redis.certificate().display()).start().await?;
        let customer = gateway.prepaid_customer("enterprise", FUNDS).await?;
        gateway.connect(&customer).await?.close().await?;
        assert_eq!(gateway.settled(&customer).await?.balance, FUNDS - PRICE);
    }
    Ok(())
}
