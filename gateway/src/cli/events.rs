//! `events`: what was told, of all customers or of one; what could not be delivered, and another try of it.

use std::io::Write;

use billing::{AccountId, Billing, Content, Cursor, DeadLetter, Event, Heard, LIST_MAX, Micros};
use serde_json::{Value, json};

use crate::config::Config;

use super::output::{Failure, Output, table};
use super::store;

/// Events that are read at a time.
const PAGE: u32 = 500;

/// What is asked for.
#[derive(Debug)]
pub(super) enum What {
    Told,
    Dead,
    /// One, or `all`.
    Retry(String),
}

pub(super) async fn run(
    what: What,
    customer: Option<&AccountId>,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    if let Some(customer) = customer {
        store::account(&billing, customer).await?;
    }
    match what {
        What::Told => told(&billing, customer, output).await,
        What::Dead => dead(&billing, customer, output).await,
        What::Retry(delivery) => retry(&billing, customer, &delivery, output).await,
    }
}

/// Whose it is that is not understood nobody knows.
fn is_of(customer: Option<&AccountId>, event: Option<&Event>) -> bool {
    customer.is_none_or(|customer| event.is_some_and(|event| event.customer == *customer))
}

/// The latest ones.
async fn letters(billing: &Billing, customer: Option<&AccountId>) -> Result<Vec<DeadLetter>, Failure> {
    let mut letters = billing.dead_letters(LIST_MAX).await?;
    letters.retain(|letter| is_of(customer, letter.parcel().map(|parcel| &parcel.event)));
    Ok(letters)
}

async fn dead(
    billing: &Billing,
    customer: Option<&AccountId>,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let letters = letters(billing, customer).await?;
    let document = json!({ "deadLetters": letters.iter().map(letter_document).collect::<Vec<_>>() });
    if letters.is_empty() {
        return Ok(output.print(&document, "No delivery has failed too often.")?);
    }
    let row = |letter: &DeadLetter| {
        let event = letter.parcel().map_or("not understood", |parcel| parcel.event.kind.as_str()).to_owned();
        let (died_at, attempts) = (letter.died_at.to_string(), letter.attempts.to_string());
        [letter.name.clone(), event, died_at, attempts, letter.cause.clone()]
    };
    let rows: Vec<_> = letters.iter().map(row).collect();
    let text = format!(
        "{}\n\n`ufbrowsers events --retry DELIVERY` (or `all`) has it tried again.",
        table(["DELIVERY", "EVENT", "GIVEN UP", "ATTEMPTS", "CAUSE"], &rows)
    );
    Ok(output.print(&document, text)?)
}

fn letter_document(letter: &DeadLetter) -> Value {
    let mut document = json!({
        "delivery": letter.name,
        "attempts": letter.attempts,
        "cause": letter.cause,
        "diedAt": letter.died_at.to_string(),
    });
    match &letter.content {
        Content::Parcel(parcel) => {
            document["group"] = json!(parcel.group);
            document["to"] = json!(parcel.to);
            document["event"] = json!(parcel.event);
        }
        Content::Unreadable(body) => document["unreadable"] = json!(body),
    }
    document
}

async fn retry(
    billing: &Billing,
    customer: Option<&AccountId>,
    delivery: &str,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let names = match delivery {
        "all" => letters(billing, customer).await?.iter().map(|letter| letter.name.clone()).collect(),
        delivery => vec![delivery.to_owned()],
    };
    let mut retried = Vec::new();
    for name in names {
        if billing.redeliver(&name, store::now()).await? {
            retried.push(name);
        }
    }
    if retried.is_empty() && delivery != "all" {
        let words = format!("no dead letter {delivery}; `ufbrowsers events --dead` shows which there are");
        return Err(Failure::Failed(words));
    }
    let text = format!("{} deliveries are tried again, while a gateway runs.", retried.len());
    Ok(output.print(&json!({ "retried": retried }), text)?)
}

async fn told(
    billing: &Billing,
    customer: Option<&AccountId>,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let streams = match customer {
        Some(customer) => {
            let stream = billing.event_stream_of(customer);
            stream..stream + 1
        }
        None => 0..billing.event_streams(),
    };
    if output.is_json() {
        output.write("{\"events\":[")?;
    }
    let mut separator = "\n";
    for stream in streams {
        print_stream(billing, stream, customer, &mut separator, output).await?;
    }
    if output.is_json() {
        output.write("\n]}\n")?;
    }
    Ok(())
}

/// Those of one account are in one stream, in order; others' may be in it, too.
async fn print_stream(
    billing: &Billing,
    stream: u16,
    customer: Option<&AccountId>,
    separator: &mut &str,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let mut after = Cursor::start();
    loop {
        let page = billing.events(stream, &after, PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = last.clone();
        let wanted = page.iter().filter(|(_, told)| is_of(customer, told.event()));
        for (_, told) in wanted {
            if output.is_json() {
                output.write(format_args!("{separator}{}", document(told)))?;
                *separator = ",\n";
            } else {
                output.write(format_args!("{}\n", line(told)))?;
            }
        }
    }
}

fn document(told: &Heard) -> Value {
    match told {
        Heard::Event(event) => json!(event),
        Heard::Unreadable(body) => json!({ "unreadable": body }),
    }
}

fn line(told: &Heard) -> String {
    let event: &Event = match told {
        Heard::Event(event) => event,
        Heard::Unreadable(body) => return format!("not understood: {}", body.escape_debug()),
    };
    let about = [
        event.session.as_ref().map(ToString::to_string),
        event.key.as_ref().map(ToString::to_string),
        event.cause.clone(),
        event.duration.map(|millis| format!("{}.{:03} s", millis / 1_000, millis % 1_000)),
        event.cost.map(|cost: Micros| cost.to_string()),
        event.balance.map(|balance| balance.to_string()),
    ];
    let about = about.into_iter().flatten().collect::<Vec<_>>().join(" ");
    format!("{}  {:24}  {:16}  {about}", event.at, event.kind.as_str(), event.customer.as_str())
        .trim_end()
        .to_owned()
}
