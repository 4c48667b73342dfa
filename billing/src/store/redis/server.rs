//! Real servers for tests: each in a folder of its own, behind a socket or on a free port.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::store::StoreUrl;

/// Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    folder: TempDir,
    settings: Vec<String>,
    /// 0: only the socket.
    port: u16,
    process: Child,
}

impl Server {
    /// One behind a socket that keeps what it wrote.
    pub(crate) fn start() -> Server {
        Server::on(0, &["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// One with further settings, on a free port.
    pub(crate) fn with(settings: &[&str]) -> Server {
        Server::on(free_port(), settings)
    }

    fn on(port: u16, settings: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let process = start(&folder, port, &settings);
        Server { folder, settings, port, process }
    }

    /// Three that share the slots of a Cluster.
    pub(crate) fn cluster() -> Vec<Server> {
        Server::cluster_of(3, "0")
    }

    /// The same, each with a replica.
    pub(crate) fn cluster_with_replicas() -> Vec<Server> {
        Server::cluster_of(6, "1")
    }

    fn cluster_of(nodes: usize, replicas: &str) -> Vec<Server> {
        let node = |_| {
            let bus = free_port().to_string();
            let timeout = ["--cluster-node-timeout", "1000"];
            Server::with(&[&["--cluster-enabled", "yes", "--cluster-port", &bus], &timeout[..]].concat())
        };
        let nodes: Vec<_> = (0..nodes).map(node).collect();
        let addresses: Vec<_> = nodes.iter().map(Server::address).collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.extend(["--cluster-replicas", replicas, "--cluster-yes"]);
        nodes[0].ask(&create);
        nodes.iter().for_each(Server::wait_for_its_cluster);
        nodes
    }

    /// Which of a Cluster's nodes has a key.
    pub(crate) fn with_key(nodes: &[Server], key: &str) -> usize {
        let slot: u16 = nodes[0].ask(&["CLUSTER", "KEYSLOT", key]).parse().unwrap();
        let has_slot = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse().unwrap()..=last.parse().unwrap()).contains(&slot)
        };
        let known = nodes[0].ask(&["CLUSTER", "NODES"]);
        let owner = known.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let owner = owner.into_iter().find(|words| words[8..].iter().any(|range| has_slot(range))).unwrap();
        nodes.iter().position(|node| owner[1].starts_with(&format!("{}@", node.address()))).unwrap()
    }

    /// A node turns its part of a new Cluster away until it has been up for two seconds and knows who has the rest. Each
    /// finds that out by itself, and nobody tells when.
    fn wait_for_its_cluster(&self) {
        const ATTEMPTS: u32 = 1_000;
        for _ in 0..ATTEMPTS {
            if self.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the node {} takes no part in its Cluster", self.address());
    }

    /// Watches over `master`, and makes a replica its successor when it is told to.
    pub(crate) fn sentinel(master: &Server) -> Server {
        let monitor = format!(
            "sentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500",
            master.port
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("sentinel.conf"), monitor + "\n").unwrap();
        let port = free_port();
        let settings = vec!["sentinel.conf".to_owned(), "--sentinel".to_owned()];
        let process = start(&folder, port, &settings);
        Server { folder, settings, port, process }
    }

    pub(crate) fn url(&self) -> StoreUrl {
        format!("redis+unix:{}", self.socket().display()).parse().unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it keeps what it writes.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// Asks it for something from outside of the store. The answer is what `redis-cli` prints.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        match self.port {
            0 => command.arg("-s").arg(self.socket()),
            port => command.arg("-p").arg(port.to_string()),
        };
        let asked = command.args(words).output().unwrap();
        let answer = String::from_utf8(asked.stdout).unwrap();
        assert!(asked.status.success(), "{words:?}: {answer}");
        answer.trim_end().to_owned()
    }

    /// Kills it without a chance to save anything.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it on what it has written.
    pub(crate) fn start_again(&mut self) {
        self.process = start(&self.folder, self.port, &self.settings);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns when it accepts connections.
fn start(folder: &TempDir, port: u16, settings: &[String]) -> Child {
    let mut process = Command::new("redis-server")
        .args(settings)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--unixsocket", "redis.sock"])
        .args(["--save", "", "--loglevel", "notice"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed (tests/run installs it)");
    let mut log = BufReader::new(process.stdout.take().expect("it is piped")).lines();
    let is_ready = |line: &str| line.contains("eady to accept connections") || line.contains("Sentinel ID");
    assert!(log.any(|line| line.is_ok_and(|line| is_ready(&line))), "it did not start");
    // It must not wait for somebody who reads what it prints from here on.
    std::thread::spawn(move || log.for_each(drop));
    process
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that could not be killed had ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for what another process does and tells nobody of.
pub(crate) async fn eventually<T, E: std::fmt::Debug>(mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    const ATTEMPTS: u32 = 1_000;
    for _ in 0..ATTEMPTS {
        if let Ok(done) = attempt().await {
            return done;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    attempt().await.unwrap()
}
