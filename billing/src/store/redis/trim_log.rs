//! What is taken off: the older part of a log, behind an opening balance.

use redis::{Value, cmd};

use super::{Redis, Space, array, body, parse, stamp, surprise};
use crate::account::Account;
use crate::audit::Entry;
use crate::id::AccountId;
use crate::store::Committed;
use crate::store::lanes::LinkError;

const TRIM: &str = include_str!("trim_log.lua");

impl Redis {
    /// In one step, if the account is at this version. The commands that the entries came from stay known.
    pub(super) async fn trim_log(&self, account: &Account, opening: &Entry) -> Result<Committed, LinkError> {
        let (space, id) = (Space::of_account(&account.id), account.id.as_str());
        let versions =
            [account.version, account.version + 1].map(|version| stamp(version, account.head.hash));
        let script = cmd("EVAL")
            .arg(TRIM)
            .arg(3)
            .arg(&[space.of("account", id), space.of("log", id), space.of("opening", id)])
            .arg(&versions)
            .arg(body(opening)?)
            .arg(format!("{}-0", opening.seq + 1))
            .take();
        match self.ask(&script).await? {
            Value::Int(1) => Ok(Committed::Done),
            Value::Int(0) => Ok(Committed::Conflict),
            _ => Err(surprise()),
        }
    }

    /// What a log begins with that was trimmed.
    pub(super) async fn opening(&self, account: &AccountId) -> Result<Option<Entry>, LinkError> {
        let key = Space::of_account(account).of("opening", account.as_str());
        parse(self.ask(cmd("GET").arg(key)).await?)
    }

    pub(super) async fn commands_before_opening(&self, account: &AccountId) -> Result<Vec<Entry>, LinkError> {
        let Some(opening) = self.opening(account).await? else { return Ok(Vec::new()) };
        let key = Space::of_account(account).of("commands", account.as_str());
        let entries = array(self.ask(cmd("HVALS").arg(key)).await?)?;
        let entries = entries.into_iter().map(|entry| parse(entry)?.ok_or_else(surprise));
        let mut entries = entries.collect::<Result<Vec<Entry>, LinkError>>()?;
        entries.retain(|entry| entry.seq <= opening.seq);
        entries.sort_unstable_by_key(|entry| entry.seq);
        Ok(entries)
    }
}
