//! The rules of money, and the only place where any is added or taken.
//!
//! Everything here is pure: an account, a session where there is one, and a command go in; what is to be
//! written comes out, or why nothing is. A hold sets a session's price aside; extensions set further minutes
//! aside; a post bills what was used and gives back the rest; a void or an expiry gives everything back.
//!
//! All checks come before the first write to the draft; from there on nothing can fail.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use crate::account::{Account, AccountType, Funds, Refunds};
use crate::audit::{Actor, Entry, EntryKind, Head, Subject};
use crate::event::{Event, EventKind, Told};
use crate::id::{AccountId, CommandId, GatewayId, HoldId, KeyId, SessionId, WebhookId};
use crate::key::{Key, LABEL_MAX};
use crate::money::Micros;
use crate::plan::{Plan, Terms};
use crate::request::NewSession;
use crate::session::{End, Funding, Outcome, Session, State, started_minutes};
use crate::time::{Period, Timestamp};
use crate::usage::{Usage, Used};

mod erase;
mod meter;
mod unsecured;
#[cfg(test)]
mod tests;

pub(crate) use erase::{alive, erase};
pub use meter::Progress;
pub(crate) use meter::meter;
pub(crate) use unsecured::hold_begun;

/// The most keys that an account keeps, so that its record stays small on the path of every session. A revoked
/// one makes room for a new one.
pub const KEYS_MAX: usize = 32;

/// How often it is told that an account's sessions are refused, so that a client that asks again and again does not
/// fill the stream of events.
const REFUSED_EVERY: Duration = Duration::from_secs(60);

/// The same of unusual use.
const UNUSUAL_EVERY: Duration = Duration::from_secs(60);

/// Far longer than a session is held that nobody has asked for.
const AHEAD_OF_RENEWAL: Duration = Duration::from_secs(60);

/// Whose balance pays for fewer sessions is told that it is low, unless another amount was set.
const LOW_BALANCE_SESSIONS: u32 = 10;

/// Why a session was ended by somebody other than its gateway.
const GATEWAY_LOST: &str = "gateway lost";

/// Why a session may not start, or not go on. What comes first here is checked first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key is revoked, or none of the account's.
    #[error("the key is revoked")]
    KeyRevoked,
    /// An operator has suspended the account.
    #[error("the account is suspended")]
    Suspended,
    /// The balance does not cover it, and the account has no overage.
    #[error("{balance} is there, {required} is needed")]
    Money {
        /// What the balance is.
        balance: Micros,
        /// What it takes.
        required: Micros,
    },
    /// What the balance lacks would take the period's overage beyond the plan's cap.
    #[error("{balance} is there, {required} is needed, and the overage would pass {cap}")]
    OverageCap {
        /// What the balance is.
        balance: Micros,
        /// What it takes.
        required: Micros,
        /// The most overage in one period.
        cap: Micros,
    },
    /// As many sessions run as the plan allows.
    #[error("the plan {plan} allows {limit} sessions at a time")]
    Concurrency {
        /// Sessions at a time.
        limit: u32,
        /// The name of the plan.
        plan: String,
    },
}

impl Refusal {
    /// Whether it may be for what is held ahead.
    pub(crate) fn is_for_lack(&self) -> bool {
        match self {
            Refusal::KeyRevoked | Refusal::Suspended => false,
            Refusal::Money { .. } | Refusal::OverageCap { .. } | Refusal::Concurrency { .. } => true,
        }
    }

    /// Its name in events.
    fn name(&self) -> &'static str {
        match self {
            Refusal::KeyRevoked => "key revoked",
            Refusal::Suspended => "suspended",
            Refusal::Money { .. } => "insufficient balance",
            Refusal::OverageCap { .. } => "overage cap",
            Refusal::Concurrency { .. } => "concurrency limit",
        }
    }
}

/// Why a command other than a hold or an extension changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A command of that id was carried out before, with other content.
    #[error("the same id was used before, with other content")]
    ExistsDifferent,
    /// The session is in a state that the command does not apply to.
    #[error("the session is {0:?}")]
    State(State),
    /// The session was given up, and its id is another one's.
    #[error("the session was given up, and its id is another one's")]
    HeldAnew,
    /// The account has no such key.
    #[error("the account has no such key")]
    NoKey,
    /// The account was erased.
    #[error("the customer was erased")]
    Erased,
    /// An account with open sessions is not erased.
    #[error("{0} of its sessions run")]
    SessionsOpen(u32),
    /// An account with money is not erased.
    #[error("{0} is left of its balance")]
    BalanceLeft(Micros),
    /// None of the account's keys is revoked, and there is no room for another.
    #[error("an account has at most {KEYS_MAX} keys")]
    TooManyKeys,
    /// An amount is zero, or a figure would leave its range.
    #[error("the amount is zero, or would take a figure beyond {}", Micros::MAX)]
    OutOfRange,
    /// A text is empty or too long.
    #[error("{field} must be 1 to {limit} bytes")]
    Text {
        /// What it is.
        field: &'static str,
        /// Its longest length, in bytes.
        limit: usize,
    },
}

/// Why no further minutes are set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotExtended {
    NotOpen,
    Refused(Refusal),
}

/// What every command is decided with: the account's plan, and the time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) now: Timestamp,
}

/// What a store must write, all or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The account as it will be; its version is one more than that of the account it was decided on.
    pub(crate) account: Account,
    /// New entries of its log, in order.
    pub(crate) entries: Vec<Entry>,
    pub(crate) session: SessionChange,
    /// What is added to the account's usage.
    pub(crate) used: Option<Used>,
    /// Whether the last of the account's keys is new and must be found by its hash.
    pub(crate) new_key: bool,
    /// What is told of it, in order.
    pub(crate) events: Vec<Event>,
}

/// What becomes of the session that a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionChange {
    None,
    /// Its id was never used.
    New(Session),
    /// It takes the place of one that was voided.
    Again(Session),
    Update(Session),
    /// Updates of so many.
    Several(Vec<Session>),
}

impl SessionChange {
    /// The session as it will be, where there is one.
    pub(crate) fn session(&self) -> Option<&Session> {
        match self.sessions() {
            [session] => Some(session),
            _ => None,
        }
    }

    /// All of them as they will be.
    pub(crate) fn sessions(&self) -> &[Session] {
        match self {
            SessionChange::New(session) | SessionChange::Again(session) | SessionChange::Update(session) => {
                slice::from_ref(session)
            }
            SessionChange::Several(sessions) => sessions,
            SessionChange::None => &[],
        }
    }
}

/// What a command comes to, where it is not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Change(Arc<Change>),
    /// It was carried out before, or there is nothing to do.
    Exists,
}

/// What a new account is made of.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) id: AccountId,
    pub(crate) email: String,
    /// The balance that a prepaid account starts with; `None` for a subscription.
    pub(crate) prepaid: Option<Micros>,
    pub(crate) key: Key,
}

/// Opens an account with its first key.
pub(crate) fn open(opening: Opening, actor: &Actor, given: Context<'_>) -> Result<Change, Refused> {
    let Opening { id, email, prepaid, key } = opening;
    check_text("email", &email, crate::account::EMAIL_MAX)?;
    check_text("label", &key.label, LABEL_MAX)?;
    let balance = prepaid.unwrap_or_default();
    if balance > Micros::MAX {
        return Err(Refused::OutOfRange);
    }

    let mut draft = Draft::of(&blank(id, email, prepaid.is_some(), given), given);
    if draft.account.kind == AccountType::Subscription {
        draft.account.included = given.plan.included_sessions;
    }
    draft.record(EntryKind::Opened, actor, Subject::default());
    draft.tell(EventKind::CustomerActivated, &Told::default());
    if balance > Micros::ZERO {
        draft.account.balance = balance;
        draft.record(EntryKind::Credited, actor, Subject::default());
    }
    Ok(draft.add_key(key, actor))
}

fn blank(id: AccountId, email: String, prepaid: bool, given: Context<'_>) -> Account {
    let kind = if prepaid { AccountType::Prepaid } else { AccountType::Subscription };
    Account {
        id,
        version: 0,
        email,
        plan: given.plan.name.clone(),
        kind,
        created_at: given.now,
        suspended: false,
        balance: Micros::ZERO,
        included: 0,
        retry: 0,
        overage: Micros::ZERO,
        period: (!prepaid).then(|| period(given.plan, given.now, given.now)),
        last_billed: None,
        open: 0,
        refunds: Refunds::default(),
        refused_at: None,
        unusual_at: None,
        low_balance: None,
        low_balance_told: false,
        ahead: 0,
        erased_at: None,
        keys: Vec::new(),
        head: Head::default(),
    }
}

/// Adds money to the balance. A repeat is found by the store, which keeps each command's id; see
/// [`same_credit`].
pub(crate) fn credit(
    account: &Account,
    amount: Micros,
    id: &CommandId,
    actor: &Actor,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    alive(account)?;
    let mut draft = Draft::of(account, given);
    let balance = draft.account.balance.checked_add(amount).ok_or(Refused::OutOfRange)?;
    if amount == Micros::ZERO {
        return Err(Refused::OutOfRange);
    }

    draft.account.balance = balance;
    if balance >= draft.low_balance() {
        draft.account.low_balance_told = false;
    }
    draft.record(EntryKind::Credited, actor, Subject { command: Some(id.clone()), ..Subject::default() });
    Ok(draft.finish(SessionChange::None))
}

/// Whether the entry that a command's id led to is the credit that is asked for again.
pub(crate) fn same_credit(earlier: &Entry, amount: Micros) -> Result<(), Refused> {
    let same = earlier.kind == EntryKind::Credited && i64::try_from(amount.get()) == Ok(earlier.amount);
    if same { Ok(()) } else { Err(Refused::ExistsDifferent) }
}

/// Stops an account from starting sessions, or lets it again.
pub(crate) fn suspend(account: &Account, suspended: bool, actor: &Actor, given: Context<'_>) -> Answer {
    if account.suspended == suspended {
        return Answer::Exists;
    }
    let mut draft = Draft::of(account, given);
    draft.account.suspended = suspended;
    let kind = if suspended { EntryKind::Suspended } else { EntryKind::Resumed };
    draft.record(kind, actor, Subject::default());
    draft.finish(SessionChange::None)
}

/// Sets at which balance the owner is told that it is low; `None`: as it is for everybody.
pub(crate) fn set_low_balance(
    account: &Account,
    below: Option<Micros>,
    actor: &Actor,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    if below.is_some_and(|below| below > Micros::MAX) {
        return Err(Refused::OutOfRange);
    }
    if account.low_balance == below {
        return Ok(Answer::Exists);
    }
    let mut draft = Draft::of(account, given);
    draft.account.low_balance = below;
    draft.account.low_balance_told = false;
    let words = below.map_or("default".to_owned(), |below| format!("{} micro-dollars", below.get()));
    draft.record(EntryKind::LowBalanceSet, actor, Subject { cause: Some(words), ..Subject::default() });
    Ok(draft.finish(SessionChange::None))
}

/// Writes down that an account's webhook is about to be changed. Where it is told of its events is kept beside the account.
pub(crate) fn change_webhook(
    account: &Account,
    (kind, webhook): (EntryKind, &WebhookId),
    actor: &Actor,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    alive(account)?;
    let mut draft = Draft::of(account, given);
    draft.record(kind, actor, Subject { cause: Some(webhook.to_string()), ..Subject::default() });
    Ok(draft.finish(SessionChange::None))
}

/// Adds a key; where there is no room, in the place of the key that was revoked first.
pub(crate) fn create_key(
    account: &Account,
    key: Key,
    actor: &Actor,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    alive(account)?;
    check_text("label", &key.label, LABEL_MAX)?;
    let mut draft = Draft::of(account, given);
    if draft.account.keys.len() >= KEYS_MAX {
        let revoked =
            draft.account.keys.iter().enumerate().filter_map(|(at, key)| Some((key.revoked_at?, at)));
        let (_, oldest) = revoked.min().ok_or(Refused::TooManyKeys)?;
        draft.account.keys.remove(oldest);
    }
    Ok(Answer::Change(Arc::new(draft.add_key(key, actor))))
}

/// Revokes a key, from the next hold on.
pub(crate) fn revoke_key(
    account: &Account,
    key: &KeyId,
    actor: &Actor,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    let mut draft = Draft::of(account, given);
    let own = draft.account.keys.iter_mut().find(|own| own.id == *key).ok_or(Refused::NoKey)?;
    if own.revoked_at.is_some() {
        return Ok(Answer::Exists);
    }

    own.revoked_at = Some(given.now);
    draft.record(EntryKind::KeyRevoked, actor, Subject { key: Some(key.clone()), ..Subject::default() });
    Ok(draft.finish(SessionChange::None))
}

/// Sets aside the price of a session. A repeat is found by the store, which keeps each session's id; where that was
/// `voided`, the session takes its place.
pub(crate) fn hold(
    account: &Account,
    key: &KeyId,
    (new, hold): (&NewSession, HoldId),
    gateway: &GatewayId,
    voided: Option<&Session>,
    given: Context<'_>,
) -> Result<Answer, Refusal> {
    let mut draft = Draft::of(account, given);
    let (plan, terms) = (given.plan, terms(given.plan, account.kind));
    if !draft.account.has_live_key(key) {
        return Err(Refusal::KeyRevoked);
    }
    if draft.account.suspended {
        return Err(Refusal::Suspended);
    }
    let (funds, funding) = pay_session(draft.account.funds(), &terms)?;
    if draft.account.open >= plan.concurrent_sessions {
        return Err(Refusal::Concurrency { limit: plan.concurrent_sessions, plan: plan.name.clone() });
    }

    draft.account.set_funds(funds);
    draft.account.open += 1;
    draft.record(EntryKind::Held, &Actor::Customer(key.clone()), about(&new.id, key, None));
    let session = Session::held((&account.id, key), (new, hold), gateway, (terms, funding), given.now);
    Ok(draft.finish(match voided {
        None => SessionChange::New(session),
        Some(_) => SessionChange::Again(session),
    }))
}

/// The same for a session that nobody has asked for: not where there would be room for fewer than `others` beside it, nor where it
/// would have its owner told that the balance is low; and not so shortly before a renewal that it might be given back, or
/// begun, in a period that it was not taken from.
pub(crate) fn hold_ahead(
    account: &Account,
    key: &KeyId,
    new: (&NewSession, HoldId),
    gateway: &GatewayId,
    others: u32,
    given: Context<'_>,
) -> Result<Answer, Refusal> {
    let answer = hold(account, key, new, gateway, None, given)?;
    let Answer::Change(change) = answer else { return Ok(answer) };
    let has_room = has_room(account, others.saturating_add(1), given.plan);
    let tells_low = change.events.iter().any(|event| event.kind == EventKind::LowBalance);
    let is_at_end =
        change.account.period.is_some_and(|period| period.end.since(given.now) < AHEAD_OF_RENEWAL);
    if !has_room || tells_low || is_at_end {
        return Ok(Answer::Exists);
    }
    Ok(Answer::Change(Arc::new(ahead(Arc::unwrap_or_clone(change)))))
}

/// Of a session that is new.
fn ahead(change: Change) -> Change {
    let account = Account { ahead: change.account.ahead.saturating_add(1), ..change.account };
    let session = match change.session {
        SessionChange::New(session) => SessionChange::New(Session { ahead: true, ..session }),
        other => other,
    };
    Change { account, session, ..change }
}

/// Whether an account may start so many sessions more.
pub(crate) fn has_room(account: &Account, sessions: u32, plan: &Plan) -> bool {
    let terms = terms(plan, account.kind);
    let mut funds = account.funds();
    let pays = |_| pay_session(funds, &terms).map(|(left, _)| funds = left).is_ok();
    account.open.saturating_add(sessions) <= plan.concurrent_sessions && (0..sessions).all(pays)
}

/// Tells that a session was refused, unless that was told of the account a short while ago. No money moves, so the
/// log has no entry of it.
pub(crate) fn tell_refused(
    account: &Account,
    id: &SessionId,
    refusal: &Refusal,
    given: Context<'_>,
) -> Answer {
    if account.refused_at.is_some_and(|told| given.now.since(told) < REFUSED_EVERY) {
        return Answer::Exists;
    }
    let mut draft = Draft::of(account, given);
    draft.account.refused_at = Some(given.now);
    let told = Told { session: Some(id), cause: Some(refusal.name()), ..Told::default() };
    draft.tell(EventKind::SessionRefused, &told);
    draft.finish(SessionChange::None)
}

/// Tells that a key is used in an unusual way, in the words of `cause`, unless that was told of the account a short while ago.
pub(crate) fn tell_unusual(account: &Account, key: &KeyId, cause: &str, given: Context<'_>) -> Answer {
    if account.unusual_at.is_some_and(|told| given.now.since(told) < UNUSUAL_EVERY) {
        return Answer::Exists;
    }
    let mut draft = Draft::of(account, given);
    draft.account.unusual_at = Some(given.now);
    draft.tell(EventKind::UnusualUse, &Told { key: Some(key), cause: Some(cause), ..Told::default() });
    draft.finish(SessionChange::None)
}

/// Lets the minutes of a held session count, from `at` on. No money moves, so the log has no entry of it.
pub(crate) fn begin(
    account: &Account,
    session: &Session,
    hold: HoldId,
    at: Timestamp,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    check_hold(session, hold)?;
    match (session.begun_at, session.state) {
        (Some(begun_at), _) if begun_at == at => Ok(Answer::Exists),
        (Some(_), _) => Err(Refused::ExistsDifferent),
        (None, State::Held) => {
            let begun = Session { state: State::Open, begun_at: Some(at), ahead: false, ..session.clone() };
            let mut draft = Draft::of(account, given);
            draft.ends_being_ahead(session);
            draft.tell(EventKind::SessionStarted, &Told { session: Some(&session.id), ..Told::default() });
            Ok(draft.finish(SessionChange::Update(begun)))
        }
        (None, state) => Err(Refused::State(state)),
    }
}

/// Bills a session that has ended: the minutes that had started, of those that were set aside. The rest goes
/// back; for a lost one everything does, and a retry credit with it, up to `refunds_per_day` on one day.
pub(crate) fn post(
    account: &Account,
    session: &Session,
    (hold, end): (HoldId, &End),
    refunds_per_day: u32,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    check_hold(session, hold)?;
    post_by(&server(session), account, session, None, end, refunds_per_day, given)
}

/// The same for one that has begun at `begun_at`, whether or not that was noted.
pub(crate) fn post_begun(
    account: &Account,
    session: &Session,
    (hold, begun_at, end): (HoldId, Timestamp, &End),
    refunds_per_day: u32,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    check_hold(session, hold)?;
    if session.begun_at.is_some_and(|noted| noted != begun_at) {
        return Err(Refused::ExistsDifferent);
    }
    post_by(&server(session), account, session, Some(begun_at), end, refunds_per_day, given)
}

fn post_by(
    actor: &Actor,
    account: &Account,
    session: &Session,
    begins: Option<Timestamp>,
    end: &End,
    refunds_per_day: u32,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    let begun_at = match (session.state, session.begun_at.or(begins)) {
        (State::Open, Some(begun_at)) => begun_at,
        (State::Held, Some(begun_at)) => begun_at,
        (State::Posted, Some(begun_at)) if session.ended_with(begun_at, end) => return Ok(Answer::Exists),
        (State::Posted, _) => return Err(Refused::ExistsDifferent),
        (state, _) => return Err(Refused::State(state)),
    };
    let mut draft = Draft::of(account, given);
    if session.state == State::Held {
        draft.tell(EventKind::SessionStarted, &Told { session: Some(&session.id), ..Told::default() });
    }
    let ended_at = end.at.max(begun_at);
    let (lost, cause) = end.outcome.parts();
    let refunds = draft.account.refunds.on(given.now.day());
    let refunded = lost && refunds.count < refunds_per_day;
    let minutes = if refunded { 0 } else { billed_minutes(session, begun_at, ended_at) };
    let (back, unpaid) =
        if refunded { (session.funding, session.written_off) } else { unused(session, minutes) };
    let mut funds = give_back(draft.account.funds(), back)?;
    if refunded {
        funds.retry = funds.retry.checked_add(1).ok_or(Refused::OutOfRange)?;
    }
    let funding = session.funding.checked_sub(back).ok_or(Refused::OutOfRange)?;
    let charged = funding.balance.checked_add(funding.overage).ok_or(Refused::OutOfRange)?;
    let open = draft.account.open.checked_sub(1).ok_or(Refused::OutOfRange)?;

    draft.account.set_funds(funds);
    draft.account.open = open;
    draft.ends_being_ahead(session);
    if refunded {
        draft.account.refunds = Refunds { count: refunds.count + 1, ..refunds };
    }
    let kind = if refunded { EntryKind::LostRefund } else { EntryKind::Posted };
    let about = about(&session.id, &session.key, Some(cause));
    draft.record(kind, actor, Subject { minutes, ended: Some(ended_at), ..about });
    let ended = if lost { EventKind::SessionLost } else { EventKind::SessionCompleted };
    let duration = Some(ended_at.since(begun_at));
    draft.tell(
        ended,
        &Told {
            session: Some(&session.id),
            cause: Some(cause),
            duration,
            cost: Some(charged),
            ..Told::default()
        },
    );
    let posted = Session {
        state: State::Posted,
        ahead: false,
        begun_at: Some(begun_at),
        minutes,
        funding,
        charged,
        ended_at: Some(ended_at),
        up_bytes: end.up_bytes,
        down_bytes: end.down_bytes,
        cause: Some(cause.to_owned()),
        lost,
        refunded,
        written_off: session.written_off.checked_sub(unpaid).unwrap_or_default(),
        ..session.clone()
    };
    draft.used = Some(Used { at: ended_at, usage: Usage::of(&posted) });
    Ok(draft.finish(SessionChange::Update(posted)))
}

/// Gives back all that a session took that never began. A void that comes late, after the id was held anew, names an
/// earlier `hold` and has been carried out.
pub(crate) fn void(
    account: &Account,
    session: &Session,
    hold: HoldId,
    cause: &'static str,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    if session.hold != hold {
        return Ok(Answer::Exists);
    }
    void_by(&server(session), account, session, cause, given)
}

fn void_by(
    actor: &Actor,
    account: &Account,
    session: &Session,
    cause: &'static str,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    match session.state {
        State::Held => {}
        State::Voided => return Ok(Answer::Exists),
        state => return Err(Refused::State(state)),
    }
    let mut draft = Draft::of(account, given);
    let funds = give_back(draft.account.funds(), session.funding)?;
    let open = draft.account.open.checked_sub(1).ok_or(Refused::OutOfRange)?;

    draft.account.set_funds(funds);
    draft.account.open = open;
    draft.ends_being_ahead(session);
    draft.record(EntryKind::Voided, actor, about(&session.id, &session.key, Some(cause)));
    Ok(draft.finish(SessionChange::Update(Session {
        state: State::Voided,
        ahead: false,
        minutes: 0,
        funding: Funding::default(),
        ended_at: Some(given.now),
        cause: Some(cause.to_owned()),
        ..session.clone()
    })))
}

/// Settles a session whose gateway is gone. One that had begun is billed up to the gateway's last sign of life,
/// so only minutes that had certainly started; one that had not is voided.
pub(crate) fn expire(
    account: &Account,
    session: &Session,
    last_seen: Option<Timestamp>,
    by: &GatewayId,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    let actor = Actor::Gateway(by.clone());
    match session.begun_at {
        None => void_by(&actor, account, session, GATEWAY_LOST, given),
        Some(begun_at) => {
            let at = last_seen.unwrap_or(begun_at);
            let outcome = Outcome::Completed { cause: GATEWAY_LOST };
            let end = End { at, outcome, up_bytes: session.up_bytes, down_bytes: session.down_bytes };
            // A completed session is no lost one, so that the bound on refunds does not come into it.
            post_by(&actor, account, session, None, &end, 0, given)
        }
    }
}

/// The account as it is at `now`: renewed where its period is over, which the next command would write down.
pub(crate) fn standing(account: &Account, given: Context<'_>) -> Account {
    Account { version: account.version, head: account.head, ..Draft::of(account, given).account }
}

/// An account that is being changed, with the entries that tell of it.
struct Draft<'a> {
    account: Account,
    entries: Vec<Entry>,
    events: Vec<Event>,
    /// What the account had after the last entry; an entry's differences count from here.
    recorded: Funds,
    /// The balance before any of it.
    balance_before: Micros,
    used: Option<Used>,
    given: Context<'a>,
}

impl<'a> Draft<'a> {
    /// The account's next version, renewed first where its period is over.
    fn of(account: &Account, given: Context<'a>) -> Self {
        let account = Account { version: account.version + 1, ..account.clone() };
        let recorded = account.funds();
        let (entries, events) = (Vec::new(), Vec::new());
        let balance_before = account.balance;
        let mut draft = Draft { account, entries, events, recorded, balance_before, used: None, given };
        draft.renew();
        draft
    }

    /// Refills the included sessions and closes the overage of the period that is over. After a long rest one
    /// entry leads into the period that `now` is in: in those between nothing happened.
    fn renew(&mut self) {
        let Context { plan, now } = self.given;
        if self.account.period.is_none_or(|period| now < period.end) {
            return;
        }
        let next = period(plan, self.account.created_at, now);
        self.account.period = Some(next);
        self.account.last_billed = Some(next.start);
        self.account.included = plan.included_sessions;
        self.account.overage = Micros::ZERO;
        self.record(EntryKind::Renewed, &Actor::System, Subject::default());
        self.tell(EventKind::BillingRenewed, &Told::default());
    }

    /// Appends an entry for what has changed since the last one.
    fn record(&mut self, kind: EntryKind, actor: &Actor, about: Subject) {
        let change = (self.given.now, actor.clone(), kind);
        let entry = Entry::chain(&self.account, self.recorded, change, about);
        self.recorded = self.account.funds();
        self.account.head = entry.head();
        self.entries.push(entry);
    }

    /// Adds an event of what has changed.
    fn tell(&mut self, kind: EventKind, told: &Told<'_>) {
        let of = (&self.account.id, self.account.plan.as_str(), self.account.version);
        self.events.push(Event::new(of, self.events.len(), (kind, self.given.now), told));
    }

    /// Somebody has come for the session, or nobody will.
    fn ends_being_ahead(&mut self, session: &Session) {
        self.account.ahead = self.account.ahead.saturating_sub(u32::from(session.ahead));
    }

    /// The balance below which the owner is told.
    fn low_balance(&self) -> Micros {
        let price = self.given.plan.session_price;
        let of_all = || price.checked_mul(LOW_BALANCE_SESSIONS).unwrap_or(Micros::MAX);
        self.account.low_balance.unwrap_or_else(of_all)
    }

    /// Tells that the balance is low, where something was taken from it and that was not told yet.
    fn watch_balance(&mut self) {
        let (balance, threshold) = (self.account.balance, self.low_balance());
        if self.account.low_balance_told || balance >= self.balance_before || balance >= threshold {
            return;
        }
        self.account.low_balance_told = true;
        self.tell(EventKind::LowBalance, &Told { low: Some((balance, threshold)), ..Told::default() });
    }

    fn add_key(mut self, key: Key, actor: &Actor) -> Change {
        let id = key.id.clone();
        self.account.keys.push(key);
        self.record(EntryKind::KeyCreated, actor, Subject { key: Some(id), ..Subject::default() });
        self.change(SessionChange::None, true)
    }

    fn finish(self, session: SessionChange) -> Answer {
        Answer::Change(Arc::new(self.change(session, false)))
    }

    fn change(mut self, session: SessionChange, new_key: bool) -> Change {
        self.watch_balance();
        let Draft { account, entries, used, events, .. } = self;
        Change { account, entries, session, used, new_key, events }
    }
}

/// The gateway that serves the session, and speaks for it.
fn server(session: &Session) -> Actor {
    Actor::Gateway(session.gateway.clone())
}

/// The billing period that `now` is in.
fn period(plan: &Plan, created_at: Timestamp, now: Timestamp) -> Period {
    if plan.is_invoiced() { Period::anniversary(created_at, now) } else { Period::calendar_month(now) }
}

fn terms(plan: &Plan, kind: AccountType) -> Terms {
    Terms {
        session_price: plan.session_price,
        session_minutes: plan.session_minutes,
        minute_price: plan.minute_price,
        overage: plan.overage && kind == AccountType::Subscription,
        overage_cap: plan.overage_cap,
    }
}

/// Pays a session from a retry credit, else an included session, else money.
fn pay_session(funds: Funds, terms: &Terms) -> Result<(Funds, Funding), Refusal> {
    if let Some(retry) = funds.retry.checked_sub(1) {
        return Ok((Funds { retry, ..funds }, Funding { retry: 1, ..Funding::default() }));
    }
    if let Some(included) = funds.included.checked_sub(1) {
        return Ok((Funds { included, ..funds }, Funding { included: 1, ..Funding::default() }));
    }
    pay(funds, terms.session_price, terms)
}

/// Pays from the balance; what it lacks becomes overage where the terms have it, up to their cap.
fn pay(funds: Funds, price: Micros, terms: &Terms) -> Result<(Funds, Funding), Refusal> {
    if let Some(balance) = funds.balance.checked_sub(price) {
        return Ok((Funds { balance, ..funds }, Funding { balance: price, ..Funding::default() }));
    }
    let (balance, required, cap) = (funds.balance, price, terms.overage_cap);
    if !terms.overage {
        return Err(Refusal::Money { balance, required });
    }
    let lacking = price.checked_sub(balance);
    let overage = lacking.and_then(|lacking| funds.overage.checked_add(lacking)).filter(|sum| *sum <= cap);
    let (Some(lacking), Some(overage)) = (lacking, overage) else {
        return Err(Refusal::OverageCap { balance, required, cap });
    };
    let funding = Funding { balance, overage: lacking, ..Funding::default() };
    Ok((Funds { balance: Micros::ZERO, overage, ..funds }, funding))
}

/// Gives back what a session had taken. Overage comes off this period's; what is more than that was billed
/// with an earlier period, and goes to the balance.
fn give_back(funds: Funds, back: Funding) -> Result<Funds, Refused> {
    let cancelled = back.overage.min(funds.overage);
    let given = || {
        let billed = back.overage.checked_sub(cancelled)?;
        Some(Funds {
            balance: funds.balance.checked_add(back.balance)?.checked_add(billed)?,
            included: funds.included.checked_add(back.included)?,
            retry: funds.retry.checked_add(back.retry)?,
            overage: funds.overage.checked_sub(cancelled)?,
        })
    };
    given().ok_or(Refused::OutOfRange)
}

/// Minutes that had started, of those that were set aside.
fn billed_minutes(session: &Session, begun_at: Timestamp, ended_at: Timestamp) -> u32 {
    let started = u32::try_from(started_minutes(begun_at, ended_at)).unwrap_or(u32::MAX);
    started.min(session.minutes)
}

/// What was set aside for minutes beyond the billed ones, and what of it had been written off. The session's price is
/// never part of it. It goes back in the reverse order of payment: what nobody paid, then overage, then balance.
fn unused(session: &Session, billed: u32) -> (Funding, Micros) {
    let covered = billed.max(session.terms.session_minutes);
    let minutes = session.minutes.saturating_sub(covered);
    // Those minutes were paid when they were set aside, so their price is in range.
    let price = session.terms.minute_price.checked_mul(minutes).unwrap_or_default();
    let unpaid = price.min(session.written_off);
    let paid = price.checked_sub(unpaid).unwrap_or_default();
    let overage = paid.min(session.funding.overage);
    let balance = paid.checked_sub(overage).unwrap_or_default();
    (Funding { balance, overage, ..Funding::default() }, unpaid)
}

impl Funding {
    fn checked_add(self, more: Funding) -> Option<Funding> {
        Some(Funding {
            included: self.included.checked_add(more.included)?,
            retry: self.retry.checked_add(more.retry)?,
            balance: self.balance.checked_add(more.balance)?,
            overage: self.overage.checked_add(more.overage)?,
        })
    }

    fn checked_sub(self, less: Funding) -> Option<Funding> {
        Some(Funding {
            included: self.included.checked_sub(less.included)?,
            retry: self.retry.checked_sub(less.retry)?,
            balance: self.balance.checked_sub(less.balance)?,
            overage: self.overage.checked_sub(less.overage)?,
        })
    }
}

/// Whether a command speaks of this session, and not of one before it with the same id.
fn check_hold(session: &Session, hold: HoldId) -> Result<(), Refused> {
    if session.hold == hold { Ok(()) } else { Err(Refused::HeldAnew) }
}

fn about(session: &SessionId, key: &KeyId, cause: Option<&str>) -> Subject {
    let (session, key) = (Some(session.clone()), Some(key.clone()));
    Subject { session, key, cause: cause.map(str::to_owned), ..Subject::default() }
}

fn check_text(field: &'static str, text: &str, limit: usize) -> Result<(), Refused> {
    if (1..=limit).contains(&text.len()) { Ok(()) } else { Err(Refused::Text { field, limit }) }
}
