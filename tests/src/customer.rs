use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// Somebody who pays, and their first key.
#[derive(Debug, Clone)]
pub struct Customer {
    pub id: String,
    pub key: String,
}

impl Customer {
    /// From what `customer create --json` printed.
    pub(crate) fn new(created: &Value) -> Result<Self> {
        let text =
            |name: &str| created[name].as_str().map(str::to_owned).with_context(|| created.to_string());
        Ok(Self { id: text("customerId")?, key: text("apiKey")? })
    }

    /// The key as the first label of a host name.
    #[must_use]
    pub fn key_as_host(&self) -> String {
        self.key.replace('_', "-")
    }
}

/// What `customer show --json` tells of an account. Money is in micro-dollars.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    #[serde(rename = "balanceMicros")]
    pub balance: u64,
    pub retry_credits: u32,
    #[serde(rename = "runningSessions")]
    pub running: u32,
    pub keys: Vec<Key>,
    /// The latest, the newest first.
    pub sessions: Vec<Session>,
}

/// One of an account's keys, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    pub key_id: String,
}

/// One session's record.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Session {
    pub state: State,
    #[serde(rename = "chargedMicros")]
    pub charged: u64,
    /// Why it ended.
    pub cause: Option<String>,
    /// Its browser died.
    pub lost: bool,
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Held,
    Open,
    Posted,
    Voided,
}
