//! The same request twice is one session and one charge.

use anyhow::{Result, bail};
use futures_util::future::join_all;
use serde_json::json;
use tests::{Gateway, StandIn, eventually};

use super::{attach, create, creation, done, end, refused};

const SESSIONS: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn at_the_same_time() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).set("EDGE_THREADS", 2).start().await?;
    let customer = gateway.prepaid_customer("enterprise", 100_000).await?;

    let answers = join_all((0..SESSIONS).map(|_| create(&gateway, &customer, "s1"))).await;
    for created in answers {
        let created = created?;
        assert_eq!((&created["sessionId"], &created["accountBalanceMicros"]), (&json!("s1"), &json!(90_000)));
    }
    let account = gateway.account(&customer).await?;
    assert_eq!((account.balance, account.running, account.sessions.len()), (90_000, 1, 1));
    Ok(())
}

#[tokio::test]
async fn while_it_lives_and_after_it_ended() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let body = json!({ "sessionId": "s1", "timeout": 60_000, "metadata": { "a": 0.1, "b": [1] } });
    let reordered = json!({ "metadata": { "b": [1], "a": 0.1 }, "browser": "chromium", "timeout": 60_000, "sessionId": "s1" });
    let other = json!({ "sessionId": "s1", "timeout": 60_001 });

    let first = done(&gateway, creation(&customer, &body)).await?;
    let again = done(&gateway, creation(&customer, &reordered)).await?;
    assert_eq!((&again["startedAt"], &again["containerId"]), (&first["startedAt"], &first["containerId"]));
    let session = attach(&gateway, &again).await?;
    assert_eq!(done(&gateway, creation(&customer, &body)).await?["status"], "running");
    let refusal = refused(&gateway, creation(&customer, &other)).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (409, "session_differs"), "{refusal}");

    session.close().await?;
    let settled = gateway.settled(&customer).await?;
    let refusal = refused(&gateway, creation(&customer, &body)).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (409, "session_ended"), "{refusal}");
    let record = &refusal.problem["session"];
    assert_eq!((&record["sessionId"], &record["status"]), (&json!("s1"), &json!("completed")), "{refusal}");
    assert_eq!(
        (&record["costMicros"], &record["cause"]),
        (&json!(10_000), &json!("client closed")),
        "{refusal}"
    );
    let refusal = refused(&gateway, creation(&customer, &other)).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (409, "session_differs"), "{refusal}");
    assert_eq!((settled.balance, gateway.account(&customer).await?.balance), (90_000, 90_000));
    Ok(())
}

#[tokio::test]
async fn two_customers_use_the_same_id() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let (one, other) = (gateway.customer("starter").await?, gateway.customer("starter").await?);
    let (ones, others) = (create(&gateway, &one, "s1").await?, create(&gateway, &other, "s1").await?);
    let (mut ones, others) = (attach(&gateway, &ones).await?, attach(&gateway, &others).await?);

    done(&gateway, end(&other, "s1")).await?;
    drop(others);
    ones.call("Browser.getVersion", json!({})).await?;
    assert_eq!(gateway.account(&one).await?.running, 1);
    Ok(())
}

#[tokio::test]
async fn after_no_browser_was_there() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).set("SESSION_START_TIMEOUT", "100ms").start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let only = gateway.connect(&customer).await?;
    let refusal = refused(&gateway, creation(&customer, &json!({ "sessionId": "s1" }))).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (503, "no_browser"), "{refusal}");

    only.close().await?;
    eventually("a repeat finds a browser", async || match create(&gateway, &customer, "s1").await {
        Ok(_) => Ok(true),
        Err(error) if error.to_string().contains("no_browser") => Ok(false),
        Err(error) => bail!(error),
    })
    .await?;
    assert_eq!(gateway.account(&customer).await?.balance, 80_000);
    Ok(())
}
