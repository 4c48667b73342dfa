//! Ends the sessions of accounts that were suspended while they ran. Whoever suspends works on the store, perhaps in another
//! process, so the store is asked, every so often, of the accounts that have sessions here.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use billing::AccountId;
use futures_util::{StreamExt as _, stream};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::refusal::Close;
use crate::serve::Gateway;

/// How late a suspension may be noticed.
const LOOK: Duration = Duration::from_secs(2);

/// Accounts that are asked for at once.
const AT_ONCE: usize = 32;

/// Looks for suspended accounts until it is dropped.
pub async fn enforce(gateway: Arc<Gateway>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if !gateway.outage.is_away() {
            look(&gateway).await;
        }
    }
}

async fn look(gateway: &Gateway) {
    let mut accounts = HashSet::new();
    gateway.sessions.for_each(|live| {
        // An account with many sessions is looked up once.
        if !accounts.contains(&live.account) {
            accounts.insert(live.account.clone());
        }
    });
    let asked = stream::iter(accounts).map(|account| suspended(gateway, account)).buffer_unordered(AT_ONCE);
    let suspended: HashSet<_> = asked.filter_map(std::future::ready).collect().await;
    if suspended.is_empty() {
        return;
    }
    gateway.sessions.for_each(|live| {
        if suspended.contains(&live.account) {
            info!(session = %live.id, account = %live.account, "a session ends: its account is suspended");
            live.end(Close::NotAllowed);
        }
    });
}

/// The account, where it is. One that cannot be looked up is looked at again.
async fn suspended(gateway: &Gateway, id: AccountId) -> Option<AccountId> {
    match gateway.billing.account(&id).await {
        Ok(account) => account.is_some_and(|account| account.suspended).then_some(id),
        Err(error) => {
            gateway.outage.note(&error);
            warn!(%error, account = %id, "whether an account is suspended could not be seen");
            None
        }
    }
}
