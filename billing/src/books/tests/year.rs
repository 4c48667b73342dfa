//! A year of a busy customer, month by month on a moved clock: what a store holds stays within bounds.
//!
//! Everything that goes by itself or by an operator's timer is done here as it is there: each month older logs are sealed,
//! records are dropped that are older than they are kept, events are read and trimmed. (A Redis dates events by its own clock;
//! so here those go that were read.)

use super::*;
use crate::consumer::Consumer;
use crate::delivery::Group;
use crate::time::Period;

const MONTHS: usize = 12;
/// Sessions at a time.
const AT_A_TIME: u64 = 40;
/// As `session.kept` is by default.
const RECORDS_KEPT: u64 = 90 * 24 * 60 * MINUTE;
/// 2027-01-01.
const YEAR: Timestamp = Timestamp::from_millis(1_798_761_600_000);

/// What is kept for ever grows by so much a month: the commands of four credits and the month's usage.
const FOR_EVER: u64 = 4 * 1_024 + 512;

struct Size {
    keys: u64,
    bytes: u64,
}

impl Bench {
    /// Of a Redis all keys, each with all that it takes; of a file the rows and the pages in use.
    fn size(&self) -> Size {
        match &self.place {
            Place::Memory(_) => unreachable!("it is not asked of it"),
            Place::Server(server) => {
                let script = "local bytes = 0
                    for _, key in ipairs(redis.call('KEYS', '*')) do
                        bytes = bytes + redis.call('MEMORY', 'USAGE', key, 'SAMPLES', '0')
                    end
                    return bytes";
                let number = |words: &[&str]| server.ask(words).parse().unwrap();
                Size { keys: number(&["DBSIZE"]), bytes: number(&["EVAL", script, "0"]) }
            }
            Place::Folder(folder) => {
                let file = Connection::open(folder.path().join("ledger.db")).unwrap();
                let number = |query: &str| -> u64 {
                    file.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap().cast_unsigned()
                };
                let pages = number("SELECT page_count FROM pragma_page_count")
                    - number("SELECT freelist_count FROM pragma_freelist_count");
                let rows =
                    ["audit", "ended_sessions", "open_sessions", "events", "gateways", "api_keys", "usage"];
                let count = |table: &&str| number(&format!("SELECT count(*) FROM {table}"));
                Size { keys: rows.iter().map(count).sum(), bytes: pages * 4_096 }
            }
        }
    }
}

/// Three minutes each, over the month; now and then one is lost, or finds no browser.
async fn use_up(billing: &Billing, who: &Principal, (month, gateway): (Period, &GatewayId), most: u64) {
    let length = month.end.as_millis() - month.start.as_millis() - 60 * MINUTE;
    for first in (0..most).step_by(AT_A_TIME as usize) {
        let sessions = (first..first + AT_A_TIME).map(|number| async move {
            let from = Timestamp::from_millis(month.start.as_millis() + length * number / most);
            let id = SessionId::random();
            let held = billing.hold(who, id.clone(), gateway, from).await.unwrap();
            if number % 50 == 49 {
                billing.void(held.session.name(), "no browser", from).await.unwrap();
                return;
            }
            billing.begin_latest(&who.account, &id, from, from).await.unwrap();
            let at = Timestamp::from_millis(from.as_millis() + 3 * MINUTE);
            let outcome = if number % 50 == 48 { Outcome::Lost { cause: "crashed" } } else { COMPLETED };
            billing.post_latest(&who.account, &id, End { outcome, ..end(at) }, at).await.unwrap();
        });
        join_all(sessions).await;
    }
}

/// What an operator and a customer do beside it.
async fn look_after(billing: &Billing, id: &AccountId, number: usize, now: Timestamp) {
    for week in 0..4 {
        let command = format!("invoice-{number}-{week}").parse().unwrap();
        billing.credit(id, Micros::new(6_000_000), command, Actor::Operator, now).await.unwrap();
    }
    for _ in 0..20 {
        let (key, _) = billing.create_key(id, "ci".to_owned(), Actor::Operator, now).await.unwrap();
        billing.revoke_key(id, &key.id, Actor::Operator, now).await.unwrap();
    }
}

/// What is done of itself, and by the operator's timer.
async fn keep(bench: &Bench, id: &AccountId, (me, now): (&GatewayId, Timestamp), folder: &TempDir) {
    let billing = &bench.billing;
    let old = Timestamp::from_millis(now.as_millis() - RECORDS_KEPT);
    billing.drop_records(id, old).await.unwrap();
    let month = billing.last_to_seal(now);
    billing.seal(id, month, folder.path(), (Actor::Operator, now)).await.unwrap();
    let mut consumer = Consumer::new(billing.clone(), Group::Notices, me.clone());
    while consumer.look().await.unwrap().events > 0 {}
    // As often as it takes: so many are dropped at a time.
    for _ in 0..8 {
        let far_ahead = Timestamp::from_millis(now.as_millis() + RECORDS_KEPT);
        billing.store().trim_events(billing.event_stream_of(id), far_ahead).await.unwrap();
    }
}

/// A gateway of which nothing was heard for an hour.
async fn forget_dead_gateways(bench: &Bench, me: &GatewayId, now: Timestamp) {
    if !bench.billing.is_shared() {
        bench.billing.settle_abandoned(me, now).await.unwrap();
        return;
    }
    let mut sweeper = Sweeper::new(me.clone());
    for _ in 0..=720 {
        sweeper.look(&bench.billing, now).await.unwrap();
    }
}

/// With so many sessions a month.
async fn a_year_stays_within_bounds(bench: Bench, most: u64) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(100_000_000).await, tempfile::tempdir().unwrap());
    let billing = &bench.billing;
    let mut month = Period::calendar_month(YEAR);
    let mut sizes = Vec::new();
    for number in 0..MONTHS {
        let me = gateway(&format!("gw-{number}"));
        billing.heartbeat(&me, month.start).await.unwrap();
        look_after(billing, &id, number, month.start).await;
        use_up(billing, &who, (month, &me), most).await;
        keep(&bench, &id, (&me, month.end), &folder).await;
        if [2, MONTHS - 1].contains(&number) {
            forget_dead_gateways(&bench, &me, month.end).await;
        }
        let size = bench.size();
        println!("month {}: {} keys or rows, {} bytes", number + 1, size.keys, size.bytes);
        sizes.push(size);
        month = Period::calendar_month(month.end);
    }

    let (third, last) = (&sizes[2], &sizes[MONTHS - 1]);
    let later = (MONTHS - 3) as u64;
    // A month has 28 to 31 days, and numbers get more digits.
    assert!(last.keys * 100 <= third.keys * 105, "{} after {}", last.keys, third.keys);
    assert!(
        last.bytes * 100 <= (third.bytes + later * FOR_EVER) * 105,
        "{} after {}",
        last.bytes,
        third.bytes
    );
    let sealed: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
    let verified = billing.prove_archives(&sealed).await.unwrap().remove(&id).unwrap().unwrap();
    let alone = billing.verify(&id).await.unwrap();
    assert_eq!((verified.head, verified.balance), (alone.head, alone.balance));
    assert!(alone.sealed * 10 > alone.entries * 8, "{} of {}", alone.sealed, alone.entries);
    let usage = billing.usage(
        &id,
        crate::usage::Span::Month,
        12,
        Timestamp::from_millis(month.start.as_millis() - 1),
    );
    let sessions: u64 = usage.await.unwrap().iter().map(|month| month.usage.sessions).sum();
    assert_eq!(sessions, MONTHS as u64 * most * 49 / 50, "months are kept for ever");
}

#[tokio::test]
async fn a_year_on_a_redis() {
    let server = Server::with(&["--appendonly", "no"]);
    let billing = open(&server.url());
    a_year_stays_within_bounds(Bench { place: Place::Server(server), billing }, 2_000).await;
}

#[tokio::test]
async fn a_year_in_a_file() {
    a_year_stays_within_bounds(Bench::embedded(), 400).await;
}
