//! The customer beside the storm, on a thread of its own: what it notices is the server's doing, not that of a client
//! who is busy with five hundred others.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Args, Tally, session};
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
    tally: oneshot::Receiver<Tally>,
}

impl Calm {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, quiet: Tally::default(), stormy: Tally::default() }
    }

    /// Sessions with nobody else there.
    pub(super) async fn quiet(&mut self, args: &Args) -> Result<()> {
        let running = self.begin(args)?;
        sleep(args.calm_every * (args.quiet.get() - 1)).await;
        let tally = running.end().await?;
        self.quiet.add(tally);
        Ok(())
    }

    /// Starts with a session at once.
    pub(super) fn begin(&self, args: &Args) -> Result<Running> {
        let (stop, stopped) = oneshot::channel();
        let (send, tally) = oneshot::channel();
        let (endpoint, every, timeout) = (self.endpoint.clone(), args.calm_every, args.measure.timeout);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("calm".to_owned()).spawn(move || {
            // Nobody waits for it where the run was broken off.
            let _ = send.send(runtime.block_on(customer(&endpoint, every, timeout, stopped)));
        })?;
        Ok(Running { stop, tally })
    }

    pub(super) async fn end(&mut self, running: Running) -> Result<()> {
        let tally = running.end().await?;
        self.stormy.add(tally);
        Ok(())
    }
}

impl Running {
    async fn end(self) -> Result<Tally> {
        // It is told nothing where it ended by itself, which only a panic does.
        let _ = self.stop.send(());
        self.tally.await.context("its thread ended too early")
    }
}

/// One session after the other begins by the clock, whether the one before has ended or not: a customer who is kept
/// waiting is to count as often as one who is not.
async fn customer(
    endpoint: &Endpoint,
    every: Duration,
    timeout: Duration,
    mut stopped: oneshot::Receiver<()>,
) -> Tally {
    let mut tally = Tally::default();
    let mut sessions = FuturesUnordered::new();
    let mut clock = interval(every.max(Duration::from_millis(1)));
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut goes_on = true;
    while goes_on || !sessions.is_empty() {
        tokio::select! {
            biased;
            _ = clock.tick(), if goes_on => sessions.push(session(endpoint, timeout)),
            _ = &mut stopped, if goes_on => goes_on = false,
            Some(session) = sessions.next() => tally.note(session),
        }
    }
    tally
}
