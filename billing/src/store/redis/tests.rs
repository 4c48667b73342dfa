use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::server::{Server, eventually};
use super::*;
use crate::audit::{Actor, Fault};
use crate::books::{Billing, Error, HoldError, Limits, NewCustomer};
use crate::consumer::Consumer;
use crate::delivery::{ATTEMPTS_MAX, Backlog, Group};
use crate::id::{CommandId, SessionId};
use crate::key::Key;
use crate::ledger::{self, Answer, Context, Opening};
use crate::money::Micros;
use crate::plan::Catalogue;
use crate::session::{End, Outcome};
use crate::store::StoreUrl;
use crate::store::lanes::behind;

/// 2027-01-15T10:00:00Z.
const NOW: Timestamp = Timestamp::from_millis(1_800_007_200_000);

fn open(url: &StoreUrl) -> Billing {
    Billing::open(url, Catalogue::default(), Limits::default()).unwrap()
}

fn url(text: &str) -> StoreUrl {
    text.parse().unwrap()
}

fn gateway() -> GatewayId {
    "gw".parse().unwrap()
}

async fn customer(billing: &Billing, micros: u64) -> Principal {
    let new = NewCustomer {
        id: None,
        email: "a@example.com".to_owned(),
        plan: "enterprise".to_owned(),
        prepaid: Some(Micros::new(micros)),
    };
    let (_, secret) = billing.create_customer(new, Actor::Operator, NOW).await.unwrap();
    billing.authenticate(secret.expose()).await.unwrap().unwrap()
}

/// A whole session, and that its log adds up.
async fn run(billing: &Billing, who: &Principal) {
    let id = billing.hold(who, SessionId::random(), &gateway(), NOW).await.unwrap().session.id;
    billing.begin_latest(&who.account, &id, NOW, NOW).await.unwrap();
    let outcome = Outcome::Completed { cause: "client" };
    let end = End { at: NOW, outcome, up_bytes: 1, down_bytes: 2 };
    billing.post_latest(&who.account, &id, end, NOW).await.unwrap();
    billing.verify(&who.account).await.unwrap();
}

fn batch(expected: u64, name: &str, changes: Vec<Arc<ledger::Change>>) -> Batch {
    let behind = changes.first().map_or_else(Digest::default, |first| behind(first));
    Batch { name: name.to_owned(), account: "acme".parse().unwrap(), expected, behind, changes }
}

fn opening() -> Arc<ledger::Change> {
    let catalogue = Catalogue::default();
    let (key, _) = Key::mint("key".to_owned(), NOW);
    let id = "acme".parse().unwrap();
    let opening = Opening { id, email: "a@example.com".to_owned(), prepaid: Some(Micros::ZERO), key };
    let given = Context { plan: catalogue.get("starter").unwrap(), now: NOW };
    Arc::new(ledger::open(opening, &Actor::Operator, given).unwrap())
}

fn credit(account: &Account, command: &CommandId) -> Arc<ledger::Change> {
    let catalogue = Catalogue::default();
    let given = Context { plan: catalogue.get("starter").unwrap(), now: NOW };
    match ledger::credit(account, Micros::new(1), command, &Actor::Operator, given).unwrap() {
        Answer::Change(change) => change,
        Answer::Exists => panic!("a credit is a change"),
    }
}

#[tokio::test]
async fn a_commit_that_is_sent_twice_is_carried_out_once_and_told_apart_from_another_s() {
    let server = Server::start();
    let StoreUrl::Redis(url) = server.url() else { unreachable!() };
    let redis = Redis::open(&url).unwrap();
    let opened = opening();
    let command = CommandId::random();
    let credited = credit(&opened.account, &command);
    let first = batch(0, "ours-1", vec![Arc::clone(&opened)]);
    assert!(matches!(redis.commit(&first).await.unwrap(), Reply::Done));

    let second = batch(1, "ours-2", vec![Arc::clone(&credited)]);
    assert!(matches!(redis.commit(&second).await.unwrap(), Reply::Done));
    // What it says is the same to the last byte.
    let theirs = batch(1, "theirs-1", vec![Arc::clone(&credited)]);
    for (sent, is_own) in [(second, true), (theirs, false)] {
        let Reply::Conflict { stored, written_by } = redis.commit(&sent).await.unwrap() else {
            panic!("{sent:?} was carried out")
        };
        assert_eq!(stored.as_deref(), Some(&credited.account));
        assert_eq!(written_by.as_deref(), Some("ours-2"));
        assert_eq!(written_by.as_deref() == Some(sent.name.as_str()), is_own);
    }
    let again = batch(2, "ours-3", vec![credit(&credited.account, &command)]);
    assert!(matches!(redis.commit(&again).await.unwrap(), Reply::Exists(0)));
    assert_eq!(redis.audit(&"acme".parse().unwrap(), 0, 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn the_time_is_the_server_s() {
    let server = Server::start();
    let here = || Timestamp::from(std::time::SystemTime::now());
    let before = here();
    let there = open(&server.url()).time_of_store().await.unwrap().unwrap();
    assert!(before <= there && there <= here(), "{there:?}");
}

#[tokio::test]
async fn one_that_asks_only_for_the_version_writes_nothing() {
    let server = Server::start();
    let StoreUrl::Redis(url) = server.url() else { unreachable!() };
    let redis = Redis::open(&url).unwrap();
    let opened = opening();
    let behind = opened.account.head.hash;
    assert!(matches!(redis.commit(&batch(0, "a", vec![opened])).await.unwrap(), Reply::Done));
    let asked = async |expected, behind| {
        let batch = Batch { behind, ..batch(expected, "b", Vec::new()) };
        redis.commit(&batch).await.unwrap()
    };
    assert!(matches!(asked(1, behind).await, Reply::Done));
    assert!(matches!(asked(7, behind).await, Reply::Conflict { .. }));
    // The same version by another history.
    assert!(matches!(asked(1, Digest::default()).await, Reply::Conflict { .. }));
    assert_eq!(redis.account(&"acme".parse().unwrap()).await.unwrap().unwrap().version, 1);
}

#[tokio::test]
async fn a_command_may_be_given_up_half_way() {
    let server = Server::start();
    let billing = open(&server.url());
    let who = customer(&billing, 100_000).await;
    for _ in 0..3 {
        let (alone, gateway) = (SessionId::random(), gateway());
        let hold = billing.hold(&who, alone, &gateway, NOW);
        assert!(hold.now_or_never().is_none(), "it has to wait for the answer");
        // The first takes a commit there when it is given up, the second would be the next to.
        let three = [(); 3].map(|()| Box::pin(billing.hold(&who, SessionId::random(), &gateway, NOW)));
        let [mut one, mut two, last] = three;
        assert!((&mut one).now_or_never().is_none() && (&mut two).now_or_never().is_none());
        drop(one);
        drop(two);
        last.await.unwrap();
    }
    billing.verify(&who.account).await.unwrap();
    run(&billing, &who).await;
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_and_found_again_with_all_that_it_had() {
    let mut server = Server::start();
    let billing = open(&server.url());
    let who = customer(&billing, 100_000).await;
    run(&billing, &who).await;
    let before = billing.verify(&who.account).await.unwrap();

    server.kill();
    let refused = billing.hold(&who, SessionId::random(), &gateway(), NOW).await;
    assert!(
        matches!(refused, Err(HoldError::Store(StoreError::Away(_) | StoreError::Unanswered(_)))),
        "{refused:?}"
    );
    assert!(billing.probe().await.is_err());

    server.start_again();
    eventually(async || billing.probe().await).await;
    assert_eq!(billing.verify(&who.account).await.unwrap(), before);
    // It does not have the script any more.
    run(&billing, &who).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_waited_for_for_ever() {
    let mut server = Server::start();
    let billing = open(&server.url());
    let who = customer(&billing, 100_000).await;
    server.ask(&["CLIENT", "PAUSE", "600000", "ALL"]);
    let refused = billing.hold(&who, SessionId::random(), &gateway(), NOW).await;
    assert!(matches!(refused, Err(HoldError::Store(StoreError::Unanswered(_)))), "{refused:?}");
    server.kill();
}

#[tokio::test]
async fn a_store_of_a_later_schema_is_refused() {
    let server = Server::start();
    server.ask(&["SET", schema::KEY, "7"]);
    let billing = open(&server.url());
    let refused = billing.probe().await;
    let Err(StoreError::Database(error)) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("schema 7"), "{error}");
    assert_eq!(server.ask(&["GET", schema::KEY]), "7");
}

#[tokio::test]
async fn a_store_of_an_earlier_schema_is_brought_up() {
    let server = Server::start();
    server.ask(&["SET", schema::KEY, "1"]);
    open(&server.url()).probe().await.unwrap();
    assert_eq!(server.ask(&["GET", schema::KEY]), "2");
}

#[tokio::test]
async fn a_tampered_log_is_found_out() {
    let log = |server: &Server, who: &Principal| {
        let key = Space::of_account(&who.account).of("log", who.account.as_str());
        server.ask(&["XDEL", &key, "2-0"]);
    };
    let open_session = |server: &Server, who: &Principal| {
        let key = Space::of_account(&who.account).of("open", who.account.as_str());
        server.ask(&["DEL", &key]);
    };
    type Tampering<'a> = &'a dyn Fn(&Server, &Principal);
    let cases: [(Tampering<'_>, Fault); 2] =
        [(&log, Fault::Missing { expected: 2 }), (&open_session, Fault::Open { sessions: 0, account: 1 })];
    for (tamper, expected) in cases {
        let server = Server::start();
        let billing = open(&server.url());
        let who = customer(&billing, 50_000).await;
        billing.hold(&who, SessionId::random(), &gateway(), NOW).await.unwrap();
        assert_eq!(billing.verify(&who.account).await.unwrap().entries, 4);
        tamper(&server, &who);
        let verdict = billing.verify(&who.account).await;
        assert!(matches!(&verdict, Err(Error::Fault(fault)) if *fault == expected), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_cluster_serves_accounts_of_all_its_nodes() {
    const CUSTOMERS: usize = 12;
    let nodes = Server::cluster();
    let billing = open(&url(&format!("redis+cluster://{}", nodes[0].address())));
    billing.probe().await.unwrap();
    for _ in 0..CUSTOMERS {
        let who = customer(&billing, 100_000).await;
        run(&billing, &who).await;
        billing.hold(&who, SessionId::random(), &gateway(), NOW).await.unwrap();
    }
    assert!(nodes.iter().all(|node| node.ask(&["DBSIZE"]) != "0"), "all nodes have some");
    assert_eq!(billing.accounts().await.unwrap().len(), CUSTOMERS);
    assert_eq!(billing.open_sessions().await.unwrap().len(), CUSTOMERS);
}

/// Each partition's stream is in a slot of its own, and the parcels of all are in one.
#[tokio::test]
async fn events_of_all_nodes_of_a_cluster_become_parcels() {
    const CUSTOMERS: u64 = 12;
    let nodes = Server::cluster();
    let billing = open(&url(&format!("redis+cluster://{}", nodes[0].address())));
    eventually(async || billing.probe().await).await;
    for _ in 0..CUSTOMERS {
        let who = customer(&billing, 1_000_000).await;
        billing.create_webhook(&who.account, "https://example.com", &[], Actor::Operator, NOW).await.unwrap();
        run(&billing, &who).await;
    }
    let mut consumer = Consumer::new(billing.clone(), Group::Notices, gateway());
    let sorted = consumer.look().await.unwrap();
    // Opened, begun and completed, of which a webhook is told of the last.
    assert_eq!((sorted.events, sorted.parcels), (3 * CUSTOMERS, CUSTOMERS));
    for _ in 0..PARTITIONS {
        consumer.trim(Duration::ZERO, NOW).await.unwrap();
    }
    let none = HashMap::new();
    let claimed = billing.claim_deliveries(&none, 100, ATTEMPTS_MAX, NOW).await.unwrap();
    assert_eq!(claimed.len() as u64, CUSTOMERS);
    billing.failed(&claimed[0], "answered 500", NonZeroU32::MIN, NOW).await.unwrap();
    for delivery in &claimed[1..] {
        billing.delivered(delivery).await.unwrap();
    }
    let letters = billing.dead_letters(10).await.unwrap();
    assert!(billing.redeliver(&letters[0].name, NOW).await.unwrap());
    assert_eq!(billing.backlog().await.unwrap(), Backlog { waiting: 1, dead: 0 });
}

/// The groups went with the events that it had.
#[tokio::test]
async fn a_server_that_has_lost_everything_has_its_groups_made_again() {
    let server = Server::start();
    let billing = open(&server.url());
    let mut consumer = Consumer::new(billing.clone(), Group::Notices, gateway());
    customer(&billing, 0).await;
    assert_eq!(consumer.look().await.unwrap().events, 1);
    server.ask(&["FLUSHALL"]);
    customer(&billing, 0).await;
    assert_eq!(consumer.look().await.unwrap().events, 1);
}

#[tokio::test]
async fn a_failover_is_followed() {
    let master = Server::with(&[]);
    let port = master.port().to_string();
    let replica = Server::with(&["--replicaof", "127.0.0.1", &port]);
    let sentinel = Server::sentinel(&master);
    let billing = open(&url(&format!("redis+sentinel://{}/main", sentinel.address())));
    let who = eventually(async || match billing.probe().await {
        Ok(()) => Ok(customer(&billing, 100_000).await),
        Err(error) => Err(error),
    })
    .await;
    run(&billing, &who).await;
    let before = billing.verify(&who.account).await.unwrap();

    // It has to have heard of the replica, and that must have what the master has.
    eventually(async || match sentinel.ask(&["SENTINEL", "REPLICAS", "main"]).contains(&replica.address()) {
        true => Ok(()),
        false => Err("it knows no replica"),
    })
    .await;
    master.ask(&["WAIT", "1", "10000"]);
    sentinel.ask(&["SENTINEL", "FAILOVER", "main"]);
    eventually(async || match replica.ask(&["ROLE"]).starts_with("master") {
        true => Ok(()),
        false => Err("it is no master"),
    })
    .await;
    // The old master still answers questions, and refuses to be written to.
    let held = eventually(async || billing.hold(&who, SessionId::random(), &gateway(), NOW).await).await;
    billing.void(held.session.name(), "no browser", NOW).await.unwrap();
    run(&billing, &who).await;
    let after = billing.verify(&who.account).await.unwrap();
    assert!(after.entries > before.entries && after.open == 0, "{after:?}");
    assert!(replica.ask(&["DBSIZE"]) != "0");
}
