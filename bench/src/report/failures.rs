//! Sessions that failed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// How many, by target and cause.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Failures(BTreeMap<String, BTreeMap<String, u64>>);

impl Failures {
    pub(crate) fn add(&mut self, target: &str, causes: BTreeMap<String, u64>) {
        if !causes.is_empty() {
            self.0.insert(target.to_owned(), causes);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.values().flat_map(BTreeMap::values).sum()
    }
}

/// A list, and a blank line; nothing where none failed.
impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (target, causes) in &self.0 {
            for (cause, count) in causes {
                writeln!(f, "- FAILED {count} sessions of {target}: {cause}")?;
            }
        }
        if self.0.is_empty() { Ok(()) } else { writeln!(f) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_counted_and_named_by_cause() {
        let mut failures = Failures::default();
        failures.add("direct", BTreeMap::new());
        assert_eq!((failures.count(), failures.to_string()), (0, String::new()));
        failures.add("nginx", BTreeMap::from([("refused".to_owned(), 2), ("timed out".to_owned(), 1)]));
        assert_eq!(failures.count(), 3);
        let words = "- FAILED 2 sessions of nginx: refused\n- FAILED 1 sessions of nginx: timed out\n\n";
        assert_eq!(failures.to_string(), words);
        assert_eq!(serde_json::to_value(&failures).unwrap()["nginx"]["refused"], 2);
    }
}
