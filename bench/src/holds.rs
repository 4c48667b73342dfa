//! A hold on Redis: what it takes beyond the script that it runs, and how many of them one account takes.

mod hot;
mod sides;

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};

use anyhow::{Context, Result};
use billing::{Plan, RedisUrl, StoreUrl};
use serde::Serialize;

use crate::admit::{PLAN, Stores, catalogue};
use crate::report::{self, Curve, Figures, Output, Times, number, progress, turns, write_table};
use hot::Hot;
use sides::{Hold, Script};

/// What a hold on Redis takes, beside the script alone: the same calls, made ahead of time, on an equal connection.
///
/// So many are in flight, each of an account of its own. Then several gateways, each on a thread of its own, hold
/// sessions of one account.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A Redis that nobody bills by; without it one is started: `appendonly yes`, `appendfsync everysec`.
    #[arg(long, value_name = "redis://…")]
    store: Option<String>,
    /// Holds at a time, one number for each line of the table.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,64")]
    in_flight: Vec<NonZeroUsize>,
    /// Holds in each line.
    #[arg(long, value_name = "N", default_value = "6400")]
    count: NonZeroU32,
    /// Holds of each account on one side before it is the other one's turn.
    #[arg(long, value_name = "N", default_value = "20")]
    batch: NonZeroU32,
    /// Gateways that hold sessions of one account.
    #[arg(long, value_name = "N", default_value = "4")]
    gateways: NonZeroUsize,
    /// Holds of each of them at a time.
    #[arg(long, value_name = "N", default_value = "64")]
    of_each: NonZeroUsize,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    lines: Vec<Line>,
    hot: Hot,
}

/// So many in flight.
#[derive(Debug, Serialize)]
struct Line {
    in_flight: usize,
    script: Option<Figures>,
    hold: Option<Figures>,
    /// The hold's median divided by the script's.
    ratio_p50: Option<f64>,
    #[serde(skip)]
    curves: [(String, Times); 2],
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let named: Vec<_> = args.store.iter().map(|url| format!("redis={url}")).collect();
    let stores = Stores::open_redis(&named).await?;
    let (_, url) = stores.urls.first().context("there is a store")?;
    let StoreUrl::Redis(redis) = url else { anyhow::bail!("--store: name a Redis") };
    let catalogue = catalogue(u32::MAX)?;
    let plan = catalogue.get(PLAN).context("it was put there")?;
    let mut lines = Vec::new();
    for in_flight in &args.in_flight {
        lines.push(line(&args, in_flight.get(), (url, redis), plan).await?);
    }
    let hot = hot::run(&args, (url, redis), plan).await?;
    Ok(Report { lines, hot })
}

async fn line(
    args: &Args,
    in_flight: usize,
    (url, redis): (&StoreUrl, &RedisUrl),
    plan: &Plan,
) -> Result<Line> {
    let batch = args.batch.get();
    let batches = args.count.get().div_ceil(u32::try_from(in_flight)? * batch);
    // One for each account before anything counts.
    let mut script = Script::open(redis, plan, in_flight, (batches + 1) * batch).await?;
    let mut hold = Hold::open(url, in_flight).await?;
    let bar = progress("holds", u64::from(batches));
    let mut times = [Times::new(), Times::new()];
    for round in 0..=batches as usize {
        for index in turns(round, 2) {
            let took = match index {
                0 => script.batch(batch).await?,
                _ => hold.batch(batch).await?,
            };
            if round > 0 {
                times[index].add(&took);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let [bare, held] = times;
    let (script, hold) = (bare.figures(), held.figures());
    let ratio_p50 = hold.zip(script).map(|(hold, script)| hold.p50_us / script.p50_us);
    let curves = [(format!("script, {in_flight}"), bare), (format!("hold, {in_flight}"), held)];
    Ok(Line { in_flight, script, hold, ratio_p50, curves })
}

impl report::Report for Report {
    const NAME: &'static str = "holds";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.lines.iter().flat_map(|line| &line.curves).map(|(name, times)| Curve { name, times }).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "one hold, and the script alone, µs\n")?;
        let lines = self.lines.iter().map(|line| {
            let time = |figures: Option<&Figures>, pick: fn(&Figures) -> f64| number(figures.map(pick), 1);
            let [script, hold] = [line.script.as_ref(), line.hold.as_ref()];
            vec![
                line.in_flight.to_string(),
                time(script, |x| x.p50_us),
                time(hold, |x| x.p50_us),
                number(line.ratio_p50, 2),
                time(script, |x| x.p99_us),
                time(hold, |x| x.p99_us),
            ]
        });
        let header = ["in flight", "script p50", "hold p50", "× p50", "script p99", "hold p99"];
        write_table(f, &header, lines)?;
        write!(f, "{}", self.hot)
    }
}
