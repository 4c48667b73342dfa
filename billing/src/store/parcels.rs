//! What a store does with events that were told, and with what is to be done because of them.

use std::time::Duration;

use super::{Store, StoreError};
use crate::consumer::Batch;
use crate::delivery::{Backlog, Buried, Claim, Group, Packed, Ticket};
use crate::id::{AccountId, GatewayId, WebhookId};
use crate::time::Timestamp;
use crate::webhook::Webhook;

/// The same question for whichever store there is.
macro_rules! ask {
    ($self:expr, $store:ident => $question:expr) => {
        match $self {
            Store::Embedded($store) => $question.await,
            Store::Redis(lanes) => {
                let $store = lanes.link();
                Ok(Box::pin($question).await?)
            }
            #[cfg(test)]
            Store::Memory(lanes) => {
                let $store = lanes.link();
                Ok(Box::pin($question).await?)
            }
        }
    };
}

impl Store {
    /// Gives this consumer what nobody of its group was given yet of these streams.
    pub(crate) async fn read_events(
        &self,
        group: Group,
        consumer: &GatewayId,
        streams: &[u8],
    ) -> Result<Batch, StoreError> {
        ask!(self, store => store.read_events(group, consumer, streams))
    }

    /// Gives this consumer what others of its group, or itself, were given and have not noted as done for so long.
    pub(crate) async fn forgotten_events(
        &self,
        group: Group,
        consumer: &GatewayId,
        since: Duration,
    ) -> Result<Batch, StoreError> {
        ask!(self, store => store.forgotten_events(group, consumer, since))
    }

    /// Keeps the parcels that were made of these events, and notes that the group is done with the events. A parcel that is
    /// there already stays as it is. Answers how many found their line full, and were dropped; `None` where another consumer has
    /// done it, and nothing was kept here.
    pub(crate) async fn sorted(
        &self,
        group: Group,
        batch: &Batch,
        parcels: &[Packed],
    ) -> Result<Option<u64>, StoreError> {
        ask!(self, store => store.sorted(group, batch, parcels))
    }

    /// The group is done with all that there is, in a store that nobody has read from yet.
    pub(crate) async fn skip_events(&self, group: Group) -> Result<(), StoreError> {
        ask!(self, store => store.skip_events(group))
    }

    /// Keeps parcels, as [`Store::sorted`] does.
    pub(crate) async fn put_parcels(&self, parcels: &[Packed]) -> Result<u64, StoreError> {
        ask!(self, store => store.put_parcels(parcels))
    }

    /// All that are no dead letters.
    pub(crate) async fn waiting_parcels(&self) -> Result<Vec<Packed>, StoreError> {
        ask!(self, store => store.waiting_parcels())
    }

    /// Drops a stream's events of before `oldest` that all groups are done with.
    pub(crate) async fn trim_events(&self, stream: u16, oldest: Timestamp) -> Result<(), StoreError> {
        ask!(self, store => store.trim_events(stream, oldest))
    }

    /// Hands parcels out that are due, each with one more attempt: their bodies.
    pub(crate) async fn claim_parcels(&self, claim: &Claim<'_>) -> Result<Vec<(Ticket, String)>, StoreError> {
        ask!(self, store => store.claim_parcels(claim))
    }

    /// It is done.
    pub(crate) async fn remove_parcel(&self, ticket: &Ticket) -> Result<(), StoreError> {
        ask!(self, store => store.remove_parcel(ticket))
    }

    /// It is due at that time, unless it was handed out again since.
    pub(crate) async fn postpone_parcel(
        &self,
        ticket: &Ticket,
        cause: &str,
        due: Timestamp,
    ) -> Result<(), StoreError> {
        ask!(self, store => store.postpone_parcel(ticket, cause, due))
    }

    /// It is a dead letter, unless it was handed out again since.
    pub(crate) async fn bury_parcel(
        &self,
        ticket: &Ticket,
        cause: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        ask!(self, store => store.bury_parcel(ticket, cause, now))
    }

    /// A dead letter is a parcel again, due now, without any attempts. Whether there was one.
    pub(crate) async fn revive_parcel(&self, name: &str, now: Timestamp) -> Result<bool, StoreError> {
        ask!(self, store => store.revive_parcel(name, now))
    }

    /// The latest first.
    pub(crate) async fn dead_letters(&self, limit: u32) -> Result<Vec<Buried>, StoreError> {
        ask!(self, store => store.dead_letters(limit))
    }

    /// Drops those that died before, and the oldest of more than `most`; up to
    /// [`DROPPED_AT_A_TIME`](crate::consumer::DROPPED_AT_A_TIME) of each.
    pub(crate) async fn drop_dead_letters(&self, before: Timestamp, most: u32) -> Result<(), StoreError> {
        ask!(self, store => store.drop_dead_letters(before, most))
    }

    pub(crate) async fn backlog(&self) -> Result<Backlog, StoreError> {
        ask!(self, store => store.backlog())
    }

    /// All webhooks of these accounts, each account's in the order of their making.
    pub(crate) async fn webhooks(
        &self,
        accounts: &[AccountId],
    ) -> Result<Vec<(AccountId, Webhook)>, StoreError> {
        ask!(self, store => store.webhooks(accounts))
    }

    /// Keeps a webhook, in the place of one of the same id.
    pub(crate) async fn put_webhook(&self, account: &AccountId, webhook: &Webhook) -> Result<(), StoreError> {
        ask!(self, store => store.put_webhook(account, webhook))
    }

    /// Whether there was one of that id.
    pub(crate) async fn remove_webhook(
        &self,
        account: &AccountId,
        id: &WebhookId,
    ) -> Result<bool, StoreError> {
        ask!(self, store => store.remove_webhook(account, id))
    }
}
