//! Where browsers come from: the contract that every provider answers.
//!
//! A provider starts one browser at a time and says where it serves CDP. From then on the browser is a [`Browser`]: it
//! can be asked to stop, and it tells how it ended.

pub(crate) mod fixed;
pub(crate) mod process;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::lease::Endpoint;
use crate::ready::Claimable;

use fixed::{Fixed, Slot};
use process::{Group, Processes};

pub use process::remove_leftovers;

/// Which provider, and what it needs to know.
#[derive(Debug, Clone)]
pub enum ProviderSettings {
    /// Child processes.
    Process {
        /// The browser's real program, not a shell script that starts it.
        binary: PathBuf,
    },
    /// Browsers that somebody else runs. There is no isolation between their sessions and no exit verdict.
    Fixed {
        /// Where they are.
        endpoints: Vec<FixedEndpoint>,
        /// How many sessions one of them takes at a time.
        sessions_per_endpoint: NonZeroUsize,
    },
}

impl ProviderSettings {
    /// How many descriptors a browser takes in this process.
    #[must_use]
    pub fn descriptors(&self) -> u32 {
        match self {
            // Its socket, its standard error, and what tells of its end.
            Self::Process { .. } => 3,
            Self::Fixed { .. } => 1,
        }
    }
}

/// One browser that somebody else runs: its own socket's path is asked for over HTTP where it is not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedEndpoint {
    /// Host and port.
    pub authority: String,
    /// `/devtools/browser/…`, or none where `/json/version` tells.
    pub path: Option<String>,
}

/// How a browser ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// By itself, with exit code 0: somebody asked it to close.
    Clean,
    /// By a signal, or with another code.
    Crashed,
    /// Nobody knows: it still runs, or it is not ours to watch.
    Unknown,
}

/// Why a provider cannot work, or a browser did not start.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The directory for profiles cannot be used.
    #[error("cannot use the directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program cannot be run.
    #[error("cannot run {binary}: {source}; install chromium-headless-shell, or set `pool.process.binary`")]
    Spawn {
        /// Which.
        binary: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended instead of serving.
    #[error("the browser ended before it served; its last words: {0}")]
    Ended(String),
    /// It did not come up in time.
    #[error("the browser did not answer in time")]
    TimedOut,
    /// It came up but does not answer as a browser does.
    #[error("the browser at {address} does not answer: {problem}")]
    Unhealthy {
        /// Where.
        address: SocketAddr,
        /// What is wrong.
        problem: String,
    },
    /// An endpoint that somebody else runs cannot be found.
    #[error("the endpoint {endpoint} does not answer: {problem}")]
    Endpoint {
        /// Which.
        endpoint: String,
        /// What is wrong.
        problem: String,
    },
}

/// The provider in use.
#[derive(Debug)]
pub(crate) enum Provider {
    Process(Processes),
    Fixed(Fixed),
}

impl Provider {
    pub(crate) fn open(settings: &ProviderSettings, directory: &Path) -> Result<Self, ProviderError> {
        Ok(match settings {
            ProviderSettings::Process { binary } => {
                Self::Process(Processes::open(binary.clone(), directory)?)
            }
            ProviderSettings::Fixed { endpoints, sessions_per_endpoint } => {
                Self::Fixed(Fixed::new(endpoints.clone(), *sessions_per_endpoint))
            }
        })
    }

    /// How many browsers may be started at a time: starting a process keeps a core busy, opening a socket does not.
    pub(crate) fn starts_at_a_time(&self) -> usize {
        match self {
            Self::Process(_) => std::thread::available_parallelism().map_or(2, NonZeroUsize::get).max(2),
            Self::Fixed(_) => 16,
        }
    }

    /// The right to start one browser, where the provider has room for one.
    pub(crate) fn reserve(&self) -> Option<Start> {
        match self {
            Self::Process(processes) => Some(Start::Process(processes.clone())),
            Self::Fixed(fixed) => fixed.reserve().map(Start::Fixed),
        }
    }
}

/// One browser that may be started. Dropping the future of [`Start::run`] ends what was begun.
#[derive(Debug)]
pub(crate) enum Start {
    Process(Processes),
    Fixed(Slot),
}

impl Start {
    pub(crate) async fn run(self) -> Result<Browser, ProviderError> {
        match self {
            Self::Process(processes) => processes.start().await,
            Self::Fixed(slot) => slot.start().await,
        }
    }
}

/// A browser that runs.
#[derive(Debug)]
pub(crate) struct Browser {
    pub(crate) endpoint: Endpoint,
    pub(crate) claimable: Claimable,
    /// None while it runs.
    pub(crate) exit: watch::Receiver<Option<Verdict>>,
    hand: Hand,
}

/// What the provider holds it by.
#[derive(Debug)]
enum Hand {
    Process(Group),
    /// Its slot is free again when the last reference is gone.
    Fixed(#[expect(dead_code, reason = "held for its drop")] Slot),
}

impl Drop for Browser {
    /// Nobody watches it any more, so it has ended, or is not ours.
    fn drop(&mut self) {
        metrics::gauge!("ufb_pool_browsers").decrement(1.0);
    }
}

impl Browser {
    /// One that was never started. `path` tells it from others.
    #[cfg(all(test, not(feature = "loom")))]
    pub(crate) fn for_tests(path: String) -> Self {
        let endpoint = FixedEndpoint { authority: String::new(), path: None };
        let slot = Fixed::new(vec![endpoint], NonZeroUsize::MIN).reserve().expect("nobody else reserves");
        let endpoint = Endpoint { address: SocketAddr::from(([127, 0, 0, 1], 0)), path };
        Self::new(endpoint, fixed::NOBODY_TELLS.clone(), Hand::Fixed(slot))
    }

    /// What whoever runs it calls it: a process by its number, somebody else's browser by the id in its own path.
    pub(crate) fn name(&self) -> String {
        match &self.hand {
            Hand::Process(group) => format!("process-{}", group.id()),
            Hand::Fixed(_) => self.endpoint.path.rsplit('/').next().unwrap_or_default().to_owned(),
        }
    }

    /// One that runs from here on.
    fn new(endpoint: Endpoint, exit: watch::Receiver<Option<Verdict>>, hand: Hand) -> Self {
        metrics::gauge!("ufb_pool_browsers").increment(1.0);
        Self { endpoint, claimable: Claimable::new(), exit, hand }
    }

    /// Ends it now; its profile is removed behind it. Harmless when it is gone already.
    pub(crate) fn stop_at_once(&self) {
        if let Hand::Process(group) = &self.hand {
            group.kill();
        }
    }

    /// Asks it to end, and ends it where it has not after `grace`.
    pub(crate) async fn stop(&self, grace: Duration) {
        if let Hand::Process(group) = &self.hand {
            group.terminate();
            if self.verdict(grace).await == Verdict::Unknown {
                group.kill();
            }
        }
    }

    pub(crate) async fn verdict(&self, within: Duration) -> Verdict {
        let mut exit = self.exit.clone();
        match timeout(within, exit.wait_for(Option::is_some)).await {
            Ok(Ok(verdict)) => verdict.unwrap_or(Verdict::Unknown),
            // Nobody watches it, or it still runs.
            Ok(Err(_)) | Err(_) => Verdict::Unknown,
        }
    }
}
