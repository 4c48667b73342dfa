//! From the settings to the ledger, and from its errors to words that name the next command.

use std::time::SystemTime;

use billing::{Account, AccountId, Billing, Error, Limits, Refused, StoreError, StoreUrl, Timestamp};

use crate::config::Config;

use super::output::Failure;

pub(super) fn open(config: &Config) -> Result<Billing, StoreError> {
    let limits = Limits { refunds_per_day: config.session.refunds_per_day };
    Billing::open(&config.store, config.plans.clone(), limits)
}

pub(super) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// The customer's account.
pub(super) async fn account(billing: &Billing, id: &AccountId) -> Result<Account, Failure> {
    billing.account(id).await?.ok_or_else(|| Error::NoAccount.into())
}

/// The ids of all customers, or the one that was named.
pub(super) async fn customers(
    billing: &Billing,
    customer: Option<&AccountId>,
) -> Result<Vec<AccountId>, Failure> {
    Ok(match customer {
        Some(customer) => vec![account(billing, customer).await?.id],
        None => billing.accounts().await?.into_iter().map(|account| account.id).collect(),
    })
}

/// A store that is read as a whole has to be there: opening makes one where there is none, and an empty one is whole, too.
pub(super) fn exists(url: &StoreUrl) -> Result<(), Failure> {
    match url {
        StoreUrl::Sqlite(file) if !file.exists() => {
            Err(Failure::Failed(format!("there is no store at {url}; name the one that there is")))
        }
        StoreUrl::Sqlite(_) | StoreUrl::Redis(_) => Ok(()),
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Failed(format!("{}; `ufbrowsers check` tells more", with_causes(&error)))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let next = match error {
            Error::Store(error) => return error.into(),
            Error::NoAccount => "`ufbrowsers customer list` shows which there are",
            Error::AccountExists => "choose another --id, or `ufbrowsers customer show ID` for this one",
            Error::Refused(Refused::NoKey) => "`ufbrowsers key list CUSTOMER` shows which it has",
            Error::Refused(Refused::TooManyKeys) => "`ufbrowsers key revoke CUSTOMER KEY` makes room",
            Error::Refused(Refused::ExistsDifferent) => "choose another --command-id",
            Error::Refused(Refused::SessionsOpen(_)) => {
                "`ufbrowsers customer suspend ID` ends them; then repeat this"
            }
            Error::Refused(Refused::BalanceLeft(_)) => "pay it back and repeat this with --forfeit",
            Error::Refused(Refused::Erased) => "make a new customer",
            Error::Refused(
                Refused::Text { .. } | Refused::OutOfRange | Refused::State(_) | Refused::HeldAnew,
            )
            | Error::NoSession
            | Error::NoPlan(_) => "nothing was changed",
            Error::Webhook(ref error) => super::webhook::next_step(error),
            Error::Archive(error) => return super::archive::unreadable(&error),
            Error::Fault(_) => "keep the store as it is and find out who wrote to it",
        };
        Self::Failed(format!("{error}; {next}"))
    }
}

/// An error and what is behind it. Some say themselves what is behind them.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |words, cause| {
        let cause = cause.to_string();
        if words.ends_with(&cause) { words } else { format!("{words}: {cause}") }
    })
}
