//! The one place that prints. It writes to stdout by hand: `println!` panics when a pipe closes early, as `head` does.

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

use serde_json::Value;

use crate::config::Mistakes;

use super::EXIT_USAGE;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The command or a setting is wrong: the words say which and how to mend it.
    #[error("{0}")]
    Usage(String),
    /// The command was right and could not be done.
    #[error("{0}")]
    Failed(String),
    /// What is wrong was printed already, as the command's result; the code says so.
    #[error("exit code {0}")]
    Printed(u8),
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Self::Usage(format!("wrong settings:\n{mistakes}\nTry `ufbrowsers check` once they are mended."))
    }
}

impl Failure {
    /// Tells stderr, and gives the code to exit with. That stderr is closed is no reason for another code.
    pub(super) fn report(self) -> ExitCode {
        let code = match &self {
            Self::Printed(code) => return ExitCode::from(*code),
            Self::Output(error) if error.kind() == ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Usage(_) => ExitCode::from(EXIT_USAGE),
            Self::Failed(_) | Self::Output(_) => ExitCode::FAILURE,
        };
        let _ = writeln!(io::stderr(), "error: {self}");
        code
    }
}

/// Where a command's result goes, and in which form.
pub(super) struct Output<W: Write> {
    to: BufWriter<W>,
    json: bool,
}

impl<W: Write> Output<W> {
    pub(super) fn new(to: W, json: bool) -> Self {
        Self { to: BufWriter::new(to), json }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the one that was asked for.
    pub(super) fn print(&mut self, document: &Value, text: impl Display) -> io::Result<()> {
        if self.json { writeln!(self.to, "{document:#}") } else { writeln!(self.to, "{text}") }
    }

    /// A part of a result that is printed piece by piece.
    pub(super) fn write(&mut self, part: impl Display) -> io::Result<()> {
        write!(self.to, "{part}")
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Rows under a head, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<_> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let lines: Vec<_> = [line(head)]
        .into_iter()
        .chain(rows.iter().map(|row| line(row.each_ref().map(String::as_str))))
        .collect();
    lines.join("\n")
}
