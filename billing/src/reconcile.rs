//! Reconciliation: what an account's sessions came to in a month, worked out from its audit log alone, and what the running
//! totals say of it. The rules are written down with the log ([`audit`](crate::Entry)); whoever differs is named.

use crate::account::Account;
use crate::archive::{Archive, ArchiveError};
use crate::audit::{Entry, EntryKind, Fault, Follow, Taken};
use crate::books::{Billing, CONFLICTS_MAX, Error};
use crate::id::AccountId;
use crate::money::Micros;
use crate::store::{LIST_MAX, StoreError};
use crate::time::{Period, Timestamp};
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
    /// A part of the month is not in the log any more.
    #[error("log: sealed up to {until}; its archives are needed")]
    Sealed {
        /// The end of what the archives have.
        until: Timestamp,
    },
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
    /// and its usage. What of the log was sealed is read from `archives`, which are all of the account's up to then, in
    /// order, or none. Gateways may be at work meanwhile.
    ///
    /// # Errors
    /// [`Error::NoAccount`], [`Error::Archive`], or the store's. A difference is none: it is in the answer.
    pub async fn reconcile(
        &self,
        account: &AccountId,
        month: Period,
        archives: &[Archive],
    ) -> Result<Reconciled, Error> {
        let mut tally = Tally::begin(month, archives)?;
        let mut rounds = CONFLICTS_MAX;
        loop {
            rounds -= 1;
            let is_whole = self.read_on(account, &mut tally).await?;
            if !is_whole && rounds > 0 {
                tally = Tally::begin(month, archives)?;
                continue;
            }
            let used = self.usage(account, Span::Month, 1, month.start).await?;
            let totals = used.into_iter().fold(Usage::default(), |sum, used| sum.plus(used.usage));
            let now = self.account(account).await?.ok_or(Error::NoAccount)?;
            // The totals change with the log only: as long as that has no more, all three are of one moment.
            let is_still = tally.read_to().is_none_or(|seq| seq >= now.head.seq);
            if is_still || rounds == 0 {
                return Ok(tally.compare(&now, totals));
            }
        }
    }

    /// Reads the entries of a log that are not in the tally yet. False: they were trimmed off meanwhile.
    async fn read_on(&self, account: &AccountId, tally: &mut Tally) -> Result<bool, StoreError> {
        while let Some(seq) = tally.read_to() {
            let page = self.audit(account, seq, LIST_MAX).await?;
            let Some(first) = page.first() else { return Ok(true) };
            if seq > 0 && first.kind == EntryKind::OpeningBalance {
                return Ok(false);
            }
            page.iter().for_each(|entry| tally.entry(account, entry));
        }
        Ok(true)
    }
}

/// A log that is being read, entry by entry.
#[derive(Debug)]
pub(crate) struct Tally {
    month: Period,
    follow: Follow,
    sums: Reckoning,
    /// The end of what is sealed and was not read, where that is in the month.
    sealed: Option<Timestamp>,
    fault: Option<Fault>,
}

impl Tally {
    fn begin(month: Period, archives: &[Archive]) -> Result<Tally, ArchiveError> {
        let (follow, sums) = (Follow::default(), Reckoning::default());
        let mut tally = Tally { month, follow, sums, sealed: None, fault: None };
        for archive in archives {
            archive.read(|entry| {
                tally.entry(archive.account(), entry);
                tally.fault.map_or(Ok(()), Err)
            })?;
        }
        Ok(tally)
    }

    /// The number of the last entry that was read. None where the log is broken, so that reading on tells nothing.
    fn read_to(&self) -> Option<u64> {
        self.fault.is_none().then(|| self.follow.head().seq)
    }

    fn entry(&mut self, account: &AccountId, entry: &Entry) {
        if self.follow.head().seq == 0 && entry.kind == EntryKind::OpeningBalance {
            self.sealed = entry.ended.filter(|until| *until > self.month.start);
        }
        match self.follow.entry(account, entry) {
            Ok(Some(taken)) if entry.ended.is_some_and(|at| self.month.contains(at)) => {
                self.sums = self.sums.plus(reckoned(taken, entry));
            }
            Ok(_) => {}
            Err(fault) => self.fault = self.fault.or(Some(fault)),
        }
    }

    /// Holds the log against the account and its totals, all of one moment.
    pub(crate) fn compare(self, account: &Account, totals: Usage) -> Reconciled {
        let replayed = match self.fault {
            Some(fault) => Err(fault),
            None => self.follow.finish(account).map(|_| ()),
        };
        let (log, totals) = (self.sums, Reckoning::of(totals));
        let pairs = log.figures().into_iter().zip(totals.figures());
        let figures = pairs.filter_map(|((name, log), (_, totals))| {
            (log != totals).then_some(Difference::Figure { name, log, totals })
        });
        let replayed = replayed.err().map(Difference::Log).into_iter();
        let differences = match self.sealed {
            Some(until) => replayed.chain([Difference::Sealed { until }]).collect(),
            None => replayed.chain(figures).collect(),
        };
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
