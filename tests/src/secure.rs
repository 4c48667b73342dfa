use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;

use crate::eventually;
use crate::process::Running;

/// What all of them are started with: TLS alone, towards clients and among each other.
const TLS: [&str; 14] = [
    "--port",
    "0",
    "--tls-cert-file",
    "../cert.pem",
    "--tls-key-file",
    "../key.pem",
    "--tls-ca-cert-file",
    "../cert.pem",
    "--tls-auth-clients",
    "no",
    "--tls-replication",
    "yes",
    "--tls-cluster",
    "yes",
];

/// Several Redis servers that are reached by TLS alone, with a certificate for 127.0.0.1.
#[derive(Debug)]
pub struct SecureRedis {
    running: Vec<Running>,
    ports: Vec<u16>,
    directory: TempDir,
}

impl SecureRedis {
    /// Three nodes of a Cluster.
    ///
    /// # Errors
    ///
    /// One of them did not start.
    pub async fn cluster() -> Result<Self> {
        let mut redis = Self::none()?;
        for _ in 0..3 {
            let bus = free_port()?.to_string();
            redis.start(&["--cluster-enabled", "yes", "--cluster-port", &bus])?;
        }
        let nodes: Vec<_> = redis.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        for port in &redis.ports {
            eventually("a node answers", async || Ok(redis.ask(*port, &["PING"])? == "PONG")).await?;
        }
        let create = ["--cluster", "create"].into_iter().chain(nodes.iter().map(String::as_str));
        let made = redis.ask(redis.ports[0], &create.chain(["--cluster-yes"]).collect::<Vec<_>>())?;
        ensure!(made.contains("All 16384 slots covered"), "{made}");
        for port in &redis.ports {
            eventually("a node takes part in its Cluster", async || {
                Ok(redis.ask(*port, &["CLUSTER", "INFO"])?.contains("cluster_state:ok"))
            })
            .await?;
        }
        Ok(redis)
    }

    /// A server, and a Sentinel that names it `main`.
    ///
    /// # Errors
    ///
    /// One of them did not start.
    pub async fn watched() -> Result<Self> {
        let mut redis = Self::none()?;
        redis.start(&[])?;
        let settings = format!("sentinel monitor main 127.0.0.1 {} 1\n", redis.ports[0]);
        let file = redis.directory.path().join("sentinel.conf");
        fs::write(&file, settings)?;
        redis.start(&[&file.to_string_lossy(), "--sentinel"])?;
        eventually("the Sentinel knows the master", async || {
            let known = redis.ask(redis.ports[1], &["SENTINEL", "MASTER", "main"])?;
            Ok(known.contains("num-slaves") && !known.contains("s_down"))
        })
        .await?;
        Ok(redis)
    }

    fn none() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        fs::write(directory.path().join("cert.pem"), cert.pem())?;
        fs::write(directory.path().join("key.pem"), signing_key.serialize_pem())?;
        Ok(Self { running: Vec::new(), ports: Vec::new(), directory })
    }

    fn start(&mut self, settings: &[&str]) -> Result<()> {
        let port = free_port()?;
        let folder = self.directory.path().join(port.to_string());
        fs::create_dir_all(&folder)?;
        let log = folder.join("redis.log");
        let number = port.to_string();
        let mut command = Command::new("redis-server");
        command.args(settings).args(TLS).args(["--tls-port", &number, "--bind", "127.0.0.1"]);
        self.running.push(Running::start(command.current_dir(folder), &log)?);
        self.ports.push(port);
        Ok(())
    }

    /// Where its nodes, or its Sentinel, are.
    #[must_use]
    pub fn last_port(&self) -> u16 {
        self.ports.last().copied().unwrap_or_default()
    }

    /// What clients trust the certificate by.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    /// What `redis-cli` prints.
    fn ask(&self, port: u16, words: &[&str]) -> Result<String> {
        let certificate = self.certificate();
        let trust: [&Path; 1] = [&certificate];
        let output = Command::new("redis-cli")
            .args(["--tls", "-p", &port.to_string(), "--cacert"])
            .args(trust)
            .args(words)
            .output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
