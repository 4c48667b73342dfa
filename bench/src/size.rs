//! Sizes on the command line: a whole number of bytes and perhaps a unit, such as `5MB`.

/// Parses `N` followed by nothing, `KB` or `MB` (decimal). The error says what is expected.
pub(crate) fn parse(text: &str) -> Result<u32, String> {
    let expected =
        || "expected a whole number of bytes and perhaps a unit (KB or MB), such as 5MB".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u32 = number.parse().map_err(|_| expected())?;
    let factor = match unit {
        "" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        _ => return Err(expected()),
    };
    number.checked_mul(factor).ok_or_else(expected)
}

/// The shortest form that [`parse`] reads back.
pub(crate) fn show(bytes: u32) -> String {
    match bytes {
        _ if bytes >= 1_000_000 && bytes.is_multiple_of(1_000_000) => format!("{}MB", bytes / 1_000_000),
        _ if bytes >= 1_000 && bytes.is_multiple_of(1_000) => format!("{}KB", bytes / 1_000),
        _ => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_its_unit_there_and_back() {
        for (text, bytes) in [("0", 0), ("100", 100), ("1KB", 1_000), ("1024", 1024), ("50MB", 50_000_000)] {
            assert_eq!(parse(text), Ok(bytes));
            assert_eq!(show(bytes), text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "MB", "1.5MB", "-1", "5 MB", "5mb", "5MiB", "5000MB", "99999999999"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
