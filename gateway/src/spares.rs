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

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use billing::{AccountId, Billing, HoldError, KeyId, NewSession, Principal, Refusal, Reserved, Session};
use dashmap::DashMap;
use futures_util::future::join_all;
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

/// One that was held so long ago is taken or given back: [`tend`] looks for those whose time is over as often.
const GONE: Duration = Duration::from_secs(3);

/// How often who waits for that asks again.
const AGAIN: Duration = Duration::from_millis(250);

/// How long the ledger may take to give them back at the end. Who does not wait leaves it to others.
const CLOSE: Duration = Duration::from_secs(5);

/// How often it is looked whether those that are being held have come.
const LOOK: Duration = Duration::from_millis(5);

/// Sessions that an account must have room for beside a spare: what other gateways may start of it meanwhile is not to wait
/// for its sake.
const OTHERS: u32 = 16;

/// The spares of this gateway.
#[derive(Debug)]
pub struct Spares {
    /// Of each account that started any lately. None where a hold costs no round trip.
    desks: Option<DashMap<AccountId, Desk>>,
    is_closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Desk {
    /// The latest starts, up to [`BUSY`].
    starts: VecDeque<Instant>,
    /// The oldest first.
    spares: VecDeque<Spare>,
    /// Spares that are being held.
    coming: usize,
}

#[derive(Debug)]
struct Spare {
    held: Reserved,
    since: Instant,
}

impl Spares {
    #[must_use]
    pub fn of(billing: &Billing) -> Self {
        Self { desks: billing.is_shared().then(DashMap::new), is_closed: AtomicBool::new(false) }
    }

    /// A spare, where there is one that does for what is asked.
    pub fn take(&self, who: &Principal, new: &NewSession) -> Option<Reserved> {
        let mut desk = self.desks.as_ref()?.entry(who.account.clone()).or_default();
        let now = Instant::now();
        desk.note_start(now);
        let held = if new.is_any() { desk.take(&who.key, now) } else { None };
        held.inspect(|_| metrics::counter!("ufb_gateway_spare_holds_used_total").increment(1))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        let desks = self.desks.iter().flat_map(DashMap::iter);
        desks.map(|desk| desk.spares.len()).sum()
    }

    fn are_coming(&self) -> bool {
        self.desks.iter().flat_map(DashMap::iter).any(|desk| desk.coming > 0)
    }

    /// Whether one more is to be held, of which it has to be said when it [has come](Self::has_come), or not.
    fn expect(&self, account: &AccountId, is_replaced: bool) -> bool {
        let Some(desks) = self.desks.as_ref().filter(|_| !self.is_closed.load(Ordering::Acquire)) else {
            return false;
        };
        let mut desk = desks.entry(account.clone()).or_default();
        let is_wanted = is_replaced || desk.lacks_one(Instant::now());
        desk.coming += usize::from(is_wanted);
        is_wanted
    }

    /// For the next who asks. The answer is what there is no room for.
    fn put(&self, account: &AccountId, spare: Spare) -> Option<Spare> {
        let Some(mut desk) = self.desks.as_ref()?.get_mut(account) else { return Some(spare) };
        // Whoever closes waits for what is coming.
        if desk.spares.len() >= MOST || self.is_closed.load(Ordering::Acquire) {
            return Some(spare);
        }
        desk.spares.push_back(spare);
        None
    }

    fn has_come(&self, account: &AccountId) {
        if let Some(mut desk) = self.desks.as_ref().and_then(|desks| desks.get_mut(account)) {
            desk.coming -= 1;
        }
    }

    /// Takes out what has not been taken for too long, or all, and forgets who has not come for as long.
    fn take_old(&self, is_old: impl Fn(Instant) -> bool) -> Vec<Reserved> {
        let mut old = Vec::new();
        if let Some(desks) = &self.desks {
            desks.retain(|_, desk| {
                while let Some(spare) = desk.spares.pop_front_if(|spare| is_old(spare.since)) {
                    old.push(spare.held);
                }
                desk.coming > 0
                    || !desk.spares.is_empty()
                    || desk.starts.back().is_some_and(|&last| !is_old(last))
            });
        }
        old
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

/// Behind the start of a session: puts a spare in the place of the one that it took, or the first one of a key that is busy.
pub async fn replace(gateway: &Gateway, live: &Live) {
    let Some(taken) = &live.reserved else { return };
    let Session { account, key, .. } = &taken.session;
    if gateway.outage.is_away() || !gateway.spares.expect(account, taken.is_spare()) {
        return;
    }
    let who = Principal { account: account.clone(), key: key.clone() };
    let since = Instant::now();
    let held = gateway.billing.hold_ahead(&who, &gateway.id, OTHERS, gateway.clock.now()).await;
    match held {
        Ok(Some(held)) => {
            if let Some(unwanted) = gateway.spares.put(account, Spare { held, since }) {
                give_back(gateway, &unwanted.held).await;
            }
        }
        Ok(None) => {}
        Err(error) => note(gateway, live, &error),
    }
    gateway.spares.has_come(account);
}

/// A session is not held ahead.
fn note(gateway: &Gateway, live: &Live, error: &HoldError) {
    let is_spare = live.reserved.as_ref().is_some_and(Reserved::is_spare);
    match error {
        HoldError::Refused(Refusal::KeyRevoked | Refusal::Suspended) if is_spare => {
            info!(session = %live.id, account = %live.account, %error, "a session ends: it had begun before this was seen");
            live.end(Close::NotAllowed);
        }
        HoldError::Store(error) => gateway.outage.note(error),
        _ => debug!(account = %live.account, %error, "no session is held ahead"),
    }
}

/// Asks again where there is no room but for what is held ahead: when that is given back, here and elsewhere.
///
/// # Errors
///
/// What is answered in the end.
pub async fn insist<T, F: Future<Output = Result<T, HoldError>>>(
    gateway: &Gateway,
    account: &AccountId,
    ask: impl Fn() -> F,
) -> Result<T, HoldError> {
    let first = ask().await;
    if !matches!(first, Err(HoldError::Ahead(_))) {
        return first;
    }
    // Boxed, like all that is off the path.
    Box::pin(give_back_all(gateway, account)).await;
    let deadline = Instant::now() + GONE;
    loop {
        match ask().await {
            Err(HoldError::Ahead(_)) if Instant::now() < deadline => sleep(AGAIN).await,
            answer => return answer,
        }
    }
}

/// All of one account that are held here, those included that are coming.
async fn give_back_all(gateway: &Gateway, account: &AccountId) {
    let own = || gateway.spares.desks.as_ref().and_then(|desks| desks.get_mut(account));
    let has_come = async {
        while own().is_some_and(|desk| desk.coming > 0) {
            sleep(LOOK).await;
        }
    };
    // Whoever still waits for the store then has nothing to give back yet.
    let _ = timeout(GONE, has_come).await;
    let all: Vec<_> = own().map(|mut desk| desk.spares.drain(..).collect()).unwrap_or_default();
    join_all(all.iter().map(|spare: &Spare| give_back(gateway, &spare.held))).await;
}

/// Gives back what nobody takes. Never ends.
pub async fn tend(gateway: Arc<Gateway>) {
    let mut looks = interval(LIFETIME);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let now = Instant::now();
        let old = gateway.spares.take_old(|since| now.duration_since(since) >= LIFETIME);
        join_all(old.iter().map(|spare| give_back(&gateway, spare))).await;
    }
}

/// Gives all back; there are none from here on.
pub async fn close(gateway: &Gateway) {
    gateway.spares.is_closed.store(true, Ordering::Release);
    let all_are_back = async {
        while gateway.spares.are_coming() {
            sleep(LOOK).await;
        }
        let all = gateway.spares.take_old(|_| true);
        join_all(all.iter().map(|spare| give_back(gateway, spare))).await;
    };
    if timeout(CLOSE, all_are_back).await.is_err() {
        warn!(
            "sessions that nobody asked for may be held still; other gateways give them back, or the next start here"
        );
    }
}

async fn give_back(gateway: &Gateway, spare: &Reserved) {
    settle::void(gateway, spare, "not needed").await;
}
