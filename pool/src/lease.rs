//! A browser that is claimed: the right to use it once.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::error;

use crate::provider::{Browser, Verdict};
use crate::ready::Warm;
use crate::warmer::Event;

/// Where a browser serves CDP: further sockets of a session are opened there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The TCP address.
    pub address: SocketAddr,
    /// The path of the browser's own WebSocket, `/devtools/browser/…`.
    pub path: String,
}

/// A text frame, masked with zeros, since a client's frames have to be masked (RFC 6455, section 5.3).
const WAKE: [u8; 6 + 38] = {
    let command = b"{\"id\":1,\"method\":\"Browser.getVersion\"}";
    let mut frame = [0; 6 + 38];
    frame[0] = 0x81;
    frame[1] = 0x80 | 38;
    let mut at = 0;
    while at < command.len() {
        frame[6 + at] = command[at];
        at += 1;
    }
    frame
};

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

    /// Where further sockets are opened.
    pub fn endpoint(&self) -> &Endpoint {
        &self.browser().endpoint
    }

    /// Wakes the browser with a command, so that its threads run by the time the session's first command arrives; they
    /// have slept since the pool warmed the socket, and to wake them takes longer than to answer. True: the first frame
    /// that comes from the socket is the answer to it, and none of the session's.
    #[must_use]
    pub fn wake(&self) -> bool {
        let Some(socket) = &self.socket else { return false };
        // A socket on which only a few answered commands have passed takes a short frame whole, or is broken.
        matches!((&mut &*socket).write(&WAKE), Ok(written) if written == WAKE.len())
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
