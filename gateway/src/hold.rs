//! [`Principal`] → hold on the ledger: may this account start a session, and its price is set aside, in one step.

use billing::{Held, HoldError, NewSession, Principal, Refusal as Denied, Session};

use crate::host::Site;
use crate::refusal::Refusal;
use crate::serve::Gateway;

/// Why nothing was set aside. Nothing was charged either.
#[derive(Debug)]
pub enum NotHeld {
    Refused(Refusal),
    /// The account has a session of that id, as it is now.
    Exists(Box<Session>),
    /// The same, and it was asked for with other parameters.
    ExistsDifferent(Box<Session>),
}

impl From<Refusal> for NotHeld {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Sets the price of a session aside. From here on every way out passes through [`settle`](crate::settle).
///
/// # Errors
///
/// Why the account may not start one.
pub async fn hold(
    gateway: &Gateway,
    who: &Principal,
    new: NewSession,
    site: &Site<'_>,
) -> Result<Held, NotHeld> {
    let now = gateway.clock.now();
    match gateway.billing.hold(who, new, &gateway.id, now).await {
        Ok(held) => Ok(held),
        Err(HoldError::Refused(denied)) => Err(refusal(denied, site).into()),
        Err(HoldError::Exists(session)) => Err(NotHeld::Exists(session)),
        Err(HoldError::ExistsDifferent(session)) => Err(NotHeld::ExistsDifferent(session)),
        Err(HoldError::Store(error)) => {
            tracing::warn!(%error, "a session could not be held");
            Err(Refusal::LedgerAway.into())
        }
    }
}

fn refusal(denied: Denied, site: &Site<'_>) -> Refusal {
    let top_up_url = site.top_up_url();
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
