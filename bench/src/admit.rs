//! The ledger alone: what each of a session's steps takes, in one store beside another.

mod ledger;
mod stores;

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::duration;
use crate::report::{self, Curve, Figures, Output, Times, baseline, number, progress, turns, write_table};
pub(crate) use ledger::{Ledger, PLAN, STEPS, catalogue, now};
pub(crate) use stores::Stores;

/// What a session's steps on the ledger take, by store: authenticate, reserve, confirm, begin, post.
///
/// It makes customers and sessions of its own in each store: name a SQLite file that does not exist yet, or a Redis
/// that nobody bills by.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Stores to compare, each sqlite:FILE or redis://…; without any a SQLite file that is removed afterwards.
    #[arg(long = "store", value_name = "NAME=URL")]
    stores: Vec<String>,
    /// Start a redis-server of its own and compare with it: `appendonly yes`, `appendfsync everysec`.
    #[arg(long)]
    start_redis: bool,
    /// Give the Redis that is started a replica, and compare with a store that waits for it where a gateway with
    /// `store.replicas = 1` does: behind each end of a session.
    #[arg(long, requires = "start_redis")]
    replica: bool,
    /// Sessions in each store.
    #[arg(long, value_name = "N", default_value = "2000")]
    count: NonZeroU32,
    /// Sessions at a time, as on one thread of a gateway.
    #[arg(long, value_name = "N", default_value = "1")]
    clients: NonZeroU32,
    /// Accounts that the sessions belong to, in turn.
    #[arg(long, value_name = "N", default_value = "1")]
    accounts: NonZeroU32,
    /// Sessions of each client in one store before it is the next one's turn.
    #[arg(long, value_name = "N", default_value = "20")]
    batch: NonZeroU32,
    /// Pause of each client between two sessions.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = duration::parse)]
    gap: Duration,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    clients: u32,
    accounts: u32,
    gap_us: u128,
    lines: Vec<Line>,
    rates: Vec<Rate>,
}

/// One step in one store.
#[derive(Debug, Serialize)]
struct Line {
    store: String,
    step: &'static str,
    n: u64,
    figures: Option<Figures>,
    /// This store's median divided by the first one's.
    ratio_p50: Option<f64>,
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    times: Times,
}

#[derive(Debug, Serialize)]
struct Rate {
    store: String,
    sessions_per_s: f64,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    // They live as long as what is measured in them.
    let stores = Stores::open(&args.stores, args.start_redis, args.replica).await?;
    let (clients, batch) = (args.clients.get(), args.batch.get());
    let mut ledgers = Vec::new();
    for (name, url) in &stores.urls {
        ledgers.push(Ledger::open(name, url, args.accounts.get(), clients).await?);
    }
    for ledger in &mut ledgers {
        ledger.batch(clients, batch, args.gap).await?;
        ledger.begin();
    }
    let each = args.count.get().div_ceil(clients);
    let bar = progress("admit", u64::from(each * clients) * ledgers.len() as u64);
    for (round, done) in (0..each).step_by(batch as usize).enumerate() {
        let sessions = batch.min(each - done);
        for index in turns(round, ledgers.len()) {
            ledgers[index].batch(clients, sessions, args.gap).await?;
            bar.inc(u64::from(sessions * clients));
        }
    }
    bar.finish_and_clear();
    Ok(Report::new(&args, ledgers))
}

impl Report {
    fn new(args: &Args, ledgers: Vec<Ledger>) -> Self {
        let rates = ledgers.iter().map(|ledger| Rate {
            store: ledger.name.clone(),
            sessions_per_s: ledger.times[0].len() as f64 / ledger.busy.as_secs_f64(),
        });
        Self {
            clients: args.clients.get(),
            accounts: args.accounts.get(),
            gap_us: args.gap.as_micros(),
            rates: rates.collect(),
            lines: lines(ledgers),
        }
    }
}

/// Step by step, the stores beside each other.
fn lines(ledgers: Vec<Ledger>) -> Vec<Line> {
    let first = baseline(ledgers.iter().map(|ledger| ledger.name.as_str()));
    let mut lines = Vec::new();
    for (number, step) in STEPS.into_iter().enumerate() {
        let base = ledgers[first].times[number].figures();
        lines.extend(ledgers.iter().map(|ledger| {
            let times = ledger.times[number].clone();
            let figures = times.figures();
            Line {
                store: ledger.name.clone(),
                step,
                n: times.len(),
                figures,
                ratio_p50: figures.zip(base).map(|(figures, base)| figures.p50_us / base.p50_us),
                name: format!("{}, {step}", ledger.name),
                times,
            }
        }));
    }
    lines
}

impl report::Report for Report {
    const NAME: &'static str = "admit";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.lines.iter().map(|line| Curve { name: &line.name, times: &line.times }).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clients, accounts, .. } = self;
        writeln!(f, "steps of a session on the ledger, µs; {clients} at a time, {accounts} accounts\n")?;
        let lines = self.lines.iter().map(|line| {
            let time = |pick: fn(&Figures) -> f64| number(line.figures.as_ref().map(pick), 1);
            vec![
                line.store.clone(),
                line.step.to_owned(),
                line.n.to_string(),
                time(|x| x.p50_us),
                time(|x| x.p90_us),
                time(|x| x.p99_us),
                time(|x| x.p999_us),
                time(|x| x.max_us),
                number(line.ratio_p50, 2),
            ]
        });
        write_table(f, &["store", "step", "n", "p50", "p90", "p99", "p99.9", "max", "× p50"], lines)?;
        writeln!(f, "all steps, one after the other\n")?;
        let rates =
            self.rates.iter().map(|rate| vec![rate.store.clone(), number(Some(rate.sessions_per_s), 0)]);
        write_table(f, &["store", "sessions/s"], rates)
    }
}
