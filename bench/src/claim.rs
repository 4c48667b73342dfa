//! The pool alone: how long it takes to get a warm browser, when several threads want one at the same moment.

mod contest;

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use metrics_exporter_prometheus::PrometheusBuilder;
use pool::{BareQueue, FixedEndpoint, Pool, ProviderSettings, Settings};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::report::{self, Curve, Output, Times, number, progress, turns, write_table};
use crate::scene::{Browser, Stage};

use contest::contest;

/// To open one socket to the stand-in.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// To open all of them.
const WARM_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Time to take a warm browser from the pool, by the number of threads that take some at the same time.
///
/// The pool is a gateway's, in front of the stand-in (provider `fixed`): its sockets are real, and each claim looks
/// whether its socket still lives. All warm browsers are claimed as fast as can be, then given back and warmed anew.
/// `pop` is the same queue alone, without sockets, counters and leases.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Threads at a time, one number for each line of the table.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8")]
    threads: Vec<NonZeroUsize>,
    /// Warm browsers in each round.
    #[arg(long, value_name = "N", default_value = "1000")]
    warm: NonZeroUsize,
    /// Rounds for each number of threads.
    #[arg(long, value_name = "N", default_value = "30")]
    rounds: NonZeroU32,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Between two looks at the clock, which is part of each figure.
    clock_p50_ns: f64,
    lines: Vec<Line>,
}

/// One number of threads.
#[derive(Debug, Serialize)]
struct Line {
    what: &'static str,
    threads: usize,
    n: u64,
    p50_ns: f64,
    p99_ns: f64,
    p999_ns: f64,
    max_ns: f64,
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    times: Times,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    // Counters cost what they cost in a gateway.
    PrometheusBuilder::new().install_recorder()?;
    let mut stage = Stage::new()?;
    let browser = Browser::fake(&mut stage).await?;
    let pool = open(&args, &browser, &stage)?;
    let mut times: Vec<[Times; 2]> = args.threads.iter().map(|_| Default::default()).collect();
    let rounds = args.rounds.get() as usize;
    let bar = progress("claim", (rounds * times.len()) as u64);
    for round in 0..rounds {
        for index in turns(round, times.len()) {
            let (threads, browsers) = (args.threads[index].get(), args.warm.get());
            let [of_pops, of_claims] = &mut times[index];
            let popped = contest(Arc::new(BareQueue::of(browsers)), threads, browsers).await?;
            ensure!(popped.taken.len() == browsers, "{} were popped", popped.taken.len());
            of_pops.add(&popped.times);
            warm(&pool, browsers).await?;
            let claimed = contest(Arc::new(pool.clone()), threads, browsers).await?;
            ensure!(claimed.taken.len() == browsers, "{} were claimed", claimed.taken.len());
            of_claims.add(&claimed.times);
            claimed.taken.into_iter().for_each(pool::Lease::release);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    pool.close().await;
    let lines = args.threads.iter().zip(times).flat_map(|(threads, [pops, claims])| {
        [Line::new("pop", threads.get(), pops), Line::new("claim", threads.get(), claims)]
    });
    Ok(Report { clock_p50_ns: clock(), lines: lines.collect() })
}

/// As many places as warm browsers: none is warmed while others are claimed.
fn open(args: &Args, browser: &Browser, stage: &Stage) -> Result<Pool> {
    let endpoint = FixedEndpoint { authority: browser.address.to_string(), path: Some(browser.path.clone()) };
    let settings = Settings {
        provider: ProviderSettings::Fixed { endpoints: vec![endpoint], sessions_per_endpoint: args.warm },
        min_idle: args.warm.get(),
        max_idle: args.warm,
        start_timeout: START_TIMEOUT,
        directory: stage.path("browsers"),
    };
    Pool::open(settings).context("the pool")
}

async fn warm(pool: &Pool, count: usize) -> Result<()> {
    let begun = Instant::now();
    while pool.idle() < count {
        ensure!(begun.elapsed() < WARM_WITHIN, "only {} of {count} browsers are warm", pool.idle());
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// What the stopwatch itself takes.
fn clock() -> f64 {
    let mut times = Times::new();
    for _ in 0..100_000 {
        times.record(std::time::Instant::now().elapsed());
    }
    times.at(0.5) * 1e3
}

impl Line {
    fn new(what: &'static str, threads: usize, times: Times) -> Self {
        let nanos = |quantile| times.at(quantile) * 1e3;
        Self {
            what,
            threads,
            n: times.len(),
            p50_ns: nanos(0.5),
            p99_ns: nanos(0.99),
            p999_ns: nanos(0.999),
            max_ns: nanos(1.0),
            name: format!("{what}, {threads} threads"),
            times,
        }
    }
}

impl report::Report for Report {
    const NAME: &'static str = "claim";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.lines.iter().map(|line| Curve { name: &line.name, times: &line.times }).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "a warm browser taken, ns; {:.0} of them are the clock\n", self.clock_p50_ns)?;
        let lines = self.lines.iter().map(|line| {
            let figures = [line.p50_ns, line.p99_ns, line.p999_ns, line.max_ns];
            let mut cells = vec![line.what.to_owned(), line.threads.to_string(), line.n.to_string()];
            cells.extend(figures.map(|figure| number(Some(figure), 0)));
            cells
        });
        write_table(f, &["what", "threads", "n", "p50", "p99", "p99.9", "max"], lines)
    }
}
