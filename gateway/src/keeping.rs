//! Drops the records of sessions whose time is over. What they cost is in the audit log.

use std::sync::Arc;
use std::time::Duration;

use billing::{StoreError, Timestamp};
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::serve::Gateway;

/// How often all accounts are looked through. A record may stay so much longer; each gateway of a store looks.
const LOOK: Duration = Duration::from_secs(60 * 60);

/// Runs until it is dropped.
pub async fn run(gateway: Arc<Gateway>, kept: Duration) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match look(&gateway, kept).await {
            Ok(0) => {}
            Ok(dropped) => info!(dropped, "dropped records of sessions whose time is over"),
            Err(error) => warn!(%error, "records of sessions whose time is over could not be dropped"),
        }
    }
}

async fn look(gateway: &Gateway, kept: Duration) -> Result<u64, StoreError> {
    let kept = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
    let before = Timestamp::from_millis(gateway.clock.now().as_millis().saturating_sub(kept));
    let mut dropped = 0;
    for account in gateway.billing.accounts().await? {
        dropped += gateway.billing.drop_records(&account.id, before).await?;
        yield_now().await;
    }
    Ok(dropped)
}
