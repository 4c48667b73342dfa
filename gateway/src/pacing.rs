//! One of a flood at a time, on an edge thread.
//!
//! To greet a client (a TLS handshake, a request's header) and to start a session are done at once, without a pause, and
//! take a fraction of a millisecond each. Five hundred that come together would so keep a thread from everything else for a
//! hundred of them, another customer's request included. So where one follows the other quickly, the thread greets one client
//! and starts one session at each turn of its runtime, address by address and account by account; in between it looks
//! at what has come.
//!
//! That shares the thread, not what is behind it: the CPUs that sessions need before and after their turn are busy with the
//! flood all the same. So while other accounts are about, one that has started [`BURST`] sessions at once starts the
//! next ones [`REST`] apart. Nobody is refused for it, and an account that is alone is not held up.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::mem;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use billing::AccountId;
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::crowd::Origin;
use crate::refusal::Refusal;
use crate::serve::Gateway;
use crate::turns::Turns;

/// One that comes so long after the last one keeps nobody waiting: that one is done.
const PACE: Duration = Duration::from_micros(500);

/// Sessions that an account may start at once while others are about: what a script with many workers does.
const BURST: NonZeroU32 = NonZeroU32::new(32).expect("it is not zero");

/// From one start to the next beyond that: 250 a second on each thread, of which there are more than there are CPUs to start
/// browsers. Measured on two CPUs that clients and browsers shared: with 2 ms, half of the time still went to the flood, and
/// another customer's p99 beside it was 2.5 times its quiet value; with this 1.2 times.
const REST: Duration = Duration::from_millis(4);

/// An account that started a session so lately is about: a customer with one a second is, from its second on.
const ABOUT: Duration = Duration::from_secs(5);

/// Accounts whose starts are remembered before those are looked for that need not be.
const REMEMBERED: usize = 1_024;

thread_local! {
    static PACING: Pacing = Pacing::new();
}

/// Those of one thread.
struct Pacing {
    clients: Line<Origin>,
    sessions: Line<AccountId>,
    bursts: RateLimiter<AccountId, HashMapStateStore<AccountId>, DefaultClock>,
    keeper: RefCell<Keeper>,
}

/// Who waits has a connection, of which there is a bound number, and waits for no longer than what is before it takes.
struct Line<K> {
    last: Cell<Option<Instant>>,
    waiting: RefCell<Turns<K, oneshot::Sender<()>>>,
}

/// Whether several accounts start sessions here, on whichever thread.
#[derive(Debug)]
pub struct Company {
    origin: Instant,
    /// Who started the latest one, by a hash.
    latest: AtomicU64,
    /// When that was another than the one before it: milliseconds since `origin`, and one more; 0: never.
    changed: AtomicU64,
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
    let called = PACING.with(|pacing| pacing.ask_to_come(origin, Instant::now()));
    if let Some(called) = called {
        wait(called).await;
        PACING.with(|pacing| pacing.clients.last.set(Some(Instant::now())));
    }
}

/// The same for a session of that account, which may start.
///
/// # Errors
///
/// [`Refusal::TooManyStarts`] where that many wait before it that it does not start in time; [`Refusal::Draining`].
pub(crate) async fn start(gateway: &Gateway, account: &AccountId) -> Result<(), Refusal> {
    let called = PACING.with(|pacing| pacing.ask_to_start(&gateway.company, account, Instant::now()));
    let Some(called) = called else { return Ok(()) };
    let mut draining = gateway.draining();
    let in_time = tokio::select! {
        in_time = timeout(gateway.start_timeout, wait(called)) => in_time,
        _ = draining.wait_for(|draining| *draining) => return Err(Refusal::Draining),
    };
    PACING.with(|pacing| match in_time {
        Ok(()) => {
            pacing.sessions.last.set(Some(Instant::now()));
            Ok(())
        }
        Err(_) => Err(Refusal::TooManyStarts { retry_after: pacing.longest_wait(account) }),
    })
}

async fn wait(called: oneshot::Receiver<()>) {
    // The sender is not dropped before it is called, unless the thread ends.
    let _ = called.await;
}

/// Calls who waits on this thread, at each turn of the runtime. Never ends.
pub(crate) async fn call(gateway: Arc<Gateway>) {
    loop {
        poll_fn(|cx| PACING.with(|pacing| pacing.poll_waiting(cx))).await;
        // The reactor's turn, and that of whoever is ready.
        yield_now().await;
        let rest = PACING.with(|pacing| {
            pacing.clients.call_next();
            let rest = pacing.start_next(&gateway.company, Instant::now());
            rest.filter(|_| pacing.clients.waiting.borrow().is_empty())
        });
        if let Some(rest) = rest {
            // Ends early where somebody comes.
            let _ = timeout(rest, somebody()).await;
        }
    }
}

/// Waits for one more who waits.
async fn somebody() {
    let mut is_asleep = false;
    poll_fn(|cx| {
        PACING.with(|pacing| {
            let mut keeper = pacing.keeper.borrow_mut();
            if mem::replace(&mut is_asleep, true) && matches!(*keeper, Keeper::Busy) {
                return Poll::Ready(());
            }
            *keeper = Keeper::Idle(cx.waker().clone());
            Poll::Pending
        })
    })
    .await;
}

impl Pacing {
    fn new() -> Self {
        let quota = Quota::with_period(REST).expect("it is not zero").allow_burst(BURST);
        Self {
            clients: Line::new(),
            sessions: Line::new(),
            bursts: RateLimiter::hashmap(quota),
            keeper: RefCell::new(Keeper::Absent),
        }
    }

    /// None: it is its turn.
    fn ask<K: Clone + Ord>(
        &self,
        line: &Line<K>,
        key: &K,
        now: Instant,
        may: impl FnOnce(&Turns<K, oneshot::Sender<()>>) -> bool,
    ) -> Option<oneshot::Receiver<()>> {
        let is_calm = line.last.get().is_none_or(|last| now - last >= PACE);
        let mut waiting = line.waiting.borrow_mut();
        let mut keeper = self.keeper.borrow_mut();
        if matches!(*keeper, Keeper::Absent) || (is_calm && may(&waiting)) {
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

    fn ask_to_come(&self, origin: Origin, now: Instant) -> Option<oneshot::Receiver<()>> {
        self.ask(&self.clients, &origin, now, Turns::is_empty)
    }

    fn ask_to_start(
        &self,
        company: &Company,
        account: &AccountId,
        now: Instant,
    ) -> Option<oneshot::Receiver<()>> {
        company.note(account, now);
        // Others may wait only because they have to rest.
        let may = |waiting: &Turns<_, _>| {
            waiting.waiting(account) == 0 && self.rest(company, account, now).is_none()
        };
        self.ask(&self.sessions, account, now, may)
    }

    /// How long the account has to rest before it starts its next session. None: it starts it now.
    fn rest(&self, company: &Company, account: &AccountId, now: Instant) -> Option<Duration> {
        if !company.is_there(now) {
            return None;
        }
        if self.bursts.len() > REMEMBERED {
            self.bursts.retain_recent();
        }
        let full = self.bursts.check_key(account).err()?;
        Some(full.wait_time_from(self.bursts.clock().now()))
    }

    /// Of one who comes now, where all who wait stay and others are about.
    fn longest_wait(&self, account: &AccountId) -> Duration {
        let waiting = self.sessions.waiting.borrow().waiting(account);
        REST * u32::try_from(waiting).unwrap_or(u32::MAX)
    }

    /// Calls the next account that need not rest. How long to wait for one, where all must.
    fn start_next(&self, company: &Company, now: Instant) -> Option<Duration> {
        let mut waiting = self.sessions.waiting.borrow_mut();
        let mut least: Option<Duration> = None;
        for _ in 0..waiting.len() {
            let account = waiting.peek(oneshot::Sender::is_closed)?;
            let Some(rest) = self.rest(company, account, now) else {
                let _ = waiting.next()?.send(());
                return None;
            };
            least = Some(least.map_or(rest, |least| least.min(rest)));
            waiting.pass();
        }
        least
    }

    fn poll_waiting(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.clients.waiting.borrow().is_empty() || !self.sessions.waiting.borrow().is_empty() {
            return Poll::Ready(());
        }
        self.keeper.replace(Keeper::Idle(cx.waker().clone()));
        Poll::Pending
    }
}

impl Company {
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now(), latest: AtomicU64::new(0), changed: AtomicU64::new(0) }
    }

    fn note(&self, account: &AccountId, now: Instant) {
        // Two accounts of one hash would be taken for one, which is held up by nobody then.
        let account = BuildHasherDefault::<DefaultHasher>::default().hash_one(account).max(1);
        // Most of the time it is the same one: it is only looked at then, which threads do side by side.
        if self.latest.load(Ordering::Relaxed) == account {
            return;
        }
        if self.latest.swap(account, Ordering::Relaxed) != 0 {
            self.changed.store(self.millis(now) + 1, Ordering::Relaxed);
        }
    }

    fn is_there(&self, now: Instant) -> bool {
        let changed = self.changed.load(Ordering::Relaxed);
        changed > 0 && Duration::from_millis((self.millis(now) + 1).saturating_sub(changed)) < ABOUT
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.origin).as_millis()).unwrap_or(u64::MAX - 1)
    }
}

impl Default for Company {
    fn default() -> Self {
        Self::new()
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
    use futures_util::future::{join, join_all};

    use super::*;

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    /// One thread, and who is about.
    struct Thread {
        pacing: Pacing,
        company: Company,
    }

    impl Thread {
        fn with_keeper() -> Self {
            let pacing = Pacing::new();
            pacing.keeper.replace(Keeper::Idle(Waker::noop().clone()));
            Self { pacing, company: Company::new() }
        }

        fn start_next(&self, now: Instant) -> Option<Duration> {
            self.pacing.start_next(&self.company, now)
        }
    }

    fn ask(thread: &Thread, name: &str, now: Instant) -> Option<oneshot::Receiver<()>> {
        thread.pacing.ask_to_start(&thread.company, &account(name), now)
    }

    fn is_called(called: &mut oneshot::Receiver<()>) -> bool {
        called.try_recv().is_ok()
    }

    #[test]
    fn what_is_far_apart_waits_for_nothing() {
        let (thread, now) = (Thread::with_keeper(), Instant::now());
        for number in 0..5 {
            assert!(ask(&thread, "a", now + number * PACE).is_none());
        }
    }

    #[test]
    fn of_a_flood_one_starts_at_a_time_and_another_account_has_the_next_turn_but_one() {
        let (thread, now) = (Thread::with_keeper(), Instant::now());
        assert!(ask(&thread, "flood", now).is_none());
        let mut flood: Vec<_> = (0..500).map(|_| ask(&thread, "flood", now).expect("it waits")).collect();
        assert_eq!(thread.start_next(now), None);
        let mut calm = ask(&thread, "calm", now).expect("one has just started");
        assert_eq!((thread.start_next(now), thread.start_next(now)), (None, None));
        assert!(is_called(&mut calm));
        assert_eq!(flood.iter_mut().filter_map(|called| called.try_recv().ok()).count(), 2);
    }

    #[test]
    fn an_account_that_is_alone_need_not_rest() {
        let (thread, now) = (Thread::with_keeper(), Instant::now());
        let mut flood: Vec<_> = (0..500).map(|_| ask(&thread, "flood", now)).collect();
        for _ in 1..500 {
            assert_eq!(thread.start_next(now), None);
        }
        assert!(flood.iter_mut().flatten().all(is_called));
    }

    #[test]
    fn in_company_an_account_rests_behind_a_burst_and_another_need_not() {
        let (thread, now) = (Thread::with_keeper(), Instant::now());
        assert!(ask(&thread, "calm", now).is_none());
        let mut flood: Vec<_> = (0..500).map(|_| ask(&thread, "flood", now).expect("it waits")).collect();
        let rest = (0..500).find_map(|_| thread.start_next(now)).expect("it has to rest");
        assert!(rest <= REST);
        let started = flood.iter_mut().filter_map(|called| called.try_recv().ok()).count();
        assert!((BURST.get() as usize..500).contains(&started), "{started} started");

        assert!(ask(&thread, "calm", now + PACE).is_none(), "it is not the one that rests");
        assert!(ask(&thread, "flood", now + 2 * PACE).is_some(), "those before it wait");

        let alone = now + 2 * PACE + ABOUT;
        assert_eq!(thread.start_next(alone), None, "nobody else is about any more");
    }

    #[test]
    fn who_leaves_a_flood_that_rests_leaves_its_turn_to_the_next() {
        let (thread, now) = (Thread::with_keeper(), Instant::now());
        assert!(ask(&thread, "calm", now).is_none());
        drop((0..400).map(|_| ask(&thread, "flood", now).expect("it waits")).collect::<Vec<_>>());
        let mut stays = ask(&thread, "flood", now).expect("it waits");
        assert_eq!(thread.start_next(now), None);
        assert!(is_called(&mut stays));
    }

    #[test]
    fn clients_and_sessions_do_not_wait_for_each_other() {
        let (thread, now) = (Thread::with_keeper(), Instant::now());
        let origin = Origin::of("10.0.0.1".parse().unwrap());
        assert!(ask(&thread, "a", now).is_none());
        assert!(thread.pacing.ask_to_come(origin, now).is_none());
        assert!(ask(&thread, "a", now).is_some());
        assert!(thread.pacing.ask_to_come(origin, now).is_some());
    }

    #[test]
    fn who_has_left_takes_no_turn() {
        let (thread, now) = (Thread::with_keeper(), Instant::now());
        assert!(ask(&thread, "a", now).is_none());
        drop(ask(&thread, "a", now));
        let mut stays = ask(&thread, "a", now).expect("it waits");
        assert_eq!(thread.start_next(now), None);
        assert!(stays.try_recv().is_ok());
    }

    #[test]
    fn a_thread_where_nobody_calls_lets_nobody_wait() {
        let (thread, now) = (Thread { pacing: Pacing::new(), company: Company::new() }, Instant::now());
        assert!(ask(&thread, "a", now).is_none());
        assert!(ask(&thread, "a", now).is_none());
    }

    #[test]
    fn an_account_on_another_thread_is_company() {
        let (thread, now) = (Thread::with_keeper(), Instant::now());
        let other = Pacing::new();
        assert!(other.ask_to_start(&thread.company, &account("calm"), now).is_none());
        assert!(!thread.company.is_there(now));
        assert!(ask(&thread, "flood", now).is_none());
        assert!(thread.company.is_there(now) && !thread.company.is_there(now + ABOUT));
    }

    #[tokio::test]
    async fn everybody_is_called() {
        let (gateway, _folder) = Gateway::for_tests().await;
        let caller = tokio::spawn(call(Arc::clone(&gateway)));
        yield_now().await;
        let accounts = [account("a"), account("b")];
        let origin = Origin::of("10.0.0.1".parse().unwrap());
        let sessions = accounts.iter().cycle().take(100).map(|account| start(&gateway, account));
        let clients = (0..100).map(|_| greet(origin));
        let (started, _) = join(join_all(sessions), join_all(clients)).await;
        assert!(started.iter().all(Result::is_ok));
        caller.abort();
    }

    /// A thread on which nobody is called, and one has just been started, however long this takes.
    async fn with_nobody_called() -> (Arc<Gateway>, tempfile::TempDir) {
        PACING.with(|pacing| {
            pacing.keeper.replace(Keeper::Busy);
            pacing.sessions.last.set(Some(Instant::now() + ABOUT));
        });
        Gateway::for_tests().await
    }

    #[tokio::test]
    async fn who_waits_for_too_long_is_told_when_to_come_again() {
        let (gateway, _folder) = with_nobody_called().await;
        let flood = account("flood");
        tokio::time::pause();
        let refused = join(start(&gateway, &flood), start(&gateway, &flood)).await;
        assert_eq!(refused.0, Err(Refusal::TooManyStarts { retry_after: 2 * REST }));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_gateway_that_drains() {
        let (gateway, _folder) = with_nobody_called().await;
        let flood = account("flood");
        let (refused, ()) = join(start(&gateway, &flood), async { gateway.drain() }).await;
        assert_eq!(refused, Err(Refusal::Draining));
    }
}
