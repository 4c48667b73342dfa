//! What other customers notice while a long log is sealed.

use std::fmt;
use std::num::NonZeroU32;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use billing::{AccountId, Actor, Billing, Limits, StoreUrl};
use serde::Serialize;
use tempfile::TempDir;

use crate::admit::{Ledger, STEPS, Stores, catalogue, now};
use crate::report::{self, Curve, Figures, Output, Times, number, write_table};

/// When the sessions of the log were: what is so old may be sealed.
const AGE: Duration = Duration::from_secs(150 * 24 * 60 * 60);
/// Sessions of the other customer between two looks at whether the seal is done.
const BATCH: u32 = 10;

/// What a session's steps on the ledger take while a long log of another customer is sealed, beside what they take else.
///
/// It makes customers and sessions of its own in each store: name a SQLite file that does not exist yet, or a Redis
/// that nobody bills by.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Stores, each sqlite:FILE or redis://…; without any a SQLite file that is removed afterwards.
    #[arg(long = "store", value_name = "NAME=URL")]
    stores: Vec<String>,
    /// Start a redis-server of its own, too: `appendonly yes`, `appendfsync everysec`.
    #[arg(long)]
    start_redis: bool,
    /// Entries of the log that is sealed.
    #[arg(long, value_name = "N", default_value = "100000")]
    entries: NonZeroU32,
    /// Sessions of the other customer while nothing is sealed, one after the other.
    #[arg(long, value_name = "N", default_value = "2000")]
    count: NonZeroU32,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    seals: Vec<Seal>,
    lines: Vec<Line>,
}

/// One log that was sealed.
#[derive(Debug, Serialize)]
struct Seal {
    store: String,
    entries: u64,
    seconds: f64,
}

/// One step in one store, while nothing was sealed or meanwhile.
#[derive(Debug, Serialize)]
struct Line {
    store: String,
    step: &'static str,
    during: &'static str,
    n: u64,
    figures: Option<Figures>,
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    times: Times,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let mut report = Report { seals: Vec::new(), lines: Vec::new() };
    // They live as long as what is measured in them.
    let stores = Stores::open(&args.stores, args.start_redis, false).await?;
    for (name, url) in &stores.urls {
        let mut ledger = Ledger::open(name, url, 1, 1).await?;
        let then = (SystemTime::now() - AGE).into();
        let account = ledger.customer_of(args.entries.get().div_ceil(2), then).await?;
        ledger.batch(1, BATCH, Duration::ZERO).await?;
        ledger.begin();
        ledger.batch(1, args.count.get(), Duration::ZERO).await?;
        report.take(&mut ledger, "quiet");
        let sealing = {
            let (name, url) = (name.clone(), url.clone());
            thread::spawn(move || seal(name, &url, &account))
        };
        while !sealing.is_finished() {
            ledger.batch(1, BATCH, Duration::ZERO).await?;
        }
        report.take(&mut ledger, "sealing");
        report.seals.push(sealing.join().map_err(|_| anyhow!("the seal panicked"))??);
    }
    Ok(report)
}

/// As `ufbrowsers audit` does, beside a gateway: with a way to the store of its own.
fn seal(store: String, url: &StoreUrl, account: &AccountId) -> Result<Seal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (billing, folder) = (Billing::open(url, catalogue(1)?, Limits::default())?, TempDir::new()?);
        let (month, begun) = (billing.last_to_seal(now()), Instant::now());
        let sealed = billing.seal(account, month, folder.path(), (Actor::Operator, now())).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let sealed = sealed.context("nothing was sealed")?;
        Ok(Seal { store, entries: sealed.last - sealed.first + 1, seconds })
    })
}

impl Report {
    /// What the other customer's steps took since the last time.
    fn take(&mut self, ledger: &mut Ledger, during: &'static str) {
        for (step, times) in STEPS.into_iter().zip(&ledger.times) {
            self.lines.push(Line {
                store: ledger.name.clone(),
                step,
                during,
                n: times.len(),
                figures: times.figures(),
                name: format!("{}, {step}, {during}", ledger.name),
                times: times.clone(),
            });
        }
        ledger.begin();
    }
}

impl report::Report for Report {
    const NAME: &'static str = "seal";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.lines.iter().map(|line| Curve { name: &line.name, times: &line.times }).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seals = self.seals.iter();
        let seals = seals
            .map(|seal| vec![seal.store.clone(), seal.entries.to_string(), number(Some(seal.seconds), 2)]);
        writeln!(f, "logs that were sealed\n")?;
        write_table(f, &["store", "entries", "seconds"], seals)?;
        writeln!(f, "steps of another customer's sessions, µs, one after the other\n")?;
        let lines = self.lines.iter().map(|line| {
            let time = |pick: fn(&Figures) -> f64| number(line.figures.as_ref().map(pick), 1);
            let names =
                [line.store.clone(), line.step.to_owned(), line.during.to_owned(), line.n.to_string()];
            let times = [time(|x| x.p50_us), time(|x| x.p99_us), time(|x| x.p999_us), time(|x| x.max_us)];
            names.into_iter().chain(times).collect()
        });
        write_table(f, &["store", "step", "during", "n", "p50", "p99", "p99.9", "max"], lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_is_sealed_beside_sessions() {
        let (entries, count) = (NonZeroU32::new(40).unwrap(), NonZeroU32::new(3).unwrap());
        let args = Args { stores: Vec::new(), start_redis: false, entries, count, output: Output::default() };
        let report = run(args).await.unwrap();
        assert!(report.seals[0].entries >= 40, "{report}");
        assert!(
            report.lines.iter().filter(|line| line.during == "quiet").all(|line| line.n == 3),
            "{report}"
        );
    }
}
