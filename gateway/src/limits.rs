//! How long a session may last, and how long it may be silent.
//!
//! One task looks at all live sessions every second. A timer for each of them would be cheaper to write down, but an edge
//! thread that has timers arms one each time it goes to sleep, which is twice for every message that it relays.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::refusal::Close;
use crate::serve::Gateway;
use crate::sessions::Live;

/// How late a limit may be noticed.
const LOOK: Duration = Duration::from_secs(1);

/// The operator's limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the 101; a session may have a shorter one of its own.
    pub max_duration: Duration,
    /// Without a byte in either direction. A client whose machine vanished says nothing, and would be billed for ever.
    pub idle_timeout: Duration,
    /// For how long a session that was made without a socket waits for one.
    pub connect_timeout: Duration,
}

/// Ends sessions that have reached a limit, until it is dropped.
pub async fn enforce(gateway: Arc<Gateway>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        gateway.sessions.for_each(|live| gateway.limits.apply(live));
    }
}

impl Limits {
    fn apply(&self, live: &Live) {
        let lasted = live.begun.elapsed();
        let passed = live.up_bytes.load(Ordering::Relaxed) + live.down_bytes.load(Ordering::Relaxed);
        if lasted >= live.max_duration {
            live.end(Close::TimeLimit);
        } else if live.is_detached() {
            live.waits(lasted);
            if lasted >= self.connect_timeout {
                live.end(Close::NotConnected);
            }
        } else if live.silence(passed, lasted) >= self.idle_timeout {
            live.end(Close::Idle);
        }
    }
}
