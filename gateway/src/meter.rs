//! Started minutes: each is set aside shortly before it starts, and one that could not be is not begun.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use billing::{Error, ExtendError, StoreError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{error, info, warn};

use crate::refusal::Close;
use crate::serve::Gateway;
use crate::sessions::Live;

#[cfg(test)]
mod tests;

const MINUTE: Duration = Duration::from_secs(60);
/// How long before a minute starts it is set aside.
const AHEAD: Duration = Duration::from_secs(5);
/// How often a ledger that cannot be reached is asked again, until the minute starts.
const RETRY: Duration = Duration::from_millis(500);
/// Sessions that are talked about with the ledger at a time.
const AT_WORK: usize = 1_024;
/// Sessions that have begun and were not yet noted: far more than begin between two turns of the loop.
const BEGUN: usize = 16_384;

/// Tells the meter of sessions that have begun.
#[derive(Debug, Clone)]
pub struct Meter {
    begun: mpsc::Sender<Arc<Live>>,
}

/// The other end, to be [run](Inbox::run) on one task.
#[derive(Debug)]
pub struct Inbox {
    begun: mpsc::Receiver<Arc<Live>>,
}

/// A session's next date with the ledger. Ordered by the time alone.
#[derive(Debug)]
struct Due {
    at: Instant,
    /// Minutes in all that are to be set aside then.
    minutes: u32,
    live: Arc<Live>,
}

impl Meter {
    #[must_use]
    pub fn new() -> (Self, Inbox) {
        let (sender, receiver) = mpsc::channel(BEGUN);
        (Self { begun: sender }, Inbox { begun: receiver })
    }

    /// The session's 101 is out: its minutes count.
    pub fn begin(&self, live: &Arc<Live>) {
        if self.begun.try_send(Arc::clone(live)).is_err() {
            // Nobody would meter it, so it must not go on.
            error!(session = %live.id, "the meter is behind; a session is ended");
            live.end(Close::Draining);
        }
    }
}

impl Inbox {
    /// Meters all sessions until every [`Meter`] is gone.
    pub async fn run(mut self, gateway: Arc<Gateway>) {
        let mut dues: BinaryHeap<Reverse<Due>> = BinaryHeap::new();
        // Side by side, so that a ledger that keeps one waiting does not let the others run on unpaid.
        let mut at_work: JoinSet<Option<Due>> = JoinSet::new();
        loop {
            let next = dues.peek().map(|Reverse(due)| due.at);
            let has_room = at_work.len() < AT_WORK;
            tokio::select! {
                begun = self.begun.recv(), if has_room => match begun {
                    Some(live) => drop(at_work.spawn(note_beginning(Arc::clone(&gateway), live))),
                    None => return,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && has_room => {
                    let Some(Reverse(due)) = dues.pop() else { continue };
                    at_work.spawn(meet(Arc::clone(&gateway), due));
                }
                Some(done) = at_work.join_next() => match done {
                    Ok(due) => dues.extend(due.map(Reverse)),
                    Err(panic) => error!(%panic, "a session is not metered any more"),
                },
            }
        }
    }
}

/// Notes in the ledger when the session began. A failure costs nothing: the note is made again before its next minute and
/// when it is settled, and a gateway that is killed before leaves a session that never began.
async fn note_beginning(gateway: Arc<Gateway>, live: Arc<Live>) -> Option<Due> {
    if let Err(error) =
        gateway.billing.begin(&live.account, &live.id, live.begun_at, gateway.clock.now()).await
    {
        // A session that is already over was noted by settle.
        tracing::debug!(%error, session = %live.id, "a beginning was not noted");
    }
    let covered = live.terms.session_minutes.max(1);
    Some(Due { at: live.begun + MINUTE * covered - AHEAD, minutes: covered + 1, live })
}

/// Sets the next minute aside, or ends the session where that minute would start.
async fn meet(gateway: Arc<Gateway>, due: Due) -> Option<Due> {
    let Due { minutes, live, .. } = due;
    if !gateway.sessions.contains(&live.account, &live.id) {
        return None;
    }
    let starts = live.begun + MINUTE * (minutes - 1);
    // By the clock, not by the plan: whoever comes late has no further attempt.
    let is_last = Instant::now() >= starts;
    let deadline = if is_last { Instant::now() + RETRY } else { starts };
    let extended = timeout_at(deadline, extend(&gateway, &live, minutes)).await;
    let extended = extended.unwrap_or(Err(ExtendError::Store(StoreError::Busy)));
    let again = match extended {
        Ok(()) => {
            return Some(Due { at: live.begun + MINUTE * minutes - AHEAD, minutes: minutes + 1, live });
        }
        // It ends at this moment, or the ledger has lost it; in neither case does it go on.
        Err(ExtendError::NotOpen) => {
            live.end(Close::TryAgain);
            return None;
        }
        Err(ExtendError::Refused(refusal)) if is_last => {
            info!(session = %live.id, account = %live.account, %refusal, "a session ends: its next minute is not paid for");
            live.end(Close::BalanceUsedUp);
            return None;
        }
        Err(ExtendError::Store(error)) if is_last => {
            warn!(session = %live.id, %error, "a session ends: its next minute could not be set aside");
            live.end(Close::TryAgain);
            return None;
        }
        // There is time for a top-up until the minute starts.
        Err(ExtendError::Refused(_)) => starts,
        Err(ExtendError::Store(_)) => (Instant::now() + RETRY).min(starts),
    };
    Some(Due { at: again, minutes, live })
}

/// A beginning that could not be noted when it happened is noted now: nothing is set aside for a session without one.
async fn extend(gateway: &Gateway, live: &Live, minutes: u32) -> Result<(), ExtendError> {
    let now = gateway.clock.now();
    let begun = gateway.billing.begin(&live.account, &live.id, live.begun_at, now).await;
    if let Err(Error::Store(error)) = begun {
        return Err(error.into());
    }
    gateway.billing.extend(&live.account, &live.id, minutes, now).await
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}
