//! Waiting until replicas have what was committed: for what must not be lost when one of them becomes the master.
//!
//! Replication is one stream in the order of the writes. So whatever was answered before is with a replica that has a
//! write which was made afterwards, on whichever connection. That write and the question are on connections of their
//! own, since the question keeps all that comes behind it waiting.

use std::sync::atomic::{AtomicU64, Ordering};

use redis::{Value, cmd};
use tokio::sync::Mutex;

use super::connection::Connections;
use crate::store::StoreError;

#[cfg(test)]
mod tests;

const KEPT: &str = "ufb:kept";

/// How long replicas may take, in milliseconds: less than an answer may. One that follows has it in a fraction of one.
const PATIENCE: u64 = 500;

#[derive(Debug)]
pub(super) struct Replicas {
    connections: Connections,
    wanted: u32,
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
        let (came, served) = (AtomicU64::new(0), AtomicU64::new(0));
        Replicas { connections, wanted, turn: Mutex::default(), came, served }
    }

    /// Waits until they have all that was answered before this call.
    pub(super) async fn have_all(&self) -> Result<(), StoreError> {
        let ticket = self.came.fetch_add(1, Ordering::Relaxed) + 1;
        let mut turn = self.turn.lock().await;
        if self.served.load(Ordering::Relaxed) >= ticket {
            return Ok(());
        }
        if turn.up_to >= ticket {
            return Err(StoreError::Unreplicated { had: turn.had, wanted: self.wanted });
        }
        let serves = self.came.load(Ordering::Relaxed);
        let write = cmd("SET").arg(KEPT).arg(serves).take();
        let wait = cmd("WAIT").arg(self.wanted).arg(PATIENCE).take();
        let answer = self.connections.ask_both(&write, &wait).await;
        let had = match answer {
            Ok(Value::Int(had)) => u32::try_from(had).unwrap_or_default(),
            Ok(_) | Err(_) => 0,
        };
        if had < self.wanted {
            *turn = Refused { up_to: serves, had };
            answer?;
            return Err(StoreError::Unreplicated { had, wanted: self.wanted });
        }
        self.served.store(serves, Ordering::Relaxed);
        Ok(())
    }
}
