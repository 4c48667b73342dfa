//! A gateway as the ledger sees one: what `gateway/` does with [`Billing`], without its sockets and browsers. It notes
//! what it sees in the [`Book`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::book::{Book, Hold, Seen};
use super::scene::{REFUNDS_PER_DAY, SESSION_MINUTES, Wish, catalogue};
use super::world::{Life, Route, World, lock};
use crate::books::{Billing, Error, ExtendError, HoldError, Limits};
use crate::id::{AccountId, HoldId, HoldIds, SessionId};
use crate::ledger::{Progress, Refused};
use crate::request::{NewSession, SessionRequest};
use crate::session::{End, Outcome, Session, SessionName};
use crate::store::StoreError;
use crate::store::memory::Line;
use crate::sweep::Sweeper;
use crate::time::Timestamp;

const HEARTBEAT: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);
/// How long before a minute starts it is set aside.
const AHEAD: Duration = Duration::from_secs(5);
/// Dates that are so close to each other are one commit.
const TOGETHER: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(500);
/// How soon a session that has no task is settled.
const ADMISSION: Duration = Duration::from_secs(30);
/// From one attempt to settle to the next; then the last one, as long as the gateway lives.
const RETRIES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

type Name = (AccountId, SessionId, HoldId);

pub(super) struct Gateway {
    pub(super) life: Arc<Life>,
    world: Arc<World>,
    billing: Billing,
    book: Arc<Mutex<Book>>,
    running: Mutex<BTreeMap<Name, Running>>,
}

/// A session whose client has its browser.
struct Running {
    seen: usize,
    begun: Instant,
    begun_at: Timestamp,
    /// The minute that is to be set aside next, counted from 1, and when that is due. `None`: somebody is at it.
    minute: u32,
    due: Option<Instant>,
    told: Arc<Notify>,
}

impl Running {
    fn starts(&self) -> Instant {
        self.begun + MINUTE * (self.minute - 1)
    }
}

/// A process's own way to the ledger.
pub(super) fn billing_of(world: &World, life: &Arc<Life>) -> Billing {
    let line = Line::along(Route::of(life), &world.server);
    // The same in each run of a seed, and of no other process.
    let holds = HoldIds::from(world.chance().among(0..u64::MAX));
    Billing::over(line, catalogue(), Limits { refunds_per_day: REFUNDS_PER_DAY }, holds)
}

impl Gateway {
    pub(super) fn start(world: &Arc<World>, book: &Arc<Mutex<Book>>, life: Arc<Life>) -> Arc<Gateway> {
        let billing = billing_of(world, &life);
        let (world, book, running) = (Arc::clone(world), Arc::clone(book), Mutex::default());
        let gateway = Arc::new(Gateway { life, world, billing, book, running });
        gateway.life.spawn(Arc::clone(&gateway).beat());
        gateway.life.spawn(Arc::clone(&gateway).meter());
        gateway
    }

    pub(super) fn serve(self: &Arc<Self>, wish: Wish) {
        self.life.spawn(Arc::clone(self).run(wish));
    }

    /// Tells all sessions to end.
    pub(super) fn drain(&self) {
        lock(&self.running).values().for_each(|running| running.told.notify_one());
    }

    fn now(&self) -> Timestamp {
        self.life.now()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    fn see(&self, seen: usize, what: impl FnOnce(&mut Seen)) {
        what(&mut self.book().seen[seen]);
    }

    async fn run(self: Arc<Self>, wish: Wish) {
        let is_it = |(account, session, _): &Name| (account, session) == (&wish.who.account, &wish.session);
        if lock(&self.running).keys().any(is_it) {
            return;
        }
        let seen = self.book().ask(&wish.who.account, &wish.session, &self.life.id);
        let Some(held) = self.hold(seen, &wish).await else { return };
        let claim = wish.claim.unwrap_or(2_000);
        sleep(Duration::from_millis(claim)).await;
        if wish.claim.is_none() {
            self.void(seen, &held).await;
            return;
        }
        let (begun, begun_at) = (Instant::now(), self.now());
        self.see(seen, |seen| (seen.begun_at, seen.paid) = (Some(begun_at), SESSION_MINUTES));
        let told = Arc::new(Notify::new());
        let (minute, due) = (2, Some(begun + MINUTE - AHEAD));
        let name = (held.account.clone(), held.id.clone(), held.hold);
        let running = Running { seen, begun, begun_at, minute, due, told: Arc::clone(&told) };
        lock(&self.running).insert(name.clone(), running);
        self.life.spawn(Arc::clone(&self).note_beginning(seen, held.clone(), begun_at));

        let _ = timeout(Duration::from_millis(wish.lasts), told.notified()).await;
        let ended_at = self.now();
        let is_lost = matches!(wish.outcome, Outcome::Lost { .. });
        self.see(seen, |seen| (seen.ended_at, seen.is_lost) = (Some(ended_at), is_lost));
        self.life.note(|| format!("{} {} has ended", held.account, held.id));
        self.post(seen, held.name(), begun_at, (ended_at, wish.outcome)).await;
        lock(&self.running).remove(&name);
    }

    async fn hold(&self, seen: usize, wish: &Wish) -> Option<Session> {
        let new = NewSession::named(wish.session.clone(), SessionRequest::default());
        let holding = self.billing.hold(&wish.who, new, &self.life.id, self.now());
        let held = match wish.leaves {
            // Its client leaves, and nobody is there to be answered.
            Some(leaves) => timeout(Duration::from_millis(leaves), holding).await.ok()?,
            None => holding.await,
        };
        let (hold, session) = match held {
            Ok(held) => (Hold::Held(held.session.hold), Some(held.session)),
            Err(HoldError::Refused(_) | HoldError::Store(StoreError::Away(_) | StoreError::Busy)) => {
                (Hold::Nothing, None)
            }
            Err(HoldError::Exists(_) | HoldError::ExistsDifferent(_) | HoldError::Store(_)) => {
                (Hold::Unknown, None)
            }
        };
        self.life.note(|| format!("{} {}: {hold:?}", wish.who.account, wish.session));
        self.see(seen, |seen| seen.hold = hold);
        session
    }

    /// A failure is no harm: it is noted again with the next minute, and with the end.
    async fn note_beginning(self: Arc<Self>, seen: usize, held: Session, at: Timestamp) {
        if self.billing.begin(held.name(), at, self.now()).await.is_ok() {
            self.see(seen, |seen| seen.is_noted = true);
        }
    }

    async fn void(&self, seen: usize, held: &Session) {
        let voided = self.persist(|| self.billing.void(held.name(), "no browser", self.now())).await;
        if let Ok(voided) = voided
            && voided.hold == held.hold
        {
            self.see(seen, |seen| seen.settled = Some(voided));
        }
    }

    async fn post(
        &self,
        seen: usize,
        name: SessionName<'_>,
        begun_at: Timestamp,
        (at, outcome): (Timestamp, Outcome),
    ) {
        let end = End { at, outcome, up_bytes: 1, down_bytes: 2 };
        let post = || {
            let end = end.clone();
            async move {
                let posted = self.billing.post_begun(name, begun_at, end, self.now()).await?;
                self.see(seen, |seen| seen.is_noted = true);
                Ok(posted)
            }
        };
        match self.persist(post).await {
            Ok(posted) => self.see(seen, |seen| seen.settled = Some(posted)),
            // Somebody took this gateway for dead, and has settled it.
            Err(Error::Refused(Refused::ExistsDifferent | Refused::State(_) | Refused::HeldAnew)) => {
                self.life.note(|| format!("{} was settled by another", name.session));
            }
            Err(error) => self.world.find_fault(format!("{name:?} cannot be settled: {error}")),
        }
    }

    /// Until it is done. Now and then nobody waits for the answer, and the same is done once more.
    async fn persist<F: Future<Output = Result<Session, Error>> + Send>(
        &self,
        command: impl Fn() -> F + Send,
    ) -> Result<Session, Error> {
        let mut pauses = RETRIES.into_iter();
        loop {
            match timeout(self.world.patience(), command()).await {
                Ok(Err(Error::Store(_))) | Err(_) => {}
                Ok(done) => return done,
            }
            sleep(pauses.next().unwrap_or(RETRIES[3])).await;
        }
    }

    /// What is done every so often.
    async fn beat(self: Arc<Self>) {
        let mut sweeper = Sweeper::new(self.life.id.clone());
        loop {
            let said = self.now();
            if self.billing.heartbeat(&self.life.id, said).await.is_ok() {
                let now = self.world.now();
                self.book().beats.entry(self.life.id.clone()).or_default().push((now, said));
            }
            // The store's failures show again the next time.
            let _ = self.repair().await;
            if let Ok(settled) = sweeper.look(&self.billing, self.now()).await
                && !settled.is_empty()
            {
                self.life.note(|| format!("has settled {} of a dead gateway", settled.len()));
            }
            sleep(HEARTBEAT).await;
        }
    }

    /// Settles what this gateway has open in the ledger and nowhere else.
    async fn repair(&self) -> Result<(), Error> {
        let now = self.now();
        for session in self.billing.open_sessions_of(&self.life.id).await? {
            let name = (session.account.clone(), session.id.clone(), session.hold);
            if now.since(session.held_at) <= ADMISSION || lock(&self.running).contains_key(&name) {
                continue;
            }
            let repaired = match session.begun_at {
                None => self.billing.void(session.name(), "gateway fault", now).await,
                Some(at) => {
                    let outcome = Outcome::Completed { cause: "gateway fault" };
                    let end = End { at, outcome, up_bytes: 0, down_bytes: 0 };
                    self.billing.post(session.name(), end, now).await
                }
            };
            match repaired {
                Ok(repaired) if repaired.begun_at.is_some() => {
                    self.world.find_fault(format!("{name:?} had begun, and nobody knew of it"));
                }
                // Or its own task has settled it between the two looks.
                Ok(_) | Err(Error::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sets minutes aside shortly before they start; those of an account that come together in one commit.
    async fn meter(self: Arc<Self>) {
        loop {
            sleep(RETRY).await;
            let mut due: BTreeMap<AccountId, Vec<Name>> = BTreeMap::new();
            let until = Instant::now() + TOGETHER;
            for (name, running) in lock(&self.running).iter_mut() {
                if running.due.is_some_and(|due| due <= until) {
                    running.due = None;
                    due.entry(name.0.clone()).or_default().push(name.clone());
                }
            }
            for (account, names) in due {
                self.life.spawn(Arc::clone(&self).meet(account, names));
            }
        }
    }

    async fn meet(self: Arc<Self>, account: AccountId, mut names: Vec<Name>) {
        let met = Instant::now();
        let progress = {
            let running = lock(&self.running);
            names.retain(|name| running.contains_key(name));
            let progress = |name: &Name| {
                let Running { seen, minute, begun_at, .. } = running[name];
                let minutes = minute.max(SESSION_MINUTES);
                self.see(seen, |seen| seen.asked = seen.asked.max(minutes));
                let bytes = u64::from(minute);
                let session = name.1.clone();
                Progress {
                    session,
                    hold: name.2,
                    begun_at,
                    minutes,
                    owed: 0,
                    up_bytes: bytes,
                    down_bytes: bytes,
                }
            };
            names.iter().map(progress).collect::<Vec<_>>()
        };
        let starts = names.iter().map(|name| lock(&self.running)[name].starts()).min();
        let Some(starts) = starts else { return };
        let deadline = if starts <= met { met + RETRY } else { starts };
        let metered = timeout_at(deadline, self.billing.meter(&account, &progress, self.now())).await;
        let verdicts = metered
            .unwrap_or(Err(StoreError::Busy))
            .unwrap_or_else(|_| progress.iter().map(|_| Err(ExtendError::Store(StoreError::Busy))).collect());
        for ((name, progress), verdict) in names.iter().zip(progress).zip(verdicts) {
            self.go_on(name, &progress, met, verdict);
        }
    }

    /// What a session's date came to: its next one, or its end.
    fn go_on(&self, name: &Name, progress: &Progress, met: Instant, verdict: Result<(), ExtendError>) {
        let mut running = lock(&self.running);
        // It ended meanwhile, or the same id runs anew.
        let Some(run) = running.get_mut(name).filter(|run| run.begun_at == progress.begun_at) else { return };
        let is_last = met >= run.starts();
        let next = match verdict {
            Ok(()) => {
                self.see(run.seen, |seen| {
                    (seen.paid, seen.is_noted) = (seen.paid.max(progress.minutes), true);
                });
                true
            }
            Err(ExtendError::Store(_)) if is_last => run.minute <= SESSION_MINUTES,
            Err(ExtendError::Refused(_) | ExtendError::Store(_)) if !is_last => {
                run.due = Some(run.starts().min(Instant::now() + RETRY));
                return;
            }
            Err(_) => false,
        };
        if next {
            run.minute += 1;
            run.due = Some(run.starts() - AHEAD);
        } else {
            self.life.note(|| format!("{name:?} must end: {verdict:?}"));
            run.told.notify_one();
        }
    }
}
