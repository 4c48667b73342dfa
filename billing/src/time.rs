//! Instants and billing periods. Nothing here reads a clock: `now` is always handed in.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;
const DAY: u64 = 86_400 * SECOND;

/// An instant: milliseconds since 1970-01-01T00:00:00Z. In JSON an integer; displayed as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The instant `millis` milliseconds after the epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Timestamp(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this instant; zero when `earlier` is the later of the two.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The day in UTC, counted from the epoch.
    pub const fn day(self) -> u64 {
        self.0 / DAY
    }

    const fn time_of_day(self) -> u64 {
        self.0 % DAY
    }
}

/// A clock that stands before 1970 reads as the epoch.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Date { month, day } = Date::of(*self);
        let (hours, rest) = (self.time_of_day() / HOUR, self.time_of_day() % HOUR);
        let (minutes, millis) = (rest / (60 * SECOND), rest % (60 * SECOND));
        let (seconds, millis) = (millis / SECOND, millis % SECOND);
        write!(f, "{:04}-{:02}-{day:02}T{hours:02}:", month.year(), month.of_year())?;
        write!(f, "{minutes:02}:{seconds:02}.{millis:03}Z")
    }
}

/// A billing period: `start` is in it, `end` is the start of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// The first instant of the period.
    pub start: Timestamp,
    /// The first instant after it.
    pub end: Timestamp,
}

impl Period {
    /// The hour that `at` is in.
    pub const fn hour(at: Timestamp) -> Period {
        Period::whole(at, HOUR)
    }

    /// The day, UTC, that `at` is in.
    pub const fn day(at: Timestamp) -> Period {
        Period::whole(at, DAY)
    }

    const fn whole(at: Timestamp, length: u64) -> Period {
        let start = at.0 - at.0 % length;
        Period { start: Timestamp(start), end: Timestamp(start.saturating_add(length)) }
    }

    /// Whether `at` is in it.
    pub fn contains(&self, at: Timestamp) -> bool {
        (self.start..self.end).contains(&at)
    }

    /// The calendar month, UTC, that `at` is in.
    pub fn calendar_month(at: Timestamp) -> Period {
        let month = Date::of(at).month;
        Period { start: month.on(1, 0), end: month.plus(1).on(1, 0) }
    }

    /// The calendar month, UTC, that is written `YYYY-MM`; from 1970 to 9999.
    pub fn named_month(name: &str) -> Option<Period> {
        let (year, month) =
            name.split_once('-').filter(|(year, month)| (year.len(), month.len()) == (4, 2))?;
        if !year.bytes().chain(month.bytes()).all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let (year, month) = (year.parse::<u64>().ok()?, month.parse::<u64>().ok()?);
        let is_one = (1970..=9999).contains(&year) && (1..=12).contains(&month);
        is_one.then(|| Period::calendar_month(Month(year * 12 + month - 1).on(1, 0)))
    }

    /// The month between two anniversaries of `anchor` that `at` is in; the first month when `at` is earlier.
    ///
    /// Each anniversary is counted from the anchor itself, so that a subscription of January 31 renews on
    /// February 28 and then on March 31, to the millisecond.
    pub fn anniversary(anchor: Timestamp, at: Timestamp) -> Period {
        let Date { month: first, day } = Date::of(anchor);
        let nth = |months| first.plus(months).on(day, anchor.time_of_day());
        let mut months = Date::of(at).month.0.saturating_sub(first.0);
        if months > 0 && nth(months) > at {
            months -= 1;
        }
        Period { start: nth(months), end: nth(months + 1) }
    }
}

/// A calendar month, counted from January of the year 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Month(u64);

impl Month {
    const fn year(self) -> u64 {
        self.0 / 12
    }

    const fn of_year(self) -> u64 {
        self.0 % 12 + 1
    }

    const fn plus(self, months: u64) -> Month {
        Month(self.0 + months)
    }

    /// Days from the epoch to the first of the month. Years start in March here, so that the leap day comes
    /// last (Howard Hinnant, "chrono-compatible low-level date algorithms").
    const fn first_day(self) -> u64 {
        let from_march = self.0 - 2;
        let (year, month) = (from_march / 12, from_march % 12);
        let day_of_year = (153 * month + 2) / 5;
        year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - EPOCH_FROM_MARCH_0
    }

    const fn days(self) -> u64 {
        self.plus(1).first_day() - self.first_day()
    }

    /// The instant `time_of_day` into the month's `day`, or into its last day when it has fewer.
    fn on(self, day: u64, time_of_day: u64) -> Timestamp {
        Timestamp((self.first_day() + day.min(self.days()) - 1) * DAY + time_of_day)
    }
}

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_FROM_MARCH_0: u64 = 719_468;
const DAYS_PER_ERA: u64 = 146_097;

/// A day of the Gregorian calendar; `day` counts from 1.
struct Date {
    month: Month,
    day: u64,
}

impl Date {
    /// The inverse of [`Month::first_day`], by the same algorithms.
    const fn of(at: Timestamp) -> Date {
        let days = at.day() + EPOCH_FROM_MARCH_0;
        let (era, of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        Date { month: Month((era * 400 + year) * 12 + month + 2), day: of_year - (153 * month + 2) / 5 + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Milliseconds from `date -u -d TEXT +%s`.
    const KNOWN: [(u64, &str); 6] = [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (951_868_800_000, "2000-03-01T00:00:00.000Z"),
        (1_709_164_799_999, "2024-02-28T23:59:59.999Z"),
        (1_795_387_261_007, "2026-11-22T22:41:01.007Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
    ];

    fn at(text: &str) -> Timestamp {
        let number = |range: std::ops::Range<usize>| text[range].parse::<u64>().unwrap();
        let month = Month(number(0..4) * 12 + number(5..7) - 1);
        month.on(number(8..10), number(11..13) * 3_600_000)
    }

    #[test]
    fn displays_rfc_3339() {
        for (millis, text) in KNOWN {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
    }

    #[test]
    fn hours_and_days_are_whole() {
        let at = Timestamp::from_millis(1_795_387_261_007);
        let text = |period: Period| (period.start.to_string(), period.end.to_string());
        let of = |start: &str, end: &str| (start.to_owned(), end.to_owned());
        assert_eq!(text(Period::hour(at)), of("2026-11-22T22:00:00.000Z", "2026-11-22T23:00:00.000Z"));
        assert_eq!(text(Period::day(at)), of("2026-11-22T00:00:00.000Z", "2026-11-23T00:00:00.000Z"));
        let hour = Period::hour(at);
        assert!(hour.contains(hour.start) && hour.contains(at) && !hour.contains(hour.end));
    }

    #[test]
    fn a_calendar_month_runs_from_the_first_to_the_first() {
        let period = Period::calendar_month(at("2028-02-29T13"));
        assert_eq!(period.start.to_string(), "2028-02-01T00:00:00.000Z");
        assert_eq!(period.end.to_string(), "2028-03-01T00:00:00.000Z");
    }

    #[test]
    fn months_have_names() {
        assert_eq!(Period::named_month("2028-02"), Some(Period::calendar_month(at("2028-02-29T13"))));
        assert_eq!(Period::named_month("1970-01").map(|month| month.start.as_millis()), Some(0));
        for name in ["", "2028", "2028-2", "2028-00", "2028-13", "28-02", "1969-12", "2028-+2", "2028-02-01"]
        {
            assert_eq!(Period::named_month(name), None, "{name:?}");
        }
    }

    #[test]
    fn anniversaries_keep_the_day_and_are_clamped_to_the_month() {
        let cases = [
            ("2026-01-31T10", "2026-01-31T10", "2026-01-31T10", "2026-02-28T10"),
            ("2026-01-31T10", "2026-02-28T09", "2026-01-31T10", "2026-02-28T10"),
            ("2026-01-31T10", "2026-02-28T10", "2026-02-28T10", "2026-03-31T10"),
            ("2026-01-31T10", "2026-04-30T11", "2026-04-30T10", "2026-05-31T10"),
            ("2026-01-15T10", "2027-01-15T09", "2026-12-15T10", "2027-01-15T10"),
            ("2026-06-15T10", "2026-01-01T00", "2026-06-15T10", "2026-07-15T10"),
        ];
        for (anchor, now, start, end) in cases {
            let period = Period::anniversary(at(anchor), at(now));
            assert_eq!((period.start, period.end), (at(start), at(end)), "{anchor} at {now}");
        }
    }

    proptest! {
        #[test]
        fn dates_and_days_are_inverse(days in 0_u64..200_000) {
            let when = Timestamp::from_millis(days * DAY);
            let Date { month, day } = Date::of(when);
            prop_assert_eq!(month.on(day, 0), when);
            prop_assert!(day <= month.days());
        }

        #[test]
        fn periods_hold_their_instant_and_meet_without_a_gap(anchor in 0..4_000_000_000_000_u64, ahead in 0..400_000_000_000_u64) {
            let (anchor, now) = (Timestamp(anchor), Timestamp(anchor + ahead));
            let period = Period::anniversary(anchor, now);
            prop_assert!(period.start <= now && now < period.end);
            prop_assert_eq!(Period::anniversary(anchor, period.end).start, period.end);
        }
    }
}
