//! `archive`: the older part of the audit logs into files, and the proof that these and the logs are whole.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use billing::{AccountId, Actor, ArchiveError, SealError, Sealed, Unproven, Verified};
use serde_json::{Value, json};

use crate::config::Config;

use super::output::{Failure, Output, table};
use super::reconcile::Month;
use super::store;

pub(super) async fn seal(
    customer: Option<&AccountId>,
    until: Option<Month>,
    folder: &Path,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    let customers = store::customers(&billing, customer).await?;
    let now = store::now();
    let month = until.map_or_else(|| billing.last_to_seal(now), |month| month.period());
    let (mut archives, mut failures) = (Vec::new(), Vec::new());
    for customer in customers {
        match billing.seal(&customer, month, folder, (Actor::Operator, now)).await {
            Ok(Some(sealed)) => archives.push((customer, sealed)),
            Ok(None) => {}
            Err(SealError::Store(error)) => return Err(error.into()),
            Err(error @ SealError::TooRecent { .. }) => {
                let latest = Month::of(billing.last_to_seal(now));
                return Err(Failure::Usage(format!(
                    "--until: {error}; {} is the latest month",
                    latest.name()
                )));
            }
            // One customer's keeps nobody else's log long.
            Err(error) => failures.push(failed(&customer, &error)),
        }
    }
    let document = json!({
        "until": month.end.to_string(),
        "archives": archives.iter().map(archive).collect::<Vec<_>>(),
    });
    if archives.is_empty() {
        output.print(&document, format!("Nothing was written up to {} that is not sealed.", month.end))?;
    } else {
        let rows: Vec<_> = archives.iter().map(row).collect();
        output.print(&document, table(["CUSTOMER", "FROM", "TO", "ARCHIVE"], &rows))?;
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::Failed(failures.join("\n"))) }
}

fn archive((customer, sealed): &(AccountId, Sealed)) -> Value {
    json!({
        "customerId": customer,
        "file": sealed.file.display().to_string(),
        "sha256": sealed.digest,
        "first": sealed.first,
        "last": sealed.last,
    })
}

fn row((customer, sealed): &(AccountId, Sealed)) -> [String; 4] {
    let file = sealed.file.display().to_string();
    [customer.to_string(), sealed.first.to_string(), sealed.last.to_string(), file]
}

fn failed(customer: &AccountId, error: &SealError) -> String {
    let next = match error {
        SealError::NoAccount => "`ufbrowsers customer list` shows which there are",
        SealError::Fault(_) => "keep the store as it is and find out who wrote to it",
        SealError::Archive(ArchiveError::File { .. }) | SealError::Store(_) | SealError::TooRecent { .. } => {
            "nothing was taken off the log"
        }
        SealError::Archive(_) => "nothing was taken off the log; another --into may help",
    };
    format!("{customer}: {}; {next}", store::with_causes(error))
}

pub(super) async fn verify(
    files: &[PathBuf],
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    let proven = billing.prove_archives(files).await.map_err(|error| unreadable(&error))?;
    let mut customers = Vec::new();
    for (customer, verified) in &proven {
        customers.push(document(customer, verified));
    }
    let is_well = proven.values().all(Result::is_ok);
    output.print(&json!({ "ok": is_well, "customers": customers }), text(&proven))?;
    if is_well { Ok(()) } else { Err(Failure::Printed(1)) }
}

fn document(customer: &AccountId, verified: &Result<Verified, Unproven>) -> Value {
    match verified {
        Ok(verified) => json!({
            "customerId": customer,
            "ok": true,
            "entries": verified.entries,
            "head": verified.head,
            "balance": verified.balance.dollars(),
            "balanceMicros": verified.balance,
        }),
        Err(fault) => json!({ "customerId": customer, "ok": false, "fault": store::with_causes(fault) }),
    }
}

fn text(proven: &BTreeMap<AccountId, Result<Verified, Unproven>>) -> String {
    let lines = proven.iter().map(|(customer, verified)| match verified {
        Ok(Verified { entries, balance, .. }) => format!(
            "✓ {customer}: all {entries} entries are in the archives and the log, chained, and add up to {balance}"
        ),
        Err(fault) => format!("✗ {customer}: {}", store::with_causes(fault)),
    });
    lines.collect::<Vec<_>>().join("\n")
}

pub(super) fn unreadable(error: &ArchiveError) -> Failure {
    Failure::Failed(format!("{}; name files that `ufbrowsers archive seal` wrote", store::with_causes(error)))
}
