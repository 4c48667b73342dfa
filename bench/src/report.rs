//! What a measurement shows, and the three ways of showing it: Markdown tables, one JSON document, a plot.

mod failures;
mod method;
mod plot;
mod rows;
mod table;
mod times;

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub(crate) use failures::Failures;
pub(crate) use method::Method;
pub(crate) use plot::{Curve, draw};
pub(crate) use rows::{Measured, Row, baseline, rows, write_rows};
pub(crate) use table::{number, write_table};
pub(crate) use times::{Figures, Times};

/// What was measured. It prints as Markdown.
pub(crate) trait Report: Serialize + fmt::Display {
    /// Of the measurement.
    const NAME: &'static str;

    /// What `--plot` draws.
    fn curves(&self) -> Vec<Curve<'_>>;

    /// How many sessions or steps failed; each of them is named in the report.
    fn failed(&self) -> u64 {
        0
    }
}

/// A report, and what its figures depend on beside the targets.
#[derive(Debug, Serialize)]
pub(crate) struct Measurement<R> {
    measurement: &'static str,
    method: Method,
    #[serde(flatten)]
    pub(crate) report: R,
}

impl<R: Report> Measurement<R> {
    /// `method` is from before it was measured.
    pub(crate) fn new(method: Method, report: R) -> Self {
        Self { measurement: R::NAME, method, report }
    }
}

impl<R: Report> fmt::Display for Measurement<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}{}\n", self.report, self.method)
    }
}

/// How a report is shown.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Output {
    /// Print one JSON document instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the percentiles as curves into FILE.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

impl Output {
    /// Writes the report to stdout, and its plot.
    pub(crate) fn show(&self, measured: &Measurement<impl Report>) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, measured)?;
            writeln!(out)?;
        } else {
            write!(out, "{measured}")?;
        }
        match &self.plot {
            Some(file) => {
                draw(&measured.report.curves(), file).with_context(|| format!("--plot {}", file.display()))
            }
            None => Ok(()),
        }
    }
}

/// The targets of one round, each once, in an order that differs from round to round and not from run to run. No target is
/// always first, nor always behind the same one: what a session leaves a server to do falls into the next one's time.
pub(crate) fn turns(round: usize, targets: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..targets).collect();
    order.sort_by_cached_key(|&target| {
        let mut hasher = DefaultHasher::new();
        (round, target).hash(&mut hasher);
        hasher.finish()
    });
    order
}

/// A bar on stderr; nothing where stderr is no terminal. It draws only when it is advanced, never from a thread
/// of its own that would disturb what is measured.
pub(crate) fn progress(title: &'static str, steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {elapsed} (eta {eta})")
        .expect("the template is constant")
        .progress_chars("=> ");
    ProgressBar::new(steps).with_style(style).with_message(title)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_one_turn_in_a_round_and_follows_each_other_one_as_often() {
        const ROUNDS: usize = 4_000;
        let mut follows = [[0_usize; 4]; 4];
        let mut first = [0_usize; 4];
        for round in 0..ROUNDS {
            let order = turns(round, 4);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            first[order[0]] += 1;
            for two in order.windows(2) {
                follows[two[0]][two[1]] += 1;
            }
        }
        let is_fair = |count: usize| (ROUNDS / 5..ROUNDS * 3 / 10).contains(&count);
        assert!(first.into_iter().all(is_fair), "{first:?}");
        for (target, next) in follows.iter().enumerate() {
            assert!(next.iter().enumerate().all(|(other, &n)| other == target || is_fair(n)), "{follows:?}");
        }
    }
}
