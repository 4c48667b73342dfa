//! Whole sessions by the paused clock, with the real ledger: it moves only when every task waits, from one date to the
//! next, so that minutes begin and end exactly.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::mpsc::sync_channel;
use std::task::Poll;

use billing::{Actor, CommandId, Micros, NewCustomer, Outcome, Principal, Session, SessionId};
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::*;
use crate::outage::repay_all;
use crate::owed::Owed;
use crate::sessions::{Attached, Sessions};
use crate::settle::settle;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

thread_local! {
    /// How many of the meter's next tasks panic. A test has one thread.
    static PANICKING: Cell<u32> = const { Cell::new(0) };
}

pub(super) fn may_panic() {
    if let Some(left) = PANICKING.get().checked_sub(1) {
        PANICKING.set(left);
        panic!("a test wants it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_meter_panics_is_metered_all_the_same() {
    let bench = Bench::open().await;
    let (customer, other) = (bench.prepaid(12_000).await, bench.prepaid(10_000).await);
    PANICKING.set(1);
    let sessions = [bench.begin(&customer).await, bench.begin(&other).await];
    for minute in 1..=4 {
        sessions[0].goes_on_until(minute * MINUTE).await;
        assert_eq!(PANICKING.replace(PANICS), 0, "they have panicked, in minute {minute}");
    }
    let [session, beside] = sessions;
    assert_eq!(beside.told().await, Close::BalanceUsedUp);
    assert_eq!(beside.live.begun.elapsed(), 5 * MINUTE);
    assert_eq!(session.told().await, Close::BalanceUsedUp);
    assert_eq!(session.live.begun.elapsed(), 6 * MINUTE, "no minute was lost, and none was given away");
    let record = bench.settle(session).await;
    assert_eq!((record.minutes, record.charged), (6, Micros::new(12_000)));
    assert_eq!(PANICKING.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_meter_panics_each_time_ends_before_the_next_minute() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(1_000_000).await;
    PANICKING.set(u32::MAX);
    let session = bench.begin(&customer).await;
    assert_eq!(session.told().await, Close::TryAgain);
    let age = session.live.begun.elapsed();
    assert!(MINUTE - AHEAD < age && age < MINUTE, "{age:?}");
    assert_eq!(bench.settle(session).await.minutes, 1);
}

#[tokio::test(start_paused = true)]
async fn each_started_minute_costs() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(1_000_000).await;
    let cases = [
        (Duration::ZERO, 1, 10_000),
        (5 * MINUTE, 5, 10_000),
        (5 * MINUTE + MILLISECOND, 6, 12_000),
        (12 * MINUTE, 12, 24_000),
        (12 * MINUTE + MILLISECOND, 13, 26_000),
    ];
    let mut balance = 1_000_000;
    for (lasts, minutes, price) in cases {
        let session = bench.begin(&customer).await;
        session.goes_on_until(lasts).await;
        let record = bench.settle(session).await;
        assert_eq!((record.minutes, record.charged), (minutes, Micros::new(price)), "{lasts:?}");
        balance -= price;
        assert_eq!(bench.balance(&customer).await, balance, "{lasts:?}");
    }
    standing_still(bench.gateway.billing.verify(&customer.account)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_included_session_covers_five_minutes() {
    let bench = Bench::open().await;
    let customer = bench.subscriber().await;

    let session = bench.begin(&customer).await;
    assert_eq!(session.told().await, Close::BalanceUsedUp);
    assert_eq!(session.live.begun.elapsed(), 5 * MINUTE);

    let record = bench.settle(session).await;
    assert_eq!((record.minutes, record.funding.included, record.charged), (5, 1, Micros::ZERO));
}

#[tokio::test(start_paused = true)]
async fn the_sixth_minute_of_an_included_session_comes_from_the_balance() {
    let bench = Bench::open().await;
    let customer = bench.subscriber().await;
    bench.top_up(&customer, 2_000).await;

    let session = bench.begin(&customer).await;
    session.goes_on_until(5 * MINUTE + SECOND).await;

    let record = bench.settle(session).await;
    assert_eq!((record.minutes, record.funding.included, record.charged), (6, 1, Micros::new(2_000)));
    assert_eq!(bench.balance(&customer).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_minute_that_is_not_paid_for_does_not_begin() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(10_000).await;

    let session = bench.begin(&customer).await;
    assert_eq!(session.told().await, Close::BalanceUsedUp);
    assert_eq!(session.live.begun.elapsed(), 5 * MINUTE, "five minutes are paid for, and no moment more");

    // To end it in an orderly way takes a moment, which is not the customer's.
    session.lasts_until(5 * MINUTE + SECOND).await;
    let record = bench.settle(session).await;
    assert_eq!((record.minutes, record.charged), (5, Micros::new(10_000)));
    assert_eq!(bench.balance(&customer).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_top_up_at_the_last_moment_lets_it_go_on() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(10_000).await;

    let session = bench.begin(&customer).await;
    session.goes_on_until(5 * MINUTE - MILLISECOND).await;
    bench.top_up(&customer, 2_000).await;

    assert_eq!(session.told().await, Close::BalanceUsedUp);
    assert_eq!(session.live.begun.elapsed(), 6 * MINUTE, "one more minute was paid for");
    assert_eq!(bench.settle(session).await.charged, Micros::new(12_000));
    assert_eq!(bench.balance(&customer).await, 0);
}

#[tokio::test(start_paused = true)]
async fn two_sessions_do_not_share_a_minute() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(2 * 10_000 + 2_000).await;

    let (first, second) = (bench.begin(&customer).await, bench.begin(&customer).await);
    let lasted = async |session: &Running<'_>| {
        session.told().await;
        session.live.begun.elapsed()
    };
    let (first, second) = tokio::join!(lasted(&first), lasted(&second));
    assert_eq!((first.min(second), first.max(second)), (5 * MINUTE, 6 * MINUTE));
}

#[tokio::test(start_paused = true)]
async fn a_minute_that_was_set_aside_and_did_not_begin_goes_back() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(20_000).await;

    let session = bench.begin(&customer).await;
    session.goes_on_until(5 * MINUTE - SECOND).await;
    assert_eq!(bench.balance(&customer).await, 8_000, "the sixth minute is set aside");

    let record = bench.settle(session).await;
    assert_eq!((record.minutes, record.charged), (5, Micros::new(10_000)));
    sleep(5 * MINUTE).await;
    assert_eq!(bench.balance(&customer).await, 10_000, "nothing more is set aside");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_not_open_in_the_ledger_does_not_go_on() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(1_000_000).await;

    let session = bench.begin(&customer).await;
    session.goes_on_until(MINUTE).await;
    bench.record_the_end(&session).await;

    assert_eq!(session.told().await, Close::TryAgain);
}

#[tokio::test(start_paused = true)]
async fn minutes_that_the_ledger_was_away_for_are_billed_once() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(1_000_000).await;
    let session = bench.begin(&customer).await;

    session.goes_on_until(4 * MINUTE).await;
    bench.gateway.outage.pretend(true);
    session.goes_on_until(9 * MINUTE + 30 * SECOND).await;
    assert_eq!(bench.balance(&customer).await, 990_000, "it could not be told");
    assert_eq!(bench.gateway.owed.len(), 1);

    bench.gateway.outage.pretend(false);
    bench.repay().await;
    assert_eq!(bench.balance(&customer).await, 990_000 - 5 * 2_000, "the sixth to the tenth have started");
    assert!(bench.gateway.owed.is_empty());
    session.goes_on_until(12 * MINUTE).await;
    let record = bench.settle(session).await;
    assert_eq!((record.minutes, record.charged), (12, Micros::new(24_000)));
    standing_still(bench.gateway.billing.verify(&customer.account)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_paid_afterwards_is_written_off_and_the_session_ends() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(12_000).await;
    let session = bench.begin(&customer).await;

    session.goes_on_until(4 * MINUTE).await;
    bench.gateway.outage.pretend(true);
    session.goes_on_until(8 * MINUTE + 30 * SECOND).await;
    bench.gateway.outage.pretend(false);
    assert_eq!(session.told().await, Close::BalanceUsedUp);
    assert_eq!(session.live.begun.elapsed(), 9 * MINUTE);

    let record = bench.settle(session).await;
    assert_eq!((record.minutes, record.charged), (9, Micros::new(12_000)));
    assert_eq!((record.written_off, bench.balance(&customer).await), (Micros::new(6_000), 0));
    assert!(bench.gateway.owed.is_empty());
    standing_still(bench.gateway.billing.verify(&customer.account)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_session_goes_on_for_ever_while_the_ledger_is_away() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(1_000_000).await;
    let session = bench.begin(&customer).await;

    session.goes_on_until(MINUTE).await;
    bench.gateway.outage.pretend(true);
    assert_eq!(session.told().await, Close::TryAgain);
    assert_eq!(session.live.begun.elapsed(), 5 * MINUTE + bench.gateway.outage_limit);
    bench.record_the_end(&session).await;

    bench.gateway.outage.pretend(false);
    bench.repay().await;
    let record = bench.record(&session).await;
    assert_eq!((record.minutes, record.charged), (15, Micros::new(10_000 + 10 * 2_000)));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_while_the_ledger_is_away_is_settled_when_it_is_back() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(1_000_000).await;
    let session = bench.begin(&customer).await;

    session.goes_on_until(5 * MINUTE + 30 * SECOND).await;
    bench.gateway.outage.pretend(true);
    session.goes_on_until(7 * MINUTE + 10 * SECOND).await;
    bench.record_the_end(&session).await;
    assert_eq!(bench.record(&session).await.state, billing::State::Open);

    // The gateway is killed here: another one finds its file.
    let next = bench.next_gateway();
    assert_eq!(next.adopt().unwrap(), 1);
    for _ in 0..2 {
        bench.repay_from(&next, &Sessions::default()).await;
    }
    let record = bench.record(&session).await;
    assert_eq!((record.minutes, record.charged), (8, Micros::new(16_000)));
    assert_eq!(record.cause.as_deref(), Some("client gone"));
    assert_eq!(bench.balance(&customer).await, 984_000);
    assert!(next.is_empty() && bench.next_gateway().adopt().unwrap() == 0);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_killed_while_the_ledger_is_away_loses_no_minute() {
    let bench = Bench::open().await;
    let customer = bench.prepaid(1_000_000).await;
    let session = bench.begin(&customer).await;

    session.goes_on_until(5 * MINUTE + 30 * SECOND).await;
    bench.gateway.outage.pretend(true);
    session.goes_on_until(7 * MINUTE + 10 * SECOND).await;

    let next = bench.next_gateway();
    assert_eq!(next.adopt().unwrap(), 1);
    bench.repay_from(&next, &Sessions::default()).await;
    let record = bench.record(&session).await;
    assert_eq!((record.minutes, record.charged), (8, Micros::new(16_000)));
    assert_eq!(record.cause.as_deref(), Some("gateway lost"));
}

/// A gateway with a ledger of its own and no browser.
struct Bench {
    gateway: Arc<Gateway>,
    folder: TempDir,
}

impl Bench {
    async fn open() -> Self {
        let (gateway, folder) = Gateway::for_tests().await;
        Self { gateway, folder }
    }

    /// One who pays with a balance of so many micro-dollars.
    async fn prepaid(&self, micros: u64) -> Principal {
        self.customer(Some(Micros::new(micros))).await
    }

    /// One who has included sessions and no balance.
    async fn subscriber(&self) -> Principal {
        self.customer(None).await
    }

    async fn customer(&self, prepaid: Option<Micros>) -> Principal {
        let Gateway { billing, clock, .. } = &*self.gateway;
        let new =
            NewCustomer { id: None, email: "a@example.com".to_owned(), plan: "starter".to_owned(), prepaid };
        let created = billing.create_customer(new, Actor::Operator, clock.now());
        let (_, secret) = standing_still(created).await.unwrap();
        billing.authenticate(secret.expose()).await.unwrap().unwrap()
    }

    async fn top_up(&self, customer: &Principal, micros: u64) {
        let Gateway { billing, clock, .. } = &*self.gateway;
        let (amount, command) = (Micros::new(micros), CommandId::random());
        let credited = billing.credit(&customer.account, amount, command, Actor::Operator, clock.now());
        standing_still(credited).await.unwrap();
    }

    /// In micro-dollars.
    async fn balance(&self, customer: &Principal) -> u64 {
        self.gateway.billing.account(&customer.account).await.unwrap().unwrap().balance.get()
    }

    /// Holds a session and lets its minutes count, as if its 101 were out.
    async fn begin(&self, customer: &Principal) -> Running<'_> {
        let Gateway { id, billing, clock, sessions, meter, .. } = &*self.gateway;
        let held = billing.hold(customer, SessionId::random(), id, clock.now()).await.unwrap().session;
        let mut live = Live::for_tests(held.account, held.id, held.terms, clock.now());
        live.hold = held.hold;
        let live = Arc::new(live);
        let _attached = sessions.begin(Arc::clone(&live), IpAddr::from([127, 0, 0, 1]));
        meter.begin(&live);
        Running { live, _attached }
    }

    /// Ends it now. The answer is its final record.
    async fn settle(&self, session: Running<'_>) -> Session {
        self.record_the_end(&session).await;
        self.record(&session).await
    }

    async fn record(&self, Running { live, .. }: &Running<'_>) -> Session {
        self.gateway.billing.session(&live.account, &live.id).await.unwrap().unwrap()
    }

    /// Tells the ledger what is owed.
    async fn repay(&self) {
        self.repay_from(&self.gateway.owed, &self.gateway.sessions).await;
    }

    async fn repay_from(&self, owed: &Owed, sessions: &Sessions) {
        let Gateway { billing, clock, .. } = &*self.gateway;
        standing_still(repay_all(owed, billing, clock, sessions)).await.unwrap();
    }

    /// What another gateway on the same data directory owes.
    fn next_gateway(&self) -> Owed {
        Owed::new(self.folder.path(), &billing::GatewayId::random())
    }

    async fn record_the_end(&self, Running { live, .. }: &Running<'_>) {
        let outcome = Outcome::Completed { cause: "client gone" };
        standing_still(settle(&self.gateway, live, live.begun.elapsed(), outcome)).await;
    }
}

/// A session that has begun.
struct Running<'a> {
    live: Arc<Live>,
    _attached: Attached<'a>,
}

impl Running<'_> {
    /// Waits until somebody ends it.
    async fn told(&self) -> Close {
        poll_fn(|cx| self.live.poll_end(self.live.first_line(), cx).map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Waits until so long after its beginning.
    async fn lasts_until(&self, age: Duration) {
        sleep_until(self.live.begun + age).await;
    }

    /// The same, and nobody ends it before.
    async fn goes_on_until(&self, age: Duration) {
        tokio::select! {
            close = self.told() => panic!("it was ended after {:?}: {close:?}", self.live.begun.elapsed()),
            () = self.lasts_until(age) => {}
        }
    }
}

/// Awaits what depends on another thread, such as the ledger's disk. The paused clock takes that for idleness and would
/// move on; it stands still while a blocking task runs.
async fn standing_still<T>(work: impl Future<Output = T>) -> T {
    let (done, is_done) = sync_channel::<()>(0);
    let blocking = spawn_blocking(move || is_done.recv());
    let output = work.await;
    drop(done);
    // An error, as was meant: nothing is ever sent.
    let _ = blocking.await;
    output
}
