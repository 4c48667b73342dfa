//! Reads the events for a group, and makes parcels of those that concern somebody.
//!
//! A group's consumers, one in each gateway, share its streams: each event is given to one of them, and to another when it
//! was not heard of that event for [`FORGOTTEN`]. What one process tells its own consumer is told of at once, by a bell; of what
//! others have told, and left to be read, it finds out by looking every [`LOOK`].

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::books::Billing;
use crate::delivery::{DEAD_KEPT, DEAD_MAX, Group, Packed, Parcel, Unread, pack};
use crate::event::{Event, Heard};
use crate::id::GatewayId;
use crate::store::StoreError;
use crate::time::Timestamp;

/// How often all streams are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// How long events gather once there is one, so that many are read at a time and the bell wakes nobody more often. Nobody
/// waits for a notice as for a session: the pause is one that keeps the reading away from the sessions that come next.
const GATHER: Duration = Duration::from_millis(250);

/// Events of one stream that are read at a time.
pub(crate) const READ: u32 = 64;

/// How often it is looked for events that were given to somebody and forgotten; and after how long they are.
const FORGOTTEN_LOOK: Duration = Duration::from_secs(10);
const FORGOTTEN: Duration = Duration::from_secs(30);

/// Dead letters that are dropped at a time.
pub(crate) const DROPPED_AT_A_TIME: u32 = 10_000;

/// Events as they were given to a consumer.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    pub(crate) unread: Vec<Unread>,
    /// How the store tells them from others; as many as there are, or two ends.
    pub(crate) places: Vec<(u8, String)>,
    /// Streams that may have more.
    pub(crate) more: Vec<u8>,
}

impl Batch {
    /// What is at a place of a stream.
    pub(crate) fn add(&mut self, group: Group, place: String, told: Heard) {
        match told {
            Heard::Event(event) => self.events.push(*event),
            Heard::Unreadable(body) => self.unread.push(Unread::new(group, place, body)),
        }
    }
}

/// What a look came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// Events that were read.
    pub events: u64,
    /// Of those, what is not understood.
    pub unread: u64,
    /// Parcels that were made of the others.
    pub parcels: u64,
    /// Parcels that were dropped because too many wait in the line of their account.
    pub dropped: u64,
}

/// One of a group's, in this process.
#[derive(Debug)]
pub struct Consumer {
    billing: Billing,
    group: Group,
    me: GatewayId,
    /// What may have more, and is read without waiting.
    more: Vec<u8>,
    next_look: Instant,
    next_look_for_forgotten: Instant,
    forgotten: Duration,
    /// The stream that is trimmed next.
    trim: u16,
}

impl Consumer {
    /// One of the group's consumers, for the gateway `me`. It looks when it is asked to.
    pub fn new(billing: Billing, group: Group, me: GatewayId) -> Consumer {
        let now = Instant::now();
        Consumer {
            billing,
            group,
            me,
            more: Vec::new(),
            next_look: now,
            next_look_for_forgotten: now,
            forgotten: FORGOTTEN,
            trim: 0,
        }
    }

    /// Takes for forgotten what was given to somebody at all.
    #[cfg(test)]
    pub(crate) fn impatient(self) -> Consumer {
        Consumer { forgotten: Duration::ZERO, ..self }
    }

    /// Returns when it is time to look. May be dropped.
    pub async fn wait(&self) {
        if !self.more.is_empty() {
            return;
        }
        let bell = self.billing.bell(self.group);
        tokio::select! {
            () = bell.rung() => sleep(GATHER).await,
            () = sleep_until(self.next_look) => {}
        }
    }

    /// Reads what is new, makes parcels of it, and lets the store note that this was done.
    ///
    /// # Errors
    /// When the store fails. What was read and not noted is read again, by this consumer or another.
    pub async fn look(&mut self) -> Result<Sorted, StoreError> {
        let mut streams = self.billing.bell(self.group).take();
        streams.append(&mut self.more);
        if Instant::now() >= self.next_look {
            self.next_look = Instant::now() + LOOK;
            streams = (0..=u8::MAX).take(usize::from(self.billing.event_streams())).collect();
        }
        streams.sort_unstable();
        streams.dedup();
        let (billing, group) = (self.billing.clone(), self.group);
        let mut sorted = Sorted::default();
        if !streams.is_empty() {
            let batch = billing.store().read_events(group, &self.me, &streams).await?;
            self.more.clone_from(&batch.more);
            sorted = billing.sort(group, batch).await?;
        }
        if Instant::now() >= self.next_look_for_forgotten {
            self.next_look_for_forgotten = Instant::now() + FORGOTTEN_LOOK;
            let batch = billing.store().forgotten_events(group, &self.me, self.forgotten).await?;
            let taken_over = billing.sort(group, batch).await?;
            sorted.events += taken_over.events;
            sorted.unread += taken_over.unread;
            sorted.parcels += taken_over.parcels;
            sorted.dropped += taken_over.dropped;
        }
        Ok(sorted)
    }

    /// Trims a stream, the next one with each call: drops events older than `kept` that all groups have done with. Drops dead
    /// letters whose time is over, too.
    ///
    /// # Errors
    /// When the store fails. A repeat goes on with it.
    pub async fn trim(&mut self, kept: Duration, now: Timestamp) -> Result<(), StoreError> {
        let before = |kept: Duration| {
            let kept = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
            Timestamp::from_millis(now.as_millis().saturating_sub(kept))
        };
        let store = self.billing.store();
        store.trim_events(self.trim, before(kept)).await?;
        self.trim = (self.trim + 1) % self.billing.event_streams();
        store.drop_dead_letters(before(DEAD_KEPT), DEAD_MAX).await
    }
}

impl Billing {
    /// Makes parcels of events, and notes that it was done.
    async fn sort(&self, group: Group, batch: Batch) -> Result<Sorted, StoreError> {
        if batch.places.is_empty() {
            return Ok(Sorted::default());
        }
        let made = self.parcels_of(group, &batch.events).await?;
        let mut parcels = pack(&made)?;
        for unread in &batch.unread {
            parcels.push(Packed::unread(unread)?);
        }
        let Some(dropped) = self.store().sorted(group, &batch, &parcels).await? else {
            return Ok(Sorted::default());
        };
        if !parcels.is_empty() {
            self.parcels().notify_one();
        }
        Ok(Sorted {
            events: (batch.events.len() + batch.unread.len()) as u64,
            unread: batch.unread.len() as u64,
            parcels: (made.len() as u64).saturating_sub(dropped),
            dropped,
        })
    }

    /// Makes parcels of all events that a group is not done with. Nobody else reads them meanwhile.
    pub(crate) async fn sort_the_rest(&self, group: Group) -> Result<(), StoreError> {
        let me = GatewayId::random();
        let streams: Vec<_> = (0..=u8::MAX).take(usize::from(self.event_streams())).collect();
        loop {
            let new = self.store().read_events(group, &me, &streams).await?;
            let new = self.sort(group, new).await?;
            let forgotten = self.store().forgotten_events(group, &me, Duration::ZERO).await?;
            if new.events + self.sort(group, forgotten).await?.events == 0 {
                return Ok(());
            }
        }
    }

    pub(crate) async fn parcels_of(&self, group: Group, events: &[Event]) -> Result<Vec<Parcel>, StoreError> {
        match group {
            Group::Notices => self.notices_of(events).await,
        }
    }
}
