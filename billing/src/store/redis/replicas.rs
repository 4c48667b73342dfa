//! Waiting until replicas have what was committed: for what must not be lost when one of them becomes the master.
//!
//! Replication is one stream in the order of the writes. So whatever was answered before is with a replica that has a
//! write which was made afterwards, on whichever connection. That write and the question are on connections of their
//! own, since the question keeps all that comes behind it waiting. In a Cluster each server has a stream of its own, and each
//! partition is on one of them; so there each partition is asked for by itself, by a key in its slot.

use std::sync::atomic::{AtomicU64, Ordering};

use redis::{Value, pipe};
use tokio::sync::Mutex;

use super::Space;
use super::connection::Connections;
use crate::store::{PARTITIONS, StoreError};

#[cfg(test)]
mod tests;

const KEPT: &str = "ufb:kept";

/// How long replicas may take, in milliseconds: less than an answer may. One that follows has it in a fraction of one.
const PATIENCE: u64 = 500;

#[derive(Debug)]
pub(super) struct Replicas {
    connections: Connections,
    wanted: u32,
    /// One for each partition of a Cluster, else one.
    lines: Vec<Line>,
}

/// Those who wait for the replicas of one server.
#[derive(Debug, Default)]
struct Line {
    /// Held by who asks; those who come meanwhile are served by the next question, or refused by it.
    turn: Mutex<Refused>,
    came: AtomicU64,
    /// All who came up to this one are served.
    served: AtomicU64,
}

/// What the last question that failed came to.
#[derive(Clone, Copy, Debug, Default)]
struct Refused {
    /// All who had come up to this one are refused: each would wait as long for the same answer, one behind the other.
    up_to: u64,
    /// Replicas that had it.
    had: u32,
}

impl Replicas {
    pub(super) fn new(connections: Connections, wanted: u32) -> Replicas {
        let lines = if connections.is_cluster() { PARTITIONS } else { 1 };
        Replicas { connections, wanted, lines: (0..lines).map(|_| Line::default()).collect() }
    }

    /// Waits until they have all of the partition that was answered before this call.
    pub(super) async fn have_all(&self, partition: u8) -> Result<(), StoreError> {
        let (line, key) = match &self.lines[..] {
            [line] => (line, KEPT.to_owned()),
            lines => (&lines[usize::from(partition)], Space { partition }.key("kept")),
        };
        let ticket = line.came.fetch_add(1, Ordering::Relaxed) + 1;
        let mut turn = line.turn.lock().await;
        if line.served.load(Ordering::Relaxed) >= ticket {
            return Ok(());
        }
        if turn.up_to >= ticket {
            return Err(StoreError::Unreplicated { had: turn.had, wanted: self.wanted });
        }
        let serves = line.came.load(Ordering::Relaxed);
        let mut questions = pipe();
        questions.cmd("SET").arg(key).arg(serves).cmd("WAIT").arg(self.wanted).arg(PATIENCE);
        let answer = self.connections.ask_in_turn(&questions).await;
        let had = match answer {
            Ok(Value::Int(had)) => u32::try_from(had).unwrap_or_default(),
            Ok(_) | Err(_) => 0,
        };
        if had < self.wanted {
            *turn = Refused { up_to: serves, had };
            answer?;
            return Err(StoreError::Unreplicated { had, wanted: self.wanted });
        }
        line.served.store(serves, Ordering::Relaxed);
        Ok(())
    }
}
