//! Every no: status, code and body.

use anyhow::Result;
use serde_json::{Value, json};
use tests::{Gateway, Request, StandIn};

use super::{create, creation, get, refused};

#[tokio::test]
async fn without_a_good_key() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    for target in ["/api/account", "/api/usage", "/api/sessions", "/api/sessions/x"] {
        let refusal = refused(&gateway, Request::get(target)).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (401, "no_credential"), "{target}: {refusal}");
        let refusal = refused(&gateway, Request::get(target).key("ufb_x")).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (401, "bad_credential"), "{target}: {refusal}");
    }
    Ok(())
}

#[tokio::test]
async fn what_makes_no_sense() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let key = gateway.customer("starter").await?.key;
    let get = |target: &str| Request::get(target).key(&key);
    let cases = [
        (get("/api/nothing"), 404, "not_found", json!(null)),
        (get("/api/sessions/nobodys"), 404, "no_session", json!(null)),
        (get("/api/sessions/no%20id"), 404, "no_session", json!(null)),
        (get("/api/account?colour=blue"), 400, "unknown_parameter", json!("colour")),
        (get("/api/usage?by=year"), 400, "bad_parameter", json!("by")),
        (get("/api/usage?last=0"), 400, "bad_parameter", json!("last")),
        (get("/api/sessions?limit=101"), 400, "bad_parameter", json!("limit")),
        (get("/api/sessions?after=x"), 400, "bad_parameter", json!("after")),
        (get("/api/sessions?limit=1&limit=2"), 400, "bad_parameter", json!("limit")),
    ];
    for (request, status, code, parameter) in cases {
        let refusal = refused(&gateway, request.clone()).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{request:?}: {refusal}");
        assert_eq!(refusal.problem.get("parameter").unwrap_or(&json!(null)), &parameter, "{refusal}");
    }
    Ok(())
}

#[tokio::test]
async fn a_method_that_a_path_does_not_take() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let cases = [
        ("/api/account", "GET"),
        ("/api/sessions", "GET"),
        ("/api/sessions/x/end", "POST"),
        ("/api/sessions/create", "POST"),
        ("/openapi.json", "GET"),
    ];
    for (target, allowed) in cases {
        for method in ["HEAD", "OPTIONS", "PUT", "DELETE"] {
            let answer = gateway.ask(Request::new(method, target)).await?;
            assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {target}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn another_customers_session_is_none() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let (owner, other) = (gateway.customer("starter").await?, gateway.customer("starter").await?);
    let _running = gateway.connect(&owner).await?;
    let listed = get(&gateway, &owner, "/api/sessions").await?;
    let id = listed["sessions"][0]["sessionId"].as_str().unwrap_or_default();

    let theirs = refused(&gateway, Request::get(&format!("/api/sessions/{id}")).key(&other.key)).await?;
    let nobodys = refused(&gateway, Request::get("/api/sessions/never-was").key(&other.key)).await?;
    assert_eq!(theirs.status, 404, "{theirs}");
    assert_eq!(theirs.problem, nobodys.problem);
    assert_eq!(get(&gateway, &other, "/api/sessions").await?, json!({ "sessions": [], "next": null }));
    Ok(())
}

#[tokio::test]
async fn a_body_that_makes_no_sense() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let json = |body: Value| creation(&customer, &body);
    let text = |kind: &str, body: &str| {
        Request::post("/api/sessions/create").key(&customer.key).header("Content-Type", kind).body(body)
    };
    let large = json!({ "metadata": { "a": "x".repeat(70_000) } });
    let cases = [
        (text("application/json", "{"), 400, "invalid_json", json!(null)),
        (text("application/json", "[]"), 400, "invalid_json", json!(null)),
        (text("text/plain", "{}"), 415, "content_type", json!(null)),
        (json(large), 413, "body_too_large", json!(null)),
        (json(json!({ "colour": "blue" })), 400, "unknown_field", json!("colour")),
        (json(json!({ "sessionId": "a b" })), 400, "invalid_field", json!("sessionId")),
        (json(json!({ "browser": "firefox" })), 400, "invalid_field", json!("browser")),
        (json(json!({ "timeout": "5m" })), 400, "invalid_field", json!("timeout")),
        (json(json!({ "timeout": 0 })), 400, "invalid_field", json!("timeout")),
        (json(json!({ "timeout": 86_400_001 })), 400, "invalid_field", json!("timeout")),
        (json(json!({ "keepAlive": 60_000 })), 400, "invalid_field", json!("keepAlive")),
        (json(json!({ "metadata": [] })), 400, "invalid_field", json!("metadata")),
        (json(json!({ "metadata": { "a": "x".repeat(4_096) } })), 400, "invalid_field", json!("metadata")),
    ];
    for (request, status, code, field) in cases {
        let refusal = refused(&gateway, request.clone()).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{refusal}");
        assert_eq!(refusal.problem.get("field").unwrap_or(&json!(null)), &field, "{refusal}");
    }
    assert_eq!(gateway.account(&customer).await?.balance, 100_000);
    Ok(())
}

#[tokio::test]
async fn a_body_that_does_not_come() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let key = gateway.customer("starter").await?.key;
    let half = Request::post("/api/sessions/create").key(&key).header("Content-Length", "2");
    let refusal = refused(&gateway, half).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (408, "body_timeout"), "{refusal}");
    let chunks = Request::post("/api/sessions/create").key(&key).header("Transfer-Encoding", "chunked");
    let refusal = refused(&gateway, chunks.chunk(&"x".repeat(70_000))).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (413, "body_too_large"), "{refusal}");
    Ok(())
}

#[tokio::test]
async fn a_sessions_token_is_no_key() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let customer = gateway.customer("starter").await?;
    let created = create(&gateway, &customer, "s1").await?;
    let (_, token) = created["cdpUrl"].as_str().and_then(|url| url.split_once("token=")).unwrap_or_default();
    assert!(token.starts_with("ufs_"), "{created}");
    for request in [Request::get("/api/account"), Request::post("/api/sessions/s1/end")] {
        let refusal = refused(&gateway, request.key(token)).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (401, "bad_credential"), "{refusal}");
        assert!(!refusal.problem.to_string().contains(token), "{refusal}");
    }
    Ok(())
}

#[tokio::test]
async fn a_session_that_may_not_be_made() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway =
        Gateway::builder().fixed(&browser, 10).set("PLANS_STARTER_CONCURRENT_SESSIONS", 1).start().await?;

    let poor = gateway.prepaid_customer("starter", 9_999).await?;
    let refusal = refused(&gateway, creation(&poor, &json!({}))).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (402, "insufficient_balance"), "{refusal}");
    assert_eq!(refusal.problem["requiredBalanceMicros"], 10_000, "{refusal}");

    let busy = gateway.customer("starter").await?;
    create(&gateway, &busy, "s1").await?;
    let refusal = refused(&gateway, creation(&busy, &json!({ "sessionId": "s2" }))).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (429, "concurrency_limit"), "{refusal}");
    assert!(refusal.retry_after.is_some(), "{refusal}");

    gateway.command(&["customer", "suspend", &busy.id]).await?;
    let refusal = refused(&gateway, creation(&busy, &json!({}))).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (403, "suspended"), "{refusal}");
    // What it has may still be seen.
    assert_eq!(get(&gateway, &busy, "/api/account").await?["status"], "suspended");
    Ok(())
}

#[tokio::test]
async fn with_a_key_that_was_revoked_while_it_was_known() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let customer = gateway.customer("starter").await?;
    get(&gateway, &customer, "/api/account").await?;
    let account = gateway.account(&customer).await?;
    gateway.command(&["key", "revoke", &customer.id, &account.keys[0].key_id]).await?;
    for target in ["/api/account", "/api/usage", "/api/sessions", "/api/sessions/x"] {
        let refusal = refused(&gateway, Request::get(target).key(&customer.key)).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (401, "bad_credential"), "{target}: {refusal}");
    }
    Ok(())
}
