//! Sessions on credit while the ledger is away, where the operator lets accounts have any: up to so much money for each, by
//! this gateway alone. What they come to is [kept](crate::owed) from their beginning on and settled when the ledger is back;
//! what their account then lacks is written off.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use billing::{AccountId, GatewayId, Micros, NewSession, Principal, Reserved, Terms, Timestamp};
use dashmap::DashMap;
use http::HeaderMap;

use crate::authenticate::credential;
use crate::owed::Owed;
use crate::query::Query;
use crate::refusal::Refusal;
use crate::serve::Gateway;

/// Accounts that are known by their sessions. One more, and all are forgotten; those in use come back.
const KNOWN: usize = 100_000;

/// Who may have sessions on credit.
#[derive(Debug)]
pub struct Unsecured {
    /// For each account. Zero: nobody may.
    most: Micros,
    /// Accounts that have had a session held here, and on which terms.
    known: DashMap<AccountId, Terms>,
    /// What was given and has not begun.
    pending: Mutex<HashMap<AccountId, Micros>>,
}

impl Unsecured {
    #[must_use]
    pub fn new(most: Micros) -> Self {
        Self { most, known: DashMap::new(), pending: Mutex::default() }
    }

    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.most > Micros::ZERO
    }

    /// A session was held by the ledger.
    pub fn note(&self, reserved: &Reserved) {
        if !self.is_allowed() {
            return;
        }
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        self.known.insert(reserved.session.account.clone(), reserved.session.terms);
    }

    /// A session on credit. None: it would be too much, or nobody knows the account here.
    pub fn start(
        &self,
        owed: &Owed,
        who: &Principal,
        new: &NewSession,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Option<Reserved> {
        if !self.is_allowed() {
            return None;
        }
        let terms = *self.known.get(&who.account)?;
        let reserved = Reserved::unsecured(who, new, terms, gateway, now)?;
        let mut pending = self.pending();
        let given = pending.get(&who.account).copied().unwrap_or_default();
        let after = given.checked_add(terms.session_price)?;
        if owed.on_credit(&who.account).checked_add(after)? > self.most {
            return None;
        }
        pending.insert(who.account.clone(), after);
        Some(reserved)
    }

    /// Whether a session on credit may have another minute on credit.
    #[must_use]
    pub fn may_go_on(&self, owed: &Owed, account: &AccountId, minute_price: Micros) -> bool {
        let pending = self.pending().get(account).copied().unwrap_or_default();
        let given = owed.on_credit(account).checked_add(pending);
        given.and_then(|given| given.checked_add(minute_price)).is_some_and(|after| after <= self.most)
    }

    /// It has begun, and is kept from here on; or it never will.
    pub fn release(&self, reserved: &Reserved) {
        let (account, price) = (&reserved.session.account, reserved.session.terms.session_price);
        let mut pending = self.pending();
        let left = pending.get(account).and_then(|given| given.checked_sub(price));
        match left.filter(|left| *left > Micros::ZERO) {
            Some(left) => drop(pending.insert(account.clone(), left)),
            None => drop(pending.remove(account)),
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<AccountId, Micros>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose key a request shows, by what is remembered: where the ledger could not be asked, and sessions on credit are allowed.
///
/// # Errors
///
/// `refusal`, where it is another, or nothing is remembered.
pub fn recall(
    gateway: &Gateway,
    headers: &HeaderMap,
    query: &Query,
    refusal: Refusal,
) -> Result<Principal, Refusal> {
    if !matches!(refusal, Refusal::LedgerAway) || !gateway.unsecured.is_allowed() {
        return Err(refusal);
    }
    let shown = credential(headers, query);
    shown.and_then(|shown| gateway.billing.recall(&shown)).ok_or(refusal)
}

#[cfg(test)]
mod tests {
    use billing::{Catalogue, Credit, Debt, KeyId, SessionRequest};

    use super::*;

    #[test]
    fn what_is_given_has_a_bound_in_which_its_minutes_count() {
        let folder = tempfile::tempdir().unwrap();
        let (gateway, now) = (GatewayId::random(), Timestamp::from_millis(1_000));
        let owed = Owed::new(folder.path(), &gateway);
        let who = Principal { account: AccountId::random(), key: KeyId::random() };
        let plan = Catalogue::default().get("enterprise").unwrap().clone();
        let terms = Terms {
            session_price: plan.session_price,
            session_minutes: plan.session_minutes,
            minute_price: plan.minute_price,
            overage: plan.overage,
            overage_cap: plan.overage_cap,
        };
        let unsecured = Unsecured::new(Micros::new(25_000));
        let fresh = || NewSession::fresh(SessionRequest::default());
        let start = || unsecured.start(&owed, &who, &fresh(), &gateway, now);
        assert!(start().is_none(), "nobody knows the account");

        unsecured.known.insert(who.account.clone(), terms);
        let (first, second) = (start().unwrap(), start().unwrap());
        assert!(start().is_none(), "a third one would be too much");
        unsecured.release(&second);
        unsecured.release(&start().unwrap());

        // The first one begins: five minutes are covered by its price, the others count.
        let may_go_on = |minutes| {
            let (account, session, hold) =
                (who.account.clone(), first.session.id.clone(), first.session.hold);
            let credit = Credit::of(&first);
            let entry = Debt {
                account,
                session,
                hold,
                begun_at: now,
                minutes,
                at: now,
                up_bytes: 0,
                down_bytes: 0,
                end: None,
                credit,
            };
            owed.keep(entry).unwrap();
            unsecured.may_go_on(&owed, &who.account, terms.minute_price)
        };
        assert!(may_go_on(0) && may_go_on(5));
        assert!(!may_go_on(11), "what was given and has not begun counts");
        unsecured.release(&first);
        assert!(may_go_on(11));
        assert!(!may_go_on(12), "$0.024 are on credit");
        assert!(start().is_none());
    }
}
