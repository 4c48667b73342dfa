//! `audit`: a customer's log, page by page, and whether it replays to the account; all logs, or one, into a file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use billing::{AccountId, Billing, Entry, Error, Fault, Micros, Verified};
use serde_json::{Value, json};

use crate::config::Config;

use super::output::{Failure, Output};
use super::store;

/// Entries that are read at a time, so that a long log is never in memory as a whole.
const PAGE: u32 = 500;

pub(super) async fn run(
    customer: &AccountId,
    after: u64,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    store::account(&billing, customer).await?;
    if output.is_json() {
        output.write(format_args!("{{\"customerId\":{},\"entries\":[", json!(customer)))?;
    } else {
        output.write(format_args!("{}\n", line(HEAD.map(str::to_owned))))?;
    }
    entries(&billing, customer, after, output).await?;
    let verified = match billing.verify(customer).await {
        Ok(verified) => Ok(verified),
        Err(Error::Fault(fault)) => Err(fault),
        Err(error) => return Err(error.into()),
    };
    if output.is_json() {
        output.write(format_args!("\n],\"verified\":{}}}\n", document(&verified)))?;
    } else {
        output.write(format_args!("\n{}\n", words(&verified)))?;
    }
    verified.map(|_| ()).map_err(|_| Failure::Printed(1))
}

/// Writes the logs of all customers, or of one, into a new file: an entry a line. What replays it needs nothing else; the text
/// of `billing/src/audit.rs` says how.
pub(super) async fn export(
    customer: Option<&AccountId>,
    file: &Path,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    let customers = store::customers(&billing, customer).await?;
    let failed = |error| {
        let next = "name a file that does not exist, in a folder that does";
        Failure::Failed(format!("cannot write {}: {error}; {next}", file.display()))
    };
    let mut lines = BufWriter::new(File::create_new(file).map_err(failed)?);
    let mut count = 0_u64;
    for customer in &customers {
        count += export_one(&billing, customer, &mut lines).await?.map_err(failed)?;
    }
    lines.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
    let document =
        json!({ "file": file.display().to_string(), "customers": customers.len(), "entries": count });
    let text = format!("{count} entries of {} customers are in {}.", customers.len(), file.display());
    Ok(output.print(&document, text)?)
}

/// The number of its entries. The outer error is the store's, the inner one the file's.
async fn export_one(
    billing: &Billing,
    customer: &AccountId,
    lines: &mut impl Write,
) -> Result<std::io::Result<u64>, Failure> {
    let (mut after, mut count) = (0, 0);
    loop {
        let page = billing.audit(customer, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(Ok(count)) };
        after = last.seq;
        for entry in &page {
            if let Err(error) = writeln!(lines, "{}", json!(entry)) {
                return Ok(Err(error));
            }
            count += 1;
        }
    }
}

async fn entries(
    billing: &Billing,
    customer: &AccountId,
    mut after: u64,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let mut separator = "\n";
    loop {
        let page = billing.audit(customer, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.seq;
        for entry in &page {
            if output.is_json() {
                output.write(format_args!("{separator}{}", json!(entry)))?;
                separator = ",\n";
            } else {
                output.write(format_args!("{}\n", line(cells(entry))))?;
            }
        }
    }
}

const HEAD: [&str; 9] =
    ["SEQ", "TIME", "KIND", "BALANCE ±", "BALANCE", "INCLUDED", "OVERAGE", "ACTOR", "ABOUT"];

fn cells(entry: &Entry) -> [String; 9] {
    let about = [
        entry.session.as_ref().map(ToString::to_string),
        entry.key.as_ref().map(ToString::to_string),
        entry.command.as_ref().map(ToString::to_string),
        entry.cause.clone(),
    ];
    [
        entry.seq.to_string(),
        entry.at.to_string(),
        entry.kind.as_str().to_owned(),
        signed(entry.amount),
        entry.balance_after.to_string(),
        entry.included_after.to_string(),
        entry.overage_after.to_string(),
        entry.actor.to_string(),
        about.into_iter().flatten().collect::<Vec<_>>().join(" "),
    ]
}

/// Of fixed widths, since the rows to come are not known yet.
fn line([seq, at, kind, amount, balance, included, overage, actor, about]: [String; 9]) -> String {
    format!(
        "{seq:>6}  {at:24}  {kind:11}  {amount:>12}  {balance:>12}  {included:>8}  {overage:>10}  {actor:12}  {about}"
    )
    .trim_end()
    .to_owned()
}

fn signed(amount: i64) -> String {
    let sign = match amount {
        0 => return String::new(),
        1.. => '+',
        _ => '-',
    };
    format!("{sign}{}", Micros::new(amount.unsigned_abs()))
}

fn document(verified: &Result<Verified, Fault>) -> Value {
    match verified {
        Ok(verified) => json!({
            "ok": true,
            "entries": verified.entries,
            "sealedEntries": verified.sealed,
            "head": verified.head,
            "balance": verified.balance.dollars(),
            "balanceMicros": verified.balance,
            "includedLeft": verified.included,
            "retryCredits": verified.retry,
            "overage": verified.overage.dollars(),
            "overageMicros": verified.overage,
            "runningSessions": verified.open,
        }),
        Err(fault) => json!({ "ok": false, "fault": fault.to_string() }),
    }
}

fn words(verified: &Result<Verified, Fault>) -> String {
    match verified {
        Ok(Verified { entries, sealed: sealed @ 1.., head, balance, .. }) => format!(
            "✓ entries {} to {entries} are chained to each other and to the opening balance behind entry {sealed}, and add up to the balance of {balance}; head {head}",
            sealed + 1
        ),
        Ok(Verified { entries, head, balance, .. }) => {
            format!("✓ all {entries} entries are chained and add up to the balance of {balance}; head {head}")
        }
        Err(fault) => format!("✗ {fault}; keep the store as it is and find out who wrote to it"),
    }
}
