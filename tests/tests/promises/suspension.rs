//! Who is suspended has no sessions any more, whichever process the operator works in.

use anyhow::Result;
use serde_json::json;
use tests::{Builder, Gateway, Redis, StandIn};

#[tokio::test]
async fn suspending_ends_the_sessions_that_run() -> Result<()> {
    ends_what_runs(Gateway::builder()).await
}

#[tokio::test]
async fn suspending_ends_the_sessions_that_run_on_redis() -> Result<()> {
    let redis = Redis::start().await?;
    ends_what_runs(Gateway::builder().set("STORE_URL", redis.url())).await
}

async fn ends_what_runs(builder: Builder) -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = builder.fixed(&browser, 5).start().await?;
    let suspended = gateway.prepaid_customer("starter", 100_000).await?;
    let other = gateway.prepaid_customer("starter", 100_000).await?;
    let mut sessions = [gateway.connect(&suspended).await?, gateway.connect(&suspended).await?];
    let mut others = gateway.connect(&other).await?;

    gateway.command(&["customer", "suspend", &suspended.id]).await?;

    for session in &mut sessions {
        assert_eq!(session.ending().await?.code(), Some(1008));
    }
    let account = gateway.settled(&suspended).await?;
    assert_eq!(account.balance, 80_000, "they are charged");
    for session in account.sessions {
        assert_eq!(session.cause.as_deref(), Some("not allowed"));
    }
    others.call("Browser.getVersion", json!({})).await?;
    Ok(())
}
