use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;

use crate::eventually;
use crate::process::Running;

/// A Redis of one's own, behind a socket, that keeps all that it has answered.
#[derive(Debug)]
pub struct Redis {
    running: Running,
    directory: TempDir,
    settings: Vec<String>,
}

impl Redis {
    /// # Errors
    ///
    /// It did not start.
    pub async fn start() -> Result<Self> {
        Self::in_directory(tempfile::tempdir()?, Vec::new()).await
    }

    /// Another one with what a snapshot has, as the README has it: the append-only file is begun after that was read.
    ///
    /// # Errors
    ///
    /// It did not start.
    pub async fn restore(snapshot: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::copy(snapshot, directory.path().join("dump.rdb"))?;
        let server = Self::in_directory(directory, ["--appendonly", "no"].map(str::to_owned).into()).await?;
        server.ask(&["CONFIG", "SET", "appendonly", "yes"])?;
        Ok(server)
    }

    /// One that also takes TLS, at the port that is answered, with a certificate for 127.0.0.1.
    ///
    /// # Errors
    ///
    /// It did not start.
    pub async fn with_tls() -> Result<(Self, u16)> {
        let directory = tempfile::tempdir()?;
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        fs::write(directory.path().join("cert.pem"), cert.pem())?;
        fs::write(directory.path().join("key.pem"), signing_key.serialize_pem())?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let number = port.to_string();
        let files = ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-auth-clients", "no"];
        let settings = files.into_iter().chain(["--bind", "127.0.0.1", "--tls-port", &number]);
        let settings = settings.map(str::to_owned).collect();
        Ok((Self::in_directory(directory, settings).await?, port))
    }

    async fn in_directory(directory: TempDir, settings: Vec<String>) -> Result<Self> {
        let running = run(&directory, &settings)?;
        let server = Self { running, directory, settings };
        server.answers().await?;
        Ok(server)
    }

    /// What clients trust its certificate by.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    /// Kills it, without a chance to write down what it has in memory alone.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn kill(&mut self) -> Result<()> {
        self.running.kill()
    }

    /// Starts it again with what it has written, after [`Redis::kill`].
    ///
    /// # Errors
    ///
    /// It did not start.
    pub async fn start_again(&mut self) -> Result<()> {
        self.running = run(&self.directory, &self.settings)?;
        self.answers().await
    }

    async fn answers(&self) -> Result<()> {
        eventually("Redis answers", async || Ok(self.ask(&["PING"])?.trim() == "PONG")).await
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

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        // Long paths do not fit into a socket's address; this one is found from anywhere.
        let path = self.directory.path().join("redis.sock");
        fs::canonicalize(&path).unwrap_or(path)
    }
}

fn run(directory: &TempDir, settings: &[String]) -> Result<Running> {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", "0", "--unixsocket", "redis.sock", "--save", ""])
        .args(["--appendonly", "yes", "--appendfsync", "always"])
        .args(settings)
        .current_dir(directory.path());
    Running::start(&mut command, &directory.path().join("redis.log"))
}
