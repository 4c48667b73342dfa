//! A customer's account: what it has, and what it may do.

use serde::{Deserialize, Serialize};

use crate::audit::Head;
use crate::id::{AccountId, KeyId};
use crate::key::Key;
use crate::money::Micros;
use crate::time::{Period, Timestamp};

/// The longest e-mail address (RFC 5321), in bytes.
pub const EMAIL_MAX: usize = 254;

/// How an account pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountType {
    /// Renews; pays with included sessions, then its balance, then overage where the plan has it.
    Subscription,
    /// Buys credit and spends it down. Has the limits of its plan, but not its included sessions.
    Prepaid,
}

/// An account as the ledger left it. Only the ledger makes a new one.
///
/// A subscription renews with the first command after its period's end, so what is read here may still show
/// the period before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its name.
    pub id: AccountId,
    /// Grows by one with every change; the store compares it. Kept beside the body, not in it.
    #[serde(skip)]
    pub version: u64,
    /// Where its owner is reached. Empty once it was erased.
    pub email: String,
    /// The name of its plan in the catalogue.
    pub plan: String,
    /// How it pays.
    #[serde(rename = "type")]
    pub kind: AccountType,
    /// When it was opened; a subscription's anniversaries count from here.
    pub created_at: Timestamp,
    /// Whether an operator has stopped it from starting sessions.
    pub suspended: bool,
    /// Money that is there to spend. What is set aside for open sessions is already taken from it.
    pub balance: Micros,
    /// Included sessions left in this period.
    pub included: u32,
    /// Sessions granted for lost ones.
    pub retry: u32,
    /// Money to be billed for this period, beyond the plan's price.
    pub overage: Micros,
    /// A subscription's billing period. A prepaid account has none: it never renews.
    pub period: Option<Period>,
    /// The start of the period that it last renewed into.
    pub last_billed: Option<Timestamp>,
    /// Sessions that are held or open.
    pub open: u32,
    /// Lost sessions that were refunded on one day.
    pub refunds: Refunds,
    /// When it was last told that a session of its was refused.
    pub refused_at: Option<Timestamp>,
    /// When it was last told that it is used in an unusual way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusual_at: Option<Timestamp>,
    /// Below this balance its owner is told that it is low; zero: never; `None`: the price of ten sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_balance: Option<Micros>,
    /// Whether that was told since money was last added.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub low_balance_told: bool,
    /// Sessions that are held though nobody is known to have asked for them. They count as open.
    #[serde(default, skip_serializing_if = "is_none")]
    pub ahead: u32,
    /// When it was erased. What is personal is gone then, and nothing but its log and its figures is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased_at: Option<Timestamp>,
    /// Its API keys; of the revoked ones only the latest.
    pub keys: Vec<Key>,
    /// The last entry of its audit log.
    pub head: Head,
}

/// Lost sessions refunded on one day, UTC, so that their number can be bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refunds {
    /// The day, counted from the epoch.
    pub day: u64,
    /// How many there were.
    pub count: u32,
}

impl Refunds {
    /// The count as it stands on `day`. A clock that went back does not start a new day.
    pub(crate) fn on(self, day: u64) -> Refunds {
        if day > self.day { Refunds { day, count: 0 } } else { self }
    }
}

fn is_none(number: &u32) -> bool {
    *number == 0
}

impl Account {
    /// Whether the key is one of this account's and not revoked.
    pub fn has_live_key(&self, key: &KeyId) -> bool {
        self.keys.iter().any(|own| own.id == *key && own.revoked_at.is_none())
    }

    pub(crate) fn funds(&self) -> Funds {
        Funds { balance: self.balance, included: self.included, retry: self.retry, overage: self.overage }
    }

    pub(crate) fn set_funds(&mut self, funds: Funds) {
        Funds { balance: self.balance, included: self.included, retry: self.retry, overage: self.overage } =
            funds;
    }
}

/// The four figures of an account that a session's price can come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Funds {
    pub(crate) balance: Micros,
    pub(crate) included: u32,
    pub(crate) retry: u32,
    pub(crate) overage: Micros,
}
