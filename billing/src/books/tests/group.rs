//! Ends of sessions that become one commit.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use super::*;

/// Sessions that run.
async fn begun<const N: usize>(bench: &Bench, who: &Principal, names: [&str; N]) -> [Session; N] {
    let mut all = Vec::new();
    for name in names {
        let held = bench.billing.hold(who, session(name), &gateway("gw"), START).await.unwrap().session;
        bench.billing.begin(held.name(), START, START).await.unwrap();
        all.push(held);
    }
    all.try_into().unwrap()
}

fn post<'a>(bench: &'a Bench, held: &'a Session) -> impl Future<Output = Result<Session, Error>> + 'a {
    bench.billing.post_begun(held.name(), START, end(after(MINUTE)), after(MINUTE))
}

fn commits(bench: &Bench) -> u64 {
    let Store::Embedded(store) = bench.billing.store() else { unreachable!() };
    store.commits()
}

/// What another process sees.
async fn state(other: &Billing, held: &Session) -> State {
    other.session(&held.account, &held.id).await.unwrap().unwrap().state
}

fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn ends_that_come_together_are_one_commit() {
    let bench = Bench::embedded();
    let (one, other) = (bench.prepaid(1_000_000).await, bench.prepaid(1_000_000).await);
    let theirs = begun(&bench, &one.who, ["a", "b", "c"]).await;
    let others = begun(&bench, &other.who, ["a", "b"]).await;
    let before = commits(&bench);
    let posted = join_all(theirs.iter().chain(&others).map(|held| post(&bench, held))).await;
    assert_eq!(commits(&bench), before + 1);
    for record in posted {
        assert_eq!(record.unwrap().state, State::Posted);
    }
    assert_eq!(balance(&bench.another(), &one.id).await, 970_000);
    for customer in [&one, &other] {
        assert_eq!(bench.billing.verify(&customer.id).await.unwrap().open, 0);
    }
}

#[tokio::test]
async fn a_beginning_that_was_not_noted_is_told_with_its_end_in_one_commit() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    let held = bench.billing.hold(&customer.who, session("s"), &gateway("gw"), START).await.unwrap().session;
    let before = commits(&bench);
    let posted = post(&bench, &held).await.unwrap();
    assert_eq!(commits(&bench), before + 1);
    assert_eq!((posted.state, posted.begun_at, posted.minutes), (State::Posted, Some(START), 1));
    assert_eq!(post(&bench, &held).await.unwrap(), posted);
    let begun_later = bench.billing.post_begun(held.name(), after(1), end(after(MINUTE)), START).await;
    assert!(matches!(begun_later, Err(Error::Refused(Refused::ExistsDifferent))));
    let stream = bench.billing.event_stream_of(&customer.id);
    let events = bench.billing.events(stream, &Cursor::default(), 100).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|(_, told)| told.event().unwrap().kind).collect();
    assert!(kinds.ends_with(&[EventKind::SessionStarted, EventKind::SessionCompleted]), "{kinds:?}");
}

#[tokio::test]
async fn whoever_looks_has_what_is_under_way_committed_first() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    let [held] = begun(&bench, &customer.who, ["s"]).await;
    let other = bench.another();
    let mut posting = pin!(post(&bench, &held));
    assert!(poll(posting.as_mut()).is_pending());
    assert_eq!(state(&other, &held).await, State::Open, "nobody else sees what is not committed");
    assert_eq!(bench.billing.session(&customer.id, &held.id).await.unwrap().unwrap().state, State::Posted);
    assert_eq!(state(&other, &held).await, State::Posted);
    assert_eq!(posting.await.unwrap().state, State::Posted);
}

#[tokio::test]
async fn an_end_that_nobody_waits_for_any_more_keeps_nobody_waiting() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    let [held] = begun(&bench, &customer.who, ["s"]).await;
    let mut posting = Box::pin(post(&bench, &held));
    assert!(poll(posting.as_mut()).is_pending());
    drop(posting);
    assert_eq!(state(&bench.another(), &held).await, State::Posted);
    bench.another().suspend(&customer.id, true, Actor::Operator, START).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_written_takes_nobody_along() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    let [good, bad] = begun(&bench, &customer.who, ["good", "bad"]).await;
    let StoreUrl::Sqlite(file) = bench.url() else { panic!("it is a file") };
    let disk = Connection::open(file).unwrap();
    disk.execute_batch(
        "CREATE TRIGGER full BEFORE INSERT ON ended_sessions WHEN NEW.id = 'bad' BEGIN SELECT RAISE(FAIL, 'full'); END",
    )
    .unwrap();
    let (first, second) = join(post(&bench, &good), post(&bench, &bad)).await;
    assert!(matches!((first, second), (Err(Error::Store(_)), Err(Error::Store(_)))));
    assert_eq!(bench.billing.verify(&customer.id).await.unwrap().open, 2);

    disk.execute_batch("DROP TRIGGER full").unwrap();
    for held in [&good, &bad] {
        assert_eq!(post(&bench, held).await.unwrap().state, State::Posted);
    }
    assert_eq!(bench.billing.verify(&customer.id).await.unwrap().open, 0);
    assert_eq!(balance(&bench.another(), &customer.id).await, 980_000);
}

#[tokio::test]
async fn holds_that_were_put_off_are_committed_with_the_ends() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    bench.billing.settle_abandoned(&gateway("gw"), START).await.unwrap();
    let [first, second] = begun(&bench, &customer.who, ["first", "second"]).await;
    let before = commits(&bench);
    let mut posting = pin!(post(&bench, &first));
    assert!(poll(posting.as_mut()).is_pending());
    let new = NewSession::fresh(SessionRequest::default());
    let reserved = bench.billing.reserve(&customer.who, &new, &gateway("gw"), START).await.unwrap();
    let (second, first) = join(post(&bench, &second), posting).await;
    bench.billing.confirm(&reserved, START).await.unwrap();
    assert_eq!(commits(&bench), before + 1);
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(state(&bench.another(), &reserved.session).await, State::Held);
    assert_eq!(bench.billing.verify(&customer.id).await.unwrap().open, 1);
}

/// Many threads settle, others look and write: all of it adds up.
#[test]
fn groups_of_several_threads_add_up() {
    const SESSIONS: usize = 200;
    const AT_ONCE: usize = 10;
    let bench = Bench::embedded();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let customer = runtime().block_on(bench.prepaid(10_000_000));
    thread::scope(|scope| {
        for thread in 0..3 {
            let (bench, customer) = (&bench, &customer);
            scope.spawn(move || {
                let run = |number| async move {
                    let id = session(&format!("{thread}-{number}"));
                    let held =
                        bench.billing.hold(&customer.who, id, &gateway("gw"), START).await.unwrap().session;
                    tokio::task::yield_now().await;
                    post(bench, &held).await.unwrap();
                };
                for some in 0..SESSIONS / AT_ONCE {
                    runtime().block_on(join_all((0..AT_ONCE).map(|one| run(some * AT_ONCE + one))));
                }
            });
        }
    });
    let runtime = runtime();
    assert_eq!(runtime.block_on(bench.billing.verify(&customer.id)).unwrap().open, 0);
    assert_eq!(runtime.block_on(balance(&bench.billing, &customer.id)), 10_000_000 - 3 * 200 * 10_000);
}
