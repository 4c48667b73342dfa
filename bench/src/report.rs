//! Figures, and the two ways of showing them: aligned tables, or one JSON document.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::target::DIRECT;

/// Times in nanoseconds, each kept to three significant digits.
#[derive(Debug)]
pub(crate) struct Times(Histogram<u64>);

impl Times {
    pub(crate) fn new() -> Self {
        Self(Histogram::new(3).expect("3 digits is within the library's 0 to 5"))
    }

    pub(crate) fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.record(nanos).expect("a histogram without bounds grows to any u64");
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// Nothing when nothing was measured: a zero would be read as a time.
    pub(crate) fn figures(&self) -> Option<Figures> {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        (!self.0.is_empty()).then(|| Figures {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
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

/// One target's line.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) target: String,
    /// What answered, in its own words.
    pub(crate) product: Option<String>,
    pub(crate) n: u64,
    pub(crate) figures: Option<Figures>,
    /// This target's percentile divided by the baseline's.
    pub(crate) ratio_p50: Option<f64>,
    pub(crate) ratio_p99: Option<f64>,
}

/// Makes a line of each target's times, compared with the baseline's.
pub(crate) fn rows(measured: impl IntoIterator<Item = (String, Option<String>, Times)>) -> Vec<Row> {
    let mut rows: Vec<Row> = measured
        .into_iter()
        .map(|(target, product, times)| Row {
            target,
            product,
            n: times.len(),
            figures: times.figures(),
            ratio_p50: None,
            ratio_p99: None,
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

/// Which target the others are compared with: `direct`, else the first.
fn baseline<'a>(mut names: impl Iterator<Item = &'a str>) -> usize {
    names.position(|name| name == DIRECT).unwrap_or(0)
}

/// What the figures depend on beside the targets.
#[derive(Debug, Serialize)]
pub(crate) struct Method {
    kernel: String,
    cpus: usize,
    /// The load average of the last minute before the run: what else wanted the CPUs.
    load_before: f64,
    bench_version: &'static str,
}

impl Method {
    pub(crate) fn of_this_machine() -> anyhow::Result<Self> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let load = std::fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            kernel: kernel.trim().to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            load_before: load.split(' ').next().unwrap_or_default().parse()?,
            bench_version: env!("CARGO_PKG_VERSION"),
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, cpus, load_before, bench_version } = self;
        write!(
            f,
            "Linux {kernel}, {cpus} CPUs, load {load_before} before the run, ufbrowsers-bench {bench_version}"
        )
    }
}

/// Writes the report to stdout, as JSON or as its own words.
pub(crate) fn print(report: &(impl Serialize + fmt::Display), json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}

/// A bar on stderr; nothing where stderr is no terminal. It draws only when it is advanced, never from a thread
/// of its own that would disturb what is measured.
pub(crate) fn progress(title: &'static str, steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {elapsed} (eta {eta})")
        .expect("the template is constant")
        .progress_chars("=> ");
    ProgressBar::new(steps).with_style(style).with_message(title)
}

/// The lines of `rows` as a table with a heading and a note on what answered.
pub(crate) fn write_rows(f: &mut fmt::Formatter<'_>, title: &str, rows: &[Row]) -> fmt::Result {
    let base = rows.get(baseline(rows.iter().map(|r| r.target.as_str()))).map_or("", |r| &r.target);
    writeln!(f, "{title}, µs; × is the ratio to {base}\n")?;
    let header = ["target", "n", "p50", "p90", "p99", "p99.9", "max", "× p50", "× p99"].map(str::to_owned);
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
    write_table(f, &header, &lines.collect::<Vec<_>>())?;
    for row in rows {
        writeln!(f, "{}: {}", row.target, row.product.as_deref().unwrap_or("did not say what it is"))?;
    }
    Ok(())
}

/// A figure with `decimals`, or a dash where there is none.
pub(crate) fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.decimals$}"))
}

/// The first column is a name and stands left; the others are figures and stand right. A blank line follows.
pub(crate) fn write_table(
    f: &mut fmt::Formatter<'_>,
    header: &[String],
    rows: &[Vec<String>],
) -> fmt::Result {
    let all = || std::iter::once(header).chain(rows.iter().map(Vec::as_slice));
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    for row in all() {
        write!(f, "{:<1$}", row[0], widths[0])?;
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            write!(f, "  {cell:>width$}")?;
        }
        writeln!(f)?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(micros: &[u64]) -> Times {
        let mut times = Times::new();
        micros.iter().for_each(|&us| times.record(Duration::from_micros(us)));
        times
    }

    struct Table(Vec<Row>);
    impl fmt::Display for Table {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_rows(f, "title", &self.0)
        }
    }

    #[test]
    fn ratios_are_to_direct_wherever_it_stands() {
        let rows = rows([("a".into(), None, times(&[300])), ("direct".into(), None, times(&[100]))]);
        let ratio = rows[0].ratio_p50.unwrap();
        assert!((ratio - 3.0).abs() < 0.01, "{ratio}");
        assert_eq!(rows[1].ratio_p99, Some(1.0));
    }

    #[test]
    fn without_direct_ratios_are_to_the_first() {
        let rows = rows([("a".into(), None, times(&[100])), ("b".into(), None, times(&[50]))]);
        assert!((rows[1].ratio_p50.unwrap() - 0.5).abs() < 0.01);
    }

    #[test]
    fn what_was_not_measured_is_a_dash_and_not_a_zero() {
        let rows = rows([("a".into(), None, times(&[])), ("b".into(), Some("B/1".into()), times(&[1]))]);
        assert_eq!(rows[1].ratio_p50, None);
        let text = Table(rows).to_string();
        assert!(text.contains("a       0    –"), "{text}");
        assert!(text.contains("b: B/1"), "{text}");
    }
}
