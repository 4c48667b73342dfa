//! What is in a store and not understood is kept as it is, and holds up nothing that is behind it.

use std::collections::HashMap;
use std::slice;

use super::consumers::{claim, consumer, hooked, sort, tell};
use super::*;
use crate::delivery::{ATTEMPTS_MAX, Backlog, Content, Group, Packed, READINGS, Unread};
use crate::event::{Event, Heard};

of_every_store! {
    a_parcel_that_is_not_understood_holds_up_nobody
    an_event_that_is_understood_after_all_is_told_of
    ; of the real ones:
    events_that_are_not_understood_are_set_aside
}

/// Of a later version; no JSON; no text.
const UNKNOWN: [&str; 3] = [
    r#"{"v":2,"id":"acme-9-0","type":"customer:moved","at":1800007200000,"customer":"acme","plan":"starter"}"#,
    "{\"v\":1,",
    r"{\xff",
];

impl Bench {
    /// Puts what no version of this program would tell behind the events of an account.
    fn tell_unknown(&self, account: &AccountId) {
        match &self.place {
            Place::Folder(folder) => {
                let file = Connection::open(folder.path().join("ledger.db")).unwrap();
                let put = "INSERT INTO events (body) VALUES (?1), (?2), (CAST(x'7bff' AS TEXT))";
                file.execute(put, [UNKNOWN[0], UNKNOWN[1]]).unwrap();
            }
            Place::Server(server) => {
                let key = format!("ufb:{{{:02x}}}:events", self.billing.event_stream_of(account));
                let put = "for _, event in ipairs({ARGV[1], ARGV[2], '{\\255'}) do
                        redis.call('XADD', KEYS[1], '*', 'e', event)
                    end";
                server.ask(&["EVAL", put, "1", &key, UNKNOWN[0], UNKNOWN[1]]);
            }
            Place::Memory(_) => unreachable!("it has events, and no bytes"),
        }
    }
}

/// From one due date to the next, until all is a dead letter that does not arrive.
async fn wait_for_the_end(billing: &Billing) -> u32 {
    let (mut rounds, mut now) = (0, START);
    while billing.backlog().await.unwrap().waiting > 0 {
        assert_eq!(claim(billing, now).await, [], "there is nothing that can be carried");
        (rounds, now) = (rounds + 1, Timestamp::from_millis(now.as_millis() + 15 * MINUTE));
    }
    rounds
}

async fn events_that_are_not_understood_are_set_aside(bench: Bench) {
    let customer = hooked(&bench).await;
    let billing = &bench.billing;
    tell(billing, &customer.who, 0).await;
    bench.tell_unknown(&customer.id);
    tell(billing, &customer.who, 1).await;

    let mut consumer = consumer(billing, "one").impatient();
    let sorted = sort(&mut consumer).await;
    assert_eq!((sorted.events, sorted.unread, sorted.parcels), (6, 3, 3), "the opening, and two");
    let claimed = claim(billing, after(MINUTE)).await;
    assert_eq!(claimed.len(), 3, "what is understood is told of at once");
    for delivery in &claimed {
        billing.delivered(delivery).await.unwrap();
    }
    assert_eq!(billing.backlog().await.unwrap(), Backlog { waiting: 3, dead: 0 });
    wait_for_the_end(billing).await;

    let letters = billing.dead_letters(10).await.unwrap();
    let mut kept: Vec<_> = letters.iter().map(|letter| &letter.content).collect();
    let raw = |content: &&Content| match content {
        Content::Unreadable(body) => UNKNOWN.iter().position(|unknown| body == unknown),
        Content::Parcel(_) => None,
    };
    kept.sort_by_key(raw);
    assert_eq!(kept, UNKNOWN.map(|body| Content::Unreadable(body.to_owned())).iter().collect::<Vec<_>>());
    assert!(letters.iter().all(|letter| letter.attempts == READINGS), "{letters:?}");
    assert!(letters.iter().any(|letter| letter.cause.contains("unknown variant `customer:moved`")));

    let stream = billing.event_stream_of(&customer.id);
    let told = billing.events(stream, &Cursor::start(), LIST_MAX).await.unwrap();
    let unread: Vec<_> = told.iter().filter(|(_, heard)| heard.event().is_none()).collect();
    assert_eq!((told.len(), unread.len()), (6, 3), "all of it can be looked at");
    assert_eq!(unread[0].1, Heard::Unreadable(UNKNOWN[0].to_owned()));
    let later = Timestamp::from(std::time::SystemTime::now()).as_millis().max(after(2 * MINUTE).as_millis());
    for _ in 0..billing.event_streams() {
        consumer.trim(Duration::ZERO, Timestamp::from_millis(later + 1_000)).await.unwrap();
    }
    tell(billing, &customer.who, 2).await;
    assert_eq!(sort(&mut consumer).await.parcels, 1, "and what comes is read");
}

async fn an_event_that_is_understood_after_all_is_told_of(bench: Bench) {
    let customer = hooked(&bench).await;
    let billing = &bench.billing;
    sort(&mut consumer(billing, "one")).await;
    let [opening] = &claim(billing, START).await[..] else { panic!("it was opened") };
    billing.delivered(opening).await.unwrap();
    let event = Event { id: "from-later".to_owned(), ..opening.parcel.event.clone() };
    let unread = Unread::new(Group::Notices, "0.1".to_owned(), serde_json::to_string(&event).unwrap());
    billing.store().put_parcels(&[Packed::unread(&unread).unwrap()]).await.unwrap();

    assert_eq!(claim(billing, START).await, [], "it becomes a parcel first");
    let [delivery] = &claim(billing, START).await[..] else { panic!("it is to be carried") };
    assert_eq!(delivery.parcel.event, event);
    assert_eq!(delivery.parcel.event.customer, customer.id);
    billing.delivered(delivery).await.unwrap();
    assert_eq!(billing.backlog().await.unwrap(), Backlog::default());
}

async fn a_parcel_that_is_not_understood_holds_up_nobody(bench: Bench) {
    hooked(&bench).await;
    let billing = &bench.billing;
    sort(&mut consumer(billing, "one")).await;
    let body = r#"{"group":"later"}"#.to_owned();
    let unknown = Packed { name: "later.1".to_owned(), line: "later.acme".to_owned(), due: START, body };
    billing.store().put_parcels(slice::from_ref(&unknown)).await.unwrap();

    let claimed = claim(billing, START).await;
    let [delivery] = &claimed[..] else { panic!("{claimed:?}") };
    billing.delivered(delivery).await.unwrap();
    assert_eq!(wait_for_the_end(billing).await, READINGS);
    assert_eq!(billing.backlog().await.unwrap(), Backlog { waiting: 0, dead: 1 });
    let letters = billing.dead_letters(10).await.unwrap();
    assert_eq!(letters[0].content, Content::Unreadable(unknown.body));
    assert_eq!((letters[0].name.as_str(), letters[0].attempts), ("later.1", READINGS));

    // It is tried as often again, and may be dropped like any other.
    assert!(billing.redeliver("later.1", START).await.unwrap());
    let none = HashMap::new();
    assert_eq!(billing.claim_deliveries(&none, 1, ATTEMPTS_MAX, START).await.unwrap(), []);
    assert_eq!(billing.backlog().await.unwrap(), Backlog { waiting: 1, dead: 0 });
    wait_for_the_end(billing).await;
    billing.store().drop_dead_letters(START, 0).await.unwrap();
    assert_eq!(billing.backlog().await.unwrap(), Backlog::default());
}
