//! A session as the ledger sees it: what was set aside for it, and what it cost.

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, GatewayId, HoldId, KeyId, SessionId};
use crate::money::Micros;
use crate::plan::Terms;
use crate::request::{NewSession, SessionRequest};
use crate::time::Timestamp;

const MINUTE_MILLIS: u64 = 60_000;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The price is set aside; the client has no browser yet.
    Held,
    /// The client has its browser, and minutes count.
    Open,
    /// Ended and billed. Final.
    Posted,
    /// Given up before it began; nothing was billed. Final.
    Voided,
}

impl State {
    /// Whether money is set aside.
    pub fn is_open(self) -> bool {
        match self {
            State::Held | State::Open => true,
            State::Posted | State::Voided => false,
        }
    }
}

/// What a session's price was taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Funding {
    /// Included sessions: one or none.
    pub included: u32,
    /// Retry credits: one or none.
    pub retry: u32,
    /// Money from the balance.
    pub balance: Micros,
    /// Money to be billed afterwards.
    pub overage: Micros,
}

/// One session, from the hold to its final record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its name within the account.
    pub id: SessionId,
    /// Whose it is.
    pub account: AccountId,
    /// The key that started it.
    pub key: KeyId,
    /// The gateway that serves it.
    pub gateway: GatewayId,
    /// Where it stands.
    pub state: State,
    /// Which hold of its id it is: a session that was voided was none, so its id is free.
    pub hold: HoldId,
    /// What its customer asked for.
    #[serde(default, skip_serializing_if = "SessionRequest::is_empty")]
    pub request: SessionRequest,
    /// It was held before anybody asked for it, and is not known to have begun.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ahead: bool,
    /// What it costs, as agreed when it started.
    pub terms: Terms,
    /// Minutes set aside; once it has ended, minutes billed.
    pub minutes: u32,
    /// What they were taken from, less what went back.
    pub funding: Funding,
    /// Money that it cost, from balance and overage together; zero until it has ended.
    pub charged: Micros,
    /// When the price was set aside.
    pub held_at: Timestamp,
    /// When its minutes began to count.
    pub begun_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Bytes from the client to the browser.
    pub up_bytes: u64,
    /// Bytes from the browser to the client.
    pub down_bytes: u64,
    /// Why it ended.
    pub cause: Option<String>,
    /// Whether its browser was lost.
    pub lost: bool,
    /// Whether it was lost and everything that it had taken went back.
    pub refunded: bool,
    /// Minutes that were not set aside because the store was away, and that nobody could pay for afterwards.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub written_off: Micros,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_nothing(amount: &Micros) -> bool {
    *amount == Micros::ZERO
}

impl Session {
    /// As it is with its hold.
    pub(crate) fn held(
        whose: (&AccountId, &KeyId),
        (new, hold): (&NewSession, HoldId),
        gateway: &GatewayId,
        (terms, funding): (Terms, Funding),
        at: Timestamp,
    ) -> Session {
        Session {
            id: new.id.clone(),
            account: whose.0.clone(),
            key: whose.1.clone(),
            gateway: gateway.clone(),
            state: State::Held,
            hold,
            request: new.request.clone(),
            ahead: false,
            terms,
            minutes: terms.session_minutes,
            funding,
            charged: Micros::ZERO,
            held_at: at,
            begun_at: None,
            ended_at: None,
            up_bytes: 0,
            down_bytes: 0,
            cause: None,
            lost: false,
            refunded: false,
            written_off: Micros::ZERO,
        }
    }

    /// What commands name it by.
    pub fn name(&self) -> SessionName<'_> {
        SessionName { account: &self.account, session: &self.id, hold: self.hold }
    }

    /// Money, from balance and overage together: what is set aside for it; once it has ended, what it cost.
    pub fn cost(&self) -> Micros {
        self.funding.balance.checked_add(self.funding.overage).unwrap_or(Micros::MAX)
    }

    /// Whether it ended just so; which tells a repeated post from another one.
    pub(crate) fn ended_with(&self, begun_at: Timestamp, end: &End) -> bool {
        let (lost, cause) = end.outcome.parts();
        self.ended_at == Some(end.at.max(begun_at))
            && (self.up_bytes, self.down_bytes) == (end.up_bytes, end.down_bytes)
            && self.lost == lost
            && self.cause.as_deref() == Some(cause)
    }
}

/// What commands name a session by. A command that comes when the id belongs to another session, since this one was given
/// up, changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionName<'a> {
    /// Whose it is.
    pub account: &'a AccountId,
    /// Its id.
    pub session: &'a SessionId,
    /// Which hold of the id it is.
    pub hold: HoldId,
}

/// A session's place in the list of an account's sessions, the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionCursor {
    /// When it was held.
    pub held_at: Timestamp,
    /// Its name, which decides between those of one instant.
    pub id: SessionId,
}

impl From<&Session> for SessionCursor {
    fn from(session: &Session) -> Self {
        SessionCursor { held_at: session.held_at, id: session.id.clone() }
    }
}

/// The end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// When it ended. An end before its beginning counts as one at its beginning.
    pub at: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes from the client to the browser.
    pub up_bytes: u64,
    /// Bytes from the browser to the client.
    pub down_bytes: u64,
}

/// How a session ended, which decides who pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By its client, its owner, a limit, or us in an orderly way: it is charged.
    Completed {
        /// Why, in a few words from a closed set.
        cause: &'static str,
    },
    /// Its browser was lost: it is refunded, up to a number a day.
    Lost {
        /// Why, in a few words from a closed set.
        cause: &'static str,
    },
}

impl Outcome {
    /// Whether the browser was lost, and the cause.
    pub(crate) fn parts(self) -> (bool, &'static str) {
        match self {
            Outcome::Completed { cause } => (false, cause),
            Outcome::Lost { cause } => (true, cause),
        }
    }
}

/// Minutes that had started by the end; the first starts with the session.
pub(crate) fn started_minutes(begun_at: Timestamp, ended_at: Timestamp) -> u64 {
    ended_at.as_millis().saturating_sub(begun_at.as_millis()).div_ceil(MINUTE_MILLIS).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_that_has_started_counts() {
        let cases = [(0, 1), (1, 1), (60_000, 1), (60_001, 2), (300_000, 5), (300_001, 6), (720_000, 12)];
        for (millis, minutes) in cases {
            let begun = Timestamp::from_millis(1_000);
            assert_eq!(
                started_minutes(begun, Timestamp::from_millis(1_000 + millis)),
                minutes,
                "{millis} ms"
            );
        }
    }
}
