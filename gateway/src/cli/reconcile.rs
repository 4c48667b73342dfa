//! `reconcile`: every customer's month, reckoned from the audit log alone and held against the running totals.

use std::io::Write;
use std::path::PathBuf;

use billing::{AccountId, Archive, Period, Reckoning, Reconciled};
use serde_json::{Value, json};

use crate::config::Config;

use super::output::{Failure, Output, table};
use super::{archive, store};

pub(super) async fn run(
    month: Month,
    csv: bool,
    archives: &[PathBuf],
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let now = store::now();
    if month.period.start > now {
        let this = Month::of(Period::calendar_month(now));
        return Err(Failure::Usage(format!(
            "--month {}: it has not begun; {} is the latest",
            month.name, this.name
        )));
    }
    let billing = store::open(config)?;
    let archives = Archive::by_account(archives).map_err(|error| archive::unreadable(&error))?;
    let mut customers = Vec::new();
    for account in billing.accounts().await? {
        let archives = archives.get(&account.id).map(Vec::as_slice).unwrap_or_default();
        customers.push(billing.reconcile(&account.id, month.period, archives).await?);
    }
    if csv {
        output.write(self::csv(&customers))?;
    } else {
        output.print(&document(&month, &customers), text(&customers))?;
    }
    let is_well = customers.iter().all(|customer| customer.differences.is_empty());
    if is_well { Ok(()) } else { Err(Failure::Printed(1)) }
}

/// A calendar month, UTC.
#[derive(Clone, Debug)]
pub(super) struct Month {
    name: String,
    period: Period,
}

impl Month {
    /// One that begins at a time of day when the text of an instant begins with it.
    pub(super) fn of(period: Period) -> Self {
        let name = period.start.to_string().chars().take("YYYY-MM".len()).collect();
        Self { name, period }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn period(&self) -> Period {
        self.period
    }
}

impl std::str::FromStr for Month {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let period = Period::named_month(name).ok_or("write it as YYYY-MM")?;
        Ok(Month { name: name.to_owned(), period })
    }
}

fn document(month: &Month, customers: &[Reconciled]) -> Value {
    json!({
        "month": month.name,
        "ok": customers.iter().all(|customer| customer.differences.is_empty()),
        "customers": customers.iter().map(customer_document).collect::<Vec<_>>(),
        "total": figures(&total(customers)),
    })
}

fn customer_document(customer: &Reconciled) -> Value {
    let mut document = figures(&customer.log);
    document["customerId"] = json!(customer.account);
    document["plan"] = json!(customer.plan);
    document["totals"] = figures(&customer.totals);
    document["differences"] = customer.differences.iter().map(ToString::to_string).collect();
    document
}

fn figures(reckoning: &Reckoning) -> Value {
    json!({
        "sessions": reckoning.sessions,
        "browserMinutes": reckoning.minutes,
        "includedSessions": reckoning.included,
        "overage": reckoning.overage.dollars(),
        "overageMicros": reckoning.overage,
        "charged": reckoning.charged.dollars(),
        "chargedMicros": reckoning.charged,
    })
}

fn total(customers: &[Reconciled]) -> Reckoning {
    customers.iter().fold(Reckoning::default(), |sum, customer| sum.plus(customer.log))
}

fn text(customers: &[Reconciled]) -> String {
    let row = |name: &str, plan: &str, log: &Reckoning, differences: usize| {
        [
            name.to_owned(),
            plan.to_owned(),
            log.sessions.to_string(),
            log.minutes.to_string(),
            log.included.to_string(),
            log.overage.to_string(),
            log.charged.to_string(),
            if differences == 0 { "✓".to_owned() } else { format!("✗ {differences}") },
        ]
    };
    let rows: Vec<_> = customers
        .iter()
        .map(|customer| {
            row(customer.account.as_str(), &customer.plan, &customer.log, customer.differences.len())
        })
        .chain([row("total", "", &total(customers), differences(customers).count())])
        .collect();
    let head = ["CUSTOMER", "PLAN", "SESSIONS", "MINUTES", "INCLUDED", "OVERAGE", "CHARGED", "TOTALS AGREE"];
    let words = differences(customers).map(|(account, difference)| format!("\n{account}: {difference}"));
    table(head, &rows) + &words.collect::<String>()
}

fn differences(customers: &[Reconciled]) -> impl Iterator<Item = (&AccountId, String)> {
    let of = |customer: &Reconciled| customer.differences.iter().map(ToString::to_string).collect::<Vec<_>>();
    customers
        .iter()
        .flat_map(move |customer| of(customer).into_iter().map(|words| (&customer.account, words)))
}

/// Amounts in micro-dollars. Ids need no quotes; a difference has no quote of its own.
fn csv(customers: &[Reconciled]) -> String {
    let mut lines =
        "customer,plan,sessions,minutes,included,overage_micros,charged_micros,differences\n".to_owned();
    for Reconciled { account, plan, log, differences, .. } in customers {
        let Reckoning { sessions, minutes, included, overage, charged } = log;
        let (overage, charged) = (overage.get(), charged.get());
        let differences: Vec<_> = differences.iter().map(ToString::to_string).collect();
        let plan = quoted(plan);
        let differences = quoted(&differences.join("; "));
        lines +=
            &format!("{account},{plan},{sessions},{minutes},{included},{overage},{charged},{differences}\n");
    }
    lines
}

/// A cell as RFC 4180 has it.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
