//! Amounts of money.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Number;

const MICROS_PER_DOLLAR: u64 = 1_000_000;

/// An amount in micro-dollars, never negative.
///
/// In JSON it is an integer. Arithmetic is checked and ends at [`Micros::MAX`], so that a sum of two
/// amounts neither wraps nor leaves the range in which [`Micros::dollars`] is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Micros(u64);

impl Micros {
    /// Nothing.
    pub const ZERO: Micros = Micros(0);

    /// One micro-dollar below a thousand million dollars: fifteen digits, which is what a JSON number
    /// carries through any reader's binary floating point without loss.
    pub const MAX: Micros = Micros(999_999_999_999_999);

    /// An amount of `micros` micro-dollars.
    pub const fn new(micros: u64) -> Self {
        Micros(micros)
    }

    /// The amount in micro-dollars.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum, or `None` beyond [`Micros::MAX`].
    pub fn checked_add(self, other: Micros) -> Option<Micros> {
        self.0.checked_add(other.0).map(Micros).filter(|sum| *sum <= Micros::MAX)
    }

    /// The difference, or `None` when `other` is the greater.
    pub fn checked_sub(self, other: Micros) -> Option<Micros> {
        self.0.checked_sub(other.0).map(Micros)
    }

    /// The amount `times` over, or `None` beyond [`Micros::MAX`].
    pub fn checked_mul(self, times: u32) -> Option<Micros> {
        self.0.checked_mul(u64::from(times)).map(Micros).filter(|product| *product <= Micros::MAX)
    }

    /// The amount in dollars as a JSON number, exact for every amount up to [`Micros::MAX`].
    pub fn dollars(self) -> Number {
        let (whole, rest) = self.parts();
        if rest == 0 {
            return Number::from(whole);
        }
        format!("{whole}.{rest:06}").parse().expect("digits, a point and six digits are a JSON number")
    }

    fn parts(self) -> (u64, u64) {
        (self.0 / MICROS_PER_DOLLAR, self.0 % MICROS_PER_DOLLAR)
    }
}

/// Dollars for people: `$49`, `$0.10`, `$0.024`.
impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = self.parts();
        if rest == 0 {
            return write!(f, "${whole}");
        }
        let digits = format!("{rest:06}");
        let significant = digits.trim_end_matches('0').len();
        write!(f, "${whole}.{}", &digits[..significant.max(2)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn displays_dollars() {
        let cases = [
            (0, "$0"),
            (1, "$0.000001"),
            (10_000, "$0.01"),
            (24_000, "$0.024"),
            (100_000, "$0.10"),
            (49_000_000, "$49"),
        ];
        for (micros, text) in cases {
            assert_eq!(Micros::new(micros).to_string(), text);
        }
    }

    #[test]
    fn dollars_is_a_plain_json_number() {
        assert_eq!(serde_json::to_string(&Micros::new(24_000).dollars()).unwrap(), "0.024");
        assert_eq!(serde_json::to_string(&Micros::new(69_000_000).dollars()).unwrap(), "69");
        assert_eq!(serde_json::to_string(&Micros::MAX.dollars()).unwrap(), "999999999.999999");
    }

    #[test]
    fn arithmetic_ends_at_the_bounds() {
        assert_eq!(Micros::MAX.checked_add(Micros::new(1)), None);
        assert_eq!(Micros::ZERO.checked_sub(Micros::new(1)), None);
        assert_eq!(Micros::MAX.checked_mul(2), None);
        assert_eq!(Micros::new(2_000).checked_mul(7), Some(Micros::new(14_000)));
    }

    proptest! {
        #[test]
        fn dollars_loses_nothing(micros in 0..=Micros::MAX.get()) {
            let text = serde_json::to_string(&Micros::new(micros).dollars()).unwrap();
            // `1e-6` is how the shortest form of the smallest amounts is written.
            prop_assume!(!text.contains('e'));
            let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
            let back = whole.parse::<u64>().unwrap() * 1_000_000 + format!("{rest:0<6}").parse::<u64>().unwrap();
            prop_assert_eq!(back, micros);
        }
    }
}
