//! A backup that is made while a gateway runs, and what a restored one says of sessions that ran since.

use std::fs;

use anyhow::{Context, Result, ensure};
use tests::{Customer, Gateway, Redis, StandIn};

use crate::keeping::month_of;

/// What is told of a session that was open when the backup was made: its first minutes, or nothing if it had not begun there.
const ONE_OR_TWO: [u64; 2] = [90_000, 80_000];

#[tokio::test]
async fn a_file_is_restored() -> Result<()> {
    let browser = StandIn::start().await?;
    let mut gateway = Gateway::builder().fixed(&browser, 5).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    gateway.connect(&customer).await?.close().await?;
    gateway.settled(&customer).await?;
    let open = gateway.connect(&customer).await?;

    let file = gateway.directory().join("backup.db");
    let path = file.to_str().context("a path of tests is text")?;
    let made = gateway.command(&["store", "backup", path]).await?;
    assert_eq!(made["customers"], 1, "{made}");
    let (code, words) = gateway.run(&["store", "backup", path]).await?;
    ensure!(code == Some(1) && words.contains("name a file that does not exist"), "{code:?} {words}");
    open.close().await?;
    gateway.connect(&customer).await?.close().await?;
    assert_eq!(gateway.settled(&customer).await?.balance, 70_000);
    gateway.terminate()?;
    gateway.exit_code().await?;

    let folder = gateway.directory().join("restored");
    fs::create_dir(&folder)?;
    fs::copy(&file, folder.join("ledger.db"))?;
    let url = format!("sqlite:{}", folder.join("ledger.db").display());
    goes_on(&Gateway::builder().fixed(&browser, 5).set("STORE_URL", &url).start().await?, &customer).await
}

#[tokio::test]
async fn a_redis_is_restored() -> Result<()> {
    let (browser, redis) = (StandIn::start().await?, Redis::start().await?);
    let mut gateway = Gateway::builder().fixed(&browser, 5).set("STORE_URL", redis.url()).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    gateway.connect(&customer).await?.close().await?;
    gateway.settled(&customer).await?;
    let open = gateway.connect(&customer).await?;

    let file = gateway.directory().join("backup.rdb");
    redis.ask(&["--rdb", file.to_str().context("a path of tests is text")?])?;
    let refused = gateway.run(&["store", "backup", "other.db"]).await?;
    ensure!(refused.0 == Some(1) && refused.1.contains("redis-cli --rdb"), "{refused:?}");
    open.close().await?;
    gateway.connect(&customer).await?.close().await?;
    assert_eq!(gateway.settled(&customer).await?.balance, 70_000);
    gateway.terminate()?;
    gateway.exit_code().await?;

    let restored = Redis::restore(&file).await?;
    let again = Gateway::builder().fixed(&browser, 5).set("STORE_URL", restored.url()).start().await?;
    goes_on(&again, &customer).await
}

/// What ran since the backup is not in it; what was open in it is settled; all of it adds up, and sessions start.
async fn goes_on(gateway: &Gateway, customer: &Customer) -> Result<()> {
    let balance = gateway.settled(customer).await?.balance;
    ensure!(ONE_OR_TWO.contains(&balance), "{balance}");
    gateway.connect(customer).await?.close().await?;
    assert_eq!(gateway.settled(customer).await?.balance, balance - 10_000);
    let audited = gateway.command(&["audit", &customer.id]).await?;
    assert_eq!(audited["verified"]["ok"], true, "{audited}");
    let month = month_of(gateway, &[customer]).await?;
    let reconciled = gateway.command(&["reconcile", "--month", &month]).await?;
    assert_eq!(reconciled["ok"], true, "{reconciled}");
    Ok(())
}
