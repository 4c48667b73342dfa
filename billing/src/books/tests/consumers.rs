//! Events reach whoever has to hear of them, at least once, whatever dies on the way.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;

use super::*;
use crate::consumer::{Consumer, Sorted};
use crate::delivery::{
    ATTEMPTS_MAX, Backlog, DEAD_KEPT, Delivery, Fate, Group, LEASE, LINE_MAX, Parcel, pack,
};
use crate::webhook::{NOTICES, WEBHOOKS_MAX, WebhookError};

of_every_store! {
    each_event_becomes_a_parcel_whoever_reads_it
    what_a_dead_consumer_was_given_is_given_to_another
    a_customer_is_told_of_its_own_events_and_of_what_it_chose
    a_delivery_that_fails_is_made_again_later_and_dies_in_the_end
    a_delivery_of_which_nothing_is_heard_is_handed_out_again
    a_delivery_whose_gateway_dies_each_time_is_a_dead_letter
    a_slow_customer_takes_no_more_than_its_share
    a_full_line_takes_no_more
    dead_letters_are_kept_for_a_while
    of_many_dead_letters_the_oldest_are_dropped
    events_are_dropped_when_they_are_old_and_everybody_has_read_them
    a_webhook_s_secret_is_rolled_and_the_webhook_removed
}

const URL: &str = "https://example.com/hook";
const DAYS: Duration = Duration::from_secs(24 * 3_600);

pub(super) fn consumer(billing: &Billing, name: &str) -> Consumer {
    Consumer::new(billing.clone(), Group::Notices, gateway(name))
}

/// Looks until there is no more.
pub(super) async fn sort(consumer: &mut Consumer) -> Sorted {
    let mut all = Sorted::default();
    loop {
        let Sorted { events, unread, parcels, dropped } = consumer.look().await.unwrap();
        if events == 0 {
            return all;
        }
        all.events += events;
        all.unread += unread;
        all.parcels += parcels;
        all.dropped += dropped;
    }
}

pub(super) async fn claim(billing: &Billing, now: Timestamp) -> Vec<Delivery> {
    billing.claim_deliveries(&HashMap::new(), 100, ATTEMPTS_MAX, now).await.unwrap()
}

/// An event that costs nothing.
pub(super) async fn tell(billing: &Billing, who: &Principal, minute: u64) {
    assert!(billing.tell_unusual(who, "too many starts", after(minute * MINUTE)).await.unwrap());
}

pub(super) async fn hooked(bench: &Bench) -> Customer {
    let customer = bench.prepaid(1_000_000).await;
    let events: Vec<_> = NOTICES.into_iter().chain([EventKind::CustomerActivated]).collect();
    bench.billing.create_webhook(&customer.id, URL, &events, Actor::Operator, START).await.unwrap();
    customer
}

async fn each_event_becomes_a_parcel_whoever_reads_it(bench: Bench) {
    const EVENTS: u64 = 150;
    let customers = [hooked(&bench).await, hooked(&bench).await, bench.prepaid(0).await];
    let other = bench.another();
    let (mut one, mut two) = (consumer(&bench.billing, "one"), consumer(&other, "two"));
    let telling = async {
        for minute in 0..EVENTS {
            for customer in &customers {
                tell(&bench.billing, &customer.who, minute).await;
            }
        }
    };
    telling.await;
    let (mine, theirs) = join(sort(&mut one), sort(&mut two)).await;
    // Each account was opened, which was before it had a webhook but at the same instant.
    assert_eq!(mine.parcels + theirs.parcels, 2 * (EVENTS + 1), "{mine:?} {theirs:?}");
    assert_eq!(bench.billing.backlog().await.unwrap(), Backlog { waiting: 2 * (EVENTS + 1), dead: 0 });

    let mut names = BTreeSet::new();
    loop {
        let claimed = claim(&other, after(EVENTS * MINUTE)).await;
        if claimed.is_empty() {
            break;
        }
        for delivery in claimed {
            assert_ne!(delivery.parcel.event.customer, customers[2].id, "it has no webhook");
            assert!(names.insert(delivery.parcel.name()), "handed out once");
            other.delivered(&delivery).await.unwrap();
        }
    }
    assert_eq!(names.len() as u64, 2 * (EVENTS + 1));
    assert_eq!(bench.billing.backlog().await.unwrap(), Backlog::default());
}

async fn what_a_dead_consumer_was_given_is_given_to_another(bench: Bench) {
    let customer = hooked(&bench).await;
    sort(&mut consumer(&bench.billing, "one")).await;
    for minute in 0..5 {
        tell(&bench.billing, &customer.who, minute).await;
    }
    let streams: Vec<_> = (0..=u8::MAX).take(usize::from(bench.billing.event_streams())).collect();
    let given = bench.billing.store().read_events(Group::Notices, &gateway("one"), &streams).await.unwrap();
    assert_eq!(given.events.len(), 5);
    // It makes parcels of them, and dies before it notes that it is done.
    let parcels = bench.billing.notices_of(&given.events[..2]).await.unwrap();
    bench.billing.store().put_parcels(&pack(&parcels).unwrap()).await.unwrap();

    let sorted = sort(&mut consumer(&bench.another(), "two").impatient()).await;
    assert_eq!(sorted.events, 5);
    assert_eq!(bench.billing.backlog().await.unwrap().waiting, 6, "each once, and the opening");
    // The dead one comes back, and notes it after all.
    bench.billing.store().sorted(Group::Notices, &given, &pack(&parcels).unwrap()).await.unwrap();
    assert_eq!(bench.billing.backlog().await.unwrap().waiting, 6);
    assert_eq!(sort(&mut consumer(&bench.another(), "three").impatient()).await, Sorted::default());
}

async fn a_customer_is_told_of_its_own_events_and_of_what_it_chose(bench: Bench) {
    let (one, other) = (bench.prepaid(1_000_000).await, bench.prepaid(1_000_000).await);
    let billing = &bench.billing;
    let lost = [EventKind::SessionLost];
    let (webhook, _) = billing.create_webhook(&one.id, URL, &lost, Actor::Operator, after(1)).await.unwrap();
    billing
        .create_webhook(&other.id, "https://other.example.com", &[], Actor::Operator, after(1))
        .await
        .unwrap();
    for (name, outcome) in [("done", COMPLETED), ("lost", Outcome::Lost { cause: "crashed" })] {
        for customer in [&one, &other] {
            billing.hold(&customer.who, session(name), &gateway("gw"), after(1)).await.unwrap();
            billing.begin_latest(&customer.id, &session(name), after(1), after(1)).await.unwrap();
            let ended = End { outcome, ..end(after(2)) };
            billing.post_latest(&customer.id, &session(name), ended, after(2)).await.unwrap();
        }
    }
    sort(&mut consumer(billing, "one")).await;
    let claimed = claim(billing, after(2)).await;
    let told = |customer: &Customer| {
        let own = claimed.iter().filter(|delivery| delivery.parcel.event.customer == customer.id);
        own.map(|delivery| delivery.parcel.event.kind).collect::<Vec<_>>()
    };
    assert_eq!(told(&one), [EventKind::SessionLost]);
    let mut all = told(&other);
    all.sort_unstable_by_key(|kind| kind.as_str());
    assert_eq!(all, [EventKind::SessionCompleted, EventKind::SessionLost]);

    let delivery = claimed.iter().find(|delivery| delivery.parcel.event.customer == one.id).unwrap();
    let notice = billing.notice(delivery, after(3)).await.unwrap().unwrap();
    assert_eq!(notice.url, URL);
    assert!(notice.body.contains(r#""type":"session:lost""#), "{}", notice.body);
    assert!(!notice.body.contains(other.id.as_str()));
    billing.remove_webhook(&one.id, &webhook.id, Actor::Operator, after(2)).await.unwrap();
    assert_eq!(billing.notice(delivery, after(3)).await.unwrap(), None);
}

async fn a_delivery_that_fails_is_made_again_later_and_dies_in_the_end(bench: Bench) {
    hooked(&bench).await;
    let billing = &bench.billing;
    sort(&mut consumer(billing, "one")).await;
    let mut now = START;
    for attempt in 1..=ATTEMPTS_MAX.get() {
        let claimed = claim(billing, now).await;
        let [delivery] = &claimed[..] else { panic!("{claimed:?}") };
        assert_eq!(delivery.attempts, attempt);
        match billing.failed(delivery, "answered 500", ATTEMPTS_MAX, now).await.unwrap() {
            Fate::Again(due) => {
                assert!(due > now && attempt < ATTEMPTS_MAX.get());
                let just_before = Timestamp::from_millis(due.as_millis() - 1);
                assert_eq!(claim(billing, just_before).await, []);
                now = due;
            }
            Fate::Dead => assert_eq!(attempt, ATTEMPTS_MAX.get()),
        }
    }
    assert_eq!(claim(billing, Timestamp::from_millis(now.as_millis() * 2)).await, []);
    assert_eq!(billing.backlog().await.unwrap(), Backlog { waiting: 0, dead: 1 });
    let letters = billing.dead_letters(10).await.unwrap();
    let [letter] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((letter.attempts, letter.cause.as_str()), (ATTEMPTS_MAX.get(), "answered 500"));
    assert_eq!(letter.died_at, now);

    let name = &letter.name;
    assert!(billing.redeliver(name, now).await.unwrap());
    assert!(!billing.redeliver(name, now).await.unwrap(), "it is none any more");
    assert!(!billing.redeliver("nothing", now).await.unwrap());
    let claimed = claim(billing, now).await;
    let [delivery] = &claimed[..] else { panic!("{claimed:?}") };
    assert_eq!((delivery.attempts, &delivery.parcel), (1, letter.parcel().unwrap()));
    billing.delivered(delivery).await.unwrap();
    assert_eq!(billing.backlog().await.unwrap(), Backlog::default());
}

async fn a_delivery_of_which_nothing_is_heard_is_handed_out_again(bench: Bench) {
    hooked(&bench).await;
    let (mine, theirs) = (&bench.billing, &bench.another());
    sort(&mut consumer(mine, "one")).await;
    let lease = u64::try_from(LEASE.as_millis()).unwrap();
    let first = claim(mine, START).await;
    assert_eq!(claim(theirs, after(lease - 1)).await, []);
    let again = claim(theirs, after(lease)).await;
    assert_eq!((again.len(), again[0].attempts, &again[0].parcel), (1, 2, &first[0].parcel));
    // What the first one says of it comes too late.
    mine.failed(&first[0], "timed out", ATTEMPTS_MAX, after(lease)).await.unwrap();
    mine.failed(&first[0], "timed out", NonZeroU32::MIN, after(lease)).await.unwrap();
    assert_eq!(mine.backlog().await.unwrap(), Backlog { waiting: 1, dead: 0 });
    theirs.delivered(&again[0]).await.unwrap();
    assert_eq!(mine.backlog().await.unwrap(), Backlog::default());
}

async fn a_delivery_whose_gateway_dies_each_time_is_a_dead_letter(bench: Bench) {
    hooked(&bench).await;
    let billing = &bench.billing;
    sort(&mut consumer(billing, "one")).await;
    let most = NonZeroU32::new(2).unwrap();
    let lease = u64::try_from(LEASE.as_millis()).unwrap();
    for time in 0..3 {
        let claimed = billing.claim_deliveries(&HashMap::new(), 1, most, after(time * lease)).await.unwrap();
        assert_eq!(claimed.len(), usize::from(time < 2));
    }
    assert_eq!(billing.backlog().await.unwrap(), Backlog { waiting: 0, dead: 1 });
}

async fn a_slow_customer_takes_no_more_than_its_share(bench: Bench) {
    let (slow, quick) = (hooked(&bench).await, hooked(&bench).await);
    let billing = &bench.billing;
    for minute in 0..10 {
        tell(billing, &slow.who, minute).await;
    }
    sort(&mut consumer(billing, "one")).await;
    let now = after(10 * MINUTE);
    let of = |claimed: &[Delivery], customer: &Customer| {
        claimed.iter().filter(|delivery| delivery.parcel.event.customer == customer.id).count()
    };
    let claimed = claim(billing, now).await;
    assert_eq!((of(&claimed, &slow), of(&claimed, &quick)), (4, 1));
    // They are still being carried when there is more of the other.
    let line =
        claimed.iter().find(|delivery| delivery.parcel.event.customer == slow.id).unwrap().parcel.line();
    tell(billing, &quick.who, 11).await;
    sort(&mut consumer(billing, "one")).await;
    let now = after(11 * MINUTE);
    for (busy, expected) in [(4, (0, 1)), (3, (1, 0))] {
        let busy = HashMap::from([(line.clone(), busy)]);
        let claimed = billing.claim_deliveries(&busy, 10, ATTEMPTS_MAX, now).await.unwrap();
        let fresh: Vec<_> = claimed.into_iter().filter(|delivery| delivery.attempts == 1).collect();
        assert_eq!((of(&fresh, &slow), of(&fresh, &quick)), expected);
    }
}

async fn a_full_line_takes_no_more(bench: Bench) {
    let customer = hooked(&bench).await;
    let billing = &bench.billing;
    sort(&mut consumer(billing, "one")).await;
    let [opening] = &claim(billing, START).await[..] else { panic!("it was opened") };
    let parcels = (0..=LINE_MAX).map(|number| {
        let mut parcel = opening.parcel.clone();
        parcel.event.id = format!("{}-{number}-0", customer.id);
        parcel
    });
    let parcels: Vec<Parcel> = parcels.collect();
    // The opening is there, under a name that is one of these or not; it has its place in either case.
    let dropped = billing.store().put_parcels(&pack(&parcels).unwrap()).await.unwrap();
    assert_eq!(billing.backlog().await.unwrap().waiting, u64::from(LINE_MAX));
    assert!((1..=2).contains(&dropped), "{dropped}");
}

async fn dead_letters_are_kept_for_a_while(bench: Bench) {
    hooked(&bench).await;
    let billing = &bench.billing;
    let mut consumer = consumer(billing, "one");
    sort(&mut consumer).await;
    let claimed = claim(billing, START).await;
    billing.failed(&claimed[0], "answered 500", NonZeroU32::MIN, START).await.unwrap();
    let kept = u64::try_from(DEAD_KEPT.as_millis()).unwrap();
    consumer.trim(DAYS, after(kept)).await.unwrap();
    assert_eq!(billing.backlog().await.unwrap().dead, 1);
    consumer.trim(DAYS, after(kept + 1)).await.unwrap();
    assert_eq!(billing.backlog().await.unwrap(), Backlog::default());
    assert_eq!(billing.dead_letters(10).await.unwrap(), []);
}

async fn of_many_dead_letters_the_oldest_are_dropped(bench: Bench) {
    let customer = hooked(&bench).await;
    let billing = &bench.billing;
    for minute in 0..4 {
        tell(billing, &customer.who, minute).await;
    }
    sort(&mut consumer(billing, "one")).await;
    for minute in 0..5 {
        let busy = HashMap::new();
        let claimed = billing.claim_deliveries(&busy, 1, ATTEMPTS_MAX, after(minute * MINUTE)).await.unwrap();
        billing.failed(&claimed[0], "answered 500", NonZeroU32::MIN, after(minute * MINUTE)).await.unwrap();
    }
    billing.store().drop_dead_letters(START, 2).await.unwrap();
    let left = billing.dead_letters(10).await.unwrap();
    let died = left.iter().map(|letter| letter.died_at).collect::<Vec<_>>();
    assert_eq!(died, [after(4 * MINUTE), after(3 * MINUTE)]);
    assert_eq!(billing.backlog().await.unwrap(), Backlog { waiting: 0, dead: 2 });
}

async fn events_are_dropped_when_they_are_old_and_everybody_has_read_them(bench: Bench) {
    const EVENTS: u64 = 300;
    let customer = bench.prepaid(0).await;
    let billing = &bench.billing;
    for minute in 0..EVENTS {
        tell(billing, &customer.who, minute).await;
    }
    let stream = billing.event_stream_of(&customer.id);
    let kept = async || billing.events(stream, &Cursor::start(), LIST_MAX).await.unwrap().len() as u64;
    let mut consumer = consumer(billing, "one");
    let trim = async |consumer: &mut Consumer, kept, now| {
        for _ in 0..billing.event_streams() {
            consumer.trim(kept, now).await.unwrap();
        }
    };
    // A Redis takes the time of its own clock for theirs.
    let later = Timestamp::from_millis(
        after(EVENTS * MINUTE).as_millis().max(Timestamp::from(std::time::SystemTime::now()).as_millis())
            + 1_000,
    );
    trim(&mut consumer, Duration::ZERO, later).await;
    assert_eq!(kept().await, EVENTS + 1, "nobody has read them");
    sort(&mut consumer).await;
    trim(&mut consumer, 400 * DAYS, after(0)).await;
    assert_eq!(kept().await, EVENTS + 1, "they are young");
    trim(&mut consumer, Duration::ZERO, later).await;
    // A Redis drops them by the hundred.
    assert!(kept().await <= 100, "{} are left", kept().await);
    tell(billing, &customer.who, EVENTS).await;
    assert_eq!(sort(&mut consumer).await.events, 1, "and what comes is read");
}

async fn a_webhook_s_secret_is_rolled_and_the_webhook_removed(bench: Bench) {
    let customer = bench.prepaid(0).await;
    let (id, billing) = (&customer.id, &bench.billing);
    let (webhook, secret) = billing.create_webhook(id, URL, &[], Actor::Operator, START).await.unwrap();
    assert!(secret.expose().starts_with("whsec_") && !format!("{webhook:?}").contains(secret.expose()));
    let (rolled, new) = billing.roll_webhook(id, &webhook.id, DAYS, Actor::Operator, START).await.unwrap();
    assert_ne!(secret, new);
    assert_eq!(rolled.rolls_until(START), Some(after(24 * 60 * MINUTE)));
    assert_eq!(bench.another().webhooks(id).await.unwrap(), [rolled]);
    for _ in 1..WEBHOOKS_MAX {
        billing.create_webhook(id, URL, &[], Actor::Operator, after(1)).await.unwrap();
    }
    let refused = billing.create_webhook(id, URL, &[], Actor::Operator, after(1)).await;
    assert!(matches!(refused, Err(WebhookError::TooMany)));
    billing.remove_webhook(id, &webhook.id, Actor::Operator, after(2)).await.unwrap();
    assert!(matches!(
        billing.remove_webhook(id, &webhook.id, Actor::Operator, after(2)).await,
        Err(WebhookError::NoWebhook)
    ));
    assert_eq!(billing.webhooks(id).await.unwrap().len(), WEBHOOKS_MAX - 1);
    let log = billing.audit(id, 0, LIST_MAX).await.unwrap();
    let of_it = log.iter().filter(|entry| entry.cause.as_deref() == Some(webhook.id.as_str()));
    let noted: Vec<_> = of_it.map(|entry| (entry.kind, entry.actor.clone(), entry.amount)).collect();
    let kinds = [EntryKind::WebhookCreated, EntryKind::WebhookRolled, EntryKind::WebhookRemoved];
    assert_eq!(noted, kinds.map(|kind| (kind, Actor::Operator, 0)));
    billing.verify(id).await.unwrap();
    let nobody = "nobody".parse().unwrap();
    assert!(matches!(billing.webhooks(&nobody).await, Err(WebhookError::NoAccount)));
    assert!(matches!(
        billing.create_webhook(id, "", &[], Actor::Operator, START).await,
        Err(WebhookError::Url)
    ));
}
