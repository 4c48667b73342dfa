//! Writing what comes from another store into an empty one, a part at a time.

use rusqlite::{Transaction, params};

use super::change::{
    INSERT_ACCOUNT, INSERT_ENDED, INSERT_ENTRY, INSERT_EVENT, INSERT_KEY, INSERT_OPEN, add_to_row,
};
use super::trim::KEEP_COMMAND;
use super::{Embedded, body, column};
use crate::account::Account;
use crate::id::CommandId;
use crate::migrate::Part;
use crate::session::Session;
use crate::store::StoreError;

impl Embedded {
    pub(in crate::store) async fn put(&self, part: Part<'_>) -> Result<(), StoreError> {
        self.write(|transaction| write(transaction, part)).await
    }
}

fn write(transaction: &Transaction<'_>, part: Part<'_>) -> Result<(), StoreError> {
    match part {
        Part::Account(account) => return write_account(transaction, account),
        Part::Entries(account, entries) => {
            for entry in entries {
                let command = entry.command.as_ref().map(CommandId::as_str);
                let columns = params![account.as_str(), column(entry.seq), command, body(entry)?];
                transaction.prepare_cached(INSERT_ENTRY)?.execute(columns)?;
            }
        }
        Part::Commands(account, entries) => {
            for entry in entries {
                let command = entry.command.as_ref().map(CommandId::as_str);
                let columns = params![account.as_str(), command, body(entry)?];
                transaction.prepare_cached(KEEP_COMMAND)?.execute(columns)?;
            }
        }
        Part::Sessions(_, sessions) => {
            for session in sessions {
                write_session(transaction, session)?;
            }
        }
        Part::Usage(account, bucket, rows) => {
            for (start, usage) in rows {
                add_to_row(transaction, account, bucket, *start, usage)?;
            }
        }
        Part::Events(events) => {
            for event in events {
                transaction.prepare_cached(INSERT_EVENT)?.execute([body(event)?])?;
            }
        }
    }
    Ok(())
}

fn write_account(transaction: &Transaction<'_>, account: &Account) -> Result<(), StoreError> {
    let columns = params![column(account.version), body(account)?, account.id.as_str()];
    transaction.prepare_cached(INSERT_ACCOUNT)?.execute(columns)?;
    for key in &account.keys {
        let columns = params![key.hash.as_bytes(), account.id.as_str(), key.id.as_str()];
        transaction.prepare_cached(INSERT_KEY)?.execute(columns)?;
    }
    Ok(())
}

fn write_session(transaction: &Transaction<'_>, session: &Session) -> Result<(), StoreError> {
    let insert = if session.state.is_open() { INSERT_OPEN } else { INSERT_ENDED };
    let keys = [session.account.as_str(), session.id.as_str()];
    let columns = params![keys[0], keys[1], column(session.held_at.as_millis()), body(session)?];
    transaction.prepare_cached(insert)?.execute(columns)?;
    Ok(())
}
