//! [`Principal`] → hold on the ledger: may this account start a session, and its price is set aside, in one step.

use billing::{HoldError, NewSession, Principal, Refusal as Denied, Reserved, Session};

use crate::host::Site;
use crate::refusal::{Close, Refusal};
use crate::serve::Gateway;
use crate::sessions::Live;
use crate::spares::insist;

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

/// Sets the price of a session aside, or sends for it; then its client gets nothing before
/// [`Billing::confirm`](billing::Billing::confirm) has said that it is so. From here on every way out passes through
/// [`settle`](crate::settle).
///
/// # Errors
///
/// Why the account may not start one.
pub async fn hold(
    gateway: &Gateway,
    who: &Principal,
    new: NewSession,
    site: &Site<'_>,
) -> Result<Reserved, NotHeld> {
    if gateway.outage.is_away() {
        let Gateway { unsecured, owed, id, clock, .. } = gateway;
        let on_credit = unsecured.start(owed, who, &new, id, clock.now());
        return on_credit.ok_or(Refusal::LedgerAway.into());
    }
    if let Some(spare) = gateway.spares.take(who, &new) {
        gateway.unsecured.note(&spare);
        return Ok(spare);
    }
    let reserve = || gateway.billing.reserve(who, &new, &gateway.id, gateway.clock.now());
    let reserved = insist(gateway, (&who.account, &new.id), reserve).await;
    let note = |reserved: &Reserved| {
        // One that is on its way may be refused yet.
        if !reserved.is_on_its_way() {
            gateway.unsecured.note(reserved);
        }
    };
    reserved.inspect(note).map_err(|error| {
        if let HoldError::Store(error) = &error {
            gateway.outage.note(error);
        }
        not_held(error, site)
    })
}

/// Makes sure, after the 101, that it is set aside. Where it is not, the session is told to end. A repeat is free.
///
/// # Errors
///
/// How its client is told.
pub async fn confirm_begun(gateway: &Gateway, live: &Live) -> Result<(), Close> {
    let Some(reserved) = &live.reserved else { return Ok(()) };
    live.confirmed(async {
        match ask(gateway, reserved).await {
            Ok(()) => {
                if reserved.is_on_its_way() {
                    gateway.unsecured.note(reserved);
                }
                Ok(())
            }
            Err(error) => {
                let code = code_of(&error);
                metrics::counter!("ufb_gateway_late_refusals_total", "code" => code).increment(1);
                Err(close_of(&error))
            }
        }
    })
    .await
}

/// The same for one that is not among the live ones yet.
///
/// # Errors
///
/// The same.
pub async fn confirm_late(gateway: &Gateway, reserved: &Reserved) -> Result<(), Close> {
    ask(gateway, reserved).await.map_err(|error| close_of(&error))
}

/// Makes sure that it is set aside.
///
/// # Errors
///
/// Those of [`Billing::confirm`](billing::Billing::confirm).
pub async fn confirm(gateway: &Gateway, reserved: &Reserved) -> Result<(), HoldError> {
    let Session { account, id, .. } = &reserved.session;
    insist(gateway, (account, id), || gateway.billing.confirm(reserved, gateway.clock.now())).await
}

async fn ask(gateway: &Gateway, reserved: &Reserved) -> Result<(), HoldError> {
    let asked = confirm(gateway, reserved).await;
    asked.inspect_err(|error| {
        let Session { id, account, .. } = &reserved.session;
        tracing::warn!(%error, session = %id, %account, "a session could not be held after all");
        if let HoldError::Store(error) = error {
            gateway.outage.note(error);
        }
    })
}

/// Whether a session that was served is in the ledger, or cannot be ruled out to be: the store fails. It is settled then as
/// well, which holds it first where that is found to be missing.
pub async fn may_be_held(gateway: &Gateway, live: &Live) -> bool {
    let Some(reserved) = &live.reserved else { return true };
    if reserved.is_on_its_way() {
        // Nobody was served before it was there.
        return confirm_begun(gateway, live).await.is_ok();
    }
    let confirmed = gateway.billing.confirm(reserved, gateway.clock.now()).await;
    matches!(confirmed, Ok(()) | Err(HoldError::Store(_)))
}

/// How the client of a session that cannot be held is told.
#[must_use]
pub fn close_of(error: &HoldError) -> Close {
    match error {
        HoldError::Refused(denied) | HoldError::Ahead(denied) => match denied {
            Denied::Money { .. } | Denied::OverageCap { .. } => Close::BalanceUsedUp,
            Denied::KeyRevoked | Denied::Suspended => Close::NotAllowed,
            Denied::Concurrency { .. } => Close::TryAgain,
        },
        HoldError::Exists(_) | HoldError::ExistsDifferent(_) | HoldError::Store(_) => Close::TryAgain,
    }
}

/// How it is refused.
pub(crate) fn not_held(error: HoldError, site: &Site<'_>) -> NotHeld {
    match error {
        HoldError::Refused(denied) | HoldError::Ahead(denied) => refusal(denied, site.top_up_url()).into(),
        HoldError::Exists(session) => NotHeld::Exists(session),
        HoldError::ExistsDifferent(session) => NotHeld::ExistsDifferent(session),
        HoldError::Store(error) => {
            tracing::warn!(%error, "a session could not be held");
            Refusal::LedgerAway.into()
        }
    }
}

/// The code that it would have been refused with before its 101.
fn code_of(error: &HoldError) -> &'static str {
    let refusal = match error {
        HoldError::Refused(denied) | HoldError::Ahead(denied) => refusal(denied.clone(), String::new()),
        HoldError::Exists(_) | HoldError::ExistsDifferent(_) | HoldError::Store(_) => Refusal::LedgerAway,
    };
    refusal.code()
}

fn refusal(denied: Denied, top_up_url: String) -> Refusal {
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
