//! Threads that take warm browsers at the same moment, until none is left.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use pool::{Bare, BareQueue, Lease, Pool, Share};
use tokio::sync::oneshot;

use crate::report::Times;

/// What is taken from: all of it, one after the other.
pub(super) trait Source: Send + Sync + 'static {
    type Taken: Send;

    fn take(&self) -> Option<Self::Taken>;
}

/// The whole claim.
impl Source for Pool {
    type Taken = Lease;

    fn take(&self) -> Option<Lease> {
        self.try_claim(Share::Small)
    }
}

/// The pop alone.
impl Source for BareQueue {
    type Taken = Bare;

    fn take(&self) -> Option<Bare> {
        self.pop()
    }
}

/// What one thread got, or all of them together.
pub(super) struct Claimed<T> {
    pub(super) taken: Vec<T>,
    pub(super) times: Times,
}

/// Takes until there is nothing left. The pool's own runtime, the caller's, sleeps meanwhile.
pub(super) async fn contest<S: Source>(
    source: Arc<S>,
    threads: usize,
    most: usize,
) -> Result<Claimed<S::Taken>> {
    let start = Arc::new(Barrier::new(threads));
    let mut all = Claimed { taken: Vec::new(), times: Times::new() };
    let mut answers = Vec::new();
    for _ in 0..threads {
        let (send, answer) = oneshot::channel();
        let (source, start) = (Arc::clone(&source), Arc::clone(&start));
        thread::Builder::new().name("claim".to_owned()).spawn(move || {
            // Nobody waits for it where the run was broken off.
            let _ = send.send(take_all(&*source, &start, most));
        })?;
        answers.push(answer);
    }
    for answer in answers {
        let claimed = answer.await.context("a thread ended too early")?;
        all.times.add(&claimed.times);
        all.taken.extend(claimed.taken);
    }
    Ok(all)
}

fn take_all<S: Source>(source: &S, start: &Barrier, most: usize) -> Claimed<S::Taken> {
    let mut claimed = Claimed { taken: Vec::with_capacity(most), times: Times::new() };
    start.wait();
    loop {
        let begun = Instant::now();
        let taken = source.take();
        let took = begun.elapsed();
        let Some(taken) = taken else { return claimed };
        claimed.taken.push(taken);
        claimed.times.record(took);
    }
}
