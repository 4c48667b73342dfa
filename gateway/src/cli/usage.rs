//! `usage`: what a customer's sessions came to, by hour, day or month.

use std::io::Write;

use billing::{AccountId, PeriodUsage, Span, Usage};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::config::Config;

use super::output::{Failure, Output, table};
use super::store;

/// How the figures are told apart.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum By {
    Hour,
    Day,
    Month,
}

impl By {
    fn span(self) -> Span {
        match self {
            Self::Hour => Span::Hour,
            Self::Day => Span::Day,
            Self::Month => Span::Month,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

pub(super) async fn run(
    customer: &AccountId,
    by: By,
    last: u32,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    let account = store::account(&billing, customer).await?;
    let periods = billing.usage(customer, by.span(), last, store::now()).await?;
    let total = periods.iter().fold(Usage::default(), |sum, period| sum.plus(period.usage));
    let document = json!({
        "customerId": customer,
        "by": by.name(),
        "runningSessions": account.open,
        "total": figures(&total),
        "periods": periods.iter().map(period_document).collect::<Vec<_>>(),
    });
    Ok(output.print(&document, text(&periods, &total))?)
}

pub(super) fn period_document(period: &PeriodUsage) -> Value {
    let mut document = figures(&period.usage);
    document["start"] = json!(period.period.start.to_string());
    document["end"] = json!(period.period.end.to_string());
    document
}

/// Under the names that `/api/usage` has for them.
fn figures(usage: &Usage) -> Value {
    json!({
        "sessions": usage.sessions,
        "lostSessions": usage.lost,
        "includedSessions": usage.included,
        "retriedSessions": usage.retried,
        "browserMinutes": usage.minutes,
        "upBytes": usage.up_bytes,
        "downBytes": usage.down_bytes,
        "cost": usage.cost.dollars(),
        "costMicros": usage.cost,
        "overage": usage.overage.dollars(),
        "overageMicros": usage.overage,
    })
}

/// Periods without any use are left out.
fn text(periods: &[PeriodUsage], total: &Usage) -> String {
    let used = periods.iter().filter(|period| period.usage != Usage::default());
    let rows: Vec<_> = used
        .map(|period| row(period.period.start.to_string(), &period.usage))
        .chain([row("total".to_owned(), total)])
        .collect();
    let head =
        ["FROM", "SESSIONS", "LOST", "INCLUDED", "RETRIED", "MINUTES", "UP", "DOWN", "COST", "OVERAGE"];
    table(head, &rows)
}

fn row(name: String, usage: &Usage) -> [String; 10] {
    [
        name,
        usage.sessions.to_string(),
        usage.lost.to_string(),
        usage.included.to_string(),
        usage.retried.to_string(),
        usage.minutes.to_string(),
        usage.up_bytes.to_string(),
        usage.down_bytes.to_string(),
        usage.cost.to_string(),
        usage.overage.to_string(),
    ]
}
