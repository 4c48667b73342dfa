//! What stands behind the proxies.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::stage::Stage;

/// See README: flags that the gateway's own provider sets as well, so far as they matter to a browser that serves.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
];

/// A browser that serves CDP.
pub(crate) struct Browser {
    pub(crate) address: SocketAddr,
    /// Of its own WebSocket.
    pub(crate) path: String,
}

impl Browser {
    pub(crate) async fn chromium(stage: &mut Stage, program: &Path) -> Result<Self> {
        let profile = stage.path("profile");
        let mut command = Command::new(program);
        command.args(FLAGS).arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
        stage.start("chromium", &mut command)?;
        let active = stage.path("profile/DevToolsActivePort");
        let (port, path) =
            stage.ready(async || parse_active_port(&std::fs::read_to_string(&active).ok()?)).await?;
        Ok(Self { address: (Ipv4Addr::LOCALHOST, port).into(), path })
    }

    pub(crate) async fn fake(stage: &mut Stage) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("fake").arg("--ready-file").arg(stage.path("fake.json"));
        stage.start("fake", &mut command)?;
        let ready: Value = serde_json::from_str(&stage.file("fake.json").await?)?;
        let address: SocketAddr = ready["http"].as_str().context("fake.json names no address")?.parse()?;
        Ok(Self { address, path: crate::fake::browser_path(address) })
    }
}

/// Chrome writes its port and the path of its socket, one a line, once it listens.
fn parse_active_port(text: &str) -> Option<(u16, String)> {
    let (port, path) = text.split_once('\n')?;
    let path = path.trim_end();
    path.starts_with("/devtools/browser/").then_some((port.parse().ok()?, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_file_that_is_half_written_is_not_read() {
        assert_eq!(
            parse_active_port("9222\n/devtools/browser/x"),
            Some((9222, "/devtools/browser/x".to_owned()))
        );
        for unfinished in ["", "92", "9222\n", "9222\n/devtools/bro"] {
            assert_eq!(parse_active_port(unfinished), None, "{unfinished:?}");
        }
    }
}
