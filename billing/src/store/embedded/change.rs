//! A change in the database's tables.

use rusqlite::{Connection, ErrorCode, params};

use super::{Committed, StoreError, behind, body, bucket_name, column};
use crate::account::Account;
use crate::audit::Digest;
use crate::id::{AccountId, CommandId};
use crate::ledger::{Change, SessionChange};
use crate::session::Session;
use crate::time::Timestamp;
use crate::usage::{Bucket, HOURS_KEPT, Usage, Used};

pub(super) const INSERT_ACCOUNT: &str = "INSERT INTO accounts (version, body, id) VALUES (?1, ?2, ?3)";
/// The version alone would not do: what was decided on commits that were put off, and then were not made, counts on from
/// there, and another process's commits have the same numbers. The hash of its last log entry tells the
/// two histories apart.
const UPDATE_ACCOUNT: &str = "UPDATE accounts SET version = ?1, body = ?2
    WHERE id = ?3 AND version = ?4 AND body ->> '$.head.hash' = ?5";
pub(super) const INSERT_KEY: &str = "INSERT INTO api_keys (hash, account, id) VALUES (?1, ?2, ?3)";
pub(super) const INSERT_OPEN: &str =
    "INSERT INTO open_sessions (account, id, held_at, body) VALUES (?1, ?2, ?3, ?4)";
const UPDATE_OPEN: &str = "UPDATE open_sessions SET body = ?3 WHERE account = ?1 AND id = ?2";
const DELETE_OPEN: &str = "DELETE FROM open_sessions WHERE account = ?1 AND id = ?2";
pub(super) const INSERT_ENDED: &str =
    "INSERT INTO ended_sessions (account, id, held_at, body) VALUES (?1, ?2, ?3, ?4)";
const IS_ENDED: &str = "SELECT 1 FROM ended_sessions WHERE account = ?1 AND id = ?2";
const DELETE_ENDED: &str = "DELETE FROM ended_sessions WHERE account = ?1 AND id = ?2";
const ADD_USAGE: &str = "INSERT INTO usage (account, bucket, start,
        sessions, lost, included, retried, minutes, up_bytes, down_bytes, cost, overage)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
    ON CONFLICT (account, bucket, start) DO UPDATE SET
        sessions = sessions + excluded.sessions, lost = lost + excluded.lost, included = included + excluded.included,
        retried = retried + excluded.retried, minutes = minutes + excluded.minutes,
        up_bytes = up_bytes + excluded.up_bytes, down_bytes = down_bytes + excluded.down_bytes,
        cost = cost + excluded.cost, overage = overage + excluded.overage";
const TRIM_USAGE: &str = "DELETE FROM usage WHERE account = ?1 AND bucket = ?2 AND start < ?3";
pub(super) const INSERT_ENTRY: &str =
    "INSERT INTO audit (account, seq, command, body) VALUES (?1, ?2, ?3, ?4)";
const IS_SEALED: &str = "SELECT 1 FROM sealed_commands WHERE account = ?1 AND command = ?2";
pub(super) const INSERT_EVENT: &str = "INSERT INTO events (body) VALUES (?1)";

const HOUR_MILLIS: u64 = 3_600_000;

/// The bodies of a change, written out before the lock is taken.
pub(super) struct Rows {
    account: String,
    sessions: Vec<String>,
    entries: Vec<String>,
    events: Vec<String>,
}

impl Rows {
    pub(super) fn of(change: &Change) -> Result<Rows, StoreError> {
        let sessions = change.session.sessions().iter().map(body).collect::<Result<_, _>>()?;
        let entries = change.entries.iter().map(body).collect::<Result<_, _>>()?;
        let events = change.events.iter().map(body).collect::<Result<_, _>>()?;
        Ok(Rows { account: body(&change.account)?, sessions, entries, events })
    }
}

/// Writes a change into a transaction, which the caller commits if this is done.
pub(super) fn write(
    transaction: &Connection,
    expected: u64,
    change: &Change,
    rows: &Rows,
) -> Result<Committed, StoreError> {
    let decided_on = (expected, behind(change));
    let account = write_account(transaction, decided_on, &change.account, &rows.account)?;
    if account != Committed::Done {
        return Ok(account);
    }
    if change.new_key
        && let Some(key) = change.account.keys.last()
    {
        let columns = params![key.hash.as_bytes(), change.account.id.as_str(), key.id.as_str()];
        transaction.prepare_cached(INSERT_KEY)?.execute(columns)?;
    }
    for (entry, body) in change.entries.iter().zip(&rows.entries) {
        let command = entry.command.as_ref().map(CommandId::as_str);
        if let Some(command) = command
            && transaction.prepare_cached(IS_SEALED)?.exists([entry.account.as_str(), command])?
        {
            return Ok(Committed::Exists);
        }
        let columns = params![entry.account.as_str(), column(entry.seq), command, body];
        if !inserted(transaction.prepare_cached(INSERT_ENTRY)?.execute(columns))? {
            return Ok(Committed::Exists);
        }
    }
    for event in &rows.events {
        transaction.prepare_cached(INSERT_EVENT)?.execute([event])?;
    }
    if let Some(used) = &change.used {
        add_usage(transaction, &change.account.id, used)?;
    }
    for (session, body) in change.session.sessions().iter().zip(&rows.sessions) {
        let written = write_session(transaction, &change.session, session, body)?;
        if written != Committed::Done {
            return Ok(written);
        }
    }
    Ok(Committed::Done)
}

fn write_account(
    transaction: &Connection,
    (expected, behind): (u64, Digest),
    account: &Account,
    body: &str,
) -> Result<Committed, StoreError> {
    let (version, id) = (column(account.version), account.id.as_str());
    if expected == 0 {
        let done = inserted(transaction.prepare_cached(INSERT_ACCOUNT)?.execute(params![version, body, id]))?;
        return Ok(if done { Committed::Done } else { Committed::Exists });
    }
    let columns = params![version, body, id, column(expected), String::from(behind)];
    let updated = transaction.prepare_cached(UPDATE_ACCOUNT)?.execute(columns)?;
    Ok(if updated == 1 { Committed::Done } else { Committed::Conflict })
}

fn write_session(
    transaction: &Connection,
    change: &SessionChange,
    session: &Session,
    body: &str,
) -> Result<Committed, StoreError> {
    let new = match change {
        SessionChange::New(_) | SessionChange::Again(_) => true,
        SessionChange::None | SessionChange::Update(_) | SessionChange::Several(_) => false,
    };
    let keys = [session.account.as_str(), session.id.as_str()];
    let row = params![keys[0], keys[1], column(session.held_at.as_millis()), body];
    if let SessionChange::Again(_) = change {
        transaction.prepare_cached(DELETE_ENDED)?.execute(keys)?;
    }
    if new {
        let exists = transaction.prepare_cached(IS_ENDED)?.exists(keys)?
            || !inserted(transaction.prepare_cached(INSERT_OPEN)?.execute(row))?;
        return Ok(if exists { Committed::Exists } else { Committed::Done });
    }
    if session.state.is_open() {
        transaction.prepare_cached(UPDATE_OPEN)?.execute(params![keys[0], keys[1], body])?;
    } else {
        transaction.prepare_cached(DELETE_OPEN)?.execute(keys)?;
        transaction.prepare_cached(INSERT_ENDED)?.execute(row)?;
    }
    Ok(Committed::Done)
}

fn add_usage(transaction: &Connection, account: &AccountId, used: &Used) -> Result<(), StoreError> {
    let Used { at, usage } = used;
    for bucket in [Bucket::Hour, Bucket::Month] {
        add_to_row(transaction, account, bucket, bucket.holding(*at).start, usage)?;
    }
    let kept =
        Bucket::Hour.holding(*at).start.as_millis().saturating_sub(u64::from(HOURS_KEPT) * HOUR_MILLIS);
    let columns = params![account.as_str(), bucket_name(Bucket::Hour), column(kept)];
    transaction.prepare_cached(TRIM_USAGE)?.execute(columns)?;
    Ok(())
}

pub(super) fn add_to_row(
    transaction: &Connection,
    account: &AccountId,
    bucket: Bucket,
    start: Timestamp,
    usage: &Usage,
) -> Result<(), StoreError> {
    transaction.prepare_cached(ADD_USAGE)?.execute(params![
        account.as_str(),
        bucket_name(bucket),
        column(start.as_millis()),
        column(usage.sessions),
        column(usage.lost),
        column(usage.included),
        column(usage.retried),
        column(usage.minutes),
        column(usage.up_bytes),
        column(usage.down_bytes),
        column(usage.cost.get()),
        column(usage.overage.get()),
    ])?;
    Ok(())
}

/// Whether a row was inserted; if not, its key was taken.
fn inserted(result: rusqlite::Result<usize>) -> Result<bool, StoreError> {
    match result {
        Err(rusqlite::Error::SqliteFailure(failure, _)) if failure.code == ErrorCode::ConstraintViolation => {
            Ok(false)
        }
        result => Ok(result? == 1),
    }
}
