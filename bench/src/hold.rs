//! Many sessions that stay open: what each costs in memory, whether all of them live on, and what they do to the
//! messages of others.

mod report;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::ensure;
use indicatif::ProgressBar;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::{Connection, Fault, get_version};
use crate::duration;
use crate::process::{PidArgs, Server, used};
use crate::report::{Times, progress, turns};
use crate::roundtrip::{self, Manner};
use crate::target::{DIRECT, Endpoint, MeasureArgs, Mistakes};

pub(crate) use report::{Line, Report};

/// A held session's replies are small and rare.
const ROOM: usize = 1024;
/// Sessions that are opened with one target before it is the next one's turn.
const CHUNK: u32 = 50;
/// Commands to one target before it is the next one's turn: see `roundtrip --batch`.
const BATCH: u32 = 20;
/// After so many that could not be opened no more are tried.
const FAILURES_MAX: u64 = 100;
/// For what a server does behind its answer to a session's start.
const SETTLING: Duration = Duration::from_secs(1);

/// Memory of an idle session, and whether many sessions live on side by side.
///
/// A target named "direct" gets the few sessions only: it is there for what the others add to a round trip.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    #[command(flatten)]
    pub(crate) pid: PidArgs,
    /// Sessions to hold with each target.
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) sessions: NonZeroU32,
    /// The few sessions that the many are compared with.
    #[arg(long, value_name = "N", default_value = "10")]
    pub(crate) few: NonZeroU32,
    /// A server like the target NAME, in front of a browser of its own, that has the few sessions all along: round trips with few
    /// and with all are then timed in turns. May be repeated; also for "direct".
    #[arg(long, value_name = "NAME=URL")]
    pub(crate) few_at: Vec<String>,
    /// How long to hold them.
    #[arg(long = "for", value_name = "TIME", default_value = "0s", value_parser = duration::parse)]
    pub(crate) hold_for: Duration,
    /// How often each session is asked whether it lives.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration::parse)]
    pub(crate) check_every: Duration,
    /// Commands for each server whose round trip is timed after each check; 0 for none.
    #[arg(long, value_name = "N", default_value = "2000")]
    pub(crate) messages: u32,
    /// Size of these commands.
    #[arg(long, value_name = "BYTES", default_value = "100", value_parser = roundtrip::command_size)]
    pub(crate) size: u32,
}

/// One server and the sessions that it holds.
struct Subject {
    endpoint: Endpoint,
    held: Vec<Connection>,
    not_opened: BTreeMap<String, u64>,
    lost: BTreeMap<String, u64>,
    few: Stand,
    many: Stand,
    /// As long as they were held.
    later: Option<u64>,
    /// Of round trips beside them.
    times: Times,
}

/// Memory at one time.
struct Stand {
    sessions: usize,
    bytes: Option<u64>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Report> {
    let manner = Manner { size: args.size as usize, timeout: args.measure.timeout, gap: Duration::ZERO };
    let targets = args.measure.endpoints().await?;
    let few_at =
        if args.few_at.is_empty() { Vec::new() } else { args.measure.endpoints_of(&args.few_at).await? };
    let names = || targets.iter().map(|endpoint| endpoint.name.as_str());
    let servers = args.pid.servers(names())?;
    let strangers = few_at.iter().filter(|few| !names().any(|name| name == few.name));
    let mistakes: Vec<_> =
        strangers.map(|few| format!("--few-at {}: there is no target of that name", few.name)).collect();
    ensure!(mistakes.is_empty(), Mistakes::of(mistakes));
    // All that are asked in turns: the targets, then those with few sessions.
    let mut talkers = Vec::new();
    for endpoint in targets.iter().chain(&few_at) {
        talkers.push(roundtrip::Subject::open(endpoint.clone(), 1, manner).await?);
    }
    let count = targets.len();
    let mut subjects: Vec<_> = targets.into_iter().chain(few_at).map(Subject::new).collect();

    // The one that talks is one of the few.
    open(&mut subjects, args.few.get() - 1, &args).await;
    for subject in &mut subjects {
        subject.few = subject.stand(&servers)?;
    }
    open(&mut subjects[..count], args.sessions.get() - 1, &args).await;
    for subject in &mut subjects {
        subject.many = subject.stand(&servers)?;
    }
    hold(&mut subjects, &mut talkers, &args, manner).await?;
    for subject in &mut subjects {
        subject.later = used(&servers, &subject.endpoint.name)?.map(|used| used.bytes);
    }
    close(&mut subjects, &args).await;
    let few_at = subjects.split_off(count);
    Ok(Report::new(&args, subjects, &few_at))
}

/// Opens sessions until each target has `count` of them.
async fn open(subjects: &mut [Subject], count: u32, args: &Args) {
    let bar = progress("hold: opening", u64::from(count) * subjects.len() as u64);
    for (round, _) in (0..count).step_by(CHUNK as usize).enumerate() {
        for index in turns(round, subjects.len()) {
            subjects[index].open(count, args, &bar).await;
        }
    }
    bar.finish_and_clear();
    sleep(SETTLING).await;
}

/// Asks each session again and again whether it lives, and times round trips after it.
async fn hold(
    subjects: &mut [Subject],
    talkers: &mut [roundtrip::Subject],
    args: &Args,
    manner: Manner,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let bar = progress("hold: seconds", args.hold_for.as_secs());
    loop {
        let next = Instant::now() + args.check_every;
        for subject in subjects.iter_mut() {
            subject.check(args.measure.timeout).await;
        }
        for (subject, times) in subjects.iter_mut().zip(talk(talkers, args, manner).await?) {
            subject.times.add(&times);
        }
        bar.set_position(begun.elapsed().as_secs());
        if begun.elapsed() >= args.hold_for {
            bar.finish_and_clear();
            return Ok(());
        }
        sleep_until(next.min(begun + args.hold_for)).await;
    }
}

/// Round trips of each server, in turns, beside the sessions that are held.
async fn talk(talkers: &mut [roundtrip::Subject], args: &Args, manner: Manner) -> anyhow::Result<Vec<Times>> {
    if args.messages > 0 {
        roundtrip::measure(talkers, &[], args.messages, BATCH, manner, &ProgressBar::hidden()).await?;
    }
    Ok(talkers.iter_mut().map(|talker| talker.measured().times).collect())
}

async fn close(subjects: &mut [Subject], args: &Args) {
    let held = subjects.iter().map(|subject| subject.held.len() as u64).sum();
    let bar = progress("hold: closing", held);
    for subject in subjects {
        for connection in std::mem::take(&mut subject.held) {
            let closed = connection.close(Instant::now() + args.measure.timeout).await;
            subject.note_lost(closed.err());
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
}

impl Subject {
    fn new(endpoint: Endpoint) -> Self {
        let none = || Stand { sessions: 0, bytes: None };
        let (held, not_opened, lost) = Default::default();
        Self { endpoint, held, not_opened, lost, few: none(), many: none(), later: None, times: Times::new() }
    }

    /// Opens a chunk of sessions, at most until there are `count`.
    async fn open(&mut self, count: u32, args: &Args, bar: &ProgressBar) {
        let is_reference = self.endpoint.name == DIRECT && count >= args.few.get();
        for _ in 0..CHUNK {
            let failures: u64 = self.not_opened.values().sum();
            let tried = self.held.len() as u64 + failures;
            if is_reference || tried >= u64::from(count) || failures >= FAILURES_MAX {
                return;
            }
            match self.session(args.measure.timeout).await {
                Ok(connection) => self.held.push(connection),
                Err(fault) => *self.not_opened.entry(fault.to_string()).or_default() += 1,
            }
            bar.inc(1);
        }
    }

    async fn session(&self, timeout: Duration) -> Result<Connection, Fault> {
        const ID: u64 = 1;
        let deadline = Instant::now() + timeout;
        let (mut connection, _) = Connection::open(&self.endpoint, ROOM, deadline).await?;
        connection.ask(ID, &get_version(ID), deadline).await?;
        Ok(connection)
    }

    async fn check(&mut self, timeout: Duration) {
        const ID: u64 = 2;
        for mut connection in std::mem::take(&mut self.held) {
            match connection.ask(ID, &get_version(ID), Instant::now() + timeout).await {
                Ok(_) => self.held.push(connection),
                Err(fault) => self.note_lost(Some(fault)),
            }
        }
    }

    fn note_lost(&mut self, fault: Option<Fault>) {
        if let Some(fault) = fault {
            *self.lost.entry(fault.to_string()).or_default() += 1;
        }
    }

    /// Memory as it is now; the one that talks is a session as well.
    fn stand(&self, servers: &[Server]) -> anyhow::Result<Stand> {
        let bytes = used(servers, &self.endpoint.name)?.map(|used| used.bytes);
        Ok(Stand { sessions: self.held.len() + 1, bytes })
    }
}
