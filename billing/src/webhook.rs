//! Customers' webhooks: where a customer is told of its events, and how it knows that it is us who tell.
//!
//! A request is signed as Stripe signs its own: the header has `t=SECONDS,v1=DIGITS`, where the digits are the HMAC-SHA256 of
//! `SECONDS.BODY` in hexadecimal, with the webhook's secret as it is printed for a key. While a secret is rolled there are two,
//! and a `v1` for each.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;

use crate::audit::{Actor, EntryKind};
use crate::books::{Billing, Error};
use crate::delivery::{Delivery, Group, Parcel, later};
use crate::event::{Event, EventKind};
use crate::id::{AccountId, WebhookId};
use crate::ledger::{self, Refused};
use crate::store::StoreError;
use crate::time::Timestamp;

/// Webhooks of one account.
pub const WEBHOOKS_MAX: usize = 5;

/// The longest URL of one, in bytes.
pub const URL_MAX: usize = 2_000;

const PREFIX: &str = "whsec_";

/// Where a customer is told of its events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Its name.
    pub id: WebhookId,
    /// Where it is.
    pub url: String,
    /// What it is told of.
    pub events: Vec<EventKind>,
    /// When it was made. It is told of nothing that was before.
    pub created_at: Timestamp,
    /// The newest first.
    secrets: Vec<SignedWith>,
}

/// One of a webhook's secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SignedWith {
    secret: WebhookSecret,
    /// The first instant at which it is used no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// What a webhook's requests are signed with: `whsec_` and 52 characters, 256 random bits in lower-case base 32. `Debug` does
/// not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookSecret(String);

impl WebhookSecret {
    fn random() -> WebhookSecret {
        WebhookSecret(format!("{PREFIX}{}", crate::key::base32(&crate::key::random())))
    }

    /// The secret itself, to be shown to the webhook's owner once and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// In hexadecimal.
    fn sign(&self, seconds: u64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("a key may have any length");
        mac.update(format!("{seconds}.{body}").as_bytes());
        crate::audit::Digest(mac.finalize().into_bytes().into()).into()
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(whsec_***)")
    }
}

/// What a webhook is told of where its owner did not choose: all that a customer wants to know of, but not each beginning,
/// since each end is told of, nor that of the account, since nobody listens yet.
pub const NOTICES: [EventKind; 6] = [
    EventKind::BillingRenewed,
    EventKind::SessionCompleted,
    EventKind::SessionLost,
    EventKind::SessionRefused,
    EventKind::LowBalance,
    EventKind::UnusualUse,
];

/// A request as it is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Where to.
    pub url: String,
    /// JSON.
    pub body: String,
    /// The value of the header that proves who sends it.
    pub signature: String,
}

/// Why a webhook was not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The account has as many as it can have.
    #[error("an account has at most {WEBHOOKS_MAX} webhooks")]
    TooMany,
    /// The URL is empty or too long.
    #[error("the URL must be 1 to {URL_MAX} bytes")]
    Url,
    /// The account has none of that id.
    #[error("the account has no such webhook")]
    NoWebhook,
    /// There is no such account.
    #[error("there is no such account")]
    NoAccount,
    /// The account was erased.
    #[error("the customer was erased")]
    Erased,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<WebhookError> for Error {
    fn from(error: WebhookError) -> Self {
        match error {
            WebhookError::Store(error) => error.into(),
            WebhookError::NoAccount => Error::NoAccount,
            WebhookError::Erased => Error::Refused(Refused::Erased),
            error @ (WebhookError::TooMany | WebhookError::Url | WebhookError::NoWebhook) => {
                Error::Webhook(error)
            }
        }
    }
}

impl From<Error> for WebhookError {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => error.into(),
            Error::NoAccount => WebhookError::NoAccount,
            Error::Webhook(error) => error,
            // Nothing else is refused of a change to a webhook.
            Error::Refused(_)
            | Error::NoSession
            | Error::NoPlan(_)
            | Error::AccountExists
            | Error::Fault(_)
            | Error::Archive(_) => WebhookError::Erased,
        }
    }
}

impl Billing {
    /// Makes a webhook, whose secret is answered here and never again. It is told of `events`, or of [`NOTICES`] where
    /// there are none. Waits for the disk.
    ///
    /// # Errors
    /// [`WebhookError::TooMany`], [`WebhookError::Url`], [`WebhookError::NoAccount`], [`WebhookError::Erased`], or the
    /// store's.
    pub async fn create_webhook(
        &self,
        account: &AccountId,
        url: &str,
        events: &[EventKind],
        actor: Actor,
        now: Timestamp,
    ) -> Result<(Webhook, WebhookSecret), WebhookError> {
        if !(1..=URL_MAX).contains(&url.len()) {
            return Err(WebhookError::Url);
        }
        if self.webhooks(account).await?.len() >= WEBHOOKS_MAX {
            return Err(WebhookError::TooMany);
        }
        let secret = WebhookSecret::random();
        let events = if events.is_empty() { NOTICES.to_vec() } else { events.to_vec() };
        let webhook = Webhook {
            id: WebhookId::random(),
            url: url.to_owned(),
            events,
            created_at: now,
            secrets: vec![SignedWith { secret: secret.clone(), until: None }],
        };
        self.note_change(account, (EntryKind::WebhookCreated, &webhook.id), &actor, now).await?;
        self.store().put_webhook(account, &webhook).await?;
        // Erased meanwhile, by somebody who may not have seen this one.
        if self.account(account).await?.is_some_and(|account| account.erased_at.is_some()) {
            self.store().remove_webhook(account, &webhook.id).await?;
            return Err(WebhookError::Erased);
        }
        Ok((webhook, secret))
    }

    /// Before the change itself: there is none without an entry, though there may be an entry of one that then failed.
    async fn note_change(
        &self,
        account: &AccountId,
        change: (EntryKind, &WebhookId),
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), WebhookError> {
        let noted = self.change_account(account, now, |account, given| {
            ledger::change_webhook(account, change, actor, given)
        });
        Ok(noted.await.map(drop)?)
    }

    /// Gives a webhook a new secret, which is answered here and never again. The one that it had is used beside it for so long.
    /// Waits for the disk.
    ///
    /// # Errors
    /// [`WebhookError::NoWebhook`], [`WebhookError::NoAccount`], or the store's.
    pub async fn roll_webhook(
        &self,
        account: &AccountId,
        id: &WebhookId,
        overlap: Duration,
        actor: Actor,
        now: Timestamp,
    ) -> Result<(Webhook, WebhookSecret), WebhookError> {
        let webhooks = self.webhooks(account).await?;
        let mut webhook = webhooks.into_iter().find(|own| own.id == *id).ok_or(WebhookError::NoWebhook)?;
        let secret = WebhookSecret::random();
        let until = Some(later(now, overlap));
        // Of those that it had only the newest is kept.
        let earlier = webhook.secrets.into_iter().next().map(|with| SignedWith { until, ..with });
        webhook.secrets =
            [SignedWith { secret: secret.clone(), until: None }].into_iter().chain(earlier).collect();
        self.note_change(account, (EntryKind::WebhookRolled, id), &actor, now).await?;
        self.store().put_webhook(account, &webhook).await?;
        Ok((webhook, secret))
    }

    /// Removes a webhook. What was to be sent to it is not. Waits for the disk.
    ///
    /// # Errors
    /// [`WebhookError::NoWebhook`], [`WebhookError::NoAccount`], or the store's.
    pub async fn remove_webhook(
        &self,
        account: &AccountId,
        id: &WebhookId,
        actor: Actor,
        now: Timestamp,
    ) -> Result<(), WebhookError> {
        if !self.webhooks(account).await?.iter().any(|own| own.id == *id) {
            return Err(WebhookError::NoWebhook);
        }
        self.note_change(account, (EntryKind::WebhookRemoved, id), &actor, now).await?;
        self.drop_webhook(account, id).await
    }

    /// The same without an entry, of an account that is erased.
    pub(crate) async fn drop_webhook(&self, account: &AccountId, id: &WebhookId) -> Result<(), WebhookError> {
        let removed = self.store().remove_webhook(account, id).await?;
        if removed { Ok(()) } else { Err(WebhookError::NoWebhook) }
    }

    /// An account's webhooks, the oldest first.
    ///
    /// # Errors
    /// [`WebhookError::NoAccount`], or the store's.
    pub async fn webhooks(&self, account: &AccountId) -> Result<Vec<Webhook>, WebhookError> {
        if self.account(account).await?.is_none() {
            return Err(WebhookError::NoAccount);
        }
        let found = self.store().webhooks(std::slice::from_ref(account)).await?;
        Ok(found.into_iter().map(|(_, webhook)| webhook).collect())
    }

    /// What is to be sent to tell a customer of an event, signed at `now`. `None`: its webhook was removed, and nobody is to be
    /// told any more.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn notice(&self, delivery: &Delivery, now: Timestamp) -> Result<Option<Notice>, StoreError> {
        let Parcel { event, to, .. } = &delivery.parcel;
        let found = self.store().webhooks(std::slice::from_ref(&event.customer)).await?;
        let webhook = found.into_iter().map(|(_, webhook)| webhook).find(|own| own.id.as_str() == to);
        Ok(webhook.map(|webhook| {
            let body = document(event);
            let signature = webhook.sign(&body, now);
            Notice { url: webhook.url, body, signature }
        }))
    }

    /// A parcel for each webhook that is to be told of an event.
    pub(crate) async fn notices_of(&self, events: &[Event]) -> Result<Vec<Parcel>, StoreError> {
        let accounts: HashSet<_> = events.iter().map(|event| &event.customer).collect();
        let accounts: Vec<_> = accounts.into_iter().cloned().collect();
        let mut webhooks: BTreeMap<AccountId, Vec<Webhook>> = BTreeMap::new();
        for (account, webhook) in self.store().webhooks(&accounts).await? {
            webhooks.entry(account).or_default().push(webhook);
        }
        let parcels = events.iter().flat_map(|event| {
            let listening = webhooks.get(&event.customer).into_iter().flatten();
            let listening = listening.filter(|webhook| webhook.is_told_of(event));
            listening.map(|webhook| Parcel {
                group: Group::Notices,
                to: webhook.id.to_string(),
                event: event.clone(),
            })
        });
        Ok(parcels.collect())
    }
}

impl Webhook {
    /// One that was there before all events.
    #[cfg(test)]
    pub(crate) fn for_tests(id: WebhookId, events: &[EventKind]) -> Webhook {
        let url = "https://example.com".to_owned();
        let created_at = Timestamp::from_millis(0);
        Webhook { id, url, events: events.to_vec(), created_at, secrets: Vec::new() }
    }

    fn is_told_of(&self, event: &Event) -> bool {
        self.events.contains(&event.kind) && event.at >= self.created_at
    }

    /// Whether the secret before the newest is used at `now`, and until when.
    pub fn rolls_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.secrets.iter().filter_map(|with| with.until).find(|until| now < *until)
    }

    fn sign(&self, body: &str, now: Timestamp) -> String {
        let seconds = now.as_millis() / 1_000;
        let used = self.secrets.iter().filter(|with| with.until.is_none_or(|until| now < until));
        used.fold(format!("t={seconds}"), |header, with| {
            format!("{header},v1={}", with.secret.sign(seconds, body))
        })
    }
}

/// An event as customers are told of it.
fn document(event: &Event) -> String {
    let mut object = json!({
        "at": event.at.to_string(),
        "customer": event.customer,
        "plan": event.plan,
    });
    let mut add = |name: &str, value: serde_json::Value| object[name] = value;
    if let Some(session) = &event.session {
        add("session", json!(session));
    }
    if let Some(key) = &event.key {
        add("key", json!(key));
    }
    if let Some(cause) = &event.cause {
        add("cause", json!(cause));
    }
    if let Some(duration) = event.duration {
        add("duration", json!(duration));
    }
    let amounts = [("cost", event.cost), ("balance", event.balance), ("threshold", event.threshold)];
    for (name, amount) in amounts {
        if let Some(amount) = amount {
            add(name, json!(amount.dollars()));
            add(&format!("{name}Micros"), json!(amount));
        }
    }
    let document = json!({
        "id": event.id,
        "object": "event",
        "type": event.kind,
        "created": event.at.as_millis() / 1_000,
        "data": { "object": object },
    });
    document.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Told;

    fn secret() -> WebhookSecret {
        WebhookSecret("whsec_test".to_owned())
    }

    /// `hmac.new(b"whsec_test", b"1800007200.{}", hashlib.sha256).hexdigest()` of Python says so.
    #[test]
    fn a_signature_is_the_hmac_of_time_and_body() {
        assert_eq!(
            secret().sign(1_800_007_200, "{}"),
            "f10b867806e58c3dade45f2e4a4ae4444aadb60f07581cb68ad8d6eba7c0ef3c"
        );
    }

    #[test]
    fn a_webhook_whose_secret_is_rolled_signs_with_both_for_a_while() {
        let at = Timestamp::from_millis;
        let with = |until| SignedWith { secret: secret(), until };
        let webhook = Webhook {
            id: WebhookId::random(),
            url: "https://example.com".to_owned(),
            events: NOTICES.to_vec(),
            created_at: at(0),
            secrets: vec![with(None), with(Some(at(5_000)))],
        };
        assert_eq!(webhook.sign("{}", at(4_999)).matches(",v1=").count(), 2);
        assert_eq!(webhook.sign("{}", at(5_000)).matches(",v1=").count(), 1);
        assert_eq!(webhook.rolls_until(at(4_999)), Some(at(5_000)));
        assert_eq!(webhook.rolls_until(at(5_000)), None);
        assert!(!format!("{webhook:?}").contains("whsec_test"));
    }

    #[test]
    fn what_a_customer_is_told_has_no_secret_and_nothing_that_does_not_apply() {
        let (customer, session) = ("acme".parse().unwrap(), "s1".parse().unwrap());
        let told = Told {
            session: Some(&session),
            cause: Some("crashed"),
            duration: Some(Duration::from_millis(1_500)),
            cost: Some(crate::Micros::new(10_000)),
            ..Told::default()
        };
        let at = Timestamp::from_millis(1_800_007_200_000);
        let event = Event::new((&customer, "starter", 17), 0, (EventKind::SessionLost, at), &told);
        let expected = json!({
            "id": "acme-17-0", "object": "event", "type": "session:lost", "created": 1_800_007_200,
            "data": { "object": {
                "at": "2027-01-15T10:00:00.000Z", "customer": "acme", "plan": "starter", "session": "s1",
                "cause": "crashed", "duration": 1500, "cost": 0.01, "costMicros": 10000,
            } },
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&document(&event)).unwrap(), expected);
    }
}
