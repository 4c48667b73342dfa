//! Threads that take warm browsers at the same moment, until none is left.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use pool::{Lease, Pool, Share};
use tokio::sync::oneshot;

use crate::report::Times;

/// What one thread got, or all of them together.
pub(super) struct Claimed {
    pub(super) leases: Vec<Lease>,
    pub(super) times: Times,
}

/// Claims until the pool has none. The pool's own runtime, the caller's, sleeps meanwhile.
pub(super) async fn contest(pool: Pool, threads: usize) -> Result<Claimed> {
    let start = Arc::new(Barrier::new(threads));
    let mut all = Claimed { leases: Vec::new(), times: Times::new() };
    let mut answers = Vec::new();
    for _ in 0..threads {
        let (send, answer) = oneshot::channel();
        let (pool, start) = (pool.clone(), Arc::clone(&start));
        thread::Builder::new().name("claim".to_owned()).spawn(move || {
            // Nobody waits for it where the run was broken off.
            let _ = send.send(claim_all(&pool, &start));
        })?;
        answers.push(answer);
    }
    for answer in answers {
        let claimed = answer.await.context("a thread ended too early")?;
        all.times.add(&claimed.times);
        all.leases.extend(claimed.leases);
    }
    Ok(all)
}

fn claim_all(pool: &Pool, start: &Barrier) -> Claimed {
    let mut claimed = Claimed { leases: Vec::with_capacity(pool.idle()), times: Times::new() };
    start.wait();
    loop {
        let begun = Instant::now();
        let lease = pool.try_claim(Share::Small);
        let took = begun.elapsed();
        let Some(lease) = lease else { return claimed };
        claimed.leases.push(lease);
        claimed.times.record(took);
    }
}
