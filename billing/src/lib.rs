//! Money: who may start a session, what it costs, and what became of every cent.
//!
//! A session's price is set aside before a browser is taken ([`Billing::hold`]), its further minutes before
//! they start ([`Billing::meter`]), and what it did not use goes back when it ends ([`Billing::post`],
//! [`Billing::void`]). The rules are in `ledger`, which is pure: an account, a session and a command go in, a
//! change or a refusal comes out. A store loads accounts and commits changes, each in one atomic step against
//! the version of the account that the change was decided on. [`Billing`] drives the two: load, decide,
//! commit, and once more when another process got in between.
//!
//! Every change is in the account's [audit log](Entry), which replays to the account ([`Billing::verify`]).
//! Nothing here reads a clock, and there is no floating point.

#![deny(missing_docs, clippy::float_arithmetic)]

mod money;
mod time;
mod id;
mod plan;
mod key;
mod request;
mod account;
mod session;
mod usage;
mod audit;
mod archive;
mod event;
mod reconcile;
mod ledger;
mod store;
mod books;
mod sweep;
mod consumer;
mod delivery;
mod webhook;
mod migrate;
mod seal;
mod upkeep;
mod erase;
mod backup;
#[cfg(test)]
mod simulation;

pub use account::{Account, AccountType, EMAIL_MAX};
pub use archive::{Archive, ArchiveError};
pub use audit::{Actor, Digest, Entry, EntryKind, Fault, Verified};
pub use backup::BackupError;
pub use books::{
    Billing, Credit, Debt, Ended, Error, ExtendError, Held, HoldError, Limits, NewCustomer, Reserved,
    Standing,
};
pub use consumer::{Consumer, Sorted};
pub use delivery::{
    AT_A_TIME, ATTEMPTS_MAX, Backlog, Content, DeadLetter, Delivery, Fate, Group, LEASE, Parcel,
};
pub use event::{Cursor, Event, EventKind, Heard};
pub use id::{
    AccountId, CommandId, GatewayId, HoldId, ID_MAX, InvalidHoldId, InvalidId, KeyId, SessionId, TrackingId,
    WebhookId,
};
pub use key::{Key, LABEL_MAX, Principal, Secret, SigningKey};
pub use ledger::{KEYS_MAX, Progress, Refusal, Refused};
pub use migrate::{MoveError, Moved};
pub use money::Micros;
pub use plan::{Catalogue, Plan, Terms};
pub use reconcile::{Difference, Reckoning, Reconciled};
pub use request::{METADATA_MAX, Metadata, MetadataTooLarge, NewSession, SessionRequest};
pub use seal::{SealError, Sealed, Unproven};
pub use session::{End, Funding, Outcome, Session, SessionCursor, SessionName, State};
#[cfg(feature = "measure")]
pub use store::{BareHolds, BareScript};
pub use store::{InvalidStoreUrl, LIST_MAX, NoReplicas, RedisUrl, StoreError, StoreUrl};
pub use sweep::Sweeper;
pub use time::{Period, Timestamp};
pub use usage::{HOURS_KEPT, PeriodUsage, Span, Usage};
pub use webhook::{NOTICES, Notice, URL_MAX, WEBHOOKS_MAX, Webhook, WebhookError, WebhookSecret};
