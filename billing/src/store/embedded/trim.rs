//! What is taken off: the older part of a log, behind an opening balance; records whose time is over.

use rusqlite::{Connection, params};

use super::{ACCOUNTS_CACHED, Embedded, body, column, patiently, select_account, select_bodies};
use crate::account::Account;
use crate::audit::{Digest, Entry};
use crate::id::AccountId;
use crate::store::{Committed, StoreError, remember};
use crate::time::Timestamp;

const NEXT_VERSION: &str = "UPDATE accounts SET version = version + 1
    WHERE id = ?1 AND version = ?2 AND body ->> '$.head.hash' = ?3";
/// A command that is given again later has to be known. There are few of them in a long log; of itself SQLite would read all
/// of it, while holds wait.
const KEEP_COMMANDS: &str = "INSERT INTO sealed_commands (account, command, body)
    SELECT account, command, body FROM audit INDEXED BY audit_by_command
    WHERE account = ?1 AND seq <= ?2 AND command IS NOT NULL";
pub(super) const KEEP_COMMAND: &str =
    "INSERT INTO sealed_commands (account, command, body) VALUES (?1, ?2, ?3)";
const SELECT_SEALED: &str = "SELECT body FROM sealed_commands WHERE account = ?1";
const HAS_OLD: &str = "SELECT 1 FROM ended_sessions WHERE account = ?1 AND held_at < ?2 LIMIT 1";
const DELETE_OLD: &str = "DELETE FROM ended_sessions WHERE rowid IN (
    SELECT rowid FROM ended_sessions WHERE account = ?1 AND held_at < ?2 ORDER BY held_at LIMIT ?3)";
const DELETE_KEY: &str = "DELETE FROM api_keys WHERE hash = ?1";
/// From here on nobody sees what is before it.
const OPEN_AT: &str = "INSERT INTO openings (account, seq) VALUES (?1, ?2)
    ON CONFLICT (account) DO UPDATE SET seq = excluded.seq";
const DELETE_SOME: &str = "DELETE FROM audit WHERE rowid IN (
    SELECT audit.rowid FROM openings, audit
    WHERE openings.account = ?1 AND audit.account = ?1 AND audit.seq < openings.seq LIMIT ?2)";
const REPLACE: &str = "UPDATE audit SET command = NULL, body = ?3 WHERE account = ?1 AND seq = ?2";

/// Entries that are deleted in one transaction: others' holds wait for it, for a few milliseconds.
const DELETED_AT_A_TIME: u32 = 500;

impl Embedded {
    /// Deletes what an opening balance stands for, a few entries at a time. What a process that is killed leaves of them
    /// nobody sees, and the next call deletes.
    pub(in crate::store) async fn drop_sealed(&self, account: &AccountId) -> Result<(), StoreError> {
        loop {
            let some =
                self.write(|hot| Ok(hot.execute(DELETE_SOME, params![account.as_str(), DELETED_AT_A_TIME])?));
            if some.await? == 0 {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }

    /// In one step, if the account is at this version.
    pub(in crate::store) async fn trim(
        &self,
        account: &Account,
        opening: &Entry,
    ) -> Result<Committed, StoreError> {
        let body = body(opening)?;
        patiently(|| self.try_trim(account, opening, &body)).await
    }

    fn try_trim(&self, account: &Account, opening: &Entry, body: &str) -> Result<Committed, StoreError> {
        let (id, seq) = (account.id.as_str(), column(opening.seq));
        let mut hot = self.alone()?;
        let transaction = self.transaction(&mut hot)?;
        if transaction
            .execute(NEXT_VERSION, params![id, column(account.version), String::from(account.head.hash)])?
            == 0
        {
            return Ok(Committed::Conflict);
        }
        transaction.execute(KEEP_COMMANDS, params![id, seq])?;
        transaction.execute(OPEN_AT, params![id, seq])?;
        transaction.execute(REPLACE, params![id, seq, body])?;
        let trimmed = select_account(&transaction, &account.id)?;
        transaction.commit()?;
        self.committed(&mut hot);
        if let Some(trimmed) = trimmed {
            remember(&self.accounts, ACCOUNTS_CACHED, account.id.clone(), trimmed.into());
        }
        Ok(Committed::Done)
    }

    pub(in crate::store) async fn drop_sessions(
        &self,
        account: &AccountId,
        before: Timestamp,
        most: u32,
    ) -> Result<u32, StoreError> {
        let (id, before) = (account.as_str(), column(before.as_millis()));
        // Mostly there are none, and nobody has to wait for a write.
        if !self.look(|hot| Ok(hot.prepare_cached(HAS_OLD)?.exists(params![id, before])?)).await? {
            return Ok(0);
        }
        let dropped = self.write(|hot| Ok(hot.execute(DELETE_OLD, params![id, before, most])?)).await?;
        Ok(u32::try_from(dropped).unwrap_or(u32::MAX))
    }

    pub(in crate::store) async fn drop_key(&self, hash: Digest) -> Result<(), StoreError> {
        self.keys.remove(&hash);
        self.write(|hot| Ok(hot.execute(DELETE_KEY, [hash.as_bytes()])?)).await.map(|_| ())
    }

    pub(in crate::store) async fn sealed_commands(
        &self,
        account: &AccountId,
    ) -> Result<Vec<Entry>, StoreError> {
        let account = account.clone();
        let read = move |reader: &Connection| select_bodies(reader, SELECT_SEALED, [account.as_str()]);
        let mut entries: Vec<Entry> = self.read(read).await?;
        entries.sort_unstable_by_key(|entry| entry.seq);
        Ok(entries)
    }
}
