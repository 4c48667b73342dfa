//! Sessions, account and usage, as they are told.

use anyhow::Result;
use serde_json::json;
use tests::{Gateway, StandIn, eventually};

use super::get;

#[tokio::test]
async fn an_account_what_it_ran_and_what_that_came_to() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 5).start().await?;
    let customer = gateway.customer("professional").await?;

    let mut running = gateway.connect(&customer).await?;
    running.call("Browser.getVersion", json!({})).await?;
    let listed = get(&gateway, &customer, "/api/sessions?show=running").await?;
    let session = &listed["sessions"][0];
    assert_eq!((&session["status"], &session["endedAt"]), (&json!("running"), &json!(null)), "{session}");
    assert!(session["upBytes"].as_u64() > Some(0) && session["downBytes"].as_u64() > Some(0), "{session}");
    let account = get(&gateway, &customer, "/api/account").await?;
    assert_eq!((&account["includedLeft"], &account["runningSessions"]), (&json!(4_999), &json!(1)));
    assert_eq!(account["remainingSessions"], 4_999);
    running.close().await?;
    gateway.settled(&customer).await?;

    let id = session["sessionId"].as_str().unwrap_or_default();
    let shown = get(&gateway, &customer, &format!("/api/sessions/{id}")).await?;
    assert_eq!((&shown["status"], &shown["cost"]), (&json!("completed"), &json!(0)), "{shown}");
    assert_eq!((&shown["minutes"], &shown["cause"]), (&json!(1), &json!("client closed")), "{shown}");
    let usage = get(&gateway, &customer, "/api/usage").await?;
    let month = &usage["periods"][0];
    assert_eq!((&month["sessions"], &month["includedSessions"]), (&json!(1), &json!(1)), "{usage}");
    assert_eq!((&month["browserMinutes"], &month["upBytes"]), (&json!(1), &shown["upBytes"]), "{usage}");
    for (by, periods) in [("hour", 48), ("day", 31), ("month", 13)] {
        let usage = get(&gateway, &customer, &format!("/api/usage?by={by}")).await?;
        assert_eq!(usage["periods"].as_array().map(Vec::len), Some(periods), "{by}");
        assert_eq!((&usage["total"]["sessions"], &usage["total"]["cost"]), (&json!(1), &json!(0)), "{by}");
    }
    Ok(())
}

#[tokio::test]
async fn money_is_in_dollars_and_in_micro_dollars() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 5).start().await?;
    let customer = gateway.prepaid_customer("starter", 25_000).await?;
    gateway.connect(&customer).await?.close().await?;
    gateway.settled(&customer).await?;

    let account = get(&gateway, &customer, "/api/account").await?;
    assert_eq!((&account["balance"], &account["balanceMicros"]), (&json!(0.015), &json!(15_000)));
    assert_eq!((&account["remainingSessions"], &account["includedSessions"]), (&json!(1), &json!(0)));
    let usage = get(&gateway, &customer, "/api/usage?by=day&last=1").await?;
    assert_eq!((&usage["total"]["cost"], &usage["total"]["costMicros"]), (&json!(0.01), &json!(10_000)));
    let sessions = get(&gateway, &customer, "/api/sessions").await?;
    assert_eq!(sessions["sessions"][0]["costMicros"], 10_000);
    Ok(())
}

#[tokio::test]
async fn a_long_list_comes_in_parts() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 5).start().await?;
    let customer = gateway.customer("starter").await?;
    for ended in 1..=5 {
        gateway.connect(&customer).await?.close().await?;
        let told = async || Ok(gateway.settled(&customer).await?.sessions.len() == ended);
        eventually("it is settled", told).await?;
    }

    let (mut starts, mut target) = (Vec::new(), "/api/sessions?limit=2".to_owned());
    loop {
        let page = get(&gateway, &customer, &target).await?;
        let sessions = page["sessions"].as_array().cloned().unwrap_or_default();
        assert!(sessions.len() <= 2, "{page}");
        starts.extend(sessions.iter().map(|session| session["startedAt"].to_string()));
        let Some(next) = page["next"].as_str() else { break };
        target = format!("/api/sessions?limit=2&after={next}");
    }
    assert_eq!(starts.len(), 5);
    assert!(starts.is_sorted_by(|newer, older| newer >= older), "{starts:?}");
    Ok(())
}
