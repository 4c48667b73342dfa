//! A session that another gateway has: its owner is told so at every door, and nobody else learns that there is one.

use anyhow::{Context, Result};
use serde_json::json;
use tests::{Customer, Gateway, Redis, Refusal, Request, StandIn, eventually, target_of};

/// Every way to ask for a socket of the session `id`, or for something of it that only its gateway can do. None of them
/// starts a session for somebody who has no money.
fn requests(id: &str, whose: &Customer) -> Vec<Request> {
    let key = &whose.key;
    vec![
        Request::websocket(&format!("/sessions/{id}?token={key}")),
        Request::websocket(&format!("/devtools/browser/{id}?token={key}")),
        Request::websocket(&format!("/devtools/page/{id}?token={key}")),
        Request::get(&format!("/sessions/{id}/json/list?token={key}")),
        Request::post(&format!("/api/sessions/{id}/end")).key(key),
    ]
}

/// The same, where the id is taken for a new session's by whoever has none of that id.
fn starts(id: &str, whose: &Customer) -> Vec<Request> {
    vec![
        Request::websocket(&format!("/?token={}&sessionId={id}", whose.key)),
        Request::post("/api/sessions/create").key(&whose.key).json(&json!({ "sessionId": id })),
    ]
}

async fn refused(gateway: &Gateway, request: Request) -> Result<Refusal> {
    let what = format!("{request:?}");
    Refusal::read(gateway.ask(request).await?).await.context(what)
}

/// All of `requests` are answered with 503, `session_elsewhere`, and when to ask again.
async fn is_elsewhere(gateway: &Gateway, requests: Vec<Request>) -> Result<()> {
    for request in requests {
        let what = format!("{request:?}");
        let refusal = refused(gateway, request).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (503, "session_elsewhere"), "{what}");
        assert!(refusal.retry_after.is_some_and(|seconds| seconds > 0), "{what}");
    }
    Ok(())
}

async fn never_was(gateway: &Gateway, requests: Vec<Request>) -> Result<()> {
    for request in requests {
        let what = format!("{request:?}");
        let refusal = refused(gateway, request).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (404, "no_session"), "{what}");
    }
    Ok(())
}

#[tokio::test]
async fn at_another_gateway_of_the_same_store() -> Result<()> {
    let (redis, browser) = (Redis::start().await?, StandIn::start().await?);
    let gateway = || Gateway::builder().set("STORE_URL", redis.url()).fixed(&browser, 4).start();
    let (one, other) = tokio::try_join!(gateway(), gateway())?;
    let customer = one.prepaid_customer("starter", 20_000).await?;
    let stranger = one.prepaid_customer("starter", 0).await?;
    let open = Request::websocket(&format!("/?token={}&sessionId=open", customer.key));
    let mut open = one.ask(open).await?.into_cdp().await?;
    let waiting =
        Request::post("/api/sessions/create").key(&customer.key).json(&json!({ "sessionId": "waiting" }));
    let waiting = one.ask(waiting).await?.json().await?;
    let url = waiting["cdpUrl"].as_str().context("no cdpUrl")?;

    for id in ["open", "waiting"] {
        is_elsewhere(&other, requests(id, &customer)).await?;
        is_elsewhere(&other, starts(id, &customer)).await?;
        never_was(&other, requests(id, &stranger)).await?;
    }
    is_elsewhere(&other, vec![Request::websocket(target_of(url)?)]).await?;
    // What the ledger knows is answered by any gateway.
    let show = Request::get("/api/sessions/open").key(&customer.key);
    assert_eq!(other.ask(show).await?.json().await?["sessionId"], "open");

    // Neither was touched, nor charged again.
    open.call("Browser.getVersion", json!({})).await?;
    let join = Request::websocket(&format!("/devtools/browser/open?token={}", customer.key));
    let mut joined = one.ask(join).await?.into_cdp().await?;
    joined.call("Browser.getVersion", json!({})).await?;
    let mut attached = one.ask(Request::websocket(target_of(url)?)).await?.into_cdp().await?;
    attached.call("Browser.getVersion", json!({})).await?;
    for session in [joined, open, attached] {
        session.close().await?;
    }
    let account = other.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (0, 2), "{account:?}");

    // It is nobody's once it is over; how it ended is the ledger's to tell.
    never_was(&other, requests("open", &customer).into_iter().take(4).collect()).await?;
    let end = Request::post("/api/sessions/open/end").key(&customer.key);
    assert_eq!(other.ask(end).await?.json().await?["actualCostMicros"], 10_000);
    Ok(())
}

#[tokio::test]
async fn at_the_process_that_took_the_doors_over() -> Result<()> {
    let browser = StandIn::start().await?;
    let mut gateway = Gateway::builder().fixed(&browser, 2).start().await?;
    let customer = gateway.prepaid_customer("starter", 10_000).await?;
    let stranger = gateway.prepaid_customer("starter", 0).await?;
    let open = Request::websocket(&format!("/?token={}&sessionId=open", customer.key));
    let mut open = gateway.ask(open).await?.into_cdp().await?;

    let mut old = gateway.take_over().await?;

    is_elsewhere(&gateway, requests("open", &customer)).await?;
    is_elsewhere(&gateway, starts("open", &customer)).await?;
    never_was(&gateway, requests("open", &stranger)).await?;
    open.call("Browser.getVersion", json!({})).await?;
    open.close().await?;
    assert_eq!(old.end().await?, Some(0));
    eventually("it is over for the new one, too", async || {
        let [join, ..] = &requests("open", &customer)[..] else { unreachable!("there are some") };
        Ok(refused(&gateway, join.clone()).await?.code == "no_session")
    })
    .await?;
    assert_eq!(gateway.settled(&customer).await?.balance, 0);
    Ok(())
}
