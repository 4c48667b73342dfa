//! Sessions on credit, while the store is away.

use std::slice;

use super::{Applied, Billing, Error, Order, Reserved};
use crate::id::{GatewayId, HoldId};
use crate::key::{Principal, Secret};
use crate::ledger::{self, Answer};
use crate::plan::Terms;
use crate::request::NewSession;
use crate::session::{Funding, Session, State};
use crate::store::Durability;
use crate::time::Timestamp;

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
        let session =
            Session::held(whose, (new, HoldId::random()), gateway, (terms, Funding::default()), now);
        new.is_fresh.then_some(Reserved { session, concurrent: 1, deferred: None, is_unsecured: true })
    }

    /// Whether nothing is set aside for it.
    pub fn is_unsecured(&self) -> bool {
        self.is_unsecured
    }
}

impl Billing {
    /// Whose key this is, by what is remembered, without any I/O. It may have been revoked since.
    pub fn recall(&self, presented: &str) -> Option<Principal> {
        Secret::parse(presented).and_then(|secret| self.store().recall(&secret.hash()))
    }

    /// Holds a session that has begun while the store was away, whatever its account has: what that cannot pay is written
    /// off. A repeat changes nothing, nor does anything where its id is another session's.
    ///
    /// # Errors
    /// [`Error::NoAccount`], or the store's.
    pub async fn hold_begun(
        &self,
        who: &Principal,
        (new, hold): (&NewSession, HoldId),
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<(), Error> {
        let sessions = slice::from_ref(&new.id);
        let order = Order { account: &who.account, sessions, durability: Durability::Process, now };
        let held = self.apply::<Error>(order, |account, session, given| match session {
            Some(session) if session.state != State::Voided => Ok(Answer::Exists),
            voided => Ok(ledger::hold_begun(account, &who.key, (new, hold), gateway, voided, given)),
        });
        match held.await?.ok_or(Error::NoAccount)? {
            Applied::Changed(_) | Applied::Exists => Ok(()),
        }
    }
}
