//! One command and its reply on a socket that is already open: what a proxy adds to each message, and how many it
//! passes on when several clients ask at once.

mod added;

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use anyhow::Context;
use futures_util::stream::{FuturesUnordered, TryStreamExt};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::client::{Connection, Fault};
use crate::frames::SMALL_ROOM;
use crate::process::{PidArgs, Server, Used, used};
use crate::report::{self, Curve, Measured, Row, Times, number, turns, write_rows, write_table};
use crate::target::{DIRECT, Endpoint, MeasureArgs};
use crate::{duration, size};

pub(crate) use added::{Added, added};

/// What the command is without its padding, with the longest id that is used.
const SIZE_MIN: u32 = 80;
/// Chrome takes 90 MB in one message and resets the connection at 120 MB.
pub(crate) const SIZE_MAX: u32 = 90_000_000;

/// Time of one command and its reply, over connections that stay open through the run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    #[command(flatten)]
    pub(crate) pid: PidArgs,
    /// Size of each command. The reply is what Browser.getVersion answers: some 300 bytes.
    #[arg(long, value_name = "BYTES", default_value = "100", value_parser = command_size)]
    pub(crate) size: u32,
    /// Commands for each target, of all clients together.
    #[arg(long, value_name = "N", default_value = "5000")]
    pub(crate) count: NonZeroU32,
    /// Commands of each client to one target before it is the next one's turn.
    ///
    /// Few, since a machine's time to wake a process changes within milliseconds: with 200, equal targets were
    /// seen 14 µs apart; with 20, less than 1 µs.
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) batch: NonZeroU32,
    /// Clients of each target, each with a connection of its own and one command in flight.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) clients: NonZeroUsize,
    /// Pause of each client between a reply and its next command.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = duration::parse)]
    pub(crate) gap: Duration,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    size_bytes: u32,
    clients: usize,
    gap_us: u128,
    pub(crate) rows: Vec<Row>,
    /// Empty without a target named `direct`.
    pub(crate) added: Vec<Added>,
    pub(crate) rates: Vec<Rate>,
}

/// How fast one target passed commands on.
#[derive(Debug, Serialize)]
pub(crate) struct Rate {
    pub(crate) target: String,
    pub(crate) commands_per_s: f64,
    /// Time on a CPU that its server spent for one command and its reply, where its processes were named.
    pub(crate) cpu_us: Option<f64>,
}

/// One target, its open connections, and its times so far.
pub(crate) struct Subject {
    pub(crate) endpoint: Endpoint,
    clients: Vec<Client>,
    product: Option<String>,
    tls: Option<String>,
    times: Times,
    /// How long its batches took.
    busy: Duration,
    /// Before the first command that counts.
    used: Option<Used>,
}

struct Client {
    connection: Connection,
    next_id: u64,
    times: Vec<Duration>,
    product: Option<String>,
}

/// What is asked, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) size: usize,
    pub(crate) timeout: Duration,
    pub(crate) gap: Duration,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Report> {
    let manner = Manner { size: args.size as usize, timeout: args.measure.timeout, gap: args.gap };
    let endpoints = args.measure.endpoints().await?;
    let servers = args.pid.servers(endpoints.iter().map(|endpoint| endpoint.name.as_str()))?;
    let mut subjects = Vec::new();
    for endpoint in endpoints {
        subjects.push(Subject::open(endpoint, args.clients.get(), manner).await?);
    }
    let progress = report::progress("roundtrip", u64::from(args.count.get()) * subjects.len() as u64);
    measure(&mut subjects, &servers, args.count.get(), args.batch.get(), manner, &progress).await?;
    progress.finish_and_clear();
    let rates = subjects.iter().map(|subject| subject.rate(&servers)).collect::<anyhow::Result<_>>()?;
    let mut measured = Vec::new();
    for subject in subjects {
        measured.push(subject.finish(args.measure.timeout).await?);
    }
    let rows = report::rows(measured);
    Ok(Report {
        size_bytes: args.size,
        clients: args.clients.get(),
        gap_us: args.gap.as_micros(),
        added: added(&rows),
        rows,
        rates,
    })
}

/// Asks `count` commands of each target in turns, `batch` by `batch`, after one batch that does not count.
pub(crate) async fn measure(
    subjects: &mut [Subject],
    servers: &[Server],
    count: u32,
    batch: u32,
    manner: Manner,
    progress: &indicatif::ProgressBar,
) -> anyhow::Result<()> {
    for subject in subjects.iter_mut() {
        subject.batch(batch, manner).await?;
        subject.begin(servers)?;
    }
    let clients = subjects.first().map_or(1, |subject| subject.clients.len()) as u32;
    let each = count.div_ceil(clients);
    for (round, done) in (0..each).step_by(batch as usize).enumerate() {
        let commands = batch.min(each - done);
        for index in turns(round, subjects.len()) {
            subjects[index].batch(commands, manner).await?;
            progress.inc(u64::from(commands * clients));
        }
    }
    Ok(())
}

impl Subject {
    pub(crate) async fn open(endpoint: Endpoint, clients: usize, manner: Manner) -> anyhow::Result<Self> {
        let mut subject = Self {
            endpoint,
            clients: Vec::with_capacity(clients),
            product: None,
            tls: None,
            times: Times::new(),
            busy: Duration::ZERO,
            used: None,
        };
        for _ in 0..clients {
            let opened =
                Connection::open(&subject.endpoint, SMALL_ROOM, Instant::now() + manner.timeout).await;
            let (connection, opening) =
                opened.with_context(|| format!("target {}", subject.endpoint.name))?;
            subject.tls = opening.tls.map(|tls| tls.terms);
            subject.clients.push(Client { connection, next_id: 1, times: Vec::new(), product: None });
        }
        Ok(subject)
    }

    /// Forgets what was measured so far.
    fn begin(&mut self, servers: &[Server]) -> anyhow::Result<()> {
        self.times = Times::new();
        self.busy = Duration::ZERO;
        self.used = used(servers, &self.endpoint.name)?;
        Ok(())
    }

    /// So many commands of each client. A connection that breaks ends the run: figures over two connections would
    /// not be of one.
    async fn batch(&mut self, commands: u32, manner: Manner) -> anyhow::Result<()> {
        let begun = Instant::now();
        let clients: FuturesUnordered<_> =
            self.clients.iter_mut().map(|client| client.batch(commands, manner)).collect();
        let done: Result<(), Fault> = clients.try_collect().await;
        done.with_context(|| format!("target {}", self.endpoint.name))?;
        self.busy += begun.elapsed();
        for client in &mut self.clients {
            client.times.drain(..).for_each(|time| self.times.record(time));
            self.product = client.product.take().or(self.product.take());
        }
        Ok(())
    }

    fn rate(&self, servers: &[Server]) -> anyhow::Result<Rate> {
        let commands = self.times.len() as f64;
        let cpu = match (self.used, used(servers, &self.endpoint.name)?) {
            (Some(before), Some(after)) => Some(after.cpu.saturating_sub(before.cpu)),
            _ => None,
        };
        Ok(Rate {
            target: self.endpoint.name.clone(),
            commands_per_s: commands / self.busy.as_secs_f64(),
            cpu_us: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / commands),
        })
    }

    /// Takes what was measured so far, and leaves the connections open.
    pub(crate) fn measured(&mut self) -> Measured {
        Measured {
            target: self.endpoint.name.clone(),
            product: self.product.clone(),
            tls: self.tls.clone(),
            times: std::mem::take(&mut self.times),
        }
    }

    pub(crate) async fn finish(mut self, timeout: Duration) -> anyhow::Result<Measured> {
        let measured = self.measured();
        for client in self.clients {
            let closed = client.connection.close(Instant::now() + timeout).await;
            closed.with_context(|| format!("target {}", measured.target))?;
        }
        Ok(measured)
    }
}

impl Client {
    async fn batch(&mut self, commands: u32, manner: Manner) -> Result<(), Fault> {
        for _ in 0..commands {
            let id = self.next_id;
            self.next_id += 1;
            let command = padded_command(id, manner.size);
            let begun = Instant::now();
            let answer = self.connection.ask(id, &command, begun + manner.timeout).await?;
            self.times.push(answer.at - begun);
            self.product = answer.product;
            if !manner.gap.is_zero() {
                sleep(manner.gap).await;
            }
        }
        Ok(())
    }
}

/// `Browser.getVersion` of `size` bytes. Chrome refuses a field that it does not know, except within `params`.
pub(crate) fn padded_command(id: u64, size: usize) -> String {
    let head = format!(r#"{{"id":{id},"method":"Browser.getVersion","params":{{"pad":""#);
    let tail = r#""}}"#;
    let padding = size.saturating_sub(head.len() + tail.len());
    format!("{head}{}{tail}", "x".repeat(padding))
}

pub(crate) fn command_size(text: &str) -> Result<u32, String> {
    match size::parse(text)? {
        size @ SIZE_MIN..=SIZE_MAX => Ok(size),
        _ => Err(format!("a command has {SIZE_MIN} to {SIZE_MAX} bytes")),
    }
}

impl report::Report for Report {
    const NAME: &'static str = "roundtrip";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.rows.iter().map(Row::curve).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clients, size_bytes, .. } = self;
        write_rows(
            f,
            &format!("round trip of one {size_bytes}-byte command, {clients} at a time"),
            &self.rows,
        )?;
        if !self.added.is_empty() {
            writeln!(f, "added to {DIRECT}'s p50, µs; ÷ is the ratio to what another adds\n")?;
            let divided: Vec<String> = self.added.iter().map(|added| format!("÷ {}", added.target)).collect();
            let mut header = vec!["target", "added p50"];
            header.extend(divided.iter().map(String::as_str));
            write_table(f, &header, self.added.iter().map(|added| added.line(&self.added)))?;
        }
        writeln!(f, "commands a second, and the server's time on a CPU for one and its reply\n")?;
        let base = report::baseline(self.rates.iter().map(|rate| rate.target.as_str()));
        let lines = self.rates.iter().map(|rate| {
            let ratio = rate.commands_per_s / self.rates[base].commands_per_s;
            let figures =
                [number(Some(rate.commands_per_s), 0), number(Some(ratio), 2), number(rate.cpu_us, 1)];
            [vec![rate.target.clone()], figures.to_vec()].concat()
        });
        write_table(f, &["target", "commands/s", "×", "CPU µs"], lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_size_that_was_asked_for() {
        for id in [1, 99, u64::from(u32::MAX) * 2] {
            for size in [SIZE_MIN as usize, 100, 4096] {
                let command = padded_command(id, size);
                assert_eq!(command.len(), size, "{command}");
                let parsed: serde_json::Value = serde_json::from_str(&command).unwrap();
                assert_eq!(parsed["id"], id);
            }
        }
    }

    #[test]
    fn sizes_that_no_command_can_have_are_refused() {
        assert_eq!(command_size("1KB"), Ok(1000));
        assert!(command_size("79").is_err() && command_size("91MB").is_err());
    }
}
