//! [`Principal`] → hold on the ledger: may this account start a session, and its price is set aside, in one step.

use billing::{HoldError, Principal, Refusal as Denied, Session, SessionId};

use crate::refusal::Refusal;
use crate::serve::Gateway;

/// Sets the price of a session aside. From here on every way out passes through [`settle`](crate::settle).
///
/// # Errors
///
/// Why the account may not start one; nothing was charged then.
pub async fn hold(gateway: &Gateway, who: &Principal, top_up_url: &str) -> Result<Session, Refusal> {
    let id = SessionId::random();
    let now = gateway.clock.now();
    match gateway.billing.hold(who, id, &gateway.id, now).await {
        Ok(held) => Ok(held.session),
        Err(HoldError::Refused(denied)) => Err(refusal(denied, top_up_url)),
        // 128 random bits that were used before: a broken random generator, or a broken store.
        Err(HoldError::Exists(_) | HoldError::ExistsDifferent(_)) => Err(Refusal::LedgerAway),
        Err(HoldError::Store(error)) => {
            tracing::warn!(%error, "a session could not be held");
            Err(Refusal::LedgerAway)
        }
    }
}

fn refusal(denied: Denied, top_up_url: &str) -> Refusal {
    let top_up_url = top_up_url.to_owned();
    match denied {
        Denied::KeyRevoked => Refusal::BadCredential,
        Denied::Suspended => Refusal::Suspended,
        Denied::Money { balance, required } => Refusal::Money { balance, required, top_up_url },
        Denied::OverageCap { balance, required, cap } => {
            Refusal::OverageCap { balance, required, cap, top_up_url }
        }
        Denied::Concurrency { limit, plan } => Refusal::Concurrency { limit, plan },
    }
}
