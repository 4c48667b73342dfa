use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::gateway::start_and_wait;
use crate::process::Running;
use crate::{Request, eventually};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");

/// A customer's receiver of webhooks, which verifies them by Stripe's own library.
#[derive(Debug)]
pub struct Receiver {
    _running: Running,
    doors: Doors,
    directory: TempDir,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Doors {
    http: SocketAddr,
    https: SocketAddr,
}

/// A request that came in.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Received {
    pub path: String,
    pub method: String,
    pub content_type: Option<String>,
    /// How many its header has.
    pub signatures: u32,
    /// What Stripe's library made of it.
    pub event: Option<Value>,
    /// What it found to be wrong with it.
    pub fault: Option<String>,
}

impl Received {
    /// A field of the event; null where it was not verified.
    #[must_use]
    pub fn field(&self, name: &str) -> &Value {
        self.event.as_ref().map_or(&Value::Null, |event| &event[name])
    }
}

impl Receiver {
    /// # Errors
    ///
    /// It did not start.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()])?;
        let files = [directory.path().join("cert.pem"), directory.path().join("key.pem")];
        fs::write(&files[0], cert.pem())?;
        fs::write(&files[1], signing_key.serialize_pem())?;
        let mut command = Command::new("node");
        command.arg(Path::new(CLIENTS).join("receiver.mjs")).args(&files).current_dir(directory.path());
        let (running, doors) = start_and_wait(&mut command, directory.path()).await?;
        Ok(Self { _running: running, doors, directory })
    }

    /// The URL of one of its paths, which begins with a slash.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.doors.http)
    }

    /// The same with TLS, with [`Receiver::certificate`].
    #[must_use]
    pub fn secure_url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.doors.https.port())
    }

    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    /// The secret that requests to `path` are verified with.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn trust(&self, path: &str, secret: &str) -> Result<()> {
        self.control(json!({ "path": path, "secret": secret })).await
    }

    /// How the next requests to `path` are answered, each a status, `"hang"`, or where it is redirected to. The last
    /// one stays.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn answer(&self, path: &str, answers: Value) -> Result<()> {
        self.control(json!({ "path": path, "answers": answers })).await
    }

    async fn control(&self, settings: Value) -> Result<()> {
        let answer = Request::post("/control").json(&settings).send(self.doors.http).await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }

    /// What came to `path`, in order.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn received(&self, path: &str) -> Result<Vec<Received>> {
        let all = Request::get("/received").send(self.doors.http).await?.json().await?;
        let mut all: Vec<Received> = serde_json::from_value(all)?;
        all.retain(|received| received.path == path);
        Ok(all)
    }

    /// Waits until so many have come to `path`.
    ///
    /// # Errors
    ///
    /// They did not come.
    pub async fn wait_for(&self, path: &str, count: usize) -> Result<Vec<Received>> {
        let mut received = Vec::new();
        eventually(&format!("{count} requests came to {path}"), async || {
            received = self.received(path).await?;
            Ok(received.len() >= count)
        })
        .await?;
        Ok(received)
    }
}
