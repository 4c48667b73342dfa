//! Reading a log: its chain and its sums, and what the sessions that are open at each point have taken.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::{Actor, Digest, Entry, EntryKind, Fault, Head, Replay, Verified};
use crate::account::Account;
use crate::id::{AccountId, SessionId};
use crate::money::Micros;
use crate::time::Timestamp;

/// What an open session has taken so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) included: i64,
    /// From balance and overage together.
    pub(crate) money: i64,
    pub(crate) overage: i64,
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
#[derive(Clone, Debug, Default)]
pub(crate) struct Follow {
    replay: Replay,
    open: BTreeMap<SessionId, Taken>,
}

impl Follow {
    /// Reads one entry: what the session took in all that it ends, if it ends one.
    pub(crate) fn entry(&mut self, account: &AccountId, entry: &Entry) -> Result<Option<Taken>, Fault> {
        let is_first = self.replay.seq() == 0;
        self.replay.entry(account, entry)?;
        let Some(session) = &entry.session else {
            if entry.kind == EntryKind::OpeningBalance {
                self.open_with(entry, is_first)?;
            }
            return Ok(None);
        };
        match entry.kind {
            EntryKind::Held | EntryKind::Extended => {
                let taken = self.open.entry(session.clone()).or_default();
                *taken = taken.and(entry);
            }
            EntryKind::Posted | EntryKind::LostRefund => {
                return Ok(Some(self.open.remove(session).unwrap_or_default().settled_by(entry)));
            }
            EntryKind::Voided => {
                self.open.remove(session);
            }
            // What was written off was taken from nobody. The others are about no session.
            EntryKind::WrittenOff
            | EntryKind::Opened
            | EntryKind::Credited
            | EntryKind::Suspended
            | EntryKind::Resumed
            | EntryKind::KeyCreated
            | EntryKind::KeyRevoked
            | EntryKind::LowBalanceSet
            | EntryKind::WebhookCreated
            | EntryKind::WebhookRolled
            | EntryKind::WebhookRemoved
            | EntryKind::Renewed
            | EntryKind::Erased
            | EntryKind::OpeningBalance => {}
        }
        Ok(None)
    }

    fn open_with(&mut self, entry: &Entry, is_first: bool) -> Result<(), Fault> {
        let opening = Opening::of(entry).ok_or(Fault::Opening { seq: entry.seq })?;
        if is_first {
            self.open = opening.open;
        } else if self.open != opening.open {
            return Err(Fault::Opening { seq: entry.seq });
        }
        Ok(())
    }

    /// The last entry that was read.
    pub(crate) fn head(&self) -> Head {
        self.replay.head
    }

    /// Balance, included sessions, retry credits and overage.
    pub(crate) fn sums(&self) -> [i64; 4] {
        self.replay.sums
    }

    /// The number of sessions that are open.
    pub(crate) fn open(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// Compares the log's end with the account.
    pub(crate) fn finish(self, account: &Account) -> Result<Verified, Fault> {
        let open = self.open();
        self.replay.finish(account, open)
    }

    /// The entry that takes the place of all that were read, which `archive` has.
    pub(crate) fn opening(
        &self,
        account: &AccountId,
        (at, actor): (Timestamp, Actor),
        (archive, until): (Digest, Timestamp),
    ) -> Option<Entry> {
        let [amount, included, retry, overage] = self.sums();
        let money = |sum| u64::try_from(sum).ok().map(Micros::new);
        let mut entry = Entry {
            seq: self.head().seq,
            at,
            account: account.clone(),
            actor,
            kind: EntryKind::OpeningBalance,
            session: None,
            command: None,
            key: None,
            cause: Some(Opening { archive, open: self.open.clone() }.to_string()),
            amount,
            included,
            retry,
            overage,
            balance_after: money(amount)?,
            included_after: included.try_into().ok()?,
            retry_after: retry.try_into().ok()?,
            overage_after: money(overage)?,
            minutes: 0,
            ended: Some(until),
            prev: self.head().hash,
            hash: Digest::default(),
        };
        entry.hash = entry.compute_hash();
        Some(entry)
    }
}

/// What the cause of an opening balance says: the archive behind which the log was trimmed, and what the sessions had taken
/// that were open there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) archive: Digest,
    pub(crate) open: BTreeMap<SessionId, Taken>,
}

impl Opening {
    pub(crate) fn of(entry: &Entry) -> Option<Opening> {
        entry.cause.as_deref()?.parse().ok()
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.archive)?;
        self.open.iter().try_for_each(|(session, Taken { included, money, overage })| {
            write!(f, " {session}:{included}:{money}:{overage}")
        })
    }
}

/// A cause that says something else.
#[derive(Debug)]
pub(crate) struct NoOpening;

impl FromStr for Opening {
    type Err = NoOpening;

    fn from_str(cause: &str) -> Result<Self, NoOpening> {
        let mut words = cause.split(' ');
        let archive = words.next().unwrap_or_default().to_owned().try_into().map_err(|_| NoOpening)?;
        let open = words.map(|word| taken(word).ok_or(NoOpening)).collect::<Result<_, _>>()?;
        Ok(Opening { archive, open })
    }
}

fn taken(word: &str) -> Option<(SessionId, Taken)> {
    let mut parts = word.split(':');
    let session = parts.next()?.parse().ok()?;
    let mut figure = || parts.next()?.parse().ok();
    let taken = Taken { included: figure()?, money: figure()?, overage: figure()? };
    parts.next().is_none().then_some((session, taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_an_opening_balance_is_read_back() {
        let digest = "0f".repeat(32);
        for cause in [digest.clone(), format!("{digest} s-1:1:0:0 s.2:0:12000:-2000")] {
            let opening: Opening = cause.parse().unwrap();
            assert_eq!(opening.to_string(), cause);
        }
        for cause in
            ["", "0f", &format!("{digest} s"), &format!("{digest} s:1:2"), &format!("{digest} s:1:2:3:4")]
        {
            assert!(cause.parse::<Opening>().is_err(), "{cause:?}");
        }
    }
}
