//! The audit log: every change to an account, each entry chained to the one before it.
//!
//! # The hash of an entry
//!
//! `hash = SHA-256(prev ‖ field 1 ‖ … ‖ field 20)`: `prev` is the 32 bytes of the previous entry's hash (zeros
//! before the first), and each field is a netstring, that is, its length in bytes as decimal digits, a colon,
//! its UTF-8 bytes, a comma. A number is written in decimal digits, with a minus sign in front where it is
//! below zero; a field that is absent (`null` in JSON) is the empty netstring `0:,`. The fields, in order and
//! under their names in JSON:
//!
//! the text `ufb-audit-1`, `seq`, `at`, `account`, `actor`, `kind`, `session`, `command`, `key`, `cause`,
//! `amount`, `included`, `retry`, `overage`, `balance_after`, `included_after`, `retry_after`, `overage_after`,
//! `minutes`, `ended`.
//!
//! In Python, with an entry as `json.loads` gives it:
//!
//! ```python
//! NAMES = """seq at account actor kind session command key cause amount included retry overage
//!            balance_after included_after retry_after overage_after minutes ended""".split()
//!
//! def entry_hash(entry):
//!     fields = ["ufb-audit-1"] + ["" if entry[name] is None else str(entry[name]) for name in NAMES]
//!     encoded = b"".join(b"%d:%s," % (len(f.encode()), f.encode()) for f in fields)
//!     return hashlib.sha256(bytes.fromhex(entry["prev"]) + encoded).hexdigest()
//! ```
//!
//! # What a log says
//!
//! Exported, a log is a text of JSON documents, an entry a line; those of several accounts may be mixed, each account's
//! in order. Times are milliseconds since the epoch. Whoever replays it finds, for each account:
//!
//! - `seq` counts from 1 without a gap, `prev` is the `hash` of the entry before it (64 zeros before the first), and
//!   `hash` is as above.
//! - The account's balance, included sessions, retry credits and overage are the sums of `amount`, `included`, `retry`
//!   and `overage`, and after each entry they are what its `…_after` say.
//! - A session is open from `held` to `posted`, `lost_refund` or `voided` with the same `session`. An id that was voided
//!   may be held again.
//!
//! A session that was posted or refunded counts in the calendar month, UTC, of `ended`, with
//! - its `minutes`;
//! - the included sessions that it took: less the sum of `included` over its entries since `held`;
//! - what it was charged: the sum of `overage - amount` over the same entries;
//! - the part of that which is billed afterwards: the sum of `overage` over its entries before the last, less what the
//!   last one gave back of it, which is the lesser of that sum and of `amount - overage` of the last. (What goes back
//!   comes off the overage first. Overage of a period that is closed was billed with it and comes back as balance.)
//!
//! # A log that was trimmed
//!
//! Entries that an archive has may be taken off the front of a log. In their place then stands one of the kind
//! `opening_balance`, the first of the log from there on:
//!
//! - Its `seq` is that of the last entry that it stands for, its `prev` that entry's `hash`. Its own `hash` is as above, but
//!   nothing is chained to it: the entry after it has the next `seq`, and the same `prev` as it has itself.
//! - `amount`, `included`, `retry` and `overage` are the sums of all entries that it stands for, and so are the `…_after`.
//! - `ended` is the end of the calendar month, UTC, that the last of them is in, or the last session of theirs ended in.
//! - `cause` is words with a blank between them. The first is the digest of the archive whose last entry is the last that it
//!   stands for. Then comes a word for each session that was open there, in the order of their ids:
//!   `SESSION:INCLUDED:CHARGED:OVERAGE`, over its entries since `held` the included sessions that it took (less the sum of
//!   `included`), the sum of `overage - amount`, and the sum of `overage`.
//!
//! Whoever has read the entries that it stands for passes over it, having made sure that it says what they came to.
//!
//! # Archives
//!
//! An archive is a text of JSON documents, one a line, each line with a line feed behind it:
//!
//! - First a header: `format` is `ufb-archive-1`; `account`; `until`, the end of the month of its last entry; `first` and
//!   `last`, the numbers of the first and the last entry that are sealed; `prev`, the hash of the entry before the first (64
//!   zeros where there is none), and `hash`, that of the last; `opening` and `closing`, with `balance`, `included`, `retry`
//!   and `overage` as they were before the first and after the last.
//! - Then the entries, as above. Where the log began with an opening balance, the archive does, too; its `seq` is
//!   `first - 1`.
//! - Last a footer, `{"sha256": "…"}`: the archive's digest, which is the SHA-256 of all lines before it.
//!
//! An account's archives, in the order of `first`, and then its log are one log: each begins where the one before it ends, and
//! each opening balance names the digest of the archive before it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::account::{Account, Funds};
use crate::id::{AccountId, CommandId, GatewayId, InvalidId, KeyId, SessionId};
use crate::money::Micros;
use crate::time::Timestamp;

mod follow;
#[cfg(test)]
mod tests;

pub(crate) use follow::{Follow, Opening, Taken};

/// Names the canonical form, so that a later one cannot be taken for it.
const FORMAT: &str = "ufb-audit-1";

/// A SHA-256 digest. In JSON 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub(crate) [u8; 32]);

impl Digest {
    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(*self))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let digits =
            digest.0.iter().flat_map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        digits.map(char::from).collect()
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const EXPECTED: &str = "a digest is 64 lower-case hexadecimal digits";
        let mut digest = Digest::default();
        let pairs = text.as_bytes().as_chunks::<2>();
        if pairs.0.len() != digest.0.len() || !pairs.1.is_empty() {
            return Err(EXPECTED);
        }
        for (byte, [high, low]) in digest.0.iter_mut().zip(pairs.0) {
            *byte = nibble(*high).zip(nibble(*low)).map(|(high, low)| high << 4 | low).ok_or(EXPECTED)?;
        }
        Ok(digest)
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Who changed an account. In JSON `operator`, `customer:KEY`, `gateway:ID` or `system`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Actor {
    /// Somebody with access to the store.
    Operator,
    /// The customer, by this key.
    Customer(KeyId),
    /// A gateway.
    Gateway(GatewayId),
    /// UFBrowsers itself.
    System,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Operator => f.write_str("operator"),
            Actor::Customer(key) => write!(f, "customer:{key}"),
            Actor::Gateway(gateway) => write!(f, "gateway:{gateway}"),
            Actor::System => f.write_str("system"),
        }
    }
}

impl FromStr for Actor {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text.split_once(':') {
            None if text == "operator" => Ok(Actor::Operator),
            None if text == "system" => Ok(Actor::System),
            Some(("customer", key)) => key.parse().map(Actor::Customer),
            Some(("gateway", gateway)) => gateway.parse().map(Actor::Gateway),
            None | Some(_) => Err(InvalidId),
        }
    }
}

impl From<Actor> for String {
    fn from(actor: Actor) -> String {
        actor.to_string()
    }
}

impl TryFrom<String> for Actor {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

/// What happened to an account. In JSON the name in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// It was opened, with a plan's included sessions where it is a subscription.
    Opened,
    /// Money was added to its balance.
    Credited,
    /// It was stopped from starting sessions.
    Suspended,
    /// It may start sessions again.
    Resumed,
    /// It got a key.
    KeyCreated,
    /// A key of its was revoked.
    KeyRevoked,
    /// It was set at which balance its owner is told that it is low. The cause names the amount.
    LowBalanceSet,
    /// It got a webhook. The cause names it.
    WebhookCreated,
    /// A webhook of its got a new secret. The cause names it.
    WebhookRolled,
    /// A webhook of its was removed. The cause names it.
    WebhookRemoved,
    /// A new period began: included sessions refilled, the last period's overage closed.
    Renewed,
    /// A session's price was set aside.
    Held,
    /// Further minutes of a session were set aside.
    Extended,
    /// A session ended; what it had not used went back.
    Posted,
    /// A session was lost; all that it had taken went back, and a retry credit with it.
    LostRefund,
    /// A session never began; all that it had taken went back.
    Voided,
    /// Minutes that had started while the store was away could not be paid for; nobody is asked for them. The cause
    /// names the amount.
    WrittenOff,
    /// What is personal was erased, and its balance given up.
    Erased,
    /// All that is in an archive, in the place of its entries.
    OpeningBalance,
}

impl EntryKind {
    /// The name in snake case.
    pub fn as_str(self) -> &'static str {
        match self {
            EntryKind::Opened => "opened",
            EntryKind::Credited => "credited",
            EntryKind::Suspended => "suspended",
            EntryKind::Resumed => "resumed",
            EntryKind::KeyCreated => "key_created",
            EntryKind::KeyRevoked => "key_revoked",
            EntryKind::LowBalanceSet => "low_balance_set",
            EntryKind::WebhookCreated => "webhook_created",
            EntryKind::WebhookRolled => "webhook_rolled",
            EntryKind::WebhookRemoved => "webhook_removed",
            EntryKind::Renewed => "renewed",
            EntryKind::Held => "held",
            EntryKind::Extended => "extended",
            EntryKind::Posted => "posted",
            EntryKind::LostRefund => "lost_refund",
            EntryKind::Voided => "voided",
            EntryKind::WrittenOff => "written_off",
            EntryKind::Erased => "erased",
            EntryKind::OpeningBalance => "opening_balance",
        }
    }
}

/// One change to an account. Amounts are micro-dollars; the four differences are signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts from 1 without a gap.
    pub seq: u64,
    /// When the change was made.
    pub at: Timestamp,
    /// The account.
    pub account: AccountId,
    /// Who made it.
    pub actor: Actor,
    /// What it was.
    pub kind: EntryKind,
    /// The session that it is about.
    pub session: Option<SessionId>,
    /// The command that caused it, where the caller gave it an id.
    pub command: Option<CommandId>,
    /// The key that it is about, or that a session was started with.
    pub key: Option<KeyId>,
    /// Why, where the kind does not say it all.
    pub cause: Option<String>,
    /// What the balance gained.
    pub amount: i64,
    /// What the included sessions gained.
    pub included: i64,
    /// What the retry credits gained.
    pub retry: i64,
    /// What the overage gained.
    pub overage: i64,
    /// The balance after it.
    pub balance_after: Micros,
    /// Included sessions after it.
    pub included_after: u32,
    /// Retry credits after it.
    pub retry_after: u32,
    /// Overage after it.
    pub overage_after: Micros,
    /// The minutes of a session that has ended, as they were billed, included ones among them.
    pub minutes: u32,
    /// When the session ended, where it was posted or refunded.
    pub ended: Option<Timestamp>,
    /// The hash of the entry before it, zeros for the first.
    pub prev: Digest,
    /// The hash of this entry, over the one before it and the canonical form that this module documents.
    pub hash: Digest,
}

/// The last entry of an account's log, which the next one is chained to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number; 0 before the first.
    pub seq: u64,
    /// Its hash; zeros before the first.
    pub hash: Digest,
}

/// What an entry is about, beside the account.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) session: Option<SessionId>,
    pub(crate) command: Option<CommandId>,
    pub(crate) key: Option<KeyId>,
    pub(crate) cause: Option<String>,
    /// Minutes billed and the end, of a session that was posted.
    pub(crate) minutes: u32,
    pub(crate) ended: Option<Timestamp>,
}

impl Entry {
    /// The entry after `account.head` that takes an account from `before` to what it has now.
    pub(crate) fn chain(
        account: &Account,
        before: Funds,
        (at, actor, kind): (Timestamp, Actor, EntryKind),
        about: Subject,
    ) -> Entry {
        let mut entry = Entry {
            seq: account.head.seq + 1,
            at,
            account: account.id.clone(),
            actor,
            kind,
            session: about.session,
            command: about.command,
            key: about.key,
            cause: about.cause,
            amount: difference(before.balance.get(), account.balance.get()),
            included: difference(before.included.into(), account.included.into()),
            retry: difference(before.retry.into(), account.retry.into()),
            overage: difference(before.overage.get(), account.overage.get()),
            balance_after: account.balance,
            included_after: account.included,
            retry_after: account.retry,
            overage_after: account.overage,
            minutes: about.minutes,
            ended: about.ended,
            prev: account.head.hash,
            hash: Digest::default(),
        };
        entry.hash = entry.compute_hash();
        entry
    }

    pub(crate) fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }

    fn compute_hash(&self) -> Digest {
        let mut canonical = Canonical(Vec::with_capacity(CANONICAL_BYTES));
        canonical.0.extend_from_slice(&self.prev.0);
        canonical.field(FORMAT);
        canonical.field(&self.seq.to_string());
        canonical.field(&self.at.as_millis().to_string());
        canonical.field(self.account.as_str());
        canonical.field(&self.actor.to_string());
        canonical.field(self.kind.as_str());
        canonical.field(self.session.as_ref().map_or("", SessionId::as_str));
        canonical.field(self.command.as_ref().map_or("", CommandId::as_str));
        canonical.field(self.key.as_ref().map_or("", KeyId::as_str));
        canonical.field(self.cause.as_deref().unwrap_or_default());
        for number in [self.amount, self.included, self.retry, self.overage] {
            canonical.field(&number.to_string());
        }
        canonical.field(&self.balance_after.get().to_string());
        canonical.field(&self.included_after.to_string());
        canonical.field(&self.retry_after.to_string());
        canonical.field(&self.overage_after.get().to_string());
        canonical.field(&self.minutes.to_string());
        canonical.field(&self.ended.map(|at| at.as_millis().to_string()).unwrap_or_default());
        Digest(Sha256::digest(&canonical.0).into())
    }
}

/// Room for most entries' canonical form.
const CANONICAL_BYTES: usize = 512;

struct Canonical(Vec<u8>);

impl Canonical {
    fn field(&mut self, text: &str) {
        self.0.extend_from_slice(text.len().to_string().as_bytes());
        self.0.push(b':');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b',');
    }
}

/// `after - before`. Amounts end at [`Micros::MAX`], far inside the range of `i64`.
fn difference(before: u64, after: u64) -> i64 {
    after.wrapping_sub(before).cast_signed()
}

/// What a replay of the whole log found: it is intact, and these are its sums and the account's figures both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Entries in the log, sealed ones among them.
    pub entries: u64,
    /// Those of them that were not read: they are in archives.
    pub sealed: u64,
    /// The hash of the last one. Kept elsewhere, it proves later that nothing before it was rewritten.
    pub head: Digest,
    /// The balance.
    pub balance: Micros,
    /// Included sessions left.
    pub included: u32,
    /// Retry credits.
    pub retry: u32,
    /// This period's overage.
    pub overage: Micros,
    /// Sessions that are held or open.
    pub open: u32,
}

/// Where an audit log and its account do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An entry is missing, doubled or of another account.
    #[error("entry {expected} is missing")]
    Missing {
        /// The number that should have come next.
        expected: u64,
    },
    /// An entry is not chained to the one before it.
    #[error("entry {seq} does not follow the entry before it")]
    Chain {
        /// Its number.
        seq: u64,
    },
    /// An entry was changed after it was written.
    #[error("entry {seq} does not match its hash")]
    Hash {
        /// Its number.
        seq: u64,
    },
    /// The differences up to an entry do not add up to what it says was there after it.
    #[error("entry {seq} does not add up")]
    Sum {
        /// Its number.
        seq: u64,
    },
    /// An opening balance says something else than the entries that it stands for, or nothing that can be read.
    #[error("the opening balance of entry {seq} is not what the entries before it come to")]
    Opening {
        /// Its number.
        seq: u64,
    },
    /// The log's last entry is not the account's.
    #[error("the log ends at entry {log}, the account at {account}")]
    Head {
        /// The number of the log's last entry.
        log: u64,
        /// The number of the account's last entry.
        account: u64,
    },
    /// The log's sums are not the account's figures.
    #[error("the log's sums differ from the account")]
    Account,
    /// The account's count of open sessions is wrong.
    #[error("{sessions} sessions are open, the account counts {account}")]
    Open {
        /// Sessions that are held or open.
        sessions: u32,
        /// The account's count.
        account: u32,
    },
}

/// A replay in progress: entries go in one by one, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replay {
    head: Head,
    sums: [i64; 4],
    /// Entries that an opening balance stands for, which was the first that went in.
    sealed: u64,
}

impl Replay {
    /// The number of the last entry that went in.
    pub(crate) fn seq(&self) -> u64 {
        self.head.seq
    }

    /// Checks one entry against all before it.
    pub(crate) fn entry(&mut self, account: &AccountId, entry: &Entry) -> Result<(), Fault> {
        let expected = self.head.seq + 1;
        if entry.kind == EntryKind::OpeningBalance && entry.account == *account {
            return self.opening(entry);
        }
        if entry.seq != expected || entry.account != *account {
            return Err(Fault::Missing { expected });
        }
        if entry.prev != self.head.hash {
            return Err(Fault::Chain { seq: entry.seq });
        }
        if entry.hash != entry.compute_hash() {
            return Err(Fault::Hash { seq: entry.seq });
        }
        self.add(entry).filter(|after| self.sums == *after).ok_or(Fault::Sum { seq: entry.seq })?;
        self.head = entry.head();
        Ok(())
    }

    /// Begins with an opening balance; or, where what it stands for was read, compares the two.
    fn opening(&mut self, entry: &Entry) -> Result<(), Fault> {
        let seq = entry.seq;
        if entry.hash != entry.compute_hash() {
            return Err(Fault::Hash { seq });
        }
        let mut opening = Replay::default();
        opening.add(entry).filter(|after| opening.sums == *after).ok_or(Fault::Sum { seq })?;
        opening.head = Head { seq, hash: entry.prev };
        if self.head.seq == 0 {
            *self = Replay { sealed: seq, ..opening };
            return Ok(());
        }
        if self.head.seq != seq {
            return Err(Fault::Missing { expected: self.head.seq + 1 });
        }
        if self.head != opening.head {
            return Err(Fault::Chain { seq });
        }
        if self.sums == opening.sums { Ok(()) } else { Err(Fault::Opening { seq }) }
    }

    /// Adds the entry's differences; gives what it says was there after it.
    fn add(&mut self, entry: &Entry) -> Option<[i64; 4]> {
        let differences = [entry.amount, entry.included, entry.retry, entry.overage];
        for (sum, difference) in self.sums.iter_mut().zip(differences) {
            *sum = sum.checked_add(difference)?;
        }
        figures(entry.balance_after, entry.included_after, entry.retry_after, entry.overage_after)
    }

    /// Compares the log's end with the account and its open sessions.
    pub(crate) fn finish(self, account: &Account, sessions: u32) -> Result<Verified, Fault> {
        if self.head != account.head {
            return Err(Fault::Head { log: self.head.seq, account: account.head.seq });
        }
        if figures(account.balance, account.included, account.retry, account.overage) != Some(self.sums) {
            return Err(Fault::Account);
        }
        if sessions != account.open {
            return Err(Fault::Open { sessions, account: account.open });
        }
        Ok(Verified {
            entries: self.head.seq,
            sealed: self.sealed,
            head: self.head.hash,
            balance: account.balance,
            included: account.included,
            retry: account.retry,
            overage: account.overage,
            open: account.open,
        })
    }
}

fn figures(balance: Micros, included: u32, retry: u32, overage: Micros) -> Option<[i64; 4]> {
    let money = |amount: Micros| i64::try_from(amount.get()).ok();
    Some([money(balance)?, included.into(), retry.into(), money(overage)?])
}
