//! Every way out of a session: what it comes to for the ledger, and what its client is told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use billing::{Debt, End, Error, HoldError, HoldId, Outcome, Reserved, Session, StoreError};
use pool::{Upstream, Verdict};
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use crate::frame::Violation;
use crate::hold::{close_of, confirm_late};
use crate::refusal::Close;
use crate::serve::Gateway;
use crate::sessions::Live;
use crate::spares::insist;
use crate::splice::Cause;

/// An end without a close frame looks the same for a crash and for `Browser.close`; the provider knows which it was as
/// soon as the process has ended, and Chrome takes up to a second to do so in an orderly way.
const VERDICT: Duration = Duration::from_secs(3);

/// A ledger that cannot be reached is asked again after each of these pauses, where what it is to be told could not be
/// kept for later. What is still open then is repaired, or settled by the next start up to the last heartbeat.
const RETRIES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

/// How a socket's end is told in a session's record, where no close frame tells it.
const CLIENT_CLOSED: &str = "client closed";
const CLIENT_GONE: &str = "client gone";
const BROWSER_CRASHED: &str = "browser crashed";

/// From a browser's claim to the session's place among the live ones: far longer than it takes.
const ADMISSION: Duration = Duration::from_secs(60);

/// A page's socket ends with its page, while the browser goes on. When all of the browser ends, its process is gone soon
/// after; so long is it waited for before the browser is asked whether it lives.
const PAGE_VERDICT: Duration = Duration::from_millis(100);

/// What a socket of a session is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The browser itself.
    Browser,
    /// One of its pages.
    Page,
}

/// Why a session ends, all of its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    pub close: Close,
    pub outcome: Outcome,
}

impl Reason {
    /// One that the session is charged for.
    #[must_use]
    pub fn of(close: Close) -> Self {
        Self { close, outcome: Outcome::Completed { cause: close.cause() } }
    }

    fn lost(cause: &'static str) -> Self {
        Self { close: Close::Lost, outcome: Outcome::Lost { cause } }
    }
}

/// How a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Its session ends with it, whatever other sockets there are.
    All(Reason),
    /// Only this one, for this reason; its client still listens.
    This(Reason),
    /// Its client has left, for this cause.
    Left(&'static str),
}

impl Judgement {
    /// How the session ended, if this was its last socket.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Self::All(reason) | Self::This(reason) => reason.outcome,
            Self::Left(cause) => Outcome::Completed { cause },
        }
    }

    /// What its client is told.
    #[must_use]
    pub fn close(self) -> Option<Close> {
        match self {
            Self::All(reason) | Self::This(reason) => Some(reason.close),
            Self::Left(_) => None,
        }
    }
}

/// Decides what a socket's end means.
pub async fn judge(cause: Cause, target: Target, live: &Live) -> Judgement {
    match cause {
        Cause::ClientClosed => Judgement::Left(CLIENT_CLOSED),
        Cause::ClientGone => Judgement::Left(CLIENT_GONE),
        Cause::ClientFault(Violation::Protocol) => Judgement::This(Reason::of(Close::Protocol)),
        Cause::ClientFault(Violation::TooBig) => Judgement::This(Reason::of(Close::TooBig)),
        Cause::Told(close) => Judgement::This(live.told().unwrap_or(Reason::of(close))),
        Cause::BrowserGone => match live.upstream() {
            Some(upstream) if target == Target::Page => page_gone(&upstream).await,
            Some(upstream) => Judgement::All(browser_gone(&upstream).await),
            // Without its browser nobody can have been attached to it.
            None => Judgement::All(Reason::lost("browser lost")),
        },
    }
}

async fn page_gone(upstream: &Upstream) -> Judgement {
    let verdict = upstream.verdict(PAGE_VERDICT).await;
    if verdict == Verdict::Unknown && upstream.answers().await {
        return Judgement::This(Reason::of(Close::PageClosed));
    }
    Judgement::All(browser_gone(upstream).await)
}

async fn browser_gone(upstream: &Upstream) -> Reason {
    match upstream.verdict(VERDICT).await {
        Verdict::Clean => Reason::of(Close::Done),
        Verdict::Crashed => Reason::lost(BROWSER_CRASHED),
        Verdict::Unknown => Reason::lost("browser lost"),
    }
}

/// All that a session's record may say of its end.
pub fn causes() -> impl Iterator<Item = &'static str> {
    Close::ALL.into_iter().map(Close::cause).chain([CLIENT_CLOSED, CLIENT_GONE, BROWSER_CRASHED])
}

/// Posts the hold of a session that has begun and lasted so long. Waits for the disk; where the ledger is away, what it is
/// to be told is [kept](crate::owed), and the session is settled when it is back.
pub async fn settle(gateway: &Gateway, live: &Live, lasted: Duration, outcome: Outcome) {
    let lasted = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX);
    let at = billing::Timestamp::from_millis(live.begun_at.as_millis().saturating_add(lasted));
    let (up_bytes, down_bytes) =
        (live.up_bytes.load(Ordering::Relaxed), live.down_bytes.load(Ordering::Relaxed));
    let end = End { at, outcome, up_bytes, down_bytes };
    let first = if gateway.outage.is_away() {
        Err(StoreError::Busy.into())
    } else {
        post(gateway, live, end.clone()).await
    };
    let posted = match first {
        Err(Error::Store(error)) => {
            gateway.outage.note(&error);
            let entry =
                Debt { at, up_bytes, down_bytes, end: Some(outcome.into()), ..live.debt(live.owed()) };
            let Err(not_kept) = gateway.owed.keep(entry) else {
                return info!(session = %live.id, account = %live.account, "a session ended while the ledger is away; it is settled later");
            };
            error!(error = %not_kept, session = %live.id, "what a session came to cannot be kept for later");
            persist(|| post(gateway, live, end.clone())).await
        }
        done => done,
    };
    match posted {
        Ok(record) => {
            gateway.owed.settled(live.name());
            report(&record, &outcome);
            live.note_record(record);
        }
        Err(Error::Refused(refused)) => {
            gateway.owed.settled(live.name());
            warn!(%refused, session = %live.id, account = %live.account, "a session was settled by another gateway, up to the last sign of life of this one");
        }
        Err(error) => {
            error!(%error, session = %live.id, "a session could not be settled; the next start will")
        }
    }
}

/// A session can end before the meter has noted its beginning, so that is noted with its end. Minutes which the ledger was
/// away for are billed first.
async fn post(gateway: &Gateway, live: &Live, end: End) -> Result<Session, Error> {
    let _turn = gateway.settling.turn(&live.account).await;
    let now = gateway.clock.now();
    if live.may_lack_hold() {
        gateway.billing.hold_begun(&live.debt(0), now).await?;
    }
    if live.owed() > 0 {
        let progress = live.debt(live.owed()).progress();
        drop(gateway.billing.meter(&live.account, &[progress], now).await?);
    }
    gateway.billing.post_begun(live.name(), live.begun_at, end, now).await
}

/// Gives back what a session took that never began.
pub async fn void(gateway: &Gateway, reserved: &Reserved, cause: &'static str) {
    let held = &reserved.session;
    if reserved.is_unsecured() {
        return gateway.unsecured.release(reserved);
    }
    if confirm_late(gateway, reserved).await.is_err() {
        // Nothing was taken, or the ledger is away and whatever it has is repaired.
        return;
    }
    let voided = persist(|| gateway.billing.void(held.name(), cause, gateway.clock.now())).await;
    match voided {
        Ok(_) => info!(session = %held.id, account = %held.account, cause, "a session was voided"),
        Err(error) => {
            error!(%error, session = %held.id, "a session could not be voided; the next start will")
        }
    }
}

/// What the ledger has open and nobody here knows of, and since when: by a clock that nobody sets. One that is being admitted
/// is among them for a while.
#[derive(Debug, Default)]
pub struct Strays(HashMap<HoldId, Instant>);

impl Strays {
    /// Those that have been strays for longer than that.
    fn look(&mut self, strays: Vec<Session>, patience: Duration) -> Vec<Session> {
        let (now, known) = (Instant::now(), std::mem::take(&mut self.0));
        let since = |stray: &Session| (stray.hold, known.get(&stray.hold).copied().unwrap_or(now));
        self.0 = strays.iter().map(since).collect();
        strays.into_iter().filter(|stray| now.duration_since(self.0[&stray.hold]) > patience).collect()
    }
}

/// Settles what this gateway has open in the ledger and nowhere else: a store that failed for longer than [`RETRIES`], or
/// a task that panicked. When such a session ended is not known, so only its first minutes are billed.
///
/// # Errors
///
/// The store's; the next call tries again.
pub async fn repair(gateway: &Gateway, strays: &mut Strays) -> Result<(), Error> {
    let now = gateway.clock.now();
    let live = gateway.sessions.all();
    let open = gateway.billing.open_sessions_of(&gateway.id).await?;
    find_missing(gateway, live, &open).await?;
    let is_known = |session: &Session| {
        gateway.sessions.contains(session.name()) || gateway.owed.contains(session.name())
    };
    let unknown = open.into_iter().filter(|session| !is_known(session)).collect();
    for session in strays.look(unknown, gateway.start_timeout + ADMISSION) {
        // It may have been admitted since.
        if is_known(&session) {
            continue;
        }
        let repaired = match session.begun_at {
            None => gateway.billing.void(session.name(), "gateway fault", now).await,
            Some(at) => {
                let outcome = Outcome::Completed { cause: "gateway fault" };
                let end = End { at, outcome, up_bytes: session.up_bytes, down_bytes: session.down_bytes };
                gateway.billing.post(session.name(), end, now).await
            }
        };
        match repaired {
            Ok(_) => {
                error!(session = %session.id, account = %session.account, "settled a session that was left open")
            }
            // Its own task settled it between the two looks.
            Err(Error::Refused(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Looks after sessions that run here, and that the ledger does not have open.
async fn find_missing(gateway: &Gateway, live: Vec<Arc<Live>>, open: &[Session]) -> Result<(), Error> {
    if !gateway.billing.is_shared() {
        return Ok(());
    }
    let open: HashSet<_> = open.iter().map(|session| (&session.account, &session.id, session.hold)).collect();
    for live in live {
        if !open.contains(&(&live.account, &live.id, live.hold)) {
            recheck(gateway, &live).await?;
        }
    }
    Ok(())
}

/// What becomes of a session that runs here while the ledger does not have it open: whether it goes on. Where another
/// gateway has settled it, having taken this one for dead, it ends: it is nobody's any more. Where the store has forgotten
/// it, after a failover or a restart that lost what was written last, it is held once more.
///
/// # Errors
///
/// The store's; nothing was done then.
pub async fn recheck(gateway: &Gateway, live: &Live) -> Result<bool, StoreError> {
    // One whose hold is on its way is told by that what becomes of it.
    if live.is_ending() || !live.is_served() {
        return Ok(true);
    }
    match gateway.billing.session(&live.account, &live.id).await? {
        Some(session) if session.state.is_open() && session.hold == live.hold => Ok(true),
        Some(session) => {
            if !live.is_ending() {
                warn!(session = %live.id, account = %live.account, state = ?session.state, "a session ends: another gateway has settled it");
                live.end(Close::TryAgain);
            }
            Ok(false)
        }
        None if live.is_unsecured() => {
            match gateway.billing.hold_begun(&live.debt(0), gateway.clock.now()).await {
                Err(Error::Store(error)) => Err(error),
                Err(Error::Refused(refused)) => {
                    warn!(%refused, session = %live.id, account = %live.account, "a session on credit ends");
                    live.end(Close::NotAllowed);
                    Ok(false)
                }
                Ok(()) | Err(_) => Ok(true),
            }
        }
        None => hold_again(gateway, live).await,
    }
}

async fn hold_again(gateway: &Gateway, live: &Live) -> Result<bool, StoreError> {
    let Some(Reserved { session, .. }) = &live.reserved else {
        live.end(Close::TryAgain);
        return Ok(false);
    };
    let Session { account, id, .. } = session;
    match insist(gateway, (account, id), || gateway.billing.restore(session, gateway.clock.now())).await {
        Ok(()) => {
            warn!(session = %id, %account, "the store had forgotten a session; it is held again");
            Ok(true)
        }
        Err(HoldError::Store(error)) => Err(error),
        Err(error) => {
            warn!(%error, session = %id, %account, "a session ends: the store has forgotten it, and it cannot be held again");
            live.end(close_of(&error));
            Ok(false)
        }
    }
}

/// Tells of a session that another gateway had left open when it died.
pub fn report_lost_gateway(record: &Session) {
    metrics::counter!("ufb_gateway_swept_sessions_total").increment(1);
    warn!(
        session = %record.id,
        account = %record.account,
        gateway = %record.gateway,
        minutes = record.minutes,
        charged = %record.charged,
        "settled a session whose gateway is gone"
    );
}

/// Repeats what the store failed to do; the commands are idempotent.
async fn persist<F: Future<Output = Result<Session, Error>>>(
    command: impl Fn() -> F,
) -> Result<Session, Error> {
    for pause in RETRIES {
        match command().await {
            Err(Error::Store(_)) => sleep(pause).await,
            done => return done,
        }
    }
    command().await
}

/// Tells of a session that is settled.
pub fn report(record: &Session, outcome: &Outcome) {
    let (kind, cause) = match outcome {
        Outcome::Completed { cause } => ("completed", *cause),
        Outcome::Lost { cause } => ("lost", *cause),
    };
    metrics::counter!("ufb_gateway_sessions_total", "outcome" => kind, "cause" => cause).increment(1);
    metrics::counter!("ufb_gateway_session_cost_micros_total").increment(record.charged.get());
    metrics::counter!("ufb_gateway_bytes_total", "direction" => "up").increment(record.up_bytes);
    metrics::counter!("ufb_gateway_bytes_total", "direction" => "down").increment(record.down_bytes);
    info!(
        session = %record.id,
        account = %record.account,
        cause,
        minutes = record.minutes,
        charged = %record.charged,
        refunded = record.refunded,
        up_bytes = record.up_bytes,
        down_bytes = record.down_bytes,
        "a session was settled"
    );
}

#[cfg(test)]
mod tests {
    use billing::{NewSession, SessionRequest, State};

    use super::*;

    #[tokio::test]
    async fn a_clock_that_is_set_gives_up_nobody_who_is_being_admitted() {
        let (gateway, _folder) = Gateway::for_tests().await;
        let (who, now) = (gateway.customer_for_tests().await, gateway.clock.now());
        let new = NewSession::fresh(SessionRequest::default());
        let held = gateway.billing.reserve(&who, &new, &gateway.id, now).await.unwrap();
        let state = async || {
            let session = gateway.billing.session(&who.account, &held.session.id).await;
            session.unwrap().unwrap().state
        };
        let mut strays = Strays::default();

        repair(&gateway, &mut strays).await.unwrap();
        gateway.clock.move_on(Duration::from_secs(86_400));
        repair(&gateway, &mut strays).await.unwrap();
        assert_eq!(state().await, State::Held);

        tokio::time::pause();
        tokio::time::advance(gateway.start_timeout + ADMISSION + Duration::from_secs(1)).await;
        tokio::time::resume();
        repair(&gateway, &mut strays).await.unwrap();
        assert_ne!(state().await, State::Held);
    }
}
