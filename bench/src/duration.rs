//! Durations on the command line: a whole number and its unit, such as `20ms`.

use std::time::Duration;

/// Parses `N` followed by `us`, `ms`, `s` or `m`. The error says what is expected.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let expected = || "expected a whole number and its unit (us, ms, s or m), such as 20ms".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    match unit {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(expected),
        _ => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_its_unit() {
        assert_eq!(parse("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(parse("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(parse("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            ["", "10", "ms", "1.5s", "-1s", "10 s", "10h", "99999999999999999999s", "18446744073709551615m"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
