use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use crate::eventually;
use crate::process::Running;

/// A Redis of one's own, behind a socket, that keeps what it wrote.
#[derive(Debug)]
pub struct Redis {
    _running: Running,
    directory: TempDir,
}

impl Redis {
    /// # Errors
    ///
    /// It did not start.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new("redis-server");
        command
            .args(["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "yes"])
            .current_dir(directory.path());
        let running = Running::start(&mut command, &directory.path().join("redis.log"))?;
        let server = Self { _running: running, directory };
        eventually("Redis answers", async || Ok(server.ask(&["PING"])?.trim() == "PONG")).await?;
        Ok(server)
    }

    /// For `store.url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+unix:{}", self.socket().display())
    }

    /// What `redis-cli` answers.
    ///
    /// # Errors
    ///
    /// It could not be run.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let output = Command::new("redis-cli").arg("-s").arg(self.socket()).args(words).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Long paths do not fit into a socket's address; this one is found from anywhere.
    fn socket(&self) -> PathBuf {
        let path = self.directory.path().join("redis.sock");
        fs::canonicalize(&path).unwrap_or(path)
    }
}
