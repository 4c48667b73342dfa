//! Sessions that began while the store was away, by an operator's leave: nobody has asked what their account has.

use super::erase::alive;
use super::meter::pay_or_write_off;
use super::{Answer, Context, Draft, Refused, SessionChange, about, pay_session, terms};
use crate::account::Account;
use crate::audit::{Actor, EntryKind};
use crate::id::{GatewayId, HoldId, KeyId};
use crate::request::NewSession;
use crate::session::{Funding, Session};

/// Holds a session that has begun already. Nothing refuses it but that its customer was erased: its price comes from what
/// there is, in the usual order, and the rest is written off.
pub(crate) fn hold_begun(
    account: &Account,
    key: &KeyId,
    (new, hold): (&NewSession, HoldId),
    gateway: &GatewayId,
    voided: Option<&Session>,
    given: Context<'_>,
) -> Result<Answer, Refused> {
    alive(account)?;
    let mut draft = Draft::of(account, given);
    let terms = terms(given.plan, account.kind);
    let paid = pay_session(draft.account.funds(), &terms).ok();
    let (funds, funding) = paid.unwrap_or((draft.account.funds(), Funding::default()));
    let mut session = Session::held((&account.id, key), (new, hold), gateway, (terms, funding), given.now);

    draft.account.set_funds(funds);
    draft.account.open = draft.account.open.saturating_add(1);
    draft.record(EntryKind::Held, &Actor::Customer(key.clone()), about(&new.id, key, None));
    if paid.is_none() {
        pay_or_write_off(&mut draft, &mut session, terms.session_price, "a session");
    }
    Ok(draft.finish(match voided {
        None => SessionChange::New(session),
        Some(_) => SessionChange::Again(session),
    }))
}
