//! What the browsers of a pool say about themselves over HTTP, for answers that take no browser from it.
//!
//! All browsers of a pool are of one kind, so any of them is asked, idle or not, and what it says is kept for a while.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::http;

/// Browsers that are remembered, the newest first: one of them lives, or none does.
const RECENT: usize = 8;
/// How long an answer is good for. The program may be replaced by a newer one while the gateway runs.
const FRESH: Duration = Duration::from_secs(60);
/// For each browser that is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// For a browser to come where none answers and nothing is known. One that is started takes less.
const COMING: Duration = Duration::from_secs(10);
/// For an answer in all, the wait for those who asked before included: all browsers that are remembered may hang.
const ANSWER: Duration = Duration::from_secs(20);
const VERSION_BYTES: u64 = 64 * 1024;
/// Chromium 156 has 1.6 MB.
const PROTOCOL_BYTES: u64 = 16 * 1024 * 1024;

/// What `/json/version` tells, without the URL of a socket.
pub type Version = Arc<Map<String, Value>>;

/// No browser has said anything about itself yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no browser answers")]
pub struct Unknown;

#[derive(Debug, Default)]
pub(crate) struct About {
    recent: Mutex<VecDeque<SocketAddr>>,
    noted: Notify,
    /// Whoever finds it stale asks; the others wait for that answer.
    said: tokio::sync::Mutex<Option<Said>>,
}

#[derive(Debug, Clone)]
struct Said {
    at: Instant,
    version: Version,
    /// Of the same version, once somebody wanted it.
    protocol: Option<Bytes>,
}

impl About {
    /// A browser serves there.
    pub(crate) fn note(&self, address: SocketAddr) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|known| *known != address);
        recent.push_front(address);
        recent.truncate(RECENT);
        drop(recent);
        self.noted.notify_waiters();
    }

    pub(crate) async fn version(&self) -> Result<Version, Unknown> {
        timeout(ANSWER, self.ask_version()).await.unwrap_or(Err(Unknown))
    }

    async fn ask_version(&self) -> Result<Version, Unknown> {
        let mut said = self.said.lock().await;
        self.refresh(&mut said).await?;
        said.as_ref().map(|said| Arc::clone(&said.version)).ok_or(Unknown)
    }

    pub(crate) async fn protocol(&self) -> Result<Bytes, Unknown> {
        timeout(ANSWER, self.ask_protocol()).await.unwrap_or(Err(Unknown))
    }

    async fn ask_protocol(&self) -> Result<Bytes, Unknown> {
        let mut said = self.said.lock().await;
        self.refresh(&mut said).await?;
        let said = said.as_mut().ok_or(Unknown)?;
        if let Some(protocol) = &said.protocol {
            return Ok(protocol.clone());
        }
        let protocol: Bytes = self.ask_or_wait("/json/protocol", PROTOCOL_BYTES).await?.into();
        said.protocol = Some(protocol.clone());
        Ok(protocol)
    }

    /// What is stale is better than nothing, and nobody asks in vain again soon.
    async fn refresh(&self, said: &mut Option<Said>) -> Result<(), Unknown> {
        if said.as_ref().is_some_and(|said| said.at.elapsed() < FRESH) {
            return Ok(());
        }
        let body = match (self.ask("/json/version", VERSION_BYTES).await, &mut *said) {
            (Some(body), _) => body,
            (None, Some(stale)) => {
                stale.at = Instant::now();
                return Ok(());
            }
            (None, None) => self.ask_or_wait("/json/version", VERSION_BYTES).await?,
        };
        let mut version: Map<_, _> = serde_json::from_slice(&body).map_err(|_| Unknown)?;
        version.remove("webSocketDebuggerUrl");
        let same = said.take().filter(|said| *said.version == version);
        let protocol = same.and_then(|said| said.protocol);
        *said = Some(Said { at: Instant::now(), version: Arc::new(version), protocol });
        Ok(())
    }

    /// The browsers of a busy pool come and go, and there may be none for a moment.
    async fn ask_or_wait(&self, path: &str, most: u64) -> Result<Vec<u8>, Unknown> {
        let asked = async {
            loop {
                let noted = self.noted.notified();
                if let Some(body) = self.ask(path, most).await {
                    return body;
                }
                noted.await;
            }
        };
        timeout(COMING, asked).await.map_err(|_| Unknown)
    }

    async fn ask(&self, path: &str, most: u64) -> Option<Vec<u8>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for address in recent {
            if let Ok(Ok(body)) = timeout(PATIENCE, http::get(address, path, most)).await {
                return Some(body);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_while_no_browser_answers_wait_together() {
        let (about, begun) = (About::default(), Instant::now());
        let answers = join_all((0..100).map(|_| about.version())).await;
        assert!(answers.iter().all(Result::is_err));
        assert!(begun.elapsed() < 2 * ANSWER, "{:?}", begun.elapsed());
    }
}
