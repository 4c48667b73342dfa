//! Ending a session over REST.

use anyhow::Result;
use serde_json::json;
use tests::{Gateway, Request, StandIn, target_of};

use super::{create, done, end, get, refused};

#[tokio::test]
async fn one_that_nobody_has_connected_to() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.customer("starter").await?;
    let created = create(&gateway, &customer, "s1").await?;
    let ended = done(&gateway, end(&customer, "s1")).await?;
    assert_eq!((&ended["status"], &ended["actualCostMicros"]), (&json!("completed"), &json!(0)), "{ended}");
    assert_eq!(ended["message"], "ended by owner: an included session covered it", "{ended}");

    // Its URL is worth nothing now.
    let target = target_of(created["cdpUrl"].as_str().unwrap_or_default())?;
    assert_eq!(refused(&gateway, Request::websocket(target)).await?.status, 404);
    assert_eq!(get(&gateway, &customer, "/api/account").await?["includedLeft"], 499);
    Ok(())
}

#[tokio::test]
async fn twice_and_one_that_was_started_by_connecting() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 2).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let mut session = gateway.connect(&customer).await?;
    let listed = get(&gateway, &customer, "/api/sessions?show=running").await?;
    let id = listed["sessions"][0]["sessionId"].as_str().unwrap_or_default();

    let first = done(&gateway, end(&customer, id)).await?;
    assert_eq!(session.ending().await?.code(), Some(4410));
    assert_eq!(done(&gateway, end(&customer, id)).await?, first);
    assert_eq!(gateway.settled(&customer).await?.balance, 90_000);
    Ok(())
}

#[tokio::test]
async fn somebody_elses_and_nobodys() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 2).start().await?;
    let (owner, other) = (gateway.customer("starter").await?, gateway.customer("starter").await?);
    create(&gateway, &owner, "s1").await?;
    let theirs = refused(&gateway, end(&other, "s1")).await?;
    let nobodys = refused(&gateway, end(&other, "s2")).await?;
    assert_eq!((theirs.status, theirs.code.as_str()), (404, "no_session"), "{theirs}");
    assert_eq!(theirs.problem, nobodys.problem);
    assert_eq!(gateway.account(&owner).await?.running, 1);
    Ok(())
}
