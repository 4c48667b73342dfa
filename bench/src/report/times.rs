//! Times and their percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Times in nanoseconds, each kept to three significant digits.
#[derive(Debug, Clone)]
pub(crate) struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self::new()
    }
}

impl Times {
    pub(crate) fn new() -> Self {
        Self(Histogram::new(3).expect("3 digits is within the library's 0 to 5"))
    }

    pub(crate) fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.record(nanos).expect("a histogram without bounds grows to any u64");
    }

    /// Adds what another thread measured.
    pub(crate) fn add(&mut self, other: &Times) {
        self.0.add(&other.0).expect("a histogram without bounds grows to any u64");
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// In microseconds; `quantile` is 0 to 1.
    pub(crate) fn at(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// Nothing when nothing was measured: a zero would be read as a time.
    pub(crate) fn figures(&self) -> Option<Figures> {
        (!self.0.is_empty()).then(|| Figures {
            p50_us: self.at(0.5),
            p90_us: self.at(0.9),
            p99_us: self.at(0.99),
            p999_us: self.at(0.999),
            max_us: self.0.max() as f64 / 1000.0,
        })
    }
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Figures {
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let mut times = Times::new();
        (1..=1000).for_each(|us| times.record(Duration::from_micros(us)));
        let figures = times.figures().unwrap();
        let table = [
            (figures.p50_us, 500.0),
            (figures.p90_us, 900.0),
            (figures.p99_us, 990.0),
            (figures.p999_us, 999.0),
            (figures.max_us, 1000.0),
        ];
        for (found, expected) in table {
            assert!((found - expected).abs() <= expected / 1000.0, "{found} for {expected}");
        }
        assert!(Times::new().figures().is_none());
    }

    #[test]
    fn what_two_threads_measured_adds_up() {
        let (mut one, mut two) = (Times::new(), Times::new());
        one.record(Duration::from_nanos(100));
        two.record(Duration::from_secs(100));
        one.add(&two);
        assert_eq!(one.len(), 2);
        assert!(one.figures().unwrap().max_us > 99_000_000.0);
    }
}
