//! What the ledger has to be told of a session and could not be, since its store was away: minutes that started, its end, or
//! by an operator's leave all of it. A gateway keeps it until it can; telling it again changes nothing.

use std::slice;

use serde::{Deserialize, Serialize};

use super::{Applied, Billing, Cover, Error, Order, Reserved};
use crate::id::{AccountId, GatewayId, HoldId, KeyId, SessionId};
use crate::key::{Principal, Secret};
use crate::ledger::{self, Answer, Progress};
use crate::money::Micros;
use crate::plan::Terms;
use crate::request::{NewSession, SessionRequest};
use crate::session::{End, Funding, Outcome, Session, SessionName, State};
use crate::store::{Durability, StoreError};
use crate::time::Timestamp;

/// Why a session ended that was running when its gateway was killed.
const GATEWAY_LOST: &str = "gateway lost";

/// How far a session had come, by what its gateway has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debt {
    /// Whose session it is.
    pub account: AccountId,
    /// The session.
    pub session: SessionId,
    /// Which hold of that id it is.
    pub hold: HoldId,
    /// From when on its minutes count.
    pub begun_at: Timestamp,
    /// Minutes that have started, where some of them may not be set aside; else none.
    pub minutes: u32,
    /// When that was.
    pub at: Timestamp,
    /// Bytes from the client to the browser so far.
    pub up_bytes: u64,
    /// Bytes from the browser to the client so far.
    pub down_bytes: u64,
    /// How it ended at that moment. `None`: it ran.
    pub end: Option<Ended>,
    /// What to hold it with, where the ledger may not have heard of it at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit: Option<Credit>,
}

/// What a session takes to be held that the ledger may not have heard of: it began on credit, or the store failed before its
/// hold was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    key: KeyId,
    gateway: GatewayId,
    request: SessionRequest,
    terms: Terms,
}

/// How a session ended, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    lost: bool,
    cause: String,
}

impl Credit {
    /// `None`: its price is set aside for sure.
    pub fn of(reserved: &Reserved) -> Option<Self> {
        let Session { key, gateway, request, terms, .. } = &reserved.session;
        let (key, gateway, request) = (key.clone(), gateway.clone(), request.clone());
        (!reserved.is_held()).then_some(Self { key, gateway, request, terms: *terms })
    }
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        let (lost, cause) = outcome.parts();
        Self { lost, cause: cause.to_owned() }
    }
}

impl Debt {
    /// What commands name its session by.
    pub fn name(&self) -> SessionName<'_> {
        SessionName { account: &self.account, session: &self.session, hold: self.hold }
    }

    /// Its end, for a cause that is known; of one that ran, what is known of it.
    pub fn end(&self, mut causes: impl Iterator<Item = &'static str>) -> End {
        let Debt { at, up_bytes, down_bytes, .. } = *self;
        let outcome = match &self.end {
            None => Outcome::Completed { cause: GATEWAY_LOST },
            Some(Ended { lost, cause }) => {
                let cause = causes.find(|known| known == cause).unwrap_or(GATEWAY_LOST);
                if *lost { Outcome::Lost { cause } } else { Outcome::Completed { cause } }
            }
        };
        End { at, outcome, up_bytes, down_bytes }
    }

    /// What nobody has set aside of it.
    pub fn on_credit(&self) -> Micros {
        let Some(Credit { terms, .. }) = &self.credit else { return Micros::ZERO };
        let minutes = terms.minute_price.checked_mul(self.minutes.saturating_sub(terms.session_minutes));
        minutes.and_then(|price| price.checked_add(terms.session_price)).unwrap_or(Micros::MAX)
    }

    /// What the ledger is told of its minutes.
    pub fn progress(&self) -> Progress {
        Progress {
            session: self.session.clone(),
            hold: self.hold,
            begun_at: self.begun_at,
            minutes: self.minutes,
            owed: self.minutes,
            up_bytes: self.up_bytes,
            down_bytes: self.down_bytes,
        }
    }
}

impl Reserved {
    /// One that nothing is set aside for: as if it were held on these terms. [`Billing::hold_begun`] has to follow once it has
    /// begun and the store is back. `None`: its id was chosen by a customer, so that it may be one that exists.
    pub fn unsecured(
        who: &Principal,
        new: &NewSession,
        terms: Terms,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Option<Reserved> {
        let whose = (&who.account, &who.key);
        let held = (new, HoldId::random());
        let session = Session::held(whose, held, gateway, (terms, Funding::default()), now);
        new.is_fresh.then_some(Reserved { session, concurrent: 1, cover: Cover::Credit })
    }

    /// Whether nothing is set aside for it.
    pub fn is_unsecured(&self) -> bool {
        matches!(self.cover, Cover::Credit)
    }
}

impl Billing {
    /// Whose key this is, by what is remembered, without any I/O. It may have been revoked since.
    pub fn recall(&self, presented: &str) -> Option<Principal> {
        Secret::parse(presented).and_then(|secret| self.store().recall(&secret.hash()))
    }

    /// Tells the ledger of the minutes that it could not be told of. Whether it has the session open, and them with it. What
    /// is kept of its end is to be [posted](Billing::post) then, if it has not gone on since.
    ///
    /// # Errors
    /// The store's: it is owed still. A repeat changes nothing twice.
    pub async fn repay(&self, debt: &Debt, now: Timestamp) -> Result<bool, StoreError> {
        if let Err(Error::Store(error)) = self.hold_begun(debt, now).await {
            return Err(error);
        }
        let metered = self.meter(&debt.account, &[debt.progress()], now).await?;
        Ok(metered.iter().all(Result::is_ok))
    }

    /// Holds a session that began on credit, whatever its account has: what that cannot pay is written off. A repeat changes
    /// nothing, nor does anything where its id is another session's, or it was held before.
    ///
    /// # Errors
    /// [`Error::NoAccount`], [`Refused::Erased`](ledger::Refused::Erased) where nobody is left to be billed, or the store's.
    pub async fn hold_begun(&self, debt: &Debt, now: Timestamp) -> Result<(), Error> {
        let Debt { account, session: id, hold, .. } = debt;
        let Some(Credit { key, gateway, request, .. }) = &debt.credit else { return Ok(()) };
        let new = NewSession::named(id.clone(), request.clone());
        let order = Order { account, sessions: slice::from_ref(id), durability: Durability::Process, now };
        let held = self.apply::<Error>(order, |account, session, given| match session {
            Some(session) if session.state != State::Voided => Ok(Answer::Exists),
            voided => {
                ledger::hold_begun(account, key, (&new, *hold), gateway, voided, given).map_err(Error::from)
            }
        });
        match held.await?.ok_or(Error::NoAccount)? {
            Applied::Changed(_) | Applied::Exists => Ok(()),
        }
    }
}
