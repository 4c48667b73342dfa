//! What this process holds at this moment: gauges that only grow tell of a leak, and the list of sessions tells whose it is.
//!
//! Counted when somebody asks, so that it costs the sessions nothing.

use std::fs;
use std::time::Duration;

use billing::Group;
use metrics::{counter, gauge};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::warn;

use crate::serve::Gateway;
use crate::sessions::Stage;

/// How long the ledger may take to say which holds are this gateway's. Whoever asks for metrics waits for that.
const LEDGER: Duration = Duration::from_secs(1);

/// Counts from zero what alert rules watch: of a counter that is first seen at one nobody can tell that it has grown.
pub fn begin() {
    for name in [
        "ufb_gateway_owed_dropped_total",
        "ufb_gateway_swept_sessions_total",
        "ufb_gateway_unusual_starts_total",
    ] {
        counter!(name).increment(0);
    }
    for group in Group::ALL.map(Group::as_str) {
        counter!("ufb_billing_dropped_deliveries_total", "group" => group).increment(0);
        counter!("ufb_billing_unread_events_total", "group" => group).increment(0);
        counter!("ufb_billing_deliveries_total", "group" => group, "result" => "dead").increment(0);
    }
}

/// How much there is of everything that a session takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Census {
    /// Of all runtimes.
    tasks: usize,
    /// Open ones of this process.
    descriptors: usize,
    connections: usize,
    /// Sessions that have begun and are not settled.
    live_sessions: usize,
    /// Sessions that have a price set aside and wait for a browser.
    waiting_sessions: usize,
    /// Sessions of this gateway that the ledger has not settled; none where it did not answer.
    holds: Option<usize>,
    /// Holds that wait for somebody to ask for them.
    spare_holds: usize,
    /// Sessions of which the ledger has to be told something that it could not be told.
    owed_sessions: usize,
    /// What of them nobody has set aside: sessions on credit.
    unsecured_micros: u64,
    /// For how long the ledger has been away, in seconds.
    ledger_away: u64,
    /// Between the machine's clock and the store's, where they contradict each other.
    clocks_apart: u64,
}

impl Census {
    pub async fn take(gateway: &Gateway) -> Self {
        Self {
            tasks: gateway.runtimes().iter().map(alive).sum(),
            descriptors: descriptors(),
            connections: gateway.crowd.connections(),
            live_sessions: gateway.sessions.len(),
            waiting_sessions: gateway.sessions.waiting(),
            holds: holds(gateway).await,
            spare_holds: gateway.spares.count(),
            owed_sessions: gateway.owed.len(),
            unsecured_micros: gateway.owed.all_on_credit().get(),
            clocks_apart: gateway.clock.contradiction().map_or(0, |apart| apart.as_secs()),
            ledger_away: gateway.outage.lasts().map_or(0, |lasts| lasts.as_secs().max(1)),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and these are small")]
    pub fn report(&self) {
        gauge!("ufb_gateway_tasks").set(self.tasks as f64);
        gauge!("ufb_gateway_descriptors").set(self.descriptors as f64);
        gauge!("ufb_gateway_connections").set(self.connections as f64);
        gauge!("ufb_gateway_live_sessions").set(self.live_sessions as f64);
        gauge!("ufb_gateway_waiting_sessions").set(self.waiting_sessions as f64);
        gauge!("ufb_gateway_owed_sessions").set(self.owed_sessions as f64);
        gauge!("ufb_gateway_spare_holds").set(self.spare_holds as f64);
        gauge!("ufb_gateway_unsecured_micros").set(self.unsecured_micros as f64);
        gauge!("ufb_gateway_ledger_away_seconds").set(self.ledger_away as f64);
        gauge!("ufb_gateway_clocks_apart_seconds").set(self.clocks_apart as f64);
        if let Some(holds) = self.holds {
            gauge!("ufb_gateway_holds").set(holds as f64);
        }
    }
}

fn alive(runtime: &Handle) -> usize {
    runtime.metrics().num_alive_tasks()
}

/// One of them is the directory's that is read for it.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}

async fn holds(gateway: &Gateway) -> Option<usize> {
    if gateway.outage.is_away() {
        return None;
    }
    match timeout(LEDGER, gateway.billing.open_sessions_of(&gateway.id)).await {
        Ok(Ok(holds)) => Some(holds.len()),
        Ok(Err(error)) => {
            warn!(%error, "the ledger does not say which holds are this gateway's");
            None
        }
        Err(_) => None,
    }
}

/// Everything that is known of the sessions of this gateway. No credential, no payload, no customer's own words.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    gateway: String,
    census: Census,
    sessions: Vec<Known>,
}

/// One session.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    session: String,
    account: String,
    stage: Stage,
    /// Milliseconds in all stages but waiting; then since it waits.
    age: u64,
    sockets: u32,
    up_bytes: u64,
    down_bytes: u64,
}

impl Report {
    pub async fn make(gateway: &Gateway) -> Self {
        let mut sessions = Vec::new();
        gateway.sessions.for_each(|live| {
            let (stage, sockets) = live.stage();
            let (up_bytes, down_bytes) = live.passed();
            sessions.push(Known {
                session: live.id.to_string(),
                account: live.account.to_string(),
                stage,
                age: millis(live.begun.elapsed()),
                sockets,
                up_bytes,
                down_bytes,
            });
        });
        gateway.sessions.for_each_waiting(|account, id, since| {
            sessions.push(Known {
                session: id.to_string(),
                account: account.to_string(),
                stage: Stage::Waiting,
                age: millis(since.elapsed()),
                sockets: 0,
                up_bytes: 0,
                down_bytes: 0,
            });
        });
        // The oldest first: what leaks is old.
        sessions.sort_unstable_by_key(|session| std::cmp::Reverse(session.age));
        Self { gateway: gateway.id.to_string(), census: Census::take(gateway).await, sessions }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
