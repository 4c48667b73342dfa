//! `events`: what was told, of all customers or of one.

use std::io::Write;

use billing::{AccountId, Billing, Cursor, Event, Micros};
use serde_json::json;

use crate::config::Config;

use super::output::{Failure, Output};
use super::store;

/// Events that are read at a time.
const PAGE: u32 = 500;

pub(super) async fn run(
    customer: Option<&AccountId>,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    let streams = match customer {
        Some(customer) => {
            let stream = billing.event_stream_of(&store::account(&billing, customer).await?.id);
            stream..stream + 1
        }
        None => 0..billing.event_streams(),
    };
    if output.is_json() {
        output.write("{\"events\":[")?;
    }
    let mut separator = "\n";
    for stream in streams {
        print_stream(&billing, stream, customer, &mut separator, output).await?;
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
        let wanted =
            page.iter().filter(|(_, event)| customer.is_none_or(|customer| event.customer == *customer));
        for (_, event) in wanted {
            if output.is_json() {
                output.write(format_args!("{separator}{}", json!(event)))?;
                *separator = ",\n";
            } else {
                output.write(format_args!("{}\n", line(event)))?;
            }
        }
    }
}

fn line(event: &Event) -> String {
    let about = [
        event.session.as_ref().map(ToString::to_string),
        event.key.as_ref().map(ToString::to_string),
        event.cause.clone(),
        event.duration.map(|millis| format!("{}.{:03} s", millis / 1_000, millis % 1_000)),
        event.cost.map(|cost: Micros| cost.to_string()),
    ];
    let about = about.into_iter().flatten().collect::<Vec<_>>().join(" ");
    format!("{}  {:24}  {:16}  {about}", event.at, event.kind.as_str(), event.customer.as_str())
        .trim_end()
        .to_owned()
}
