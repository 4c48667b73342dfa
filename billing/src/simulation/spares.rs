//! Sessions that a gateway holds before anybody asks for them: what `gateway/src/spares.rs` does, but for few who come and
//! go slowly.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::book::Hold;
use super::gateway::Gateway;
use super::scene::Wish;
use super::world::lock;
use crate::books::{Error, HoldError, Reserved};
use crate::id::{AccountId, SessionId};
use crate::key::Principal;
use crate::ledger::Refusal;
use crate::session::State;
use crate::store::StoreError;

/// How likely one is held behind the start of a session that took none, in thousandths.
const BUSY: u64 = 800;
/// How long one is kept. Shorter than the silence after which others settle what this gateway holds.
const LIFETIME: Duration = Duration::from_secs(10);
/// How often it is looked whether one is that old.
const LOOK: Duration = Duration::from_secs(1);
/// Who would be refused asks again so often, and for so long.
const AGAIN: Duration = Duration::from_millis(250);
const GONE: Duration = Duration::from_secs(3);
/// Whether one was held is asked after each of these pauses.
const RETRIES: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];
/// How it is told in the session's record.
pub(super) const NOT_NEEDED: &str = "not needed";

/// One that nobody has taken yet.
pub(super) struct Spare {
    seen: usize,
    held: Reserved,
    since: Instant,
}

impl Gateway {
    /// The latest that does for what is asked, and what was seen of it.
    pub(super) fn take_spare(&self, wish: &Wish) -> Option<(usize, Reserved)> {
        if !wish.is_fresh || self.is_away() {
            return None;
        }
        let does = |Spare { held, since, .. }: &Spare| {
            let session = &held.session;
            (&session.account, &session.key) == (&wish.who.account, &wish.who.key)
                && since.elapsed() < LIFETIME
        };
        let mut spares = lock(&self.spares);
        let latest = spares.iter().rposition(does)?;
        let Spare { seen, held, .. } = spares.remove(latest);
        self.life.note(|| format!("{} {} is taken", wish.who.account, held.session.id));
        Some((seen, held))
    }

    /// Behind the start of a session, which `told` tells to end: puts a spare in the place of the one that it took, or now
    /// and then a first one.
    pub(super) async fn replace(self: Arc<Self>, who: Principal, is_spare: bool, told: Arc<Notify>) {
        if self.is_away() || !(is_spare || self.world.chance().permille(BUSY)) {
            return;
        }
        let patience = self.world.patience();
        let others = self.world.chance().among(0..2);
        let others = u32::try_from(others).expect("it is small");
        // The same in each run of a seed.
        let id = format!("ahead{}", self.world.chance().among(0..u64::MAX));
        let id: SessionId = id.parse().expect("it is an id");
        let seen = self.book().ask(&who.account, &id, &self.life.id);
        let since = Instant::now();
        let holding = self.billing.hold_ahead(&who, id.clone(), &self.life.id, others, self.now());
        match timeout(patience, holding).await.unwrap_or(Err(StoreError::Busy.into())) {
            Ok(Some(held)) => {
                self.see_hold(seen, Hold::Held(held.session.hold));
                lock(&self.spares).push(Spare { seen, held, since });
            }
            Ok(None) => self.see_hold(seen, Hold::Nothing),
            Err(HoldError::Store(error)) => {
                self.note_failure(&error);
                self.forget(&who.account, &id).await;
            }
            Err(error) => {
                self.see_not_held(seen, &error);
                let is_over = matches!(error, HoldError::Refused(Refusal::KeyRevoked | Refusal::Suspended));
                if is_over && is_spare {
                    told.notify_one();
                }
            }
        }
    }

    /// Voids one where it is held, which nobody knows. What cannot be told, or comes later still, is found by whoever looks
    /// after what is open.
    async fn forget(&self, account: &AccountId, id: &SessionId) {
        for pause in RETRIES {
            sleep(pause).await;
            match self.try_to_forget(account, id).await {
                Ok(()) => return,
                Err(error) => self.note_failure(&error),
            }
        }
    }

    async fn try_to_forget(&self, account: &AccountId, id: &SessionId) -> Result<(), StoreError> {
        let known = self.billing.session(account, id).await?;
        let Some(held) = known.filter(|session| session.state == State::Held) else { return Ok(()) };
        match self.billing.void(held.name(), NOT_NEEDED, self.now()).await {
            Err(Error::Store(error)) => Err(error),
            Ok(_) | Err(_) => {
                self.life.note(|| format!("{account} {id} is forgotten"));
                Ok(())
            }
        }
    }

    /// Gives back what nobody takes.
    pub(super) async fn tend(self: Arc<Self>) {
        loop {
            sleep(LOOK).await;
            self.give_back(|spare| spare.since.elapsed() >= LIFETIME);
        }
    }

    fn give_back(self: &Arc<Self>, is_unwanted: impl FnMut(&mut Spare) -> bool) {
        for Spare { seen, held, .. } in lock(&self.spares).extract_if(.., is_unwanted) {
            let gateway = Arc::clone(self);
            self.life.spawn(async move { gateway.void(seen, &held.session, NOT_NEEDED).await });
        }
    }

    /// Asks again where there is no room but for what is held ahead.
    pub(super) async fn insist<T, F: Future<Output = Result<T, HoldError>>>(
        self: &Arc<Self>,
        (account, session): (&AccountId, &SessionId),
        ask: impl Fn() -> F,
    ) -> Result<T, HoldError> {
        let first = ask().await;
        let Err(HoldError::Ahead(_)) = first else { return first };
        self.life.note(|| format!("{account} {session} waits for what is held ahead"));
        self.give_back(|spare| spare.held.session.account == *account);
        let deadline = Instant::now() + GONE;
        let refusal = loop {
            sleep(AGAIN).await;
            match ask().await {
                Err(HoldError::Ahead(refusal)) if Instant::now() >= deadline => break refusal,
                Err(HoldError::Ahead(_)) => {}
                answer => return answer,
            }
        };
        if let Err(error) = self.billing.tell_refused(account, session, &refusal, self.now()).await {
            self.note_failure(&error);
        }
        Err(refusal.into())
    }
}
