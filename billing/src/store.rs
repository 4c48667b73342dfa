//! Where accounts, sessions and audit logs are kept.
//!
//! A store loads and commits, and decides nothing. A commit names the version of the account that its change
//! was decided on: either all of the change is written, or none of it because the account has moved on.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hash;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use dashmap::DashMap;
use sha2::{Digest as _, Sha256};

use crate::account::Account;
use crate::audit::{Digest, Entry, Fault, Verified};
use crate::event::{Cursor, Heard};
use crate::id::{AccountId, CommandId, GatewayId, SessionId};
use crate::key::Principal;
use crate::ledger::Change;
use crate::migrate::Part;
use crate::session::{Session, SessionCursor};
use crate::time::Timestamp;
use crate::usage::{Bucket, Usage};

mod embedded;
mod lanes;
mod parcels;
mod redis;
#[cfg(test)]
pub(crate) mod memory;

pub(crate) use embedded::Noted;
use embedded::{Deferred, Embedded};
#[cfg(test)]
pub(crate) use lanes::LinkError;
use lanes::{Lanes, Sent};
use redis::Redis;
pub use redis::RedisUrl;
#[cfg(feature = "measure")]
pub use redis::bare::{BareHolds, BareScript};
#[cfg(test)]
pub(crate) use redis::server as redis_server;

/// The most sessions or entries in one answer.
pub const LIST_MAX: u32 = 1_000;

/// Where the store is: `sqlite:PATH`, or the URL of a Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A SQLite database in this file, which is made where there is none. One gateway has it.
    Sqlite(PathBuf),
    /// A Redis, which any number of gateways share.
    Redis(RedisUrl),
}

/// A text that names no store. It may hold a password, so that it is not repeated here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`sqlite:PATH`, `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, the same with `rediss://`, `redis+unix:PATH`, \
     `redis+cluster://HOST:PORT,HOST:PORT…` or `redis+sentinel://HOST:PORT,HOST:PORT…/MASTER[/DB]`, these two also with \
     `rediss+`"
)]
pub struct InvalidStoreUrl;

impl StoreUrl {
    /// The same store, where what must not be lost is answered only once so many replicas have it.
    ///
    /// # Errors
    /// It is one that has no replicas.
    pub fn with_replicas(self, replicas: u32) -> Result<StoreUrl, NoReplicas> {
        match self {
            StoreUrl::Redis(url) => Ok(StoreUrl::Redis(url.with_replicas(replicas))),
            StoreUrl::Sqlite(_) => Err(NoReplicas),
        }
    }
}

/// A store of whose replicas nothing can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a file has no replicas; a Redis can be asked what its replicas have")]
pub struct NoReplicas;

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(url: &str) -> Result<Self, InvalidStoreUrl> {
        match url.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(StoreUrl::Sqlite(path.into())),
            Some(_) => url.parse().map(StoreUrl::Redis),
            None => Err(InvalidStoreUrl),
        }
    }
}

/// Without a password.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            StoreUrl::Redis(url) => url.fmt(f),
        }
    }
}

/// Why the store did not do what was asked. None of it is the customer's fault.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Others wrote to it for too long. Nothing was changed; the command may be repeated.
    #[error("the store is busy")]
    Busy,
    /// It cannot be reached. Nothing was changed; the command may be repeated.
    #[error("the store cannot be reached")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It did not answer. The change may have been made; the command may be repeated.
    #[error("the store did not answer")]
    Unanswered(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Fewer replicas than the operator asked for have confirmed that they have it. The change was made; a failover may
    /// lose it. The command may be repeated.
    #[error("{had} of {wanted} replicas have confirmed a write")]
    Unreplicated {
        /// Replicas that have it.
        had: u32,
        /// Replicas that were to have it.
        wanted: u32,
    },
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

/// A commit that is decided, and whose answer is still to come.
#[derive(Clone, Debug)]
pub(crate) enum Promise {
    /// It is noted where a kill does not reach it, and put off.
    Noted(Deferred),
    /// It is on its way.
    Sent(Arc<Sent>),
}

impl Promise {
    /// Whether it is known to be committed.
    pub(crate) fn is_kept(&self) -> bool {
        match self {
            Promise::Noted(deferred) => deferred.get() == Some(&Committed::Done),
            Promise::Sent(sent) => sent.is_done(),
        }
    }

    /// Somebody waits for it.
    pub(crate) fn hurry(&self) {
        if let Promise::Sent(sent) = self {
            sent.hurry();
        }
    }

    /// Waits until it is known what became of one that is on its way, and does not hurry it.
    pub(crate) async fn arrived(&self) {
        if let Promise::Sent(sent) = self {
            let _ = sent.landed().await;
        }
    }
}

/// The stores there are.
#[expect(clippy::large_enum_variant, reason = "a process has one")]
#[derive(Debug)]
pub(crate) enum Store {
    Embedded(Embedded),
    Redis(Lanes<Redis>),
    #[cfg(test)]
    Memory(Lanes<memory::Line>),
}

/// The same question for whichever store there is. What is asked of one that is a round trip away is a large future,
/// which would be a part of each connection's task.
macro_rules! ask {
    ($self:expr, $store:ident => $question:expr) => {
        match $self {
            Store::Embedded($store) => $question.await,
            Store::Redis($store) => Box::pin($question).await,
            #[cfg(test)]
            Store::Memory($store) => Box::pin($question).await,
        }
    };
}

impl Store {
    /// The embedded store is there from here on; one of several gateways connects when it is first asked.
    pub(crate) fn open(url: &StoreUrl) -> Result<Store, StoreError> {
        match url {
            StoreUrl::Sqlite(path) => Embedded::open(path).map(Store::Embedded),
            StoreUrl::Redis(url) => Redis::open(url).map(Lanes::new).map(Store::Redis),
        }
    }

    /// A server in memory, at the other end of a line.
    #[cfg(test)]
    pub(crate) fn over(line: memory::Line) -> Store {
        Store::Memory(Lanes::hasty(line))
    }

    /// The embedded one, if it is that. All others are a round trip away.
    fn embedded(&self) -> Option<&Embedded> {
        match self {
            Store::Embedded(store) => Some(store),
            Store::Redis(_) => None,
            #[cfg(test)]
            Store::Memory(_) => None,
        }
    }

    /// Whether several gateways may have it.
    pub(crate) fn is_shared(&self) -> bool {
        self.embedded().is_none()
    }

    /// Whether it answers, and has the schema that this program knows.
    pub(crate) async fn probe(&self) -> Result<(), StoreError> {
        ask!(self, store => store.probe())
    }

    /// The time by a clock that all gateways share. A file has none.
    pub(crate) async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        match self {
            Store::Embedded(_) => Ok(None),
            Store::Redis(store) => store.time().await,
            #[cfg(test)]
            Store::Memory(store) => store.time().await,
        }
    }

    /// The account to decide on: possibly as it was before another process changed it, or as it will be when what this
    /// one has under way is committed. A commit finds out.
    pub(crate) async fn load(&self, id: &AccountId) -> Result<Option<Arc<Account>>, StoreError> {
        ask!(self, store => store.load(id))
    }

    /// Decides on an account as it is known, so that the caller can go on before the commit: where the store can tell that
    /// nobody else changes the account meanwhile, or `decide` says that there is room for as many sessions as it is given,
    /// which others may have started. `None`: ask in the ordinary way.
    pub(crate) fn promise(
        &self,
        id: &AccountId,
        decide: impl FnOnce(&Account, u32) -> Option<Arc<Change>>,
    ) -> Option<Promise> {
        match self {
            Store::Embedded(store) => store.defer(id, |account| decide(account, 0)).map(Promise::Noted),
            Store::Redis(store) => store.send(id, decide).map(Promise::Sent),
            #[cfg(test)]
            Store::Memory(store) => store.send(id, decide).map(Promise::Sent),
        }
    }

    /// What became of it.
    pub(crate) async fn redeem(&self, promise: &Promise) -> Result<Committed, StoreError> {
        match promise {
            Promise::Noted(deferred) => {
                if deferred.get().is_none() {
                    self.catch_up().await?;
                }
                deferred.get().copied().ok_or(StoreError::Busy)
            }
            Promise::Sent(sent) => {
                sent.hurry();
                Ok(sent.landed().await?)
            }
        }
    }

    /// Sessions that an earlier process may have held without a commit.
    pub(crate) fn recover(&self) -> Result<Vec<Noted>, StoreError> {
        self.embedded().map_or_else(|| Ok(Vec::new()), Embedded::recover)
    }

    /// Those are committed.
    pub(crate) fn recovered(&self) {
        if let Some(store) = self.embedded() {
            store.recovered();
        }
    }

    /// Commits what was put off.
    async fn catch_up(&self) -> Result<(), StoreError> {
        match self.embedded() {
            Some(store) => store.catch_up().await,
            None => Ok(()),
        }
    }

    /// A session to decide on, to be loaded after its account.
    pub(crate) async fn load_session(
        &self,
        account: &AccountId,
        id: &SessionId,
    ) -> Result<Option<Session>, StoreError> {
        match self {
            Store::Embedded(store) => store.load_session(account, id).await,
            Store::Redis(store) => Box::pin(store.load_session(account, id)).await,
            #[cfg(test)]
            Store::Memory(store) => Box::pin(store.load_session(account, id)).await,
        }
    }

    /// The account as it is now.
    pub(crate) async fn reload(&self, id: &AccountId) -> Result<Option<Arc<Account>>, StoreError> {
        ask!(self, store => store.reload(id))
    }

    /// Writes a change that was decided on an account as it was loaded; on none, where the account is new. How durable it is
    /// then is [`Store::wait_for`]'s business; who waits for the disk has time to be committed with others.
    pub(crate) async fn commit(
        &self,
        decided_on: Option<&Arc<Account>>,
        change: &Arc<Change>,
        durability: Durability,
    ) -> Result<Committed, StoreError> {
        match self {
            Store::Embedded(store) => {
                let expected = decided_on.map_or(0, |account| account.version);
                match durability {
                    Durability::Disk if embedded::is_fit(change) => {
                        store.commit_with_others(expected, change).await
                    }
                    Durability::Disk | Durability::Process => store.commit(expected, change).await,
                }
            }
            Store::Redis(store) => Box::pin(store.commit(decided_on, change)).await,
            #[cfg(test)]
            Store::Memory(store) => Box::pin(store.commit(decided_on, change)).await,
        }
    }

    /// Whether a loaded account is the stored one, at some moment between the call and its answer. A commit finds that
    /// out by itself; an answer that changes nothing has to ask.
    pub(crate) async fn confirm(&self, account: &Arc<Account>) -> Result<bool, StoreError> {
        ask!(self, store => store.confirm(account))
    }

    /// Waits until all of an account that was committed before is as durable as that.
    pub(crate) async fn wait_for(
        &self,
        account: &AccountId,
        durability: Durability,
    ) -> Result<(), StoreError> {
        match (self, durability) {
            (_, Durability::Process) => Ok(()),
            (Store::Embedded(store), Durability::Disk) => store.synced().await,
            // What Redis has answered is as durable as its operator made it: see README.
            (Store::Redis(store), Durability::Disk) => Box::pin(store.kept(account)).await,
            #[cfg(test)]
            (Store::Memory(_), Durability::Disk) => Ok(()),
        }
    }

    /// Whether this key was looked up lately, and was one.
    pub(crate) fn remembers(&self, key: &Digest) -> bool {
        match self {
            Store::Embedded(store) => store.remembers(key),
            Store::Redis(store) => store.remembers(key),
            #[cfg(test)]
            Store::Memory(store) => store.remembers(key),
        }
    }

    /// Whose key had this hash when it was looked up lately.
    pub(crate) fn recall(&self, key: &Digest) -> Option<Principal> {
        match self {
            Store::Embedded(_) => None,
            Store::Redis(store) => store.recall(key),
            #[cfg(test)]
            Store::Memory(store) => store.recall(key),
        }
    }

    /// Whose key has this hash, where it is not known to be revoked.
    pub(crate) async fn principal(&self, key: Digest) -> Result<Option<Principal>, StoreError> {
        ask!(self, store => store.principal(key))
    }

    /// A session as it is now.
    pub(crate) async fn session(
        &self,
        account: &AccountId,
        id: &SessionId,
    ) -> Result<Option<Session>, StoreError> {
        ask!(self, store => store.session(account, id))
    }

    /// The entry that a command led to.
    pub(crate) async fn command(
        &self,
        account: &AccountId,
        id: &CommandId,
    ) -> Result<Option<Entry>, StoreError> {
        ask!(self, store => store.command(account, id))
    }

    /// All accounts, ordered by id.
    pub(crate) async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        ask!(self, store => store.accounts())
    }

    /// An account's sessions, newest first, from the one after `after` on.
    pub(crate) async fn sessions(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        ask!(self, store => store.sessions(account, after, limit.min(LIST_MAX)))
    }

    /// The same of those that are held or open.
    pub(crate) async fn running(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        ask!(self, store => store.running(account, after, limit.min(LIST_MAX)))
    }

    /// An account's usage by the starts of the hours or months in which there was any, since the one that begins at
    /// `from`. Hours are kept for [`HOURS_KEPT`](crate::HOURS_KEPT).
    pub(crate) async fn usage(
        &self,
        account: &AccountId,
        bucket: Bucket,
        from: Timestamp,
    ) -> Result<Vec<(Timestamp, Usage)>, StoreError> {
        ask!(self, store => store.usage(account, bucket, from))
    }

    /// The sessions of all accounts that are held or open.
    pub(crate) async fn open_sessions(&self) -> Result<Vec<Session>, StoreError> {
        ask!(self, store => store.open_sessions())
    }

    /// Those that one gateway has.
    pub(crate) async fn open_sessions_of(&self, gateway: &GatewayId) -> Result<Vec<Session>, StoreError> {
        ask!(self, store => store.open_sessions_of(gateway))
    }

    /// The gateways that have any.
    pub(crate) async fn serving(&self) -> Result<Vec<GatewayId>, StoreError> {
        ask!(self, store => store.serving())
    }

    /// An account's entries after number `after`, in order.
    pub(crate) async fn audit(
        &self,
        account: &AccountId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        ask!(self, store => store.audit(account, after, limit.min(LIST_MAX)))
    }

    /// How many streams the events are in.
    pub(crate) fn event_streams(&self) -> u16 {
        if self.is_shared() { PARTITIONS } else { 1 }
    }

    /// The stream that has an account's events.
    pub(crate) fn event_stream_of(&self, account: &AccountId) -> u16 {
        if self.is_shared() { partition(account).into() } else { 0 }
    }

    /// The events of a stream after a place in it, in order, each with the place behind it.
    pub(crate) async fn events(
        &self,
        stream: u16,
        after: &Cursor,
        limit: u32,
    ) -> Result<Vec<(Cursor, Heard)>, StoreError> {
        ask!(self, store => store.events(stream, after, limit.min(LIST_MAX)))
    }

    /// Replays an account's whole log against one state of the store. `None`: there is no such account.
    pub(crate) async fn verify(
        &self,
        account: &AccountId,
    ) -> Result<Option<Result<Verified, Fault>>, StoreError> {
        ask!(self, store => store.verify(account))
    }

    /// How often each gateway was noted to live. Grows with each time, whatever the clocks say.
    pub(crate) async fn beats(&self) -> Result<BTreeMap<GatewayId, u64>, StoreError> {
        ask!(self, store => store.beats())
    }

    /// Drops what was noted of a gateway.
    pub(crate) async fn forget(&self, gateway: &GatewayId) -> Result<(), StoreError> {
        ask!(self, store => store.forget(gateway))
    }

    /// Drops up to `most` records of an account's sessions that were held before `before` and have ended; their number.
    pub(crate) async fn drop_sessions(
        &self,
        account: &AccountId,
        before: Timestamp,
        most: u32,
    ) -> Result<u32, StoreError> {
        ask!(self, store => store.drop_sessions(account, before, most))
    }

    /// Drops what a key is found by.
    pub(crate) async fn drop_key(&self, hash: Digest) -> Result<(), StoreError> {
        ask!(self, store => store.drop_key(hash))
    }

    /// The entries that an account's commands led to, of those that were trimmed off its log; ordered by number.
    pub(crate) async fn sealed_commands(&self, account: &AccountId) -> Result<Vec<Entry>, StoreError> {
        ask!(self, store => store.sealed_commands(account))
    }

    /// Puts an opening balance in the place of an account's entries up to its number, if the account is at this version.
    pub(crate) async fn trim(&self, account: &Account, opening: &Entry) -> Result<Committed, StoreError> {
        ask!(self, store => store.trim(account, opening))
    }

    /// Deletes what an opening balance stands for, where that was not done with it.
    pub(crate) async fn drop_sealed(&self, account: &AccountId) -> Result<(), StoreError> {
        match self.embedded() {
            Some(store) => store.drop_sealed(account).await,
            None => Ok(()),
        }
    }

    /// Writes what comes from another store into this one, which is empty but for earlier parts.
    pub(crate) async fn put(&self, part: Part<'_>) -> Result<(), StoreError> {
        ask!(self, store => store.put(part))
    }

    /// The secret of that name, which is `offered` where there was none. The same for all processes of one store.
    pub(crate) async fn secret(&self, name: &str, offered: [u8; 32]) -> Result<[u8; 32], StoreError> {
        ask!(self, store => store.secret(name, offered))
    }

    /// Notes that a gateway lives.
    pub(crate) async fn heartbeat(&self, gateway: &GatewayId, now: Timestamp) -> Result<(), StoreError> {
        ask!(self, store => store.heartbeat(gateway, now))
    }

    /// When a gateway was last noted to live.
    pub(crate) async fn last_seen(&self, gateway: &GatewayId) -> Result<Option<Timestamp>, StoreError> {
        ask!(self, store => store.last_seen(gateway))
    }
}

/// Accounts are spread over so many partitions; what belongs to one is in one place, with a stream of events of its own.
pub(crate) const PARTITIONS: u16 = 256;

/// An account's partition: the first byte of the SHA-256 of its id.
pub(crate) fn partition(account: &AccountId) -> u8 {
    Sha256::digest(account.as_str())[0]
}

/// Puts something into a cache. One that is full forgets all, and what is in use comes back.
fn remember<K: Eq + Hash, V>(cache: &DashMap<K, V>, limit: usize, key: K, value: V) {
    if let Some(mut known) = cache.get_mut(&key) {
        *known = value;
        return;
    }
    if cache.len() >= limit {
        cache.clear();
    }
    cache.insert(key, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_urls_are_parsed() {
        let url: StoreUrl = "sqlite:data/ledger.db".parse().unwrap();
        assert_eq!(url, StoreUrl::Sqlite("data/ledger.db".into()));
        assert_eq!(url.to_string(), "sqlite:data/ledger.db");
        assert!(matches!("redis://localhost".parse(), Ok(StoreUrl::Redis(_))));
        for text in ["", "sqlite:", "data/ledger.db", "redis:", "mysql://localhost"] {
            assert_eq!(text.parse::<StoreUrl>(), Err(InvalidStoreUrl), "{text:?}");
        }
    }
}
