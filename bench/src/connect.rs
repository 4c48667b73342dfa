//! From nothing to the first CDP reply: TCP, TLS, WebSocket upgrade, `Browser.getVersion`.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::client::{Connection, Fault, Opening, get_version};
use crate::duration;
use crate::frames::SMALL_ROOM;
use crate::report::{self, Curve, Failures, Measured, Row, Times, number, turns, write_rows, write_table};
use crate::target::{Endpoint, MeasureArgs};

/// Time from the start of a TCP connection to the first CDP reply, one session after another.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    /// Sessions for each target.
    #[arg(long, value_name = "N", default_value = "200")]
    pub(crate) count: NonZeroU32,
    /// Pause between two sessions, in which a gateway can make its next browser ready.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = duration::parse)]
    pub(crate) gap: Duration,
    /// Sessions for each target before those that count; one that fails ends the run at once.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) warmup: u32,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    gap_us: u128,
    pub(crate) rows: Vec<Row>,
    parts: Vec<Parts>,
    failures: Failures,
}

/// Where the time of one target's sessions went: the median of each stage, in microseconds.
#[derive(Debug, Serialize)]
struct Parts {
    target: String,
    tcp_p50_us: Option<f64>,
    tls_p50_us: Option<f64>,
    upgrade_p50_us: Option<f64>,
    reply_p50_us: Option<f64>,
}

/// One target and what its sessions showed so far.
struct Subject {
    endpoint: Endpoint,
    product: Option<String>,
    secured: Option<String>,
    total: Times,
    tcp: Times,
    tls: Times,
    upgrade: Times,
    reply: Times,
    failures: BTreeMap<String, u64>,
}

/// One successful session.
struct Session {
    opening: Opening,
    reply: Duration,
    total: Duration,
    product: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Report> {
    let mut subjects: Vec<Subject> = args.measure.endpoints().await?.into_iter().map(Subject::new).collect();
    for _ in 0..args.warmup {
        for Subject { endpoint, .. } in &subjects {
            session(endpoint, args.measure.timeout)
                .await
                .with_context(|| format!("target {}", endpoint.name))?;
            sleep(args.gap).await;
        }
    }
    let rounds = args.count.get() as usize;
    let progress = report::progress("connect", (rounds * subjects.len()) as u64);
    for round in 0..rounds {
        for index in turns(round, subjects.len()) {
            let subject = &mut subjects[index];
            subject.note(session(&subject.endpoint, args.measure.timeout).await);
            progress.inc(1);
            sleep(args.gap).await;
        }
    }
    progress.finish_and_clear();
    Ok(Report::new(args.gap, subjects))
}

async fn session(endpoint: &Endpoint, timeout: Duration) -> Result<Session, Fault> {
    const ID: u64 = 1;
    let begun = Instant::now();
    let deadline = begun + timeout;
    let (mut connection, opening) = Connection::open(endpoint, SMALL_ROOM, deadline).await?;
    let asked = Instant::now();
    let answer = connection.ask(ID, &get_version(ID), deadline).await?;
    connection.close(deadline).await?;
    Ok(Session { opening, reply: answer.at - asked, total: answer.at - begun, product: answer.product })
}

impl Subject {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            product: None,
            secured: None,
            total: Times::new(),
            tcp: Times::new(),
            tls: Times::new(),
            upgrade: Times::new(),
            reply: Times::new(),
            failures: BTreeMap::new(),
        }
    }

    fn note(&mut self, session: Result<Session, Fault>) {
        match session {
            Ok(session) => {
                self.total.record(session.total);
                self.tcp.record(session.opening.tcp);
                if let Some(tls) = session.opening.tls {
                    self.tls.record(tls.took);
                    self.secured = Some(tls.terms);
                }
                self.upgrade.record(session.opening.upgrade);
                self.reply.record(session.reply);
                self.product = session.product;
            }
            Err(fault) => *self.failures.entry(fault.to_string()).or_default() += 1,
        }
    }

    fn parts(&self) -> Parts {
        let median = |times: &Times| times.figures().map(|f| f.p50_us);
        Parts {
            target: self.endpoint.name.clone(),
            tcp_p50_us: median(&self.tcp),
            tls_p50_us: median(&self.tls),
            upgrade_p50_us: median(&self.upgrade),
            reply_p50_us: median(&self.reply),
        }
    }
}

impl Report {
    fn new(gap: Duration, subjects: Vec<Subject>) -> Self {
        let parts = subjects.iter().map(Subject::parts).collect();
        let mut failures = Failures::default();
        let rows = report::rows(subjects.into_iter().map(|subject| {
            failures.add(&subject.endpoint.name, subject.failures);
            Measured {
                target: subject.endpoint.name,
                product: subject.product,
                tls: subject.secured,
                times: subject.total,
            }
        }));
        Self { gap_us: gap.as_micros(), rows, parts, failures }
    }
}

impl report::Report for Report {
    const NAME: &'static str = "connect";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.rows.iter().map(Row::curve).collect()
    }

    fn failed(&self) -> u64 {
        self.failures.count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_rows(f, "TCP connect to first CDP reply", &self.rows)?;
        writeln!(f, "its parts, p50, µs\n")?;
        let lines = self.parts.iter().map(|parts| {
            let times = [parts.tcp_p50_us, parts.tls_p50_us, parts.upgrade_p50_us, parts.reply_p50_us];
            let mut line = vec![parts.target.clone()];
            line.extend(times.map(|time| number(time, 1)));
            line
        });
        write_table(f, &["target", "tcp", "tls", "upgrade", "reply"], lines)?;
        write!(f, "{}", self.failures)
    }
}
