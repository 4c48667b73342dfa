//! What time it is: the calendar's for records, a steady one for durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use billing::{Billing, Timestamp};
use tokio::time::Instant;
use tracing::{info, warn};

/// How far the machine's calendar may be from the store's clock. Nobody's minutes go by either, but an account's days and
/// months do: a gateway that is weeks ahead would renew all of them early.
const APART_MAX: Duration = Duration::from_secs(60);

/// Unix time that advances with the runtime's steady clock, so that a session's minutes never depend on somebody setting
/// the machine's time; and with the runtime's paused clock in tests. [`Clock::keep`] takes the machine's drift in.
#[derive(Debug)]
pub struct Clock {
    origin: Instant,
    /// Unix milliseconds at `origin`.
    base: AtomicU64,
    /// Milliseconds between the machine's calendar and the store's clock, where those are too many; else 0.
    apart: AtomicU64,
}

impl Clock {
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now(), base: machine().as_millis().into(), apart: AtomicU64::new(0) }
    }

    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.base.load(Ordering::Relaxed) + self.elapsed())
    }

    /// Follows the machine's calendar, as far as the store's clock does not contradict it. Not for every reading: two of them
    /// should differ by what has passed. Where the store has a clock and does not tell, nothing is followed.
    pub async fn keep(&self, billing: &Billing) {
        let asked = machine();
        match billing.time_of_store().await {
            Ok(Some(store)) => {
                let told = machine();
                self.follow(told, asked.since(store).max(store.since(told)));
            }
            Ok(None) => self.follow(machine(), Duration::ZERO),
            // That it fails shows elsewhere.
            Err(_) => {}
        }
    }

    /// How far the machine's calendar and the store's clock are apart, where that is too far.
    #[must_use]
    pub fn contradiction(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.apart.load(Ordering::Relaxed))).filter(|apart| !apart.is_zero())
    }

    fn follow(&self, machine: Timestamp, apart: Duration) {
        let is_contradicted = apart > APART_MAX;
        let millis = if is_contradicted { u64::try_from(apart.as_millis()).unwrap_or(u64::MAX) } else { 0 };
        let was_contradicted = self.apart.swap(millis, Ordering::Relaxed) > 0;
        if is_contradicted && !was_contradicted {
            warn!(
                ?apart,
                "this machine's clock and the store's contradict each other; this gateway goes on by its own"
            );
        } else if was_contradicted && !is_contradicted {
            info!("this machine's clock and the store's agree again");
        }
        if !is_contradicted {
            self.base.store(machine.as_millis().saturating_sub(self.elapsed()), Ordering::Relaxed);
        }
    }

    /// As if so much time had passed.
    #[cfg(test)]
    pub(crate) fn move_on(&self, by: Duration) {
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

fn machine() -> Timestamp {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_time_is_followed_that_the_store_s_clock_contradicts() {
        let clock = Clock::new();
        let (start, month) = (clock.now(), Duration::from_secs(31 * 24 * 60 * 60));
        let after = |by: Duration| Timestamp::from_millis(start.as_millis() + by.as_millis() as u64);
        clock.follow(after(month), month);
        assert_eq!((clock.now(), clock.contradiction()), (start, Some(month)));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(clock.now(), after(Duration::from_secs(7)));
        clock.follow(after(Duration::from_secs(9)), Duration::from_secs(2));
        assert_eq!((clock.now(), clock.contradiction()), (after(Duration::from_secs(9)), None));
    }
}
