//! A claimed browser as the sockets of its session see it: further connections, and its end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cdp::{Cdp, CdpError};
use crate::http;
use crate::lease::Endpoint;
use crate::provider::{Browser, Verdict};

/// A browser on this machine or in this cluster takes a connection in far less; one that does not is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// More than some thousand pages need.
const LIST_BYTES: u64 = 4 * 1024 * 1024;

/// Why a further socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The browser answered otherwise than with a 101, or not at all: it has no such target, or it is gone.
    #[error("the browser opens no such socket: {0}")]
    Refused(String),
    /// It took too long.
    #[error("the browser did not answer within {PATIENCE:?}")]
    TimedOut,
}

/// A browser that somebody else has the lease of.
#[derive(Debug, Clone)]
pub struct Upstream(Arc<Browser>);

impl Upstream {
    pub(crate) fn new(browser: Arc<Browser>) -> Self {
        Self(browser)
    }

    /// Opens and upgrades one more WebSocket to the browser itself. The bare socket belongs to the reactor of the calling
    /// task, has `TCP_NODELAY`, and nothing has been sent on it.
    ///
    /// # Errors
    ///
    /// See [`UpstreamError`].
    pub async fn open_browser(&self) -> Result<TcpStream, UpstreamError> {
        self.open(self.0.endpoint.path.clone()).await
    }

    /// The same to one of its targets, by the target's id.
    ///
    /// # Errors
    ///
    /// See [`UpstreamError`].
    pub async fn open_page(&self, target: &str) -> Result<TcpStream, UpstreamError> {
        self.open(format!("/devtools/page/{target}")).await
    }

    /// What whoever runs the browser calls it. It is no address and no secret.
    #[must_use]
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// The same to its first page, which every browser of a pool has when it is claimed.
    ///
    /// # Errors
    ///
    /// See [`UpstreamError`].
    pub async fn open_first_page(&self) -> Result<TcpStream, UpstreamError> {
        let pages = self.pages().await?;
        let page = pages.iter().find(|page| page["type"] == "page").and_then(|page| page["id"].as_str());
        self.open_page(page.ok_or_else(|| UpstreamError::Refused("it has no page".to_owned()))?).await
    }

    /// Its targets, as `/json/list` tells them.
    ///
    /// # Errors
    ///
    /// See [`UpstreamError`].
    pub async fn pages(&self) -> Result<Vec<Value>, UpstreamError> {
        let asked = timeout(PATIENCE, http::get(self.0.endpoint.address, "/json/list", LIST_BYTES)).await;
        let body = asked.map_err(|_| UpstreamError::TimedOut)?;
        let body = body.map_err(|error| UpstreamError::Refused(error.to_string()))?;
        serde_json::from_slice(&body).map_err(|error| UpstreamError::Refused(error.to_string()))
    }

    /// How the browser ended, as soon as that is known; [`Verdict::Unknown`] when it is not after `within`.
    pub async fn verdict(&self, within: Duration) -> Verdict {
        self.0.verdict(within).await
    }

    /// Whether it still takes connections.
    pub async fn answers(&self) -> bool {
        matches!(timeout(PATIENCE, TcpStream::connect(self.0.endpoint.address)).await, Ok(Ok(_)))
    }

    async fn open(&self, path: String) -> Result<TcpStream, UpstreamError> {
        let endpoint = Endpoint { address: self.0.endpoint.address, path };
        match timeout(PATIENCE, Cdp::connect(&endpoint)).await {
            Ok(Ok(cdp)) => Ok(cdp.into_stream()),
            Ok(Err(error)) => Err(UpstreamError::refused(&error)),
            Err(_) => Err(UpstreamError::TimedOut),
        }
    }
}

impl UpstreamError {
    fn refused(error: &CdpError) -> Self {
        Self::Refused(error.to_string())
    }
}
