//! What the gateways of one place owe the ledger, as their data directory keeps it: a kill takes nothing of it, and the next
//! gateway there goes on with it. `gateway/src/owed.rs` and `unsecured.rs` do the same with a file.

use std::collections::BTreeMap;

use crate::books::Debt;
use crate::id::{AccountId, HoldId, SessionId};
use crate::money::Micros;
use crate::session::SessionName;

pub(super) type Name = (AccountId, SessionId, HoldId);

pub(super) fn name_of(name: SessionName<'_>) -> Name {
    (name.account.clone(), name.session.clone(), name.hold)
}

#[derive(Debug, Default)]
pub(super) struct Debts {
    entries: BTreeMap<Name, Debt>,
    /// Given on credit, and not begun.
    pending: BTreeMap<AccountId, Micros>,
}

impl Debts {
    pub(super) fn keep(&mut self, debt: Debt) {
        let name = name_of(debt.name());
        // Its meter may be a moment behind its end.
        if debt.end.is_none() && self.entries.get(&name).is_some_and(|earlier| earlier.end.is_some()) {
            return;
        }
        self.entries.insert(name, debt);
    }

    /// It was committed, or cannot be. Another one of its session stays.
    pub(super) fn forget(&mut self, debt: &Debt) {
        let name = name_of(debt.name());
        if self.entries.get(&name) == Some(debt) {
            self.entries.remove(&name);
        }
    }

    /// Whether it is this very entry, and no later one of its session.
    pub(super) fn owes(&self, debt: &Debt) -> bool {
        self.entries.get(&name_of(debt.name())) == Some(debt)
    }

    pub(super) fn settled(&mut self, name: &Name) {
        self.entries.remove(name);
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        self.entries.contains_key(name)
    }

    pub(super) fn all(&self) -> Vec<Debt> {
        self.entries.values().cloned().collect()
    }

    /// A process begins, and another has ended.
    pub(super) fn adopt(&mut self) {
        self.pending.clear();
    }

    pub(super) fn on_credit(&self, account: &AccountId) -> Micros {
        let theirs = self.entries.values().filter(|debt| debt.account == *account);
        theirs.fold(Micros::ZERO, |sum, debt| sum.checked_add(debt.on_credit()).expect("it is small"))
    }

    /// The same with what has not begun.
    pub(super) fn given(&self, account: &AccountId) -> Micros {
        let pending = self.pending.get(account).copied().unwrap_or_default();
        self.on_credit(account).checked_add(pending).expect("it is small")
    }

    /// Whether a session may be given on credit; if so, it is, until [`Debts::release`].
    pub(super) fn give(&mut self, account: &AccountId, price: Micros, most: Micros) -> bool {
        let pending = self.pending.get(account).copied().unwrap_or_default();
        let after = pending.checked_add(price).expect("it is small");
        let is_allowed = self.on_credit(account).checked_add(after).is_some_and(|sum| sum <= most);
        if is_allowed {
            self.pending.insert(account.clone(), after);
        }
        is_allowed
    }

    pub(super) fn release(&mut self, account: &AccountId, price: Micros) {
        if let Some(pending) = self.pending.get_mut(account) {
            *pending = pending.checked_sub(price).unwrap_or_default();
        }
    }
}
