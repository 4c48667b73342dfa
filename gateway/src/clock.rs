//! What time it is: the calendar's for records, a steady one for durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use billing::Timestamp;
use tokio::time::Instant;

/// Unix time that advances with the runtime's steady clock, so that a session's minutes never depend on somebody setting
/// the machine's time; and with the runtime's paused clock in tests. [`Clock::resync`] takes the machine's drift in.
#[derive(Debug)]
pub struct Clock {
    origin: Instant,
    /// Unix milliseconds at `origin`.
    base: AtomicU64,
}

impl Clock {
    #[must_use]
    pub fn new() -> Self {
        let base = Timestamp::from(SystemTime::now()).as_millis();
        Self { origin: Instant::now(), base: AtomicU64::new(base) }
    }

    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.base.load(Ordering::Relaxed) + self.elapsed())
    }

    /// Follows the machine's calendar. Not for every reading: two of them should differ by what has passed.
    pub fn resync(&self) {
        let now = Timestamp::from(SystemTime::now()).as_millis();
        self.base.store(now.saturating_sub(self.elapsed()), Ordering::Relaxed);
    }

    /// As if so much time had passed.
    #[cfg(test)]
    pub(crate) fn move_on(&self, by: std::time::Duration) {
        self.base.fetch_add(u64::try_from(by.as_millis()).expect("a short while"), Ordering::Relaxed);
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
