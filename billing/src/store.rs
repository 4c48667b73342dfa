//! Where accounts, sessions and audit logs are kept.
//!
//! A store loads and commits, and decides nothing. A commit names the version of the account that its change
//! was decided on: either all of the change is written, or none of it because the account has moved on.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::account::Account;
use crate::audit::{Digest, Entry, Fault, Verified};
use crate::event::{Cursor, Event};
use crate::id::{AccountId, CommandId, GatewayId, SessionId};
use crate::key::Principal;
use crate::ledger::Change;
use crate::session::{Session, SessionCursor};
use crate::time::Timestamp;
use crate::usage::{Bucket, Usage};

mod embedded;

pub(crate) use embedded::{Deferred, Embedded};

/// The most sessions or entries in one answer.
pub const LIST_MAX: u32 = 1_000;

/// Where the store is: `sqlite:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A SQLite database in this file, which is made where there is none.
    Sqlite(PathBuf),
}

/// A text that names no store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a store is `sqlite:PATH`")]
pub struct InvalidStoreUrl;

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(url: &str) -> Result<Self, InvalidStoreUrl> {
        match url.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(StoreUrl::Sqlite(path.into())),
            Some(_) | None => Err(InvalidStoreUrl),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
        }
    }
}

/// Why the store did not do what was asked. None of it is the customer's fault.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Others wrote to it for too long. Nothing was changed; the command may be repeated.
    #[error("the store is busy")]
    Busy,
    /// The disk failed to confirm a write, so the store takes no more. The change may have been made, but may
    /// not survive a loss of power.
    #[error("the disk failed to confirm a write: {0}")]
    Unconfirmed(io::ErrorKind),
    /// The database failed.
    #[error("the store failed")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database's file could not be reached.
    #[error("the store's file cannot be used")]
    File(#[source] io::Error),
    /// The database was made by another version of this program.
    #[error("the store has schema {found}, this program knows {known}")]
    Schema {
        /// The schema's version in the file.
        found: i64,
        /// The one that this program reads and writes.
        known: i64,
    },
    /// What is stored cannot be read.
    #[error("the store holds what cannot be read")]
    Corrupt(#[source] serde_json::Error),
    /// An account is on a plan that was taken out of the catalogue.
    #[error("an account is on the plan {0:?}, which the catalogue lacks")]
    UnknownPlan(String),
}

/// What must have happened before a commit is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The change survives the end of this process, but not a loss of power.
    Process,
    /// The change survives a loss of power.
    Disk,
}

/// What a commit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    Done,
    /// The account has moved on; [`Store::load`] gives it as it is now. Nothing was written.
    Conflict,
    /// The session's or the command's id, or that of a new account, is taken. Nothing was written.
    Exists,
}

/// The stores there are.
#[derive(Debug)]
pub(crate) enum Store {
    Embedded(Embedded),
}

impl Store {
    pub(crate) fn open(url: &StoreUrl) -> Result<Store, StoreError> {
        match url {
            StoreUrl::Sqlite(path) => Embedded::open(path).map(Store::Embedded),
        }
    }

    /// The account, possibly as it was before another process changed it: a commit would find out.
    pub(crate) async fn load(&self, id: &AccountId) -> Result<Option<Arc<Account>>, StoreError> {
        match self {
            Store::Embedded(store) => store.load(id).await,
        }
    }

    /// The account as it is now.
    pub(crate) async fn reload(&self, id: &AccountId) -> Result<Option<Arc<Account>>, StoreError> {
        match self {
            Store::Embedded(store) => store.reload(id).await,
        }
    }

    /// Writes a change that was decided on the account's version `expected`; 0 for an account that is new.
    pub(crate) async fn commit(&self, expected: u64, change: &Change) -> Result<Committed, StoreError> {
        match self {
            Store::Embedded(store) => store.commit(expected, change).await,
        }
    }

    /// Decides on an account as it is known, and puts the commit off until the next command of any kind, where the store
    /// can tell that nobody else changes the account meanwhile. `None`: ask in the ordinary way.
    pub(crate) fn defer(
        &self,
        id: &AccountId,
        decide: impl FnOnce(&Account) -> Option<Arc<Change>>,
    ) -> Option<Deferred> {
        match self {
            Store::Embedded(store) => store.defer(id, decide),
        }
    }

    /// Sessions that an earlier process may have held without a commit.
    pub(crate) fn recover(&self) -> Result<Vec<Session>, StoreError> {
        match self {
            Store::Embedded(store) => store.recover(),
        }
    }

    /// Those are committed.
    pub(crate) fn recovered(&self) {
        match self {
            Store::Embedded(store) => store.recovered(),
        }
    }

    /// Commits what was put off.
    pub(crate) async fn catch_up(&self) -> Result<(), StoreError> {
        match self {
            Store::Embedded(store) => store.catch_up().await,
        }
    }

    /// Waits until all that was committed before is as durable as that.
    pub(crate) async fn wait_for(&self, durability: Durability) -> Result<(), StoreError> {
        match (self, durability) {
            (Store::Embedded(_), Durability::Process) => Ok(()),
            (Store::Embedded(store), Durability::Disk) => store.synced().await,
        }
    }

    /// Whose key has this hash, where it is not known to be revoked.
    pub(crate) async fn principal(&self, key: Digest) -> Result<Option<Principal>, StoreError> {
        match self {
            Store::Embedded(store) => store.principal(key).await,
        }
    }

    pub(crate) async fn session(
        &self,
        account: &AccountId,
        id: &SessionId,
    ) -> Result<Option<Session>, StoreError> {
        match self {
            Store::Embedded(store) => store.session(account, id).await,
        }
    }

    /// The entry that a command led to.
    pub(crate) async fn command(
        &self,
        account: &AccountId,
        id: &CommandId,
    ) -> Result<Option<Entry>, StoreError> {
        match self {
            Store::Embedded(store) => store.command(account, id).await,
        }
    }

    pub(crate) async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        match self {
            Store::Embedded(store) => store.accounts().await,
        }
    }

    /// An account's sessions, newest first, from the one after `after` on.
    pub(crate) async fn sessions(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        match self {
            Store::Embedded(store) => store.sessions(account, after, limit.min(LIST_MAX)).await,
        }
    }

    /// The same of those that are held or open.
    pub(crate) async fn running(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        match self {
            Store::Embedded(store) => store.running(account, after, limit.min(LIST_MAX)).await,
        }
    }

    /// An account's usage by the starts of the hours or months in which there was any, since the one that begins at
    /// `from`. Hours are kept for [`HOURS_KEPT`](crate::HOURS_KEPT).
    pub(crate) async fn usage(
        &self,
        account: &AccountId,
        bucket: Bucket,
        from: Timestamp,
    ) -> Result<Vec<(Timestamp, Usage)>, StoreError> {
        match self {
            Store::Embedded(store) => store.usage(account, bucket, from).await,
        }
    }

    /// The sessions of all accounts that are held or open.
    pub(crate) async fn open_sessions(&self) -> Result<Vec<Session>, StoreError> {
        match self {
            Store::Embedded(store) => store.open_sessions().await,
        }
    }

    /// An account's entries after number `after`, in order.
    pub(crate) async fn audit(
        &self,
        account: &AccountId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        match self {
            Store::Embedded(store) => store.audit(account, after, limit.min(LIST_MAX)).await,
        }
    }

    /// How many streams the events are in.
    pub(crate) fn event_streams(&self) -> u16 {
        match self {
            Store::Embedded(_) => 1,
        }
    }

    /// The stream that has an account's events.
    pub(crate) fn event_stream_of(&self, _account: &AccountId) -> u16 {
        match self {
            Store::Embedded(_) => 0,
        }
    }

    /// The events of a stream after a place in it, in order, each with the place behind it.
    pub(crate) async fn events(
        &self,
        _stream: u16,
        after: &Cursor,
        limit: u32,
    ) -> Result<Vec<(Cursor, Event)>, StoreError> {
        match self {
            Store::Embedded(store) => store.events(after, limit.min(LIST_MAX)).await,
        }
    }

    /// Replays an account's whole log against one state of the store. `None`: there is no such account.
    pub(crate) async fn verify(
        &self,
        account: &AccountId,
    ) -> Result<Option<Result<Verified, Fault>>, StoreError> {
        match self {
            Store::Embedded(store) => store.verify(account).await,
        }
    }

    /// The secret of that name, which is `offered` where there was none. The same for all processes of one store.
    pub(crate) async fn secret(&self, name: &str, offered: [u8; 32]) -> Result<[u8; 32], StoreError> {
        match self {
            Store::Embedded(store) => store.secret(name, offered).await,
        }
    }

    /// Notes that a gateway lives.
    pub(crate) async fn heartbeat(&self, gateway: &GatewayId, now: Timestamp) -> Result<(), StoreError> {
        match self {
            Store::Embedded(store) => store.heartbeat(gateway, now).await,
        }
    }

    /// When a gateway was last noted to live.
    pub(crate) async fn last_seen(&self, gateway: &GatewayId) -> Result<Option<Timestamp>, StoreError> {
        match self {
            Store::Embedded(store) => store.last_seen(gateway).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_urls_are_parsed() {
        let url: StoreUrl = "sqlite:data/ledger.db".parse().unwrap();
        assert_eq!(url, StoreUrl::Sqlite("data/ledger.db".into()));
        assert_eq!(url.to_string(), "sqlite:data/ledger.db");
        for text in ["", "sqlite:", "data/ledger.db", "redis://localhost"] {
            assert_eq!(text.parse::<StoreUrl>(), Err(InvalidStoreUrl), "{text:?}");
        }
    }
}
