//! The processes of a comparison, and the directory that they live in: both are gone when the stage is dropped.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Also for a program that valgrind runs.
const READY_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time to end in an orderly way; nothing here has work that would be lost.
const END_WITHIN: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Of a log, where something went wrong.
const LOG_LINES: usize = 10;

pub(crate) struct Stage {
    directory: TempDir,
    children: Vec<Process>,
    /// A program and its arguments that the proxies are run by: valgrind, or nothing.
    runner: Vec<OsString>,
}

/// A program that was started here, with the processes that it starts itself.
struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        Self::with_runner(Vec::new())
    }

    /// Has each proxy run by another program.
    pub(crate) fn with_runner(runner: Vec<OsString>) -> Result<Self> {
        Ok(Self { directory: tempfile::tempdir()?, children: Vec::new(), runner })
    }

    pub(crate) fn has_runner(&self) -> bool {
        !self.runner.is_empty()
    }

    /// A proxy's program, by way of what runs it.
    pub(crate) fn proxy(&self, program: impl AsRef<OsStr>) -> Command {
        let program = program.as_ref();
        let mut words = self.runner.iter().map(OsString::as_os_str).chain([program]);
        let mut command = Command::new(words.next().unwrap_or(program));
        command.args(words);
        command
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content)?;
        Ok(path)
    }

    /// Makes a certificate for 127.0.0.1; `cert.pem`, `key.pem`, and both in `both.pem`.
    pub(crate) fn write_certificate(&self) -> Result<()> {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names)?;
        let (cert, key) = (cert.pem(), signing_key.serialize_pem());
        self.write("both.pem", &format!("{cert}{key}"))?;
        self.write("cert.pem", &cert)?;
        self.write("key.pem", &key)?;
        Ok(())
    }

    /// The same one as there.
    pub(crate) fn copy_certificate(&self, other: &Stage) -> Result<()> {
        for name in ["both.pem", "cert.pem", "key.pem"] {
            fs::copy(other.path(name), self.path(name))?;
        }
        Ok(())
    }

    /// Starts a program in a process group of its own, its output in a log; returns its process id.
    pub(crate) fn start(&mut self, name: &'static str, command: &mut Command) -> Result<u32> {
        let log = self.path(&format!("{name}.log"));
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        let pid = child.id();
        self.children.push(Process { name, child, log });
        Ok(pid)
    }

    /// Waits for a file that the program writes once it serves.
    pub(crate) async fn file(&mut self, name: &str) -> Result<String> {
        let path = self.path(name);
        self.ready(async || match fs::read_to_string(&path) {
            Ok(text) if !text.is_empty() => Some(text),
            _ => None,
        })
        .await
    }

    /// Waits until somebody accepts there.
    pub(crate) async fn accepts(&mut self, address: SocketAddr) -> Result<()> {
        self.ready(async || TcpStream::connect(address).await.ok().map(drop)).await
    }

    /// Asks until there is an answer, as long as the program that was started last lives.
    pub(crate) async fn ready<T>(&mut self, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return Ok(answer);
            }
            let Some(process) = self.children.last_mut() else { bail!("nothing was started") };
            if let Some(status) = process.child.try_wait()? {
                bail!("{} ended before it was ready, {status}: {}", process.name, process.log_end());
            }
            let late = begun.elapsed() > READY_WITHIN;
            ensure!(!late, "{} was not ready within {READY_WITHIN:?}: {}", process.name, process.log_end());
            sleep(LOOK_EVERY).await;
        }
    }

    /// What the programs said last, for somebody who looks for the cause of a failure.
    pub(crate) fn logs(&self) -> String {
        let logs = self.children.iter().map(|process| format!("{}: {}", process.name, process.log_end()));
        logs.collect::<Vec<_>>().join("\n\n")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Proxies before the browser that they stand in front of.
        while let Some(process) = self.children.pop() {
            process.end();
        }
    }
}

impl Process {
    fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn end(mut self) {
        let group = Pid::from_child(&self.child);
        let begun = Instant::now();
        let mut asked = None;
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < END_WITHIN {
            // More than once: nginx goes to sleep on a signal that comes right before it waits for events.
            if asked.is_none_or(|asked: Instant| asked.elapsed() > ASK_EVERY) {
                // A group that is gone needs no signal.
                let _ = kill_process_group(group, Signal::TERM);
                asked = Some(Instant::now());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago, for programs that cannot be told to take one themselves.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// The first line that `program` prints about itself, on either output.
pub(crate) fn version(program: impl AsRef<Path>, flag: &str) -> Result<String> {
    let output = Command::new(program.as_ref()).arg(flag).output()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(text.lines().next().context("it printed nothing")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_started_ends_with_the_stage() {
        let mut stage = Stage::new().unwrap();
        let directory = stage.path("");
        // A shell that waits for a child of its own: both have to end.
        let ready = stage.path("ready");
        let script = "sleep 1000 & echo $! > unfinished && mv unfinished ready && wait";
        stage.start("shell", Command::new("sh").args(["-c", script]).current_dir(&directory)).unwrap();
        let child: u32 = stage.file("ready").await.unwrap().trim().parse().unwrap();
        assert!(ready.exists() && Path::new(&format!("/proc/{child}")).exists());
        drop(stage);
        assert!(!directory.exists());
        let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // Its parent is gone: it waits for init to take notice at most.
        assert!(state.is_empty() || state.contains(") Z"), "{state}");
    }

    #[tokio::test]
    async fn a_program_that_ends_too_early_is_told_with_its_last_words() {
        let mut stage = Stage::new().unwrap();
        stage.start("shell", Command::new("sh").args(["-c", "echo no such thing; exit 3"])).unwrap();
        let error = stage.file("ready").await.unwrap_err().to_string();
        assert!(error.contains("shell ended before") && error.contains("no such thing"), "{error}");
    }
}
