//! A gateway as the ledger sees one: what `gateway/` does with [`Billing`], without its sockets and browsers. It notes
//! what it sees in the [`Book`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::book::{Book, Hold, Seen};
use super::debts::{Debts, Name, name_of};
use super::scene::{Credits, MINUTE_PRICE, REFUNDS_PER_DAY, SESSION_MINUTES, SESSION_PRICE, Wish, catalogue};
use super::spares::Spare;
use super::world::{Life, Route, World, lock};
use crate::books::{Billing, Credit, Debt, Error, ExtendError, HoldError, Limits, Reserved};
use crate::id::{AccountId, HoldId, HoldIds};
use crate::ledger::{Progress, Refused};
use crate::money::Micros;
use crate::plan::Terms;
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
/// Who would find a browser so soon finds one that is warm, where the gateway goes on ahead of the hold's commit.
const WARM: u64 = 1_500;
/// How soon a session that has no task is settled.
const ADMISSION: Duration = Duration::from_secs(30);
/// How often the store is asked for a sign of life: one that answers, and one that is away.
const LOOK: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// From one attempt to void to the next; then the last one, as long as the gateway lives.
const RETRIES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

pub(super) struct Gateway {
    pub(super) life: Arc<Life>,
    pub(super) world: Arc<World>,
    pub(super) billing: Billing,
    pub(super) book: Arc<Mutex<Book>>,
    running: Mutex<BTreeMap<Name, Running>>,
    debts: Arc<Mutex<Debts>>,
    /// Since when the store has not answered.
    away: Mutex<Option<Instant>>,
    credits: Credits,
    /// Accounts that have had a session held here, and on which terms.
    known: Mutex<BTreeMap<AccountId, Terms>>,
    /// What the ledger has open and nobody here knows, since when.
    strays: Mutex<BTreeMap<HoldId, Instant>>,
    /// What is held ahead of whoever asks, the oldest first.
    pub(super) spares: Mutex<Vec<Spare>>,
}

/// A session whose client has its browser.
#[derive(Clone)]
struct Running {
    seen: usize,
    /// As it was held.
    held: Session,
    credit: Option<Credit>,
    begun: Instant,
    begun_at: Timestamp,
    /// The minute that is to be set aside next, counted from 1, and when that is due. `None`: somebody is at it.
    minute: u32,
    due: Option<Instant>,
    /// The last minute that the ledger was asked for.
    secured: u32,
    /// Minutes that have started while the store was away.
    owed: u32,
    is_ending: bool,
    told: Arc<Notify>,
}

impl Running {
    fn starts(&self) -> Instant {
        self.begun + MINUTE * (self.minute - 1)
    }

    /// What the ledger has to be told at this moment, while it runs and so many minutes have started.
    fn debt(&self, minutes: u32) -> Debt {
        let least = u64::from(minutes).checked_sub(1).map_or(0, |before| before * 60_000 + 1);
        let at = self.at_least(least);
        let Session { account, id, hold, .. } = &self.held;
        Debt {
            account: account.clone(),
            session: id.clone(),
            hold: *hold,
            begun_at: self.begun_at,
            minutes,
            at,
            up_bytes: 1,
            down_bytes: 2,
            end: None,
            credit: self.credit.clone(),
        }
    }

    /// This moment, by the clock as it was when it began.
    fn at_least(&self, millis: u64) -> Timestamp {
        let lasted = u64::try_from(self.begun.elapsed().as_millis()).expect("a run is short");
        Timestamp::from_millis(self.begun_at.as_millis() + lasted.max(millis))
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
    pub(super) fn start(
        world: &Arc<World>,
        book: &Arc<Mutex<Book>>,
        debts: &Arc<Mutex<Debts>>,
        credits: Credits,
        life: Arc<Life>,
    ) -> Arc<Gateway> {
        let billing = billing_of(world, &life);
        let (world, book, debts) = (Arc::clone(world), Arc::clone(book), Arc::clone(debts));
        lock(&debts).adopt();
        let (running, away, known, strays, spares) = Default::default();
        let gateway = Arc::new(Gateway {
            life,
            world,
            billing,
            book,
            running,
            debts,
            away,
            credits,
            known,
            strays,
            spares,
        });
        gateway.life.spawn(Arc::clone(&gateway).open());
        gateway
    }

    /// What an earlier one here could not tell the ledger comes first. Where the store is away, so is this one.
    async fn open(self: Arc<Self>) {
        if self.repay_all().await.is_err() || self.billing.heartbeat(&self.life.id, self.now()).await.is_err()
        {
            return self.life.kill();
        }
        self.life.serve();
        self.life.spawn(Arc::clone(&self).beat());
        self.life.spawn(Arc::clone(&self).look_after());
        self.life.spawn(Arc::clone(&self).meter());
        self.life.spawn(Arc::clone(&self).watch());
        self.life.spawn(Arc::clone(&self).repay());
        self.life.spawn(Arc::clone(&self).tend());
        if self.credits.events {
            self.life.spawn(Arc::clone(&self).consume());
            self.life.spawn(Arc::clone(&self).deliver());
        }
    }

    pub(super) fn serve(self: &Arc<Self>, wish: Wish) {
        if self.life.is_serving() {
            self.life.spawn(Arc::clone(self).run(wish));
        }
    }

    /// Tells all sessions to end.
    pub(super) fn drain(&self) {
        lock(&self.running).values_mut().for_each(Running::end);
    }

    pub(super) fn now(&self) -> Timestamp {
        self.life.now()
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    fn see(&self, seen: usize, what: impl FnOnce(&mut Seen)) {
        what(&mut self.book().seen[seen]);
    }

    pub(super) fn is_away(&self) -> bool {
        lock(&self.away).is_some()
    }

    /// Somebody asked the store, and this came of it.
    pub(super) fn note_failure(&self, error: &StoreError) {
        if matches!(error, StoreError::Away(_) | StoreError::Unanswered(_)) {
            lock(&self.away).get_or_insert_with(Instant::now);
        }
    }

    async fn watch(self: Arc<Self>) {
        loop {
            let answers = self.billing.probe().await.is_ok();
            if answers {
                *lock(&self.away) = None;
            } else {
                lock(&self.away).get_or_insert_with(Instant::now);
            }
            sleep(if answers { LOOK } else { LOOK_AGAIN }).await;
        }
    }

    async fn run(self: Arc<Self>, wish: Wish) {
        let is_it = |(account, session, _): &Name| (account, session) == (&wish.who.account, &wish.session);
        if lock(&self.running).keys().any(is_it) {
            return;
        }
        let Some((seen, reserved)) = self.take_or_reserve(&wish).await else { return };
        let is_warm = reserved.is_on_its_way() && wish.claim.is_some_and(|claim| claim < WARM);
        if !is_warm {
            // What has to wait for a browser is confirmed first.
            if !self.confirm(seen, &reserved).await {
                return;
            }
            sleep(Duration::from_millis(wish.claim.unwrap_or(2_000))).await;
        }
        if wish.claim.is_none() {
            match reserved.is_unsecured() {
                true => lock(&self.debts).release(&reserved.session.account, Micros::new(SESSION_PRICE)),
                false => self.void(seen, &reserved.session, "no browser").await,
            }
            return;
        }
        let begun = (Instant::now(), self.now());
        // It has its 101, and is told no more before its hold has arrived.
        if is_warm && !self.confirm(seen, &reserved).await {
            return;
        }
        let name = name_of(reserved.session.name());
        let told = self.begin(seen, &reserved, begun);
        let replace = Arc::clone(&self).replace(wish.who.clone(), reserved.is_spare(), Arc::clone(&told));
        self.life.spawn(replace);
        let _ = timeout(Duration::from_millis(wish.lasts), told.notified()).await;
        let run = {
            let mut running = lock(&self.running);
            let run = running.get_mut(&name).expect("it is there until it is settled");
            run.is_ending = true;
            run.clone()
        };
        let ended_at = run.at_least(0);
        let is_lost = matches!(wish.outcome, Outcome::Lost { .. });
        self.see(seen, |seen| (seen.ended_at, seen.is_lost) = (Some(ended_at), is_lost));
        self.life.note(|| format!("{} {} has ended", name.0, name.1));
        self.settle(&run, (ended_at, wish.outcome)).await;
        lock(&self.running).remove(&name);
    }

    async fn take_or_reserve(self: &Arc<Self>, wish: &Wish) -> Option<(usize, Reserved)> {
        if let Some(taken) = self.take_spare(wish) {
            return Some(taken);
        }
        let seen = self.book().ask(&wish.who.account, &wish.session, &self.life.id);
        Some((seen, self.reserve(seen, wish).await?))
    }

    async fn reserve(self: &Arc<Self>, seen: usize, wish: &Wish) -> Option<Reserved> {
        let new = NewSession {
            id: wish.session.clone(),
            request: SessionRequest::default(),
            is_fresh: wish.is_fresh,
        };
        if self.is_away() {
            let reserved = self.reserve_on_credit(wish, &new);
            self.see(seen, |seen| seen.hold = Hold::Nothing);
            return reserved;
        }
        let reserve = || self.billing.reserve(&wish.who, &new, &self.life.id, self.now());
        let reserving = self.insist((&wish.who.account, &wish.session), reserve);
        let reserved = match wish.leaves {
            // Its client leaves, and nobody is there to be answered.
            Some(leaves) => timeout(Duration::from_millis(leaves), reserving).await.ok()?,
            None => reserving.await,
        };
        reserved.map_err(|error| self.see_not_held(seen, &error)).ok()
    }

    /// Whether it is held, or on credit.
    async fn confirm(self: &Arc<Self>, seen: usize, reserved: &Reserved) -> bool {
        if reserved.is_unsecured() {
            return true;
        }
        let Session { account, id, hold, terms, .. } = &reserved.session;
        let confirmed = self.insist((account, id), || self.billing.confirm(reserved, self.now())).await;
        match &confirmed {
            Ok(()) => {
                lock(&self.known).insert(account.clone(), *terms);
                self.see_hold(seen, Hold::Held(*hold));
            }
            Err(error) => self.see_not_held(seen, error),
        }
        confirmed.is_ok()
    }

    pub(super) fn see_not_held(&self, seen: usize, error: &HoldError) {
        if let HoldError::Store(error) = error {
            self.note_failure(error);
        }
        self.see_hold(
            seen,
            match error {
                HoldError::Refused(_)
                | HoldError::Ahead(_)
                | HoldError::Store(StoreError::Away(_) | StoreError::Busy) => Hold::Nothing,
                HoldError::Exists(_) | HoldError::ExistsDifferent(_) | HoldError::Store(_) => Hold::Unknown,
            },
        );
    }

    pub(super) fn see_hold(&self, seen: usize, hold: Hold) {
        self.see(seen, |seen| {
            self.life.note(|| format!("{} {}: {hold:?}", seen.account, seen.session));
            seen.hold = hold;
        });
    }

    fn reserve_on_credit(&self, wish: &Wish, new: &NewSession) -> Option<Reserved> {
        let terms = *lock(&self.known).get(&wish.who.account)?;
        let mut reserved = Reserved::unsecured(&wish.who, new, terms, &self.life.id, self.now())?;
        // The same in each run of a seed.
        reserved.session.hold = HoldIds::from(self.world.chance().among(0..u64::MAX)).mint();
        if !lock(&self.debts).give(&wish.who.account, Micros::new(SESSION_PRICE), self.credits.exposure) {
            return None;
        }
        self.life.note(|| format!("{} {} on credit", wish.who.account, wish.session));
        Some(reserved)
    }

    /// Its 101 was out at that moment. Gives what tells it to end.
    fn begin(
        self: &Arc<Self>,
        seen: usize,
        reserved: &Reserved,
        (begun, begun_at): (Instant, Timestamp),
    ) -> Arc<Notify> {
        let held = reserved.session.clone();
        let credit = Credit::of(reserved).filter(|_| reserved.is_unsecured());
        let told = Arc::new(Notify::new());
        let name = name_of(held.name());
        let run = Running {
            seen,
            held,
            credit,
            begun,
            begun_at,
            minute: 2,
            due: Some(begun + MINUTE - AHEAD),
            secured: 1,
            owed: 0,
            is_ending: false,
            told: Arc::clone(&told),
        };
        self.see(seen, |seen| {
            (seen.begun_at, seen.paid) = (Some(begun_at), SESSION_MINUTES);
            seen.begun = Some(self.world.now());
        });
        if run.credit.is_some() {
            let mut debts = lock(&self.debts);
            debts.keep(run.debt(0));
            debts.release(&run.held.account, Micros::new(SESSION_PRICE));
            if debts.on_credit(&run.held.account) > self.credits.exposure {
                self.world.find_fault(format!("{name:?} is on credit beyond the bound"));
            }
            self.see(seen, |seen| {
                (seen.hold, seen.is_on_credit) = (Hold::Held(run.held.hold), true);
                seen.kept = Some((run.begun_at, 0));
            });
        }
        self.life.spawn(Arc::clone(self).note_beginning(seen, run.held.clone(), begun_at));
        lock(&self.running).insert(name, run);
        told
    }

    /// A failure is no harm: it is noted again with the next minute, and with the end.
    async fn note_beginning(self: Arc<Self>, seen: usize, held: Session, at: Timestamp) {
        if self.billing.begin(held.name(), at, self.now()).await.is_ok() {
            self.see(seen, |seen| seen.is_noted = true);
        }
    }

    pub(super) async fn void(&self, seen: usize, held: &Session, cause: &'static str) {
        let void = || self.billing.void(held.name(), cause, self.now());
        let mut pauses = RETRIES.into_iter();
        // Now and then nobody waits for the answer, and the same is done once more.
        let voided = loop {
            match timeout(self.world.patience(), void()).await {
                Ok(Err(Error::Store(_))) | Err(_) => {}
                Ok(done) => break done,
            }
            sleep(pauses.next().unwrap_or(RETRIES[3])).await;
        };
        if let Ok(voided) = voided
            && voided.hold == held.hold
        {
            self.see(seen, |seen| seen.settled = Some(voided));
        }
    }

    /// What cannot be told is kept, and told later.
    async fn settle(&self, run: &Running, (at, outcome): (Timestamp, Outcome)) {
        let name = name_of(run.held.name());
        let posting = async {
            match self.is_away() {
                true => Err(StoreError::Busy.into()),
                false => self.post(run, at, outcome).await,
            }
        };
        // Now and then nobody waits for the answer.
        let posted = timeout(self.world.patience(), posting).await.unwrap_or(Err(StoreError::Busy.into()));
        match posted {
            Ok(posted) => {
                lock(&self.debts).settled(&name);
                self.see(run.seen, |seen| seen.settled = Some(posted));
            }
            Err(Error::Store(error)) => {
                self.note_failure(&error);
                let owed = self.owed(&name);
                let debt = Debt { at, end: Some(outcome.into()), ..run.debt(owed) };
                self.see(run.seen, |seen| seen.kept = Some((at, owed)));
                lock(&self.debts).keep(debt);
                self.life.note(|| format!("{} {} is kept for later", name.0, name.1));
            }
            // Somebody took this gateway for dead, and has settled it.
            Err(Error::Refused(Refused::ExistsDifferent | Refused::State(_) | Refused::HeldAnew)) => {
                lock(&self.debts).settled(&name);
                self.life.note(|| format!("{} {} was settled by another", name.0, name.1));
            }
            Err(error) => self.world.find_fault(format!("{name:?} cannot be settled: {error}")),
        }
    }

    fn owed(&self, name: &Name) -> u32 {
        lock(&self.running).get(name).map_or(0, |run| run.owed)
    }

    async fn post(&self, run: &Running, at: Timestamp, outcome: Outcome) -> Result<Session, Error> {
        let (name, now) = (run.held.name(), self.now());
        if run.credit.is_some() {
            self.billing.hold_begun(&run.debt(0), now).await?;
        }
        let end = End { at, outcome, up_bytes: 1, down_bytes: 2 };
        match self.owed(&name_of(name)) {
            0 => {
                let posted = self.billing.post_begun(name, run.begun_at, end, now).await?;
                self.see(run.seen, |seen| seen.is_noted = true);
                Ok(posted)
            }
            owed => {
                let progress = run.debt(owed).progress();
                drop(self.billing.meter(name.account, &[progress], now).await?);
                self.billing.post(name, end, now).await
            }
        }
    }

    async fn repay(self: Arc<Self>) {
        loop {
            sleep(LOOK_AGAIN).await;
            if self.is_away() {
                continue;
            }
            if let Err(error) = self.repay_all().await {
                self.note_failure(&error);
                sleep(LOOK).await;
            }
        }
    }

    /// Commits all that is owed at this moment, each entry once.
    async fn repay_all(&self) -> Result<(), StoreError> {
        let debts = lock(&self.debts).all();
        for debt in &debts {
            self.pay(debt).await?;
        }
        Ok(())
    }

    async fn pay(&self, debt: &Debt) -> Result<(), StoreError> {
        let name = name_of(debt.name());
        let repaying = timeout(self.world.patience(), self.billing.repay(debt, self.now()));
        let is_noted = repaying.await.unwrap_or(Err(StoreError::Busy))?;
        self.life.note(|| format!("repays {} {}: {}", debt.account, debt.session, debt.minutes));
        if debt.end.is_none()
            && let Some(run) = lock(&self.running).get_mut(&name)
        {
            // From here on it is a session like any other.
            run.credit.take_if(|_| is_noted);
            lock(&self.debts).forget(debt);
            return Ok(());
        }
        if !lock(&self.debts).owes(debt) {
            return Ok(());
        }
        let end = debt.end(["client closed", "browser crashed"].into_iter());
        match self.billing.post(debt.name(), end, self.now()).await {
            Ok(posted) => self.book().settle(&debt.account, posted),
            Err(Error::Store(error)) => return Err(error),
            Err(error) => self.life.note(|| format!("{} is dropped: {error}", debt.session)),
        }
        lock(&self.debts).forget(debt);
        Ok(())
    }

    /// Nothing holds a sign of life up.
    async fn beat(self: Arc<Self>) {
        loop {
            let said = self.now();
            match self.billing.heartbeat(&self.life.id, said).await {
                Ok(()) => {
                    let now = self.world.now();
                    self.book().beats.entry(self.life.id.clone()).or_default().push((now, said));
                }
                Err(error) => self.note_failure(&error),
            }
            sleep(HEARTBEAT).await;
        }
    }

    /// What is done every so often.
    async fn look_after(self: Arc<Self>) {
        let mut sweeper = Sweeper::new(self.life.id.clone());
        loop {
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

    /// Settles what this gateway has open in the ledger and nowhere else, and looks after what runs here and is not open
    /// there.
    async fn repair(&self) -> Result<(), Error> {
        let live: Vec<_> = lock(&self.running).values().cloned().collect();
        let open = self.billing.open_sessions_of(&self.life.id).await?;
        let names: BTreeSet<_> = open.iter().map(|session| name_of(session.name())).collect();
        for run in live.iter().filter(|run| !names.contains(&name_of(run.held.name()))) {
            self.recheck(run).await?;
        }
        let is_known =
            |name: &Name| lock(&self.running).contains_key(name) || lock(&self.debts).contains(name);
        let open: Vec<_> = open.into_iter().filter(|session| !is_known(&name_of(session.name()))).collect();
        let now = Instant::now();
        {
            let mut strays = lock(&self.strays);
            strays.retain(|hold, _| open.iter().any(|session| session.hold == *hold));
            for session in &open {
                strays.entry(session.hold).or_insert(now);
            }
        }
        for session in open {
            let is_stray =
                lock(&self.strays).get(&session.hold).is_some_and(|since| now - *since > ADMISSION);
            if is_stray {
                self.give_up(&session).await?;
            }
        }
        Ok(())
    }

    async fn give_up(&self, session: &Session) -> Result<(), Error> {
        let (now, name) = (self.now(), session.name());
        let repaired = match session.begun_at {
            None => self.billing.void(name, "gateway fault", now).await,
            Some(at) => {
                let outcome = Outcome::Completed { cause: "gateway fault" };
                let end = End { at, outcome, up_bytes: 0, down_bytes: 0 };
                self.billing.post(name, end, now).await
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
        Ok(())
    }

    /// What becomes of a session that runs here while the ledger does not have it open: whether it goes on.
    async fn recheck(&self, run: &Running) -> Result<bool, StoreError> {
        let SessionName { account, session, hold } = run.held.name();
        if run.is_ending {
            return Ok(true);
        }
        match self.billing.session(account, session).await? {
            Some(known) if known.state.is_open() && known.hold == hold => Ok(true),
            None if run.credit.is_some() => match self.billing.hold_begun(&run.debt(0), self.now()).await {
                Err(Error::Store(error)) => Err(error),
                Ok(()) | Err(_) => Ok(true),
            },
            Some(_) | None => {
                self.life.note(|| format!("{account} {session} must end: another has settled it"));
                run.told.notify_one();
                Ok(false)
            }
        }
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
                let Running { seen, minute, begun_at, owed, .. } = running[name];
                let minutes = minute.max(SESSION_MINUTES);
                self.see(seen, |seen| seen.asked = seen.asked.max(minutes));
                let (bytes, session) = (u64::from(minute), name.1.clone());
                Progress {
                    session,
                    hold: name.2,
                    begun_at,
                    minutes,
                    owed,
                    up_bytes: bytes,
                    down_bytes: bytes,
                }
            };
            names.iter().map(progress).collect::<Vec<_>>()
        };
        let starts = names.iter().map(|name| lock(&self.running)[name].starts()).min();
        let Some(starts) = starts else { return };
        let deadline = if starts <= met { met + RETRY } else { starts };
        let verdicts = self.ask(&account, &progress, deadline).await;
        for ((name, progress), mut verdict) in names.iter().zip(progress).zip(verdicts) {
            let run = lock(&self.running).get(name).cloned();
            let is_gone = matches!(verdict, Err(ExtendError::NotOpen));
            if let Some(run) = run.filter(|_| is_gone)
                && self.recheck(&run).await.unwrap_or(true)
            {
                verdict = Err(StoreError::Busy.into());
            }
            self.go_on(name, &progress, met, verdict);
        }
    }

    async fn ask(
        &self,
        account: &AccountId,
        progress: &[Progress],
        deadline: Instant,
    ) -> Vec<Result<(), ExtendError>> {
        let failed = || progress.iter().map(|_| Err(StoreError::Busy.into())).collect();
        if self.is_away() {
            return failed();
        }
        let metered = timeout_at(deadline, self.billing.meter(account, progress, self.now())).await;
        metered.unwrap_or(Err(StoreError::Busy)).unwrap_or_else(|error| {
            self.note_failure(&error);
            failed()
        })
    }

    /// What a session's date came to: its next one, or its end.
    fn go_on(&self, name: &Name, progress: &Progress, met: Instant, verdict: Result<(), ExtendError>) {
        let mut running = lock(&self.running);
        let Some(run) = running.get_mut(name) else { return };
        let is_last = met >= run.starts();
        match verdict {
            Ok(()) => {
                self.see(run.seen, |seen| {
                    (seen.paid, seen.is_noted) = (seen.paid.max(progress.minutes), true);
                });
                run.secured = run.minute;
                run.next();
            }
            Err(ExtendError::Store(_)) if is_last => self.let_start(run),
            Err(ExtendError::Refused(_) | ExtendError::Store(_)) if !is_last => {
                run.due = Some(run.starts().min(Instant::now() + RETRY));
            }
            Err(error) => {
                self.life.note(|| format!("{name:?} must end: {error}"));
                run.end();
            }
        }
    }

    /// A minute starts that the ledger could not be asked for; or it does not, and the session ends.
    fn let_start(&self, run: &mut Running) {
        let without_cover = run.minute.saturating_sub(run.secured.max(SESSION_MINUTES));
        if MINUTE * without_cover > self.credits.outage_limit {
            return run.end();
        }
        let mut debts = lock(&self.debts);
        let given = debts.given(&run.held.account).checked_add(Micros::new(MINUTE_PRICE));
        let is_too_much = given.is_none_or(|after| after > self.credits.exposure);
        if without_cover > 0 && run.credit.is_some() && is_too_much {
            return run.end();
        }
        let debt = run.debt(run.minute);
        self.see(run.seen, |seen| {
            (seen.kept, seen.asked) = (Some((debt.at, debt.minutes)), seen.asked.max(debt.minutes));
        });
        debts.keep(debt);
        if run.credit.is_some() && debts.on_credit(&run.held.account) > self.credits.exposure {
            self.world.find_fault(format!("{:?} is on credit beyond the bound", run.held.name()));
        }
        if without_cover > 0 {
            run.owed = run.owed.max(run.minute);
        }
        run.next();
    }
}

impl Running {
    fn next(&mut self) {
        self.minute += 1;
        self.due = Some(self.starts() - AHEAD);
    }

    fn end(&mut self) {
        self.told.notify_one();
    }
}
