//! The end of an account: what is personal goes, what is money stays.

use super::{Answer, Context, Draft, Refused, SessionChange};
use crate::account::Account;
use crate::audit::{Actor, EntryKind, Subject};
use crate::money::Micros;

/// Why a balance went.
const FORFEITED: &str = "balance forfeited";

/// Takes away what is personal and whatever would let it start a session; what it owes stays. Its balance has to be gone, or
/// to be given up.
pub(crate) fn erase(
    account: &Account,
    forfeit: bool,
    actor: &Actor,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    if account.erased_at.is_some() {
        return Ok(Answer::Exists);
    }
    if account.open > 0 {
        return Err(Refused::SessionsOpen(account.open));
    }
    if account.balance > Micros::ZERO && !forfeit {
        return Err(Refused::BalanceLeft(account.balance));
    }

    let mut draft = Draft::of(account, given);
    let cause = (account.balance > Micros::ZERO).then(|| FORFEITED.to_owned());
    let erased = &mut draft.account;
    (erased.balance, erased.included, erased.retry) = (Micros::ZERO, 0, 0);
    // Without a period it does not renew.
    (erased.period, erased.suspended, erased.erased_at) = (None, true, Some(given.now));
    // Nobody is told of what was given up.
    erased.low_balance = Some(Micros::ZERO);
    erased.email.clear();
    erased.keys.clear();
    draft.record(EntryKind::Erased, actor, Subject { cause, ..Subject::default() });
    Ok(draft.finish(SessionChange::None))
}

/// Whether anything can still be changed about the account.
pub(crate) fn alive(account: &Account) -> Result<(), Refused> {
    if account.erased_at.is_some() { Err(Refused::Erased) } else { Ok(()) }
}
