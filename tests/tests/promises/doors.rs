//! Who comes in, and how everybody else is told why not.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tests::{Customer, Gateway, Refusal, Request, StandIn};

/// More than the plan `starter` lets one customer have at once.
const SESSIONS: u32 = 10;

#[tokio::test]
async fn every_way_to_show_a_key() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let Customer { key, .. } = gateway.customer("enterprise").await?;
    let basic =
        |user: &str, password: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));

    let forms = [
        Request::websocket("/").header("Authorization", &format!("Bearer {key}")),
        Request::websocket("/").header("Authorization", &basic(&key, "")),
        Request::websocket("/").header("Authorization", &basic("anybody", &key)),
        Request::websocket("/").header("x-api-key", &key),
        Request::websocket("/").header("X-BB-API-Key", &key),
        Request::websocket("/").header("steel-api-key", &key),
        Request::websocket("/").header("anchor-api-key", &key),
        Request::websocket(&format!("/?token={key}")),
        Request::websocket(&format!("/?apiKey={key}")),
        Request::websocket("/").header("Host", &format!("{key}.localhost")),
        Request::websocket("/").header("Host", &format!("{}.localhost:3000", key.replace('_', "-"))),
        Request::websocket(&format!("/chromium?token={key}")),
        Request::websocket(&format!("/chrome?token={key}")),
    ];
    for form in forms {
        let mut session = gateway.ask(form).await?.into_cdp().await?;
        session.call("Browser.getVersion", json!({})).await?;
        session.close().await?;
    }

    ensure!(!gateway.process().output()?.contains(&key), "the key is in the log");
    Ok(())
}

#[tokio::test]
async fn without_a_good_key() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let nobodys = format!("ufb_{}", "a".repeat(52));

    let refusal = refused(&gateway, Request::websocket("/")).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (401, "no_credential"), "{refusal}");
    let bad = [
        Request::websocket("/?token="),
        Request::websocket("/?token=ufb_"),
        Request::websocket(&format!("/?token={nobodys}")),
        Request::websocket("/").header("Host", &format!("{nobodys}.localhost")),
    ];
    for request in bad {
        let refusal = refused(&gateway, request.clone()).await?;
        assert_eq!(
            (refusal.status, refusal.code.as_str()),
            (401, "bad_credential"),
            "{request:?}: {refusal}"
        );
    }
    ensure!(!gateway.process().output()?.contains(&nobodys), "a refused key is in the log");
    Ok(())
}

#[tokio::test]
async fn with_a_key_that_was_revoked_while_it_was_known() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let customer = gateway.customer("starter").await?;
    gateway.connect(&customer).await?.close().await?;

    let account = gateway.account(&customer).await?;
    gateway.command(&["key", "revoke", &customer.id, &account.keys[0].key_id]).await?;

    let refusal = refused_start(&gateway, &customer).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (401, "bad_credential"), "{refusal}");
    Ok(())
}

#[tokio::test]
async fn while_suspended() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    // Without money too: of several reasons the suspension is told first.
    let customer = gateway.prepaid_customer("starter", 0).await?;
    gateway.command(&["customer", "suspend", &customer.id]).await?;

    let refusal = refused_start(&gateway, &customer).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (403, "suspended"), "{refusal}");
    Ok(())
}

#[tokio::test]
async fn without_money() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let customer = gateway.prepaid_customer("starter", 10_000).await?;
    let _last = gateway.connect(&customer).await?;

    let by_name = Request::websocket("/").header("Host", &format!("{}.localhost:3000", customer.key));
    let refusal = refused(&gateway, by_name).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (402, "insufficient_balance"), "{refusal}");
    assert_eq!(refusal.problem["topUpUrl"], "http://localhost:3000/account/billing", "no key in it");
    Ok(())
}

#[tokio::test]
async fn past_the_plans_limit() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let customer = gateway.customer("starter").await?;
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(gateway.connect(&customer).await?);
    }

    let refusal = refused_start(&gateway, &customer).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (429, "concurrency_limit"), "{refusal}");
    assert!(refusal.retry_after.is_some(), "{refusal}");
    Ok(())
}

#[tokio::test]
async fn with_no_browser_left() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).set("SESSION_START_TIMEOUT", "200ms").start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let _only = gateway.connect(&customer).await?;

    let refusal = refused_start(&gateway, &customer).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (503, "no_browser"), "{refusal}");
    assert!(refusal.retry_after.is_some(), "{refusal}");
    assert_eq!(gateway.account(&customer).await?.balance, 90_000, "the refused session gave its price back");
    Ok(())
}

#[tokio::test]
async fn with_a_request_that_makes_no_sense() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let key = &customer.key;

    let url = format!("/?token={key}");
    let websocket = |headers: [(&str, &str); 4]| {
        headers.into_iter().fold(Request::get(&url), |request, (name, value)| request.header(name, value))
    };
    let [connection, upgrade] = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    let [version, nonce] =
        [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")];
    let requests = [
        (Request::websocket(&format!("/nowhere?token={key}")), 404, "not_found"),
        (Request::post(&url), 405, "method_not_allowed"),
        (Request::get(&url), 426, "not_websocket"),
        (Request::get(&format!("/sessions/s?token={key}")), 426, "not_websocket"),
        (websocket([connection, ("Upgrade", "h2c"), version, nonce]), 426, "not_websocket"),
        (websocket([connection, upgrade, ("Sec-WebSocket-Version", "8"), nonce]), 426, "websocket_version"),
        (websocket([connection, upgrade, version, ("Sec-WebSocket-Key", "short")]), 400, "websocket_key"),
        (Request::websocket(&format!("{url}&colour=blue")), 400, "unknown_parameter"),
        (Request::websocket(&format!("{url}&timeout=soon")), 400, "bad_parameter"),
        (Request::websocket(&format!("{url}&trackingId=a%20b")), 400, "bad_parameter"),
        (Request::websocket(&format!("{url}&browser=firefox")), 400, "unsupported_parameter"),
        (Request::websocket(&format!("{url}&keepAlive=60000")), 400, "unsupported_parameter"),
        (Request::websocket(&format!("/sessions/s?token={key}&timeout=5")), 400, "unsupported_parameter"),
    ];
    for (request, status, code) in requests {
        let refusal = refused(&gateway, request.clone()).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{request:?}: {refusal}");
        if status == 400 && code != "websocket_key" {
            let parameter = refusal.problem["parameter"].as_str();
            ensure!(
                parameter.is_some_and(|name| refusal.problem["detail"].to_string().contains(name)),
                "{refusal}"
            );
        }
    }
    assert_eq!(gateway.account(&customer).await?.balance, 100_000);
    Ok(())
}

#[tokio::test]
async fn the_operators() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;

    for target in ["/healthz", "/readyz", "/metrics"] {
        let answer = gateway.ask_admin(Request::get(target)).await?;
        assert_eq!(answer.status, 200, "{target}");
        ensure!(target != "/metrics" || answer.text().await?.contains("\nufb_"), "no metrics");
        // What the operator sees is not for customers.
        let refusal = refused(&gateway, Request::get(target)).await?;
        assert_ne!(refusal.status, 200, "{target}");
    }
    for request in [Request::get("/debug/sessions"), Request::post("/drain")] {
        let page = request.header("Origin", "https://example.com");
        assert_eq!(gateway.ask_admin(page).await?.status, 403);
    }
    // A page's own host, whose name was let lead here.
    for (host, status) in [("rebound.example.com", 403), ("localhost:9090", 200), ("[::1]:9090", 200)] {
        let answer = gateway.ask_admin(Request::get("/readyz").header("Host", host)).await?;
        assert_eq!(answer.status, status, "{host}: drained, or taken for another");
    }
    Ok(())
}

/// The certificate that clients are told to trust is in a folder of its own.
#[tokio::test]
async fn what_a_gateway_writes_is_for_its_user_alone() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, SESSIONS).start().await?;
    gateway.customer("starter").await?;
    let files: Vec<_> = fs::read_dir(gateway.data())?.collect::<Result<_, _>>()?;
    ensure!(files.iter().any(|file| file.file_name() == "ledger.db"), "{files:?}");
    for file in files {
        let mode = file.metadata()?.permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", file.path().display());
    }
    Ok(())
}

async fn refused_start(gateway: &Gateway, customer: &Customer) -> Result<Refusal> {
    refused(gateway, Request::websocket(&format!("/?token={}", customer.key))).await
}

async fn refused(gateway: &Gateway, request: Request) -> Result<Refusal> {
    Refusal::read(gateway.ask(request).await?).await
}
