//! A program that runs under callgrind, and its counters.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::time::Instant;

pub(super) struct Callgrind {
    file: PathBuf,
    pid: u32,
    /// Each reading is a file of its own, numbered from 1.
    readings: u32,
    since: Instant,
}

/// Instructions between two readings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) instructions: u64,
    pub(super) took: Duration,
}

impl Callgrind {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, pid: 0, readings: 0, since: Instant::now() }
    }

    /// What runs the program.
    pub(super) fn command(&self) -> Vec<OsString> {
        let mut output = OsString::from("--callgrind-out-file=");
        output.push(&self.file);
        vec!["valgrind".into(), "--quiet".into(), "--tool=callgrind".into(), output]
    }

    /// Names the program's process, once it runs.
    pub(super) fn attach(&mut self, pid: u32) {
        self.pid = pid;
    }

    pub(super) async fn zero(&mut self) -> Result<()> {
        self.tell("zero").await
    }

    /// What was executed since the last reading.
    pub(super) async fn read(&mut self) -> Result<Counted> {
        let took = self.since.elapsed();
        self.tell("dump").await?;
        self.readings += 1;
        let file = self.file.with_added_extension(self.readings.to_string());
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let instructions = total(&text).with_context(|| format!("{} names no total", file.display()))?;
        Ok(Counted { instructions, took })
    }

    /// vgdb comes with valgrind; it is heard even while the program waits in the kernel.
    async fn tell(&mut self, command: &str) -> Result<()> {
        let pid = format!("--pid={}", self.pid);
        let output = Command::new("vgdb").args([&pid, command]).output().await.context("vgdb")?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "vgdb {pid} {command}: {words}");
        self.since = Instant::now();
        Ok(())
    }
}

/// The sum at the file's end.
fn total(text: &str) -> Option<u64> {
    let mut lines = text.lines().rev();
    lines.find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_stands_at_the_end() {
        assert_eq!(total("version: 1\nsummary: 12\n\nfn=(1)\n1 2\n\ntotals: 34\n"), Some(34));
        assert_eq!(total("version: 1\nsummary: 12\n"), Some(12));
        assert_eq!(total("version: 1\n"), None);
    }
}
