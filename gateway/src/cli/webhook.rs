//! `webhook create|list|roll|remove`: where a customer is told of its events.

use std::io::Write;
use std::time::Duration;

use billing::{
    AccountId, Actor, Billing, Error, EventKind, NOTICES, URL_MAX, Webhook, WebhookError, WebhookSecret,
};
use serde_json::{Value, json};

use crate::config::Config;
use crate::webhook::Target;

use super::output::{Failure, Output, table};
use super::{WebhookAction, store};

/// How long both secrets are used while one is rolled: a day for whoever has to put the new one in place.
const OVERLAP: Duration = Duration::from_secs(24 * 3_600);

pub(super) async fn run(
    action: WebhookAction,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    match action {
        WebhookAction::Create { customer, url, event } => {
            create(&billing, &customer, &url, &event, config, output).await
        }
        WebhookAction::List { customer } => list(&billing, &customer, output).await,
        WebhookAction::Roll { customer, webhook, at_once } => {
            let overlap = if at_once { Duration::ZERO } else { OVERLAP };
            let rolled =
                billing.roll_webhook(&customer, &webhook, overlap, Actor::Operator, store::now()).await;
            let (webhook, secret) = rolled.map_err(Error::from)?;
            let until = webhook.rolls_until(store::now());
            let earlier = match until {
                Some(until) => format!("Requests are signed with the one before, too, until {until}."),
                None => "The one before is used no more.".to_owned(),
            };
            let text = format!("{}\n{earlier}", shown_once(&secret));
            Ok(output.print(&with_secret(&customer, &webhook, &secret), text)?)
        }
        WebhookAction::Remove { customer, webhook } => {
            let removed = billing.remove_webhook(&customer, &webhook, Actor::Operator, store::now()).await;
            removed.map_err(Error::from)?;
            let document = json!({ "customerId": customer, "webhookId": webhook, "removed": true });
            Ok(output.print(&document, format!("The webhook {webhook} is told of nothing more."))?)
        }
    }
}

async fn create(
    billing: &Billing,
    customer: &AccountId,
    url: &str,
    events: &[String],
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    if let Err(bad) = Target::parse(url, config.webhooks.private_targets) {
        return Err(Failure::Usage(format!("--url {url}: {bad}; write it like https://example.com/hook")));
    }
    if url.len() > URL_MAX {
        return Err(Failure::Usage(format!("--url: it has {} bytes; {URL_MAX} is the most", url.len())));
    }
    let events = events.iter().map(|name| kind(name)).collect::<Result<Vec<_>, _>>()?;
    let created = billing.create_webhook(customer, url, &events, Actor::Operator, store::now()).await;
    let (webhook, secret) = created.map_err(Error::from)?;
    let text = format!(
        "customer  {customer}\nwebhook   {}\ntold of   {}\n{}",
        webhook.id,
        names(&webhook).join(", "),
        shown_once(&secret)
    );
    Ok(output.print(&with_secret(customer, &webhook, &secret), text)?)
}

/// What a webhook can be told of.
fn kind(name: &str) -> Result<EventKind, Failure> {
    let kinds = || NOTICES.into_iter().chain([EventKind::SessionStarted]);
    kinds().find(|kind| kind.as_str() == name).ok_or_else(|| {
        let known: Vec<_> = kinds().map(EventKind::as_str).collect();
        Failure::Usage(format!("--event {name}: there is none; choose of {}", known.join(", ")))
    })
}

async fn list(
    billing: &Billing,
    customer: &AccountId,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let webhooks = billing.webhooks(customer).await.map_err(Error::from)?;
    let document = json!({
        "customerId": customer,
        "webhooks": webhooks.iter().map(document).collect::<Vec<_>>(),
    });
    if webhooks.is_empty() {
        let next = format!("None yet: `ufbrowsers webhook create {customer} --url URL` makes one.");
        return Ok(output.print(&document, next)?);
    }
    let row = |webhook: &Webhook| {
        let created = webhook.created_at.to_string();
        [webhook.id.to_string(), webhook.url.clone(), created, names(webhook).join(" ")]
    };
    let rows: Vec<_> = webhooks.iter().map(row).collect();
    Ok(output.print(&document, table(["WEBHOOK", "URL", "CREATED", "TOLD OF"], &rows))?)
}

fn names(webhook: &Webhook) -> Vec<&'static str> {
    webhook.events.iter().map(|kind| kind.as_str()).collect()
}

/// A webhook without its secrets.
fn document(webhook: &Webhook) -> Value {
    json!({
        "webhookId": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "createdAt": webhook.created_at.to_string(),
        "rollsUntil": webhook.rolls_until(store::now()).map(|until| until.to_string()),
    })
}

fn with_secret(customer: &AccountId, webhook: &Webhook, secret: &WebhookSecret) -> Value {
    let mut document = document(webhook);
    document["customerId"] = json!(customer);
    document["secret"] = json!(secret.expose());
    document
}

fn shown_once(secret: &WebhookSecret) -> String {
    format!("secret    {}\n          The secret is shown once; keep it.", secret.expose())
}

/// What to do next.
pub(super) fn next_step(error: &WebhookError) -> &'static str {
    match error {
        WebhookError::TooMany => "`ufbrowsers webhook remove CUSTOMER WEBHOOK` makes room",
        WebhookError::NoWebhook => "`ufbrowsers webhook list CUSTOMER` shows which it has",
        WebhookError::Url | WebhookError::NoAccount | WebhookError::Erased | WebhookError::Store(_) => {
            "nothing was changed"
        }
    }
}
