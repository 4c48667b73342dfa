//! A browser that is claimed: the right to use it once.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::error;

use crate::provider::{Browser, Verdict};
use crate::ready::Warm;
use crate::warmer::Event;

/// Where a browser serves CDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The TCP address.
    pub(crate) address: SocketAddr,
    /// The path of the browser's own WebSocket, `/devtools/browser/…`.
    pub(crate) path: String,
}

/// One browser, claimed for one session. It is destroyed and replaced when it is [released](Lease::release).
#[derive(Debug)]
pub struct Lease {
    /// None once it was given back.
    browser: Option<Arc<Browser>>,
    socket: Option<TcpStream>,
    events: mpsc::Sender<Event>,
}

impl Lease {
    pub(crate) fn new(warm: Warm, events: mpsc::Sender<Event>) -> Self {
        Self { browser: Some(warm.browser), socket: Some(warm.socket), events }
    }

    /// The upgraded CDP socket: non-blocking, `TCP_NODELAY`, nothing read from it that is not the session's. Once only.
    pub fn take_socket(&mut self) -> Option<TcpStream> {
        self.socket.take()
    }

    /// How the browser ended, as soon as that is known; [`Verdict::Unknown`] when it is not after `within`.
    pub async fn verdict(&self, within: Duration) -> Verdict {
        self.browser().verdict(within).await
    }

    /// Destroys the browser, whatever state it is in. Returns before it is gone.
    pub fn release(mut self) {
        self.give_back();
    }

    fn browser(&self) -> &Browser {
        self.browser.as_deref().expect("a lease has its browser until it is given back by value")
    }

    fn give_back(&mut self) {
        let Some(browser) = self.browser.take() else { return };
        self.socket = None;
        browser.stop_at_once();
        // Before the event, so that a slot of a `fixed` endpoint is free when the warmer looks for one.
        drop(browser);
        // A full queue loses nothing: the warmer counts for itself every few seconds, and the browser is being stopped anyway.
        let _ = self.events.try_send(Event::Returned);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.browser.is_some() {
            error!("a lease was dropped, not released; its browser is destroyed");
            self.give_back();
        }
    }
}
