//! Many connects at once: how many succeed, how long they take, and what they do to a customer who is calm.

mod calm;
mod report;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::value_parser;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::process::setpriority_process;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::client::{Cause, Connection, Fault, get_version};
use crate::duration;
use crate::frames::SMALL_ROOM;
use crate::report::{Times, progress, turns};
use crate::target::{Endpoint, MeasureArgs, Mistakes};

use calm::Calm;
pub(crate) use report::Report;

/// N connects at once: how many succeed and how fast; and, with --calm, what another customer notices of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    /// The same target with another customer's key: sessions at a steady pace, alone and then beside the storm.
    #[arg(long, value_name = "NAME=URL")]
    pub(crate) calm: Vec<String>,
    /// The address that the calm customer connects from, such as 127.0.0.2: customers share none. The system's choice without it.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) calm_from: Option<IpAddr>,
    /// Connects at once.
    #[arg(long, value_name = "N", default_value = "500")]
    pub(crate) connects: NonZeroUsize,
    /// How long each storm lasts: a session that has ended is replaced by the next. 0s: each connect is made once.
    #[arg(long = "for", value_name = "TIME", default_value = "0s", value_parser = duration::parse)]
    pub(crate) storm_for: Duration,
    /// Storms for each target.
    #[arg(long, value_name = "N", default_value = "5")]
    pub(crate) rounds: NonZeroU32,
    /// From one calm session's start to the next one's.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
    pub(crate) calm_every: Duration,
    /// Calm sessions before each storm.
    #[arg(long, value_name = "N", default_value = "5")]
    pub(crate) quiet: NonZeroU32,
    /// Niceness of the storm's own thread, 0 to 19. Its clients are elsewhere in life; where they share the server's CPUs, a
    /// high one leaves these to the server and to the calm customer, so that what is seen is the server's doing.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u8).range(..=19))]
    pub(crate) nice: u8,
    /// Pause after each storm, in which a gateway can make browsers ready.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration::parse)]
    pub(crate) gap: Duration,
}

/// One target, and what its sessions showed so far.
struct Subject {
    endpoint: Endpoint,
    storm: Tally,
    /// From a storm's first connect to the end of its last session.
    busy: Duration,
    calm: Option<Calm>,
}

/// Sessions of one kind.
#[derive(Default)]
struct Tally {
    times: Times,
    /// Answered with a status other than 101, by status and code.
    refused: BTreeMap<String, u64>,
    /// Everything else: a reset, no answer in time.
    failed: BTreeMap<String, u64>,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let mut subjects = subjects(&args).await?;
    let rounds = args.rounds.get() as usize;
    let bar = progress("storm", (rounds * subjects.len()) as u64);
    bar.println(format!("storm: {} s at least", args.least(subjects.len()).as_secs()));
    for round in 0..rounds {
        for index in turns(round, subjects.len()) {
            subjects[index].round(&args, round).await?;
            bar.inc(1);
            sleep(args.gap).await;
        }
    }
    bar.finish_and_clear();
    Ok(Report::new(&args, subjects))
}

/// The targets, each with its calm customer.
async fn subjects(args: &Args) -> Result<Vec<Subject>> {
    let mut calm =
        if args.calm.is_empty() { Vec::new() } else { args.measure.endpoints_of(&args.calm).await? };
    let mut subjects: Vec<Subject> = Vec::new();
    for endpoint in args.measure.endpoints().await? {
        let own = calm.iter().position(|calm| calm.name == endpoint.name);
        let calm = own.map(|own| calm.swap_remove(own).from(args.calm_from)).map(Calm::new);
        subjects.push(Subject { endpoint, storm: Tally::default(), busy: Duration::ZERO, calm });
    }
    let left = calm.iter().map(|calm| format!("--calm {}: there is no target of that name", calm.name));
    let left: Vec<String> = left.collect();
    if left.is_empty() { Ok(subjects) } else { Err(Mistakes::of(left).into()) }
}

impl Args {
    /// How long the run takes where storms take no time.
    fn least(&self, targets: usize) -> Duration {
        let alone = if self.calm.is_empty() { Duration::ZERO } else { self.calm_every * self.quiet.get() };
        let targets = u32::try_from(targets).unwrap_or(u32::MAX);
        (alone + self.storm_for + self.gap) * self.rounds.get() * targets
    }
}

impl Subject {
    /// The calm customer alone, then one storm beside it.
    async fn round(&mut self, args: &Args, round: usize) -> Result<()> {
        let beside = match &self.calm {
            Some(calm) => Some(calm.begin(args, round).await?),
            None => None,
        };
        let storm = self.storm(args).await?;
        if let (Some(calm), Some(beside)) = (&mut self.calm, beside) {
            calm.end(beside, storm).await.context("the calm customer")?;
        }
        Ok(())
    }

    /// On a thread of its own. When it began and ended.
    async fn storm(&mut self, args: &Args) -> Result<(Instant, Instant)> {
        let (send, done) = oneshot::channel();
        let (connects, storm_for) = (args.connects.get(), args.storm_for);
        let (endpoint, timeout, nice) = (self.endpoint.clone(), args.measure.timeout, args.nice);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("storm".to_owned()).spawn(move || {
            // To the kernel the calling thread is the process that is meant.
            let niced = setpriority_process(None, i32::from(nice));
            let storm = storm(&endpoint, timeout, connects, storm_for);
            // Nobody waits for it where the run was broken off.
            let _ = send.send(niced.map(|()| runtime.block_on(storm)));
        })?;
        let (begun, sessions) = done.await.context("its thread ended too early")?.context("--nice")?;
        self.busy += begun.elapsed();
        for session in sessions {
            self.storm.note(session);
        }
        Ok((begun, Instant::now()))
    }
}

/// When it began, and what became of its sessions.
async fn storm(
    endpoint: &Endpoint,
    timeout: Duration,
    connects: usize,
    storm_for: Duration,
) -> (Instant, Vec<Result<Duration, Fault>>) {
    let begun = Instant::now();
    let one = || session(endpoint, timeout);
    let mut sessions: FuturesUnordered<_> = (0..connects).map(|_| one()).collect();
    let mut seen = Vec::new();
    while let Some(session) = sessions.next().await {
        seen.push(session);
        if begun.elapsed() < storm_for {
            sessions.push(one());
        }
    }
    (begun, seen)
}

/// From the TCP connect to the first reply; then an orderly end, which is not part of the time.
async fn session(endpoint: &Endpoint, timeout: Duration) -> Result<Duration, Fault> {
    const ID: u64 = 1;
    let begun = Instant::now();
    let deadline = begun + timeout;
    let (mut connection, _) = Connection::open(endpoint, SMALL_ROOM, deadline).await?;
    let answer = connection.ask(ID, &get_version(ID), deadline).await?;
    connection.close(Instant::now() + timeout).await?;
    Ok(answer.at - begun)
}

impl Tally {
    fn note(&mut self, session: Result<Duration, Fault>) {
        match session {
            Ok(time) => self.times.record(time),
            Err(fault) => {
                let refused = matches!(fault.cause, Cause::Status(..));
                let causes = if refused { &mut self.refused } else { &mut self.failed };
                *causes.entry(fault.to_string()).or_default() += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Stage;

    #[test]
    fn a_refusal_is_told_from_a_failure() {
        let fault = |cause| Err(Fault { stage: Stage::Upgrade, cause });
        let mut tally = Tally::default();
        tally.note(Ok(Duration::from_millis(1)));
        tally.note(fault(Cause::Status(429, Some("concurrency_limit".to_owned()))));
        tally.note(fault(Cause::Status(429, Some("concurrency_limit".to_owned()))));
        tally.note(fault(Cause::Deadline));
        assert_eq!(tally.times.len(), 1);
        assert_eq!(tally.refused.values().collect::<Vec<_>>(), [&2]);
        assert_eq!(tally.failed.values().collect::<Vec<_>>(), [&1]);
    }
}
