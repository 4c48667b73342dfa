//! The driver: load an account, let the ledger decide, commit, and once more when another got in between.

use std::slice;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::account::Account;
use crate::archive::ArchiveError;
use crate::audit::{Actor, Entry, Fault, Verified};
use crate::delivery::Group;
use crate::event::{Bell, Cursor, Heard};
use crate::id::{AccountId, CommandId, GatewayId, HoldId, HoldIds, KeyId, SessionId};
use crate::key::{Key, Principal, Secret, SigningKey};
use crate::ledger::{
    self, Answer, Change, Context, NotExtended, Opening, Progress, Refusal, Refused, SessionChange,
};
use crate::money::Micros;
use crate::plan::{Catalogue, Plan, Terms};
use crate::request::NewSession;
use crate::session::{End, Session, SessionCursor, SessionName, State};
#[cfg(test)]
use crate::store::memory::Line;
use crate::store::{Committed, Durability, Noted, Promise, Store, StoreError, StoreUrl};
use crate::time::Timestamp;
use crate::usage::{self, PeriodUsage, Span};
use crate::webhook::WebhookError;

mod debt;
mod gateways;
#[cfg(test)]
mod tests;

pub use debt::{Credit, Debt, Ended};

/// How often a command is decided anew because its account has moved on. Within one process a round lasts
/// microseconds and somebody wins each, so that many in a row mean that something else is wrong.
pub(crate) const CONFLICTS_MAX: u32 = 1_000;

/// The label of the key that an account is opened with.
const FIRST_KEY: &str = "default";

/// What the store knows the signing key as.
pub(crate) const SIGNING_KEY: &str = "signing_key";

/// Bounds that an operator sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lost sessions of one account that are refunded on one day, UTC. There is a bound because a page can
    /// crash its own browser.
    pub refunds_per_day: u32,
}

impl Default for Limits {
    /// Ten: more than bad luck brings, too few to live on.
    fn default() -> Self {
        Limits { refunds_per_day: 10 }
    }
}

/// What a customer is made of.
#[derive(Clone, Debug)]
pub struct NewCustomer {
    /// The account's id; a random one if `None`.
    pub id: Option<AccountId>,
    /// Where its owner is reached.
    pub email: String,
    /// The name of a plan.
    pub plan: String,
    /// Makes it a prepaid account with this balance; without it, it is a subscription.
    pub prepaid: Option<Micros>,
}

/// A session whose price is set aside.
#[derive(Clone, Debug)]
pub struct Held {
    /// The session.
    pub session: Session,
    /// What it costs.
    pub plan_terms: Terms,
    /// The account's sessions that are held or open, this one among them.
    pub concurrent: u32,
}

/// A session whose price is set aside, as soon as [`Billing::confirm`] says so.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// The session.
    pub session: Session,
    /// The account's sessions that are held or open, this one among them.
    pub concurrent: u32,
    cover: Cover,
}

/// What a session that may have its browser is covered by.
#[derive(Clone, Debug)]
enum Cover {
    Held,
    /// Held before anybody asked for it.
    Spare,
    Promise(Promise),
    /// Nothing is set aside for it.
    Credit,
}

impl Reserved {
    /// Whether nothing of it was written down yet when it was answered, so that [`Billing::confirm`] may have to refuse it
    /// and its client is to get nothing before that.
    pub fn is_on_its_way(&self) -> bool {
        matches!(self.cover, Cover::Promise(Promise::Sent(_)))
    }

    /// Has a commit that is on its way set off, where it has not: by itself it lets a millisecond pass, in which its client's
    /// first word is to be passed on.
    pub fn hurry(&self) {
        if let Cover::Promise(promise) = &self.cover {
            promise.hurry();
        }
    }

    /// It was confirmed, and is held whatever was known of that before.
    #[must_use]
    pub fn confirmed(self) -> Self {
        match self.cover {
            Cover::Promise(_) => Reserved { cover: Cover::Held, ..self },
            Cover::Held | Cover::Spare | Cover::Credit => self,
        }
    }

    /// Waits for a commit that is on its way, without a hurry. [`Billing::confirm`] says what became of it.
    pub async fn arrived(&self) {
        if let Cover::Promise(promise) = &self.cover {
            promise.arrived().await;
        }
    }

    /// Whether it was held [ahead](Billing::hold_ahead) of whoever asked for it: what was decided of its account since has not
    /// been seen.
    pub fn is_spare(&self) -> bool {
        matches!(self.cover, Cover::Spare)
    }
}

/// An account and its plan, as they are at one moment.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The account, in the period that the moment is in.
    pub account: Account,
    /// Its plan.
    pub plan: Plan,
}

impl Reserved {
    /// Whether the ledger has it for sure, without asking.
    pub fn is_held(&self) -> bool {
        match &self.cover {
            Cover::Held | Cover::Spare => true,
            Cover::Promise(promise) => promise.is_kept(),
            Cover::Credit => false,
        }
    }
}

impl Standing {
    /// Sessions that it can start without overage: retry credits, included sessions, and what the balance pays for.
    /// `None` where a session costs nothing, so that there is no end to them.
    pub fn remaining_sessions(&self) -> Option<u64> {
        let Account { balance, included, retry, .. } = &self.account;
        let paid = balance.get().checked_div(self.plan.session_price.get())?;
        Some(paid + u64::from(*included) + u64::from(*retry))
    }
}

/// Why a session may not start.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The account may not start one.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The account has a session of that id, as it is now. Nothing was charged again.
    #[error("the session exists")]
    Exists(Box<Session>),
    /// The account has a session of that id, which was asked for with other words. Nothing was charged again.
    #[error("the session exists, and another one was asked for")]
    ExistsDifferent(Box<Session>),
    /// The same, while sessions of the account are held [ahead](Billing::hold_ahead) of whoever asks: some of them may be given
    /// back, so that it is worth while to ask again.
    #[error("{0}, while sessions are held ahead")]
    Ahead(Refusal),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why no further minutes are set aside.
#[derive(Debug, thiserror::Error)]
pub enum ExtendError {
    /// The account cannot pay for them.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such session, it has not begun, or it has ended.
    #[error("the session is not open")]
    NotOpen,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<NotExtended> for ExtendError {
    fn from(error: NotExtended) -> Self {
        match error {
            NotExtended::NotOpen => ExtendError::NotOpen,
            NotExtended::Refused(refusal) => refusal.into(),
        }
    }
}

/// Why a command changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such account.
    #[error("there is no such account")]
    NoAccount,
    /// The account has no such session.
    #[error("there is no such session")]
    NoSession,
    /// The catalogue has no such plan.
    #[error("there is no plan {0:?}")]
    NoPlan(String),
    /// An account of that id exists.
    #[error("the account exists")]
    AccountExists,
    /// The ledger refused it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It is about webhooks.
    #[error(transparent)]
    Webhook(WebhookError),
    /// The account and its audit log do not agree.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// An archive cannot be read, or is not intact.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Accounts, sessions and their money. Clones share one store, which closes with the last of them.
///
/// Every command may be repeated: with the same id and content it changes nothing and answers the same. A
/// command whose future is dropped has been carried out or not, never in part.
#[derive(Clone, Debug)]
pub struct Billing {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    catalogue: Catalogue,
    limits: Limits,
    holds: HoldIds,
    /// Of each group's consumer in this process.
    bells: [Bell; Group::ALL.len()],
    /// Notified when there is a new parcel.
    parcels: Notify,
}

/// What a command is about, and what must have happened before it is answered.
struct Order<'a> {
    account: &'a AccountId,
    /// The sessions that exist and that the command needs.
    sessions: &'a [SessionId],
    durability: Durability,
    now: Timestamp,
}

/// What a command came to: the change that was committed, or nothing that was left to do.
enum Applied {
    Changed(Arc<Change>),
    Exists,
}

impl Billing {
    /// Opens the store, and makes it where there is none. Other processes may have it open, too. A store behind a
    /// network is connected to when it is first asked; [`Billing::probe`] does nothing else.
    ///
    /// # Errors
    /// When the store cannot be opened, or was made by another version of this program.
    pub fn open(url: &StoreUrl, catalogue: Catalogue, limits: Limits) -> Result<Billing, StoreError> {
        let store = Store::open(url)?;
        let (holds, (bells, parcels)) = (HoldIds::new(), Default::default());
        Ok(Billing { shared: Arc::new(Shared { store, catalogue, limits, holds, bells, parcels }) })
    }

    /// The same on another store.
    pub(crate) fn same_with(&self, url: &StoreUrl) -> Result<Billing, StoreError> {
        Billing::open(url, self.shared.catalogue.clone(), self.shared.limits)
    }

    /// On a server in memory.
    #[cfg(test)]
    pub(crate) fn over(line: Line, catalogue: Catalogue, limits: Limits, holds: HoldIds) -> Billing {
        let (store, (bells, parcels)) = (Store::over(line), Default::default());
        Billing { shared: Arc::new(Shared { store, catalogue, limits, holds, bells, parcels }) }
    }

    /// Whether other gateways may be at work on the same store.
    pub fn is_shared(&self) -> bool {
        self.store().is_shared()
    }

    /// Asks the store for a sign of life.
    ///
    /// # Errors
    /// When it cannot be reached, does not answer, or was made by another version of this program.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.store().probe().await
    }

    /// What the clock of the store shows, where it has one that all gateways share.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn time_of_store(&self) -> Result<Option<Timestamp>, StoreError> {
        self.store().time().await
    }

    /// Opens an account with its first key, whose secret is answered here and never again. Waits for the disk.
    ///
    /// # Errors
    /// [`Error::AccountExists`], [`Error::NoPlan`], or a text or amount that is out of range.
    pub async fn create_customer(
        &self,
        new: NewCustomer,
        actor: Actor,
        now: Timestamp,
    ) -> Result<(Account, Secret), Error> {
        let Some(plan) = self.shared.catalogue.get(&new.plan) else {
            return Err(Error::NoPlan(new.plan));
        };
        let (key, secret) = Key::mint(FIRST_KEY.to_owned(), now);
        let id = new.id.unwrap_or_else(AccountId::random);
        let opening = Opening { id, email: new.email, prepaid: new.prepaid, key };
        let change = Arc::new(ledger::open(opening, &actor, Context { plan, now })?);
        match self.store().commit(None, &change, Durability::Disk).await? {
            Committed::Done => self.ring(&change),
            Committed::Conflict | Committed::Exists => return Err(Error::AccountExists),
        }
        self.store().wait_for(&change.account.id, Durability::Disk).await?;
        Ok((Arc::unwrap_or_clone(change).account, secret))
    }

    /// The account as it is now, or `None`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError> {
        Ok(self.store().reload(id).await?.map(Arc::unwrap_or_clone))
    }

    /// The account as it stands at `now`, with its plan, or `None`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn standing(&self, id: &AccountId, now: Timestamp) -> Result<Option<Standing>, StoreError> {
        let Some(account) = self.store().reload(id).await? else { return Ok(None) };
        let plan = self.plan(&account)?;
        let account = ledger::standing(&account, Context { plan, now });
        Ok(Some(Standing { account, plan: plan.clone() }))
    }

    /// All accounts, ordered by id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.store().accounts().await
    }

    /// Adds money to the balance, once for each `command`. Waits for the disk.
    ///
    /// # Errors
    /// [`Refused::ExistsDifferent`] when the command's id was used for anything else, [`Refused::OutOfRange`]
    /// when the amount is zero or takes the balance beyond [`Micros::MAX`].
    pub async fn credit(
        &self,
        id: &AccountId,
        amount: Micros,
        command: CommandId,
        actor: Actor,
        now: Timestamp,
    ) -> Result<Account, Error> {
        if self.store().command(id, &command).await?.is_none() {
            let order = Order { account: id, sessions: &[], durability: Durability::Disk, now };
            let credited = self.apply(order, |account, _, given| {
                ledger::credit(account, amount, &command, &actor, given).map_err(Error::Refused)
            });
            if let Applied::Changed(change) = credited.await?.ok_or(Error::NoAccount)? {
                return Ok(Arc::unwrap_or_clone(change).account);
            }
        }
        let earlier = self.store().command(id, &command).await?.ok_or(Error::NoAccount)?;
        ledger::same_credit(&earlier, amount)?;
        self.store().wait_for(id, Durability::Disk).await?;
        self.account(id).await?.ok_or(Error::NoAccount)
    }

    /// Stops the account from starting sessions, or lets it again. What runs is for its gateway to end. Waits for the disk.
    ///
    /// # Errors
    /// [`Error::NoAccount`], or the store's.
    pub async fn suspend(
        &self,
        id: &AccountId,
        suspended: bool,
        actor: Actor,
        now: Timestamp,
    ) -> Result<Account, Error> {
        self.change_account(id, now, |account, given| {
            ledger::alive(account)?;
            Ok(ledger::suspend(account, suspended, &actor, given))
        })
        .await
    }

    /// Sets at which balance the owner is told that it is low; zero: never; `None`: at the price of ten sessions. Waits for
    /// the disk.
    ///
    /// # Errors
    /// [`Refused::OutOfRange`], [`Error::NoAccount`], or the store's.
    pub async fn set_low_balance(
        &self,
        id: &AccountId,
        below: Option<Micros>,
        actor: Actor,
        now: Timestamp,
    ) -> Result<Account, Error> {
        self.change_account(id, now, |account, given| {
            ledger::alive(account)?;
            ledger::set_low_balance(account, below, &actor, given)
        })
        .await
    }

    /// Makes a key, whose secret is answered here and never again. Waits for the disk.
    ///
    /// # Errors
    /// [`Refused::TooManyKeys`], [`Refused::Text`] for the label, [`Error::NoAccount`], or the store's.
    pub async fn create_key(
        &self,
        id: &AccountId,
        label: String,
        actor: Actor,
        now: Timestamp,
    ) -> Result<(Key, Secret), Error> {
        let (key, secret) = Key::mint(label, now);
        let before = self.account(id).await?.ok_or(Error::NoAccount)?;
        let after = self
            .change_account(id, now, |account, given| ledger::create_key(account, key.clone(), &actor, given))
            .await?;
        self.drop_keys(&before, &after).await?;
        Ok((key, secret))
    }

    /// Revokes a key: the next hold with it is refused, whatever is cached where. Waits for the disk.
    ///
    /// # Errors
    /// [`Refused::NoKey`], [`Error::NoAccount`], or the store's.
    pub async fn revoke_key(
        &self,
        id: &AccountId,
        key: &KeyId,
        actor: Actor,
        now: Timestamp,
    ) -> Result<Account, Error> {
        self.change_account(id, now, |account, given| ledger::revoke_key(account, key, &actor, given)).await
    }

    /// Whose key this is, or `None` if it is nobody's or revoked. A key seen before costs no I/O; that another
    /// process revoked it is then noticed with the account's next command, so [`Billing::hold`] always does.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn authenticate(&self, presented: &str) -> Result<Option<Principal>, StoreError> {
        match Secret::parse(presented) {
            Some(secret) => self.store().principal(secret.hash()).await,
            None => Ok(None),
        }
    }

    /// Whether this key was used lately, without any I/O. It may have been revoked since.
    pub fn remembers(&self, presented: &str) -> bool {
        Secret::parse(presented).is_some_and(|secret| self.store().remembers(&secret.hash()))
    }

    /// Sets aside the price of a session, or refuses it: the one atomic step before a browser is taken. Runs on
    /// the caller's thread and does not wait for the disk. An id is free again when its session was voided.
    ///
    /// # Errors
    /// [`HoldError::Refused`] with the first reason there is, [`HoldError::Exists`] and
    /// [`HoldError::ExistsDifferent`] for an id that was held before, or the store's.
    pub async fn hold(
        &self,
        who: &Principal,
        session: impl Into<NewSession>,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<Held, HoldError> {
        self.hold_as(who, (&session.into(), self.shared.holds.mint()), gateway, now).await
    }

    async fn hold_as(
        &self,
        who: &Principal,
        (new, hold): (&NewSession, HoldId),
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<Held, HoldError> {
        let order = Order { account: &who.account, sessions: &[], durability: Durability::Process, now };
        let held = self.apply(order, |account, _, given| {
            let answer = ledger::hold(account, &who.key, (new, hold), gateway, None, given);
            answer.map_err(|refusal| denied(account, refusal))
        });
        let failed = match held.await {
            Ok(Some(Applied::Changed(change))) => return Ok(held_by(Arc::unwrap_or_clone(change))),
            Ok(Some(Applied::Exists)) => HoldError::Store(StoreError::Busy),
            Ok(None) | Err(HoldError::Refused(Refusal::KeyRevoked)) => return Err(Refusal::KeyRevoked.into()),
            Err(error) => error,
        };
        // A repeat is answered with its session, also where a new one would be refused.
        let (known, failed) = match (self.session(&who.account, &new.id).await, failed) {
            (Ok(known), failed) => (known, failed),
            // That nothing was changed now tells nothing of what was asked before.
            (Err(_), HoldError::Store(failed)) => return Err(failed.into()),
            (Err(error), _) => return Err(error.into()),
        };
        let failed = match known {
            Some(exists) if exists.state == State::Voided => {
                match self.hold_again(who, (new, hold), gateway, now).await {
                    Err(error) => error,
                    held => return held,
                }
            }
            Some(exists) => return Err(repeated(exists, new)),
            None => failed,
        };
        if let HoldError::Refused(refusal) = &failed {
            self.tell_refused(&who.account, &new.id, refusal, now).await?;
        }
        Err(failed)
    }

    /// The same as [`Billing::hold`], but where nothing stands against the session it may be answered before its commit.
    /// [`Billing::confirm`] waits for that.
    ///
    /// On a store of one's own the hold is noted in a journal, which costs one short write, and committed a moment later:
    /// by [`Billing::confirm`], or before any other command or look-up. What a process that is killed had noted is committed by
    /// [`Billing::settle_abandoned`]. On one behind a network the commit is on its way, and its session is to get nothing
    /// before it is confirmed ([`Reserved::is_on_its_way`]); that is done only for an account which would still be granted it
    /// after more sessions were started elsewhere. Wants a runtime, which takes it there.
    ///
    /// # Errors
    /// Those of [`Billing::hold`].
    pub async fn reserve(
        &self,
        who: &Principal,
        new: &NewSession,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<Reserved, HoldError> {
        // An id that was given by a customer may be one that exists.
        if new.is_fresh
            && let Some(reserved) = self.reserve_fresh(who, new, gateway, now)
        {
            return Ok(reserved);
        }
        // Boxed, as in `confirm`: their futures would be the largest part of a session's that never needs them.
        let held = Box::pin(self.hold_as(who, (new, self.shared.holds.mint()), gateway, now)).await?;
        Ok(Reserved { session: held.session, concurrent: held.concurrent, cover: Cover::Held })
    }

    fn reserve_fresh(
        &self,
        who: &Principal,
        new: &NewSession,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Option<Reserved> {
        let mut held = None;
        let promise = self.store().promise(&who.account, |account, others| {
            let given = Context { plan: self.plan(account).ok()?, now };
            if others > 0 && !ledger::has_room(account, others.saturating_add(1), given.plan) {
                return None;
            }
            let hold = (new, self.shared.holds.mint());
            let Ok(Answer::Change(change)) = ledger::hold(account, &who.key, hold, gateway, None, given)
            else {
                return None;
            };
            held = change.session.session().cloned().zip(Some(change.account.open));
            Some(change)
        })?;
        let (session, concurrent) = held?;
        Some(Reserved { session, concurrent, cover: Cover::Promise(promise) })
    }

    /// Holds a session that nobody has asked for yet, so that whoever does need not wait for that: one with this `id`, which is
    /// new, that asks for nothing else. Whoever holds it begins it or voids it, like any other; whoever would be refused a session meanwhile
    /// is told to ask again ([`HoldError::Ahead`]). `None`: there would be room for fewer than `others` beside it, the
    /// balance would be low, or the account is renewed soon.
    ///
    /// Either answer is of the account as it is now, whatever another process has done.
    ///
    /// # Errors
    /// Those of [`Billing::hold`], but nobody is told of a refusal.
    pub async fn hold_ahead(
        &self,
        who: &Principal,
        id: SessionId,
        gateway: &GatewayId,
        others: u32,
        now: Timestamp,
    ) -> Result<Option<Reserved>, HoldError> {
        let new = (&NewSession::from(id), self.shared.holds.mint());
        let order = Order { account: &who.account, sessions: &[], durability: Durability::Process, now };
        let held = self.apply(order, |account, _, given| {
            ledger::hold_ahead(account, &who.key, new, gateway, others, given).map_err(HoldError::Refused)
        });
        match held.await?.ok_or(HoldError::Refused(Refusal::KeyRevoked))? {
            Applied::Changed(change) => {
                let Held { session, concurrent, .. } = held_by(Arc::unwrap_or_clone(change));
                Ok(Some(Reserved { session, concurrent, cover: Cover::Spare }))
            }
            Applied::Exists => Ok(None),
        }
    }

    /// Makes sure that a reserved session is held. A repeat is free.
    ///
    /// # Errors
    /// Those of [`Billing::hold`]: another process has changed the account since. Nothing is held then, and the session
    /// must end.
    pub async fn confirm(&self, reserved: &Reserved, now: Timestamp) -> Result<(), HoldError> {
        let Cover::Promise(promise) = &reserved.cover else { return Ok(()) };
        match self.store().redeem(promise).await? {
            Committed::Done => return Ok(()),
            Committed::Conflict | Committed::Exists => {}
        }
        Box::pin(self.restore(&reserved.session, now)).await
    }

    /// Holds a session that was held before and that the store does not have: it was never committed, or forgotten in a
    /// failover. A repeat changes nothing.
    ///
    /// # Errors
    /// Those of [`Billing::hold`]; [`HoldError::Exists`] for another session that has its id.
    pub async fn restore(&self, held: &Session, now: Timestamp) -> Result<(), HoldError> {
        let Session { account, key, id, hold, gateway, request, .. } = held;
        let who = Principal { account: account.clone(), key: key.clone() };
        let again = NewSession::named(id.clone(), request.clone());
        match self.hold_as(&who, (&again, *hold), gateway, now).await {
            Ok(_) => Ok(()),
            Err(HoldError::Exists(exists)) if exists.hold == *hold && exists.state.is_open() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Publishes that a session was refused, which a customer who asks again and again cannot do too often. What is answered
    /// with [`HoldError::Refused`] was told of.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tell_refused(
        &self,
        account: &AccountId,
        session: &SessionId,
        refusal: &Refusal,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.tell(account, now, |account, given| ledger::tell_refused(account, session, refusal, given))
            .await
            .map(|_| ())
    }

    /// Publishes that a key is used in an unusual way, which `cause` says in a few words from a closed set: at most once a
    /// minute for each account. Whether it was now.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tell_unusual(
        &self,
        who: &Principal,
        cause: &'static str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.tell(&who.account, now, |account, given| ledger::tell_unusual(account, &who.key, cause, given))
            .await
    }

    /// Publishes what is told every so often. Whether it is time to is seen in the cache first, since mostly it is not.
    async fn tell(
        &self,
        account: &AccountId,
        now: Timestamp,
        decide: impl Fn(&Account, Context<'_>) -> Answer,
    ) -> Result<bool, StoreError> {
        let Some(known) = self.store().load(account).await? else { return Ok(false) };
        let given = Context { plan: self.plan(&known)?, now };
        if matches!(decide(&known, given), Answer::Exists) {
            return Ok(false);
        }
        let order = Order { account, sessions: &[], durability: Durability::Process, now };
        let told = self.apply::<StoreError>(order, |account, _, given| Ok(decide(account, given)));
        Ok(matches!(told.await?, Some(Applied::Changed(_))))
    }

    /// Holds a session in the place of one that was voided.
    async fn hold_again(
        &self,
        who: &Principal,
        (new, hold): (&NewSession, HoldId),
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<Held, HoldError> {
        let (account, sessions) = (&who.account, slice::from_ref(&new.id));
        let held = self.apply(
            Order { account, sessions, durability: Durability::Process, now },
            |account, session, given| {
                match session {
                    // Others may have been here since it was looked at.
                    Some(session) if session.state != State::Voided => Err(repeated(session.clone(), new)),
                    voided => ledger::hold(account, &who.key, (new, hold), gateway, voided, given)
                        .map_err(|refusal| denied(account, refusal)),
                }
            },
        );
        match held.await? {
            Some(Applied::Changed(change)) => Ok(held_by(Arc::unwrap_or_clone(change))),
            Some(Applied::Exists) => Err(StoreError::Busy.into()),
            None => Err(Refusal::KeyRevoked.into()),
        }
    }

    /// Lets the session's minutes count from `at` on. Does not wait for the disk.
    ///
    /// # Errors
    /// [`Refused::ExistsDifferent`] if they count from another instant, [`Refused::State`] or [`Refused::HeldAnew`] if
    /// the session was given up, [`Error::NoSession`], [`Error::NoAccount`], or the store's.
    pub async fn begin(&self, held: SessionName<'_>, at: Timestamp, now: Timestamp) -> Result<(), Error> {
        let SessionName { account, session, hold } = held;
        let order =
            Order { account, sessions: slice::from_ref(session), durability: Durability::Process, now };
        let begun = self.apply(order, |account, session, given| {
            let session = session.ok_or(Error::NoSession)?;
            ledger::begin(account, session, hold, at, given).map_err(Error::Refused)
        });
        begun.await?.ok_or(Error::NoAccount)?;
        Ok(())
    }

    /// Notes how far sessions of one account have come, and sets their next minutes aside, in one commit. What became
    /// of each is answered in their order; one that cannot pay does not keep the others from it. Does not wait for the
    /// disk.
    ///
    /// # Errors
    /// The store's: nothing was noted then, or the answer was lost; a repeat changes nothing twice.
    pub async fn meter(
        &self,
        account: &AccountId,
        progress: &[Progress],
        now: Timestamp,
    ) -> Result<Vec<Result<(), ExtendError>>, StoreError> {
        let sessions: Vec<_> = progress.iter().map(|progress| progress.session.clone()).collect();
        let order = Order { account, sessions: &sessions, durability: Durability::Process, now };
        let mut metered = Vec::new();
        let applied = self.apply_all::<StoreError>(order, |account, sessions, given| {
            let (answer, verdicts) = ledger::meter(account, sessions, progress, given);
            metered = verdicts;
            Ok(answer)
        });
        if applied.await?.is_none() {
            metered = progress.iter().map(|_| Err(NotExtended::NotOpen)).collect();
        }
        Ok(metered.into_iter().map(|verdict| verdict.map_err(ExtendError::from)).collect())
    }

    /// Bills a session that has ended and gives back what it did not use. Waits for the disk; a repeat answers
    /// the same final record.
    ///
    /// # Errors
    /// [`Refused::ExistsDifferent`] if it was billed with another end, [`Refused::State`] if it never began,
    /// [`Refused::HeldAnew`] if it was given up and its id is another one's, [`Error::NoSession`],
    /// [`Error::NoAccount`], or the store's.
    pub async fn post(&self, held: SessionName<'_>, end: End, now: Timestamp) -> Result<Session, Error> {
        let refunds = self.shared.limits.refunds_per_day;
        self.settle(held, now, |account, session, given| {
            ledger::post(account, session, (held.hold, &end), refunds, given)
        })
        .await
    }

    /// The same for a session that has begun at `begun_at`, whether or not that was noted. One commit instead of two.
    ///
    /// # Errors
    /// Those of [`Billing::begin`] and [`Billing::post`].
    pub async fn post_begun(
        &self,
        held: SessionName<'_>,
        begun_at: Timestamp,
        end: End,
        now: Timestamp,
    ) -> Result<Session, Error> {
        let refunds = self.shared.limits.refunds_per_day;
        self.settle(held, now, |account, session, given| {
            ledger::post_begun(account, session, (held.hold, begun_at, &end), refunds, given)
        })
        .await
    }

    /// Gives back all that a session took that never began. Waits for the disk; a repeat answers the same final
    /// record, or the session that its id was held for since, which is left alone.
    ///
    /// # Errors
    /// [`Refused::State`] if it has begun, [`Error::NoSession`], [`Error::NoAccount`], or the store's.
    pub async fn void(
        &self,
        held: SessionName<'_>,
        cause: &'static str,
        now: Timestamp,
    ) -> Result<Session, Error> {
        self.settle(held, now, |account, session, given| {
            ledger::void(account, session, held.hold, cause, given)
        })
        .await
    }

    /// The key that the gateways of this store sign their tokens with: made with the first call, the same from then on.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn signing_key(&self) -> Result<SigningKey, StoreError> {
        self.store().secret(SIGNING_KEY, crate::key::random()).await.map(SigningKey)
    }

    /// Commits the holds that an earlier process had decided and not committed.
    pub(crate) async fn recover(&self) -> Result<(), StoreError> {
        for Noted { who, new, hold, gateway, held_at } in self.store().recover()? {
            let id = &new.id;
            if self.session(&who.account, id).await?.is_some() {
                continue;
            }
            match self.hold_as(&who, (&new, hold), &gateway, held_at).await {
                Ok(_) | Err(HoldError::Exists(_) | HoldError::ExistsDifferent(_)) => {}
                Err(HoldError::Refused(refusal) | HoldError::Ahead(refusal)) => {
                    tracing::warn!(session = %id, account = %who.account, %refusal, "a session that began before a kill is not in the ledger");
                }
                Err(HoldError::Store(error)) => return Err(error),
            }
        }
        self.store().recovered();
        Ok(())
    }

    /// One session of an account, or `None`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn session(&self, account: &AccountId, id: &SessionId) -> Result<Option<Session>, StoreError> {
        self.store().session(account, id).await
    }

    /// An account's sessions, newest first, from the one after `after` on; at most `limit`, and at most
    /// [`LIST_MAX`](crate::LIST_MAX).
    ///
    /// # Errors
    /// When the store fails.
    pub async fn sessions(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        self.store().sessions(account, after, limit).await
    }

    /// The same of those that are held or open.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn running(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        self.store().running(account, after, limit).await
    }

    /// What an account used in the `last` periods, the one that `now` is in first; at most
    /// [`Span::most`](crate::Span::most). A session counts where it ended, and not before it was settled.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn usage(
        &self,
        account: &AccountId,
        by: Span,
        last: u32,
        now: Timestamp,
    ) -> Result<Vec<PeriodUsage>, StoreError> {
        let periods = by.periods(last, now);
        let from = periods.last().map_or(now, |oldest| oldest.start);
        let rows = self.store().usage(account, by.bucket(), from).await?;
        Ok(usage::gather(periods, &rows))
    }

    /// The sessions of all accounts that are held or open.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open_sessions(&self) -> Result<Vec<Session>, StoreError> {
        self.store().open_sessions().await
    }

    /// An account's entries after number `after_seq`, in order; at most `limit`, and at most
    /// [`LIST_MAX`](crate::LIST_MAX).
    ///
    /// # Errors
    /// When the store fails.
    pub async fn audit(
        &self,
        account: &AccountId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        self.store().audit(account, after_seq, limit).await
    }

    /// How many streams the events are in. Those of one account are in one stream, in order.
    pub fn event_streams(&self) -> u16 {
        self.store().event_streams()
    }

    /// The stream that has the account's events.
    pub fn event_stream_of(&self, account: &AccountId) -> u16 {
        self.store().event_stream_of(account)
    }

    /// What one stream has after `after`, in order, each with the place behind it; at most `limit`, and at most
    /// [`LIST_MAX`](crate::LIST_MAX).
    ///
    /// # Errors
    /// When the store fails.
    pub async fn events(
        &self,
        stream: u16,
        after: &Cursor,
        limit: u32,
    ) -> Result<Vec<(Cursor, Heard)>, StoreError> {
        self.store().events(stream, after, limit).await
    }

    /// Replays the whole log: its chain is intact, its sums are the account's figures, and the open sessions
    /// are as many as the account counts.
    ///
    /// # Errors
    /// [`Error::Fault`] with the first thing that is wrong, [`Error::NoAccount`], or the store's.
    pub async fn verify(&self, account: &AccountId) -> Result<Verified, Error> {
        Ok(self.store().verify(account).await?.ok_or(Error::NoAccount)??)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.shared.store
    }

    pub(crate) fn bell(&self, group: Group) -> &Bell {
        &self.shared.bells[group as usize]
    }

    pub(crate) fn parcels(&self) -> &Notify {
        &self.shared.parcels
    }

    /// Tells the consumers in this process that there are events. What is not told of here they find by looking.
    fn ring(&self, change: &Change) {
        if change.events.is_empty() {
            return;
        }
        if let Ok(stream) = u8::try_from(self.event_stream_of(&change.account.id)) {
            self.shared.bells.iter().for_each(|bell| bell.ring(stream));
        }
    }

    /// An operator's or a customer's change to the account itself.
    pub(crate) async fn change_account(
        &self,
        id: &AccountId,
        now: Timestamp,
        decide: impl Fn(&Account, Context<'_>) -> Result<Answer, Refused>,
    ) -> Result<Account, Error> {
        let order = Order { account: id, sessions: &[], durability: Durability::Disk, now };
        let changed = self.apply(order, |account, _, given| decide(account, given).map_err(Error::Refused));
        match changed.await?.ok_or(Error::NoAccount)? {
            Applied::Changed(change) => Ok(Arc::unwrap_or_clone(change).account),
            Applied::Exists => self.account(id).await?.ok_or(Error::NoAccount),
        }
    }

    /// A command that ends a session.
    async fn settle(
        &self,
        SessionName { account, session, .. }: SessionName<'_>,
        now: Timestamp,
        decide: impl Fn(&Account, &Session, Context<'_>) -> Result<Answer, Refused>,
    ) -> Result<Session, Error> {
        let order = Order { account, sessions: slice::from_ref(session), durability: Durability::Disk, now };
        let settled = self.apply(order, |account, session, given| {
            decide(account, session.ok_or(Error::NoSession)?, given).map_err(Error::Refused)
        });
        match settled.await?.ok_or(Error::NoAccount)? {
            Applied::Changed(change) => Ok(session_of(Arc::unwrap_or_clone(change))),
            Applied::Exists => self.session(account, session).await?.ok_or(Error::NoSession),
        }
    }

    /// [`Billing::apply_all`] for one session or none.
    async fn apply<E: From<StoreError>>(
        &self,
        order: Order<'_>,
        decide: impl Fn(&Account, Option<&Session>, Context<'_>) -> Result<Answer, E>,
    ) -> Result<Option<Applied>, E> {
        self.apply_all(order, |account, sessions, given| {
            decide(account, sessions.first().and_then(Option::as_ref), given)
        })
        .await
    }

    /// Loads, decides and commits, until the account stayed the same in between. `None`: there is no such
    /// account.
    async fn apply_all<E: From<StoreError>>(
        &self,
        order: Order<'_>,
        mut decide: impl FnMut(&Account, &[Option<Session>], Context<'_>) -> Result<Answer, E>,
    ) -> Result<Option<Applied>, E> {
        for _ in 0..CONFLICTS_MAX {
            let Some(account) = self.store().load(order.account).await? else {
                return Ok(None);
            };
            // The sessions are read after the account. Whatever changes one changes the account's version, too, so
            // a commit on this version proves that none had moved.
            let mut sessions = Vec::with_capacity(order.sessions.len());
            for id in order.sessions {
                sessions.push(self.store().load_session(order.account, id).await?);
            }
            let given = Context { plan: self.plan(&account)?, now: order.now };
            let decided = match decide(&account, &sessions, given) {
                Ok(Answer::Change(change)) => {
                    match self.store().commit(Some(&account), &change, order.durability).await? {
                        Committed::Done => {
                            self.ring(&change);
                            Ok(Applied::Changed(change))
                        }
                        Committed::Exists => Ok(Applied::Exists),
                        Committed::Conflict => {
                            tokio::task::yield_now().await;
                            continue;
                        }
                    }
                }
                Ok(Answer::Exists) if self.store().confirm(&account).await? => Ok(Applied::Exists),
                Err(refusal) if self.store().confirm(&account).await? => Err(refusal),
                Ok(Answer::Exists) | Err(_) => continue,
            };
            let applied = decided?;
            self.store().wait_for(order.account, order.durability).await?;
            return Ok(Some(applied));
        }
        Err(StoreError::Busy.into())
    }

    fn plan(&self, account: &Account) -> Result<&Plan, StoreError> {
        let plan = self.shared.catalogue.get(&account.plan);
        plan.ok_or_else(|| StoreError::UnknownPlan(account.plan.clone()))
    }
}

fn denied(account: &Account, refusal: Refusal) -> HoldError {
    if account.ahead > 0 && refusal.is_for_lack() {
        HoldError::Ahead(refusal)
    } else {
        HoldError::Refused(refusal)
    }
}

fn repeated(exists: Session, new: &NewSession) -> HoldError {
    let same = exists.request == new.request;
    let exists = Box::new(exists);
    if same { HoldError::Exists(exists) } else { HoldError::ExistsDifferent(exists) }
}

fn held_by(change: Change) -> Held {
    let concurrent = change.account.open;
    let session = session_of(change);
    Held { plan_terms: session.terms, session, concurrent }
}

fn session_of(change: Change) -> Session {
    match change.session {
        SessionChange::New(session) | SessionChange::Again(session) | SessionChange::Update(session) => {
            Some(session)
        }
        SessionChange::None | SessionChange::Several(_) => None,
    }
    .expect("the ledger answers a session's command with the session")
}
