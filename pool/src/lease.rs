//! A browser that is claimed: the right to use it once.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::error;

use crate::provider::Browser;
use crate::ready::Warm;
use crate::upstream::Upstream;
use crate::warmer::Event;

/// Where a browser serves CDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The TCP address.
    pub(crate) address: SocketAddr,
    /// The path of the browser's own WebSocket, `/devtools/browser/…`.
    pub(crate) path: String,
}

const HELD: &str = "a lease has its browser until it is given back by value";

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

    /// Whether nobody has taken it yet.
    #[must_use]
    pub fn has_socket(&self) -> bool {
        self.socket.is_some()
    }

    /// Where further sockets of the same browser are opened, and where its end is asked for. Drop it soon: with `fixed` the
    /// browser's slot is taken as long as it is there.
    #[must_use]
    pub fn upstream(&self) -> Upstream {
        Upstream::new(Arc::clone(self.browser.as_ref().expect(HELD)))
    }

    /// Destroys the browser, whatever state it is in. Returns before it is gone.
    pub fn release(mut self) {
        self.give_back();
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
