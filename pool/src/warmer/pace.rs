//! How fast browsers come while some are missing, and so how long somebody waits for one.

use std::time::Duration;

use tokio::time::Instant;

/// Told before anything was measured: about what a browser takes to start on a busy machine.
const UNMEASURED: Duration = Duration::from_secs(1);
/// A client that comes back earlier only adds to what it waits for.
const SHORTEST: Duration = Duration::from_secs(1);
/// An estimate of more than this is none: by then sessions have ended that nobody could foresee.
const LONGEST: Duration = Duration::from_secs(60);
/// Of how many intervals the mean is made: enough to even out a single slow start, few enough to follow a busy hour.
const MEMORY: u32 = 8;

#[derive(Debug)]
pub(super) struct Pace {
    mean: Option<Duration>,
    /// The last browser came then, or since then browsers are missing. None: nothing is missing.
    since: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { mean: None, since: None }
    }

    /// Whether the pool has less than it should. Time in which nothing is missing is no measure of anything.
    pub(super) fn note(&mut self, missing: bool, now: Instant) {
        self.since = missing.then(|| self.since.unwrap_or(now));
    }

    /// A browser came.
    pub(super) fn came(&mut self, now: Instant) {
        let Some(since) = self.since.replace(now) else { return };
        let interval = now - since;
        self.mean = Some(match self.mean {
            Some(mean) => (mean * (MEMORY - 1) + interval) / MEMORY,
            None => interval,
        });
    }

    /// How long until so many more have come. A pool from which nothing has come for long is no faster than that.
    pub(super) fn wait_for(&self, browsers: usize, now: Instant) -> Duration {
        let idle = self.since.map_or(Duration::ZERO, |since| now - since);
        let each = self.mean.unwrap_or(UNMEASURED).max(idle);
        let browsers = u32::try_from(browsers).unwrap_or(u32::MAX);
        each.saturating_mul(browsers).clamp(SHORTEST, LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: Duration = Duration::from_millis(100);

    #[test]
    fn the_wait_follows_the_measured_rate() {
        let begun = Instant::now();
        let mut pace = Pace::new();
        assert_eq!(pace.wait_for(5, begun), UNMEASURED * 5);

        pace.note(true, begun);
        for number in 1..=20 {
            pace.came(begun + TENTH * number);
        }
        assert_eq!(pace.wait_for(50, begun + TENTH * 20), TENTH * 50);
        assert_eq!(pace.wait_for(1, begun + TENTH * 20), SHORTEST);
        assert_eq!(pace.wait_for(usize::MAX, begun + TENTH * 20), LONGEST);
    }

    #[test]
    fn idle_time_does_not_count() {
        let begun = Instant::now();
        let mut pace = Pace::new();
        pace.note(true, begun);
        pace.came(begun + TENTH);
        pace.note(false, begun + TENTH);
        pace.note(true, begun + TENTH * 100);
        pace.note(true, begun + TENTH * 101);
        pace.came(begun + TENTH * 101);
        assert_eq!(pace.wait_for(20, begun + TENTH * 101), TENTH * 20);
    }

    #[test]
    fn a_pool_that_stands_still_is_slow() {
        let begun = Instant::now();
        let mut pace = Pace::new();
        pace.note(true, begun);
        pace.came(begun + TENTH);
        assert_eq!(pace.wait_for(2, begun + TENTH * 101), TENTH * 200);
    }
}
