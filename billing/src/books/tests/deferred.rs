//! Holds whose commit is put off.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A gateway that has started, and what it has cached: the first hold goes the ordinary way.
async fn warm(bench: &Bench, customer: &Customer) {
    bench.billing.settle_abandoned(&gateway("gw"), START).await.unwrap();
    let held = bench.billing.hold(&customer.who, session("first"), &gateway("gw"), START).await.unwrap();
    bench.billing.void(held.session.name(), "no browser", START).await.unwrap();
}

async fn reserve(bench: &Bench, customer: &Customer) -> Result<Reserved, HoldError> {
    let new = NewSession::fresh(SessionRequest::default());
    bench.billing.reserve(&customer.who, &new, &gateway("gw"), START).await
}

/// What another process finds, for which a commit that was put off is not there yet.
async fn stored(bench: &Bench, held: &Reserved) -> Option<Session> {
    bench.another().session(&held.session.account, &held.session.id).await.unwrap()
}

#[tokio::test]
async fn a_reserved_session_is_held_for_us_at_once_and_for_others_once_it_is_confirmed() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(20_000).await;
    warm(&bench, &customer).await;
    let reserved = reserve(&bench, &customer).await.unwrap();
    assert_eq!((reserved.session.state, reserved.concurrent), (State::Held, 1));
    assert_eq!(stored(&bench, &reserved).await, None);

    bench.billing.confirm(&reserved, START).await.unwrap();
    bench.billing.confirm(&reserved, START).await.unwrap();
    assert_eq!(stored(&bench, &reserved).await.as_ref(), Some(&reserved.session));
    assert_eq!(balance(&bench.another(), &customer.id).await, 10_000);
}

#[tokio::test]
async fn every_look_and_every_command_finds_what_was_put_off() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    warm(&bench, &customer).await;
    let (account, id) = (&customer.id, |reserved: &Reserved| reserved.session.id.clone());

    let one = id(&reserve(&bench, &customer).await.unwrap());
    assert!(bench.billing.session(account, &one).await.unwrap().is_some());
    reserve(&bench, &customer).await.unwrap();
    assert_eq!(bench.billing.open_sessions().await.unwrap().len(), 2);
    reserve(&bench, &customer).await.unwrap();
    assert_eq!(balance(&bench.billing, account).await, 970_000);
    reserve(&bench, &customer).await.unwrap();
    assert_eq!(bench.billing.verify(account).await.unwrap().open, 4);
    let five = id(&reserve(&bench, &customer).await.unwrap());
    bench.billing.begin_latest(account, &five, START, START).await.unwrap();
    reserve(&bench, &customer).await.unwrap();
    bench.billing.heartbeat(&gateway("gw"), START).await.unwrap();
    assert_eq!(bench.another().open_sessions().await.unwrap().len(), 6);
}

/// Whoever commits a hold that was put off, its session's own thread learns what became of it.
#[test]
fn a_hold_is_confirmed_while_others_look() {
    const HOLDS: u64 = 2_000;
    let bench = Bench::embedded();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let customer = runtime.block_on(bench.prepaid(HOLDS * 10_000));
    runtime.block_on(warm(&bench, &customer));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (billing, account, done) = (&bench.billing, &customer.id, &done);
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            while !done.load(Ordering::Relaxed) {
                runtime.block_on(billing.account(account)).unwrap();
            }
        });
        let unconfirmed = (0..HOLDS).find(|_| {
            runtime.block_on(async {
                let reserved = reserve(&bench, &customer).await.unwrap();
                let confirmed = billing.confirm(&reserved, START).await;
                billing.void(reserved.session.name(), "no browser", START).await.unwrap();
                confirmed.is_err()
            })
        });
        done.store(true, Ordering::Relaxed);
        assert_eq!(unconfirmed, None);
    });
}

#[tokio::test]
async fn reserved_sessions_are_decided_on_one_another() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(30_000).await;
    warm(&bench, &customer).await;
    for _ in 0..3 {
        reserve(&bench, &customer).await.unwrap();
    }
    let refused = reserve(&bench, &customer).await;
    assert!(matches!(refused, Err(HoldError::Refused(Refusal::Money { .. }))), "{refused:?}");
    assert_eq!(balance(&bench.billing, &customer.id).await, 0);
    assert_eq!(bench.billing.verify(&customer.id).await.unwrap().open, 3);
}

#[tokio::test]
async fn what_another_process_did_before_is_seen() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    warm(&bench, &customer).await;
    bench.another().suspend(&customer.id, true, Actor::Operator, START).await.unwrap();
    let refused = reserve(&bench, &customer).await;
    assert!(matches!(refused, Err(HoldError::Refused(Refusal::Suspended))), "{refused:?}");

    let other = bench.another();
    other.suspend(&customer.id, false, Actor::Operator, START).await.unwrap();
    reserve(&bench, &customer).await.unwrap();
    let key = customer.who.key.clone();
    other.revoke_key(&customer.id, &key, Actor::Operator, START).await.unwrap();
    let refused = reserve(&bench, &customer).await;
    assert!(matches!(refused, Err(HoldError::Refused(Refusal::KeyRevoked))), "{refused:?}");
}

/// The first was decided before the other process wrote, the second on the first: both are decided anew.
#[tokio::test]
async fn what_another_process_did_in_between_is_decided_on_when_it_is_confirmed() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    warm(&bench, &customer).await;
    let (first, second) =
        (reserve(&bench, &customer).await.unwrap(), reserve(&bench, &customer).await.unwrap());
    let amount = Micros::new(5);
    let credit = CommandId::random();
    bench.another().credit(&customer.id, amount, credit, Actor::Operator, START).await.unwrap();

    bench.billing.confirm(&second, START).await.unwrap();
    bench.billing.confirm(&first, START).await.unwrap();
    bench.billing.confirm(&first, START).await.unwrap();
    assert_eq!(balance(&bench.another(), &customer.id).await, 980_005);
    assert_eq!(bench.billing.verify(&customer.id).await.unwrap().open, 2);
}

/// One commit was put off and the other process made one: what is decided on the first has the number of the second.
#[tokio::test]
async fn what_was_decided_on_a_hold_that_did_not_come_to_be_overwrites_nothing() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    warm(&bench, &customer).await;
    let credit = async |billing: &Billing| {
        let (amount, command) = (Micros::new(5), CommandId::random());
        billing.credit(&customer.id, amount, command, Actor::Operator, START).await.unwrap();
    };

    let reserved = reserve(&bench, &customer).await.unwrap();
    credit(&bench.another()).await;
    credit(&bench.billing).await;
    assert_eq!(balance(&bench.another(), &customer.id).await, 1_000_010);
    bench.billing.confirm(&reserved, START).await.unwrap();
    assert_eq!(balance(&bench.another(), &customer.id).await, 990_010);

    // The same for an end, which is committed with others.
    let ahead = reserve(&bench, &customer).await.unwrap();
    credit(&bench.another()).await;
    let outcome = Outcome::Completed { cause: "client closed" };
    let end = End { at: after(MINUTE), outcome, up_bytes: 0, down_bytes: 0 };
    bench.billing.post_begun(reserved.session.name(), START, end, after(MINUTE)).await.unwrap();
    bench.billing.confirm(&ahead, START).await.unwrap();
    assert_eq!(balance(&bench.another(), &customer.id).await, 980_015);
    assert_eq!(bench.another().verify(&customer.id).await.unwrap().open, 1);
}

#[tokio::test]
async fn a_session_that_another_process_made_impossible_is_not_held() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    warm(&bench, &customer).await;
    let reserved = reserve(&bench, &customer).await.unwrap();
    bench.another().suspend(&customer.id, true, Actor::Operator, START).await.unwrap();
    let refused = bench.billing.confirm(&reserved, START).await;
    assert!(matches!(refused, Err(HoldError::Refused(Refusal::Suspended))), "{refused:?}");
    assert_eq!(stored(&bench, &reserved).await, None);
    assert_eq!(balance(&bench.billing, &customer.id).await, 1_000_000);
    assert_eq!(bench.billing.verify(&customer.id).await.unwrap().open, 0);
}

#[tokio::test]
async fn what_a_killed_gateway_had_put_off_is_committed_and_settled_by_the_next() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    warm(&bench, &customer).await;
    let reserved = reserve(&bench, &customer).await.unwrap();
    let (_folder, next) = bench.killed();
    let settled = next.settle_abandoned(&gateway("next"), after(MINUTE)).await.unwrap();
    assert_eq!(settled.len(), 1);
    assert_eq!((&settled[0].id, settled[0].state), (&reserved.session.id, State::Voided));
    assert_eq!(balance(&next, &customer.id).await, 1_000_000);
    next.verify(&customer.id).await.unwrap();
    // Once is enough.
    assert!(next.settle_abandoned(&gateway("next"), after(MINUTE)).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_journal_that_was_cut_off_tells_what_it_has() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    warm(&bench, &customer).await;
    reserve(&bench, &customer).await.unwrap();
    reserve(&bench, &customer).await.unwrap();
    let (folder, unused) = bench.killed();
    let folder = folder.expect("the embedded store is files");
    drop(unused);
    let journal = folder.path().join("ledger.db-holds");
    let lines = fs::read(&journal).unwrap();
    fs::write(&journal, &lines[..lines.len() - 10]).unwrap();
    let next = open(&StoreUrl::Sqlite(folder.path().join("ledger.db")));
    assert_eq!(next.settle_abandoned(&gateway("next"), START).await.unwrap().len(), 1);
    next.verify(&customer.id).await.unwrap();
}

/// What a customer asked for is in it, and the record of its session may be dropped at any time.
#[tokio::test]
async fn a_beat_empties_the_journal() {
    let bench = Bench::embedded();
    let customer = bench.prepaid(1_000_000).await;
    warm(&bench, &customer).await;
    let reserved = reserve(&bench, &customer).await.unwrap();
    let Place::Folder(folder) = &bench.place else { panic!("the embedded store is files") };
    let journal = folder.path().join("ledger.db-holds");
    assert!(fs::metadata(&journal).unwrap().len() > 0);
    bench.billing.heartbeat(&gateway("gw"), START).await.unwrap();
    assert_eq!(fs::metadata(&journal).unwrap().len(), 0);
    assert_eq!(stored(&bench, &reserved).await.as_ref(), Some(&reserved.session));
    reserve(&bench, &customer).await.unwrap();
    let (_folder, next) = bench.killed();
    assert_eq!(next.settle_abandoned(&gateway("next"), START).await.unwrap().len(), 2);
}
