//! Commits that wait for the disk anyway, and become one where several come together.
//!
//! Writing a commit's pages to the WAL takes most of the time that it takes. So a session's end is written into a
//! transaction that stays open while its task lets those others go on that are at the same point; who comes back first
//! commits for all. None of them is answered before. Anybody else who wants the database commits it first.

use std::sync::{Arc, MutexGuard, OnceLock};

use tracing::warn;

use super::{
    ACCOUNTS_CACHED, Committed, Embedded, Hot, Rows, SELECT_SESSION, Waiting, patiently, remember,
    select_body, write,
};
use crate::id::{AccountId, SessionId};
use crate::ledger::{Change, SessionChange};
use crate::session::Session;
use crate::store::StoreError;

/// A transaction that is open between two locks of [`Hot`].
#[derive(Debug, Default)]
pub(super) struct Group {
    outcome: Outcome,
    /// Whose changes are in it.
    accounts: Vec<AccountId>,
    /// What had been put off and is in it.
    deferred: Vec<(Waiting, Committed)>,
}

/// Whether it was committed; nothing yet.
type Outcome = Arc<OnceLock<bool>>;

/// Commits the group that it is of, at the latest when it is dropped: an open transaction keeps other processes waiting.
struct Member<'a> {
    store: &'a Embedded,
    outcome: Outcome,
}

impl Member<'_> {
    fn commit(&self) -> bool {
        if self.outcome.get().is_none() {
            self.store.commit_group(&mut self.store.hot());
        }
        self.outcome.get() == Some(&true)
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.commit();
    }
}

/// Whether nothing but the account's version stands against a change: then it is refused whole or not at all.
pub(in crate::store) fn is_fit(change: &Change) -> bool {
    let is_update = matches!(change.session, SessionChange::Update(_) | SessionChange::Several(_));
    is_update && !change.new_key && change.entries.iter().all(|entry| entry.command.is_none())
}

impl Embedded {
    /// Commits a change that is [fit](is_fit) for it with whatever else comes within a turn of the runtime.
    pub(in crate::store) async fn commit_with_others(
        &self,
        expected: u64,
        change: &Change,
    ) -> Result<Committed, StoreError> {
        let rows = Rows::of(change)?;
        let joined = patiently(|| self.try_join(expected, change, &rows)).await?;
        let Some(outcome) = joined else { return Ok(Committed::Conflict) };
        let member = Member { store: self, outcome };
        tokio::task::yield_now().await;
        // The reason was told by whoever tried to commit; nothing was changed.
        if member.commit() { Ok(Committed::Done) } else { Err(StoreError::Busy) }
    }

    /// A session to decide on: as it is in the group, too.
    pub(in crate::store) async fn load_session(
        &self,
        account: &AccountId,
        id: &SessionId,
    ) -> Result<Option<Session>, StoreError> {
        patiently(|| {
            let hot = self.hot();
            let put_off = hot.deferred.iter().flat_map(|waiting| waiting.change.session.sessions());
            if let Some(session) = put_off.rev().find(|held| held.id == *id && held.account == *account) {
                return Ok(Some(session.clone()));
            }
            select_body(&hot.connection, SELECT_SESSION, [account.as_str(), id.as_str()])
        })
        .await
    }

    /// The lock, whatever transaction is open. A panic under it leaves one that may be half written.
    pub(super) fn hot(&self) -> MutexGuard<'_, Hot> {
        self.hot.lock().unwrap_or_else(|poisoned| {
            self.hot.clear_poison();
            let mut hot = poisoned.into_inner();
            self.give_up_group(&mut hot);
            hot
        })
    }

    /// The lock for one who is to see all that was decided, and to write by himself.
    pub(super) fn alone(&self) -> Result<MutexGuard<'_, Hot>, StoreError> {
        let mut hot = self.hot();
        self.commit_group(&mut hot);
        self.commit_deferred(&mut hot)?;
        Ok(hot)
    }

    /// `None`: the account has moved on.
    fn try_join(&self, expected: u64, change: &Change, rows: &Rows) -> Result<Option<Outcome>, StoreError> {
        let id = &change.account.id;
        let mut hot = self.hot();
        if self.accounts.get(id).is_some_and(|cached| cached.version != expected) {
            return Ok(None);
        }
        if hot.group.is_none() {
            self.may_write()?;
            hot.connection.execute_batch("BEGIN IMMEDIATE")?;
            hot.group = Some(Group::default());
            self.has_begun(&mut hot.others);
        }
        let written = self.write_into_group(&mut hot, expected, change, rows);
        if !matches!(written, Ok(true)) {
            // Nothing of it was written, or it cannot be told how much.
            if written.is_ok() {
                self.commit_group(&mut hot)
            } else {
                self.give_up_group(&mut hot)
            }
            self.refresh(&hot.connection, id)?;
            return written.map(|_| None);
        }
        remember(&self.accounts, ACCOUNTS_CACHED, id.clone(), Arc::new(change.account.clone()));
        let group = hot.group.as_mut().expect("it was begun above");
        group.accounts.push(id.clone());
        Ok(Some(Arc::clone(&group.outcome)))
    }

    /// Whether it was written; if not, the account has moved on.
    fn write_into_group(
        &self,
        hot: &mut Hot,
        expected: u64,
        change: &Change,
        rows: &Rows,
    ) -> Result<bool, StoreError> {
        let Hot { connection, group: Some(group), deferred, .. } = hot else { return Ok(false) };
        let outcomes = self.write_waiting(connection, deferred)?;
        group.deferred.extend(deferred.drain(..).zip(outcomes));
        match write(connection, expected, change, rows)? {
            Committed::Done => Ok(true),
            Committed::Conflict => Ok(false),
            Committed::Exists => Err(StoreError::Busy),
        }
    }

    /// Commits what is open, if anything is. Who is in it learns whether that was done.
    fn commit_group(&self, hot: &mut Hot) {
        if hot.group.is_none() {
            return;
        }
        if let Err(error) = hot.connection.execute_batch("COMMIT") {
            warn!(%error, "sessions' ends could not be committed");
            return self.give_up_group(hot);
        }
        let Some(Group { outcome, deferred, .. }) = hot.group.take() else { return };
        self.committed(hot);
        self.tell_outcomes(hot, deferred);
        let _ = outcome.set(true);
    }

    /// Rolls back what is open. The accounts that it was about are read anew; what was put off still is.
    fn give_up_group(&self, hot: &mut Hot) {
        let Some(Group { outcome, accounts, deferred }) = hot.group.take() else { return };
        // SQLite may have done it by itself.
        if !hot.connection.is_autocommit()
            && let Err(error) = hot.connection.execute_batch("ROLLBACK")
        {
            warn!(%error, "a transaction could not be rolled back");
        }
        for id in accounts {
            self.accounts.remove(&id);
        }
        hot.deferred.splice(..0, deferred.into_iter().map(|(waiting, _)| waiting));
        let _ = outcome.set(false);
    }
}
