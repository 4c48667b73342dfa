//! Browsers as child processes: each with a profile directory and a process group of its own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{Browser, Hand, ProviderError, Verdict};
use crate::lease::Endpoint;

/// What Chrome says on its standard error once it serves.
const LISTENING: &str = "DevTools listening on ws://";

const DATA_DIR: &str = "--user-data-dir=";

/// Headless, quiet on the network, no questions; every one of them seen to matter for start time or silence.
const FLAGS: [&str; 13] = [
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-breakpad",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
];

/// Chrome's helpers may still write into the profile for a moment after the browser has ended.
const REMOVAL_ATTEMPTS: u32 = 10;
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone)]
pub(crate) struct Processes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    binary: PathBuf,
    directory: PathBuf,
    started: AtomicU64,
}

impl Processes {
    pub(super) fn open(binary: PathBuf, directory: &Path) -> Result<Self, ProviderError> {
        let directory = prepare(directory)
            .map_err(|source| ProviderError::Directory { path: directory.to_owned(), source })?;
        Ok(Self { shared: Arc::new(Shared { binary, directory, started: AtomicU64::new(0) }) })
    }

    pub(super) async fn start(&self) -> Result<Browser, ProviderError> {
        let number = self.shared.started.fetch_add(1, Ordering::Relaxed);
        let profile = self.shared.directory.join(number.to_string());
        fs::create_dir(&profile)
            .map_err(|source| ProviderError::Directory { path: profile.clone(), source })?;
        let (group, exit, mut words) = self.spawn(profile)?;
        // Until the browser serves it is nobody's; a start that is given up must not leave it running.
        let guard = Guard(Some(group));
        let endpoint = listening(&mut words).await?;
        tokio::spawn(listen_on(words));
        Ok(Browser::new(endpoint, exit, Hand::Process(guard.disarm())))
    }

    #[expect(clippy::type_complexity, reason = "the three handles of one child")]
    fn spawn(
        &self,
        profile: PathBuf,
    ) -> Result<(Group, watch::Receiver<Option<Verdict>>, Lines<BufReader<ChildStderr>>), ProviderError> {
        let binary = &self.shared.binary;
        let failed = |source| ProviderError::Spawn { binary: binary.clone(), source };
        let mut child = command(binary, &profile).spawn().map_err(failed)?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let words = child.stderr.take().expect("stderr was piped");
        let group = Group { pid: pid.expect("nobody has waited for the child"), ended: Arc::default() };
        let (verdict, exit) = watch::channel(None);
        tokio::spawn(watch_over(child, group.clone(), profile, verdict));
        Ok((group, exit, BufReader::new(words).lines()))
    }
}

fn command(binary: &Path, profile: &Path) -> Command {
    let mut data_dir = OsString::from(DATA_DIR);
    data_dir.push(profile);
    let mut command = Command::new(binary);
    command.args(FLAGS).arg(data_dir).arg("about:blank");
    if geteuid().is_root() {
        // Chrome refuses to run as root with its sandbox.
        command.arg("--no-sandbox");
    }
    // The gateway's environment holds its secrets; a browser gets none of it. What a page downloads or a helper drops
    // lands in the profile and goes with it.
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .env("DBUS_SESSION_BUS_ADDRESS", "disabled:")
        .env("HOME", profile)
        .env("TMPDIR", profile)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

/// A browser's process group. The browser leads it, so the group's id is the browser's.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pid: Pid,
    /// Set once the browser was waited for: its number may then belong to somebody else.
    ended: Arc<AtomicBool>,
}

impl Group {
    pub(super) fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if !self.ended.load(Ordering::Acquire) {
            // It may have ended this moment; then there is nobody to signal.
            let _ = kill_process_group(self.pid, signal);
        }
    }
}

/// Kills the group unless it is disarmed.
struct Guard(Option<Group>);

impl Guard {
    fn disarm(mut self) -> Group {
        self.0.take().expect("disarmed once, by value")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(group) = &self.0 {
            group.kill();
        }
    }
}

/// Waits for the browser's end, tells how it was, and removes what it leaves: helpers of its group and its profile.
async fn watch_over(
    mut child: Child,
    group: Group,
    profile: PathBuf,
    verdict: watch::Sender<Option<Verdict>>,
) {
    let status = child.wait().await;
    // The group lives on as long as a helper does. Between the wait and this line its number could only be taken anew if
    // no helper was left and the kernel's numbers wrapped around in these microseconds.
    group.kill();
    group.ended.store(true, Ordering::Release);
    debug!(?status, "a browser ended");
    let clean = status.is_ok_and(|status| status.code() == Some(0));
    verdict.send_replace(Some(if clean { Verdict::Clean } else { Verdict::Crashed }));
    remove_profile(profile).await;
}

/// Reads the browser's standard error up to the line that says where it serves.
async fn listening(words: &mut Lines<BufReader<ChildStderr>>) -> Result<Endpoint, ProviderError> {
    let mut last = String::new();
    while let Ok(Some(line)) = words.next_line().await {
        let Some(url) = line.strip_prefix(LISTENING) else {
            last = line;
            continue;
        };
        let (address, path) = url.split_once('/').ok_or_else(|| ProviderError::Ended(line.clone()))?;
        let address = address.parse().map_err(|_| ProviderError::Ended(line.clone()))?;
        return Ok(Endpoint { address, path: format!("/{path}") });
    }
    Err(ProviderError::Ended(last))
}

/// A browser that cannot write its standard error stops.
async fn listen_on(mut words: Lines<BufReader<ChildStderr>>) {
    while let Ok(Some(line)) = words.next_line().await {
        debug!(target: "pool::browser", "{line}");
    }
}

/// Kills the browsers whose profiles lie in `directory`, however deep, and removes it. For a directory that nobody uses any
/// more: what an earlier process left.
///
/// # Errors
///
/// The directory's name cannot be found out.
pub async fn remove_leftovers(directory: &Path) -> io::Result<()> {
    let directory = match directory.canonicalize() {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let stopped = kill_leftovers(&directory);
    if stopped > 0 {
        info!(browsers = stopped, "stopped browsers that an earlier process had left");
    }
    remove_profile(directory).await;
    Ok(())
}

/// Makes the directory and gives its absolute name, by which leftovers are recognized.
fn prepare(directory: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    directory.canonicalize()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// Kills the process group of every browser whose profile lies in `directory`. A killed gateway leaves no note that could
/// be trusted: the command lines of the processes are the truth.
fn kill_leftovers(directory: &Path) -> usize {
    let mut mark = DATA_DIR.as_bytes().to_vec();
    mark.extend_from_slice(directory.as_os_str().as_encoded_bytes());
    mark.push(b'/');
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|process| process.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw))
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| has(&line, &mark)))
        .filter(|pid| kill_process_group(*pid, Signal::KILL).is_ok())
        .count()
}

/// Chrome rewrites its command line when it names its processes, with spaces for the zeros between the words; so the mark
/// is looked for anywhere in it. It contains the directory's absolute name, which nobody else has.
fn has(line: &[u8], mark: &[u8]) -> bool {
    line.windows(mark.len()).any(|window| window == mark)
}

async fn remove_profile(profile: PathBuf) {
    for _ in 0..REMOVAL_ATTEMPTS {
        let path = profile.clone();
        let removed = spawn_blocking(move || fs::remove_dir_all(path)).await;
        match removed {
            Ok(Ok(())) => return,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return,
            Ok(Err(_)) | Err(_) => sleep(REMOVAL_PAUSE).await,
        }
    }
    warn!(profile = %profile.display(), "cannot remove a profile; it is tried again at the next start");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_known_by_its_command_line() {
        let mark = b"--user-data-dir=/data/browsers/";
        let lines: [(&[u8], bool); 4] = [
            (b"chrome\0--headless\0--user-data-dir=/data/browsers/7\0about:blank\0", true),
            (b"chrome --headless --user-data-dir=/data/browsers/7 about:blank", true),
            (b"chrome\0--user-data-dir=/other/browsers/7\0", false),
            (b"", false),
        ];
        for (line, ours) in lines {
            assert_eq!(has(line, mark), ours, "{}", String::from_utf8_lossy(line));
        }
    }
}
