//! Warm browsers: started ahead of time, connected ahead of time, handed out once.
//!
//! A browser in the pool is *warm to the socket*: its CDP WebSocket is already upgraded and has answered a command, so
//! that a claim ([`Pool::try_claim`]) is one pop from a lock-free queue and a look at the socket, without a round trip.
//! Behind the queue stands one loop, the warmer, to which everything that happens to a browser is an event: it starts
//! replacements, serves claims that found the queue empty, and forgets what died. Where browsers come from is a
//! provider's business; all providers answer one contract.

mod lease;
mod upstream;
mod ready;
mod warmer;
mod health;
mod cdp;
mod provider;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use ready::Ready;
use warmer::{Event, Refused, Warmer};

pub use lease::Lease;
pub use provider::{FixedEndpoint, ProviderError, ProviderSettings, Verdict};
pub use upstream::{Upstream, UpstreamError};

/// Events that wait for the warmer. More than browsers can be started or claimed in the moments that it is busy; a full
/// queue makes claims that found no warm browser fail fast.
const EVENTS: usize = 8_192;

/// What the pool is told when it is opened.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who makes the browsers.
    pub provider: ProviderSettings,
    /// Below this many idle browsers, more are started.
    pub min_idle: usize,
    /// Above this many idle browsers, some are stopped.
    pub max_idle: NonZeroUsize,
    /// From the start of a browser to its answer to a first command; beyond, it is given up.
    pub start_timeout: Duration,
    /// A directory for browsers' profiles. It belongs to this pool alone: what is found there is removed.
    pub directory: PathBuf,
}

/// Why there is no browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// None became free in time.
    #[error("no browser became free in time")]
    TimedOut,
    /// As many claims wait as may.
    #[error("too many sessions wait for a browser")]
    QueueFull,
    /// Browsers fail to start again and again; the next attempt is this far away.
    #[error("browsers fail to start; the next attempt is in {0:?}")]
    Failing(Duration),
    /// The pool is closing.
    #[error("the pool is closing")]
    Closed,
}

/// The pool. Clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct Pool {
    ready: Arc<Ready>,
    events: mpsc::Sender<Event>,
}

impl Pool {
    /// Removes what an earlier process left in the directory and starts to warm browsers, on the runtime it is called on,
    /// which has to outlive the pool's use: the sockets of browsers that are not claimed belong to it.
    ///
    /// # Errors
    ///
    /// The provider cannot work at all; a browser that fails to start is no error here.
    pub async fn open(settings: Settings) -> Result<Self, ProviderError> {
        let (events, inbox) = mpsc::channel(EVENTS);
        let ready = Arc::new(Ready::new(settings.max_idle.get()));
        let warmer = Warmer::open(settings, Arc::clone(&ready), events.clone()).await?;
        tokio::spawn(warmer.run(inbox));
        Ok(Self { ready, events })
    }

    /// Pops a browser that is warm and alive, if there is one. Lock-free, no I/O but one non-blocking read.
    pub fn try_claim(&self) -> Option<Lease> {
        let warm = self.ready.pop()?;
        metrics::counter!("ufb_pool_claims_total", "start" => "warm").increment(1);
        Some(Lease::new(warm, self.events.clone()))
    }

    /// Replaces what was claimed. Apart from the claim, because a start keeps a core busy: a session's first reply comes
    /// first. Without this call the replacement waits for the pool's next look at itself.
    pub fn refill(&self) {
        // A full queue loses nothing: the warmer counts for itself every few seconds.
        let _ = self.events.try_send(Event::Taken);
    }

    /// Waits for a browser, started on demand, until `deadline`. Dropping the future gives the place in the queue up.
    ///
    /// # Errors
    ///
    /// See [`Unavailable`].
    pub async fn claim(&self, deadline: Instant) -> Result<Lease, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.events.try_send(Event::Wanted(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::QueueFull,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Closed,
        })?;
        let lease = match timeout_at(deadline, answer).await {
            Ok(Ok(Ok(lease))) => lease,
            Ok(Ok(Err(Refused::QueueFull))) => return Err(Unavailable::QueueFull),
            Ok(Ok(Err(Refused::Failing(wait)))) => return Err(Unavailable::Failing(wait)),
            Ok(Err(_)) => return Err(Unavailable::Closed),
            Err(_) => return Err(Unavailable::TimedOut),
        };
        metrics::counter!("ufb_pool_claims_total", "start" => "on_demand").increment(1);
        Ok(lease)
    }

    /// Idle browsers at this moment.
    pub fn idle(&self) -> usize {
        self.ready.len()
    }

    /// Stops every idle browser and every one that is given back from now on, and returns when those that were idle are
    /// gone. Claims answer [`Unavailable::Closed`].
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.events.send(Event::Close(done)).await.is_ok() {
            // An error means that the warmer ended, which closes the pool as well.
            let _ = closed.await;
        }
    }
}
