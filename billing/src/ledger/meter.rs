//! How far an account's sessions have come, all of them in one change.

use super::{Answer, Context, Draft, NotExtended, Refusal, SessionChange, Told, about, pay, server};
use crate::account::{Account, Funds};
use crate::audit::EntryKind;
use crate::event::EventKind;
use crate::id::{HoldId, SessionId};
use crate::money::Micros;
use crate::session::{Funding, Session, State};
use crate::time::Timestamp;

/// How far a session has come, and what it needs to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The session.
    pub session: SessionId,
    /// Which hold of that id it is.
    pub hold: HoldId,
    /// From when on its minutes count. Noted with the rest where it was not yet.
    pub begun_at: Timestamp,
    /// Minutes that are to be set aside, in all: every one of them, or none.
    pub minutes: u32,
    /// Minutes that have started, in all, whether or not they were set aside: those that the store was away for. What
    /// of them cannot be paid is written off. At most `minutes`.
    pub owed: u32,
    /// Bytes from the client to the browser so far.
    pub up_bytes: u64,
    /// Bytes from the browser to the client so far.
    pub down_bytes: u64,
}

/// Notes how far sessions have come and sets their next minutes aside; answers what became of each, in their order. One
/// that cannot pay does not keep the others from it.
pub(crate) fn meter(
    account: &Account,
    sessions: &[Option<Session>],
    progress: &[Progress],
    given: Context<'_>,
) -> (Answer, Vec<Result<(), NotExtended>>) {
    let mut draft = Draft::of(account, given);
    let mut changed = Vec::new();
    let mut metered = Vec::with_capacity(progress.len());
    for (session, progress) in sessions.iter().zip(progress) {
        metered.push(match session {
            Some(session) if session.hold == progress.hold && has_begun_at(session, progress.begun_at) => {
                let (after, verdict) = step(&mut draft, session, progress);
                changed.extend(Some(after).filter(|after| after != session));
                verdict
            }
            Some(_) | None => Err(NotExtended::NotOpen),
        });
    }
    let answer =
        if changed.is_empty() { Answer::Exists } else { draft.finish(SessionChange::Several(changed)) };
    (answer, metered)
}

/// Whether it runs, from then on.
fn has_begun_at(session: &Session, at: Timestamp) -> bool {
    match session.state {
        State::Held => true,
        State::Open => session.begun_at == Some(at),
        State::Posted | State::Voided => false,
    }
}

/// One session as it is after its progress, and whether it may go on.
fn step(draft: &mut Draft<'_>, session: &Session, progress: &Progress) -> (Session, Result<(), NotExtended>) {
    let mut after = session.clone();
    if session.state == State::Held {
        after.state = State::Open;
        after.begun_at = Some(progress.begun_at);
        after.ahead = false;
        draft.ends_being_ahead(session);
        draft.tell(EventKind::SessionStarted, &Told { session: Some(&session.id), ..Told::default() });
    }
    after.up_bytes = after.up_bytes.max(progress.up_bytes);
    after.down_bytes = after.down_bytes.max(progress.down_bytes);
    if progress.owed > after.minutes {
        owe(draft, &mut after, progress.owed);
    }
    let verdict = if progress.minutes > after.minutes {
        set_aside(draft, &mut after, progress.minutes).map_err(NotExtended::Refused)
    } else {
        Ok(())
    };
    (after, verdict)
}

/// Sets minutes aside until there are `minutes` in all.
fn set_aside(draft: &mut Draft<'_>, session: &mut Session, minutes: u32) -> Result<(), Refusal> {
    let further = minutes - session.minutes;
    let balance = draft.account.balance;
    let unpayable = |required| Refusal::Money { balance, required };
    let price = session.terms.minute_price.checked_mul(further).ok_or_else(|| unpayable(Micros::MAX))?;
    let (funds, paid) = pay(draft.account.funds(), price, &session.terms)?;
    let funding = session.funding.checked_add(paid).ok_or_else(|| unpayable(price))?;

    draft.account.set_funds(funds);
    (session.minutes, session.funding) = (minutes, funding);
    draft.record(EntryKind::Extended, &server(session), about(&session.id, &session.key, None));
    Ok(())
}

/// Bills minutes that have started without having been set aside, as far as there is anything to pay with. The rest is
/// written off: a balance is never below zero, and nobody is asked for it.
fn owe(draft: &mut Draft<'_>, session: &mut Session, minutes: u32) {
    if set_aside(draft, session, minutes).is_ok() {
        return;
    }
    let price = session.terms.minute_price.checked_mul(minutes - session.minutes).unwrap_or(Micros::MAX);
    session.minutes = minutes;
    pay_or_write_off(draft, session, price, "minutes");
}

/// Pays as far as there is anything to pay with, and writes the rest off.
pub(super) fn pay_or_write_off(draft: &mut Draft<'_>, session: &mut Session, price: Micros, what: &str) {
    let paid = pay_what_there_is(draft, price, session);
    let lacking = price.checked_sub(paid).unwrap_or_default();
    session.written_off = session.written_off.checked_add(lacking).unwrap_or(Micros::MAX);
    let words = format!("{} micro-dollars of {what} without cover", lacking.get());
    draft.record(EntryKind::WrittenOff, &server(session), about(&session.id, &session.key, Some(&words)));
}

/// From the balance, then overage where the terms have it. Gives what was paid.
fn pay_what_there_is(draft: &mut Draft<'_>, price: Micros, session: &mut Session) -> Micros {
    let funds = draft.account.funds();
    let balance = funds.balance.min(price);
    let room = session.terms.overage_cap.checked_sub(funds.overage).filter(|_| session.terms.overage);
    let lacking = price.checked_sub(balance).unwrap_or_default();
    let overage = lacking.min(room.unwrap_or_default());
    let paid = Funding { balance, overage, ..Funding::default() };
    let after = || {
        let (balance, overage) = (funds.balance.checked_sub(balance)?, funds.overage.checked_add(overage)?);
        Some((Funds { balance, overage, ..funds }, session.funding.checked_add(paid)?))
    };
    let Some((funds, funding)) = after().filter(|_| paid != Funding::default()) else {
        return Micros::ZERO;
    };
    draft.account.set_funds(funds);
    session.funding = funding;
    draft.record(EntryKind::Extended, &server(session), about(&session.id, &session.key, None));
    balance.checked_add(overage).unwrap_or_default()
}
