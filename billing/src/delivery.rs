//! What has to be done because of events, until it is done.
//!
//! There are two steps. A [`Group`] is somebody who has to hear of events: its [consumers](crate::Consumer), one in each
//! gateway, share the streams among them and make a [`Parcel`] of each event for whoever it concerns. That asks nobody but the
//! store and takes no time. A parcel is then carried: tried until that succeeds, or until it has failed too often and is a dead
//! letter, which an operator can look at and send again. So what takes long or fails holds up nothing but its own line, a line
//! for each account, and the streams can be trimmed soon.
//!
//! Everything is done at least once. An event's id is the same each time.
//!
//! An event that this program does not understand is a parcel, too, as it is: tried again for some minutes, by which time a gateway
//! of a later version may have had it, then a dead letter. So is a parcel that this program does not understand.
//!
//! An attempt is counted when a parcel is handed out, in the store, and the parcel is handed out again when nothing was heard
//! of the attempt for [`LEASE`]: its gateway died, then. Of the line of an account so many are handed out at a time, so that a
//! slow one takes no more than its share.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::books::Billing;
use crate::event::Event;
use crate::store::StoreError;
use crate::time::Timestamp;

/// How long nothing may be heard of an attempt. Longer than any attempt may take, by whoever makes it.
pub const LEASE: Duration = Duration::from_secs(20);

/// Parcels of one account that are handed out to one process at a time.
pub const AT_A_TIME: u32 = 4;

/// From a failed attempt to the next one, before up to a quarter more, which keeps those that failed together apart.
/// In all almost a day: a receiver that broke in the evening is mended by then.
const PAUSES: [Duration; 8] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3_600),
    Duration::from_secs(6 * 3_600),
    Duration::from_secs(12 * 3_600),
];

/// The most attempts there can be.
pub const ATTEMPTS_MAX: NonZeroU32 = NonZeroU32::new(PAUSES.len() as u32 + 1).expect("it is more than 0");

/// How often it is tried to understand something. In all some 13 minutes: a rolling update is over by then.
pub(crate) const READINGS: u32 = 5;

/// The line of what is not understood, where it cannot be told whose it is.
const UNREADABLE: &str = "unreadable";

/// Parcels that wait in one line, each less than a kilobyte. Beyond that new ones are dropped: whoever lets so many pile up
/// does not read them.
pub(crate) const LINE_MAX: u32 = 10_000;

/// How long dead letters are kept.
pub(crate) const DEAD_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Dead letters that are kept, of all accounts: some 50 MB. Beyond it the oldest go.
pub(crate) const DEAD_MAX: u32 = 100_000;

/// Who has to hear of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// The customers, by their webhooks.
    Notices,
}

impl Group {
    /// All of them.
    pub const ALL: [Group; 1] = [Group::Notices];

    /// Its name, in the store and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Group::Notices => "notices",
        }
    }
}

/// Something to be done because of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parcel {
    /// Who does it.
    pub group: Group,
    /// What of the event's account it is for; the group knows what that means.
    pub to: String,
    /// What happened.
    pub event: Event,
}

impl Parcel {
    /// The same for the same event, group and target.
    pub fn name(&self) -> String {
        format!("{}.{}.{}", self.group.as_str(), self.event.id, self.to)
    }

    /// The line that it waits in.
    pub fn line(&self) -> String {
        format!("{}.{}", self.group.as_str(), self.event.customer)
    }
}

/// An event that was read for a group and not understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unread {
    group: Group,
    /// The stream, and the event's place in it.
    place: String,
    /// All that there is of it.
    unreadable: String,
}

impl Unread {
    pub(crate) fn new(group: Group, place: String, unreadable: String) -> Unread {
        Unread { group, place, unreadable }
    }
}

/// A parcel as stores keep it: they understand nothing of it but when it is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) name: String,
    pub(crate) line: String,
    pub(crate) due: Timestamp,
    pub(crate) body: String,
}

impl Packed {
    pub(crate) fn parcel(parcel: &Parcel) -> Result<Packed, StoreError> {
        let (name, line, due) = (parcel.name(), parcel.line(), parcel.event.at);
        Ok(Packed { name, line, due, body: body(parcel)? })
    }

    pub(crate) fn unread(unread: &Unread) -> Result<Packed, StoreError> {
        let name = format!("{}.{UNREADABLE}.{}", unread.group.as_str(), unread.place);
        let (line, due) = (UNREADABLE.to_owned(), Timestamp::from_millis(0));
        Ok(Packed { name, line, due, body: body(unread)? })
    }
}

fn body(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(StoreError::Corrupt)
}

/// The line of a parcel with this body.
pub(crate) fn line_of(body: &str) -> String {
    serde_json::from_str::<Parcel>(body).map_or_else(|_| UNREADABLE.to_owned(), |parcel| parcel.line())
}

/// A parcel that was handed out: which, and for which time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) name: String,
    pub(crate) line: String,
    pub(crate) attempts: u32,
}

/// A parcel that is to be carried now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// What is to be done.
    pub parcel: Parcel,
    /// Attempts, this one among them.
    pub attempts: u32,
}

impl Delivery {
    fn ticket(&self) -> Ticket {
        Ticket { name: self.parcel.name(), line: self.parcel.line(), attempts: self.attempts }
    }
}

/// What becomes of a delivery that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is tried again at that time.
    Again(Timestamp),
    /// It has failed too often.
    Dead,
}

/// A parcel that failed too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// How it is asked for.
    pub name: String,
    /// What was to be done.
    pub content: Content,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it failed the last time.
    pub cause: String,
    /// When that was.
    pub died_at: Timestamp,
}

/// What is in a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// What was to be done.
    Parcel(Box<Parcel>),
    /// What this program does not understand, as it is in the store.
    Unreadable(String),
}

impl DeadLetter {
    /// What was to be done, where it is understood.
    pub fn parcel(&self) -> Option<&Parcel> {
        match &self.content {
            Content::Parcel(parcel) => Some(parcel),
            Content::Unreadable(_) => None,
        }
    }
}

/// A dead letter as stores keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Buried {
    pub(crate) name: String,
    pub(crate) body: String,
    pub(crate) attempts: u32,
    pub(crate) cause: String,
    pub(crate) died_at: Timestamp,
}

impl From<Buried> for DeadLetter {
    fn from(buried: Buried) -> DeadLetter {
        let Buried { name, body, attempts, cause, died_at } = buried;
        let content = match serde_json::from_str(&body) {
            Ok(parcel) => Content::Parcel(parcel),
            Err(_) => Content::Unreadable(match serde_json::from_str::<Unread>(&body) {
                Ok(unread) => unread.unreadable,
                Err(_) => body,
            }),
        };
        DeadLetter { name, content, attempts, cause, died_at }
    }
}

/// How many parcels there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Those that are to be carried, now or later.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
}

/// What is handed out.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    /// Lines of which some are being carried by this process, and how many.
    pub(crate) busy: &'a HashMap<String, u32>,
    /// How many in all.
    pub(crate) room: u32,
    pub(crate) now: Timestamp,
    /// When it is handed out again.
    pub(crate) until: Timestamp,
}

impl Billing {
    /// Takes up to `room` parcels to carry; from each line so many that, with those of it in `busy`, they are
    /// [`AT_A_TIME`] at most. Of each the caller tells within [`LEASE`] what became of it.
    ///
    /// A parcel that was handed out more than `most` times without that ever being told is a dead letter.
    ///
    /// # Errors
    /// When the store fails. What was taken then is handed out again later.
    pub async fn claim_deliveries(
        &self,
        busy: &HashMap<String, u32>,
        room: u32,
        most: NonZeroU32,
        now: Timestamp,
    ) -> Result<Vec<Delivery>, StoreError> {
        let claim = Claim { busy, room, now, until: later(now, LEASE) };
        let mut deliveries = Vec::new();
        for (ticket, body) in self.store().claim_parcels(&claim).await? {
            let parcel = match serde_json::from_str::<Parcel>(&body) {
                Ok(parcel) => parcel,
                Err(error) => {
                    self.read_again(&ticket, &body, &error, now).await?;
                    continue;
                }
            };
            let delivery = Delivery { parcel, attempts: ticket.attempts };
            if delivery.attempts > most.get() {
                self.store().bury_parcel(&ticket, "its gateway died each time", now).await?;
                tell_of_death(&delivery, "its gateway died each time");
            } else {
                deliveries.push(delivery);
            }
        }
        Ok(deliveries)
    }

    /// Makes parcels of an event that an earlier reader did not understand; or puts it off, or up as a dead letter.
    async fn read_again(
        &self,
        ticket: &Ticket,
        body: &str,
        fault: &serde_json::Error,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let fault = match serde_json::from_str::<Unread>(body) {
            Ok(unread) => match serde_json::from_str(&unread.unreadable) {
                Ok(event) => {
                    let parcels = self.parcels_of(unread.group, &[event]).await?;
                    self.store().put_parcels(&pack(&parcels)?).await?;
                    return self.store().remove_parcel(ticket).await;
                }
                Err(fault) => fault.to_string(),
            },
            Err(_) => fault.to_string(),
        };
        let cause = format!("it is not understood: {fault}");
        match pause(ticket).filter(|_| ticket.attempts < READINGS) {
            Some(pause) => self.store().postpone_parcel(ticket, &cause, later(now, pause)).await,
            None => {
                self.store().bury_parcel(ticket, &cause, now).await?;
                tracing::error!(
                    delivery = ticket.name,
                    ticket.attempts,
                    cause,
                    "what is in the store is not understood; `ufbrowsers events --dead` shows it"
                );
                Ok(())
            }
        }
    }

    /// It is done.
    ///
    /// # Errors
    /// When the store fails. It may be done again then.
    pub async fn delivered(&self, delivery: &Delivery) -> Result<(), StoreError> {
        self.store().remove_parcel(&delivery.ticket()).await
    }

    /// It failed, for the reason `cause`. After `most` attempts it is a dead letter, which is logged as an error.
    ///
    /// # Errors
    /// When the store fails. It is tried again, then.
    pub async fn failed(
        &self,
        delivery: &Delivery,
        cause: &str,
        most: NonZeroU32,
        now: Timestamp,
    ) -> Result<Fate, StoreError> {
        let ticket = delivery.ticket();
        match pause(&ticket).filter(|_| delivery.attempts < most.get()) {
            Some(pause) => {
                let due = later(now, pause);
                self.store().postpone_parcel(&ticket, cause, due).await?;
                Ok(Fate::Again(due))
            }
            None => {
                self.store().bury_parcel(&ticket, cause, now).await?;
                tell_of_death(delivery, cause);
                Ok(Fate::Dead)
            }
        }
    }

    /// Parcels that failed too often, the latest first; at most `limit`, and at most [`LIST_MAX`](crate::LIST_MAX).
    ///
    /// # Errors
    /// When the store fails.
    pub async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        let buried = self.store().dead_letters(limit.min(crate::LIST_MAX)).await?;
        Ok(buried.into_iter().map(DeadLetter::from).collect())
    }

    /// Has a dead letter tried again, as often as a new one. Whether there is one of that name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn redeliver(&self, name: &str, now: Timestamp) -> Result<bool, StoreError> {
        self.store().revive_parcel(name, now).await
    }

    /// How many parcels there are.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn backlog(&self) -> Result<Backlog, StoreError> {
        self.store().backlog().await
    }

    /// Returns once this process has made a parcel since the last call.
    pub async fn parcel_made(&self) {
        self.parcels().notified().await;
    }
}

/// As stores keep them.
pub(crate) fn pack(parcels: &[Parcel]) -> Result<Vec<Packed>, StoreError> {
    parcels.iter().map(Packed::parcel).collect()
}

/// Who is on call reads this: what a customer was to be told of does not reach them.
fn tell_of_death(delivery: &Delivery, cause: &str) {
    let Delivery { parcel, attempts } = delivery;
    tracing::error!(
        delivery = %parcel.name(), customer = %parcel.event.customer, event = parcel.event.kind.as_str(), attempts, cause,
        "a delivery has failed too often; `ufbrowsers events --dead` shows it"
    );
}

/// Until the next attempt, where there may be one.
fn pause(ticket: &Ticket) -> Option<Duration> {
    let pause = *PAUSES.get(usize::try_from(ticket.attempts).ok()?.checked_sub(1)?)?;
    // Any number will do that differs from parcel to parcel.
    let number = u32::from(Sha256::digest(&ticket.name)[0]);
    Some(pause + pause * number / (4 * 256))
}

pub(crate) fn later(now: Timestamp, by: Duration) -> Timestamp {
    let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    Timestamp::from_millis(now.as_millis().saturating_add(millis))
}
