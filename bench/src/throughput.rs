//! Messages of megabytes, one at a time: how many bytes a second pass.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::client::{Connection, Fault};
use crate::frames::{LARGE_ROOM, Role, text_frame};
use crate::process::{PidArgs, Server, Used, used};
use crate::report::{self, Curve, Times, number, turns, write_table};
use crate::roundtrip::{SIZE_MAX, padded_command};
use crate::size;
use crate::target::{Endpoint, MeasureArgs};

/// Above the frame's and the command's own bytes, so that the size is the payload's.
const SIZE_MIN: u32 = 100_000;
/// Each command has the same id: one is in flight at a time.
const ID: u64 = 1;
/// Not counted: the first messages grow the kernel's buffers.
const WARM_UP: u32 = 2;

/// Bytes a second of large replies and large requests, one message at a time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    #[command(flatten)]
    pub(crate) pid: PidArgs,
    /// Sizes of the messages.
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "1MB,5MB,50MB", value_parser = message_size)]
    pub(crate) sizes: Vec<u32>,
    /// Which way the large messages go.
    #[arg(long, value_delimiter = ',', default_value = "replies,requests")]
    pub(crate) directions: Vec<Direction>,
    /// Messages of each size and direction for each target.
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) count: NonZeroU32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// From the browser: Runtime.evaluate in a page returns a string of that size.
    Replies,
    /// To the browser: Browser.getVersion, padded to that size.
    Requests,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) lines: Vec<Line>,
}

/// One target's messages of one size in one direction.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) direction: Direction,
    pub(crate) size_bytes: u32,
    pub(crate) target: String,
    n: u64,
    p50_ms: f64,
    p99_ms: f64,
    /// 10⁶ bytes a second, of the median message.
    pub(crate) mb_per_s: f64,
    /// This target's rate divided by the baseline's.
    ratio: f64,
    /// The server's time on a CPU for 10⁶ bytes, where its processes were named.
    cpu_us_per_mb: Option<f64>,
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    times: Times,
}

/// One target and its open connection.
struct Subject {
    endpoint: Endpoint,
    connection: Connection,
    /// The CDP session of a page of its own, and that page.
    page: Option<(String, String)>,
    frame: Vec<u8>,
    times: Times,
    used: Option<Used>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Report> {
    let endpoints = args.measure.endpoints().await?;
    let servers = args.pid.servers(endpoints.iter().map(|endpoint| endpoint.name.as_str()))?;
    let mut subjects = Vec::new();
    for endpoint in endpoints {
        subjects.push(Subject::open(endpoint, &args).await?);
    }
    let kinds = || args.directions.iter().flat_map(|&d| args.sizes.iter().map(move |&size| (d, size)));
    let steps = u64::from(args.count.get()) * (subjects.len() * kinds().count()) as u64;
    let progress = report::progress("throughput", steps);
    let mut lines = Vec::new();
    for (direction, size) in kinds() {
        for subject in &mut subjects {
            subject.prepare(direction, size, &args, &servers).await?;
        }
        for round in 0..args.count.get() as usize {
            for index in turns(round, subjects.len()) {
                subjects[index].message(direction, size, &args).await?;
                progress.inc(1);
            }
        }
        lines.extend(compared(direction, size, &subjects, &servers)?);
    }
    progress.finish_and_clear();
    for subject in subjects {
        let name = subject.endpoint.name.clone();
        subject.finish(args.measure.timeout).await.with_context(|| format!("target {name}"))?;
    }
    Ok(Report { lines })
}

impl Subject {
    async fn open(endpoint: Endpoint, args: &Args) -> anyhow::Result<Self> {
        let opened = Self::connect(&endpoint, args).await;
        let (connection, page) = opened.with_context(|| format!("target {}", endpoint.name))?;
        Ok(Self { endpoint, connection, page, frame: Vec::new(), times: Times::new(), used: None })
    }

    async fn connect(
        endpoint: &Endpoint,
        args: &Args,
    ) -> Result<(Connection, Option<(String, String)>), Fault> {
        let deadline = Instant::now() + args.measure.timeout;
        let (mut connection, _) = Connection::open(endpoint, LARGE_ROOM, deadline).await?;
        if !args.directions.contains(&Direction::Replies) {
            return Ok((connection, None));
        }
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let blank = json!({ "url": "about:blank" });
        let page = text(&connection.call("Target.createTarget", blank, None, deadline).await?["targetId"]);
        let attach = json!({ "targetId": page, "flatten": true });
        let attached = connection.call("Target.attachToTarget", attach, None, deadline).await?;
        Ok((connection, Some((text(&attached["sessionId"]), page))))
    }

    /// Makes the message, and sends it a few times that do not count.
    async fn prepare(
        &mut self,
        direction: Direction,
        size: u32,
        args: &Args,
        servers: &[Server],
    ) -> anyhow::Result<()> {
        let command = match (direction, &self.page) {
            (Direction::Requests, _) => padded_command(ID, size as usize),
            (Direction::Replies, page) => {
                let session = page.as_ref().map_or("", |(session, _)| session);
                format!(
                    r#"{{"id":{ID},"sessionId":"{session}","method":"Runtime.evaluate","params":{{"expression":"'x'.repeat({size})","returnByValue":true}}}}"#
                )
            }
        };
        self.frame = text_frame(Role::Client, command.as_bytes());
        for _ in 0..WARM_UP {
            self.message(direction, size, args).await?;
        }
        self.times = Times::new();
        self.used = used(servers, &self.endpoint.name)?;
        Ok(())
    }

    async fn message(&mut self, direction: Direction, size: u32, args: &Args) -> anyhow::Result<()> {
        let begun = Instant::now();
        let answer = self.connection.ask_again(ID, &self.frame, begun + args.measure.timeout).await;
        let failed =
            || format!("target {}, {} of {}", self.endpoint.name, direction.name(), size::show(size));
        let answer = answer.with_context(failed)?;
        if direction == Direction::Replies {
            ensure!(answer.length > u64::from(size), "{}: only {} bytes came", failed(), answer.length);
        }
        self.times.record(answer.at - begun);
        Ok(())
    }

    async fn finish(mut self, timeout: Duration) -> Result<(), Fault> {
        let deadline = Instant::now() + timeout;
        if let Some((_, page)) = self.page.take() {
            self.connection.call("Target.closeTarget", json!({ "targetId": page }), None, deadline).await?;
        }
        self.connection.close(deadline).await
    }
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Replies => "replies",
            Self::Requests => "requests",
        }
    }
}

/// The lines of one direction and size.
fn compared(
    direction: Direction,
    size: u32,
    subjects: &[Subject],
    servers: &[Server],
) -> anyhow::Result<Vec<Line>> {
    let rate = |subject: &Subject| f64::from(size) / subject.times.at(0.5);
    let base = report::baseline(subjects.iter().map(|subject| subject.endpoint.name.as_str()));
    let line = |subject: &Subject| {
        let target = subject.endpoint.name.clone();
        let megabytes = f64::from(size) / 1e6 * subject.times.len() as f64;
        let cpu = match (subject.used, used(servers, &target)?) {
            (Some(before), Some(after)) => Some(after.cpu.saturating_sub(before.cpu)),
            _ => None,
        };
        Ok(Line {
            direction,
            size_bytes: size,
            n: subject.times.len(),
            p50_ms: subject.times.at(0.5) / 1e3,
            p99_ms: subject.times.at(0.99) / 1e3,
            mb_per_s: rate(subject),
            ratio: rate(subject) / rate(&subjects[base]),
            cpu_us_per_mb: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / megabytes),
            name: format!("{target}, {} of {}", direction.name(), size::show(size)),
            target,
            times: subject.times.clone(),
        })
    };
    subjects.iter().map(line).collect()
}

fn message_size(text: &str) -> Result<u32, String> {
    match size::parse(text)? {
        size @ SIZE_MIN..=SIZE_MAX => Ok(size),
        _ => Err(format!("a message has {SIZE_MIN} to {SIZE_MAX} bytes")),
    }
}

impl report::Report for Report {
    const NAME: &'static str = "throughput";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.lines.iter().map(|line| Curve { name: &line.name, times: &line.times }).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "large messages, one at a time; MB/s is size ÷ p50, × the ratio of MB/s to the baseline's\n"
        )?;
        let lines = self.lines.iter().map(|line| {
            vec![
                line.target.clone(),
                line.direction.name().to_owned(),
                size::show(line.size_bytes),
                line.n.to_string(),
                number(Some(line.p50_ms), 2),
                number(Some(line.p99_ms), 2),
                number(Some(line.mb_per_s), 0),
                number(Some(line.ratio), 2),
                number(line.cpu_us_per_mb, 0),
            ]
        });
        let header = ["target", "large", "size", "n", "p50 ms", "p99 ms", "MB/s", "×", "CPU µs/MB"];
        write_table(f, &header, lines)
    }
}
