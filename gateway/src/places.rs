//! How many connections and sessions there may be, so that a descriptor is there for each of them.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::refusal::Refusal;

/// Kept for everything that is not a session: listeners, the store, idle browsers' sockets, the log.
const RESERVED: u64 = 256;
/// A session's own: its client, its browser, and the browser's standard error.
const EACH: u64 = 3;
/// Where the system sets no limit.
const MOST: u64 = 100_000;

/// Places for sessions, from the hold until it is settled.
#[derive(Debug)]
pub struct Places {
    all: u32,
    free: Arc<Semaphore>,
}

impl Places {
    /// As many as this process has descriptors for.
    #[must_use]
    pub fn by_descriptors() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let all = (descriptors.saturating_sub(RESERVED) / EACH).clamp(1, MOST);
        let all = u32::try_from(all).expect("bounded above");
        Self { all, free: Arc::new(Semaphore::new(all as usize)) }
    }

    #[must_use]
    pub fn count(&self) -> u32 {
        self.all
    }

    /// Takes a place until the permit is dropped.
    ///
    /// # Errors
    ///
    /// [`Refusal::Full`], at once.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| Refusal::Full)
    }

    /// Waits until nobody has a place. Whoever enters meanwhile is waited for as well.
    pub async fn emptied(&self) {
        let all = self.free.acquire_many(self.all).await;
        drop(all.expect("nobody closes it"));
    }
}
