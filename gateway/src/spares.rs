//! Sessions that are held before anybody asks for them, as browsers are running before anybody asks: where the ledger's store
//! is a round trip away, whoever gets one need not wait for that.
//!
//! A spare is an ordinary hold of an account that starts one session after another. Whoever takes it has another one put
//! in its place a moment later; one that nobody takes is voided after [`LIFETIME`]. Until then its price is missing from the
//! balance, and it counts as one of the account's sessions: so there are none where the account would have room for fewer than
//! [`OTHERS`] beside it, and nobody is refused for their sake, but asked to wait until they are gone.
//!
//! What another process has done to the account since a spare was held shows with the one that replaces it: a session that began
//! with a key that is revoked, or of an account that is suspended, ends then.
//!
//! Spares are given back by one task, [`tend`]: whoever finds that one is not needed may be gone before that is done.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billing::{
    AccountId, Billing, HoldError, KeyId, NewSession, Principal, Refusal, Reserved, Session, SessionId,
    State, StoreError,
};
use dashmap::DashMap;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use crate::refusal::Close;
use crate::serve::Gateway;
use crate::sessions::Live;
use crate::settle;

/// Who starts so many sessions within [`LIFETIME`] will soon start another.
const BUSY: usize = 4;

/// How long a spare is kept. Far shorter than the silence after which other gateways settle what this one holds.
const LIFETIME: Duration = Duration::from_secs(1);

/// Of one account: as many as may be started while the first of them is replaced, which takes some ten milliseconds.
const MOST: usize = 4;

/// Sessions that an account must have room for beside a spare: what other gateways may start of it meanwhile is not to wait
/// for its sake.
const OTHERS: u32 = 16;

/// How long who would be refused waits for spares to be taken or given back: [`tend`] looks for those whose time is over as
/// often as that comes. Those of a gateway that was killed take longer.
const GONE: Duration = Duration::from_secs(3);

/// How often who waits for that asks again.
const AGAIN: Duration = Duration::from_millis(250);

/// Of one account: more than there are spares for which it could be worth while.
const WAITING: usize = 16;

/// How long the ledger may take to give them back at the end. Who does not wait leaves it to others.
const CLOSE: Duration = Duration::from_secs(5);

/// How often it is looked whether they have been.
const LOOK: Duration = Duration::from_millis(5);

/// A store that does not say whether a spare was held is asked again after each of these pauses.
const RETRIES: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];

/// The spares of this gateway.
#[derive(Debug)]
pub struct Spares {
    /// Of each account that started any lately. None where a hold costs no round trip.
    desks: Option<DashMap<AccountId, Desk>>,
    unwanted: Mutex<Vec<Unwanted>>,
    is_unwanted: Notify,
    /// Those that are being held, or given back.
    under_way: Arc<AtomicUsize>,
    is_closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Desk {
    /// The latest starts, up to [`BUSY`], of sessions that a spare does for.
    starts: VecDeque<Instant>,
    /// The oldest first.
    spares: VecDeque<Spare>,
    /// Spares that are being held.
    coming: usize,
    /// Who would be refused without them.
    waiting: usize,
}

#[derive(Debug)]
struct Spare {
    held: Reserved,
    since: Instant,
}

/// What is to be given back.
#[derive(Debug)]
enum Unwanted {
    Held(Box<Reserved>),
    /// Perhaps it was held.
    Unsure(AccountId, SessionId),
}

impl Spares {
    #[must_use]
    pub fn of(billing: &Billing) -> Self {
        Self {
            desks: billing.is_shared().then(DashMap::new),
            unwanted: Mutex::default(),
            is_unwanted: Notify::new(),
            under_way: Arc::default(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// A spare, where there is one that does for what is asked.
    pub fn take(&self, who: &Principal, new: &NewSession) -> Option<Reserved> {
        let desks = self.desks.as_ref().filter(|_| new.is_any())?;
        let mut desk = desks.entry(who.account.clone()).or_default();
        let now = Instant::now();
        desk.note_start(now);
        let held = desk.take(&who.key, now);
        held.inspect(|_| metrics::counter!("ufb_gateway_spare_holds_used_total").increment(1))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        let desks = self.desks.iter().flat_map(DashMap::iter);
        desks.map(|desk| desk.spares.len()).sum()
    }

    /// Room for one more, where it is to be held.
    fn expect<'a>(&'a self, account: &'a AccountId, is_replaced: bool) -> Option<Coming<'a>> {
        let desks = self.desks.as_ref().filter(|_| !self.is_closed.load(Ordering::Acquire))?;
        let mut desk = desks.entry(account.clone()).or_default();
        if !is_replaced && !desk.lacks_one(Instant::now()) {
            return None;
        }
        desk.coming += 1;
        Some(Coming { spares: self, account, _under_way: UnderWay::one_of(self) })
    }

    /// For the next who asks, unless there are enough, or somebody would be refused for its sake.
    fn put(&self, account: &AccountId, spare: Spare) {
        let desk = self.desks.as_ref().and_then(|desks| desks.get_mut(account));
        // Whoever closes waits for what is under way.
        let is_open = !self.is_closed.load(Ordering::Acquire);
        match desk.filter(|desk| is_open && desk.waiting == 0 && desk.spares.len() < MOST) {
            Some(mut desk) => desk.spares.push_back(spare),
            None => self.give_back([Unwanted::from(spare)]),
        }
    }

    fn give_back(&self, unwanted: impl IntoIterator<Item = Unwanted>) {
        self.unwanted.lock().unwrap_or_else(PoisonError::into_inner).extend(unwanted);
        self.is_unwanted.notify_one();
    }

    /// All of one account that are here.
    fn give_up(&self, account: &AccountId) {
        let desk = self.desks.as_ref().and_then(|desks| desks.get_mut(account));
        let spares: Vec<_> = desk.map(|mut desk| desk.spares.drain(..).collect()).unwrap_or_default();
        self.give_back(spares.into_iter().map(Unwanted::from));
    }

    /// What is to be given back: what nobody wants, and what has not been taken for too long. Forgets who has not come for as
    /// long.
    fn take_unwanted(&self, is_old: impl Fn(Instant) -> bool) -> Vec<Unwanted> {
        let mut unwanted = std::mem::take(&mut *self.unwanted.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(desks) = &self.desks {
            desks.retain(|_, desk| {
                while let Some(spare) = desk.spares.pop_front_if(|spare| is_old(spare.since)) {
                    unwanted.push(spare.into());
                }
                desk.coming + desk.waiting + desk.spares.len() > 0
                    || desk.starts.back().is_some_and(|&last| !is_old(last))
            });
        }
        unwanted
    }
}

impl Desk {
    fn note_start(&mut self, now: Instant) {
        if self.starts.len() == BUSY {
            self.starts.pop_front();
        }
        self.starts.push_back(now);
    }

    fn lacks_one(&self, now: Instant) -> bool {
        let is_busy = self.starts.len() == BUSY && now.duration_since(self.starts[0]) < LIFETIME;
        is_busy && self.spares.is_empty() && self.coming < MOST
    }

    /// The latest of that key, so that those which are too many grow old.
    fn take(&mut self, key: &KeyId, now: Instant) -> Option<Reserved> {
        let does =
            |spare: &Spare| spare.held.session.key == *key && now.duration_since(spare.since) < LIFETIME;
        let latest = self.spares.iter().rposition(does)?;
        self.spares.remove(latest).map(|spare| spare.held)
    }
}

impl From<Spare> for Unwanted {
    fn from(spare: Spare) -> Self {
        Self::Held(Box::new(spare.held))
    }
}

/// Counts a spare as under way until it is dropped, whatever becomes of the task that does it.
#[derive(Debug)]
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn one_of(spares: &Spares) -> Self {
        spares.under_way.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&spares.under_way))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A spare that is being held.
#[derive(Debug)]
struct Coming<'a> {
    spares: &'a Spares,
    account: &'a AccountId,
    _under_way: UnderWay,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        if let Some(mut desk) = self.spares.desks.as_ref().and_then(|desks| desks.get_mut(self.account)) {
            desk.coming -= 1;
        }
    }
}

/// Behind the start of a session: puts a spare in the place of the one that it took, or the first one of an account that is busy.
pub async fn replace(gateway: &Gateway, live: &Live) {
    let Some(taken) = &live.reserved else { return };
    let Session { account, key, .. } = &taken.session;
    if gateway.outage.is_away() {
        return;
    }
    let Some(_coming) = gateway.spares.expect(account, taken.is_spare()) else { return };
    let who = Principal { account: account.clone(), key: key.clone() };
    let (id, since, now) = (SessionId::random(), Instant::now(), gateway.clock.now());
    match gateway.billing.hold_ahead(&who, id.clone(), &gateway.id, OTHERS, now).await {
        Ok(Some(held)) => gateway.spares.put(account, Spare { held, since }),
        Ok(None) => {}
        Err(HoldError::Refused(refusal @ (Refusal::KeyRevoked | Refusal::Suspended))) if taken.is_spare() => {
            info!(session = %live.id, %account, %refusal, "a session ends: it had begun before this was seen");
            live.end(Close::NotAllowed);
        }
        Err(HoldError::Store(error)) => {
            gateway.outage.note(&error);
            gateway.spares.give_back([Unwanted::Unsure(account.clone(), id)]);
        }
        Err(error) => debug!(%account, %error, "no session is held ahead"),
    }
}

/// Asks again where there is no room but for what is held ahead: when that is given back, here and elsewhere.
///
/// # Errors
///
/// What is answered in the end, and told of where it is a refusal.
pub async fn insist<T, F: Future<Output = Result<T, HoldError>>>(
    gateway: &Gateway,
    (account, session): (&AccountId, &SessionId),
    ask: impl Fn() -> F,
) -> Result<T, HoldError> {
    let first = ask().await;
    let Err(HoldError::Ahead(refusal)) = first else { return first };
    gateway.spares.give_up(account);
    let refusal = match Waiting::of(&gateway.spares, account) {
        None => refusal,
        Some(_waiting) => {
            let deadline = Instant::now() + GONE;
            loop {
                sleep(AGAIN).await;
                match ask().await {
                    Err(HoldError::Ahead(refusal)) if Instant::now() >= deadline => break refusal,
                    Err(HoldError::Ahead(_)) => {}
                    answer => return answer,
                }
            }
        }
    };
    let told = gateway.billing.tell_refused(account, session, &refusal, gateway.clock.now()).await;
    if let Err(error) = told {
        gateway.outage.note(&error);
    }
    Err(refusal.into())
}

/// One who would be refused, until it is dropped.
struct Waiting<'a> {
    spares: &'a Spares,
    account: &'a AccountId,
}

impl<'a> Waiting<'a> {
    /// None: as many wait as may.
    fn of(spares: &'a Spares, account: &'a AccountId) -> Option<Self> {
        let mut desk = spares.desks.as_ref()?.entry(account.clone()).or_default();
        if desk.waiting >= WAITING {
            return None;
        }
        desk.waiting += 1;
        Some(Self { spares, account })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(mut desk) = self.spares.desks.as_ref().and_then(|desks| desks.get_mut(self.account)) {
            desk.waiting -= 1;
        }
    }
}

/// Gives back what nobody takes. Never ends.
pub async fn tend(gateway: Arc<Gateway>) {
    let mut looks = interval(LIFETIME);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = gateway.spares.is_unwanted.notified() => {}
        }
        let now = Instant::now();
        give_back_all(&gateway, |since| now.duration_since(since) >= LIFETIME);
    }
}

/// Gives all back; there are none from here on.
pub async fn close(gateway: &Arc<Gateway>) {
    gateway.spares.is_closed.store(true, Ordering::Release);
    let all_are_back = async {
        loop {
            give_back_all(gateway, |_| true);
            if gateway.spares.under_way.load(Ordering::Acquire) == 0 {
                return;
            }
            sleep(LOOK).await;
        }
    };
    if timeout(CLOSE, all_are_back).await.is_err() {
        warn!(
            "sessions that nobody asked for may be held still; other gateways give them back, or the next start here"
        );
    }
}

/// Each in a task of its own: a ledger that keeps one waiting does not let the others grow old.
fn give_back_all(gateway: &Arc<Gateway>, is_old: impl Fn(Instant) -> bool) {
    // From before they are taken out: whoever closes looks at this.
    let _until_all_count = UnderWay::one_of(&gateway.spares);
    for unwanted in gateway.spares.take_unwanted(is_old) {
        let (gateway, under_way) = (Arc::clone(gateway), UnderWay::one_of(&gateway.spares));
        tokio::spawn(async move {
            give_back(&gateway, unwanted).await;
            drop(under_way);
        });
    }
}

async fn give_back(gateway: &Gateway, unwanted: Unwanted) {
    let (account, id) = match unwanted {
        Unwanted::Held(spare) => return settle::void(gateway, &spare, NOT_NEEDED).await,
        Unwanted::Unsure(account, id) => (account, id),
    };
    for pause in RETRIES {
        sleep(pause).await;
        match forget(gateway, &account, &id).await {
            Ok(()) => return,
            Err(error) => gateway.outage.note(&error),
        }
    }
    warn!(session = %id, %account, "whether a session that nobody asked for is held is not known; it is looked for later");
}

/// Voids it, where it was held.
async fn forget(gateway: &Gateway, account: &AccountId, id: &SessionId) -> Result<(), StoreError> {
    let held = gateway.billing.session(account, id).await?.filter(|session| session.state == State::Held);
    let Some(held) = held else { return Ok(()) };
    match gateway.billing.void(held.name(), NOT_NEEDED, gateway.clock.now()).await {
        Err(billing::Error::Store(error)) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// How it is told in the session's record.
const NOT_NEEDED: &str = "not needed";
