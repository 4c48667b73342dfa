//! Started minutes: each is set aside shortly before it starts, and one that could not be is not begun.
//!
//! While the ledger's store is away, a minute that could not be set aside starts all the same: it is [kept](crate::owed), and
//! billed when the store is back. So many in a row a session may have; the one after that is not begun.
//!
//! Once a minute each session has a date with the ledger: its bytes are noted, and its next minute is set aside where the
//! price of the session does not cover it. The dates of an account that come close together are one commit.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use billing::{AccountId, ExtendError, Progress, StoreError};
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{error, info, warn};

use crate::refusal::Close;
use crate::serve::Gateway;
use crate::sessions::Live;
use crate::settle::recheck;

#[cfg(test)]
mod tests;

const MINUTE: Duration = Duration::from_secs(60);
/// How long before a minute starts it is set aside.
const AHEAD: Duration = Duration::from_secs(5);
/// Dates that are so close to the next one are kept together with it.
const TOGETHER: Duration = Duration::from_secs(1);
/// How often a ledger that cannot be reached is asked again, until the minute starts.
const RETRY: Duration = Duration::from_millis(500);
/// How often a date is tried once more whose task panicked; all of it before the minute starts.
const PANICS: u32 = 3;
/// Accounts that are talked about with the ledger at a time.
const AT_WORK: usize = 1_024;
/// Dates of sessions that have ended, beside as many as live, which are not worth a look at all of them. Each keeps all that
/// its session was in memory.
const OVER: usize = 64;
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
#[derive(Clone, Debug)]
struct Due {
    at: Instant,
    /// The minute that starts next, counted from 1.
    minute: u32,
    /// The last one that the ledger was asked for.
    secured: u32,
    /// How often its task has panicked.
    panics: u32,
    live: Arc<Live>,
}

impl Due {
    /// To secure a minute before it starts.
    fn ahead_of(minute: u32, secured: u32, live: Arc<Live>) -> Self {
        Self { at: live.begun + MINUTE * (minute - 1) - AHEAD, minute, secured, panics: 0, live }
    }

    /// When the minute starts.
    fn starts(&self) -> Instant {
        self.live.begun + MINUTE * (self.minute - 1)
    }

    fn progress(&self) -> Progress {
        let Live { id, hold, begun_at, terms, up_bytes, down_bytes, .. } = &*self.live;
        Progress {
            session: id.clone(),
            hold: *hold,
            begun_at: *begun_at,
            minutes: self.minute.max(terms.session_minutes),
            owed: self.live.owed(),
            up_bytes: up_bytes.load(Ordering::Relaxed),
            down_bytes: down_bytes.load(Ordering::Relaxed),
        }
    }
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
        let mut at_work: JoinSet<Vec<Due>> = JoinSet::new();
        loop {
            let next = dues.peek().map(|Reverse(due)| due.at);
            let has_room = at_work.len() < AT_WORK;
            tokio::select! {
                begun = self.begun.recv(), if has_room => match begun {
                    Some(live) => drop(at_work.spawn(note_beginning(Arc::clone(&gateway), live))),
                    None => return,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && has_room => {
                    for (account, dues) in take_due(&mut dues) {
                        at_work.spawn(keep_date(Arc::clone(&gateway), account, dues));
                    }
                }
                Some(done) = at_work.join_next() => match done {
                    Ok(again) => {
                        dues.extend(again.into_iter().map(Reverse));
                        if dues.len() > 2 * gateway.sessions.len() + OVER {
                            forget_those_that_are_over(&mut dues, &gateway);
                        }
                    }
                    // What may panic is caught where its dates are known.
                    Err(panic) => error!(%panic, "sessions are not metered any more"),
                },
            }
        }
    }
}

/// A session that has ended is kept for a date that it will not have; of many short ones that would be a minute's worth.
fn forget_those_that_are_over(dues: &mut BinaryHeap<Reverse<Due>>, gateway: &Gateway) {
    dues.retain(|Reverse(Due { live, .. })| gateway.sessions.contains(live.name()));
}

/// The dates that have come or are close, by account.
fn take_due(dues: &mut BinaryHeap<Reverse<Due>>) -> BTreeMap<AccountId, Vec<Due>> {
    let until = Instant::now() + TOGETHER;
    let mut taken: BTreeMap<AccountId, Vec<Due>> = BTreeMap::new();
    while dues.peek().is_some_and(|Reverse(due)| due.at <= until) {
        let Some(Reverse(due)) = dues.pop() else { break };
        taken.entry(due.live.account.clone()).or_default().push(due);
    }
    taken
}

/// Notes in the ledger when the session began. A failure costs nothing: the note is made again with its next minute and
/// when it is settled, and a gateway that is killed before leaves a session that never began.
async fn note_beginning(gateway: Arc<Gateway>, live: Arc<Live>) -> Vec<Due> {
    let noted = async {
        #[cfg(test)]
        tests::may_panic();
        gateway.billing.begin(live.name(), live.begun_at, gateway.clock.now()).await
    };
    match AssertUnwindSafe(noted).catch_unwind().await {
        Ok(Ok(())) => {}
        // A session that is already over was noted by settle.
        Ok(Err(error)) => tracing::debug!(%error, session = %live.id, "a beginning was not noted"),
        Err(_) => error!(session = %live.id, "a beginning was not noted: the meter panicked"),
    }
    vec![Due::ahead_of(2, 1, live)]
}

/// What [`meet`] gives, or where that panics the same dates once more: no session goes on without one.
async fn keep_date(gateway: Arc<Gateway>, account: AccountId, dues: Vec<Due>) -> Vec<Due> {
    let kept = dues.clone();
    let met = AssertUnwindSafe(meet(&gateway, &account, dues)).catch_unwind().await;
    met.unwrap_or_else(|_| kept.into_iter().filter_map(try_again).collect())
}

/// What was asked of the ledger may be asked again. None: the session ends.
fn try_again(due: Due) -> Option<Due> {
    let panics = due.panics + 1;
    if panics > PANICS {
        error!(session = %due.live.id, account = %due.live.account, "a session ends: the meter panics");
        due.live.end(Close::TryAgain);
        return None;
    }
    error!(session = %due.live.id, account = %due.live.account, panics, "the meter panicked; it tries again");
    Some(Due { at: Instant::now() + RETRY, panics, ..due })
}

/// Secures the next minutes of an account's sessions, or ends those that cannot have one where it would start. Gives the
/// dates that follow.
async fn meet(gateway: &Gateway, account: &AccountId, mut dues: Vec<Due>) -> Vec<Due> {
    #[cfg(test)]
    tests::may_panic();
    dues.retain(|due| gateway.sessions.contains(due.live.name()));
    let Some(first) = dues.iter().map(Due::starts).min() else { return dues };
    let now = Instant::now();
    let deadline = if first <= now { now + RETRY } else { first };
    let mut again = Vec::with_capacity(dues.len());
    for (due, mut verdict) in dues.iter().zip(ask(gateway, account, &dues, deadline).await) {
        if matches!(verdict, Err(ExtendError::NotOpen)) && recheck(gateway, &due.live).await.unwrap_or(true) {
            verdict = Err(StoreError::Busy.into());
        }
        again.push(verdict);
    }
    dues.into_iter().zip(again).filter_map(|(due, verdict)| go_on(gateway, due, now, verdict)).collect()
}

/// What the ledger says to each of these dates, at the latest at `deadline`.
async fn ask(
    gateway: &Gateway,
    account: &AccountId,
    dues: &[Due],
    deadline: Instant,
) -> Vec<Result<(), ExtendError>> {
    let failed = || dues.iter().map(|_| Err(StoreError::Busy.into())).collect();
    if gateway.outage.is_away() {
        return failed();
    }
    let progress: Vec<_> = dues.iter().map(Due::progress).collect();
    let metered = timeout_at(deadline, gateway.billing.meter(account, &progress, gateway.clock.now())).await;
    metered.unwrap_or(Err(StoreError::Busy)).unwrap_or_else(|error| {
        gateway.outage.note(&error);
        warn!(%account, %error, "minutes could not be set aside");
        failed()
    })
}

/// What a session's date, which began at `met`, came to. None: the session ends.
fn go_on(gateway: &Gateway, due: Due, met: Instant, verdict: Result<(), ExtendError>) -> Option<Due> {
    let starts = due.starts();
    // By the clock, not by the plan: whoever comes late has no further attempt.
    let is_last = met >= starts;
    if is_last && matches!(verdict, Err(ExtendError::Store(_))) {
        return let_start(gateway, due);
    }
    let Due { minute, secured, panics, live, .. } = due;
    let again = match verdict {
        Ok(()) => return Some(Due::ahead_of(minute + 1, minute, live)),
        // It ends at this moment, or another gateway has settled it; in neither case does it go on.
        Err(ExtendError::NotOpen) => {
            live.end(Close::TryAgain);
            return None;
        }
        Err(ExtendError::Refused(refusal)) if is_last => {
            info!(session = %live.id, account = %live.account, %refusal, "a session ends: its next minute is not paid for");
            live.end(Close::BalanceUsedUp);
            return None;
        }
        // There is time for a top-up until the minute starts.
        Err(ExtendError::Refused(_)) => starts,
        Err(ExtendError::Store(_)) => (Instant::now() + RETRY).min(starts),
    };
    Some(Due { at: again, minute, secured, panics, live })
}

/// A minute starts that the ledger could not be asked for. None: it does not, and the session ends.
fn let_start(gateway: &Gateway, due: Due) -> Option<Due> {
    let Due { minute, secured, live, .. } = due;
    let paid = live.terms.session_minutes;
    let without_cover = minute.saturating_sub(secured.max(paid));
    if MINUTE * without_cover > gateway.outage_limit {
        warn!(session = %live.id, "a session ends: the ledger has been away for too long");
        live.end(Close::TryAgain);
        return None;
    }
    let is_too_much = || !gateway.unsecured.may_go_on(&gateway.owed, &live.account, live.terms.minute_price);
    if without_cover > 0 && live.is_unsecured() && is_too_much() {
        warn!(session = %live.id, account = %live.account, "a session ends: its account has as much on credit as it may");
        live.end(Close::TryAgain);
        return None;
    }
    match gateway.owed.keep(live.debt(minute)) {
        // The price of the session covers it.
        _ if without_cover == 0 => {}
        Ok(()) => live.owe(minute),
        Err(error) => {
            warn!(%error, session = %live.id, "a session ends: its next minute can neither be set aside nor kept for later");
            live.end(Close::TryAgain);
            return None;
        }
    }
    Some(Due::ahead_of(minute + 1, secured, live))
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
