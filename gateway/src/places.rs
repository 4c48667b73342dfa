//! How many connections and sessions there may be, so that a descriptor is there for each of them.
//!
//! A session's browser takes some, a client's connection takes one. They are given out apart from each other, so that
//! connections without a session never keep one from starting, nor the other way round. All of it is counted before the
//! kernel could refuse: a server that is out of descriptors cannot even say so.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::refusal::Refusal;

/// Kept for everything that is none of the following: listeners, the store, the admin port, the log.
const RESERVED: u64 = 256;
/// Where the system sets no limit. The kernel's own default for the most that a process may have.
const MOST: u64 = 1_048_576;
/// Connections for every four sessions: one each, and one more for requests, further sockets, and those who get none.
const CONNECTIONS_FOR_FOUR: u64 = 5;

/// Descriptors, by what they are for.
#[derive(Debug)]
pub struct Places {
    /// Of one browser.
    each: u32,
    /// Of all browsers that are claimed, and of further sockets to them.
    browsers: u32,
    free: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Places {
    /// As many as this process has descriptors for. A browser takes `each` of them, and `idle` browsers wait in the pool.
    #[must_use]
    pub fn by_descriptors(each: u32, idle: usize) -> Self {
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(MOST).min(MOST), each, idle)
    }

    fn of(descriptors: u64, each: u32, idle: usize) -> Self {
        let kept = RESERVED + u64::from(each) * idle as u64;
        let free = descriptors.saturating_sub(kept);
        let sessions = (free * 4 / (u64::from(each) * 4 + CONNECTIONS_FOR_FOUR)).max(1);
        let browsers = sessions * u64::from(each);
        let connections = free.saturating_sub(browsers).max(1);
        let (browsers, connections) =
            [browsers, connections].map(|count| u32::try_from(count).expect(BOUNDED)).into();
        Self {
            each,
            browsers,
            free: Arc::new(Semaphore::new(browsers as usize)),
            connections: Arc::new(Semaphore::new(connections as usize)),
        }
    }

    /// Sessions at a time, where none has further sockets.
    #[must_use]
    pub fn sessions(&self) -> u32 {
        self.browsers / self.each
    }

    /// A session's place, until the permit is dropped.
    ///
    /// # Errors
    ///
    /// [`Refusal::Full`], at once.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.take(self.each)
    }

    /// The place of one more socket to a session's browser, until the permit is dropped.
    ///
    /// # Errors
    ///
    /// [`Refusal::Full`], at once.
    pub fn join(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.take(1)
    }

    fn take(&self, descriptors: u32) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.free).try_acquire_many_owned(descriptors).map_err(|_| Refusal::Full)
    }

    /// A client's place, as soon as there is one.
    pub async fn connection(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.connections).acquire_owned().await.expect(OPEN)
    }

    /// Waits until nobody has a session's place. Whoever enters meanwhile is waited for as well.
    pub async fn emptied(&self) {
        drop(self.free.acquire_many(self.browsers).await.expect(OPEN));
    }
}

const BOUNDED: &str = "a process has less than four billion descriptors";
const OPEN: &str = "nobody closes it";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_descriptor_for_everything() {
        for (limit, each, idle) in [(1_024, 3, 50), (20_000, 3, 50), (20_000, 1, 10), (1_048_576, 3, 1_000)] {
            let places = Places::of(limit, each, idle);
            let connections = places.connections.available_permits() as u64;
            let used = u64::from(places.browsers) + connections + u64::from(each) * idle as u64 + RESERVED;
            assert!(used <= limit, "{limit} {each} {idle}: {used}");
            assert!(used > limit - u64::from(each), "{limit} {each} {idle}: {used}");
            assert!(connections * 4 >= u64::from(places.sessions()) * CONNECTIONS_FOR_FOUR);
        }
    }

    #[test]
    fn one_session_at_least() {
        let places = Places::of(64, 3, 50);
        assert_eq!((places.sessions(), places.connections.available_permits()), (1, 1));
        let session = places.enter().unwrap();
        assert_eq!(places.enter().unwrap_err(), Refusal::Full);
        drop(session);
        assert!(places.join().is_ok());
    }
}
