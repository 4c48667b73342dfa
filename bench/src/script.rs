//! What a user's script waits for: Playwright connects, opens a page, loads it, takes a screenshot.

mod client;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::sleep;

use crate::duration;
use crate::report::{
    self, Curve, Failures, Measured, Row, Times, number, progress, turns, write_rows, write_table,
};
use crate::target::{Endpoint, MeasureArgs};

pub(crate) use client::missing;
use client::{Client, Session};

/// Time of a Playwright script: connectOverCDP, a new page, loaded, a screenshot.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    /// The directory whose node_modules has playwright-core.
    #[arg(long, value_name = "DIRECTORY", default_value = "tests/clients")]
    pub(crate) playwright: PathBuf,
    /// Sessions for each target.
    #[arg(long, value_name = "N", default_value = "50")]
    pub(crate) count: NonZeroU32,
    /// Pause between two sessions.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = duration::parse)]
    pub(crate) gap: Duration,
    /// Sessions for each target before those that count; one that fails ends the run at once.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) warmup: u32,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    gap_us: u128,
    /// From connectOverCDP to the page's load event.
    pub(crate) rows: Vec<Row>,
    parts: Vec<Parts>,
    failures: Failures,
}

/// The median of each step, in milliseconds.
#[derive(Debug, Serialize)]
struct Parts {
    target: String,
    connect_p50_ms: Option<f64>,
    page_p50_ms: Option<f64>,
    load_p50_ms: Option<f64>,
    screenshot_p50_ms: Option<f64>,
}

/// One target and what its sessions showed so far.
struct Subject {
    endpoint: Endpoint,
    product: Option<String>,
    loaded: Times,
    connect: Times,
    page: Times,
    load: Times,
    screenshot: Times,
    failures: BTreeMap<String, u64>,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let mut subjects: Vec<Subject> = args.measure.endpoints().await?.into_iter().map(Subject::new).collect();
    let mut client = Client::start(&args)?;
    for _ in 0..args.warmup {
        for Subject { endpoint, .. } in &subjects {
            let session = client.session(endpoint).await?;
            session.map_err(anyhow::Error::msg).with_context(|| format!("target {}", endpoint.name))?;
            sleep(args.gap).await;
        }
    }
    let rounds = args.count.get() as usize;
    let bar = progress("script", (rounds * subjects.len()) as u64);
    for round in 0..rounds {
        for index in turns(round, subjects.len()) {
            let subject = &mut subjects[index];
            subject.note(client.session(&subject.endpoint).await?);
            bar.inc(1);
            sleep(args.gap).await;
        }
    }
    bar.finish_and_clear();
    Ok(Report::new(args.gap, subjects))
}

impl Subject {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            product: None,
            loaded: Times::new(),
            connect: Times::new(),
            page: Times::new(),
            load: Times::new(),
            screenshot: Times::new(),
            failures: BTreeMap::new(),
        }
    }

    fn note(&mut self, session: Result<Session, String>) {
        match session {
            Ok(session) => {
                self.loaded.record(session.connect + session.page + session.load);
                self.connect.record(session.connect);
                self.page.record(session.page);
                self.load.record(session.load);
                self.screenshot.record(session.screenshot);
                self.product = Some(session.product);
            }
            Err(cause) => *self.failures.entry(cause).or_default() += 1,
        }
    }

    fn parts(&self) -> Parts {
        let median = |times: &Times| times.figures().map(|figures| figures.p50_us / 1e3);
        Parts {
            target: self.endpoint.name.clone(),
            connect_p50_ms: median(&self.connect),
            page_p50_ms: median(&self.page),
            load_p50_ms: median(&self.load),
            screenshot_p50_ms: median(&self.screenshot),
        }
    }
}

impl Report {
    fn new(gap: Duration, subjects: Vec<Subject>) -> Self {
        let parts = subjects.iter().map(Subject::parts).collect();
        let mut failures = Failures::default();
        let rows = report::rows(subjects.into_iter().map(|subject| {
            failures.add(&subject.endpoint.name, subject.failures);
            let (target, times) = (subject.endpoint.name, subject.loaded);
            Measured { target, product: subject.product, tls: None, times }
        }));
        Self { gap_us: gap.as_micros(), rows, parts, failures }
    }
}

impl report::Report for Report {
    const NAME: &'static str = "script";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.rows.iter().map(Row::curve).collect()
    }

    fn failed(&self) -> u64 {
        self.failures.count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_rows(f, "Playwright, from connectOverCDP to a new page that has loaded", &self.rows)?;
        writeln!(f, "its steps, and a screenshot after it, p50, ms\n")?;
        let lines = self.parts.iter().map(|parts| {
            let times = [parts.connect_p50_ms, parts.page_p50_ms, parts.load_p50_ms, parts.screenshot_p50_ms];
            let mut line = vec![parts.target.clone()];
            line.extend(times.map(|time| number(time, 1)));
            line
        });
        write_table(f, &["target", "connect", "new page", "load", "screenshot"], lines)?;
        write!(f, "{}", self.failures)
    }
}
