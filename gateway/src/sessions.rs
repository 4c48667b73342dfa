//! The live sessions: who they are, the sockets that belong to them, what those have passed so far, and how to end one
//! from outside.
//!
//! A session owns its browser and its place as long as a socket is attached to it, or a [`Keeper`] while it has had none
//! yet. Whoever leaves last is handed both, to settle the session; nobody can attach to it from then on.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use billing::{AccountId, Credit, Debt, HoldId, Reserved, Session, SessionId, SessionName, Terms, Timestamp};
use dashmap::{DashMap, Entry};
use futures_util::task::AtomicWaker;
use pool::{Lease, Upstream};
use serde::Serialize;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use crate::limits::Watched;
use crate::refusal::Close;
use crate::settle::Reason;

#[cfg(test)]
mod tests;

/// Sockets of one session at a time: a browser's own, and one for each page of a script that opens many. Each takes two
/// descriptors.
pub const SOCKETS: u32 = 64;

/// A session from its beginning to its settlement.
pub struct Live {
    pub account: AccountId,
    pub id: SessionId,
    /// Which hold of its id it is: what the ledger is told of it names that.
    pub hold: HoldId,
    pub terms: Terms,
    /// What is known of that hold, which may have to be confirmed still.
    pub reserved: Option<Reserved>,
    /// What came of that; if it is not held, how its client is told.
    confirmed: OnceCell<Result<(), Close>>,
    /// When its 101 was sent, or when it was created without a socket: minutes count from here, by a clock that nobody sets.
    pub begun: Instant,
    /// The same moment for the record.
    pub begun_at: Timestamp,
    /// How long it may last.
    pub max_duration: Duration,
    /// From its clients to the browser.
    pub up_bytes: AtomicU64,
    /// From the browser to its clients.
    pub down_bytes: AtomicU64,
    /// Minutes, in all, that have started: where the ledger was away when one of them did, else 0.
    owed: AtomicU32,
    /// It began on credit, and the ledger has been told of it since.
    is_repaid: AtomicBool,
    /// What the one task that looks at all sessions knows of this one.
    pub(crate) watched: Mutex<Watched>,
    /// Why it ends, once somebody has said so.
    end: OnceLock<Reason>,
    /// The line of its first socket; those of others are in `members`, so that a session with one socket allocates none.
    first: Line,
    members: Mutex<Members>,
    /// The final record, or none where the ledger could not be written.
    record: OnceLock<Option<Box<Session>>>,
    settled: Notify,
}

/// What a session owns until it is settled.
#[derive(Debug)]
pub struct Estate {
    pub lease: Lease,
    /// Counts it until it is settled; a drain waits for all of them.
    pub place: OwnedSemaphorePermit,
}

/// Who is attached.
#[derive(Debug)]
struct Members {
    sockets: u32,
    /// Nobody has attached yet, and a keeper holds the session.
    kept: bool,
    /// The lines of the keeper and of all sockets but the first.
    lines: Vec<Arc<Line>>,
    /// Where its first socket came from.
    client: Option<IpAddr>,
    /// The last one has left.
    over: bool,
    /// Until then.
    estate: Option<Estate>,
}

/// How one socket's task is told that the session ends, or that a ping is due.
#[derive(Debug, Default)]
pub struct Line {
    waker: AtomicWaker,
    /// Something has passed since the last look.
    traffic: AtomicBool,
    /// Looks since then. One task looks.
    quiet: AtomicU32,
    ping: AtomicBool,
}

impl Line {
    /// Something has passed, one way or the other.
    pub(crate) fn note_traffic(&self) {
        self.traffic.store(true, Ordering::Relaxed);
    }

    /// Whether a ping is due; once.
    pub(crate) fn take_ping(&self) -> bool {
        self.ping.load(Ordering::Relaxed) && self.ping.swap(false, Ordering::Relaxed)
    }

    /// Looks whether anything has passed since the last look, and asks for a ping after so many looks in vain.
    fn look(&self, patience: u32) {
        let quiet = if self.traffic.swap(false, Ordering::Relaxed) {
            0
        } else {
            self.quiet.load(Ordering::Relaxed) + 1
        };
        self.quiet.store(quiet % patience, Ordering::Relaxed);
        if quiet == patience {
            self.ping.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
    }
}

/// Why there is no attaching to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAttached {
    /// It is over.
    Over,
    /// It has a socket, and the caller wanted to be the only one.
    Connected,
    /// It has [`SOCKETS`].
    TooMany,
}

impl Live {
    /// One that begins now.
    #[must_use]
    pub fn new(held: Reserved, max_duration: Duration, begun_at: Timestamp, estate: Estate) -> Self {
        let of = Self::of(held.session.name(), held.session.terms, max_duration, begun_at, Some(estate));
        Self { reserved: Some(held), ..of }
    }

    /// One that has no browser.
    #[cfg(test)]
    pub(crate) fn for_tests(account: AccountId, id: SessionId, terms: Terms, begun_at: Timestamp) -> Self {
        let name = SessionName { account: &account, session: &id, hold: HoldId::random() };
        Self::of(name, terms, Duration::MAX, begun_at, None)
    }

    /// Somebody's, on the starter's terms, that has no browser.
    #[cfg(test)]
    pub(crate) fn somebody_s() -> Self {
        let catalogue = billing::Catalogue::default();
        let plan = catalogue.get("starter").expect("it is a default");
        let terms = Terms {
            session_price: plan.session_price,
            session_minutes: plan.session_minutes,
            minute_price: plan.minute_price,
            overage: plan.overage,
            overage_cap: plan.overage_cap,
        };
        Self::for_tests(AccountId::random(), SessionId::random(), terms, Timestamp::from_millis(0))
    }

    /// One that was held like that, and has no browser.
    #[cfg(test)]
    pub(crate) fn held_for_tests(held: Reserved, begun_at: Timestamp) -> Self {
        let of = Self::of(held.session.name(), held.session.terms, Duration::MAX, begun_at, None);
        Self { reserved: Some(held), ..of }
    }

    fn of(
        SessionName { account, session, hold }: SessionName<'_>,
        terms: Terms,
        max_duration: Duration,
        begun_at: Timestamp,
        estate: Option<Estate>,
    ) -> Self {
        Self {
            account: account.clone(),
            id: session.clone(),
            hold,
            terms,
            reserved: None,
            confirmed: OnceCell::new(),
            begun: Instant::now(),
            begun_at,
            max_duration,
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            owed: AtomicU32::new(0),
            is_repaid: AtomicBool::new(false),
            watched: Mutex::default(),
            end: OnceLock::new(),
            first: Line::default(),
            members: Mutex::new(Members::of(estate)),
            record: OnceLock::new(),
            settled: Notify::new(),
        }
    }

    /// What the ledger knows it by.
    #[must_use]
    pub fn name(&self) -> SessionName<'_> {
        SessionName { account: &self.account, session: &self.id, hold: self.hold }
    }

    /// Ends it in an orderly way, all of its sockets. The first one who says so gives the reason. Whoever wants to know
    /// what came of it waits for [`Live::settled`].
    pub fn end(&self, close: Close) {
        self.end_as(Reason::of(close));
    }

    /// The same, for a reason that may leave the customer uncharged.
    pub(crate) fn end_as(&self, reason: Reason) {
        let _ = self.end.set(reason);
        self.wake();
    }

    fn wake(&self) {
        self.first.waker.wake();
        for line in &self.members().lines {
            line.waker.wake();
        }
    }

    /// Whether its clients may have what its browser says. Until then the hold is on its way, and all of its sockets' tasks
    /// are woken when it has arrived.
    #[must_use]
    pub(crate) fn is_served(&self) -> bool {
        let is_held = || matches!(self.confirmed.get(), Some(Ok(())));
        self.reserved.as_ref().is_none_or(|reserved| !reserved.is_on_its_way() || is_held())
    }

    /// Somebody waits for its hold.
    pub(crate) fn hurry(&self) {
        if let Some(reserved) = &self.reserved {
            reserved.hurry();
        }
    }

    /// Notes what `confirm` says of its hold, which is asked once: who hears that there is none and who would be granted it
    /// a moment later were to go different ways.
    pub(crate) async fn confirmed(
        &self,
        confirm: impl Future<Output = Result<(), Close>>,
    ) -> Result<(), Close> {
        if let Some(confirmed) = self.confirmed.get() {
            return *confirmed;
        }
        let waited_for = !self.is_served();
        let confirmed = *self.confirmed.get_or_init(|| confirm).await;
        match confirmed {
            Ok(()) if waited_for => self.wake(),
            Ok(()) => {}
            Err(close) => self.end(close),
        }
        confirmed
    }

    /// Why it ends, once somebody has said so.
    #[must_use]
    pub fn told(&self) -> Option<Reason> {
        self.end.get().copied()
    }

    /// Waits until it is settled. The final record, or none where the ledger could not be written: then the next start
    /// settles it.
    pub async fn settled(&self) -> Option<Session> {
        let mut settled = std::pin::pin!(self.settled.notified());
        loop {
            settled.as_mut().enable();
            if let Some(record) = self.record.get() {
                return record.as_deref().cloned();
            }
            settled.as_mut().await;
            settled.set(self.settled.notified());
        }
    }

    /// What it came to.
    pub(crate) fn note_record(&self, record: Session) {
        let _ = self.record.set(Some(Box::new(record)));
    }

    /// Where further sockets to its browser are opened; none once it is over.
    #[must_use]
    pub fn upstream(&self) -> Option<Upstream> {
        self.members().estate.as_ref().map(|estate| estate.lease.upstream())
    }

    /// Whether the socket that the pool had opened ahead of time is still to be had.
    #[must_use]
    pub fn has_socket(&self) -> bool {
        self.members().estate.as_ref().is_some_and(|estate| estate.lease.has_socket())
    }

    /// The address that its first socket came from.
    #[must_use]
    pub fn client(&self) -> Option<IpAddr> {
        self.members().client
    }

    /// Whether nobody can attach to it any more.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.told().is_some() || self.members().over
    }

    /// Whether it waits for its first socket.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.members().kept
    }

    /// Where it stands, and how many sockets it has.
    pub(crate) fn stage(&self) -> (Stage, u32) {
        let members = self.members();
        let stage = if members.over {
            Stage::Settling
        } else if self.told().is_some() {
            Stage::Ending
        } else if members.kept {
            Stage::Detached
        } else {
            Stage::Open
        };
        (stage, members.sockets)
    }

    /// Bytes so far: from its clients, and to them.
    pub(crate) fn passed(&self) -> (u64, u64) {
        (self.up_bytes.load(Ordering::Relaxed), self.down_bytes.load(Ordering::Relaxed))
    }

    /// Minutes, in all, that have to be billed although the ledger could not be asked before they started.
    #[must_use]
    pub fn owed(&self) -> u32 {
        self.owed.load(Ordering::Relaxed)
    }

    /// Whether it began on credit and the ledger may not have heard of it yet.
    #[must_use]
    pub fn is_unsecured(&self) -> bool {
        self.reserved.as_ref().is_some_and(Reserved::is_unsecured) && !self.is_repaid.load(Ordering::Relaxed)
    }

    /// The ledger holds it, so that it is a session like any other: nothing of it is on credit any more.
    pub(crate) fn note_repaid(&self) {
        self.is_repaid.store(true, Ordering::Relaxed);
    }

    /// Whether it has to be held before anything else can be noted of it.
    pub(crate) fn may_lack_hold(&self) -> bool {
        self.lacking().is_some()
    }

    /// What is reserved, unless it is known to be held.
    fn lacking(&self) -> Option<&Reserved> {
        let is_known =
            |reserved: &Reserved| reserved.is_held() || (reserved.is_on_its_way() && self.is_served());
        self.reserved.as_ref().filter(|reserved| !is_known(reserved))
    }

    /// That minute starts, whether or not it is set aside.
    pub(crate) fn owe(&self, minute: u32) {
        self.owed.fetch_max(minute, Ordering::Relaxed);
    }

    /// What the ledger has to be told at this moment, while it runs and so many minutes have started, this moment's among
    /// them.
    #[must_use]
    pub(crate) fn debt(&self, minutes: u32) -> Debt {
        let (up_bytes, down_bytes) = self.passed();
        let lasted = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        // A minute that starts at this very moment has started.
        let least = u64::from(minutes).checked_sub(1).map_or(0, |before| before * 60_000 + 1);
        let at = Timestamp::from_millis(self.begun_at.as_millis().saturating_add(lasted.max(least)));
        let (account, session, hold) = (self.account.clone(), self.id.clone(), self.hold);
        let begun_at = self.begun_at;
        let is_repaid = self.is_repaid.load(Ordering::Relaxed);
        let credit = self.reserved.as_ref().filter(|_| !is_repaid).and_then(Credit::of);
        Debt { account, session, hold, begun_at, minutes, at, up_bytes, down_bytes, end: None, credit }
    }

    /// Asks each of its sockets for a ping that has passed nothing in so many looks.
    pub(crate) fn look_at_lines(&self, patience: u32) {
        self.first.look(patience);
        for line in &self.members().lines {
            line.look(patience);
        }
    }

    /// Whether somebody ended it; otherwise the task is woken when somebody does. One task waits on a line.
    pub(crate) fn poll_end(&self, line: &Line, cx: &mut Context<'_>) -> Option<Close> {
        if let Some(reason) = self.told() {
            return Some(reason.close);
        }
        line.waker.register(cx.waker());
        // It may have been set before the waker was there.
        self.told().map(|reason| reason.close)
    }

    #[cfg(test)]
    pub(crate) fn first_line(&self) -> &Line {
        &self.first
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody waits for a record that will not come.
    fn is_over(&self) {
        let _ = self.record.set(None);
        self.settled.notify_waiters();
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("account", &self.account).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Members {
    fn of(estate: Option<Estate>) -> Self {
        Self { sockets: 0, kept: false, lines: Vec::new(), client: None, over: false, estate }
    }

    /// One more socket. Whoever kept the session until now is relieved.
    fn add(&mut self, client: IpAddr) {
        self.sockets += 1;
        self.client.get_or_insert(client);
        if self.kept {
            self.kept = false;
            for line in self.lines.drain(..) {
                line.waker.wake();
            }
        }
    }

    /// One socket less. Whether it was the last one.
    fn remove(&mut self, line: Option<&Arc<Line>>) -> bool {
        self.sockets -= 1;
        if let Some(line) = line {
            self.lines.retain(|other| !Arc::ptr_eq(other, line));
        }
        self.over = self.sockets == 0;
        self.over
    }
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Its price is set aside, and it waits for a browser.
    Waiting,
    /// It has begun, and has had no socket yet.
    Detached,
    Open,
    /// Its sockets were told to end.
    Ending,
    /// Nobody is attached any more.
    Settling,
}

/// All live sessions of this gateway.
#[derive(Debug, Default)]
pub struct Sessions {
    live: DashMap<(AccountId, SessionId), Arc<Live>>,
    /// Those whose id was known before they began, from the hold until they are live.
    starting: DashMap<(AccountId, SessionId), watch::Receiver<()>>,
    /// Those that wait for a browser, and since when.
    waiting: DashMap<(AccountId, SessionId), Instant>,
    /// Set once all are to end: who comes in later is told at once.
    closing: OnceLock<Close>,
}

/// A session that waits for a browser, until it is dropped.
#[derive(Debug)]
pub struct Waits<'a> {
    sessions: &'a Sessions,
    key: (AccountId, SessionId),
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.sessions.waiting.remove(&self.key);
    }
}

/// The right to start a session of an id that others know as well, until it is live or has failed.
#[derive(Debug)]
pub struct Starting<'a> {
    sessions: &'a Sessions,
    key: (AccountId, SessionId),
    /// Those who wait learn of its drop.
    _done: watch::Sender<()>,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.sessions.starting.remove(&self.key);
    }
}

/// One socket's part in a session. A task that panics gives it up as well; the session then is repaired, not settled.
#[derive(Debug)]
pub struct Attached<'a> {
    sessions: &'a Sessions,
    live: Arc<Live>,
    /// None for the first socket.
    line: Option<Arc<Line>>,
    left: bool,
}

/// Holds a session that has had no socket yet.
#[derive(Debug)]
pub struct Keeper {
    live: Arc<Live>,
    line: Arc<Line>,
}

/// The last one of a session: it settles it. The session is among the live ones until this is dropped.
#[derive(Debug)]
pub struct Last<'a> {
    sessions: &'a Sessions,
    live: Arc<Live>,
    estate: Option<Estate>,
}

impl Attached<'_> {
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    #[must_use]
    pub fn line(&self) -> &Line {
        self.line.as_deref().unwrap_or(&self.live.first)
    }

    /// The socket that the pool had opened ahead of time, for who is first to ask.
    #[must_use]
    pub fn take_socket(&self) -> Option<std::net::TcpStream> {
        self.live.members().estate.as_mut()?.lease.take_socket()
    }
}

impl<'a> Attached<'a> {
    /// This socket is done. The last one of its session is told so.
    #[must_use]
    pub fn leave(mut self) -> Option<Last<'a>> {
        self.give_up()
    }

    fn give_up(&mut self) -> Option<Last<'a>> {
        if std::mem::replace(&mut self.left, true) {
            return None;
        }
        let mut members = self.live.members();
        if !members.remove(self.line.as_ref()) {
            return None;
        }
        let estate = members.estate.take();
        Some(Last { sessions: self.sessions, live: Arc::clone(&self.live), estate })
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        drop(self.give_up());
    }
}

impl Keeper {
    /// Waits until a socket is attached (none), or the session was told to end before that.
    pub async fn watch(self, sessions: &Sessions) -> Option<Last<'_>> {
        std::future::poll_fn(|cx| {
            let ended = self.live.poll_end(&self.line, cx).is_some();
            let mut members = self.live.members();
            if !members.kept {
                return Poll::Ready(None);
            }
            if !ended {
                return Poll::Pending;
            }
            (members.kept, members.over) = (false, true);
            let estate = members.estate.take();
            drop(members);
            let last = Last { sessions, live: Arc::clone(&self.live), estate };
            Poll::Ready(Some(last))
        })
        .await
    }
}

impl Last<'_> {
    #[must_use]
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The browser and the place, once.
    #[must_use]
    pub fn take_estate(&mut self) -> Option<Estate> {
        self.estate.take()
    }
}

impl Drop for Last<'_> {
    fn drop(&mut self) {
        let key = (self.live.account.clone(), self.live.id.clone());
        self.sessions.live.remove_if(&key, |_, live| live.hold == self.live.hold);
        self.live.is_over();
    }
}

impl Sessions {
    /// Notes a session that waits for a browser, until the answer is dropped.
    #[must_use]
    pub fn wait(&self, account: &AccountId, id: &SessionId) -> Waits<'_> {
        let key = (account.clone(), id.clone());
        self.waiting.insert(key.clone(), Instant::now());
        Waits { sessions: self, key }
    }

    /// How many wait for a browser.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Each that waits, and since when.
    pub fn for_each_waiting(&self, mut visit: impl FnMut(&AccountId, &SessionId, Instant)) {
        for entry in &self.waiting {
            visit(&entry.key().0, &entry.key().1, *entry.value());
        }
    }

    /// Registers a session that has begun, with its first socket.
    #[must_use]
    pub fn begin(&self, live: Arc<Live>, client: IpAddr) -> Attached<'_> {
        live.members().add(client);
        self.register(&live);
        Attached { sessions: self, live, line: None, left: false }
    }

    /// Registers a session that has no socket yet. Its keeper has to be [watched](Keeper::watch).
    #[must_use]
    pub fn begin_detached(&self, live: Arc<Live>) -> Keeper {
        let line = Arc::new(Line::default());
        let mut members = live.members();
        members.kept = true;
        members.lines.push(Arc::clone(&line));
        drop(members);
        self.register(&live);
        Keeper { live, line }
    }

    fn register(&self, live: &Arc<Live>) {
        self.live.insert((live.account.clone(), live.id.clone()), Arc::clone(live));
        if let Some(close) = self.closing.get() {
            live.end(*close);
        }
    }

    /// One more socket of a session, wherever it was found.
    ///
    /// # Errors
    ///
    /// [`NotAttached::Over`], [`NotAttached::TooMany`].
    pub fn join(&self, live: &Arc<Live>, client: IpAddr) -> Result<Attached<'_>, NotAttached> {
        self.attach(live, client, SOCKETS)
    }

    /// The only socket of a session that is waiting for it.
    ///
    /// # Errors
    ///
    /// [`NotAttached::Over`], [`NotAttached::Connected`].
    pub fn attach_alone(&self, live: &Arc<Live>, client: IpAddr) -> Result<Attached<'_>, NotAttached> {
        let attached = self.attach(live, client, 1);
        attached.map_err(|error| if error == NotAttached::TooMany { NotAttached::Connected } else { error })
    }

    fn attach(&self, live: &Arc<Live>, client: IpAddr, most: u32) -> Result<Attached<'_>, NotAttached> {
        let line = Arc::new(Line::default());
        let mut members = live.members();
        if members.over || live.told().is_some() {
            return Err(NotAttached::Over);
        }
        if members.sockets >= most {
            return Err(NotAttached::TooMany);
        }
        members.add(client);
        members.lines.push(Arc::clone(&line));
        drop(members);
        Ok(Attached { sessions: self, live: Arc::clone(live), line: Some(line), left: false })
    }

    /// For one who starts a session of that id: the right to, or how to wait until somebody else has done it, or failed.
    ///
    /// # Errors
    ///
    /// Somebody else is at it. The receiver fails when that is over.
    pub fn start(&self, account: &AccountId, id: &SessionId) -> Result<Starting<'_>, watch::Receiver<()>> {
        let key = (account.clone(), id.clone());
        match self.starting.entry(key.clone()) {
            Entry::Occupied(other) => Err(other.get().clone()),
            Entry::Vacant(vacant) => {
                let (done, waits) = watch::channel(());
                vacant.insert(waits);
                Ok(Starting { sessions: self, key, _done: done })
            }
        }
    }

    /// An account's live sessions, at most so many.
    #[must_use]
    pub fn of_account(&self, account: &AccountId, most: usize) -> Vec<Arc<Live>> {
        self.select(most, |live| live.account == *account)
    }

    /// The live sessions whose first socket came from that address, at most so many.
    #[must_use]
    pub fn of_client(&self, client: IpAddr, most: usize) -> Vec<Arc<Live>> {
        self.select(most, |live| live.client() == Some(client))
    }

    fn select(&self, most: usize, wanted: impl Fn(&Live) -> bool) -> Vec<Arc<Live>> {
        self.live.iter().filter(|live| wanted(live)).map(|live| Arc::clone(&live)).take(most).collect()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.select(usize::MAX, |_| true)
    }

    /// The live session of that account by that id.
    #[must_use]
    pub fn find(&self, account: &AccountId, id: &SessionId) -> Option<Arc<Live>> {
        self.live.get(&(account.clone(), id.clone())).map(|live| Arc::clone(&live))
    }

    /// Whether that session is live, and not only another one of its id.
    #[must_use]
    pub fn contains(&self, name: SessionName<'_>) -> bool {
        let live = self.live.get(&(name.account.clone(), name.session.clone()));
        live.is_some_and(|live| live.hold == name.hold)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.live.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    pub fn for_each(&self, mut visit: impl FnMut(&Live)) {
        for live in &self.live {
            visit(&live);
        }
    }

    /// Ends every session, and every one that is still being admitted.
    pub fn end_all(&self, close: Close) {
        let _ = self.closing.set(close);
        self.for_each(|live| live.end(close));
    }
}
