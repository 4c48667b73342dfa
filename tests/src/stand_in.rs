use std::net::SocketAddr;

use anyhow::Result;
use serde_json::Value;
use tempfile::TempDir;

use crate::gateway::{program, start_and_wait};
use crate::process::Running;

/// A program that answers CDP commands as a browser would, to many connections at once.
#[derive(Debug)]
pub struct StandIn {
    _running: Running,
    address: SocketAddr,
    _directory: TempDir,
}

impl StandIn {
    /// # Errors
    ///
    /// It did not start.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = program("ufbrowsers-bench")?;
        command.args(["fake", "--listen", "127.0.0.1:0"]).current_dir(directory.path());
        let (running, ready): (_, Value) = start_and_wait(&mut command, directory.path()).await?;
        let address = serde_json::from_value(ready["http"].clone())?;
        Ok(Self { _running: running, address, _directory: directory })
    }

    /// Its endpoint, for `pool.fixed.endpoints`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}
