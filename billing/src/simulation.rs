//! Several gateways on one store, with all that can go wrong between them, and the same each time.
//!
//! A run has a seed, from which everything follows: who is there, what clients and operators want, how wrong the clocks
//! are and when they are set, which questions and answers are lost, late or twice, when the store is away, and when processes
//! die. What a gateway owes the ledger is on the disk of its place, and the next one there goes on with it; sessions are given
//! on credit up to a bound; some are held before anybody asks for them; logs are sealed, and events read, told and trimmed, in the midst of it. One thread, a clock that stands still
//! while anything is to be done, and no randomness but the seed's make a run repeat itself to the last step. What is tried
//! is all of [`Billing`](crate::Billing) from the commands down to the [lanes](crate::store); the store is one in memory,
//! which passes the suites of the real ones, and the gateways do what those in `gateway/` do.
//!
//! In the end nothing fails any more and everybody has time to set things right. Then the log must verify and reconcile,
//! and its archives with it; every session must be what its gateway saw: settled once, billed for no minute that had not
//! started, for every one up to the last heartbeat or of which something was kept, and at its price; no hold is left, none is
//! counted that nobody asked for, and nothing owed; and each notice was delivered, or has failed as often as it may.
//!
//! A clock that is set says nothing of how long a session lasted, which its gateway knows by a steady one. Only of a gateway that
//! dies it may make one minute more: one that was set aside, and was about to start.
//!
//! - `UFB_SIM_SEED=7 cargo nextest run -p billing simulation --no-capture` runs one seed, and tells what happens in it.
//! - `UFB_SIM_SEEDS=1000000 cargo test -p billing --lib simulation` runs so many, from another first one each time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use self::book::Book;
use self::chance::Chance;
use self::checks::Fate;
use self::debts::Debts;
use self::gateway::{Gateway, billing_of};
use self::scene::{Credits, Mishap, SECOND, START, Scene, TROUBLE, webhook_of};
use self::world::{Life, World, lock};
use crate::store::memory;
use crate::webhook::{NOTICES, Webhook};

mod chance;
mod scene;
mod world;
mod gateway;
mod spares;
mod debts;
mod consumers;
mod operator;
mod book;
mod checks;

pub(crate) use world::{Kind, Route};

/// Seeds of every run of the tests.
const SEEDS: u64 = 2_000;

/// From the calm on everything is settled after so long: what arrives late does so within 30 s, a dead gateway is noticed
/// after 20 s, a hold that nobody heard of is given up after 30 s, both by looks 5 s apart.
const PEACE: u64 = 110 * SECOND;

/// The processes that stand in one place one after the other.
#[derive(Default)]
struct Slot {
    gateway: Option<Arc<Gateway>>,
    starts: u64,
    /// What is on its disk.
    debts: Arc<Mutex<Debts>>,
}

struct Play {
    world: Arc<World>,
    book: Arc<Mutex<Book>>,
    slots: Mutex<Vec<Slot>>,
    lives: Mutex<Vec<Arc<Life>>>,
    skews: u64,
    credits: Credits,
}

impl Play {
    fn skew(&self) -> i64 {
        let skew = i64::try_from(self.world.chance().among(0..2 * self.skews + 1)).expect("it is small");
        skew - i64::try_from(self.skews).expect("it is small")
    }

    /// A new process in a place, whatever became of the one before.
    fn start(&self, slot: usize) {
        let skew = self.skew();
        let mut slots = lock(&self.slots);
        slots[slot].starts += 1;
        let life = Life::new(&self.world, &format!("g{slot}.{}", slots[slot].starts), skew, true);
        lock(&self.lives).push(Arc::clone(&life));
        let debts = Arc::clone(&slots[slot].debts);
        let gateway = Gateway::start(&self.world, &self.book, &debts, self.credits, life);
        slots[slot].gateway = Some(gateway);
    }

    fn at(&self, slot: usize) -> Option<Arc<Gateway>> {
        lock(&self.slots)[slot].gateway.clone().filter(|gateway| gateway.life.died_at().is_none())
    }

    /// Starts what has died anew, each after a while.
    async fn look_after(self: Arc<Self>, slot: usize) {
        loop {
            if self.at(slot).is_none() {
                let pause = self.world.chance().among(0..30 * SECOND);
                sleep(Duration::from_millis(pause)).await;
                self.start(slot);
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn befall(&self, mishap: Mishap) {
        match mishap {
            Mishap::Kill(slot) => {
                if let Some(gateway) = self.at(slot) {
                    gateway.life.kill();
                }
            }
            Mishap::CutOff(slot, lasts) => {
                if let Some(gateway) = self.at(slot) {
                    gateway.life.cut_off(Duration::from_millis(lasts));
                }
            }
            Mishap::Jump(slot, by) => {
                if let Some(gateway) = self.at(slot) {
                    gateway.life.jump(by);
                }
            }
            Mishap::Away(lasts) => self.world.take_store_away(Duration::from_millis(lasts)),
        }
    }
}

/// The faults of a run, and what happened in it where that is to be told.
async fn run(seed: u64, is_traced: bool) -> (Vec<String>, Vec<String>) {
    let mut chance = Chance::of(seed);
    let Scene { weather, slots, skews, credits, accounts, wishes, errands, mishaps, crashes } =
        Scene::of(&mut chance);
    let world = World::new((chance, weather), crashes, START, is_traced);
    world
        .note("world", || format!("{weather:?}, {slots} gateways, clocks up to {skews} ms off, {credits:?}"));
    for opened in &accounts {
        let (account, mut server) = (&opened.change.account, memory::lock(&world.server));
        server.open(opened.change.clone());
        if credits.events {
            let hook = Webhook::for_tests(webhook_of(&account.id), &NOTICES);
            server.put_webhook(&account.id, &hook);
        }
    }
    let book: Arc<Mutex<Book>> = Arc::default();
    let play = Arc::new(Play {
        world: Arc::clone(&world),
        book: Arc::clone(&book),
        slots: Mutex::new((0..slots).map(|_| Slot::default()).collect()),
        lives: Mutex::default(),
        skews,
        credits,
    });
    for slot in 0..slots {
        play.start(slot);
        world.spawn(Arc::clone(&play).look_after(slot));
    }
    operator::send(&world, &book, &errands, [play.skew(), play.skew()]);
    for wish in wishes {
        let play = Arc::clone(&play);
        world.clone().spawn(async move {
            sleep(Duration::from_millis(wish.at)).await;
            if let Some(gateway) = play.at(wish.slot) {
                gateway.serve(wish);
            }
        });
    }
    for (at, mishap) in mishaps {
        let play = Arc::clone(&play);
        world.clone().spawn(async move {
            sleep(Duration::from_millis(at)).await;
            play.befall(mishap);
        });
    }

    let ids: Vec<_> = accounts.iter().map(|opened| opened.change.account.id.clone()).collect();
    world.spawn(checks::watch(Arc::clone(&world), ids));
    sleep(Duration::from_millis(TROUBLE)).await;
    world.calm_down();
    for _ in 0..PEACE / SECOND {
        // Some begin only now.
        (0..slots).filter_map(|slot| play.at(slot)).for_each(|gateway| gateway.drain());
        sleep(Duration::from_secs(1)).await;
    }
    judge(&play, &accounts).await;
    world.end().await
}

async fn judge(play: &Play, accounts: &[scene::Opened]) {
    let fates: BTreeMap<_, _> = lock(&play.lives)
        .iter()
        .map(|life| (life.id.clone(), Fate { skews: life.skews(), died: life.died_at() }))
        .collect();
    let judge = Life::new(&play.world, "judge", 0, false);
    let billing = billing_of(&play.world, &judge);
    let book = std::mem::take(&mut *lock(&play.book));
    let mut faults = checks::faults((&billing, &play.world), &book, &fates, accounts).await;
    if play.credits.events {
        checks::check_notices(&billing, &play.world, &book, &mut faults).await;
    }
    for slot in lock(&play.slots).iter() {
        let owed = lock(&slot.debts).all();
        faults.extend(owed.iter().map(|debt| format!("is owed still: {debt:?}")));
    }
    faults.into_iter().for_each(|fault| play.world.find_fault(fault));
    if !book.errands.is_empty() {
        play.world.find_fault("an operator has not come to an end".to_owned());
    }
}

fn run_alone(seed: u64, is_traced: bool) -> (Vec<String>, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime can be made").block_on(run(seed, is_traced))
}

#[expect(clippy::disallowed_methods, reason = "these are no settings of the program")]
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().expect("it is a number"))
}

/// The first seed whose run is faulty, of those from `first` on.
fn search(first: u64, seeds: u64) -> Option<u64> {
    let (next, faulty) = (AtomicU64::new(first), AtomicU64::new(u64::MAX));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || faulty.load(Ordering::Relaxed) < seed {
                        return;
                    }
                    if !run_alone(seed, false).0.is_empty() {
                        faulty.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Some(faulty.into_inner()).filter(|seed| *seed < u64::MAX)
}

#[test]
fn nothing_is_lost_or_billed_twice_whatever_fails() {
    if let Some(seed) = given("UFB_SIM_SEED") {
        let (faults, trace) = run_alone(seed, true);
        println!("{}", trace.join("\n"));
        assert!(faults.is_empty(), "{faults:#?}");
        return;
    }
    let (first, seeds) = match given("UFB_SIM_SEEDS") {
        Some(seeds) => (SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() << 20, seeds),
        None => (0, SEEDS),
    };
    if let Some(seed) = search(first, seeds) {
        let faults = run_alone(seed, false).0;
        panic!(
            "seed {seed} fails; to see what happens in it:\n\
             UFB_SIM_SEED={seed} cargo nextest run -p billing simulation --no-capture\n{faults:#?}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    for seed in 0..20 {
        let (one, other) = (run_alone(seed, true).1, run_alone(seed, true).1);
        for (step, (one, other)) in one.iter().zip(&other).enumerate() {
            assert_eq!(one, other, "seed {seed}, step {step}");
        }
        assert_eq!(one.len(), other.len(), "seed {seed}");
    }
}
