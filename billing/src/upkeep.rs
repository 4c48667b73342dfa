//! What goes when its time is over: the records of sessions, and what a key is found by that its account forgot.
//!
//! Nothing here is money: what a session cost is in the audit log, and in the months of the account's usage.

use std::collections::HashSet;

use crate::account::Account;
use crate::books::Billing;
use crate::id::AccountId;
use crate::store::StoreError;
use crate::time::Timestamp;

/// Records that are dropped in one step, so that no command waits long for it.
const DROPPED_AT_A_TIME: u32 = 200;

impl Billing {
    /// Drops the records of an account's sessions that began before `before` and have ended; gives their number. From then
    /// on their ids are as free as any. Gateways may be at work meanwhile, and others may do the same.
    ///
    /// # Errors
    /// When the store fails. What was dropped stays dropped.
    pub async fn drop_records(&self, account: &AccountId, before: Timestamp) -> Result<u64, StoreError> {
        let mut dropped = 0;
        loop {
            match self.store().drop_sessions(account, before, DROPPED_AT_A_TIME).await? {
                0 => return Ok(dropped),
                some => dropped += u64::from(some),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Drops what the keys are found by that an account had and has no more. Nobody can use such a key; so a process that is
    /// killed before it comes to this leaves nothing behind but a few bytes.
    pub(crate) async fn drop_keys(&self, before: &Account, after: &Account) -> Result<(), StoreError> {
        let kept: HashSet<_> = after.keys.iter().map(|key| key.hash).collect();
        for key in before.keys.iter().filter(|key| !kept.contains(&key.hash)) {
            self.store().drop_key(key.hash).await?;
        }
        Ok(())
    }
}
