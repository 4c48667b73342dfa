//! What an account has used, by hour and by month, UTC. A session counts where it ended.
//!
//! The figures are added up by the commit that ends a session, so they are exact at any moment and cost nothing to
//! read. Days are sums of hours.

use crate::money::Micros;
use crate::session::Session;
use crate::time::{Period, Timestamp};

/// How far back hours are kept: two months, the longer ones. Months are kept for ever.
pub const HOURS_KEPT: u32 = 62 * 24;

/// What sessions came to. Figures only grow; a number that leaves the range of its type stays at its end, which is
/// far beyond what one account can use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sessions that ended, lost ones among them; not those that never began.
    pub sessions: u64,
    /// Those of them whose browser was lost.
    pub lost: u64,
    /// Those that an included session paid for.
    pub included: u64,
    /// Those that a retry credit paid for.
    pub retried: u64,
    /// Started minutes that were billed, included ones among them.
    pub minutes: u64,
    /// Bytes from clients to browsers.
    pub up_bytes: u64,
    /// Bytes from browsers to clients.
    pub down_bytes: u64,
    /// Money, from balance and overage together.
    pub cost: Micros,
    /// The part of it that is billed afterwards.
    pub overage: Micros,
}

impl Usage {
    /// What one session came to that has ended.
    pub(crate) fn of(session: &Session) -> Usage {
        Usage {
            sessions: 1,
            lost: session.lost.into(),
            included: session.funding.included.into(),
            retried: session.funding.retry.into(),
            minutes: session.minutes.into(),
            up_bytes: session.up_bytes,
            down_bytes: session.down_bytes,
            cost: session.charged,
            overage: session.funding.overage,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, more: Usage) -> Usage {
        Usage {
            sessions: self.sessions.saturating_add(more.sessions),
            lost: self.lost.saturating_add(more.lost),
            included: self.included.saturating_add(more.included),
            retried: self.retried.saturating_add(more.retried),
            minutes: self.minutes.saturating_add(more.minutes),
            up_bytes: self.up_bytes.saturating_add(more.up_bytes),
            down_bytes: self.down_bytes.saturating_add(more.down_bytes),
            cost: self.cost.checked_add(more.cost).unwrap_or(Micros::MAX),
            overage: self.overage.checked_add(more.overage).unwrap_or(Micros::MAX),
        }
    }
}

/// Usage that a commit adds: at `at`, which the store puts into the hour and the month that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) at: Timestamp,
    pub(crate) usage: Usage,
}

/// What a store keeps a row of figures for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bucket {
    Hour,
    Month,
}

impl Bucket {
    pub(crate) fn holding(self, at: Timestamp) -> Period {
        match self {
            Bucket::Hour => Period::hour(at),
            Bucket::Month => Period::calendar_month(at),
        }
    }
}

/// How usage is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// By hours.
    Hour,
    /// By days, UTC.
    Day,
    /// By calendar months, UTC.
    Month,
}

impl Span {
    /// The most periods in one answer: hours and days as far as they are kept, ten years of months.
    pub const fn most(self) -> u32 {
        match self {
            Span::Hour => HOURS_KEPT,
            Span::Day => HOURS_KEPT / 24,
            Span::Month => 120,
        }
    }

    pub(crate) fn bucket(self) -> Bucket {
        match self {
            Span::Hour | Span::Day => Bucket::Hour,
            Span::Month => Bucket::Month,
        }
    }

    fn holding(self, at: Timestamp) -> Period {
        match self {
            Span::Hour => Period::hour(at),
            Span::Day => Period::day(at),
            Span::Month => Period::calendar_month(at),
        }
    }

    /// The `last` periods, the one that `now` is in first.
    pub(crate) fn periods(self, last: u32, now: Timestamp) -> Vec<Period> {
        let mut periods = Vec::new();
        let mut at = Some(now);
        while let Some(within) = at.filter(|_| periods.len() < last.min(self.most()) as usize) {
            let period = self.holding(within);
            periods.push(period);
            at = period.start.as_millis().checked_sub(1).map(Timestamp::from_millis);
        }
        periods
    }
}

/// One period's usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeriodUsage {
    /// From when to when.
    pub period: Period,
    /// What was used in it.
    pub usage: Usage,
}

/// Puts the store's rows, which are named by their starts and in their order, into `periods`.
pub(crate) fn gather(periods: Vec<Period>, rows: &[(Timestamp, Usage)]) -> Vec<PeriodUsage> {
    let before = |at: Timestamp| rows.partition_point(|(start, _)| *start < at);
    let within = |period: Period| &rows[before(period.start)..before(period.end)];
    let sum = |period| within(period).iter().fold(Usage::default(), |sum, (_, usage)| sum.plus(*usage));
    periods.into_iter().map(|period| PeriodUsage { period, usage: sum(period) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2027-01-15T10:00:00Z.
    const NOW: Timestamp = Timestamp::from_millis(1_800_007_200_000);

    fn starts(span: Span, last: u32) -> Vec<String> {
        span.periods(last, NOW).into_iter().map(|period| period.start.to_string()).collect()
    }

    #[test]
    fn periods_go_back_from_now() {
        assert_eq!(starts(Span::Hour, 2), ["2027-01-15T10:00:00.000Z", "2027-01-15T09:00:00.000Z"]);
        assert_eq!(starts(Span::Day, 2), ["2027-01-15T00:00:00.000Z", "2027-01-14T00:00:00.000Z"]);
        assert_eq!(starts(Span::Month, 2), ["2027-01-01T00:00:00.000Z", "2026-12-01T00:00:00.000Z"]);
    }

    #[test]
    fn periods_have_a_bound_and_end_with_the_epoch() {
        assert_eq!(Span::Day.periods(u32::MAX, NOW).len(), 62);
        assert_eq!(Span::Month.periods(u32::MAX, Timestamp::from_millis(0)).len(), 1);
    }

    #[test]
    fn a_day_is_the_sum_of_its_hours() {
        let hour = |hour: u64| Timestamp::from_millis(1_799_971_200_000 + hour * 3_600_000);
        let one = Usage { sessions: 1, cost: Micros::new(10_000), ..Usage::default() };
        let rows = [(hour(0), one), (hour(23), one), (hour(24), one)];
        let days = gather(Span::Day.periods(2, NOW), &rows);
        assert_eq!((days[0].usage.sessions, days[0].usage.cost.get()), (2, 20_000));
        assert_eq!(days[1].usage, Usage::default());
    }
}
