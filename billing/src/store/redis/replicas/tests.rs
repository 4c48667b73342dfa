//! What survives the loss of a server, by how it is set up: one test for each line of README's table.

use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;

use crate::audit::Actor;
use crate::books::{Billing, Error, Limits, NewCustomer};
use crate::id::{AccountId, CommandId};
use crate::money::Micros;
use crate::plan::Catalogue;
use crate::store::redis::server::{Server, eventually};
use crate::store::{Durability, StoreError, StoreUrl, partition};
use crate::time::Timestamp;

/// 2027-01-15T10:00:00Z.
const NOW: Timestamp = Timestamp::from_millis(1_800_007_200_000);

fn open(url: &StoreUrl, replicas: u32) -> Billing {
    let url = if replicas == 0 { url.clone() } else { url.clone().with_replicas(replicas).unwrap() };
    Billing::open(&url, Catalogue::default(), Limits::default()).unwrap()
}

fn url(text: &str) -> StoreUrl {
    text.parse().unwrap()
}

async fn customer(billing: &Billing) -> AccountId {
    let new = NewCustomer {
        id: None,
        email: "a@example.com".to_owned(),
        plan: "enterprise".to_owned(),
        prepaid: Some(Micros::ZERO),
    };
    billing.create_customer(new, Actor::Operator, NOW).await.unwrap().0.id
}

async fn credit(billing: &Billing, account: &AccountId) -> Result<CommandId, Error> {
    let command = CommandId::random();
    billing.credit(account, Micros::new(1), command.clone(), Actor::Operator, NOW).await?;
    Ok(command)
}

async fn has(billing: &Billing, account: &AccountId, command: &CommandId) -> bool {
    billing.store().command(account, command).await.unwrap().is_some()
}

/// Credits from several sides until the store is gone, which `lose` sees to after so many. Those that were answered.
async fn credits_until(billing: &Billing, account: &AccountId, lose: impl FnOnce()) -> Vec<CommandId> {
    const SIDES: usize = 8;
    const BEFORE: usize = 200;
    let answered = Arc::new(Mutex::new(Vec::new()));
    let mut sides = JoinSet::new();
    for _ in 0..SIDES {
        let (billing, account, answered) = (billing.clone(), account.clone(), Arc::clone(&answered));
        sides.spawn(async move {
            while let Ok(command) = credit(&billing, &account).await {
                answered.lock().unwrap().push(command);
            }
        });
    }
    eventually(async || if answered.lock().unwrap().len() >= BEFORE { Ok(()) } else { Err("too few") }).await;
    lose();
    sides.join_all().await;
    Arc::into_inner(answered).unwrap().into_inner().unwrap()
}

#[tokio::test]
async fn a_file_that_is_synced_always_keeps_all_that_was_answered_when_the_server_is_killed() {
    let mut server = Server::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let billing = open(&server.url(), 0);
    let account = customer(&billing).await;
    let answered = credits_until(&billing, &account, || server.kill()).await;
    server.start_again();
    eventually(async || billing.probe().await).await;
    for command in &answered {
        assert!(has(&billing, &account, command).await);
    }
    billing.verify(&account).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_synced_every_second_loses_the_latest_alone() {
    let mut server = Server::with(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let billing = open(&server.url(), 0);
    let account = customer(&billing).await;
    let answered = credits_until(&billing, &account, || server.kill()).await;
    server.start_again();
    eventually(async || billing.probe().await).await;
    let kept = billing.account(&account).await.unwrap().unwrap().balance;
    let mut found = 0;
    for command in &answered {
        found += u64::from(has(&billing, &account, command).await);
    }
    // One whose answer was lost may be there, too.
    assert!(found <= kept.get(), "{found} of {}, {kept:?}", answered.len());
    billing.verify(&account).await.unwrap();
    credit(&billing, &account).await.unwrap();
    billing.verify(&account).await.unwrap();
}

#[tokio::test]
async fn a_power_cut_takes_the_last_commits_whole() {
    let mut server = Server::with(&["--appendonly", "yes", "--appendfsync", "no"]);
    let billing = open(&server.url(), 0);
    let account = customer(&billing).await;
    let kept = credit(&billing, &account).await.unwrap();
    let lost = credit(&billing, &account).await.unwrap();
    server.kill();
    // What the disk has of the last commit is a part.
    let log = server.folder().join("appendonlydir/appendonly.aof.1.incr.aof");
    let length = std::fs::metadata(&log).unwrap().len();
    std::fs::File::options().write(true).open(&log).unwrap().set_len(length - 100).unwrap();

    server.start_again();
    eventually(async || billing.probe().await).await;
    assert!(has(&billing, &account, &kept).await && !has(&billing, &account, &lost).await);
    billing.verify(&account).await.unwrap();
    // The ledger had seen a later version of the account.
    credit(&billing, &account).await.unwrap();
    assert_eq!(billing.verify(&account).await.unwrap().entries, 4);
}

#[tokio::test]
async fn without_an_append_only_file_the_last_snapshot_is_kept() {
    let mut server = Server::with(&[]);
    let billing = open(&server.url(), 0);
    let account = customer(&billing).await;
    let kept = credit(&billing, &account).await.unwrap();
    server.ask(&["SAVE"]);
    let lost = credit(&billing, &account).await.unwrap();
    server.kill();
    server.start_again();
    eventually(async || billing.probe().await).await;
    assert!(has(&billing, &account, &kept).await && !has(&billing, &account, &lost).await);
    billing.verify(&account).await.unwrap();
}

#[tokio::test]
async fn a_process_that_remembers_what_the_store_has_forgotten_overwrites_nobody() {
    let mut server = Server::with(&[]);
    let (one, other) = (open(&server.url(), 0), open(&server.url(), 0));
    let account = customer(&one).await;
    server.ask(&["SAVE"]);
    let lost = credit(&one, &account).await.unwrap();
    server.kill();
    server.start_again();
    // The account is at the version that the first one remembers, by another history.
    let others = eventually(async || credit(&other, &account).await).await;
    let ours = eventually(async || credit(&one, &account).await).await;
    assert!(!has(&one, &account, &lost).await);
    assert!(has(&one, &account, &others).await && has(&one, &account, &ours).await);
    one.verify(&account).await.unwrap();
    assert_eq!(other.account(&account).await.unwrap().unwrap().balance, Micros::new(2));
}

#[tokio::test]
async fn a_failover_loses_what_the_replica_lacked_and_that_was_not_waited_for() {
    let mut master = Server::with(&[]);
    let replica = Server::with(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    let (fast, waiting) = (open(&master.url(), 0), open(&master.url(), 1));
    let account = customer(&fast).await;
    // Once it follows.
    let kept = eventually(async || credit(&waiting, &account).await).await;
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    let lost = credit(&fast, &account).await.unwrap();
    let refused = credit(&waiting, &account).await;
    assert!(
        matches!(refused, Err(Error::Store(StoreError::Unreplicated { had: 0, wanted: 1 }))),
        "{refused:?}"
    );
    master.kill();

    let successor = open(&url(&format!("redis://{}", replica.address())), 0);
    assert!(has(&successor, &account, &kept).await && !has(&successor, &account, &lost).await);
    let before = successor.verify(&account).await.unwrap().entries;
    credit(&successor, &account).await.unwrap();
    assert_eq!(successor.verify(&account).await.unwrap().entries, before + 1);
}

#[tokio::test]
async fn what_was_waited_for_survives_the_failover_to_the_replica() {
    let mut master = Server::with(&[]);
    let replica = Server::with(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    let sentinel = Server::sentinel(&master);
    let sentinel_url = url(&format!("redis+sentinel://{}/main", sentinel.address()));
    let (fast, waiting) = (open(&sentinel_url, 0), open(&sentinel_url, 1));
    eventually(async || fast.probe().await).await;
    let account = customer(&fast).await;
    eventually(async || credit(&waiting, &account).await).await;
    eventually(async || match sentinel.ask(&["SENTINEL", "REPLICAS", "main"]).contains(&replica.address()) {
        true => Ok(()),
        false => Err("it knows no replica"),
    })
    .await;

    let answered = credits_until(&waiting, &account, || master.kill()).await;
    eventually(async || match replica.ask(&["ROLE"]).starts_with("master") {
        true => Ok(()),
        false => Err("it is no master"),
    })
    .await;
    eventually(async || credit(&fast, &account).await).await;
    for command in &answered {
        assert!(has(&fast, &account, command).await);
    }
    fast.verify(&account).await.unwrap();
    // Nobody follows it yet, and that is told.
    let refused = credit(&waiting, &account).await;
    assert!(matches!(refused, Err(Error::Store(StoreError::Unreplicated { .. }))), "{refused:?}");
}

#[tokio::test]
async fn all_who_wait_for_a_replica_that_is_not_there_are_told_together() {
    const COMMANDS: usize = 100;
    let server = Server::start();
    let (billing, account) = (open(&server.url(), 1), AccountId::random());
    let waiting = (0..COMMANDS).map(|_| billing.store().wait_for(&account, Durability::Disk));
    for told in futures_util::future::join_all(waiting).await {
        assert!(matches!(told, Err(StoreError::Unreplicated { had: 0, wanted: 1 })), "{told:?}");
    }
    let asked = server.ask(&["INFO", "commandstats"]);
    let asked = asked.lines().find(|line| line.starts_with("cmdstat_wait:")).unwrap();
    assert!(asked.contains("calls=1,") || asked.contains("calls=2,"), "{asked}");
}

#[tokio::test]
async fn what_was_waited_for_survives_a_failover_within_a_cluster() {
    let mut nodes = Server::cluster_with_replicas();
    let addresses: Vec<_> = nodes.iter().map(Server::address).collect();
    let cluster = url(&format!("redis+cluster://{}", addresses.join(",")));
    let (fast, waiting) = (open(&cluster, 0), open(&cluster, 1));
    eventually(async || fast.probe().await).await;
    let account = customer(&fast).await;
    // Once the replicas follow.
    eventually(async || credit(&waiting, &account).await).await;

    let kept_at = |account: &AccountId| {
        let key = format!("ufb:{{{:02x}}}:kept", partition(account));
        Server::with_key(&nodes, &key)
    };
    let at = kept_at(&account);
    let elsewhere = eventually(async || {
        let other = customer(&fast).await;
        if kept_at(&other) == at { Err("it is on the same server") } else { Ok(other) }
    })
    .await;
    let mut master = nodes.swap_remove(at);
    let answered = credits_until(&waiting, &account, || master.kill()).await;
    eventually(async || credit(&fast, &account).await).await;
    for command in &answered {
        assert!(has(&fast, &account, command).await);
    }
    fast.verify(&account).await.unwrap();
    // Nobody follows the new master, and that is told; of the other servers' accounts it is of no matter.
    let refused = eventually(async || match credit(&waiting, &account).await {
        Err(Error::Store(StoreError::Unreplicated { had, wanted })) => Ok((had, wanted)),
        other => Err(other),
    });
    assert_eq!(refused.await, (0, 1));
    credit(&waiting, &elsewhere).await.unwrap();
}
