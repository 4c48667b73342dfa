//! The disk's side of the embedded store: one thread that makes commits durable and keeps the WAL short, so
//! that no session pays for either.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::watch;

#[cfg(test)]
mod tests;

/// How often the thread looks whether a checkpoint is due when nobody waits for the disk.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A checkpoint is due after so many commits: at about four frames each, SQLite's own default of 1,000 frames.
const CHECKPOINT_COMMITS: u64 = 250;

/// What the thread does to the disk.
pub(super) trait Disk: Send + 'static {
    /// Makes durable whatever was committed before the call.
    fn sync(&mut self) -> io::Result<()>;

    /// Moves what the WAL holds into the database. A failure is for this to report: the WAL only grows.
    fn checkpoint(&mut self);
}

/// The handle on the thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Flusher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wanted: Mutex<Wanted>,
    wake: Condvar,
    progress: watch::Sender<Progress>,
    commits: AtomicU64,
}

/// What is wanted of the thread.
#[derive(Debug, Default)]
struct Wanted {
    /// The last ticket that was given out.
    ticket: u64,
    stop: bool,
}

/// How far the thread is.
#[derive(Clone, Copy, Debug)]
enum Progress {
    /// All holders of tickets up to this one are answered.
    Synced(u64),
    /// A sync failed. The kernel then forgets which pages it could not write, so a later sync that succeeds
    /// proves nothing: no further one is tried.
    Failed(io::ErrorKind),
}

impl Progress {
    fn answers(self, ticket: u64) -> bool {
        match self {
            Progress::Synced(synced) => synced >= ticket,
            Progress::Failed(_) => true,
        }
    }
}

impl Flusher {
    pub(super) fn start(disk: impl Disk) -> io::Result<Flusher> {
        let shared = Arc::new(Shared {
            wanted: Mutex::default(),
            wake: Condvar::new(),
            progress: watch::Sender::new(Progress::Synced(0)),
            commits: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("ledger-disk".to_owned()).spawn(move || theirs.run(disk))?;
        Ok(Flusher { shared, thread: Some(thread) })
    }

    /// Counts a commit towards the next checkpoint.
    pub(super) fn committed(&self) {
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// The error that ended the thread's work, if one did.
    pub(super) fn failure(&self) -> Option<io::ErrorKind> {
        match *self.shared.progress.borrow() {
            Progress::Synced(_) => None,
            Progress::Failed(kind) => Some(kind),
        }
    }

    /// Waits until what was committed before the call is on disk. All who arrive while one sync runs share the
    /// next. Dropping the future gives up the waiting, not the sync.
    pub(super) async fn synced(&self) -> Result<(), io::ErrorKind> {
        let ticket = self.shared.take_ticket();
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.answers(ticket)).await;
        match *reached.expect("the sender is in `shared`") {
            Progress::Synced(_) => Ok(()),
            Progress::Failed(kind) => Err(kind),
        }
    }
}

#[cfg(test)]
impl Flusher {
    /// How often somebody asked for the disk.
    pub(super) fn tickets(&self) -> u64 {
        self.shared.lock().ticket
    }

    pub(super) fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }
}

impl Drop for Flusher {
    /// Joins the thread, so that its connection is closed before the store's own are.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(_)) = ended {
            tracing::error!("the ledger's disk thread panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        // Each critical section is a single assignment, so a panic leaves nothing half done.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_ticket(&self) -> u64 {
        let mut wanted = self.lock();
        wanted.ticket += 1;
        self.wake.notify_one();
        wanted.ticket
    }

    fn run(&self, mut disk: impl Disk) {
        let mut synced = 0;
        let mut checkpointed = 0;
        while let Some(ticket) = self.next_ticket(synced) {
            if ticket > synced {
                if let Err(error) = disk.sync() {
                    tracing::error!(%error, "the ledger could not be synced; it takes no more commits");
                    self.progress.send_replace(Progress::Failed(error.kind()));
                    return;
                }
                synced = ticket;
                self.progress.send_replace(Progress::Synced(synced));
            }
            let commits = self.commits.load(Ordering::Relaxed);
            if commits - checkpointed >= CHECKPOINT_COMMITS {
                checkpointed = commits;
                disk.checkpoint();
            }
        }
    }

    /// The last ticket given out, as soon as it is a new one or it is time to look around; `None` to stop.
    fn next_ticket(&self, synced: u64) -> Option<u64> {
        let idle = |wanted: &mut Wanted| wanted.ticket == synced && !wanted.stop;
        let waited = self.wake.wait_timeout_while(self.lock(), LOOK_EVERY, idle);
        let (wanted, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (wanted.ticket > synced || !wanted.stop).then_some(wanted.ticket)
    }
}
