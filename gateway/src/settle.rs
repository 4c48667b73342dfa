//! Every way out of a session: what it comes to for the ledger, and what its client is told.

use std::sync::atomic::Ordering;
use std::time::Duration;

use billing::{Billing, End, Error, Outcome, Reserved, Session};
use pool::{Upstream, Verdict};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::frame::Violation;
use crate::hold::confirm_late;
use crate::refusal::Close;
use crate::serve::Gateway;
use crate::sessions::Live;
use crate::splice::Cause;

/// An end without a close frame looks the same for a crash and for `Browser.close`; the provider knows which it was as
/// soon as the process has ended, and Chrome takes up to a second to do so in an orderly way.
const VERDICT: Duration = Duration::from_secs(3);

/// A ledger that cannot be reached is asked again after each of these pauses. What is still open then is settled by the
/// next start, up to the last heartbeat.
const RETRIES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

/// Settlements under way on a store of one's own. They share an fsync, so that eight to each is as fast as any disk wants;
/// and the next client waits for a millisecond of them at most.
const AT_A_TIME: usize = 8;

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
        Cause::ClientClosed => Judgement::Left("client closed"),
        Cause::ClientGone => Judgement::Left("client gone"),
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
        Verdict::Crashed => Reason::lost("browser crashed"),
        Verdict::Unknown => Reason::lost("browser lost"),
    }
}

/// Turns to settle, where that keeps an edge thread busy: with a store of its own. Sessions that end by the hundred would
/// otherwise all be settled before the next client is so much as read from. Who starts is in a hurry, who has ended is not.
#[derive(Debug)]
pub struct Settling(Option<Semaphore>);

impl Settling {
    #[must_use]
    pub fn of(billing: &Billing) -> Self {
        Self((!billing.is_shared()).then(|| Semaphore::new(AT_A_TIME)))
    }

    /// In the order in which they ask.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        match &self.0 {
            Some(turns) => Some(turns.acquire().await.expect("nobody closes it")),
            None => None,
        }
    }
}

/// Posts the hold of a session that has begun and lasted so long. Waits for the disk.
pub async fn settle(gateway: &Gateway, live: &Live, lasted: Duration, outcome: Outcome) {
    let lasted = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX);
    let at = billing::Timestamp::from_millis(live.begun_at.as_millis().saturating_add(lasted));
    let (up_bytes, down_bytes) =
        (live.up_bytes.load(Ordering::Relaxed), live.down_bytes.load(Ordering::Relaxed));
    let end = End { at, outcome, up_bytes, down_bytes };
    let posted = persist(|| post(gateway, live, end.clone())).await;
    match posted {
        Ok(record) => {
            report(&record, &outcome);
            live.note_record(record);
        }
        Err(error) => {
            error!(%error, session = %live.id, "a session could not be settled; the next start will")
        }
    }
}

/// A session can end before the meter has noted its beginning, so that is made sure of first.
async fn post(gateway: &Gateway, live: &Live, end: End) -> Result<Session, Error> {
    let _turn = gateway.settling.turn().await;
    let now = gateway.clock.now();
    gateway.billing.begin(&live.account, &live.id, live.begun_at, now).await?;
    gateway.billing.post(&live.account, &live.id, end, now).await
}

/// Gives back what a session took that never began.
pub async fn void(gateway: &Gateway, reserved: &Reserved, cause: &'static str) {
    let held = &reserved.session;
    if confirm_late(gateway, reserved).await.is_err() {
        // Nothing was taken, or the ledger is away and whatever it has is repaired.
        return;
    }
    let voided = persist(|| gateway.billing.void(held, cause, gateway.clock.now())).await;
    match voided {
        Ok(_) => info!(session = %held.id, account = %held.account, cause, "a session was voided"),
        Err(error) => {
            error!(%error, session = %held.id, "a session could not be voided; the next start will")
        }
    }
}

/// Settles what this gateway has open in the ledger and nowhere else: a store that failed for longer than [`RETRIES`], or
/// a task that panicked. When such a session ended is not known, so only its first minutes are billed.
///
/// # Errors
///
/// The store's; the next call tries again.
pub async fn repair(gateway: &Gateway) -> Result<(), Error> {
    let now = gateway.clock.now();
    for session in gateway.billing.open_sessions_of(&gateway.id).await? {
        let is_settled_soon = now.since(session.held_at) <= gateway.start_timeout + ADMISSION;
        if is_settled_soon || gateway.sessions.contains(&session.account, &session.id) {
            continue;
        }
        let repaired = match session.begun_at {
            None => gateway.billing.void(&session, "gateway fault", now).await,
            Some(at) => {
                let outcome = Outcome::Completed { cause: "gateway fault" };
                let end = End { at, outcome, up_bytes: session.up_bytes, down_bytes: session.down_bytes };
                gateway.billing.post(&session.account, &session.id, end, now).await
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

fn report(record: &Session, outcome: &Outcome) {
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
