//! Processes: our own children, and what `/proc` tells of others.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process};

use crate::eventually;

/// A process, perhaps not a child of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pid(rustix::process::Pid);

impl Pid {
    /// # Errors
    ///
    /// Zero and negative numbers are no processes.
    pub fn new(number: i64) -> Result<Self> {
        let number = i32::try_from(number)?;
        rustix::process::Pid::from_raw(number).map(Self).context("no process has the number 0")
    }

    /// The processes that run in `directory` or name it in their command line, except those that have ended already
    /// and wait for their parent.
    ///
    /// # Errors
    ///
    /// `/proc` could not be listed.
    pub fn all_of(directory: &Path) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let process = entry?;
            let number = process.file_name().to_str().and_then(|name| name.parse().ok());
            // A process that ends while it is looked at does not count either.
            if let Some(number) = number
                && belongs_to(&process.path(), directory).unwrap_or(false)
            {
                found.push(Self::new(number)?);
            }
        }
        Ok(found)
    }

    /// Kills [`Pid::all_of`] `directory`, for the end of a test, where a failure helps nobody.
    pub fn kill_all_of(directory: &Path) {
        for process in Self::all_of(directory).unwrap_or_default() {
            // One that could not be killed had ended.
            let _ = process.kill();
        }
    }

    /// # Errors
    ///
    /// There is no such process any more.
    pub fn signal(self, signal: Signal) -> Result<()> {
        kill_process(self.0, signal).with_context(|| format!("signal {signal:?} to {}", self.0))
    }

    /// # Errors
    ///
    /// There is no such process any more.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// Waits until it has ended; at once where it had already. Nobody but its parent is told, so this asks again and
    /// again.
    ///
    /// # Errors
    ///
    /// It did not end.
    pub async fn ended(self) -> Result<()> {
        eventually("the process has ended", async || Ok(!runs(&self.file("")).unwrap_or(false))).await
    }

    /// The value of `--name=value` in its command line.
    ///
    /// # Errors
    ///
    /// There is no such process any more, or it was started without this option.
    pub fn option(self, name: &str) -> Result<String> {
        let words = String::from_utf8(fs::read(self.file("cmdline"))?)?;
        // Chromium rewrites its command line, with spaces between the words.
        let value = words.split(['\0', ' ']).find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.map(str::to_owned).with_context(|| format!("no {name}: {words}"))
    }

    /// Forgets the most memory that it ever used, so that [`Pid::most_memory`] tells of what comes now.
    ///
    /// # Errors
    ///
    /// There is no such process any more.
    pub fn forget_most_memory(self) -> Result<()> {
        /// `man 5 proc_pid_clear_refs`: resets the high water mark of the resident set.
        const RESET_PEAK: &str = "5";
        Ok(fs::write(self.file("clear_refs"), RESET_PEAK)?)
    }

    /// The most memory that was resident, in bytes.
    ///
    /// # Errors
    ///
    /// There is no such process any more.
    pub fn most_memory(self) -> Result<u64> {
        let status = fs::read_to_string(self.file("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024)
    }

    /// The memory that is its own and backed by no file, its heap above all, in bytes.
    ///
    /// # Errors
    ///
    /// There is no such process any more.
    pub fn anonymous_memory(self) -> Result<u64> {
        let rollup = fs::read_to_string(self.file("smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).context("no Anonymous")?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024)
    }

    fn file(self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.0.to_string()).join(name)
    }
}

fn belongs_to(process: &Path, directory: &Path) -> io::Result<bool> {
    let words = String::from_utf8_lossy(&fs::read(process.join("cmdline"))?).into_owned();
    let named = words.contains(&*directory.to_string_lossy());
    Ok(runs(process)? && (named || fs::read_link(process.join("cwd"))?.starts_with(directory)))
}

/// Whether it does more than wait for its parent to take notice of its end.
fn runs(process: &Path) -> io::Result<bool> {
    let stat = fs::read_to_string(process.join("stat"))?;
    // The name, in parentheses, may hold anything; what follows it is the state.
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    Ok(!state.starts_with(['Z', 'X']))
}

/// A child of ours, whose output goes to a file. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: std::process::Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command`; what it prints is added to the file `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let output: File = OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child =
            command.spawn().with_context(|| format!("{command:?}: built by `cargo build --bins`?"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// # Errors
    ///
    /// Never, in practice: a child that was not waited for keeps its number.
    pub fn pid(&self) -> Result<Pid> {
        Pid::new(i64::from(self.child.id()))
    }

    /// Waits for its end; none where a signal ended it.
    ///
    /// # Errors
    ///
    /// It goes on.
    pub async fn end(&mut self) -> Result<Option<i32>> {
        eventually("the process has ended", async || self.has_ended()).await?;
        self.exit_code()
    }

    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// The code that it has exited with, once it has.
    pub(crate) fn exit_code(&mut self) -> Result<Option<i32>> {
        Ok(self.child.try_wait()?.and_then(|status| status.code()))
    }

    /// All that it has printed so far.
    ///
    /// # Errors
    ///
    /// The file is gone.
    pub fn output(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())
    }

    /// Kills it, without a chance to tidy up.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A child that could not be killed had ended.
        let _ = self.kill();
    }
}
