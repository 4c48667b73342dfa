//! Events: what other parts of the business are told of. The ledger derives them together with the change that they
//! tell of, and the store writes both in one step; so every store publishes the same, and none is told of what did
//! not happen.
//!
//! An event is small and is told at least once. Its id is the same however often it is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, KeyId, SessionId};
use crate::money::Micros;
use crate::time::Timestamp;

mod bell;

pub(crate) use bell::Bell;

/// The shape of an event as this program writes it. Fields are only ever added to one.
const SHAPE: u8 = 1;

/// What happened. In JSON the name that [`EventKind::as_str`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// An account was opened.
    #[serde(rename = "customer:activated")]
    CustomerActivated,
    /// A new period began: included sessions are refilled.
    #[serde(rename = "customer:billing-renewed")]
    BillingRenewed,
    /// A session's minutes began to count.
    #[serde(rename = "session:started")]
    SessionStarted,
    /// A session ended and was billed.
    #[serde(rename = "session:completed")]
    SessionCompleted,
    /// A session's browser was lost.
    #[serde(rename = "session:lost")]
    SessionLost,
    /// A session was refused. Told once a minute for each account at most, so that it cannot be flooded.
    #[serde(rename = "session:refused")]
    SessionRefused,
    /// A session, or a minute of one, took the balance below what its owner is to be told of. Told once, and again only after
    /// money was added that took it to there.
    #[serde(rename = "customer:low-balance")]
    LowBalance,
    /// A key is used in an unusual way, which is held back. Told once a minute for each account at most.
    #[serde(rename = "customer:unusual-use")]
    UnusualUse,
}

impl EventKind {
    /// The name, as consumers know it.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::CustomerActivated => "customer:activated",
            EventKind::BillingRenewed => "customer:billing-renewed",
            EventKind::SessionStarted => "session:started",
            EventKind::SessionCompleted => "session:completed",
            EventKind::SessionLost => "session:lost",
            EventKind::SessionRefused => "session:refused",
            EventKind::LowBalance => "customer:low-balance",
            EventKind::UnusualUse => "customer:unusual-use",
        }
    }
}

/// One event. In JSON what does not apply is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The shape's version.
    #[serde(rename = "v")]
    pub shape: u8,
    /// Unique, and the same each time that the event is told: the account, the version of the account that it came
    /// with, and its number among that version's events.
    pub id: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// When, in milliseconds since the epoch.
    pub at: Timestamp,
    /// The account.
    pub customer: AccountId,
    /// The account's plan.
    pub plan: String,
    /// The session that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The key that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// Why, in a few words from a closed set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// From a session's beginning to its end, in milliseconds.
    #[serde(rename = "durationMs", skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
    /// What the session cost, in micro-dollars.
    #[serde(rename = "costMicros", skip_serializing_if = "Option::is_none")]
    pub cost: Option<Micros>,
    /// What the balance is now, in micro-dollars.
    #[serde(rename = "balanceMicros", default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Micros>,
    /// What it is below.
    #[serde(rename = "thresholdMicros", default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Micros>,
}

/// What an event tells beyond its kind and its account.
#[derive(Debug, Default)]
pub(crate) struct Told<'a> {
    pub(crate) session: Option<&'a SessionId>,
    pub(crate) key: Option<&'a KeyId>,
    pub(crate) cause: Option<&'a str>,
    pub(crate) duration: Option<Duration>,
    pub(crate) cost: Option<Micros>,
    /// The balance, and what it is below.
    pub(crate) low: Option<(Micros, Micros)>,
}

impl Event {
    /// The `number`th event of the change that makes version `version` of an account.
    pub(crate) fn new(
        (customer, plan, version): (&AccountId, &str, u64),
        number: usize,
        (kind, at): (EventKind, Timestamp),
        told: &Told<'_>,
    ) -> Event {
        Event {
            shape: SHAPE,
            id: format!("{customer}-{version}-{number}"),
            kind,
            at,
            customer: customer.clone(),
            plan: plan.to_owned(),
            session: told.session.cloned(),
            key: told.key.cloned(),
            cause: told.cause.map(str::to_owned),
            duration: told.duration.map(|lasted| u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX)),
            cost: told.cost,
            balance: told.low.map(|(balance, _)| balance),
            threshold: told.low.map(|(_, threshold)| threshold),
        }
    }
}

/// What a stream has at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// What happened.
    Event(Box<Event>),
    /// What this program does not understand, as it is there: a later one told it, or it was damaged.
    Unreadable(String),
}

impl Heard {
    pub(crate) fn read(body: &[u8]) -> Heard {
        match serde_json::from_slice(body) {
            Ok(event) => Heard::Event(Box::new(event)),
            Err(_) => Heard::Unreadable(legible(body)),
        }
    }

    /// What happened, where it is understood.
    pub fn event(&self) -> Option<&Event> {
        match self {
            Heard::Event(event) => Some(event),
            Heard::Unreadable(_) => None,
        }
    }
}

/// The same bytes as a text; those that are none are escaped.
pub(crate) fn legible(body: &[u8]) -> String {
    std::str::from_utf8(body).map_or_else(|_| body.escape_ascii().to_string(), str::to_owned)
}

/// A place in a stream of events: what was read up to there. Only the store that gave it understands it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Cursor(pub(crate) String);

impl Cursor {
    /// Before the first event.
    pub fn start() -> Cursor {
        Cursor::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_small_and_named_as_consumers_know_it() {
        let customer = "acme".parse().unwrap();
        let session = "s1".parse().unwrap();
        let told = Told {
            session: Some(&session),
            cause: Some("client closed"),
            duration: Some(Duration::from_secs(720)),
            cost: Some(Micros::new(24_000)),
            ..Told::default()
        };
        let at = Timestamp::from_millis(1_800_007_200_000);
        let event = Event::new((&customer, "starter", 17), 0, (EventKind::SessionCompleted, at), &told);
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"v":1,"id":"acme-17-0","type":"session:completed","at":1800007200000,"customer":"acme","plan":"starter","session":"s1","cause":"client closed","durationMs":720000,"costMicros":24000}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        let bare =
            Event::new((&customer, "starter", 1), 0, (EventKind::CustomerActivated, at), &Told::default());
        assert!(!serde_json::to_string(&bare).unwrap().contains("null"));
        assert_eq!(serde_json::from_str::<Event>(&serde_json::to_string(&bare).unwrap()).unwrap(), bare);
    }

    #[test]
    fn names_in_json_are_those_of_the_kind() {
        use EventKind::*;
        for kind in [
            CustomerActivated,
            BillingRenewed,
            SessionStarted,
            SessionCompleted,
            SessionLost,
            SessionRefused,
            LowBalance,
            UnusualUse,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
