//! What a measurement shows, and the three ways of showing it: Markdown tables, one JSON document, a plot.

mod method;
mod plot;
mod rows;
mod table;
mod times;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub(crate) use method::Method;
pub(crate) use plot::{Curve, draw};
pub(crate) use rows::{Measured, Row, baseline, rows, write_rows};
pub(crate) use table::{number, write_table};
pub(crate) use times::{Figures, Times};

/// What was measured. It prints as Markdown.
pub(crate) trait Report: Serialize + fmt::Display {
    /// What `--plot` draws.
    fn curves(&self) -> Vec<Curve<'_>>;

    /// How many sessions or steps failed; each of them is named in the report.
    fn failed(&self) -> u64 {
        0
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
    pub(crate) fn show(&self, report: &impl Report) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, report)?;
            writeln!(out)?;
        } else {
            write!(out, "{report}")?;
        }
        match &self.plot {
            Some(file) => draw(&report.curves(), file).with_context(|| format!("--plot {}", file.display())),
            None => Ok(()),
        }
    }
}

/// The targets of one round, each once. No target is always first.
pub(crate) fn turns(round: usize, targets: usize) -> impl Iterator<Item = usize> {
    (0..targets).map(move |turn| (round + turn) % targets)
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
    fn every_target_has_one_turn_in_a_round_and_is_first_as_often_as_another() {
        let rounds: Vec<Vec<usize>> = (0..3).map(|round| turns(round, 3).collect()).collect();
        assert_eq!(rounds, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
    }
}
