//! The orderly end: no new sessions, the open ones go on until a deadline, all are settled, nothing is left.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::accept;
use crate::refusal::Close;
use crate::serve::{Gateway, Tenure};

/// From the close frame to the last session's settlement.
const SETTLE: Duration = Duration::from_secs(5);
/// How often it is looked whether the last clients have been answered. Nobody waits for it.
const LOOK: Duration = Duration::from_millis(20);

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

/// Waits until every client that came in at the doors, before another process had them, was answered, or is late.
async fn arrivals_are_served(gateway: &Gateway) {
    let served = async {
        while gateway.arrivals.count() > 0 {
            sleep(LOOK).await;
        }
    };
    if timeout(accept::LATEST_REQUEST, served).await.is_err() {
        debug!(connections = gateway.arrivals.count(), "some clients ask for nothing, or for more and more");
    }
}

/// Returns when the gateway was asked to drain, by a signal, `POST /drain` or a process that took its doors over, and
/// every session is settled. A second
/// signal ends the open sessions at once; they are settled all the same.
pub async fn until_drained(gateway: &Arc<Gateway>, mut signals: Signals, deadline: Duration) {
    let (mut draining, mut tenure) = (gateway.draining(), gateway.tenure());
    tokio::select! {
        _ = tenure.wait_for(|tenure| *tenure != Tenure::Ours) => {}
        () = signals.next() => gateway.drain(),
    }
    if !gateway.is_draining() {
        tokio::select! {
            () = arrivals_are_served(gateway) => {}
            () = signals.next() => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
        gateway.drain();
    }
    info!(
        sessions = gateway.sessions.len(),
        ?deadline,
        "draining; a second signal ends the open sessions at once"
    );
    tokio::select! {
        () = gateway.places.emptied() => return,
        () = sleep(deadline) => {}
        () = signals.next() => {}
    }
    info!(sessions = gateway.sessions.len(), "ending the open sessions");
    gateway.sessions.end_all(Close::Draining);
    if timeout(SETTLE, gateway.places.emptied()).await.is_err() {
        warn!("some sessions were not settled; the next start settles them");
    }
}
