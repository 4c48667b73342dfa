//! What a server's process uses, as `/proc` tells it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::target::Mistakes;

/// The processes that serve a target, where its memory or its CPU time is wanted.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct PidArgs {
    /// The processes of a target's server, to read their memory and CPU time: nginx=4711,4712.
    #[arg(long = "pid", value_name = "NAME=PID[,PID]")]
    pub(crate) pids: Vec<String>,
}

/// One server's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    target: String,
    pids: Vec<u32>,
}

/// What they used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    /// The proportional set size: memory that is shared with other processes counts for a part.
    pub(crate) bytes: u64,
    pub(crate) cpu: Duration,
}

impl PidArgs {
    /// Checks them against the names of the targets.
    pub(crate) fn servers<'a>(&self, targets: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<Server>> {
        let parsed = self.pids.iter().map(|text| parse(text, targets.clone()));
        let (servers, mistakes): (Vec<_>, Vec<_>) = parsed.partition(Result::is_ok);
        let mistakes: Vec<String> = mistakes.into_iter().filter_map(Result::err).collect();
        if !mistakes.is_empty() {
            return Err(Mistakes::of(mistakes).into());
        }
        Ok(servers.into_iter().filter_map(Result::ok).collect())
    }
}

fn parse<'a>(text: &str, mut targets: impl Iterator<Item = &'a str>) -> Result<Server, String> {
    let expected = || format!("--pid {text}: expected NAME=PID, such as gateway=4711");
    let (target, pids) = text.split_once('=').ok_or_else(expected)?;
    let pids: Result<Vec<u32>, _> = pids.split(',').map(str::parse).collect();
    let pids = pids.map_err(|_| expected())?;
    if !targets.any(|name| name == target) {
        return Err(format!("--pid {text}: there is no target of that name"));
    }
    Ok(Server { target: target.to_owned(), pids })
}

/// What the target's server used so far; nothing where its processes were not named.
pub(crate) fn used(servers: &[Server], target: &str) -> Result<Option<Used>> {
    servers.iter().find(|server| server.target == target).map(Server::used).transpose()
}

impl Server {
    fn used(&self) -> Result<Used> {
        let mut used = Used { bytes: 0, cpu: Duration::ZERO };
        for &pid in &self.pids {
            let failed = || format!("--pid {}={pid}: does it run, and may you look at it?", self.target);
            used.bytes += memory(pid).with_context(failed)?;
            used.cpu += cpu(pid).with_context(failed)?;
        }
        Ok(used)
    }
}

fn memory(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    proportional_set(&rollup).context("/proc names no Pss")
}

/// Bytes, from `man 5 proc_pid_smaps`.
fn proportional_set(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Time on a CPU, of all threads that live. `schedstat` counts nanoseconds, `stat` only hundredths of seconds.
fn cpu(pid: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between its name and its figures.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
        total += Duration::from_nanos(nanos.context("/proc names no time in schedstat")?);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_named_by_their_target() {
        let targets = ["direct", "nginx"].into_iter();
        let args = PidArgs { pids: vec!["nginx=1,22".to_owned()] };
        let servers = args.servers(targets.clone()).unwrap();
        assert_eq!(servers, [Server { target: "nginx".to_owned(), pids: vec![1, 22] }]);
        for (wrong, expected) in [("nginx", "expected"), ("nginx=", "expected"), ("haproxy=1", "no target")] {
            let mistake = PidArgs { pids: vec![wrong.to_owned()] }.servers(targets.clone()).unwrap_err();
            assert!(mistake.is::<Mistakes>() && mistake.to_string().contains(expected), "{mistake}");
        }
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        let rollup = "00400000-7fff rollup\nRss:    9000 kB\nPss:            5000 kB\nPss_Anon: 1 kB\n";
        assert_eq!(proportional_set(rollup), Some(5000 * 1024));
        assert_eq!(proportional_set("Rss: 1 kB\n"), None);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let me = Server { target: "me".to_owned(), pids: vec![std::process::id()] };
        let used = used(&[me], "me").unwrap().unwrap();
        assert!(used.bytes > 0 && used.cpu > Duration::ZERO);
    }
}
