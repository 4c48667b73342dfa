//! The ready queue alone, to measure what a claim costs beyond it: what lies in it has no socket that could be looked at.

use std::sync::Arc;

use crate::ready::{Claimable, Entry, Ready};

/// A queue of so many entries as a pool has browsers, which are popped as browsers are.
#[derive(Debug)]
pub struct BareQueue(Ready<Bare>);

/// As large as a warm browser: a reference and a descriptor.
#[derive(Debug)]
pub struct Bare {
    claimable: Arc<Claimable>,
    _socket: i32,
}

impl Entry for Bare {
    fn claimable(&self) -> &Claimable {
        &self.claimable
    }

    fn is_quiet(&self) -> bool {
        true
    }

    fn stop(&self) {}
}

impl BareQueue {
    /// One that is full.
    #[must_use]
    pub fn of(entries: usize) -> Self {
        let ready = Ready::new(entries);
        for _ in 0..entries {
            let entry = Bare { claimable: Arc::new(Claimable::new()), _socket: 0 };
            assert!(ready.push(entry).is_ok(), "it has room for them");
        }
        Self(ready)
    }

    /// The next one, as `Pool::try_claim` pops it. Dropping it is not part of that.
    #[must_use]
    pub fn pop(&self) -> Option<Bare> {
        self.0.pop()
    }
}
