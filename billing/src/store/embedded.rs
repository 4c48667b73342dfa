//! The store of a single machine: SQLite, in one file.
//!
//! The server and the command line may have the file open at once. Every commit is one immediate transaction
//! that compares the account's version and its last log entry, so neither overwrites what the other did.
//!
//! # What survives
//!
//! Commits are made with `synchronous=NORMAL`: SQLite hands the kernel the frames of its WAL and waits for
//! nothing. That survives the end of this process. Who needs the disk waits for [`Embedded::synced`]: an
//! `fdatasync` of the WAL through a descriptor of our own. That is sound because
//! - a sync concerns the file, not the descriptor, and so covers what any connection or process wrote to it;
//! - frames are appended in order, each checksummed with all before it, and recovery takes the longest whole
//!   prefix: once the file is synced, every commit before is in it;
//! - frames leave the WAL only by a checkpoint, which (with `NORMAL`) syncs the WAL before it copies them, and
//!   the database before the WAL is reused;
//! - the WAL is not removed while a connection is open, and ours is: the descriptor stays that of the WAL;
//! - SQLite keeps its POSIX locks on the database and the `-shm` file, never on the WAL, so closing our
//!   descriptor drops none of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Params, Row, Transaction, TransactionBehavior, params,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lanes::{behind, stamp_of};
use super::{Committed, StoreError, remember};
use crate::account::Account;
use crate::audit::{Digest, Entry, Fault, Replay, Verified};
use crate::event::{Cursor, Heard};
use crate::id::{AccountId, CommandId, GatewayId, KeyId, SessionId};
use crate::key::Principal;
use crate::ledger::Change;
use crate::money::Micros;
use crate::session::{Session, SessionCursor};
use crate::time::Timestamp;
use crate::usage::{Bucket, Usage};
use change::{Rows, write};
use flush::{Disk, Flusher};
use group::Group;
pub(super) use group::is_fit;
use journal::Journal;
pub(crate) use journal::Noted;
use others::Others;

mod backup;
mod change;
mod flush;
mod group;
mod journal;
mod others;
mod parcels;
mod put;
mod schema;
mod trim;
#[cfg(test)]
mod tests;

const SELECT_ACCOUNT: &str = "SELECT version, body FROM accounts WHERE id = ?1";
const SELECT_ACCOUNTS: &str = "SELECT version, body FROM accounts ORDER BY id";
const SELECT_KEY: &str = "SELECT account, id FROM api_keys WHERE hash = ?1";
const SELECT_SESSION: &str = "SELECT body FROM open_sessions WHERE account = ?1 AND id = ?2
    UNION ALL SELECT body FROM ended_sessions WHERE account = ?1 AND id = ?2";
const SELECT_SESSIONS: &str = "SELECT body FROM (
        SELECT held_at, id, body FROM open_sessions WHERE account = ?1 AND (held_at, id) < (?2, ?3)
        UNION ALL SELECT held_at, id, body FROM (
            SELECT held_at, id, body FROM ended_sessions WHERE account = ?1 AND (held_at, id) < (?2, ?3)
            ORDER BY held_at DESC, id DESC LIMIT ?4)
    ) ORDER BY held_at DESC, id DESC LIMIT ?4";
const SELECT_RUNNING: &str = "SELECT body FROM open_sessions WHERE account = ?1 AND (held_at, id) < (?2, ?3)
    ORDER BY held_at DESC, id DESC LIMIT ?4";
const SELECT_USAGE: &str =
    "SELECT start, sessions, lost, included, retried, minutes, up_bytes, down_bytes, cost, overage
    FROM usage WHERE account = ?1 AND bucket = ?2 AND start >= ?3 ORDER BY start";
const SELECT_OPEN: &str = "SELECT body FROM open_sessions";
const COUNT_OPEN: &str = "SELECT count(*) FROM open_sessions WHERE account = ?1";
const SELECT_COMMAND: &str = "SELECT body FROM audit WHERE account = ?1 AND command = ?2
    UNION ALL SELECT body FROM sealed_commands WHERE account = ?1 AND command = ?2";
const SELECT_ENTRIES: &str = "SELECT body FROM audit WHERE account = ?1 AND seq > ?2
    AND seq >= coalesce((SELECT seq FROM openings WHERE account = ?1), 0) ORDER BY seq LIMIT ?3";
const SELECT_LOG: &str = "SELECT body FROM audit WHERE account = ?1
    AND seq >= coalesce((SELECT seq FROM openings WHERE account = ?1), 0) ORDER BY seq";
const SELECT_EVENTS: &str = "SELECT seq, body FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2";
const UPSERT_GATEWAY: &str = "INSERT INTO gateways (id, last_seen, beats) VALUES (?1, ?2, 1)
    ON CONFLICT (id) DO UPDATE SET last_seen = max(last_seen, excluded.last_seen), beats = beats + 1";
const SELECT_GATEWAY: &str = "SELECT last_seen FROM gateways WHERE id = ?1";
const SELECT_BEATS: &str = "SELECT id, beats FROM gateways";
const DELETE_GATEWAY: &str = "DELETE FROM gateways WHERE id = ?1";
const OFFER_SECRET: &str = "INSERT INTO secrets (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING";
const SELECT_SECRET: &str = "SELECT value FROM secrets WHERE name = ?1";

/// Room for every statement above, of `change.rs` and of `parcels.rs`, so that none is compiled twice.
const STATEMENTS: usize = 64;

/// Memory for pages, in KiB as SQLite wants it (negative): the upper levels of all trees. Sessions have random ids, so that
/// looking whether one has ended touches a page anywhere in their index; that one comes from the system's cache, in less
/// time than the rest of the commit takes. Pages that a transaction has changed stay until it is over (`cache_spill`),
/// however many they are: written out before that, they would be written twice.
const PAGE_CACHE_KIB: i64 = -256;
/// The same for connections that no session waits for.
const SMALL_PAGE_CACHE_KIB: i64 = -64;

/// How long opening waits for another process that is opening the same file.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// How long a checkpoint that must shorten the WAL waits for readers and writers.
const TRUNCATE_PATIENCE: Duration = Duration::from_millis(100);

/// The WAL's size beyond which it is emptied even if a commit has to wait for that. Under steady load a passive
/// checkpoint never sees the moment at which SQLite would start the file anew by itself.
const WAL_LIMIT: u64 = 64 << 20;

/// When another process is writing, a command pauses and tries again: 1, 2, 4 … 32 ms, about 1.5 s in all. The
/// command line's writes take a millisecond.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const BUSY_PAUSE_MAX: Duration = Duration::from_millis(32);

/// Commits that are put off at a time; the next session's is made at once, and these before it. Each is caught up with in
/// milliseconds anyway. Of a flood so many gather, and whoever commits them keeps the next customer waiting for all.
const DEFERRED: usize = 16;

/// Accounts and keys that are remembered. Beyond it all are forgotten and those in use come back, which keeps
/// the hot path free of any bookkeeping.
const ACCOUNTS_CACHED: usize = 10_000;
const KEYS_CACHED: usize = 100_000;

#[derive(Debug)]
pub(crate) struct Embedded {
    path: PathBuf,
    /// First, so that its thread ends and closes its connection before the others do.
    flusher: Flusher,
    /// Every commit and every look-up of one row. Held for microseconds, never across an await.
    hot: Mutex<Hot>,
    /// Whether there is anything in [`Hot::deferred`], to be seen without the lock.
    has_deferred: AtomicBool,
    /// Lists and replays, which take longer, on threads of their own.
    reader: Arc<Mutex<Connection>>,
    /// Accounts as last seen. Written only under `hot`, so that an older one never replaces a newer one.
    accounts: DashMap<AccountId, Arc<Account>>,
    keys: DashMap<Digest, Principal>,
}

#[derive(Debug)]
struct Hot {
    connection: Connection,
    others: Others,
    /// None in a process that puts nothing off.
    journal: Option<Journal>,
    /// Changes that were decided and are not committed yet, in order. The cache holds their accounts as they will be.
    deferred: Vec<Waiting>,
    /// A transaction that is open.
    group: Option<Group>,
}

#[derive(Debug)]
struct Waiting {
    expected: u64,
    change: Arc<Change>,
    outcome: Deferred,
}

/// What became of a change whose commit was put off; nothing yet.
pub(crate) type Deferred = Arc<OnceLock<Committed>>;

impl Embedded {
    /// Opens the database, and makes it where there is none.
    pub(super) fn open(path: &Path) -> Result<Embedded, StoreError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(StoreError::File)?;
        }
        let mut hot = connect(path)?;
        schema::prepare(&mut hot)?;
        let (reader, checkpointer) = (connect(path)?, connect(path)?);
        hot.busy_timeout(Duration::ZERO)?;
        hot.pragma_update(None, "cache_size", PAGE_CACHE_KIB)?;
        hot.pragma_update(None, "cache_spill", false)?;
        checkpointer.busy_timeout(TRUNCATE_PATIENCE)?;
        let others = Others::watch(path).map_err(StoreError::File)?;
        let wal = File::open(wal_path(path)).map_err(StoreError::File)?;
        let flusher = Flusher::start(WalDisk { wal, checkpointer }).map_err(StoreError::File)?;
        Ok(Embedded {
            path: path.to_owned(),
            flusher,
            hot: Mutex::new(Hot {
                connection: hot,
                others,
                journal: None,
                deferred: Vec::new(),
                group: None,
            }),
            has_deferred: AtomicBool::new(false),
            reader: Arc::new(Mutex::new(reader)),
            accounts: DashMap::new(),
            keys: DashMap::new(),
        })
    }

    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        self.look(|hot| Ok(hot.query_row("SELECT 1", [], |_| Ok(()))?)).await
    }

    pub(super) async fn load(&self, id: &AccountId) -> Result<Option<Arc<Account>>, StoreError> {
        // As it will be, if anything was put off: a commit is always preceded by that.
        let cached = self.accounts.get(id).map(|account| Arc::clone(&account));
        match cached {
            Some(account) => Ok(Some(account)),
            None => self.reload(id).await,
        }
    }

    pub(super) async fn reload(&self, id: &AccountId) -> Result<Option<Arc<Account>>, StoreError> {
        self.look(|hot| self.refresh(hot, id)).await
    }

    /// Whether the account, which may come from the cache, is still the stored one.
    pub(super) async fn confirm(&self, account: &Account) -> Result<bool, StoreError> {
        let stored = self.reload(&account.id).await?;
        Ok(stored.is_some_and(|stored| stamp_of(Some(&stored)) == stamp_of(Some(account))))
    }

    /// Commits on the caller's thread. Nothing is awaited unless another process is writing.
    pub(super) async fn commit(&self, expected: u64, change: &Change) -> Result<Committed, StoreError> {
        let rows = Rows::of(change)?;
        patiently(|| self.try_commit(expected, change, &rows)).await
    }

    fn try_commit(&self, expected: u64, change: &Change, rows: &Rows) -> Result<Committed, StoreError> {
        let id = &change.account.id;
        let mut hot = self.alone()?;
        if self.accounts.get(id).is_some_and(|cached| cached.version != expected) {
            return Ok(Committed::Conflict);
        }
        let transaction = self.transaction(&mut hot)?;
        let written = write(&transaction, expected, change, rows)?;
        match written {
            Committed::Done => {
                transaction.commit()?;
                self.committed(&mut hot);
                remember(&self.accounts, ACCOUNTS_CACHED, id.clone(), Arc::new(change.account.clone()));
            }
            Committed::Conflict => {
                self.refresh(&transaction, id)?;
            }
            Committed::Exists => {}
        }
        Ok(written)
    }

    /// Sessions that an earlier process held and may not have committed. From here on this process may put commits off; it
    /// is the only one that does.
    pub(super) fn recover(&self) -> Result<Vec<Noted>, StoreError> {
        let mut hot = self.hot();
        let mut journal = Journal::open(&self.path).map_err(StoreError::File)?;
        let held = journal.read().map_err(StoreError::File)?;
        hot.journal = Some(journal);
        Ok(held)
    }

    /// What [`Embedded::recover`] told of is committed.
    pub(super) fn recovered(&self) {
        if let Some(journal) = &mut self.hot().journal {
            journal.clear();
        }
    }

    /// Decides on an account as it is in the cache, notes the session in the journal, and puts the commit off until the next
    /// command or look-up of any kind, before which it always comes. So this process never sees an account without it,
    /// others see it a moment later, and one that starts after this one was killed commits it.
    ///
    /// `None`: the account may have changed, or the decision was no. Nothing was put off, and the caller has to ask in the
    /// ordinary way.
    pub(super) fn defer(
        &self,
        id: &AccountId,
        decide: impl FnOnce(&Account) -> Option<Arc<Change>>,
    ) -> Option<Deferred> {
        let mut hot = self.hot();
        let is_full = hot.deferred.len() >= DEFERRED;
        if is_full || self.flusher.failure().is_some() || !hot.others.are_quiet() {
            return None;
        }
        let mut account = self.accounts.get_mut(id)?;
        let change = decide(&account)?;
        let Hot { journal: Some(journal), deferred, .. } = &mut *hot else { return None };
        // Where that fails, so may the commit, which then says why.
        journal.append(change.session.session()?).ok()?;
        let expected = account.version;
        *account = Arc::new(change.account.clone());
        let outcome = Deferred::default();
        deferred.push(Waiting { expected, change, outcome: Arc::clone(&outcome) });
        self.has_deferred.store(true, Ordering::Release);
        Some(outcome)
    }

    /// Commits what was put off. From here on each of their outcomes is there, but for one that an error came of: the next
    /// call tries again.
    pub(super) async fn catch_up(&self) -> Result<(), StoreError> {
        if !self.has_deferred.load(Ordering::Acquire) {
            return Ok(());
        }
        patiently(|| self.alone().map(drop)).await
    }

    /// All of them in one transaction. Where another process had changed an account, none of that account's is written:
    /// each was decided on the one before.
    fn commit_deferred(&self, hot: &mut Hot) -> Result<(), StoreError> {
        if hot.deferred.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut hot.deferred);
        let written = self.write_deferred(hot, &waiting);
        match written {
            Ok(outcomes) => {
                self.tell_outcomes(hot, waiting.into_iter().zip(outcomes));
                Ok(())
            }
            Err(error) => {
                hot.deferred = waiting;
                Err(error)
            }
        }
    }

    /// What was put off is committed.
    fn tell_outcomes(&self, hot: &mut Hot, done: impl IntoIterator<Item = (Waiting, Committed)>) {
        for (waiting, outcome) in done {
            let _ = waiting.outcome.set(outcome);
        }
        if !hot.deferred.is_empty() {
            return;
        }
        // Only now: who sees that there is nothing takes its outcome for there.
        self.has_deferred.store(false, Ordering::Release);
        if let Some(journal) = &mut hot.journal {
            journal.all_committed();
        }
    }

    fn write_deferred(&self, hot: &mut Hot, waiting: &[Waiting]) -> Result<Vec<Committed>, StoreError> {
        let transaction = self.transaction(hot)?;
        let outcomes = self.write_waiting(&transaction, waiting)?;
        transaction.commit()?;
        self.committed(hot);
        Ok(outcomes)
    }

    /// Writes them into a transaction. An account that another process has changed is forgotten.
    fn write_waiting(
        &self,
        transaction: &Connection,
        waiting: &[Waiting],
    ) -> Result<Vec<Committed>, StoreError> {
        let mut moved_on: Vec<&AccountId> = Vec::new();
        let mut outcomes = Vec::with_capacity(waiting.len());
        for Waiting { expected, change, .. } in waiting {
            let id = &change.account.id;
            if moved_on.contains(&id) {
                outcomes.push(Committed::Conflict);
                continue;
            }
            let written = write(transaction, *expected, change, &Rows::of(change)?)?;
            if written != Committed::Done {
                moved_on.push(id);
            }
            outcomes.push(written);
        }
        for id in moved_on {
            self.accounts.remove(id);
        }
        Ok(outcomes)
    }

    fn transaction<'a>(&self, hot: &'a mut Hot) -> Result<Transaction<'a>, StoreError> {
        self.may_write()?;
        let Hot { connection, others, .. } = hot;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.has_begun(others);
        Ok(transaction)
    }

    fn may_write(&self) -> Result<(), StoreError> {
        self.flusher.failure().map_or(Ok(()), |kind| Err(StoreError::Unconfirmed(kind)))
    }

    /// What other processes have written until now is noticed here: nobody else writes until the end.
    fn has_begun(&self, others: &mut Others) {
        if !others.begin() {
            self.accounts.clear();
        }
    }

    fn committed(&self, hot: &mut Hot) {
        self.flusher.committed();
        hot.others.committed();
    }

    /// Looks at the state that everything which was decided has led to.
    async fn look<T>(&self, look: impl Fn(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        patiently(|| {
            let hot = self.alone()?;
            look(&hot.connection)
        })
        .await
    }

    /// Reads an account into the cache, on a connection that is locked.
    fn refresh(&self, hot: &Connection, id: &AccountId) -> Result<Option<Arc<Account>>, StoreError> {
        let account = select_account(hot, id)?.map(Arc::new);
        if let Some(account) = &account {
            remember(&self.accounts, ACCOUNTS_CACHED, id.clone(), Arc::clone(account));
        }
        Ok(account)
    }

    pub(super) async fn synced(&self) -> Result<(), StoreError> {
        self.flusher.synced().await.map_err(StoreError::Unconfirmed)
    }

    pub(super) fn remembers(&self, hash: &Digest) -> bool {
        self.keys.contains_key(hash)
    }

    pub(super) async fn principal(&self, hash: Digest) -> Result<Option<Principal>, StoreError> {
        let cached = self.keys.get(&hash).map(|principal| principal.clone());
        let (principal, account) = match cached {
            Some(principal) => {
                let account = self.load(&principal.account).await?;
                (principal, account)
            }
            None => match self.look(|hot| select_principal(hot, hash)).await? {
                // Another process may have made the key since the account was cached.
                Some(principal) => {
                    let account = self.reload(&principal.account).await?;
                    (principal, account)
                }
                None => return Ok(None),
            },
        };
        if !account.is_some_and(|account| account.has_live_key(&principal.key)) {
            return Ok(None);
        }
        remember(&self.keys, KEYS_CACHED, hash, principal.clone());
        Ok(Some(principal))
    }

    pub(super) async fn session(
        &self,
        account: &AccountId,
        id: &SessionId,
    ) -> Result<Option<Session>, StoreError> {
        let keys = [account.as_str(), id.as_str()];
        self.look(|hot| select_body(hot, SELECT_SESSION, keys)).await
    }

    pub(super) async fn command(
        &self,
        account: &AccountId,
        id: &CommandId,
    ) -> Result<Option<Entry>, StoreError> {
        let keys = [account.as_str(), id.as_str()];
        self.look(|hot| select_body(hot, SELECT_COMMAND, keys)).await
    }

    pub(super) async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SELECT_ACCOUNTS)?;
            let rows = statement.query_map([], account_row)?;
            rows.map(|row| parse_account(row?)).collect()
        })
        .await
    }

    pub(super) async fn sessions(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        self.page(SELECT_SESSIONS, account, after, limit).await
    }

    pub(super) async fn running(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        self.page(SELECT_RUNNING, account, after, limit).await
    }

    async fn page(
        &self,
        sql: &'static str,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        let account = account.clone();
        // Without one, after what is newer than all of them.
        let (held_at, id) = after.map_or((i64::MAX, String::new()), |at| {
            (column(at.held_at.as_millis()), at.id.as_str().to_owned())
        });
        self.read(move |reader| select_bodies(reader, sql, params![account.as_str(), held_at, id, limit]))
            .await
    }

    pub(super) async fn usage(
        &self,
        account: &AccountId,
        bucket: Bucket,
        from: Timestamp,
    ) -> Result<Vec<(Timestamp, Usage)>, StoreError> {
        let account = account.clone();
        self.read(move |reader| {
            let mut statement = reader.prepare_cached(SELECT_USAGE)?;
            let keys = params![account.as_str(), bucket_name(bucket), column(from.as_millis())];
            let rows = statement.query_map(keys, usage_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(super) async fn open_sessions(&self) -> Result<Vec<Session>, StoreError> {
        self.read(|reader| select_bodies(reader, SELECT_OPEN, [])).await
    }

    pub(super) async fn audit(
        &self,
        account: &AccountId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        let account = account.clone();
        let after = column(after);
        self.read(move |reader| {
            select_bodies(reader, SELECT_ENTRIES, params![account.as_str(), after, limit])
        })
        .await
    }

    /// There is one stream.
    pub(super) async fn events(
        &self,
        _stream: u16,
        after: &Cursor,
        limit: u32,
    ) -> Result<Vec<(Cursor, Heard)>, StoreError> {
        // What this store gave is a number; the start is empty, and before the first one.
        let after: i64 = after.0.parse().unwrap_or_default();
        self.read(move |reader| {
            let mut statement = reader.prepare_cached(SELECT_EVENTS)?;
            let row = |row: &Row<'_>| {
                let place = Cursor(row.get::<_, i64>(0)?.to_string());
                Ok((place, Heard::read(row.get_ref(1)?.as_bytes()?)))
            };
            let rows = statement.query_map(params![after, limit], row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(super) async fn verify(
        &self,
        account: &AccountId,
    ) -> Result<Option<Result<Verified, Fault>>, StoreError> {
        let account = account.clone();
        self.read(move |reader| replay(reader, &account)).await
    }

    pub(super) async fn heartbeat(&self, gateway: &GatewayId, now: Timestamp) -> Result<(), StoreError> {
        self.write(|transaction| {
            let columns = params![gateway.as_str(), column(now.as_millis())];
            transaction.prepare_cached(UPSERT_GATEWAY)?.execute(columns)?;
            Ok(())
        })
        .await?;
        let mut hot = self.alone()?;
        if let Some(journal) = &mut hot.journal {
            // It has customers' words, whose records may be dropped from here on.
            journal.clear();
        }
        Ok(())
    }

    pub(super) async fn last_seen(&self, gateway: &GatewayId) -> Result<Option<Timestamp>, StoreError> {
        self.look(|hot| {
            let mut statement = hot.prepare_cached(SELECT_GATEWAY)?;
            let seen: Option<i64> = statement.query_row([gateway.as_str()], |row| row.get(0)).optional()?;
            Ok(seen.map(|millis| Timestamp::from_millis(millis.cast_unsigned())))
        })
        .await
    }

    pub(super) async fn beats(&self) -> Result<BTreeMap<GatewayId, u64>, StoreError> {
        self.look(|hot| {
            let mut statement = hot.prepare_cached(SELECT_BEATS)?;
            let rows =
                statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
            rows.map(|row| {
                let (id, beats) = row?;
                let id = GatewayId::try_from(id).map_err(|error| StoreError::Database(Box::new(error)))?;
                Ok((id, beats.cast_unsigned()))
            })
            .collect()
        })
        .await
    }

    pub(super) async fn forget(&self, gateway: &GatewayId) -> Result<(), StoreError> {
        self.look(|hot| {
            hot.prepare_cached(DELETE_GATEWAY)?.execute([gateway.as_str()])?;
            Ok(())
        })
        .await
    }

    pub(super) async fn open_sessions_of(&self, gateway: &GatewayId) -> Result<Vec<Session>, StoreError> {
        let mut sessions = self.open_sessions().await?;
        sessions.retain(|session| session.gateway == *gateway);
        Ok(sessions)
    }

    pub(super) async fn serving(&self) -> Result<Vec<GatewayId>, StoreError> {
        let mut gateways: Vec<_> =
            self.open_sessions().await?.into_iter().map(|session| session.gateway).collect();
        gateways.sort_unstable();
        gateways.dedup();
        Ok(gateways)
    }

    pub(super) async fn secret(&self, name: &str, offered: [u8; 32]) -> Result<[u8; 32], StoreError> {
        self.look(|hot| {
            hot.prepare_cached(OFFER_SECRET)?.execute(params![name, offered])?;
            Ok(hot.prepare_cached(SELECT_SECRET)?.query_row([name], |row| row.get(0))?)
        })
        .await
    }

    #[cfg(test)]
    pub(crate) fn tickets(&self) -> u64 {
        self.flusher.tickets()
    }

    #[cfg(test)]
    pub(crate) fn commits(&self) -> u64 {
        self.flusher.commits()
    }

    /// Reads on a thread that may block, since a list can take milliseconds.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.catch_up().await?;
        let reader = Arc::clone(&self.reader);
        let reading = tokio::task::spawn_blocking(move || read(&lock(&reader)));
        reading.await.map_err(|panic| StoreError::Database(Box::new(panic)))?
    }
}

/// Makes one connection. All of them carry WAL and `NORMAL`, which the module's text relies on, and leave
/// checkpoints to the disk thread.
fn connect(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(OPEN_PATIENCE)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "cache_size", SMALL_PAGE_CACHE_KIB)?;
    Ok(connection)
}

fn wal_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// A panic while the lock was held has rolled its transaction back, so the connection is fit for use.
fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tries until the database is free, pausing in between without blocking the thread.
async fn patiently<T>(mut attempt: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut pause = BUSY_PAUSE;
    for _ in 1..BUSY_TRIES {
        match attempt() {
            Err(StoreError::Busy) => tokio::time::sleep(pause).await,
            done => return done,
        }
        pause = BUSY_PAUSE_MAX.min(pause * 2);
    }
    attempt()
}

fn body(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(StoreError::Corrupt)
}

fn bucket_name(bucket: Bucket) -> &'static str {
    match bucket {
        Bucket::Hour => "hour",
        Bucket::Month => "month",
    }
}

fn usage_row(row: &Row<'_>) -> rusqlite::Result<(Timestamp, Usage)> {
    let figure = |at: usize| row.get::<_, i64>(at).map(i64::cast_unsigned);
    let usage = Usage {
        sessions: figure(1)?,
        lost: figure(2)?,
        included: figure(3)?,
        retried: figure(4)?,
        minutes: figure(5)?,
        up_bytes: figure(6)?,
        down_bytes: figure(7)?,
        cost: Micros::new(figure(8)?),
        overage: Micros::new(figure(9)?),
    };
    Ok((Timestamp::from_millis(figure(0)?), usage))
}

/// SQLite's integers are signed. Counters and milliseconds do not come near the difference.
fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn select_account(connection: &Connection, id: &AccountId) -> Result<Option<Account>, StoreError> {
    let mut statement = connection.prepare_cached(SELECT_ACCOUNT)?;
    let row = statement.query_row([id.as_str()], account_row).optional()?;
    row.map(parse_account).transpose()
}

fn account_row(row: &Row<'_>) -> rusqlite::Result<(i64, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn parse_account((version, body): (i64, String)) -> Result<Account, StoreError> {
    Ok(Account { version: version.cast_unsigned(), ..parse(&body)? })
}

fn select_principal(connection: &Connection, hash: Digest) -> Result<Option<Principal>, StoreError> {
    let mut statement = connection.prepare_cached(SELECT_KEY)?;
    let names = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
    let Some((account, key)) = statement.query_row([hash.as_bytes()], names).optional()? else {
        return Ok(None);
    };
    let account = AccountId::try_from(account).map_err(|error| StoreError::Database(Box::new(error)))?;
    let key = KeyId::try_from(key).map_err(|error| StoreError::Database(Box::new(error)))?;
    Ok(Some(Principal { account, key }))
}

fn select_body<T: DeserializeOwned>(
    connection: &Connection,
    sql: &str,
    keys: impl Params,
) -> Result<Option<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let body: Option<String> = statement.query_row(keys, |row| row.get(0)).optional()?;
    body.map(|body| parse(&body)).transpose()
}

fn select_bodies<T: DeserializeOwned>(
    connection: &Connection,
    sql: &str,
    keys: impl Params,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(keys, |row| row.get::<_, String>(0))?;
    rows.map(|body| parse(&body?)).collect()
}

fn parse<T: DeserializeOwned>(body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(StoreError::Corrupt)
}

/// Replays a log inside one read transaction, so that account, log and sessions are of one moment.
fn replay(reader: &Connection, id: &AccountId) -> Result<Option<Result<Verified, Fault>>, StoreError> {
    let snapshot = reader.unchecked_transaction()?;
    let Some(account) = select_account(&snapshot, id)? else {
        return Ok(None);
    };
    let mut replay = Replay::default();
    let mut statement = snapshot.prepare_cached(SELECT_LOG)?;
    let mut rows = statement.query([id.as_str()])?;
    while let Some(row) = rows.next()? {
        let entry: Entry = parse(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?;
        if let Err(fault) = replay.entry(id, &entry) {
            return Ok(Some(Err(fault)));
        }
    }
    let open: u32 = snapshot.prepare_cached(COUNT_OPEN)?.query_row([id.as_str()], |row| row.get(0))?;
    Ok(Some(replay.finish(&account, open)))
}

/// The disk thread's own descriptor and connection.
struct WalDisk {
    wal: File,
    checkpointer: Connection,
}

impl WalDisk {
    fn run(&self, checkpoint: &str) {
        let result = self.checkpointer.query_row(checkpoint, [], |row| row.get::<_, i64>(0));
        match result {
            Ok(0) => {}
            Ok(_) => tracing::debug!(checkpoint, "others held the ledger"),
            Err(error) => tracing::warn!(checkpoint, %error, "the ledger's WAL could not be checkpointed"),
        }
    }
}

impl Disk for WalDisk {
    fn sync(&mut self) -> io::Result<()> {
        self.wal.sync_data()
    }

    /// The passive one does all the copying while commits go on; the one that empties the file stops them for
    /// what little came in meanwhile.
    fn checkpoint(&mut self) {
        self.run("PRAGMA wal_checkpoint(PASSIVE)");
        if self.wal.metadata().is_ok_and(|wal| wal.len() > WAL_LIMIT) {
            self.run("PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy,
            _ => StoreError::Database(Box::new(error)),
        }
    }
}
