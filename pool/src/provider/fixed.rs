//! Browsers that somebody else runs: the pool only opens their sockets.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use serde_json::Value;
use tokio::net::lookup_host;
use tokio::sync::watch;

use super::{Browser, FixedEndpoint, Hand, ProviderError, Verdict};
use crate::http;
use crate::lease::Endpoint;

/// How browsers that somebody else runs end: their sender is gone. One for all of them.
pub(super) static NOBODY_TELLS: LazyLock<watch::Receiver<Option<Verdict>>> =
    LazyLock::new(|| watch::channel(None).1);

/// More than any browser answers to `/json/version`.
const ANSWER_BYTES: u64 = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Fixed {
    places: Vec<Arc<Place>>,
    sessions_per_endpoint: usize,
}

/// One endpoint and how many of its sockets are open or being opened.
#[derive(Debug)]
struct Place {
    endpoint: FixedEndpoint,
    used: AtomicUsize,
}

/// The right to one socket of an endpoint, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Place>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Fixed {
    pub(super) fn new(endpoints: Vec<FixedEndpoint>, sessions_per_endpoint: NonZeroUsize) -> Self {
        let places = endpoints
            .into_iter()
            .map(|endpoint| Arc::new(Place { endpoint, used: AtomicUsize::new(0) }))
            .collect();
        Self { places, sessions_per_endpoint: sessions_per_endpoint.get() }
    }

    /// A slot of the endpoint that has the fewest taken. Only the warmer reserves, so what it reads can only shrink.
    pub(super) fn reserve(&self) -> Option<Slot> {
        let place = self.places.iter().min_by_key(|place| place.used.load(Ordering::Acquire))?;
        if place.used.load(Ordering::Acquire) >= self.sessions_per_endpoint {
            return None;
        }
        place.used.fetch_add(1, Ordering::AcqRel);
        Some(Slot(Arc::clone(place)))
    }
}

impl Slot {
    pub(super) async fn start(self) -> Result<Browser, ProviderError> {
        let FixedEndpoint { authority, path } = &self.0.endpoint;
        let failed = |problem: String| ProviderError::Endpoint { endpoint: authority.clone(), problem };
        let address = resolve(authority).await.map_err(failed)?;
        let path = match path {
            Some(path) => path.clone(),
            None => browser_path(address).await.map_err(failed)?,
        };
        let endpoint = Endpoint { address, path };
        Ok(Browser::new(endpoint, NOBODY_TELLS.clone(), Hand::Fixed(self)))
    }
}

async fn resolve(authority: &str) -> Result<SocketAddr, String> {
    let mut addresses = lookup_host(authority).await.map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "its name has no address".to_owned())
}

/// Asks `/json/version` for the path of the browser's own socket.
async fn browser_path(address: SocketAddr) -> Result<String, String> {
    let body = http::get(address, "/json/version", ANSWER_BYTES).await.map_err(|error| error.to_string())?;
    let version: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    let url = version["webSocketDebuggerUrl"].as_str().ok_or("it names no webSocketDebuggerUrl")?;
    let uri: ::http::Uri = url.parse().map_err(|_| format!("it names a strange URL, {url}"))?;
    Ok(uri.path().to_owned())
}
