use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::task::JoinHandle as Waiter;

use super::*;

/// A disk that tells when a sync or a checkpoint starts, and ends a sync when it is told how.
struct FakeDisk {
    started: SyncSender<&'static str>,
    outcome: Receiver<io::Result<()>>,
}

impl Disk for FakeDisk {
    fn sync(&mut self) -> io::Result<()> {
        self.started.send("sync").unwrap();
        self.outcome.recv().unwrap()
    }

    fn checkpoint(&mut self) {
        self.started.send("checkpoint").unwrap();
    }
}

struct Bench {
    flusher: Arc<Flusher>,
    started: Receiver<&'static str>,
    outcome: SyncSender<io::Result<()>>,
}

fn bench() -> Bench {
    let (started_to, started) = sync_channel(16);
    let (outcome, outcome_of) = sync_channel(16);
    let flusher = Flusher::start(FakeDisk { started: started_to, outcome: outcome_of }).unwrap();
    Bench { flusher: Arc::new(flusher), started, outcome }
}

impl Bench {
    /// Starts waiters; each has its ticket when this returns.
    async fn wait(&self, waiters: usize) -> Vec<Waiter<Result<(), io::ErrorKind>>> {
        let start = |_| {
            let flusher = Arc::clone(&self.flusher);
            tokio::spawn(async move { flusher.synced().await })
        };
        let waiters = (0..waiters).map(start).collect();
        tokio::task::yield_now().await;
        waiters
    }
}

async fn all<T>(waiters: Vec<Waiter<T>>) -> Vec<T> {
    let mut answers = Vec::new();
    for waiter in waiters {
        answers.push(waiter.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn those_who_arrive_during_a_sync_share_the_next() {
    let bench = bench();
    let first = bench.wait(1).await;
    assert_eq!(bench.started.recv(), Ok("sync"));
    let others = bench.wait(10).await;
    assert!(first.iter().chain(&others).all(|waiter| !waiter.is_finished()));

    bench.outcome.send(Ok(())).unwrap();
    assert_eq!(all(first).await, [Ok(())]);
    assert_eq!(bench.started.recv(), Ok("sync"));
    assert!(others.iter().all(|waiter| !waiter.is_finished()), "the first sync began before they came");

    bench.outcome.send(Ok(())).unwrap();
    assert_eq!(all(others).await, [Ok(()); 10]);
    assert!(bench.started.try_recv().is_err(), "two syncs were enough");
}

#[tokio::test]
async fn a_failed_sync_fails_all_waiters_then_and_later() {
    let bench = bench();
    let waiters = bench.wait(3).await;
    bench.outcome.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
    assert_eq!(all(waiters).await, [Err(io::ErrorKind::StorageFull); 3]);
    assert_eq!(bench.flusher.synced().await, Err(io::ErrorKind::StorageFull));
    assert_eq!(bench.flusher.failure(), Some(io::ErrorKind::StorageFull));
}

#[tokio::test]
async fn a_checkpoint_follows_so_many_commits() {
    let bench = bench();
    for _ in 0..CHECKPOINT_COMMITS {
        bench.flusher.committed();
    }
    assert_eq!(bench.started.recv(), Ok("checkpoint"));
}

#[tokio::test]
async fn the_thread_ends_with_its_handle() {
    let Bench { flusher, started, .. } = bench();
    drop(flusher);
    assert!(started.recv().is_err(), "the disk was dropped");
}
