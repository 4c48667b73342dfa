//! How many instructions a server executes in user space for one relayed message, and for one session.
//!
//! Unlike times these hardly change from run to run, so a change of the code shows where a stopwatch sees only noise.
//! What the kernel does for the server is not in them. Each server runs under callgrind, whose counters are read after
//! the messages, after the sessions, and after some time of silence; what silence costs is taken off the others.

mod callgrind;

use std::fmt;
use std::fs;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::client::{Connection, Fault};
use crate::frames::SMALL_ROOM;
use crate::report::{self, Curve, number, progress, write_table};
use crate::roundtrip::{command_size, padded_command};
use crate::scene::{Behind, Customer, Door, Proxy, Scene, SceneArgs, Stage, version};
use crate::target::{Endpoint, Mistakes};

use callgrind::{Callgrind, Counted};

/// callgrind makes everything some fifty times as slow.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Not counted: what a server does only once.
const FIRST_MESSAGES: u32 = 100;
const FIRST_SESSIONS: u32 = 5;
/// Longer than what a gateway does every five seconds takes to come round twice.
const SILENCE: Duration = Duration::from_secs(11);

/// Instructions in user space for a relayed message and for a session, counted by callgrind.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    scene: SceneArgs,
    /// With TLS or without it.
    #[arg(long, default_value = "plain")]
    door: Door,
    /// Size of each command.
    #[arg(long, value_name = "BYTES", default_value = "100", value_parser = command_size)]
    size: u32,
    /// Commands, each with a reply, that the first figure is the mean of.
    #[arg(long, value_name = "N", default_value = "10000")]
    messages: NonZeroU32,
    /// Sessions that the second figure is the mean of.
    #[arg(long, value_name = "N", default_value = "50")]
    sessions: NonZeroU32,
    /// Keep what callgrind wrote, for callgrind_annotate.
    #[arg(long, value_name = "DIRECTORY")]
    keep: Option<PathBuf>,
    /// Print one JSON document instead of Markdown.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was counted.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    versions: Vec<String>,
    door: Door,
    size_bytes: u32,
    lines: Vec<Line>,
}

#[derive(Debug, Serialize, PartialEq)]
struct Line {
    target: &'static str,
    /// Of a command and its reply, each is one.
    per_message: f64,
    /// From its connection's first byte to its end, with one command; what it causes meanwhile is in it.
    per_session: f64,
    /// With one session open and silent.
    per_idle_second: f64,
}

pub(crate) async fn run(mut args: Args) -> Result<Report> {
    let mut mistakes = args.scene.complete(&[Behind::Fake])?;
    if version("valgrind", "--version").is_err() {
        mistakes.push("valgrind is not there: apt-get install valgrind".to_owned());
    }
    let temporary = tempfile::tempdir()?;
    let directory = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    if let Err(error) = fs::create_dir_all(&directory) {
        mistakes.push(format!("--keep {}: {error}", directory.display()));
    }
    if !mistakes.is_empty() {
        return Err(Mistakes::of(mistakes).into());
    }
    let mut versions = args.scene.versions(&[Behind::Fake])?;
    versions.push(version("valgrind", "--version")?);
    let bar = progress("instructions", args.scene.cast().count() as u64);
    let mut lines = Vec::new();
    for proxy in args.scene.cast() {
        let callgrind = Callgrind::new(directory.join(format!("{}.callgrind", proxy.name())));
        lines.push(line(&args, proxy, callgrind).await.with_context(|| proxy.name())?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Report { versions, door: args.door, size_bytes: args.size, lines })
}

async fn line(args: &Args, proxy: Proxy, mut callgrind: Callgrind) -> Result<Line> {
    let stage = Stage::with_runner(callgrind.command())?;
    let scene = Scene::set(&args.scene, stage, Behind::Fake, [proxy], args.door).await?;
    let endpoints = scene.targets(TIMEOUT).endpoints_of(&scene.urls(Customer::One)[1..]).await?;
    let endpoint = endpoints.first().context("there is one proxy")?;
    callgrind.attach(scene.first_pid().context("the proxy has a process")?);
    let counted = count(args, endpoint, &mut callgrind).await.map_err(|error| scene.explain(&error))?;
    Ok(Line::between(proxy.name(), (args.messages.get(), args.sessions.get()), counted))
}

/// Messages, sessions, silence.
async fn count(args: &Args, endpoint: &Endpoint, callgrind: &mut Callgrind) -> Result<[Counted; 3]> {
    let size = args.size as usize;
    for _ in 0..FIRST_SESSIONS {
        session(endpoint, size).await?;
    }
    let (mut connection, _) = Connection::open(endpoint, SMALL_ROOM, Instant::now() + TIMEOUT).await?;
    ask(&mut connection, FIRST_MESSAGES, size).await?;

    callgrind.zero().await?;
    ask(&mut connection, args.messages.get(), size).await?;
    let messages = callgrind.read().await?;
    for _ in 0..args.sessions.get() {
        session(endpoint, size).await?;
    }
    let sessions = callgrind.read().await?;
    sleep(SILENCE).await;
    let silence = callgrind.read().await?;
    connection.close(Instant::now() + TIMEOUT).await?;
    Ok([messages, sessions, silence])
}

async fn session(endpoint: &Endpoint, size: usize) -> Result<(), Fault> {
    let (mut connection, _) = Connection::open(endpoint, SMALL_ROOM, Instant::now() + TIMEOUT).await?;
    ask(&mut connection, 1, size).await?;
    connection.close(Instant::now() + TIMEOUT).await
}

async fn ask(connection: &mut Connection, messages: u32, size: usize) -> Result<(), Fault> {
    for id in 1..=u64::from(messages) {
        connection.ask(id, &padded_command(id, size), Instant::now() + TIMEOUT).await?;
    }
    Ok(())
}

impl Line {
    fn between(target: &'static str, (commands, opened): (u32, u32), counted: [Counted; 3]) -> Self {
        let [messages, sessions, silence] = counted;
        let idle = silence.instructions as f64 / silence.took.as_secs_f64();
        let beyond = |counted: Counted| counted.instructions as f64 - idle * counted.took.as_secs_f64();
        Self {
            target,
            per_message: beyond(messages) / f64::from(commands) / 2.0,
            per_session: beyond(sessions) / f64::from(opened),
            per_idle_second: idle,
        }
    }
}

impl report::Report for Report {
    const NAME: &'static str = "instructions";

    /// There are no times to draw.
    fn curves(&self) -> Vec<Curve<'_>> {
        Vec::new()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size_bytes, door, .. } = self;
        let door = door.name();
        writeln!(
            f,
            "instructions in user space, {door}; a message: of a {size_bytes}-byte command and its reply, each\n"
        )?;
        let lines = self.lines.iter().map(|line| {
            let figures = [line.per_message, line.per_session, line.per_idle_second];
            [vec![line.target.to_owned()], figures.map(|figure| number(Some(figure), 0)).to_vec()].concat()
        });
        write_table(f, &["target", "a message", "a session", "an idle second"], lines)?;
        for version in &self.versions {
            writeln!(f, "- {version}")?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_silence_costs_is_taken_off() {
        let counted = |instructions, seconds| Counted { instructions, took: Duration::from_secs(seconds) };
        let counts = [counted(5_000_000, 10), counted(600_000, 1), counted(1_000_000, 10)];
        let line = Line::between("gateway", (1_000, 10), counts);
        let expected = Line {
            target: "gateway",
            per_message: 2_000.0,
            per_session: 50_000.0,
            per_idle_second: 100_000.0,
        };
        assert_eq!(line, expected);
    }
}
