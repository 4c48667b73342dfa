//! Everything moves to another store, and goes on there.

use anyhow::{Result, ensure};
use tests::{Gateway, Redis, StandIn};

#[tokio::test]
async fn from_a_file_to_a_redis_and_back() -> Result<()> {
    let (browser, redis) = (StandIn::start().await?, Redis::start().await?);
    let url = redis.url();
    let mut alone = Gateway::builder().fixed(&browser, 5).start().await?;
    let customer = alone.prepaid_customer("starter", 100_000).await?;
    alone.connect(&customer).await?.close().await?;
    alone.settled(&customer).await?;

    let file = format!("sqlite:{}", alone.directory().join("data/ledger.db").display());
    let (code, words) = alone.run(&["store", "migrate", &file, &url]).await?;
    ensure!(code == Some(1) && words.contains("another gateway runs"), "{code:?} {words}");
    alone.terminate()?;
    alone.exit_code().await?;
    let moved = alone.command(&["store", "migrate", &file, &url]).await?;
    assert_eq!((moved["customers"].as_u64(), moved["sessions"].as_u64()), (Some(1), Some(1)), "{moved}");

    let mut shared = Gateway::builder().fixed(&browser, 5).set("STORE_URL", &url).start().await?;
    shared.connect(&customer).await?.close().await?;
    assert_eq!(shared.settled(&customer).await?.balance, 80_000);
    let back = format!("sqlite:{}", shared.directory().join("back/ledger.db").display());
    let (code, words) = shared.run(&["store", "migrate", &url, &back]).await?;
    ensure!(code == Some(1) && words.contains("a gateway runs on"), "{code:?} {words}");
    shared.terminate()?;
    shared.exit_code().await?;
    shared.command(&["store", "migrate", &url, &back]).await?;

    let setting = format!("store.url={back}");
    let shown = shared.command(&["customer", "show", &customer.id, "--set", &setting]).await?;
    assert_eq!(shown["balanceMicros"], 80_000, "{shown}");
    let audited = shared.command(&["audit", &customer.id, "--set", &setting]).await?;
    assert_eq!(audited["verified"]["ok"], true, "{audited}");
    Ok(())
}
