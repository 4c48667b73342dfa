//! Who may have which session, shown by a key or by a token in a URL, and what everybody else is told.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Customer, Gateway, Refusal, Request, StandIn, target_of};

const SESSIONS: u32 = 10;

#[tokio::test]
async fn another_customers_session_is_as_one_that_never_was() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let (owner, other) = (gateway.customer("starter").await?, gateway.customer("starter").await?);
    let url = started(&gateway, &owner).await?;
    let _running = gateway.open(&url).await?;
    let id = id_of(&url)?;

    for path in ["/devtools/browser", "/devtools/page", "/sessions"] {
        let foreign = refused(&gateway, &format!("{path}/{id}?token={}", other.key)).await?;
        let never = refused(&gateway, &format!("{path}/{}?token={}", "f".repeat(32), other.key)).await?;
        assert_eq!((foreign.status, foreign.code.as_str()), (404, "no_session"), "{path}: {foreign}");
        assert_eq!(foreign.problem, never.problem, "{path}");
    }
    let list = Request::get(&format!("/sessions/{id}/json/list")).key(&other.key);
    let foreign = Refusal::read(gateway.ask(list).await?).await?;
    assert_eq!((foreign.status, foreign.code.as_str()), (404, "no_session"), "{foreign}");

    // A token is for its own session, also among those of one customer.
    let token = token_of(&started(&gateway, &owner).await?)?;
    let wrong = refused(&gateway, &format!("/devtools/browser/{id}?token={token}")).await?;
    assert_eq!((wrong.status, wrong.code.as_str()), (404, "no_session"), "{wrong}");
    Ok(())
}

#[tokio::test]
async fn a_session_that_ended_cannot_be_had_again() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let url = started(&gateway, &customer).await?;
    gateway.open(&url).await?.close().await?;
    gateway.settled(&customer).await?;

    let over = refused(&gateway, target_of(&url)?).await?;
    assert_eq!((over.status, over.code.as_str()), (404, "no_session"), "{over}");
    assert_eq!(gateway.account(&customer).await?.balance, 90_000);
    Ok(())
}

#[tokio::test]
async fn a_session_that_is_connected() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let target = format!("/?sessionId=mine&trackingId=a&token={}", customer.key);
    let running = gateway.open(&format!("ws://gateway{target}")).await?;

    let again = [
        (target.clone(), 409, "already_connected"),
        (format!("/sessions/mine?token={}", customer.key), 409, "already_connected"),
        (format!("/?sessionId=mine&trackingId=b&token={}", customer.key), 409, "session_differs"),
    ];
    for (target, status, code) in again {
        let refusal = refused(&gateway, &target).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{refusal}");
    }
    running.close().await?;
    gateway.settled(&customer).await?;
    let ended = refused(&gateway, &target).await?;
    assert_eq!((ended.status, ended.code.as_str()), (409, "session_ended"), "{ended}");
    assert_eq!(ended.problem["session"]["trackingId"], "a");
    assert_eq!(gateway.account(&customer).await?.balance, 90_000, "charged once");
    Ok(())
}

#[tokio::test]
async fn a_key_that_was_revoked_while_it_was_known() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let customer = gateway.customer("starter").await?;
    let (unused, used) = (started(&gateway, &customer).await?, started(&gateway, &customer).await?);
    let _running = gateway.open(&used).await?;

    let account = gateway.account(&customer).await?;
    gateway.command(&["key", "revoke", &customer.id, &account.keys[0].key_id]).await?;

    let by_key = format!("?token={}", customer.key);
    let id = id_of(&used)?;
    let requests = [
        Request::get(&format!("/json/version{by_key}")),
        Request::get(&format!("/sessions/{id}/json/list{by_key}")),
        Request::websocket(&format!("/{by_key}")),
        Request::websocket(&format!("/?sessionId=mine&token={}", customer.key)),
        Request::websocket(&format!("/sessions/{id}{by_key}")),
        Request::websocket(&format!("/devtools/browser/{id}{by_key}")),
        Request::websocket(&format!("/devtools/page/{id}{by_key}")),
        // What it was good for before.
        Request::websocket(target_of(&unused)?),
        Request::websocket(target_of(&used)?),
    ];
    for request in requests {
        let refusal = Refusal::read(gateway.ask(request.clone()).await?).await?;
        assert_eq!(
            (refusal.status, refusal.code.as_str()),
            (401, "bad_credential"),
            "{request:?}: {refusal}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_suspended_account() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let customer = gateway.customer("starter").await?;
    let (unused, used) = (started(&gateway, &customer).await?, started(&gateway, &customer).await?);
    let _running = gateway.open(&used).await?;
    gateway.command(&["customer", "suspend", &customer.id]).await?;

    let requests = [
        Request::get("/json/version").key(&customer.key),
        Request::get("/json/list").key(&customer.key),
        Request::websocket(&format!("/?token={}", customer.key)),
        Request::websocket(target_of(&unused)?),
    ];
    for request in requests {
        let refusal = Refusal::read(gateway.ask(request.clone()).await?).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (403, "suspended"), "{request:?}: {refusal}");
    }
    // What runs goes on, and its other sockets belong to it.
    gateway.open(&used).await?.call("Browser.getVersion", json!({})).await?;
    Ok(())
}

/// Everything that shows a credential, at the finest level of the log.
#[tokio::test]
async fn no_credential_is_told_to_anybody() -> Result<()> {
    let gateway = Gateway::builder().set("LOG_LEVEL", "trace").start().await?;
    let (customer, other) = (gateway.customer("starter").await?, gateway.customer("starter").await?);
    let key = &customer.key;
    let url = started(&gateway, &customer).await?;
    let (token, id) = (token_of(&url)?, id_of(&url)?);
    let mut running = gateway.open(&url).await?;
    running.call("Browser.getVersion", json!({})).await?;

    let basic = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{key}:"));
    let host = format!("{key}.localhost:3000");
    let requests = [
        Request::websocket(&format!("/nowhere?token={key}")),
        Request::get(&format!("/?token={key}")),
        Request::websocket(&format!("/?token={key}&colour={key}")),
        Request::websocket(&format!("/?token={key}&timeout={key}")),
        Request::websocket(&format!("/?token={key}&trackingId={token}")),
        Request::websocket(&format!("/?token={key}x")),
        Request::websocket(&format!("/?token={token}")),
        Request::websocket(&format!("/sessions/{id}?token={token}")),
        Request::websocket(&format!("/devtools/page/{key}?token={token}")),
        Request::websocket(&format!("/devtools/browser/{id}?token={}", other.key)),
        Request::websocket("/nowhere").header("Authorization", &format!("Basic {basic}")),
        Request::websocket("/nowhere").header("Host", &host),
        Request::post(&format!("/json/version?token={token}")).header("Host", &host),
        Request::get("/json/nothing").header("x-api-key", key),
        Request::get("/json/version?colour=blue").header("Host", &host),
        Request::get(&format!("/api/sessions/{id}x")).key(key),
    ];
    for request in requests {
        let answer = gateway.ask(request.clone()).await?;
        ensure!(answer.status >= 400, "{request:?} is not refused");
        let body = answer.text().await?;
        for secret in [key, &token, &basic] {
            ensure!(!body.contains(secret.as_str()), "{request:?} is answered with {body}");
        }
    }
    for page in gateway
        .ask(Request::get(&format!("/json/list?token={token}")))
        .await?
        .json()
        .await?
        .as_array()
        .context("no list")?
    {
        gateway.open(&text(page, "webSocketDebuggerUrl")?).await?.close().await?;
    }
    running.close().await?;
    gateway.settled(&customer).await?;

    let log = gateway.process().output()?;
    let metrics = gateway.ask_admin(Request::get("/metrics")).await?.text().await?;
    for secret in [key, &other.key, &token, &basic] {
        ensure!(!log.contains(secret.as_str()), "{secret} is in the log");
        ensure!(!metrics.contains(secret.as_str()), "{secret} is in the metrics");
    }
    Ok(())
}

/// The URL of a session that its first socket will start.
async fn started(gateway: &Gateway, customer: &Customer) -> Result<String> {
    text(&gateway.discover(customer, "/json/version").await?, "webSocketDebuggerUrl")
}

fn id_of(url: &str) -> Result<String> {
    let path = target_of(url)?.split('?').next().context("no path")?;
    Ok(path.rsplit('/').next().context("no id")?.to_owned())
}

fn token_of(url: &str) -> Result<String> {
    Ok(url.split_once("?token=").context("no token")?.1.to_owned())
}

async fn refused(gateway: &Gateway, target: &str) -> Result<Refusal> {
    Refusal::read(gateway.ask(Request::websocket(target)).await?).await
}

fn text(document: &Value, field: &str) -> Result<String> {
    Ok(document[field].as_str().with_context(|| format!("no {field} in {document}"))?.to_owned())
}
