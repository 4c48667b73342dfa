//! What a program may ask over REST, and what it is told.

mod reading;
mod refusals;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::{Customer, Gateway, Refusal, Request};

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
