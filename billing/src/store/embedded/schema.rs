//! The tables, and the way from earlier ones to them.

use rusqlite::{Connection, TransactionBehavior};

use crate::store::StoreError;

/// What this program reads and writes, in the file's `user_version`.
pub(super) const VERSION: i64 = 4;

/// The tables of version 1. Bodies are JSON; beside them stand only the columns that are looked up or compared.
///
/// A hold is on the path of every session, and what it costs is the pages that it changes, each written to the WAL
/// whole. So it changes one row of a table that holds nothing but open sessions, and appends one entry to a table in
/// order of time, which fills page after page; sessions that have ended move to a table of their own.
const SCHEMA: &str = "
    CREATE TABLE accounts (id TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
    CREATE TABLE api_keys (
        hash BLOB PRIMARY KEY, account TEXT NOT NULL, id TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE open_sessions (
        account TEXT NOT NULL, id TEXT NOT NULL, held_at INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (account, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE ended_sessions (
        account TEXT NOT NULL, id TEXT NOT NULL, held_at INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (account, id)
    ) STRICT;
    CREATE INDEX ended_sessions_by_time ON ended_sessions (account, held_at);
    CREATE TABLE audit (
        account TEXT NOT NULL, seq INTEGER NOT NULL, command TEXT, body TEXT NOT NULL,
        PRIMARY KEY (account, seq)
    ) STRICT;
    CREATE UNIQUE INDEX audit_by_command ON audit (account, command) WHERE command IS NOT NULL;
    CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL) STRICT;
    CREATE TABLE usage (
        account TEXT NOT NULL, bucket TEXT NOT NULL, start INTEGER NOT NULL,
        sessions INTEGER NOT NULL, lost INTEGER NOT NULL, included INTEGER NOT NULL, retried INTEGER NOT NULL,
        minutes INTEGER NOT NULL, up_bytes INTEGER NOT NULL, down_bytes INTEGER NOT NULL,
        cost INTEGER NOT NULL, overage INTEGER NOT NULL,
        PRIMARY KEY (account, bucket, start)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE gateways (
        id TEXT PRIMARY KEY, last_seen INTEGER NOT NULL, beats INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
";

/// What leads from each version to the next, from version 1 on; a file that is new goes the same way. The last two are for
/// logs that are trimmed: commands whose entries were taken off one are kept by themselves; and where a log begins, since
/// what is before that goes a few entries at a time.
const STEPS: [&str; 3] = [
    super::parcels::SCHEMA,
    "CREATE TABLE sealed_commands (
        account TEXT NOT NULL, command TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (account, command)
    ) STRICT, WITHOUT ROWID",
    "CREATE TABLE openings (account TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID",
];

/// Makes the tables in a file that is new; takes those of an earlier version to this one, all steps or none. A later version
/// is left alone.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found == VERSION {
        return Ok(());
    }
    if found == 0 {
        transaction.execute_batch(SCHEMA)?;
    }
    let done = usize::try_from(found.max(1) - 1).ok().filter(|done| *done < STEPS.len());
    let Some(done) = done else { return Err(StoreError::Schema { found, known: VERSION }) };
    for step in &STEPS[done..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}
