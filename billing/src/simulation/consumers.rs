//! What a gateway does with events: reads them for its group, and carries what comes of them, as `gateway/src/notices.rs` does.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::gateway::Gateway;
use super::world::lock;
use crate::consumer::Consumer;
use crate::delivery::{Delivery, Group};

/// So few that some die.
pub(super) const ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).expect("it is more than 0");
/// Less than a bell would take is of no matter here.
const LOOK: Duration = Duration::from_millis(1_900);
const AT_ONCE: u32 = 8;
const TRIMMED: Duration = Duration::from_secs(3);
const KEPT: Duration = Duration::from_secs(30);
/// A receiver that does not answer.
const SILENCE: Duration = Duration::from_secs(10);

impl Gateway {
    pub(super) async fn consume(self: Arc<Self>) {
        let mut consumer = Consumer::new(self.billing.clone(), Group::Notices, self.life.id.clone());
        let mut next_trim = Instant::now();
        loop {
            sleep(LOOK).await;
            // What fails is read again, by this one or another.
            let _ = timeout(self.world.patience(), consumer.look()).await;
            if Instant::now() >= next_trim {
                next_trim = Instant::now() + TRIMMED;
                for _ in 0..self.billing.event_streams() / 16 {
                    if consumer.trim(KEPT, self.now()).await.is_err() {
                        break;
                    }
                }
            }
        }
    }

    pub(super) async fn deliver(self: Arc<Self>) {
        loop {
            sleep(LOOK).await;
            let claimed = self.billing.claim_deliveries(&HashMap::new(), AT_ONCE, ATTEMPTS, self.now()).await;
            for delivery in claimed.unwrap_or_default() {
                self.life.spawn(Arc::clone(&self).carry(delivery));
            }
        }
    }

    async fn carry(self: Arc<Self>, delivery: Delivery) {
        let (is_silent, is_refused) = {
            let mut chance = self.world.chance();
            (chance.permille(100), chance.permille(250))
        };
        sleep(if is_silent { SILENCE } else { Duration::from_millis(20) }).await;
        if is_silent || is_refused {
            let _ = self.billing.failed(&delivery, "answered 500", ATTEMPTS, self.now()).await;
            return;
        }
        lock(&self.book).delivered.insert(delivery.parcel.name());
        let _ = self.billing.delivered(&delivery).await;
    }
}
