//! `customer export`: all that is kept of a customer, as one JSON document, written piece by piece.

use std::fmt::Display;
use std::io::Write;

use billing::{AccountId, Billing, Cursor, Error, SessionCursor, Span, Webhook};
use serde_json::{Value, json};

use super::customer::summary;
use super::output::{Failure, Output};
use super::{key, store};

/// Records that are read at a time.
const PAGE: u32 = 500;

pub(super) async fn run(
    billing: &Billing,
    id: &AccountId,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let account = store::account(billing, id).await?;
    let mut customer = summary(&account);
    customer["erasedAt"] = json!(account.erased_at.map(|at| at.to_string()));
    let keys: Value = account.keys.iter().map(key::document).collect();
    let webhooks = billing.webhooks(id).await.map_err(Error::from)?;
    let webhooks: Value = webhooks.iter().map(webhook).collect();
    output.write(format_args!("{{\"customer\":{customer},\n\"keys\":{keys},\n\"webhooks\":{webhooks}"))?;
    usage(billing, id, output).await?;
    sessions(billing, id, output).await?;
    entries(billing, id, output).await?;
    events(billing, id, output).await?;
    Ok(output.write("}\n")?)
}

fn webhook(webhook: &Webhook) -> Value {
    json!({
        "webhookId": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "createdAt": webhook.created_at.to_string(),
    })
}

/// A list that is written as it is read.
struct List {
    separator: &'static str,
}

impl List {
    fn begin(name: &str, output: &mut Output<impl Write>) -> Result<List, Failure> {
        output.write(format_args!(",\n\"{name}\":["))?;
        Ok(List { separator: "\n" })
    }

    fn item(&mut self, item: impl Display, output: &mut Output<impl Write>) -> Result<(), Failure> {
        output.write(format_args!("{}{item}", self.separator))?;
        self.separator = ",\n";
        Ok(())
    }

    fn end(self, output: &mut Output<impl Write>) -> Result<(), Failure> {
        Ok(output.write("]")?)
    }
}

async fn usage(billing: &Billing, id: &AccountId, output: &mut Output<impl Write>) -> Result<(), Failure> {
    for (name, span) in [("usageByMonth", Span::Month), ("usageByHour", Span::Hour)] {
        let mut list = List::begin(name, output)?;
        for period in billing.usage(id, span, span.most(), store::now()).await? {
            if period.usage.sessions > 0 {
                list.item(super::usage::period_document(&period), output)?;
            }
        }
        list.end(output)?;
    }
    Ok(())
}

async fn sessions(billing: &Billing, id: &AccountId, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let mut list = List::begin("sessions", output)?;
    let mut after = None;
    loop {
        let page = billing.sessions(id, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return list.end(output) };
        after = Some(SessionCursor::from(last));
        for session in &page {
            list.item(json!(session), output)?;
        }
    }
}

async fn entries(billing: &Billing, id: &AccountId, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let mut list = List::begin("auditLog", output)?;
    let mut after = 0;
    loop {
        let page = billing.audit(id, after, PAGE).await?;
        let Some(last) = page.last() else { return list.end(output) };
        after = last.seq;
        for entry in &page {
            list.item(json!(entry), output)?;
        }
    }
}

async fn events(billing: &Billing, id: &AccountId, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let mut list = List::begin("events", output)?;
    let (stream, mut after) = (billing.event_stream_of(id), Cursor::start());
    loop {
        let page = billing.events(stream, &after, PAGE).await?;
        let Some((last, _)) = page.last() else { return list.end(output) };
        after = last.clone();
        let events = page.iter().filter_map(|(_, told)| told.event());
        for event in events.filter(|event| event.customer == *id) {
            list.item(json!(event), output)?;
        }
    }
}
