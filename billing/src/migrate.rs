//! Moving everything from one store to another, and proving that it arrived.
//!
//! Each account is moved as it is, with its version, log, sessions and usage, and counts as moved when the target says the same
//! of it and its log replays there to the same figures. An account's record comes after all else that it has: nobody can use
//! one that is there in part.

use std::slice;
use std::time::Duration;

use crate::account::Account;
use crate::audit::{Entry, Fault, Verified};
use crate::books::{Billing, Error, SIGNING_KEY};
use crate::delivery::{Buried, Group, Packed, Ticket, line_of};
use crate::event::{Cursor, Event};
use crate::id::AccountId;
use crate::session::{Session, SessionCursor};
use crate::store::{Durability, LIST_MAX, Store, StoreError};
use crate::time::Timestamp;
use crate::usage::{Bucket, Usage};

const EPOCH: Timestamp = Timestamp::from_millis(0);

/// A part of what a store holds, on its way into an empty one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'a> {
    /// With its keys.
    Account(&'a Account),
    /// The next ones of an account's log.
    Entries(&'a AccountId, &'a [Entry]),
    /// Those of its log's sealed entries that came from a command.
    Commands(&'a AccountId, &'a [Entry]),
    /// Some of an account's, in any order.
    Sessions(&'a AccountId, &'a [Session]),
    Usage(&'a AccountId, Bucket, &'a [(Timestamp, Usage)]),
    /// In order.
    Events(&'a [Event]),
}

/// How much was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Accounts.
    pub accounts: u64,
    /// Entries of their logs.
    pub entries: u64,
    /// Their sessions.
    pub sessions: u64,
    /// Events.
    pub events: u64,
}

/// Why not everything was moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// A gateway began to work on the source meanwhile.
    #[error("a gateway runs on the source")]
    InUse,
    /// There are accounts in the target.
    #[error("the target is not empty")]
    NotEmpty,
    /// The target does not say the same as the source.
    #[error("{what} of {account} differ in the target")]
    Differs {
        /// Whose.
        account: AccountId,
        /// What.
        what: &'static str,
    },
    /// An account and its audit log do not agree in the source.
    #[error("{account}: {fault}")]
    Fault {
        /// Whose.
        account: AccountId,
        /// How.
        fault: Fault,
    },
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Billing {
    /// Moves everything to an empty store. The caller has made sure that no gateway runs on either. The source stays as
    /// it is, but for holds that a gateway which was killed had left in its journal: they are committed.
    ///
    /// # Errors
    /// Whatever keeps it from being whole. The target is to be emptied then.
    pub async fn move_to(&self, target: &Billing) -> Result<Moved, MoveError> {
        if !target.accounts().await?.is_empty() {
            return Err(MoveError::NotEmpty);
        }
        self.recover().await?;
        let beats = self.beats().await?;
        for group in Group::ALL {
            self.sort_the_rest(group).await?;
        }
        let (from, to) = (self.store(), target.store());
        let mut moved = Moved::default();
        for account in self.accounts().await? {
            moved.entries += move_entries(from, to, &account.id).await?;
            let commands = from.sealed_commands(&account.id).await?;
            to.put(Part::Commands(&account.id, &commands)).await?;
            moved.sessions += move_sessions(from, to, &account.id).await?;
            move_usage(from, to, &account.id).await?;
            move_webhooks(from, to, &account.id).await?;
            to.put(Part::Account(&account)).await?;
            self.prove(target, &account).await?;
            moved.accounts += 1;
        }
        for stream in 0..from.event_streams() {
            moved.events += move_events(from, to, stream).await?;
        }
        for group in Group::ALL {
            to.skip_events(group).await?;
        }
        move_parcels(from, to).await?;
        for gateway in from.serving().await? {
            if let Some(seen) = from.last_seen(&gateway).await? {
                to.heartbeat(&gateway, seen).await?;
            }
        }
        to.secret(SIGNING_KEY, self.signing_key().await?.0).await?;
        for account in from.accounts().await? {
            to.wait_for(&account.id, Durability::Disk).await?;
        }
        if self.beats().await? == beats { Ok(moved) } else { Err(MoveError::InUse) }
    }

    /// Whether a gateway notes meanwhile that it lives. One that never had any is not watched.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn is_in_use(&self, watch: Duration) -> Result<bool, StoreError> {
        let before = self.beats().await?;
        if before.is_empty() {
            return Ok(false);
        }
        tokio::time::sleep(watch).await;
        Ok(self.beats().await? != before)
    }

    /// The target says the same of an account, and its log replays there to the same.
    async fn prove(&self, target: &Billing, account: &Account) -> Result<(), MoveError> {
        let id = &account.id;
        let differs = |what| MoveError::Differs { account: id.clone(), what };
        if target.account(id).await?.as_ref() != Some(account) {
            return Err(differs("the figures"));
        }
        let (own, other) = (self.replayed(id).await?, target.replayed(id).await?);
        if own != other {
            return Err(differs("the logs"));
        }
        let (from, to) = (self.store(), target.store());
        let mut after = None;
        loop {
            let page = from.sessions(id, after.as_ref(), LIST_MAX).await?;
            if page != to.sessions(id, after.as_ref(), LIST_MAX).await? {
                return Err(differs("the sessions"));
            }
            let Some(last) = page.last() else { break };
            after = Some(SessionCursor::from(last));
        }
        if from.sealed_commands(id).await? != to.sealed_commands(id).await? {
            return Err(differs("the commands of sealed entries"));
        }
        for bucket in [Bucket::Hour, Bucket::Month] {
            if from.usage(id, bucket, EPOCH).await? != to.usage(id, bucket, EPOCH).await? {
                return Err(differs("the usage"));
            }
        }
        let own = slice::from_ref(id);
        if from.webhooks(own).await? != to.webhooks(own).await? {
            return Err(differs("the webhooks"));
        }
        for key in account.keys.iter().filter(|key| key.revoked_at.is_none()) {
            let whose = to.principal(key.hash).await?;
            if whose.is_none_or(|whose| whose.account != *id || whose.key != key.id) {
                return Err(differs("the keys"));
            }
        }
        Ok(())
    }

    async fn replayed(&self, id: &AccountId) -> Result<Verified, MoveError> {
        self.verify(id).await.map_err(|error| match error {
            Error::Fault(fault) => MoveError::Fault { account: id.clone(), fault },
            Error::Store(error) => error.into(),
            // Nothing else comes of it but that the account is not there.
            _ => MoveError::Differs { account: id.clone(), what: "the accounts" },
        })
    }
}

async fn move_entries(from: &Store, to: &Store, account: &AccountId) -> Result<u64, StoreError> {
    let mut moved = 0;
    loop {
        let page = from.audit(account, moved, LIST_MAX).await?;
        let Some(last) = page.last() else { return Ok(moved) };
        to.put(Part::Entries(account, &page)).await?;
        moved = last.seq;
    }
}

async fn move_sessions(from: &Store, to: &Store, account: &AccountId) -> Result<u64, StoreError> {
    let (mut moved, mut after) = (0, None);
    loop {
        let page = from.sessions(account, after.as_ref(), LIST_MAX).await?;
        let Some(last) = page.last() else { return Ok(moved) };
        to.put(Part::Sessions(account, &page)).await?;
        moved += page.len() as u64;
        after = Some(SessionCursor::from(last));
    }
}

async fn move_usage(from: &Store, to: &Store, account: &AccountId) -> Result<(), StoreError> {
    for bucket in [Bucket::Hour, Bucket::Month] {
        let rows = from.usage(account, bucket, EPOCH).await?;
        if !rows.is_empty() {
            to.put(Part::Usage(account, bucket, &rows)).await?;
        }
    }
    Ok(())
}

async fn move_webhooks(from: &Store, to: &Store, account: &AccountId) -> Result<(), StoreError> {
    for (account, webhook) in from.webhooks(slice::from_ref(account)).await? {
        to.put_webhook(&account, &webhook).await?;
    }
    Ok(())
}

/// What waits is due when it was, as if it had not been tried; a dead letter stays one.
async fn move_parcels(from: &Store, to: &Store) -> Result<(), StoreError> {
    for parcels in from.waiting_parcels().await?.chunks(LIST_MAX as usize) {
        to.put_parcels(parcels).await?;
    }
    for Buried { name, body, cause, died_at, .. } in from.dead_letters(u32::MAX).await? {
        let line = line_of(&body);
        let letter = Packed { name: name.clone(), line: line.clone(), due: died_at, body };
        to.put_parcels(&[letter]).await?;
        to.bury_parcel(&Ticket { name, line, attempts: 0 }, &cause, died_at).await?;
    }
    Ok(())
}

async fn move_events(from: &Store, to: &Store, stream: u16) -> Result<u64, StoreError> {
    let (mut moved, mut after) = (0, Cursor::start());
    loop {
        let page = from.events(stream, &after, LIST_MAX).await?;
        let Some((last, _)) = page.last() else { return Ok(moved) };
        after = last.clone();
        // What is not understood is among the parcels.
        let events: Vec<_> = page.iter().filter_map(|(_, told)| told.event().cloned()).collect();
        to.put(Part::Events(&events)).await?;
        moved += events.len() as u64;
    }
}
