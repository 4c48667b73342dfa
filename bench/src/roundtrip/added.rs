//! What a target adds to a round trip: so proxies are compared without the browser's own time.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::{Row, number};
use crate::target::DIRECT;

#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct Added {
    pub(crate) target: String,
    /// Its median less direct's. Below zero where it is the faster one.
    pub(crate) added_p50_us: f64,
    /// The same as a multiple of what each other target adds; nothing where that adds nothing.
    pub(crate) ratio_to: BTreeMap<String, Option<f64>>,
}

pub(crate) fn added(rows: &[Row]) -> Vec<Added> {
    let p50 = |row: &Row| row.figures.map(|f| f.p50_us);
    let Some(direct) = rows.iter().find(|row| row.target == DIRECT).and_then(p50) else { return Vec::new() };
    let others = rows.iter().filter(|row| row.target != DIRECT);
    let adds: Vec<(&str, f64)> =
        others.filter_map(|row| Some((row.target.as_str(), p50(row)? - direct))).collect();
    let ratio_to = |target: &str, added: f64| {
        let others = adds.iter().filter(|(other, _)| *other != target);
        others.map(|&(other, base)| (other.to_owned(), (base > 0.0).then(|| added / base))).collect()
    };
    adds.iter()
        .map(|&(target, added)| Added {
            target: target.to_owned(),
            added_p50_us: added,
            ratio_to: ratio_to(target, added),
        })
        .collect()
}

impl Added {
    /// Its line in a table that has a column for each of `all`.
    pub(super) fn line(&self, all: &[Added]) -> Vec<String> {
        let mut line = vec![self.target.clone(), number(Some(self.added_p50_us), 1)];
        let ratio = |other: &Added| number(self.ratio_to.get(&other.target).copied().flatten(), 2);
        line.extend(all.iter().map(ratio));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Measured, Times, rows};
    use std::time::Duration;

    fn measured(medians: &[(&str, u64)]) -> Vec<Row> {
        rows(medians.iter().map(|&(name, us)| {
            let mut times = Times::new();
            times.record(Duration::from_micros(us));
            Measured { target: name.to_owned(), product: None, tls: None, times }
        }))
    }

    #[test]
    fn what_a_target_adds_and_its_ratio_to_what_another_adds() {
        let added = added(&measured(&[("direct", 100), ("gateway", 110), ("nginx", 140)]));
        let names: Vec<&str> = added.iter().map(|a| a.target.as_str()).collect();
        assert_eq!(names, ["gateway", "nginx"]);
        assert!((added[0].added_p50_us - 10.0).abs() < 0.3, "{added:?}");
        assert!((added[0].ratio_to["nginx"].unwrap() - 0.25).abs() < 0.02, "{added:?}");
        assert!((added[1].ratio_to["gateway"].unwrap() - 4.0).abs() < 0.2, "{added:?}");
    }

    #[test]
    fn nothing_is_compared_with_a_target_that_adds_nothing() {
        let added = added(&measured(&[("direct", 100), ("a", 90), ("b", 110)]));
        assert_eq!(added[1].ratio_to["a"], None);
        assert_eq!(super::added(&measured(&[("a", 90), ("b", 110)])), []);
    }
}
