//! One command and its reply on a socket that is already open: what a proxy adds to each message.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::client::Connection;
use crate::report::{self, Method, Row, Times, number, write_rows, write_table};
use crate::target::{DIRECT, Endpoint, MeasureArgs};

/// What the command is without its padding, with the longest id that is used.
const SIZE_MIN: i64 = 80;
/// Chrome takes 90 MB in one message and resets the connection at 120 MB.
const SIZE_MAX: i64 = 90_000_000;

/// Time of one command and its reply, one in flight, over connections that stay open through the run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    /// Bytes of each command. The reply is what Browser.getVersion answers: some 300 bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(SIZE_MIN..=SIZE_MAX))]
    size: u32,
    /// Commands for each target.
    #[arg(long, value_name = "N", default_value = "5000")]
    count: NonZeroU32,
    /// Commands to one target before it is the next one's turn.
    ///
    /// Few, since a machine's time to wake a process changes within milliseconds: with 200, equal targets were
    /// seen 14 µs apart; with 20, less than 1 µs.
    #[arg(long, value_name = "N", default_value = "20")]
    batch: NonZeroU32,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    measurement: &'static str,
    method: Method,
    size_bytes: u32,
    rows: Vec<Row>,
    /// Empty without a target named `direct`.
    added: Vec<Added>,
}

/// What one target adds to a round trip.
#[derive(Debug, Serialize, PartialEq)]
struct Added {
    target: String,
    /// Its median less direct's. Below zero where it is the faster one.
    added_p50_us: f64,
    /// The same as a multiple of what each other target adds; nothing where that adds nothing.
    ratio_to: BTreeMap<String, Option<f64>>,
}

/// One target, its open connection, and its times so far.
struct Subject {
    endpoint: Endpoint,
    connection: Connection,
    product: Option<String>,
    times: Times,
    next_id: u64,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Report> {
    let method = Method::of_this_machine()?;
    let mut subjects = Vec::new();
    for endpoint in args.measure.endpoints().await? {
        subjects.push(Subject::open(endpoint, &args).await?);
    }
    let (count, batch) = (args.count.get(), args.batch.get());
    let progress = report::progress("roundtrip", u64::from(count) * subjects.len() as u64);
    for (round, done) in (0..count).step_by(batch as usize).enumerate() {
        let commands = batch.min(count - done);
        // No target is always first.
        for turn in 0..subjects.len() {
            let index = (round + turn) % subjects.len();
            subjects[index].batch(commands, &args).await?;
            progress.inc(u64::from(commands));
        }
    }
    progress.finish_and_clear();
    let mut measured = Vec::new();
    for subject in subjects {
        measured.push(subject.finish(args.measure.timeout).await?);
    }
    let rows = report::rows(measured);
    Ok(Report { measurement: "roundtrip", method, size_bytes: args.size, added: added(&rows), rows })
}

impl Subject {
    /// Opens the connection, and asks one batch that does not count.
    async fn open(endpoint: Endpoint, args: &Args) -> anyhow::Result<Self> {
        let opened = Connection::open(&endpoint, Instant::now() + args.measure.timeout).await;
        let (connection, _) = opened.with_context(|| format!("target {}", endpoint.name))?;
        let mut subject = Self { endpoint, connection, product: None, times: Times::new(), next_id: 1 };
        subject.batch(args.batch.get(), args).await?;
        subject.times = Times::new();
        Ok(subject)
    }

    /// A connection that breaks ends the run: figures over two connections would not be of one.
    async fn batch(&mut self, commands: u32, args: &Args) -> anyhow::Result<()> {
        for _ in 0..commands {
            let id = self.next_id;
            self.next_id += 1;
            let command = Utf8Bytes::from(padded_command(id, args.size as usize));
            let begun = Instant::now();
            let answer = self.connection.ask(id, command, begun + args.measure.timeout).await;
            let answer = answer.with_context(|| format!("target {}, command {id}", self.endpoint.name))?;
            self.times.record(answer.at - begun);
            self.product = answer.product;
        }
        Ok(())
    }

    async fn finish(self, timeout: Duration) -> anyhow::Result<(String, Option<String>, Times)> {
        let name = self.endpoint.name;
        self.connection.close(Instant::now() + timeout).await.with_context(|| format!("target {name}"))?;
        Ok((name, self.product, self.times))
    }
}

/// `Browser.getVersion` of `size` bytes. Chrome refuses a field that it does not know, except within `params`.
fn padded_command(id: u64, size: usize) -> String {
    let head = format!(r#"{{"id":{id},"method":"Browser.getVersion","params":{{"pad":""#);
    let tail = r#""}}"#;
    let padding = size.saturating_sub(head.len() + tail.len());
    format!("{head}{}{tail}", "x".repeat(padding))
}

fn added(rows: &[Row]) -> Vec<Added> {
    let p50 = |row: &Row| row.figures.map(|f| f.p50_us);
    let Some(direct) = rows.iter().find(|row| row.target == DIRECT).and_then(p50) else { return Vec::new() };
    let others = rows.iter().filter(|row| row.target != DIRECT);
    let adds: Vec<(&str, f64)> =
        others.filter_map(|row| Some((row.target.as_str(), p50(row)? - direct))).collect();
    let ratio_to = |target: &str, added: f64| {
        let others = adds.iter().filter(|(other, _)| *other != target);
        others.map(|&(other, base)| (other.to_owned(), (base > 0.0).then(|| added / base))).collect()
    };
    adds.iter()
        .map(|&(target, added)| Added {
            target: target.to_owned(),
            added_p50_us: added,
            ratio_to: ratio_to(target, added),
        })
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_rows(f, &format!("round trip of one {}-byte command", self.size_bytes), &self.rows)?;
        writeln!(f, "{}", self.method)?;
        if self.added.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nadded to direct's p50, µs; ÷ is the ratio to what another adds\n")?;
        let mut header = vec!["target".to_owned(), "added p50".to_owned()];
        header.extend(self.added.iter().map(|added| format!("÷ {}", added.target)));
        let lines = self.added.iter().map(|added| {
            let mut line = vec![added.target.clone(), number(Some(added.added_p50_us), 1)];
            let ratio = |other: &Added| number(added.ratio_to.get(&other.target).copied().flatten(), 2);
            line.extend(self.added.iter().map(ratio));
            line
        });
        write_table(f, &header, &lines.collect::<Vec<_>>())
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

    fn rows(medians: &[(&str, u64)]) -> Vec<Row> {
        report::rows(medians.iter().map(|&(name, us)| {
            let mut times = Times::new();
            times.record(Duration::from_micros(us));
            (name.to_owned(), None, times)
        }))
    }

    #[test]
    fn what_a_target_adds_and_its_ratio_to_what_another_adds() {
        let added = added(&rows(&[("direct", 100), ("gateway", 110), ("nginx", 140)]));
        let names: Vec<&str> = added.iter().map(|a| a.target.as_str()).collect();
        assert_eq!(names, ["gateway", "nginx"]);
        assert!((added[0].added_p50_us - 10.0).abs() < 0.3, "{added:?}");
        assert!((added[0].ratio_to["nginx"].unwrap() - 0.25).abs() < 0.02, "{added:?}");
        assert!((added[1].ratio_to["gateway"].unwrap() - 4.0).abs() < 0.2, "{added:?}");
    }

    #[test]
    fn nothing_is_compared_with_a_target_that_adds_nothing() {
        let added = added(&rows(&[("direct", 100), ("a", 90), ("b", 110)]));
        assert_eq!(added[1].ratio_to["a"], None);
        assert_eq!(super::added(&rows(&[("a", 90), ("b", 110)])), []);
    }
}
