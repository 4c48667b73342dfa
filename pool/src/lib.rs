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
mod queue;
mod warmer;
mod health;
mod cdp;
mod provider;
mod about;
mod http;
#[cfg(feature = "measure")]
mod bare;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use about::About;
use queue::Claim;
use ready::Ready;
use warmer::{Event, Warmer};

pub use about::{Unknown, Version};
#[cfg(feature = "measure")]
pub use bare::{Bare, BareQueue};
pub use lease::Lease;
pub use provider::{FixedEndpoint, ProviderError, ProviderSettings, Verdict, remove_leftovers};
pub use upstream::{Upstream, UpstreamError};

/// Events that wait for the warmer. More than browsers can be started or claimed in the moments that it is busy; a full
/// queue makes claims that found no warm browser fail fast.
const EVENTS: usize = 8_192;
/// By then it has worked through a full queue of them.
const EVENTS_PAUSE: Duration = Duration::from_secs(1);
/// The warm browsers that are kept for owners who have few are one in so many of `min_idle`.
const RESERVE_PART: usize = 4;

/// Looked up once: finding a metric by its name costs more than the claim.
static WARM_CLAIMS: LazyLock<Counter> =
    LazyLock::new(|| metrics::counter!("ufb_pool_claims_total", "start" => "warm"));

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
    /// A directory for browsers' profiles, which nobody else uses. See [`remove_leftovers`].
    pub directory: PathBuf,
}

impl Settings {
    /// How many warm browsers are kept for owners who have few. Where opening one more takes no time, keeping some back
    /// would only leave places unused.
    pub(crate) fn reserve(&self) -> usize {
        match self.provider {
            ProviderSettings::Process { .. } => self.min_idle / RESERVE_PART,
            ProviderSettings::Fixed { .. } => 0,
        }
    }
}

/// What the owner of a claim has of the pool already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Next to nothing: it may take the last warm browser.
    Small,
    /// Its share. The last quarter of the warm browsers is not for it, so that a flood leaves some for the others.
    Large,
}

/// Why there is no browser. `retry_after` is how long its owner would wait if it came back now, as measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// None became free in time.
    #[error("no browser became free in time")]
    TimedOut {
        /// A second at least.
        retry_after: Duration,
    },
    /// As many claims wait as may, of all owners or of this one.
    #[error("too many sessions wait for a browser")]
    QueueFull {
        /// A second at least.
        retry_after: Duration,
    },
    /// Browsers fail to start again and again.
    #[error("browsers fail to start; the next attempt is in {retry_after:?}")]
    Failing {
        /// Until the next attempt, or until the one that is made now is over.
        retry_after: Duration,
    },
    /// The pool is closing.
    #[error("the pool is closing")]
    Closed,
}

/// The pool. Clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct Pool {
    ready: Arc<Ready>,
    reserve: usize,
    events: mpsc::Sender<Event>,
    about: Arc<About>,
}

impl Pool {
    /// Starts to warm browsers, on the runtime it is called on,
    /// which has to outlive the pool's use: the sockets of browsers that are not claimed belong to it.
    ///
    /// # Errors
    ///
    /// The provider cannot work at all; a browser that fails to start is no error here.
    pub fn open(settings: Settings) -> Result<Self, ProviderError> {
        let (events, inbox) = mpsc::channel(EVENTS);
        let ready = Arc::new(Ready::new(settings.max_idle.get()));
        let reserve = settings.reserve();
        let about = Arc::new(About::default());
        let warmer = Warmer::open(settings, Arc::clone(&ready), events.clone(), Arc::clone(&about))?;
        tokio::spawn(warmer.run(inbox));
        Ok(Self { ready, reserve, events, about })
    }

    /// Pops a browser that is warm and alive, if there is one for an owner of that share. Lock-free, no I/O but one
    /// non-blocking read.
    pub fn try_claim(&self, share: Share) -> Option<Lease> {
        if share == Share::Large && self.ready.len() <= self.reserve {
            return None;
        }
        let warm = self.ready.pop()?;
        WARM_CLAIMS.increment(1);
        Some(Lease::new(warm, self.events.clone()))
    }

    /// Replaces what was claimed. Apart from the claim, because a start keeps a core busy: a session's first reply comes
    /// first. Without this call the replacement waits for the pool's next look at itself.
    pub fn refill(&self) {
        // A full queue loses nothing: the warmer counts for itself every few seconds.
        let _ = self.events.try_send(Event::Taken);
    }

    /// Waits for a browser, started on demand, until `deadline`. Owners are served in turn, each one's claims in order.
    /// Dropping the future gives the place in the queue up.
    ///
    /// # Errors
    ///
    /// See [`Unavailable`].
    pub async fn claim(&self, owner: &str, share: Share, deadline: Instant) -> Result<Lease, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let claim = Claim { owner: owner.into(), share, deadline, reply };
        self.events.try_send(Event::Wanted(claim)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::QueueFull { retry_after: EVENTS_PAUSE },
            mpsc::error::TrySendError::Closed(_) => Unavailable::Closed,
        })?;
        // The warmer answers by the deadline; one that has ended answers by its end.
        let lease = answer.await.unwrap_or(Err(Unavailable::Closed))?;
        metrics::counter!("ufb_pool_claims_total", "start" => "on_demand").increment(1);
        Ok(lease)
    }

    /// What its browsers tell of themselves at `/json/version`, but for the URL of a socket. Takes none of them.
    ///
    /// # Errors
    ///
    /// [`Unknown`], where no browser answers and none ever did.
    pub async fn version(&self) -> Result<Version, Unknown> {
        self.about.version().await
    }

    /// What they tell at `/json/protocol`: JSON of some megabytes. Takes none of them.
    ///
    /// # Errors
    ///
    /// [`Unknown`], where no browser answers and none ever did.
    pub async fn protocol(&self) -> Result<Bytes, Unknown> {
        self.about.protocol().await
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
