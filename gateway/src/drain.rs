//! The orderly end: no new sessions, the open ones go on until a deadline, all are settled, nothing is left.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::refusal::Close;
use crate::serve::Gateway;

/// From the close frame to the last session's settlement.
const SETTLE: Duration = Duration::from_secs(5);

/// The signals that ask for an end.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on the signals no longer end the process by themselves.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Returns when the gateway was asked to drain, by a signal or `POST /drain`, and every session is settled. A second
/// signal ends the open sessions at once; they are settled all the same.
pub async fn until_drained(gateway: &Arc<Gateway>, mut signals: Signals, deadline: Duration) {
    let mut draining = gateway.draining();
    tokio::select! {
        () = signals.next() => gateway.drain(),
        _ = draining.wait_for(|draining| *draining) => {}
    }
    info!(
        sessions = gateway.sessions.len(),
        ?deadline,
        "draining; a second signal ends the open sessions at once"
    );
    tokio::select! {
        () = gateway.places.emptied() => return,
        () = tokio::time::sleep(deadline) => {}
        () = signals.next() => {}
    }
    info!(sessions = gateway.sessions.len(), "ending the open sessions");
    gateway.sessions.end_all(Close::Draining);
    if timeout(SETTLE, gateway.places.emptied()).await.is_err() {
        warn!("some sessions were not settled; the next start settles them");
    }
}
