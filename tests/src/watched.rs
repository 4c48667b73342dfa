use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use tempfile::TempDir;

use crate::eventually;
use crate::process::Running;

/// How soon Sentinel takes a master for dead, in milliseconds.
const DEAD_AFTER: &str = "500";

/// How long it tries to make a replica the master, in milliseconds; after twice that it tries again, by itself after six minutes.
const TRIED_FOR: &str = "2000";

/// After so long it is told to.
const PATIENCE: Duration = Duration::from_secs(3);

/// A Redis with a replica and a Sentinel, which makes that the master when the first one is lost.
#[derive(Debug)]
pub struct WatchedRedis {
    master: Node,
    replica: Node,
    sentinel: Node,
    _directory: TempDir,
}

#[derive(Debug)]
struct Node {
    running: Running,
    port: u16,
}

impl WatchedRedis {
    /// Returns when the replica follows, and Sentinel knows of it.
    ///
    /// # Errors
    ///
    /// One of them did not start.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let master = Node::start(directory.path(), "master", &["--appendonly", "yes", "--save", ""])?;
        let port = master.port.to_string();
        let follow = ["--replicaof", "127.0.0.1", &port, "--appendonly", "yes", "--save", ""];
        let replica = Node::start(directory.path(), "replica", &follow)?;
        let settings = format!(
            "sentinel monitor main 127.0.0.1 {port} 1\nsentinel down-after-milliseconds main {DEAD_AFTER}\n\
             sentinel failover-timeout main {TRIED_FOR}\n"
        );
        fs::write(directory.path().join("sentinel.conf"), settings)?;
        let file = directory.path().join("sentinel.conf");
        let file = file.to_string_lossy();
        let sentinel = Node::start(directory.path(), "sentinel", &[file.as_ref(), "--sentinel"])?;
        let redis = Self { master, replica, sentinel, _directory: directory };
        eventually("the replica follows, and Sentinel knows it", async || {
            let known = redis.sentinel.ask(&["SENTINEL", "REPLICAS", "main"])?;
            let follows = redis.replica.ask(&["ROLE"])?.contains("connected");
            Ok(follows && known.contains(&redis.replica.port.to_string()))
        })
        .await?;
        Ok(redis)
    }

    /// For `store.url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/main", self.sentinel.port)
    }

    /// Waits until the replica has all that was written.
    ///
    /// # Errors
    ///
    /// It does not come by it.
    pub async fn replicated(&self) -> Result<()> {
        eventually("the replica has caught up", async || {
            let offset = |answer: String| answer.lines().nth(1).map(str::to_owned);
            let master = offset(self.master.ask(&["ROLE"])?);
            // A replica's own is the last line.
            Ok(master.is_some() && master.as_deref() == self.replica.ask(&["ROLE"])?.lines().last())
        })
        .await
    }

    /// Kills the master.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn kill_master(&mut self) -> Result<()> {
        self.master.running.kill()
    }

    /// From here on the replica hears of no write. Sentinel would mend that within some seconds, so the master must not live
    /// for long.
    ///
    /// # Errors
    ///
    /// It could not be told.
    pub fn deafen_replica(&self) -> Result<()> {
        // Nobody listens there.
        self.replica.ask(&["REPLICAOF", "127.0.0.1", "1"]).map(drop)
    }

    /// Waits until the replica is the master. Sentinel finds none that is good enough where it has asked it at the moment when it
    /// followed nobody, and then does nothing for a while; so it is told to look again.
    ///
    /// # Errors
    ///
    /// It does not become it.
    pub async fn promoted(&self) -> Result<()> {
        let killed = Instant::now();
        eventually("the replica is the master", async || {
            let is_master = self.replica.ask(&["ROLE"])?.starts_with("master");
            if !is_master && killed.elapsed() > PATIENCE {
                // It says no while it is at it.
                let _ = self.sentinel.ask(&["SENTINEL", "FAILOVER", "main"]);
            }
            Ok(is_master)
        })
        .await
    }
}

impl Node {
    fn start(directory: &Path, name: &str, arguments: &[&str]) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder = directory.join(name);
        fs::create_dir_all(&folder)?;
        let mut command = Command::new("redis-server");
        command.args(arguments).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        let running = Running::start(command.current_dir(&folder), &directory.join(format!("{name}.log")))?;
        Ok(Self { running, port })
    }

    /// What `redis-cli` prints; nothing where it does not answer.
    fn ask(&self, words: &[&str]) -> Result<String> {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(words).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }
}
