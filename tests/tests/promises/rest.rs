//! What a program may ask over REST, and what it is told.

mod conformance;
mod creating;
mod ending;
mod reading;
mod refusals;
mod repeating;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Cdp, Customer, Gateway, Refusal, Request, target_of};

/// A session without a socket, by a request that says nothing but its id.
async fn create(gateway: &Gateway, customer: &Customer, id: &str) -> Result<Value> {
    done(gateway, creation(customer, &json!({ "sessionId": id }))).await
}

fn creation(customer: &Customer, body: &Value) -> Request {
    Request::post("/api/sessions/create").key(&customer.key).json(body)
}

fn end(customer: &Customer, id: &str) -> Request {
    Request::post(&format!("/api/sessions/{id}/end")).key(&customer.key)
}

/// Connects to the `cdpUrl` of a session.
async fn attach(gateway: &Gateway, created: &Value) -> Result<Cdp> {
    let target = target_of(created["cdpUrl"].as_str().context("no cdpUrl")?)?;
    gateway.ask(Request::websocket(target)).await?.into_cdp().await
}

async fn get(gateway: &Gateway, customer: &Customer, target: &str) -> Result<Value> {
    done(gateway, Request::get(target).key(&customer.key)).await
}

/// The document of a 200.
async fn done(gateway: &Gateway, request: Request) -> Result<Value> {
    let response = gateway.ask(request).await?;
    if response.status != 200 {
        return Err(Refusal::read(response).await?.into());
    }
    let kind = response.header("content-type").unwrap_or_default();
    ensure!(kind == "application/json", "an answer of the type {kind:?}");
    response.json().await
}

async fn refused(gateway: &Gateway, request: Request) -> Result<Refusal> {
    Refusal::read(gateway.ask(request).await?).await
}
