//! One of a flood at a time, on an edge thread.
//!
//! To greet a client (a TLS handshake, a request's header) and to start a session are done at once, without a pause, and
//! take a fraction of a millisecond each. Five hundred that come together would so keep a thread from everything else for a
//! hundred of them, another customer's request included. So where one follows the other quickly, the thread greets one client
//! and starts one session at each turn of its runtime, address by address and account by account; in between it looks
//! at what has come.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::mem;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use billing::AccountId;
use tokio::sync::oneshot;
use tokio::task::yield_now;

use crate::crowd::Origin;
use crate::turns::Turns;

/// One that comes so long after the last one keeps nobody waiting: that one is done.
const PACE: Duration = Duration::from_micros(500);

thread_local! {
    static PACING: Pacing = const { Pacing::new() };
}

/// Those of one thread.
struct Pacing {
    clients: Line<Origin>,
    sessions: Line<AccountId>,
    keeper: RefCell<Keeper>,
}

/// Who waits has a connection, of which there is a bound number, and waits for no longer than what is before it takes.
struct Line<K> {
    last: Cell<Option<Instant>>,
    waiting: RefCell<Turns<K, oneshot::Sender<()>>>,
}

/// The task that calls those who wait.
enum Keeper {
    /// This thread has none, so that nobody may wait.
    Absent,
    Idle(Waker),
    Busy,
}

/// Waits until a client from there may be greeted on this thread. Mostly that is at once.
pub(crate) async fn greet(origin: Origin) {
    let called = PACING.with(|pacing| pacing.ask(&pacing.clients, &origin, Instant::now()));
    if let Some(called) = called {
        wait(called).await;
        PACING.with(|pacing| pacing.clients.last.set(Some(Instant::now())));
    }
}

/// The same for a session of that account, which may start.
pub(crate) async fn start(account: &AccountId) {
    let called = PACING.with(|pacing| pacing.ask(&pacing.sessions, account, Instant::now()));
    if let Some(called) = called {
        wait(called).await;
        PACING.with(|pacing| pacing.sessions.last.set(Some(Instant::now())));
    }
}

async fn wait(called: oneshot::Receiver<()>) {
    // The sender is not dropped before it is called, unless the thread ends.
    let _ = called.await;
}

/// Calls who waits on this thread, at each turn of the runtime. Never ends.
pub(crate) async fn call() {
    loop {
        poll_fn(|cx| PACING.with(|pacing| pacing.poll_waiting(cx))).await;
        // The reactor's turn, and that of whoever is ready.
        yield_now().await;
        PACING.with(|pacing| {
            pacing.sessions.call_next();
            pacing.clients.call_next();
        });
    }
}

impl Pacing {
    const fn new() -> Self {
        Self { clients: Line::new(), sessions: Line::new(), keeper: RefCell::new(Keeper::Absent) }
    }

    /// None: it is its turn.
    fn ask<K: Clone + Ord>(&self, line: &Line<K>, key: &K, now: Instant) -> Option<oneshot::Receiver<()>> {
        let is_calm = line.last.get().is_none_or(|last| now - last >= PACE);
        let mut waiting = line.waiting.borrow_mut();
        let mut keeper = self.keeper.borrow_mut();
        if (is_calm && waiting.is_empty()) || matches!(*keeper, Keeper::Absent) {
            line.last.set(Some(now));
            return None;
        }
        let (call, called) = oneshot::channel();
        waiting.push(key, call);
        if let Keeper::Idle(waker) = mem::replace(&mut *keeper, Keeper::Busy) {
            waker.wake();
        }
        Some(called)
    }

    fn poll_waiting(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.clients.waiting.borrow().is_empty() || !self.sessions.waiting.borrow().is_empty() {
            return Poll::Ready(());
        }
        self.keeper.replace(Keeper::Idle(cx.waker().clone()));
        Poll::Pending
    }
}

impl<K: Clone + Ord> Line<K> {
    const fn new() -> Self {
        Self { last: Cell::new(None), waiting: RefCell::new(Turns::new()) }
    }

    /// Who has left meanwhile takes no turn.
    fn call_next(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(call) = waiting.next() {
            if call.send(()).is_ok() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    fn with_keeper() -> Pacing {
        let pacing = Pacing::new();
        pacing.keeper.replace(Keeper::Idle(Waker::noop().clone()));
        pacing
    }

    fn ask(pacing: &Pacing, name: &str, now: Instant) -> Option<oneshot::Receiver<()>> {
        pacing.ask(&pacing.sessions, &account(name), now)
    }

    #[test]
    fn what_is_far_apart_waits_for_nothing() {
        let (pacing, now) = (with_keeper(), Instant::now());
        for number in 0..5 {
            assert!(ask(&pacing, "a", now + number * PACE).is_none());
        }
    }

    #[test]
    fn of_a_flood_one_starts_at_a_time_and_another_account_has_the_next_turn_but_one() {
        let (pacing, now) = (with_keeper(), Instant::now());
        assert!(ask(&pacing, "flood", now).is_none());
        let mut flood: Vec<_> = (0..500).map(|_| ask(&pacing, "flood", now).expect("it waits")).collect();
        pacing.sessions.call_next();
        let mut calm = ask(&pacing, "calm", now + 10 * PACE).expect("others wait");
        pacing.sessions.call_next();
        pacing.sessions.call_next();
        assert!(calm.try_recv().is_ok());
        let called = flood.iter_mut().filter_map(|called| called.try_recv().ok()).count();
        assert_eq!(called, 2);
    }

    #[test]
    fn clients_and_sessions_do_not_wait_for_each_other() {
        let (pacing, now) = (with_keeper(), Instant::now());
        let origin = Origin::of("10.0.0.1".parse().unwrap());
        assert!(ask(&pacing, "a", now).is_none());
        assert!(pacing.ask(&pacing.clients, &origin, now).is_none());
        assert!(ask(&pacing, "a", now).is_some());
        assert!(pacing.ask(&pacing.clients, &origin, now).is_some());
    }

    #[test]
    fn who_has_left_takes_no_turn() {
        let (pacing, now) = (with_keeper(), Instant::now());
        assert!(ask(&pacing, "a", now).is_none());
        drop(ask(&pacing, "a", now));
        let mut stays = ask(&pacing, "a", now).expect("it waits");
        pacing.sessions.call_next();
        assert!(stays.try_recv().is_ok());
    }

    #[test]
    fn a_thread_where_nobody_calls_lets_nobody_wait() {
        let (pacing, now) = (Pacing::new(), Instant::now());
        assert!(ask(&pacing, "a", now).is_none());
        assert!(ask(&pacing, "a", now).is_none());
    }

    #[tokio::test]
    async fn everybody_is_called() {
        let caller = tokio::spawn(call());
        yield_now().await;
        let accounts = [account("a"), account("b")];
        let origin = Origin::of("10.0.0.1".parse().unwrap());
        let sessions = accounts.iter().cycle().take(100).map(start);
        let clients = (0..100).map(|_| greet(origin));
        futures_util::future::join(
            futures_util::future::join_all(sessions),
            futures_util::future::join_all(clients),
        )
        .await;
        caller.abort();
    }
}
