//! One target's times as a line, beside those of the others.

use std::fmt;

use serde::Serialize;

use super::{Curve, Figures, Times, number, write_table};
use crate::target::DIRECT;

/// What was measured of one target.
pub(crate) struct Measured {
    pub(crate) target: String,
    /// What answered, in its own words.
    pub(crate) product: Option<String>,
    /// What its TLS agreed on.
    pub(crate) tls: Option<String>,
    pub(crate) times: Times,
}

/// One target's line.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) target: String,
    pub(crate) product: Option<String>,
    pub(crate) tls: Option<String>,
    pub(crate) n: u64,
    pub(crate) figures: Option<Figures>,
    /// This target's percentile divided by the baseline's.
    pub(crate) ratio_p50: Option<f64>,
    pub(crate) ratio_p99: Option<f64>,
    #[serde(skip)]
    pub(crate) times: Times,
}

/// Makes a line of each target's times, compared with the baseline's.
pub(crate) fn rows(measured: impl IntoIterator<Item = Measured>) -> Vec<Row> {
    let mut rows: Vec<Row> = measured
        .into_iter()
        .map(|Measured { target, product, tls, times }| Row {
            target,
            product,
            tls,
            n: times.len(),
            figures: times.figures(),
            ratio_p50: None,
            ratio_p99: None,
            times,
        })
        .collect();
    if let Some(base) = rows.get(baseline(rows.iter().map(|r| r.target.as_str()))).and_then(|r| r.figures) {
        for row in &mut rows {
            row.ratio_p50 = row.figures.map(|f| f.p50_us / base.p50_us);
            row.ratio_p99 = row.figures.map(|f| f.p99_us / base.p99_us);
        }
    }
    rows
}

impl Row {
    pub(crate) fn curve(&self) -> Curve<'_> {
        Curve { name: &self.target, times: &self.times }
    }
}

/// Which target the others are compared with: `direct`, else the first.
pub(crate) fn baseline<'a>(mut names: impl Iterator<Item = &'a str>) -> usize {
    names.position(|name| name == DIRECT).unwrap_or(0)
}

/// The lines of `rows` as a table with a heading and a note on what answered.
pub(crate) fn write_rows(f: &mut fmt::Formatter<'_>, title: &str, rows: &[Row]) -> fmt::Result {
    let base = rows.get(baseline(rows.iter().map(|r| r.target.as_str()))).map_or("", |r| &r.target);
    writeln!(f, "{title}, µs; × is the ratio to {base}\n")?;
    let header = ["target", "n", "p50", "p90", "p99", "p99.9", "max", "× p50", "× p99"];
    let lines = rows.iter().map(|row| {
        let time = |pick: fn(&Figures) -> f64| number(row.figures.as_ref().map(pick), 1);
        vec![
            row.target.clone(),
            row.n.to_string(),
            time(|x| x.p50_us),
            time(|x| x.p90_us),
            time(|x| x.p99_us),
            time(|x| x.p999_us),
            time(|x| x.max_us),
            number(row.ratio_p50, 2),
            number(row.ratio_p99, 2),
        ]
    });
    write_table(f, &header, lines)?;
    for row in rows {
        let product = row.product.as_deref().unwrap_or("did not say what it is");
        let tls = row.tls.as_ref().map(|tls| format!(", {tls}")).unwrap_or_default();
        writeln!(f, "- {}: {product}{tls}", row.target)?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn measured(target: &str, product: Option<&str>, micros: &[u64]) -> Measured {
        let mut times = Times::new();
        micros.iter().for_each(|&us| times.record(Duration::from_micros(us)));
        Measured { target: target.to_owned(), product: product.map(str::to_owned), tls: None, times }
    }

    struct Table(Vec<Row>);
    impl fmt::Display for Table {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_rows(f, "title", &self.0)
        }
    }

    #[test]
    fn ratios_are_to_direct_wherever_it_stands() {
        let rows = rows([measured("a", None, &[300]), measured("direct", None, &[100])]);
        let ratio = rows[0].ratio_p50.unwrap();
        assert!((ratio - 3.0).abs() < 0.01, "{ratio}");
        assert_eq!(rows[1].ratio_p99, Some(1.0));
    }

    #[test]
    fn without_direct_ratios_are_to_the_first() {
        let rows = rows([measured("a", None, &[100]), measured("b", None, &[50])]);
        assert!((rows[1].ratio_p50.unwrap() - 0.5).abs() < 0.01);
    }

    #[test]
    fn what_was_not_measured_is_a_dash_and_not_a_zero() {
        let rows = rows([measured("a", None, &[]), measured("b", Some("B/1"), &[1])]);
        assert_eq!(rows[1].ratio_p50, None);
        let text = Table(rows).to_string();
        assert!(text.contains("| a      | 0 |   – |"), "{text}");
        assert!(text.contains("- b: B/1"), "{text}");
    }
}
