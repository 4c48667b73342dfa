//! `key create|list|revoke`.

use std::io::Write;

use billing::{Actor, Key, Secret};
use serde_json::{Value, json};

use crate::config::Config;

use super::output::{Failure, Output, table};
use super::{KeyAction, store};

pub(super) async fn run(
    action: KeyAction,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    match action {
        KeyAction::Create { customer, label } => {
            let (key, secret) = billing.create_key(&customer, label, Actor::Operator, store::now()).await?;
            let document = json!({ "customerId": customer, "keyId": key.id, "apiKey": secret.expose() });
            let text = format!("customer  {customer}\nkey id    {}\n{}", key.id, shown_once(&secret));
            Ok(output.print(&document, text)?)
        }
        KeyAction::List { customer } => {
            let account = store::account(&billing, &customer).await?;
            let keys: Vec<_> = account.keys.iter().map(document).collect();
            Ok(output.print(&json!({ "customerId": customer, "keys": keys }), table_of(&account.keys))?)
        }
        KeyAction::Revoke { customer, key } => {
            billing.revoke_key(&customer, &key, Actor::Operator, store::now()).await?;
            let document = json!({ "customerId": customer, "keyId": key, "revoked": true });
            let text = format!(
                "The key {key} starts no more sessions. `ufbrowsers key create {customer}` makes another one."
            );
            Ok(output.print(&document, text)?)
        }
    }
}

pub(super) fn shown_once(secret: &Secret) -> String {
    format!("API key   {}\n          The key is shown once; keep it.", secret.expose())
}

/// A key without its hash.
pub(super) fn document(key: &Key) -> Value {
    json!({
        "keyId": key.id,
        "label": key.label,
        "createdAt": key.created_at.to_string(),
        "revokedAt": key.revoked_at.map(|at| at.to_string()),
    })
}

pub(super) fn table_of(keys: &[Key]) -> String {
    let rows: Vec<_> = keys
        .iter()
        .map(|key| {
            let revoked = key.revoked_at.map_or_else(|| "no".to_owned(), |at| at.to_string());
            [key.id.to_string(), key.label.clone(), key.created_at.to_string(), revoked]
        })
        .collect();
    table(["KEY", "LABEL", "CREATED", "REVOKED"], &rows)
}
