//! Every way out of a session: what it comes to for the ledger, and what its client is told.

use std::time::Duration;

use billing::{End, Error, Outcome, Session};
use pool::{Lease, Verdict};
use tokio::time::sleep;
use tracing::{error, info};

use crate::frame::Violation;
use crate::refusal::Close;
use crate::serve::Gateway;
use crate::sessions::Live;
use crate::splice::{Cause, Ended};

/// An end without a close frame looks the same for a crash and for `Browser.close`; the provider knows which it was as
/// soon as the process has ended, and Chrome takes up to a second to do so in an orderly way.
const VERDICT: Duration = Duration::from_secs(3);

/// A ledger that cannot be reached is asked again after each of these pauses. What is still open then is settled by the
/// next start, up to the last heartbeat.
const RETRIES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

/// From a browser's claim to the session's place among the live ones: far longer than it takes.
const ADMISSION: Duration = Duration::from_secs(60);

/// How a session ended: for the ledger, and for the client where it still listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    pub outcome: Outcome,
    pub close: Option<Close>,
}

/// Decides who pays.
pub async fn judge(cause: Cause, lease: &Lease) -> Judgement {
    match cause {
        Cause::ClientClosed => completed("client closed", None),
        Cause::ClientGone => completed("client gone", None),
        Cause::ClientFault(Violation::Protocol) => ended_by_us(Close::Protocol),
        Cause::ClientFault(Violation::TooBig) => ended_by_us(Close::TooBig),
        Cause::Told(close) => ended_by_us(close),
        Cause::BrowserGone => match lease.verdict(VERDICT).await {
            Verdict::Clean => ended_by_us(Close::Done),
            Verdict::Crashed => lost("browser crashed"),
            Verdict::Unknown => lost("browser lost"),
        },
    }
}

fn completed(cause: &'static str, close: Option<Close>) -> Judgement {
    Judgement { outcome: Outcome::Completed { cause }, close }
}

fn ended_by_us(close: Close) -> Judgement {
    completed(close.cause(), Some(close))
}

fn lost(cause: &'static str) -> Judgement {
    Judgement { outcome: Outcome::Lost { cause }, close: Some(Close::Lost) }
}

/// Posts the hold of a session that has begun. Waits for the disk.
pub async fn settle(gateway: &Gateway, live: &Live, ended: Ended, outcome: Outcome) {
    let lasted = u64::try_from(ended.lasted.as_millis()).unwrap_or(u64::MAX);
    let at = billing::Timestamp::from_millis(live.begun_at.as_millis().saturating_add(lasted));
    let end = End { at, outcome, up_bytes: ended.up_bytes, down_bytes: ended.down_bytes };
    let posted = persist(|| post(gateway, live, end.clone())).await;
    match posted {
        Ok(record) => report(&record, &outcome),
        Err(error) => {
            error!(%error, session = %live.id, "a session could not be settled; the next start will")
        }
    }
}

/// A session can end before the meter has noted its beginning, so that is made sure of first.
async fn post(gateway: &Gateway, live: &Live, end: End) -> Result<Session, Error> {
    let now = gateway.clock.now();
    gateway.billing.begin(&live.account, &live.id, live.begun_at, now).await?;
    gateway.billing.post(&live.account, &live.id, end, now).await
}

/// Gives back what a session took that never began.
pub async fn void(gateway: &Gateway, held: &Session, cause: &'static str) {
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
    for session in gateway.billing.open_sessions().await? {
        let is_ours =
            session.gateway == gateway.id && now.since(session.held_at) > gateway.start_timeout + ADMISSION;
        if !is_ours || gateway.sessions.contains(&session.account, &session.id) {
            continue;
        }
        let repaired = match session.begun_at {
            None => gateway.billing.void(&session, "gateway fault", now).await,
            Some(at) => {
                let outcome = Outcome::Completed { cause: "gateway fault" };
                let end = End { at, outcome, up_bytes: 0, down_bytes: 0 };
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
