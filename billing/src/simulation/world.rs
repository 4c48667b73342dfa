//! What stands between processes and the store, and may fail: the network, the clocks, the processes themselves.
//!
//! A process is killed between any two of its steps, and at chosen commits: before it was sent, when it has been carried
//! out and not answered, and when the answer is there. What a process had sent goes on to the store without it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep, timeout};

use super::chance::Chance;
use super::scene::Weather;
use crate::id::GatewayId;
use crate::store::LinkError;
use crate::store::memory::Memory;
use crate::time::Timestamp;

/// How long a process waits for an answer: as `connection.rs` does.
const ANSWER: u64 = 1_000;

/// What is asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Commit,
}

/// When a process dies over its own commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    BeforeItIsSent,
    BeforeItIsAnswered,
    OnceItIsAnswered,
}

/// What becomes of one question; times in milliseconds.
#[derive(Debug)]
enum Fate {
    /// It is told so after this time, and nothing was sent.
    TurnedAway(u64),
    Sent {
        /// When it is at the store: never, once or twice.
        arrivals: [Option<u64>; 2],
        /// From its first arrival to the answer's.
        answer: Option<u64>,
        /// When the process stops waiting for that.
        patience: u64,
    },
}

pub(crate) struct World {
    pub(crate) server: Arc<Mutex<Memory>>,
    origin: (Instant, Timestamp),
    chance: Mutex<Chance>,
    weather: Weather,
    is_calm: AtomicBool,
    /// Crashes by the number of the commit, counted over all who are mortal.
    crashes: BTreeMap<u64, Crash>,
    commits: AtomicU64,
    /// Nobody reaches the store before.
    away_until: Mutex<Option<Instant>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// What happened, where it is to be told.
    trace: Option<Mutex<VecDeque<String>>>,
    faults: Mutex<Vec<String>>,
    /// Where logs are sealed into.
    archives: OnceLock<TempDir>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(super) fn new(
        (chance, weather): (Chance, Weather),
        crashes: BTreeMap<u64, Crash>,
        start: Timestamp,
        is_traced: bool,
    ) -> Arc<World> {
        Arc::new(World {
            server: Arc::default(),
            origin: (Instant::now(), start),
            chance: Mutex::new(chance),
            weather,
            is_calm: AtomicBool::new(false),
            crashes,
            commits: AtomicU64::new(0),
            away_until: Mutex::default(),
            tasks: Mutex::default(),
            trace: is_traced.then(Mutex::default),
            faults: Mutex::default(),
            archives: OnceLock::new(),
        })
    }

    pub(super) fn chance(&self) -> MutexGuard<'_, Chance> {
        lock(&self.chance)
    }

    /// How long somebody waits for a command, who otherwise gives the same once more.
    pub(super) fn patience(&self) -> Duration {
        let mut chance = self.chance();
        let is_short = chance.permille(100);
        Duration::from_millis(if is_short { chance.among(0..2_000) } else { 60_000 })
    }

    /// The time that no clock here need show.
    pub(super) fn now(&self) -> Timestamp {
        let (instant, start) = self.origin;
        let elapsed = u64::try_from(instant.elapsed().as_millis()).expect("a run is short");
        Timestamp::from_millis(start.as_millis() + elapsed)
    }

    pub(super) fn archives(&self) -> &Path {
        self.archives.get_or_init(|| tempfile::tempdir().expect("there is room")).path()
    }

    pub(super) fn archived(&self) -> Vec<PathBuf> {
        let Some(folder) = self.archives.get() else { return Vec::new() };
        let files = std::fs::read_dir(folder.path()).expect("it is there");
        let mut files: Vec<_> = files.map(|file| file.expect("it can be read").path()).collect();
        // A seal that was given up half-way leaves a file of another name.
        files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
        files.sort_unstable();
        files
    }

    /// From here on nothing fails.
    pub(super) fn calm_down(&self) {
        self.is_calm.store(true, Ordering::Relaxed);
        *lock(&self.away_until) = None;
        self.note("world", || "nothing fails from here on".to_owned());
    }

    pub(super) fn take_store_away(&self, lasts: Duration) {
        self.note("world", || format!("the store is away for {lasts:?}"));
        *lock(&self.away_until) = Some(Instant::now() + lasts);
    }

    pub(super) fn note(&self, who: &str, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let elapsed = self.origin.0.elapsed().as_millis();
            lock(trace).push_back(format!("{elapsed:>7} {who:<5} {}", what()));
        }
    }

    pub(super) fn find_fault(&self, fault: String) {
        self.note("world", || format!("FAULT {fault}"));
        lock(&self.faults).push(fault);
    }

    /// Ends all that still runs, and gives the faults that were found and the trace.
    pub(super) async fn end(&self) -> (Vec<String>, Vec<String>) {
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        for task in tasks {
            task.abort();
            if task.await.is_err_and(|error| error.is_panic()) {
                self.find_fault("a task panicked".to_owned());
            }
        }
        let trace = self.trace.as_ref().map(|trace| std::mem::take(&mut *lock(trace)));
        (std::mem::take(&mut *lock(&self.faults)), trace.unwrap_or_default().into())
    }

    /// A task of nobody's process.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let task = tokio::spawn(task);
        let handle = task.abort_handle();
        lock(&self.tasks).push(task);
        handle
    }

    fn fate(&self, kind: Kind, is_cut_off: bool) -> Fate {
        let mut chance = lock(&self.chance);
        let [there, back] = [chance.among(1..8), chance.among(1..8)];
        if self.is_calm.load(Ordering::Relaxed) {
            return Fate::Sent { arrivals: [Some(there), None], answer: Some(back), patience: ANSWER };
        }
        if is_cut_off || lock(&self.away_until).is_some_and(|until| Instant::now() < until) {
            return match chance.permille(800) {
                true => Fate::TurnedAway(there),
                false => Fate::Sent { arrivals: [None; 2], answer: None, patience: ANSWER },
            };
        }
        let Weather { turned_away, lost, unanswered, late, twice, slow } = self.weather;
        let (there, back) = match chance.permille(slow) {
            true => (chance.among(1..600), chance.among(1..300)),
            false => (there, back),
        };
        // A connection that breaks is noticed at once, or by the silence.
        let broken = if chance.permille(500) { chance.among(1..100) } else { ANSWER };
        let latest = if chance.permille(100) { 30_000 } else { 4_000 };
        let later = chance.among(100..latest);
        let once = [Some(there), None];
        if chance.permille(turned_away) {
            return Fate::TurnedAway(there);
        }
        if chance.permille(lost) {
            return Fate::Sent { arrivals: [None; 2], answer: None, patience: broken };
        }
        if chance.permille(unanswered) {
            return Fate::Sent { arrivals: once, answer: None, patience: there + broken };
        }
        if kind != Kind::Read && chance.permille(late) {
            return Fate::Sent { arrivals: [Some(later), None], answer: None, patience: broken };
        }
        if kind != Kind::Read && chance.permille(twice) {
            return Fate::Sent {
                arrivals: [Some(there), Some(there + later)],
                answer: Some(back),
                patience: ANSWER,
            };
        }
        Fate::Sent { arrivals: once, answer: Some(back), patience: ANSWER }
    }
}

/// A process, from its start to its end.
pub(crate) struct Life {
    pub(super) id: GatewayId,
    world: Arc<World>,
    /// From when on, by the true time, its clock has shown so many milliseconds more than that.
    skews: Mutex<Vec<(Timestamp, i64)>>,
    is_serving: AtomicBool,
    /// Whether it may die over its own commits.
    is_mortal: bool,
    /// When it died, by the true time.
    died: OnceLock<Timestamp>,
    cut_off_until: Mutex<Option<Instant>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Life({})", self.id)
    }
}

impl Life {
    pub(super) fn new(world: &Arc<World>, id: &str, skew: i64, is_mortal: bool) -> Arc<Life> {
        world.note(id, || format!("starts, with a clock that is {skew} ms off"));
        Arc::new(Life {
            id: id.parse().expect("it is an id"),
            world: Arc::clone(world),
            skews: Mutex::new(vec![(world.now(), skew)]),
            is_serving: AtomicBool::new(false),
            is_mortal,
            died: OnceLock::new(),
            cut_off_until: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// What its clock shows.
    pub(super) fn now(&self) -> Timestamp {
        let now = self.world.now().as_millis();
        let skew = lock(&self.skews).last().map_or(0, |(_, skew)| *skew);
        Timestamp::from_millis(now.saturating_add_signed(skew))
    }

    /// Somebody sets its clock.
    pub(super) fn jump(&self, by: i64) {
        self.note(|| format!("its clock jumps by {by} ms"));
        let mut skews = lock(&self.skews);
        let skew = skews.last().map_or(0, |(_, skew)| *skew);
        skews.push((self.world.now(), skew + by));
    }

    pub(super) fn skews(&self) -> Vec<(Timestamp, i64)> {
        lock(&self.skews).clone()
    }

    /// From here on clients come to it.
    pub(super) fn serve(&self) {
        self.is_serving.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_serving(&self) -> bool {
        self.is_serving.load(Ordering::Relaxed)
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        self.world.note(self.id.as_str(), what);
    }

    pub(super) fn died_at(&self) -> Option<Timestamp> {
        self.died.get().copied()
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if self.died_at().is_none() {
            let handle = self.world.spawn(task);
            lock(&self.tasks).push(handle);
        }
    }

    /// All of it stops where it stands.
    pub(super) fn kill(&self) {
        if self.died.set(self.world.now()).is_ok() {
            self.note(|| "is killed".to_owned());
            lock(&self.tasks).drain(..).for_each(|task| task.abort());
        }
    }

    pub(super) fn cut_off(&self, lasts: Duration) {
        self.note(|| format!("is cut off for {lasts:?}"));
        *lock(&self.cut_off_until) = Some(Instant::now() + lasts);
    }

    fn is_cut_off(&self) -> bool {
        lock(&self.cut_off_until).is_some_and(|until| Instant::now() < until)
    }
}

/// A process's way to the store.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    life: Arc<Life>,
}

impl Route {
    pub(super) fn of(life: &Arc<Life>) -> Route {
        Route { life: Arc::clone(life) }
    }

    /// Takes a question there, and the answer back; `answer` is what the store does.
    pub(crate) async fn carry<T: Debug + Send + 'static>(
        &self,
        kind: Kind,
        answer: impl Fn() -> T + Send + Sync + 'static,
    ) -> Result<T, LinkError> {
        let Life { world, .. } = &*self.life;
        if self.life.died_at().is_some() {
            return pending().await;
        }
        let crash = match kind {
            Kind::Commit if self.life.is_mortal && !world.is_calm.load(Ordering::Relaxed) => {
                world.crashes.get(&world.commits.fetch_add(1, Ordering::Relaxed)).copied()
            }
            Kind::Commit | Kind::Read | Kind::Write => None,
        };
        if crash == Some(Crash::BeforeItIsSent) {
            self.life.kill();
            return pending().await;
        }
        let fate = world.fate(kind, self.life.is_cut_off());
        if kind != Kind::Read {
            self.life.note(|| format!("{kind:?} {fate:?} {crash:?}"));
        }
        let (arrivals, back, patience) = match fate {
            Fate::TurnedAway(after) => {
                sleep(Duration::from_millis(after)).await;
                return Err(LinkError::Away(Arc::new(NotThere)));
            }
            Fate::Sent { arrivals, answer, patience } => (arrivals, answer, patience),
        };
        if kind == Kind::Read {
            return look(arrivals[0].zip(back), patience, answer).await;
        }
        let arrived = self.send(kind, (arrivals, back), crash, answer);
        let answered = timeout(Duration::from_millis(patience), arrived).await;
        match answered {
            Ok(Ok(answer)) => {
                if crash == Some(Crash::OnceItIsAnswered) {
                    self.life.kill();
                    return pending().await;
                }
                Ok(answer)
            }
            Ok(Err(_)) | Err(_) => Err(LinkError::Unanswered(Arc::new(NoAnswer))),
        }
    }

    /// What is sent arrives, whether or not its process lives.
    fn send<T: Debug + Send + 'static>(
        &self,
        kind: Kind,
        (arrivals, back): ([Option<u64>; 2], Option<u64>),
        crash: Option<Crash>,
        answer: impl Fn() -> T + Send + Sync + 'static,
    ) -> impl Future<Output = Result<T, oneshot::error::RecvError>> + Send {
        let (teller, told) = oneshot::channel();
        let life = Arc::clone(&self.life);
        let carried = async move {
            let mut teller = Some(teller);
            let mut passed = 0;
            for at in arrivals.into_iter().flatten() {
                sleep(Duration::from_millis(at.saturating_sub(passed))).await;
                passed = at;
                let answer = answer();
                if kind == Kind::Commit {
                    life.note(|| format!("is answered {}", first_of(&answer)));
                }
                if crash == Some(Crash::BeforeItIsAnswered) {
                    life.kill();
                }
                match (back, teller.take()) {
                    (Some(back), Some(teller)) => {
                        sleep(Duration::from_millis(back)).await;
                        passed += back;
                        // Nobody waits for it any more.
                        let _ = teller.send(answer);
                    }
                    // Nobody hears of it, and nobody is told that it is so.
                    (None, Some(silent)) => teller = Some(silent),
                    (_, None) => {}
                }
            }
            if teller.is_some() {
                pending::<()>().await;
            }
        };
        self.life.world.spawn(carried);
        told
    }
}

/// A question that changes nothing is forgotten with its process.
async fn look<T>(
    times: Option<(u64, u64)>,
    patience: u64,
    answer: impl Fn() -> T + Send + Sync,
) -> Result<T, LinkError> {
    let Some((there, back)) = times else {
        sleep(Duration::from_millis(patience)).await;
        return Err(LinkError::Unanswered(Arc::new(NoAnswer)));
    };
    sleep(Duration::from_millis(there)).await;
    let answer = answer();
    sleep(Duration::from_millis(back)).await;
    Ok(answer)
}

/// Without what no two runs have in common: the names of batches.
fn first_of(answer: &impl Debug) -> String {
    format!("{answer:?}").chars().take(80).collect()
}

#[derive(Debug, thiserror::Error)]
#[error("the store is not there")]
struct NotThere;

#[derive(Debug, thiserror::Error)]
#[error("no answer came")]
struct NoAnswer;
