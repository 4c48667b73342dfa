//! How long a session may last, and how long it may be silent; and pings, so that nobody on the way takes it for dead.
//!
//! One task looks at all live sessions every second. A timer for each of them would be cheaper to write down, but an edge
//! thread that has timers arms one each time it goes to sleep, which is twice for every message that it relays.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use crate::refusal::Close;
use crate::serve::Gateway;
use crate::sessions::Live;

#[cfg(test)]
mod tests;

/// How late a limit may be noticed.
const LOOK: Duration = Duration::from_secs(1);
/// Looks at a socket on which nothing passes until its client is sent a ping. Load balancers cut a connection that is silent
/// for a minute, or for longer.
const PING_AFTER: u32 = 30;
/// How long before its end a session is warned of in the log; a tenth of the limit where that is less.
const WARNING: Duration = Duration::from_secs(60);

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

/// What is known of a session from the looks before.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Bytes that had passed when it was last found to have said something, and how old it was then.
    passed: u64,
    heard: Duration,
    warned_of_end: bool,
    warned_of_silence: bool,
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
        if live.told().is_some() {
            return;
        }
        let lasted = live.begun.elapsed();
        let mut watched = live.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if lasted >= live.max_duration {
            return live.end(Close::TimeLimit);
        }
        if is_near(lasted, live.max_duration) && !watched.warned_of_end {
            watched.warned_of_end = true;
            warn(live, Close::TimeLimit, live.max_duration - lasted);
        }
        if live.is_detached() {
            // That nobody has come yet is no silence.
            watched.heard = lasted;
            if lasted >= self.connect_timeout {
                live.end(Close::NotConnected);
            }
            return;
        }
        self.apply_to_silence(live, lasted, &mut watched);
        live.look_at_lines(PING_AFTER);
    }

    fn apply_to_silence(&self, live: &Live, lasted: Duration, watched: &mut Watched) {
        let passed = live.up_bytes.load(Ordering::Relaxed) + live.down_bytes.load(Ordering::Relaxed);
        if watched.passed != passed {
            (watched.passed, watched.heard, watched.warned_of_silence) = (passed, lasted, false);
        }
        let silence = lasted.saturating_sub(watched.heard);
        if silence >= self.idle_timeout {
            live.end(Close::Idle);
        } else if is_near(silence, self.idle_timeout) && !watched.warned_of_silence {
            watched.warned_of_silence = true;
            warn(live, Close::Idle, self.idle_timeout - silence);
        }
    }
}

fn is_near(so_far: Duration, limit: Duration) -> bool {
    limit - so_far <= WARNING.min(limit / 10)
}

fn warn(live: &Live, close: Close, left: Duration) {
    let seconds = left.as_secs();
    info!(session = %live.id, account = %live.account, cause = close.cause(), seconds, "a session ends soon");
}
