//! The lock-free queue of warm browsers.
//!
//! Three parties meet here: claims pop, the warmer pushes, and a provider's news may end a browser that lies in the
//! queue. Whoever moves a browser's state out of `READY` first owns it; the queue itself is never searched.
//!
//! What this file adds to the queue is tried in every interleaving by loom (`ready/model.rs`), over a queue that loom can
//! see into; `ready/tests.rs` puts real threads on the real one.

use std::net::TcpStream;
use std::sync::Arc;

use rustix::net::{RecvFlags, recv};

use crate::provider::Browser;

#[cfg(not(all(test, feature = "loom")))]
use {
    crossbeam_queue::ArrayQueue,
    std::sync::atomic::{AtomicU8, AtomicUsize, Ordering},
};
#[cfg(all(test, feature = "loom"))]
use {
    loom::sync::atomic::{AtomicU8, AtomicUsize, Ordering},
    model::ArrayQueue,
};

#[cfg(test)]
#[cfg(feature = "loom")]
mod model;
#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests;

const READY: u8 = 0;
const TAKEN: u8 = 1;
const DEAD: u8 = 2;

/// Room beyond `max_idle` for browsers that died in the queue and were not yet swept out, and for starts on demand whose
/// client left.
const SLACK: usize = 256;

/// A browser's place between its start and its one claim.
#[derive(Debug)]
pub(crate) struct Claimable(AtomicU8);

impl Claimable {
    pub(crate) fn new() -> Self {
        Self(AtomicU8::new(READY))
    }

    /// For the one who claims it. False: somebody was faster, or it is dead.
    fn take(&self) -> bool {
        self.leave_ready(TAKEN)
    }

    /// For the one who learnt that it died. True: it died unclaimed, and is never handed out from here on.
    pub(crate) fn die(&self) -> bool {
        self.leave_ready(DEAD)
    }

    fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire) == READY
    }

    fn leave_ready(&self, to: u8) -> bool {
        self.0.compare_exchange(READY, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A browser with its upgraded socket, registered with no reactor: whoever claims it has one of its own.
#[derive(Debug)]
pub(crate) struct Warm {
    pub(crate) browser: Arc<Browser>,
    pub(crate) socket: TcpStream,
}

/// What the queue has to know of a browser.
pub(crate) trait Entry {
    fn claimable(&self) -> &Claimable;
    /// Whether its socket has nothing to say.
    fn is_quiet(&self) -> bool;
    /// Ends what was found dead.
    fn stop(&self);
}

impl Entry for Warm {
    fn claimable(&self) -> &Claimable {
        &self.browser.claimable
    }

    fn is_quiet(&self) -> bool {
        is_quiet(&self.socket)
    }

    fn stop(&self) {
        self.browser.stop_at_once();
    }
}

impl Warm {
    /// Claims it, if it lives.
    pub(crate) fn take(&self) -> bool {
        self.browser.claimable.take() && is_quiet(&self.socket)
    }
}

#[derive(Debug)]
pub(crate) struct Ready<T = Warm> {
    queue: ArrayQueue<T>,
    /// Browsers in the queue that nobody found dead. Briefly behind the queue, so only the warmer's arithmetic uses it.
    idle: AtomicUsize,
}

impl<T: Entry> Ready<T> {
    pub(crate) fn new(max_idle: usize) -> Self {
        Self { queue: ArrayQueue::new(max_idle + SLACK), idle: AtomicUsize::new(0) }
    }

    /// Offers a browser to claims, or gives it back where there is no room.
    pub(crate) fn push(&self, warm: T) -> Result<(), T> {
        self.idle.fetch_add(1, Ordering::AcqRel);
        self.queue.push(warm).inspect_err(|warm| {
            // It leaves `READY` here, so that its end is not counted once more.
            if warm.claimable().die() {
                self.forget();
            }
        })
    }

    /// Takes a browser that is alive. What is found dead on the way is dropped: its exit reaches the warmer as an event of
    /// its own, or its socket's end makes it useless.
    pub(crate) fn pop(&self) -> Option<T> {
        loop {
            let warm = self.queue.pop()?;
            let claimed = warm.claimable().take();
            if claimed {
                self.forget();
            }
            if claimed && warm.is_quiet() {
                return Some(warm);
            }
            warm.stop();
        }
    }

    /// A browser in the queue was found dead; its entry stays until a pop or a sweep.
    pub(crate) fn forget(&self) {
        self.idle.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn len(&self) -> usize {
        self.idle.load(Ordering::Acquire)
    }

    /// Passes every entry once through the queue and drops those that are dead. One browser at a time is out of the queue;
    /// a claim that misses it finds the next one, or asks the warmer, who is the caller here and has it back by then.
    pub(crate) fn sweep(&self) {
        for _ in 0..self.queue.len() {
            let Some(warm) = self.queue.pop() else { return };
            if warm.claimable().is_ready() && warm.is_quiet() {
                // There is room: this entry has just left, and only the caller pushes.
                let _ = self.queue.push(warm);
                continue;
            }
            if warm.claimable().die() {
                self.forget();
            }
            warm.stop();
        }
    }
}

/// Whether nothing has arrived on the socket, neither bytes nor its end. A byte nobody asked for would reach the client
/// as part of its session, so a socket that has one is as useless as one that was closed.
fn is_quiet(socket: &TcpStream) -> bool {
    let mut byte = [0; 1];
    let peeked = recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(peeked, Err(rustix::io::Errno::AGAIN))
}
