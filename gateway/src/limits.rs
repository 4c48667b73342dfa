//! How long a session may last, and how long it may be silent.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::refusal::Close;
use crate::sessions::Live;

/// The operator's limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the 101.
    pub max_duration: Duration,
    /// Without a byte in either direction. A client whose machine vanished says nothing, and would be billed for ever.
    pub idle_timeout: Duration,
}

/// Ends the session when it has reached a limit. Never returns; dropped with the session.
///
/// Silence is noticed by looking, not by being told: a relayed byte costs nothing here. So it lasts at least
/// `idle_timeout`, and at most twice as long.
pub async fn enforce(limits: &Limits, live: &Live) -> Infallible {
    let last = live.begun + limits.max_duration;
    let mut passed = None;
    loop {
        let look = last.min(Instant::now() + limits.idle_timeout);
        sleep_until(look).await;
        let now = live.up_bytes.load(Ordering::Relaxed) + live.down_bytes.load(Ordering::Relaxed);
        if look == last {
            live.end(Close::TimeLimit);
            return std::future::pending().await;
        }
        if passed.replace(now) == Some(now) {
            live.end(Close::Idle);
            return std::future::pending().await;
        }
    }
}
