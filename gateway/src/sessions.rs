//! The live sessions: who they are, what they have passed so far, and how to end them from outside.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Context;
use std::time::Duration;

use billing::{AccountId, SessionId, Terms, Timestamp};
use dashmap::DashMap;
use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use crate::refusal::Close;

/// A session between its 101 and its end.
pub struct Live {
    pub account: AccountId,
    pub id: SessionId,
    pub terms: Terms,
    /// When its 101 was sent: minutes count from here, by a clock that nobody sets.
    pub begun: Instant,
    /// The same moment for the record.
    pub begun_at: Timestamp,
    /// From the client to the browser.
    pub up_bytes: AtomicU64,
    /// From the browser to the client.
    pub down_bytes: AtomicU64,
    /// Bytes that had passed when the session was last found to have said something, and how old it was then.
    heard: Mutex<(u64, Duration)>,
    end: OnceLock<Close>,
    waker: AtomicWaker,
}

impl Live {
    #[must_use]
    pub fn new(account: AccountId, id: SessionId, terms: Terms, begun_at: Timestamp) -> Self {
        Self {
            account,
            id,
            terms,
            begun: Instant::now(),
            begun_at,
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            heard: Mutex::new((0, Duration::ZERO)),
            end: OnceLock::new(),
            waker: AtomicWaker::new(),
        }
    }

    /// Ends it in an orderly way. The first one who says so gives the reason.
    pub fn end(&self, close: Close) {
        let _ = self.end.set(close);
        self.waker.wake();
    }

    /// How long it has said nothing, for a session of age `lasted` that has passed `passed` bytes. One task asks.
    pub(crate) fn silence(&self, passed: u64, lasted: Duration) -> Duration {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.0 != passed {
            *heard = (passed, lasted);
        }
        lasted.saturating_sub(heard.1)
    }

    /// Whether somebody ended it; otherwise the task is woken when somebody does. One task waits.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> Option<Close> {
        let ended = self.end.get().copied();
        if ended.is_some() {
            return ended;
        }
        self.waker.register(cx.waker());
        // It may have been set before the waker was there.
        self.end.get().copied()
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("account", &self.account).field("id", &self.id).finish_non_exhaustive()
    }
}

/// All live sessions of this gateway.
#[derive(Debug, Default)]
pub struct Sessions {
    live: DashMap<(AccountId, SessionId), Arc<Live>>,
    /// Set once all are to end: who comes in later is told at once.
    closing: OnceLock<Close>,
}

/// A session's place among the live ones, until it is dropped; a task that panics gives it up as well.
#[derive(Debug)]
pub struct Registered<'a> {
    sessions: &'a Sessions,
    live: Arc<Live>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.sessions.live.remove(&(self.live.account.clone(), self.live.id.clone()));
        metrics::gauge!("ufb_gateway_live_sessions").decrement(1.0);
    }
}

impl Sessions {
    #[must_use]
    pub fn insert(&self, live: &Arc<Live>) -> Registered<'_> {
        self.live.insert((live.account.clone(), live.id.clone()), Arc::clone(live));
        metrics::gauge!("ufb_gateway_live_sessions").increment(1.0);
        if let Some(close) = self.closing.get() {
            live.end(*close);
        }
        Registered { sessions: self, live: Arc::clone(live) }
    }

    #[must_use]
    pub fn contains(&self, account: &AccountId, id: &SessionId) -> bool {
        self.live.contains_key(&(account.clone(), id.clone()))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.live.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    pub fn for_each(&self, mut visit: impl FnMut(&Live)) {
        for live in &self.live {
            visit(&live);
        }
    }

    /// Ends every session, and every one that is still being admitted.
    pub fn end_all(&self, close: Close) {
        let _ = self.closing.set(close);
        self.for_each(|live| live.end(close));
    }
}
