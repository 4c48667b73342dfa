//! The customer beside the storm, on a thread of its own: what it notices is the server's doing, not that of a client
//! who is busy with five hundred others.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Args, Tally, session};
use crate::client::Fault;
use crate::target::Endpoint;

pub(super) struct Calm {
    endpoint: Endpoint,
    /// Alone.
    pub(super) quiet: Tally,
    /// Beside the storm.
    pub(super) stormy: Tally,
}

/// A customer that goes on until it is told to stop.
pub(super) struct Running {
    stop: oneshot::Sender<()>,
    seen: oneshot::Receiver<Vec<Seen>>,
}

/// One of its sessions.
struct Seen {
    begun: Instant,
    /// Its first reply, or its failure.
    done: Instant,
    time: Result<Duration, Fault>,
}

impl Calm {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, quiet: Tally::default(), stormy: Tally::default() }
    }

    /// Starts with a session at once, and answers when it is time for the storm: somewhere between two of its sessions, and
    /// somewhere else in each round, since the customer's clock knows nothing of storms.
    pub(super) async fn begin(&self, args: &Args, round: usize) -> Result<Running> {
        let (stop, stopped) = oneshot::channel();
        let (send, seen) = oneshot::channel();
        let (endpoint, every, timeout) = (self.endpoint.clone(), args.calm_every, args.measure.timeout);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("calm".to_owned()).spawn(move || {
            // Nobody waits for it where the run was broken off.
            let _ = send.send(runtime.block_on(customer(&endpoint, every, timeout, stopped)));
        })?;
        sleep(every.mul_f64(f64::from(args.quiet.get() - 1) + phase(round))).await;
        Ok(Running { stop, seen })
    }

    /// Ends it, and counts its sessions by whether the storm was there from their beginning to their first reply, or for
    /// any part of that.
    pub(super) async fn end(&mut self, running: Running, storm: (Instant, Instant)) -> Result<()> {
        // It is told nothing where it ended by itself, which only a panic does.
        let _ = running.stop.send(());
        for seen in running.seen.await.context("its thread ended too early")? {
            if seen.done <= storm.0 {
                self.quiet.note(seen.time);
            } else if seen.begun < storm.1 {
                self.stormy.note(seen.time);
            }
        }
        Ok(())
    }
}

/// Parts of one, spread as evenly as can be however many there are.
fn phase(round: usize) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    (round as f64 * GOLDEN).fract()
}

/// One session after the other begins by the clock, whether the one before has ended or not: a customer who is kept
/// waiting is to count as often as one who is not.
async fn customer(
    endpoint: &Endpoint,
    every: Duration,
    timeout: Duration,
    mut stopped: oneshot::Receiver<()>,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut sessions = FuturesUnordered::new();
    let mut clock = interval(every.max(Duration::from_millis(1)));
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut goes_on = true;
    while goes_on || !sessions.is_empty() {
        tokio::select! {
            biased;
            due = clock.tick(), if goes_on => sessions.push(watch(endpoint, due, timeout)),
            _ = &mut stopped, if goes_on => goes_on = false,
            Some(session) = sessions.next() => seen.push(session),
        }
    }
    seen
}

/// A session's time counts from when it was due.
async fn watch(endpoint: &Endpoint, due: Instant, timeout: Duration) -> Seen {
    let late = due.elapsed();
    let time = session(endpoint, timeout).await.map(|time| late + time);
    let done = time.as_ref().map_or_else(|_| Instant::now(), |&time| due + time);
    Seen { begun: due, done, time }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storms_begin_anywhere_between_two_sessions() {
        let mut phases: Vec<_> = (0..20).map(phase).collect();
        phases.sort_by(f64::total_cmp);
        assert!(phases.windows(2).all(|two| two[1] - two[0] < 0.1), "{phases:?}");
    }
}
