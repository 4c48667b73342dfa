//! Every no: status, code and body.

use anyhow::Result;
use serde_json::json;
use tests::{Gateway, Request, StandIn};

use super::{get, refused};

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
    let cases = [("/api/account", "GET"), ("/api/sessions", "GET"), ("/openapi.json", "GET")];
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
