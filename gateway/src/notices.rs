//! Tells customers of their events: reads what the ledger told, and carries it to their webhooks. All of it on the main
//! runtime, so that no session waits for any of it.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use billing::{Consumer, Delivery, Fate, Group, StoreError};
use metrics::{counter, gauge};
use tokio::task::{Id, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use crate::serve::Gateway;
use crate::webhook::{Failed, Sender};

/// Requests under way at a time, of all customers. Each takes a descriptor of those that are kept apart for such.
const AT_ONCE: usize = 64;
/// How often it is looked for what is due again.
const LOOK: Duration = Duration::from_secs(1);
/// After the store failed; and how many failures in a row are told of as one.
const PAUSE: Duration = Duration::from_secs(2);
const TOLD_EVERY: u32 = 30;
/// How often something is tidied up: one stream of events each time, so that all 256 of a Redis have their turn in 43 minutes.
const UPKEEP: Duration = Duration::from_secs(10);

/// Reads the events, until it is dropped.
pub async fn consume(gateway: Arc<Gateway>) {
    let mut consumer = Consumer::new(gateway.billing.clone(), Group::Notices, gateway.id.clone());
    let group = Group::Notices.as_str();
    let mut trouble = Trouble::default();
    loop {
        consumer.wait().await;
        match consumer.look().await {
            Ok(sorted) => {
                trouble.is_over();
                counter!("ufb_billing_events_total", "group" => group).increment(sorted.events);
                if sorted.unread > 0 {
                    counter!("ufb_billing_unread_events_total", "group" => group).increment(sorted.unread);
                    warn!(
                        group,
                        unread = sorted.unread,
                        "there are events that are not understood; they are tried again"
                    );
                }
                if sorted.dropped > 0 {
                    counter!("ufb_billing_dropped_deliveries_total", "group" => group)
                        .increment(sorted.dropped);
                    warn!(
                        group,
                        dropped = sorted.dropped,
                        "an account has so many deliveries waiting that new ones are dropped"
                    );
                }
            }
            Err(error) => {
                trouble.with(&error, "the events could not be read");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Drops events and dead letters whose time is over, and counts what there is, until it is dropped.
pub async fn tidy(gateway: Arc<Gateway>, kept: Duration) {
    let mut consumer = Consumer::new(gateway.billing.clone(), Group::Notices, gateway.id.clone());
    let mut ticks = interval(UPKEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let tidied = async {
            consumer.trim(kept, gateway.clock.now()).await?;
            gateway.billing.backlog().await
        };
        match tidied.await {
            Ok(backlog) => {
                gauge!("ufb_billing_waiting_deliveries").set(lossy(backlog.waiting));
                gauge!("ufb_billing_dead_letters").set(lossy(backlog.dead));
            }
            Err(error) => warn!(%error, "old events could not be dropped"),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and these are small")]
fn lossy(count: u64) -> f64 {
    count as f64
}

/// Carries parcels, each up to `most` times, until it is dropped.
pub async fn deliver(gateway: Arc<Gateway>, sender: Arc<Sender>, most: NonZeroU32) {
    let mut carried = Carried::default();
    let mut trouble = Trouble::default();
    loop {
        match claim(&gateway, &carried, most).await {
            Ok(claimed) => {
                trouble.is_over();
                for delivery in claimed {
                    carried.start(&gateway, &sender, delivery, most);
                }
            }
            Err(error) => {
                trouble.with(&error, "what is to be delivered could not be read");
                sleep(PAUSE).await;
            }
        }
        tokio::select! {
            () = gateway.billing.parcel_made() => {}
            () = sleep(LOOK) => {}
            () = carried.end_of_some() => {}
        }
    }
}

/// A store that is away for long is told of once a minute.
#[derive(Default)]
struct Trouble {
    /// Failures in a row.
    count: u32,
}

impl Trouble {
    fn with(&mut self, error: &StoreError, what: &'static str) {
        if self.count.is_multiple_of(TOLD_EVERY) {
            warn!(%error, "{what}");
        } else {
            debug!(%error, "{what}");
        }
        self.count = self.count.wrapping_add(1);
    }

    fn is_over(&mut self) {
        self.count = 0;
    }
}

async fn claim(gateway: &Gateway, carried: &Carried, most: NonZeroU32) -> Result<Vec<Delivery>, StoreError> {
    match u32::try_from(AT_ONCE.saturating_sub(carried.tasks.len())) {
        Ok(0) | Err(_) => Ok(Vec::new()),
        Ok(room) => gateway.billing.claim_deliveries(&carried.busy, room, most, gateway.clock.now()).await,
    }
}

/// What is under way.
#[derive(Default)]
struct Carried {
    tasks: JoinSet<()>,
    /// The line of each.
    lines: HashMap<Id, String>,
    /// How many there are of each line.
    busy: HashMap<String, u32>,
}

impl Carried {
    fn start(&mut self, gateway: &Arc<Gateway>, sender: &Arc<Sender>, delivery: Delivery, most: NonZeroU32) {
        let line = delivery.parcel.line();
        let (gateway, sender) = (Arc::clone(gateway), Arc::clone(sender));
        let task = self.tasks.spawn(async move { carry(&gateway, &sender, &delivery, most).await });
        *self.busy.entry(line.clone()).or_default() += 1;
        self.lines.insert(task.id(), line);
    }

    /// Returns once some have ended; never where there are none. May be dropped.
    async fn end_of_some(&mut self) {
        let Some(ended) = self.tasks.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let mut ended = Some(ended);
        while let Some(task) = ended {
            // One that panicked left nothing behind but what is handed out again.
            let id = task.map_or_else(|error| error.id(), |(id, ())| id);
            self.release(id);
            ended = self.tasks.try_join_next_with_id();
        }
    }

    fn release(&mut self, task: Id) {
        let Some(line) = self.lines.remove(&task) else { return };
        if let Some(busy) = self.busy.get_mut(&line) {
            *busy -= 1;
            if *busy == 0 {
                self.busy.remove(&line);
            }
        }
    }
}

/// Makes one attempt, and tells the store what came of it. Where the store fails the parcel is handed out again.
async fn carry(gateway: &Gateway, sender: &Sender, delivery: &Delivery, most: NonZeroU32) {
    let (parcel, attempt) = (&delivery.parcel, delivery.attempts);
    let (name, customer) = (parcel.name(), &parcel.event.customer);
    let made = match parcel.group {
        Group::Notices => notify(gateway, sender, delivery).await,
    };
    let told = match made {
        Ok(Ok(())) => {
            info!(delivery = %name, %customer, event = parcel.event.kind.as_str(), attempt, "delivered");
            gateway.billing.delivered(delivery).await.map(|()| "delivered")
        }
        Ok(Err(failed)) => {
            debug!(delivery = %name, %customer, attempt, %failed, "a delivery failed");
            let fate = gateway.billing.failed(delivery, &failed.to_string(), most, gateway.clock.now()).await;
            fate.map(|fate| match fate {
                Fate::Again(_) => "failed",
                Fate::Dead => "dead",
            })
        }
        Err(error) => Err(error),
    };
    match told {
        Ok(result) => {
            let group = parcel.group.as_str();
            counter!("ufb_billing_deliveries_total", "group" => group, "result" => result).increment(1);
        }
        Err(error) => warn!(delivery = %name, %error, "what became of a delivery could not be noted"),
    }
}

/// The outer error is the store's.
async fn notify(
    gateway: &Gateway,
    sender: &Sender,
    delivery: &Delivery,
) -> Result<Result<(), Failed>, StoreError> {
    match gateway.billing.notice(delivery, gateway.clock.now()).await? {
        Some(notice) => Ok(sender.send(notice).await),
        // Its webhook was removed.
        None => Ok(Ok(())),
    }
}
