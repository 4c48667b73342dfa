//! A session as its customer sees it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use billing::{KeyId, Session, SessionId, State, Timestamp, TrackingId};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::serve::Gateway;
use crate::sessions::Live;

use super::super::shapes::{self, Dollars, MicroDollars, Time};

const MINUTE_MILLIS: u64 = 60_000;

/// A session. While it runs, its figures are those of this moment.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Session")]
pub(in crate::api) struct View {
    #[schemars(schema_with = "shapes::id")]
    session_id: SessionId,
    status: Status,
    /// The key that started it.
    #[schemars(schema_with = "shapes::id")]
    key_id: KeyId,
    #[schemars(schema_with = "shapes::optional_id")]
    tracking_id: Option<TrackingId>,
    /// What was given when it was made.
    metadata: Option<Map<String, Value>>,
    /// For how long it was asked to last at most, in milliseconds.
    timeout: Option<u64>,
    /// The browser's name at whoever runs it; null where it does not run here, or not any more.
    container_id: Option<String>,
    /// When its minutes began to count; null where it never got a browser.
    started_at: Option<Time>,
    /// When it ended; null while it runs.
    ended_at: Option<Time>,
    /// When it is ended at the latest; null once it has ended.
    expires_at: Option<Time>,
    /// In milliseconds.
    duration: u64,
    /// Minutes that have started; once it has ended, minutes that were billed.
    minutes: u64,
    /// From clients to the browser.
    up_bytes: u64,
    /// From the browser to clients.
    down_bytes: u64,
    /// Money, from balance and overage together. While it runs, what is set aside for it.
    cost: Dollars,
    cost_micros: MicroDollars,
    /// Why it ended.
    cause: Option<String>,
    /// Whether it was lost and all that it had taken was given back.
    refunded: bool,
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) enum Status {
    /// The price is set aside, a browser is on its way.
    Starting,
    /// It has its browser, and its minutes count; nobody has connected yet.
    Waiting,
    /// Somebody has connected, and its minutes count.
    Running,
    /// It ended in an orderly way, and was charged.
    Completed,
    /// Its browser was lost.
    Lost,
    /// It never got a browser, and cost nothing.
    Voided,
}

impl Status {
    pub(super) fn of_live(live: &Live) -> Self {
        if live.is_detached() { Self::Waiting } else { Self::Running }
    }

    pub(super) fn of(session: &Session) -> Self {
        match session.state {
            State::Held => Self::Starting,
            State::Open => Self::Running,
            State::Posted if session.lost => Self::Lost,
            State::Posted => Self::Completed,
            State::Voided => Self::Voided,
        }
    }
}

impl View {
    pub(in crate::api) fn of(session: Session, gateway: &Gateway) -> Self {
        let live = gateway.sessions.find(&session.account, &session.id);
        let figures = Figures::of(&session, live.as_deref(), gateway.clock.now());
        let max_duration = gateway.limits.max_duration.min(session.request.timeout.unwrap_or(Duration::MAX));
        let started_at = live.as_ref().map(|live| live.begun_at).or(session.begun_at);
        Self {
            status: live.as_ref().map_or(Status::of(&session), |live| Status::of_live(live)),
            timeout: session.request.timeout.map(millis),
            container_id: live.as_ref().and_then(|live| Some(live.upstream()?.name())),
            started_at: started_at.map(Time),
            ended_at: session.ended_at.map(Time),
            expires_at: match session.state {
                State::Held | State::Open => started_at.map(|at| Time(after(at, max_duration))),
                State::Posted | State::Voided => None,
            },
            duration: figures.duration,
            minutes: figures.minutes,
            up_bytes: figures.up_bytes,
            down_bytes: figures.down_bytes,
            cost: Dollars(session.cost()),
            cost_micros: MicroDollars(session.cost()),
            session_id: session.id,
            key_id: session.key,
            tracking_id: session.request.tracking_id,
            metadata: session.request.metadata.map(|metadata| metadata.as_object().clone()),
            cause: session.cause,
            refunded: session.refunded,
        }
    }
}

/// How long a session lasted that has ended.
pub(super) fn duration(session: &Session) -> u64 {
    let ended = session.ended_at.zip(session.begun_at);
    ended.map_or(0, |(ended_at, begun_at)| millis(ended_at.since(begun_at)))
}

/// `duration` after `at`.
pub(super) fn after(at: Timestamp, duration: Duration) -> Timestamp {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Timestamp::from_millis(at.as_millis().saturating_add(millis))
}

struct Figures {
    duration: u64,
    minutes: u64,
    up_bytes: u64,
    down_bytes: u64,
}

impl Figures {
    /// Of a session that runs here: up to now. Of one that runs elsewhere, its bytes are not known yet.
    fn of(session: &Session, live: Option<&Live>, now: Timestamp) -> Self {
        let Session { up_bytes, down_bytes, .. } = *session;
        let lasted = |begun_at: Timestamp, to: Timestamp| millis(to.since(begun_at));
        let duration = match (live, session.begun_at) {
            (Some(live), _) => millis(live.begun.elapsed()),
            (None, Some(begun_at)) => lasted(begun_at, session.ended_at.unwrap_or(now)),
            (None, None) => 0,
        };
        let started = duration.div_ceil(MINUTE_MILLIS).max(1);
        let minutes = match session.state {
            State::Held if live.is_none() => 0,
            State::Held | State::Open => started,
            State::Posted | State::Voided => session.minutes.into(),
        };
        match live {
            Some(live) => Self {
                duration,
                minutes,
                up_bytes: live.up_bytes.load(Ordering::Relaxed),
                down_bytes: live.down_bytes.load(Ordering::Relaxed),
            },
            None => Self { duration, minutes, up_bytes, down_bytes },
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
