use tempfile::TempDir;

use super::*;
use crate::audit::Actor;
use crate::id::CommandId;
use crate::key::Key;
use crate::ledger::{self, Answer, Context, Opening};
use crate::money::Micros;
use crate::plan::Catalogue;

const NOW: Timestamp = Timestamp::from_millis(1_800_007_200_000);

struct Bench {
    folder: TempDir,
    store: Embedded,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("ledger.db")).unwrap();
        Bench { folder, store }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("ledger.db")
    }

    /// Another process that writes.
    fn stranger(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }
}

fn opening() -> Change {
    let catalogue = Catalogue::default();
    let (key, _) = Key::mint("key".to_owned(), NOW);
    let id = "acme".parse().unwrap();
    let opening = Opening { id, email: "a@example.com".to_owned(), prepaid: Some(Micros::ZERO), key };
    let given = Context { plan: catalogue.get("starter").unwrap(), now: NOW };
    ledger::open(opening, &Actor::Operator, given).unwrap()
}

fn credit(account: &Account, command: &CommandId) -> Change {
    let catalogue = Catalogue::default();
    let given = Context { plan: catalogue.get("starter").unwrap(), now: NOW };
    match ledger::credit(account, Micros::new(1), command, &Actor::Operator, given).unwrap() {
        Answer::Change(change) => Arc::unwrap_or_clone(change),
        Answer::Exists => panic!("a credit is a change"),
    }
}

#[tokio::test]
async fn a_commit_on_an_old_version_writes_nothing() {
    let bench = Bench::new();
    let opened = opening();
    let id = opened.account.id.clone();
    assert_eq!(bench.store.commit(0, &opened).await.unwrap(), Committed::Done);
    assert_eq!(bench.store.commit(0, &opened).await.unwrap(), Committed::Conflict);

    let first = credit(&opened.account, &CommandId::random());
    let second = credit(&opened.account, &CommandId::random());
    assert_eq!(bench.store.commit(1, &first).await.unwrap(), Committed::Done);
    assert_eq!(bench.store.commit(1, &second).await.unwrap(), Committed::Conflict);
    assert_eq!(*bench.store.load(&id).await.unwrap().unwrap(), first.account);
    assert_eq!(bench.store.audit(&id, 0, 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_command_s_id_is_taken_once() {
    let bench = Bench::new();
    let opened = opening();
    bench.store.commit(0, &opened).await.unwrap();
    let command = CommandId::random();
    let first = credit(&opened.account, &command);
    bench.store.commit(1, &first).await.unwrap();
    let second = credit(&first.account, &command);
    assert_eq!(bench.store.commit(2, &second).await.unwrap(), Committed::Exists);
    assert_eq!(*bench.store.reload(&opened.account.id).await.unwrap().unwrap(), first.account);
}

#[tokio::test]
async fn another_process_is_noticed() {
    let bench = Bench::new();
    let other = Embedded::open(&bench.path()).unwrap();
    let opened = opening();
    let id = opened.account.id.clone();
    bench.store.commit(0, &opened).await.unwrap();
    assert_eq!(other.commit(0, &opened).await.unwrap(), Committed::Exists);

    let theirs = credit(&other.load(&id).await.unwrap().unwrap(), &CommandId::random());
    assert_eq!(other.commit(1, &theirs).await.unwrap(), Committed::Done);
    assert_eq!(bench.store.load(&id).await.unwrap().unwrap().version, 1, "the cache knows nothing yet");
    let ours = credit(&opened.account, &CommandId::random());
    assert_eq!(bench.store.commit(1, &ours).await.unwrap(), Committed::Conflict);
    assert_eq!(*bench.store.load(&id).await.unwrap().unwrap(), theirs.account);
}

#[tokio::test(start_paused = true)]
async fn a_commit_waits_while_another_process_writes() {
    let bench = Bench::new();
    let stranger = bench.stranger();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    let opened = opening();
    let release = async {
        tokio::time::sleep(BUSY_PAUSE * 5).await;
        stranger.execute_batch("COMMIT").unwrap();
    };
    let (committed, ()) = tokio::join!(bench.store.commit(0, &opened), release);
    assert_eq!(committed.unwrap(), Committed::Done);
}

#[tokio::test(start_paused = true)]
async fn a_commit_waits_only_so_long() {
    let bench = Bench::new();
    let stranger = bench.stranger();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(matches!(bench.store.commit(0, &opening()).await, Err(StoreError::Busy)));
    stranger.execute_batch("COMMIT").unwrap();
    assert!(bench.store.load(&"acme".parse().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_checkpoint_loses_nothing_and_later_commits_sync() {
    let bench = Bench::new();
    let opened = opening();
    bench.store.commit(0, &opened).await.unwrap();
    for mode in ["PASSIVE", "TRUNCATE"] {
        let checkpoint = format!("PRAGMA wal_checkpoint({mode})");
        let busy: i64 = bench.stranger().query_row(&checkpoint, [], |row| row.get(0)).unwrap();
        assert_eq!(busy, 0);
    }
    assert_eq!(fs::metadata(wal_path(&bench.path())).unwrap().len(), 0);
    bench.store.commit(1, &credit(&opened.account, &CommandId::random())).await.unwrap();
    bench.store.synced().await.unwrap();
    assert!(fs::metadata(wal_path(&bench.path())).unwrap().len() > 0);
    assert!(bench.store.verify(&opened.account.id).await.unwrap().unwrap().is_ok());
}

#[tokio::test]
async fn the_sync_s_descriptor_is_the_wal_s_as_long_as_the_store_is_open() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let inode = || fs::metadata(wal_path(&bench.path())).unwrap().ino();
    let before = inode();
    let other = Embedded::open(&bench.path()).unwrap();
    other.commit(0, &opening()).await.unwrap();
    drop(other);
    assert_eq!(inode(), before);
}

#[test]
fn a_store_of_a_later_schema_is_refused() {
    let bench = Bench::new();
    bench.stranger().pragma_update(None, "user_version", 7).unwrap();
    let refused = Embedded::open(&bench.path());
    assert!(matches!(refused, Err(StoreError::Schema { found: 7, known: schema::VERSION })));
    let left: i64 = bench.stranger().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(left, 7);
}

/// What the later versions added is taken away again.
#[tokio::test]
async fn a_store_of_an_earlier_schema_is_brought_up_with_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let earlier = Embedded::open(&path).unwrap();
    let opened = opening();
    earlier.commit(0, &opened).await.unwrap();
    drop(earlier);
    let file = Connection::open(&path).unwrap();
    file.execute_batch(
        "DROP TABLE openings; DROP TABLE sealed_commands; DROP TABLE webhooks; DROP TABLE parcels; DROP TABLE event_groups;
        PRAGMA user_version = 1",
    )
    .unwrap();
    drop(file);

    let store = Embedded::open(&path).unwrap();

    let account = store.load(&opened.account.id).await.unwrap();
    assert_eq!(account.as_deref(), Some(&opened.account));
    assert_eq!(store.sealed_commands(&opened.account.id).await.unwrap(), []);
    Embedded::open(&path).unwrap();
}

#[test]
fn a_folder_that_is_missing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    Embedded::open(&folder.path().join("data/deep/ledger.db")).unwrap();
}

#[test]
fn caches_are_bounded() {
    let cache = DashMap::new();
    for number in 0..25 {
        remember(&cache, 10, number, number);
        assert!(cache.len() <= 10);
        assert!(cache.contains_key(&number));
    }
    remember(&cache, 5, 24, 0);
    assert_eq!(*cache.get(&24).unwrap(), 0);
}

/// A gateway that nobody uses does nothing but beat, for months.
#[tokio::test]
async fn beats_alone_do_not_let_the_wal_grow() {
    const ROUNDS: u64 = 10;
    const BEATS: u64 = 300;
    let bench = Bench::new();
    let gateway = GatewayId::random();
    let size = || fs::metadata(wal_path(&bench.path())).unwrap().len();
    let mut first = None;
    for round in 0..ROUNDS {
        for beat in 0..BEATS {
            let now = Timestamp::from_millis(NOW.as_millis() + round * BEATS + beat);
            bench.store.heartbeat(&gateway, now).await.unwrap();
        }
        first.get_or_insert_with(size);
        // The disk thread comes to the second wish when it is done with all that followed the first, a checkpoint included.
        bench.store.synced().await.unwrap();
        bench.store.synced().await.unwrap();
    }
    assert!(size() < first.unwrap() * ROUNDS / 2, "{} after {:?}", size(), first);
}
