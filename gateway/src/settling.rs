//! Turns to settle, where that keeps an edge thread busy: with a store of its own.
//!
//! Sessions that end by the hundred would otherwise all be settled before the next client is so much as read from. Who
//! starts is in a hurry, who has ended is not; and of those who have ended each account has its turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use billing::{AccountId, Billing};
use tokio::sync::oneshot;

use crate::turns::Turns;

/// Settlements under way. They share a commit and an fsync, so that eight to each is as fast as any disk wants; and the
/// next client waits for a millisecond of them at most.
const AT_A_TIME: usize = 8;

/// Who waits has a session, of which there is a bound number.
#[derive(Debug)]
pub struct Settling(Option<Arc<Mutex<Desk>>>);

#[derive(Debug)]
struct Desk {
    free: usize,
    /// Somebody waits only where nothing is free.
    waiting: Turns<AccountId, oneshot::Sender<Turn>>,
}

/// The right to settle a session, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Option<Arc<Mutex<Desk>>>);

impl Settling {
    #[must_use]
    pub fn of(billing: &Billing) -> Self {
        let desk = || Arc::new(Mutex::new(Desk { free: AT_A_TIME, waiting: Turns::new() }));
        Self((!billing.is_shared()).then(desk))
    }

    /// As soon as there is one; none where everybody may settle at once.
    pub(crate) async fn turn(&self, account: &AccountId) -> Option<Turn> {
        let desk = self.0.as_ref()?;
        let called = {
            let mut locked = lock(desk);
            if locked.free > 0 {
                locked.free -= 1;
                return Some(Turn(Some(Arc::clone(desk))));
            }
            let (call, called) = oneshot::channel();
            locked.waiting.push(account, call);
            called
        };
        // Who waits is forgotten by nobody: each turn that ends is handed on.
        called.await.ok()
    }
}

impl Drop for Turn {
    /// Hands it on, to the first who is still there.
    fn drop(&mut self) {
        let Some(desk) = self.0.take() else { return };
        while let Some(call) = next(&desk) {
            match call.send(Turn(Some(Arc::clone(&desk)))) {
                Ok(()) => return,
                Err(mut unsent) => unsent.0 = None,
            }
        }
    }
}

/// Who has the next turn. Where nobody waits there is one more to be had.
fn next(desk: &Mutex<Desk>) -> Option<oneshot::Sender<Turn>> {
    let mut desk = lock(desk);
    let next = desk.waiting.next();
    if next.is_none() {
        desk.free += 1;
    }
    next
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn settling() -> Settling {
        Settling(Some(Arc::new(Mutex::new(Desk { free: AT_A_TIME, waiting: Turns::new() }))))
    }

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn accounts_settle_in_turn_and_who_leaves_loses_no_turn() {
        let settling = settling();
        let (many, one) = (account("many"), account("one"));
        let mut settled = Vec::new();
        for _ in 0..AT_A_TIME {
            settled.push(settling.turn(&many).await.expect("it is free"));
        }
        let mut left = Box::pin(settling.turn(&many));
        let (mut second, mut third) = (pin!(settling.turn(&many)), pin!(settling.turn(&many)));
        let mut calm = pin!(settling.turn(&one));
        assert!(poll(left.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
        assert!(poll(calm.as_mut()).is_pending());
        // The first is called and goes without having heard of it; its turn is the other account's.
        settled.pop();
        drop(left);
        let Poll::Ready(Some(_turn)) = poll(calm.as_mut()) else {
            panic!("it waits for one of another account")
        };
        assert!(poll(second.as_mut()).is_pending());
        settled.clear();
        assert!(poll(second.as_mut()).is_ready() && poll(third.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn all_turns_come_back() {
        let settling = settling();
        let account = account("a");
        let sessions = (0..100).map(|_| async {
            let turn = settling.turn(&account).await.expect("there are turns");
            tokio::task::yield_now().await;
            drop(turn);
        });
        futures_util::future::join_all(sessions).await;
        let desk = settling.0.as_ref().expect("there is one");
        assert_eq!(lock(desk).free, AT_A_TIME);
    }
}
