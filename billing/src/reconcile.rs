//! Reconciliation: what an account's sessions came to in a month, worked out from its audit log alone, and what the running
//! totals say of it. The rules are written down with the log ([`audit`](crate::Entry)); whoever differs is named.

use std::collections::HashMap;

use crate::account::Account;
use crate::audit::{Entry, EntryKind, Fault, Replay};
use crate::books::{Billing, CONFLICTS_MAX, Error};
use crate::id::{AccountId, SessionId};
use crate::money::Micros;
use crate::store::{LIST_MAX, StoreError};
use crate::time::Period;
use crate::usage::{Span, Usage};

/// What the sessions that ended in a month came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reckoning {
    /// Sessions, lost ones among them; not those that never began.
    pub sessions: u64,
    /// Started minutes that were billed, included ones among them.
    pub minutes: u64,
    /// Sessions that an included one paid for.
    pub included: u64,
    /// The part of the charge that is billed afterwards.
    pub overage: Micros,
    /// Money, from balance and overage together.
    pub charged: Micros,
}

impl Reckoning {
    /// The same figures of the running totals.
    fn of(usage: Usage) -> Reckoning {
        let Usage { sessions, minutes, included, overage, cost: charged, .. } = usage;
        Reckoning { sessions, minutes, included, overage, charged }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, more: Reckoning) -> Reckoning {
        let sum = |one: Micros, other| one.checked_add(other).unwrap_or(Micros::MAX);
        Reckoning {
            sessions: self.sessions.saturating_add(more.sessions),
            minutes: self.minutes.saturating_add(more.minutes),
            included: self.included.saturating_add(more.included),
            overage: sum(self.overage, more.overage),
            charged: sum(self.charged, more.charged),
        }
    }

    fn figures(&self) -> [(&'static str, u64); 5] {
        [
            ("sessions", self.sessions),
            ("minutes", self.minutes),
            ("included", self.included),
            ("overage", self.overage.get()),
            ("charged", self.charged.get()),
        ]
    }
}

/// Where the log and what is kept beside it disagree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The log has a fault of its own, or does not lead to the account's figures.
    #[error("log: {0}")]
    Log(#[from] Fault),
    /// A figure of the month.
    #[error("{name}: {log} by the log, {totals} by the totals")]
    Figure {
        /// Its name; money is in micro-dollars.
        name: &'static str,
        /// What the log says.
        log: u64,
        /// What the running totals say.
        totals: u64,
    },
}

/// One account's month, reckoned twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconciled {
    /// Whose it is.
    pub account: AccountId,
    /// The plan that it is on now.
    pub plan: String,
    /// By the audit log alone.
    pub log: Reckoning,
    /// By the running totals.
    pub totals: Reckoning,
    /// What is different; nothing, where all is well.
    pub differences: Vec<Difference>,
}

impl Billing {
    /// Reckons what an account's sessions came to in a month from its audit log alone, and holds that against its figures
    /// and its usage. Gateways may be at work meanwhile.
    ///
    /// # Errors
    /// [`Error::NoAccount`], or the store's. A difference is none: it is in the answer.
    pub async fn reconcile(&self, account: &AccountId, month: Period) -> Result<Reconciled, Error> {
        let mut tally = Tally::of(month);
        let mut rounds = CONFLICTS_MAX;
        loop {
            self.read_on(account, &mut tally).await?;
            let used = self.usage(account, Span::Month, 1, month.start).await?;
            let totals = used.into_iter().fold(Usage::default(), |sum, used| sum.plus(used.usage));
            let now = self.account(account).await?.ok_or(Error::NoAccount)?;
            // The totals change with the log only: as long as that has no more, all three are of one moment.
            let is_still = tally.read_to().is_none_or(|seq| seq >= now.head.seq);
            rounds -= 1;
            if is_still || rounds == 0 {
                return Ok(tally.compare(&now, totals));
            }
        }
    }

    /// Reads the entries of a log that are not in the tally yet.
    async fn read_on(&self, account: &AccountId, tally: &mut Tally) -> Result<(), StoreError> {
        while let Some(seq) = tally.read_to() {
            let page = self.audit(account, seq, LIST_MAX).await?;
            if page.is_empty() {
                return Ok(());
            }
            page.iter().for_each(|entry| tally.entry(account, entry));
        }
        Ok(())
    }
}

/// What an open session has taken so far.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    included: i64,
    /// From balance and overage together.
    money: i64,
    overage: i64,
}

impl Taken {
    /// Adds what one entry took, or takes off what it gave back.
    fn and(self, entry: &Entry) -> Taken {
        Taken {
            included: self.included.saturating_sub(entry.included),
            money: self.money.saturating_add(entry.overage).saturating_sub(entry.amount),
            overage: self.overage.saturating_add(entry.overage),
        }
    }

    /// The same with the last entry, which gives back overage first, also where that was billed with an earlier period and
    /// comes back as balance.
    fn settled_by(self, entry: &Entry) -> Taken {
        let back = entry.amount.saturating_sub(entry.overage);
        Taken { overage: self.overage.saturating_sub(back.min(self.overage)), ..self.and(entry) }
    }
}

/// A log that is being read, entry by entry.
#[derive(Debug)]
pub(crate) struct Tally {
    month: Period,
    replay: Replay,
    open: HashMap<SessionId, Taken>,
    sums: Reckoning,
    fault: Option<Fault>,
}

impl Tally {
    pub(crate) fn of(month: Period) -> Tally {
        Tally {
            month,
            replay: Replay::default(),
            open: HashMap::new(),
            sums: Reckoning::default(),
            fault: None,
        }
    }

    /// The number of the last entry that was read. None where the log is broken, so that reading on tells nothing.
    pub(crate) fn read_to(&self) -> Option<u64> {
        self.fault.is_none().then(|| self.replay.seq())
    }

    pub(crate) fn entry(&mut self, account: &AccountId, entry: &Entry) {
        match self.replay.entry(account, entry) {
            Ok(()) => self.add(entry),
            Err(fault) => self.fault = self.fault.or(Some(fault)),
        }
    }

    fn add(&mut self, entry: &Entry) {
        let Some(session) = &entry.session else { return };
        match entry.kind {
            EntryKind::Held | EntryKind::Extended => {
                let taken = self.open.entry(session.clone()).or_default();
                *taken = taken.and(entry);
            }
            EntryKind::Posted | EntryKind::LostRefund => {
                let taken = self.open.remove(session).unwrap_or_default().settled_by(entry);
                if entry.ended.is_some_and(|at| self.month.contains(at)) {
                    self.sums = self.sums.plus(reckoned(taken, entry));
                }
            }
            EntryKind::Voided => {
                self.open.remove(session);
            }
            EntryKind::Opened
            | EntryKind::Credited
            | EntryKind::Suspended
            | EntryKind::Resumed
            | EntryKind::KeyCreated
            | EntryKind::KeyRevoked
            | EntryKind::Renewed
            // What was written off was taken from nobody.
            | EntryKind::WrittenOff => {}
        }
    }

    /// Holds the log against the account and its totals, all of one moment.
    pub(crate) fn compare(self, account: &Account, totals: Usage) -> Reconciled {
        let open = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        let replayed = match self.fault {
            Some(fault) => Err(fault),
            None => self.replay.finish(account, open).map(|_| ()),
        };
        let (log, totals) = (self.sums, Reckoning::of(totals));
        let pairs = log.figures().into_iter().zip(totals.figures());
        let figures = pairs.filter_map(|((name, log), (_, totals))| {
            (log != totals).then_some(Difference::Figure { name, log, totals })
        });
        let differences = replayed.err().map(Difference::Log).into_iter().chain(figures).collect();
        Reconciled { account: account.id.clone(), plan: account.plan.clone(), log, totals, differences }
    }
}

/// One session. A figure below zero cannot come from the ledger; it counts as none, and the totals then differ.
fn reckoned(taken: Taken, entry: &Entry) -> Reckoning {
    let figure = |number: i64| u64::try_from(number).unwrap_or_default();
    Reckoning {
        sessions: 1,
        minutes: entry.minutes.into(),
        included: figure(taken.included),
        overage: Micros::new(figure(taken.overage)),
        charged: Micros::new(figure(taken.money)),
    }
}
