//! Everything moves from one store to another, and back.

use std::collections::HashMap;
use std::num::NonZeroU32;

use super::*;
use crate::consumer::Consumer;
use crate::delivery::{ATTEMPTS_MAX, Content, Group, Packed, Ticket};
use crate::migrate::MoveError;
use crate::usage::Span;

/// An account that has had all that one can have.
async fn busy(billing: &Billing, id: &str, prepaid: Option<u64>) -> Principal {
    let new = NewCustomer {
        id: Some(id.parse().unwrap()),
        prepaid: prepaid.map(Micros::new),
        ..customer("professional")
    };
    let (account, secret) = billing.create_customer(new, Actor::Operator, START).await.unwrap();
    let who = billing.authenticate(secret.expose()).await.unwrap().unwrap();
    billing
        .credit(&account.id, Micros::new(70_000), "c1".parse().unwrap(), Actor::Operator, START)
        .await
        .unwrap();
    let (key, _) = billing.create_key(&account.id, "old".to_owned(), Actor::Operator, START).await.unwrap();
    billing.revoke_key(&account.id, &key.id, Actor::Operator, START).await.unwrap();
    for (name, outcome) in [("done", COMPLETED), ("lost", Outcome::Lost { cause: "crashed" })] {
        billing.hold(&who, session(name), &gateway("gw"), START).await.unwrap();
        billing.begin_latest(&account.id, &session(name), START, START).await.unwrap();
        let ended = End { outcome, ..end(after(2 * MINUTE)) };
        billing.post_latest(&account.id, &session(name), ended, after(2 * MINUTE)).await.unwrap();
    }
    let voided = billing.hold(&who, session("voided"), &gateway("gw"), START).await.unwrap();
    billing.void(voided.session.name(), "no browser", START).await.unwrap();
    for open in ["held", "open"] {
        billing.hold(&who, session(open), &gateway("gw"), START).await.unwrap();
    }
    billing.begin_latest(&account.id, &session("open"), START, START).await.unwrap();
    billing.heartbeat(&gateway("gw"), after(3 * MINUTE)).await.unwrap();
    billing
        .create_webhook(&account.id, "https://example.com/hook", &[], Actor::Operator, START)
        .await
        .unwrap();
    who
}

async fn told(billing: &Billing, account: &AccountId) -> Vec<Event> {
    let stream = billing.event_stream_of(account);
    let events = billing.events(stream, &Cursor::start(), LIST_MAX).await.unwrap();
    let events = events.iter().filter_map(|(_, told)| told.event());
    events.filter(|event| event.customer == *account).cloned().collect()
}

/// A move proves the rest by itself: figures, logs, sessions, usage, keys.
async fn moves(from: Bench, to: Bench) {
    let (source, target) = (&from.billing, &to.billing);
    let accounts = [busy(source, "acme", None).await, busy(source, "zoo", Some(90_000)).await];

    // One delivery is a dead letter, and nobody has read the rest of the events yet.
    let mut consumer = Consumer::new(source.clone(), Group::Notices, gateway("gw"));
    consumer.look().await.unwrap();
    let claimed = source.claim_deliveries(&HashMap::new(), 1, ATTEMPTS_MAX, after(3 * MINUTE)).await.unwrap();
    source.failed(&claimed[0], "answered 500", NonZeroU32::MIN, after(MINUTE)).await.unwrap();
    assert!(source.tell_unusual(&accounts[0], "too many starts", after(MINUTE)).await.unwrap());
    // What is not understood is moved as it is.
    let unread = ["waits", "died"].map(|name| {
        let (name, line) = (name.to_owned(), "later".to_owned());
        Packed { name, line, due: after(MINUTE), body: "{".to_owned() }
    });
    source.store().put_parcels(&unread).await.unwrap();
    let died = Ticket { name: "died".to_owned(), line: "later".to_owned(), attempts: 0 };
    source.store().bury_parcel(&died, "it is not understood", after(2 * MINUTE)).await.unwrap();

    let moved = source.move_to(target).await.unwrap();

    let backlog = target.backlog().await.unwrap();
    assert_eq!((backlog, backlog.dead), (source.backlog().await.unwrap(), 2));
    let letters = target.dead_letters(10).await.unwrap();
    assert_eq!(letters[0].content, Content::Unreadable("{".to_owned()));
    assert_eq!(letters[1].cause, "answered 500");
    let mut consumer = Consumer::new(target.clone(), Group::Notices, gateway("gw"));
    assert_eq!(consumer.look().await.unwrap().events, 0, "all that was told is with what waits");
    assert_eq!((moved.accounts, moved.sessions), (2, 10));
    assert_eq!(source.accounts().await.unwrap(), target.accounts().await.unwrap());
    assert_eq!(source.signing_key().await.unwrap().0, target.signing_key().await.unwrap().0);
    for who in &accounts {
        let id = &who.account;
        assert_eq!(
            source.audit(id, 0, LIST_MAX).await.unwrap(),
            target.audit(id, 0, LIST_MAX).await.unwrap()
        );
        assert_eq!(told(source, id).await, told(target, id).await);
        let months = target.usage(id, Span::Month, 1, START).await.unwrap();
        assert_eq!((months[0].usage.sessions, months[0].usage.lost), (2, 1));
    }
    for who in &accounts {
        goes_on(&to.another(), who).await;
    }
    assert!(matches!(source.move_to(target).await, Err(MoveError::NotEmpty)));
}

/// What was repeated before is repeated there, and what was open is settled by the one who finds it.
async fn goes_on(billing: &Billing, who: &Principal) {
    let (id, now) = (&who.account, after(10 * MINUTE));
    let before = billing.account(id).await.unwrap().unwrap().balance;
    let again =
        billing.credit(id, Micros::new(70_000), "c1".parse().unwrap(), Actor::Operator, now).await.unwrap();
    assert_eq!(again.balance, before, "it was made before");
    let repeated = billing.hold(who, session("done"), &gateway("new"), now).await;
    assert!(matches!(repeated, Err(HoldError::Exists(_))));
    billing.settle_abandoned(&gateway("new"), now).await.unwrap();
    let open = billing.session(id, &session("open")).await.unwrap().unwrap();
    assert_eq!(open.ended_at, Some(after(3 * MINUTE)), "its gateway was last seen then");
    billing.verify(id).await.unwrap();
}

#[tokio::test]
async fn everything_moves_to_a_redis() {
    moves(Bench::embedded(), Bench::redis()).await;
}

#[tokio::test]
async fn everything_moves_from_a_redis() {
    moves(Bench::redis(), Bench::embedded()).await;
}

#[tokio::test]
async fn a_log_that_was_changed_is_not_moved() {
    let (from, to) = (Bench::embedded(), Bench::redis());
    busy(&from.billing, "acme", None).await;
    let Place::Folder(folder) = &from.place else { unreachable!("it is embedded") };
    let database = Connection::open(folder.path().join("ledger.db")).unwrap();
    let changed = "UPDATE audit SET body = replace(body, '\"amount\":70000', '\"amount\":80000')";
    database.execute(changed, []).unwrap();
    let moved = from.billing.move_to(&to.billing).await;
    assert!(matches!(moved, Err(MoveError::Fault { fault: Fault::Hash { .. }, .. })), "{moved:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_whose_gateway_beats_is_in_use() {
    let bench = Bench::embedded();
    let watch = Duration::from_secs(11);
    assert!(!bench.billing.is_in_use(watch).await.unwrap(), "nobody was ever there");
    bench.billing.heartbeat(&gateway("gw"), START).await.unwrap();
    assert!(!bench.billing.is_in_use(watch).await.unwrap(), "it is gone");
    let beat = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        bench.billing.heartbeat(&gateway("gw"), after(5_000)).await.unwrap();
    };
    let (in_use, ()) = join(bench.billing.is_in_use(watch), beat).await;
    assert!(in_use.unwrap());
}
