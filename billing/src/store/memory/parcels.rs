//! Events as groups read them, parcels and webhooks: what Redis does with its consumer groups, `parcels.lua` and `trim.lua`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{Line, Memory};
use crate::consumer::{Batch, DROPPED_AT_A_TIME, READ};
use crate::delivery::{AT_A_TIME, Backlog, Buried, Claim, Group, LINE_MAX, Packed, Ticket};
use crate::event::{Cursor, Event, Heard};
use crate::id::{AccountId, GatewayId, WebhookId};
use crate::simulation::Kind;
use crate::store::LinkError;
use crate::time::Timestamp;
use crate::webhook::Webhook;

/// One partition's events.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// How many were dropped.
    dropped: usize,
    /// Each with the time of the server's clock, which is that of whoever told it, for want of another.
    events: VecDeque<Event>,
    groups: BTreeMap<&'static str, Reading>,
}

/// How far a group has come.
#[derive(Debug, Default)]
struct Reading {
    /// The number of the first event that nobody was given.
    next: usize,
    /// Those that were given and are not done with: to whom, and when.
    pending: BTreeMap<usize, (GatewayId, Instant)>,
}

impl Stream {
    pub(super) fn tell(&mut self, events: &[Event]) {
        self.events.extend(events.iter().cloned());
    }

    pub(super) fn after(&self, after: &Cursor, limit: usize) -> Vec<(Cursor, Heard)> {
        let read: usize = after.0.parse().unwrap_or_default();
        let events = self.events.iter().zip(self.dropped..).filter(|(_, number)| *number >= read).take(limit);
        events
            .map(|(event, number)| (Cursor((number + 1).to_string()), Heard::Event(Box::new(event.clone()))))
            .collect()
    }

    fn event(&self, number: usize) -> Option<&Event> {
        self.events.get(number.checked_sub(self.dropped)?)
    }

    fn end(&self) -> usize {
        self.dropped + self.events.len()
    }

    fn read(&mut self, group: Group, consumer: &GatewayId) -> Vec<usize> {
        let (end, dropped) = (self.end(), self.dropped);
        let reading = self.groups.entry(group.as_str()).or_default();
        let from = reading.next.max(dropped);
        let given: Vec<_> = (from..end).take(READ as usize).collect();
        reading.next = from + given.len();
        let now = Instant::now();
        reading.pending.extend(given.iter().map(|number| (*number, (consumer.clone(), now))));
        given
    }

    fn forgotten(&mut self, group: Group, consumer: &GatewayId, since: Duration) -> Vec<usize> {
        let reading = self.groups.entry(group.as_str()).or_default();
        let now = Instant::now();
        let idle = reading.pending.iter_mut().filter(|(_, (_, given))| now - *given >= since);
        let claimed = idle.take(READ as usize).map(|(number, given)| {
            *given = (consumer.clone(), now);
            *number
        });
        claimed.collect()
    }

    /// What all groups are done with.
    fn trim(&mut self, oldest: Timestamp) {
        if self.groups.len() < Group::ALL.len() {
            return;
        }
        let needed = |reading: &Reading| reading.pending.keys().next().copied().unwrap_or(reading.next);
        let needed = self.groups.values().map(needed).min().unwrap_or_default();
        while self.dropped < needed && self.events.front().is_some_and(|event| event.at < oldest) {
            self.events.pop_front();
            self.dropped += 1;
        }
    }
}

/// A parcel, or a dead letter.
#[derive(Debug)]
pub(super) struct Kept {
    line: String,
    body: String,
    attempts: u32,
    cause: String,
    /// `None`: it is a dead letter.
    due: Option<Timestamp>,
    died_at: Timestamp,
}

impl Memory {
    fn batch(&mut self, streams: &[u8], read: impl Fn(&mut Stream) -> Vec<usize>) -> Batch {
        let mut batch = Batch::default();
        for partition in streams {
            let stream = self.events.entry((*partition).into()).or_default();
            let given = read(stream);
            if given.len() >= READ as usize {
                batch.more.push(*partition);
            }
            let events = given.iter().filter_map(|number| stream.event(*number).cloned());
            batch.events.extend(events);
            batch.places.extend(given.iter().map(|number| (*partition, number.to_string())));
        }
        batch
    }

    fn put_parcels(&mut self, parcels: &[Packed]) -> u64 {
        let mut dropped = 0;
        for parcel in parcels {
            if self.parcels.contains_key(&parcel.name) {
                continue;
            }
            let waiting = self.parcels.values().filter(|kept| kept.due.is_some());
            if waiting.filter(|kept| kept.line == parcel.line).count() >= LINE_MAX as usize {
                dropped += 1;
                continue;
            }
            let Packed { name, line, due, body } = parcel.clone();
            let (attempts, cause) = (0, String::new());
            self.parcels.insert(name, Kept { line, body, attempts, cause, due: Some(due), died_at: due });
        }
        dropped
    }

    fn acknowledge(&mut self, group: Group, places: &[(u8, String)]) {
        for (partition, number) in places {
            let stream = self.events.entry((*partition).into()).or_default();
            let reading = stream.groups.entry(group.as_str()).or_default();
            number.parse().ok().and_then(|number: usize| reading.pending.remove(&number));
        }
    }

    /// Line by line, the one first whose first parcel is due first.
    fn claim(
        &mut self,
        busy: &BTreeMap<String, u32>,
        mut room: u32,
        times: [Timestamp; 2],
    ) -> Vec<(Ticket, String)> {
        let [now, until] = times;
        let mut lines: BTreeMap<String, Vec<(Timestamp, String)>> = BTreeMap::new();
        for (name, kept) in &self.parcels {
            if let Some(due) = kept.due.filter(|due| *due <= now) {
                lines.entry(kept.line.clone()).or_default().push((due, name.clone()));
            }
        }
        let mut lines: Vec<_> = lines.into_iter().collect();
        lines.iter_mut().for_each(|(_, due)| due.sort_unstable());
        lines
            .sort_unstable_by(|(one, first), (other, second)| (&first[0].0, one).cmp(&(&second[0].0, other)));
        let mut claimed = Vec::new();
        for (line, due) in lines {
            let share = room.min(AT_A_TIME.saturating_sub(busy.get(&line).copied().unwrap_or_default()));
            for (_, name) in due.into_iter().take(share as usize) {
                let kept = self.parcels.get_mut(&name).expect("it was found there");
                (kept.due, kept.attempts) = (Some(until), kept.attempts + 1);
                let ticket = Ticket { name, line: line.clone(), attempts: kept.attempts };
                claimed.push((ticket, kept.body.clone()));
                room -= 1;
            }
        }
        claimed
    }

    /// Unless it was handed out again since.
    fn held(&mut self, ticket: &Ticket) -> Option<&mut Kept> {
        let kept = self.parcels.get_mut(&ticket.name)?;
        Some(kept).filter(|kept| kept.due.is_some() && kept.attempts == ticket.attempts)
    }

    fn dead(&self) -> Vec<(Timestamp, String)> {
        let dead = self.parcels.iter().filter(|(_, kept)| kept.due.is_none());
        let mut dead: Vec<_> = dead.map(|(name, kept)| (kept.died_at, name.clone())).collect();
        dead.sort_unstable();
        dead
    }

    fn drop_dead_letters(&mut self, before: Timestamp, most: u32) {
        let at_a_time = DROPPED_AT_A_TIME as usize;
        let old: Vec<_> =
            self.dead().into_iter().filter(|(died, _)| *died < before).take(at_a_time).collect();
        old.iter().for_each(|(_, name)| drop(self.parcels.remove(name)));
        let dead = self.dead();
        let excess = dead.len().saturating_sub(most as usize).min(at_a_time);
        dead[..excess].iter().for_each(|(_, name)| drop(self.parcels.remove(name)));
    }
}

impl Line {
    pub(in crate::store) async fn read_events(
        &self,
        group: Group,
        consumer: &GatewayId,
        streams: &[u8],
    ) -> Result<Batch, LinkError> {
        let (consumer, streams) = (consumer.clone(), streams.to_vec());
        let read = move |server: &mut Memory| server.batch(&streams, |stream| stream.read(group, &consumer));
        self.ask(Kind::Write, read).await
    }

    pub(in crate::store) async fn forgotten_events(
        &self,
        group: Group,
        consumer: &GatewayId,
        since: Duration,
    ) -> Result<Batch, LinkError> {
        let consumer = consumer.clone();
        let claim = move |server: &mut Memory| {
            let streams: Vec<_> =
                server.events.keys().filter_map(|stream| u8::try_from(*stream).ok()).collect();
            server.batch(&streams, |stream| stream.forgotten(group, &consumer, since))
        };
        self.ask(Kind::Write, claim).await
    }

    /// In two steps, as with Redis: whoever dies in between leaves events that are given to another.
    pub(in crate::store) async fn sorted(
        &self,
        group: Group,
        batch: &Batch,
        parcels: &[Packed],
    ) -> Result<Option<u64>, LinkError> {
        let dropped = self.put_parcels(parcels).await?;
        let places = batch.places.clone();
        self.ask(Kind::Write, move |server| server.acknowledge(group, &places)).await?;
        Ok(Some(dropped))
    }

    pub(in crate::store) async fn skip_events(&self, group: Group) -> Result<(), LinkError> {
        let skip = move |server: &mut Memory| {
            for stream in server.events.values_mut() {
                let end = stream.end();
                stream.groups.entry(group.as_str()).or_default().next = end;
            }
        };
        self.ask(Kind::Write, skip).await
    }

    pub(in crate::store) async fn put_parcels(&self, parcels: &[Packed]) -> Result<u64, LinkError> {
        let parcels = parcels.to_vec();
        self.ask(Kind::Write, move |server| server.put_parcels(&parcels)).await
    }

    pub(in crate::store) async fn waiting_parcels(&self) -> Result<Vec<Packed>, LinkError> {
        self.read(|server| {
            let waiting = server.parcels.iter().filter_map(|(name, kept)| Some((name, kept, kept.due?)));
            let packed = |(name, kept, due): (&String, &Kept, _)| {
                let Kept { line, body, .. } = kept;
                Packed { name: name.clone(), line: line.clone(), due, body: body.clone() }
            };
            waiting.map(packed).collect()
        })
        .await
    }

    pub(in crate::store) async fn trim_events(
        &self,
        stream: u16,
        oldest: Timestamp,
    ) -> Result<(), LinkError> {
        let trim = move |server: &mut Memory| {
            if let Some(stream) = server.events.get_mut(&stream) {
                stream.trim(oldest);
            }
        };
        self.ask(Kind::Write, trim).await
    }

    pub(in crate::store) async fn claim_parcels(
        &self,
        claim: &Claim<'_>,
    ) -> Result<Vec<(Ticket, String)>, LinkError> {
        let busy: BTreeMap<_, _> = claim.busy.iter().map(|(line, busy)| (line.clone(), *busy)).collect();
        let (room, times) = (claim.room, [claim.now, claim.until]);
        self.ask(Kind::Write, move |server| server.claim(&busy, room, times)).await
    }

    pub(in crate::store) async fn remove_parcel(&self, ticket: &Ticket) -> Result<(), LinkError> {
        let name = ticket.name.clone();
        let remove = move |server: &mut Memory| {
            if server.parcels.get(&name).is_some_and(|kept| kept.due.is_some()) {
                server.parcels.remove(&name);
            }
        };
        self.ask(Kind::Write, remove).await
    }

    pub(in crate::store) async fn postpone_parcel(
        &self,
        ticket: &Ticket,
        cause: &str,
        due: Timestamp,
    ) -> Result<(), LinkError> {
        let (ticket, cause) = (ticket.clone(), cause.to_owned());
        let postpone = move |server: &mut Memory| {
            if let Some(kept) = server.held(&ticket) {
                (kept.due, kept.cause) = (Some(due), cause.clone());
            }
        };
        self.ask(Kind::Write, postpone).await
    }

    pub(in crate::store) async fn bury_parcel(
        &self,
        ticket: &Ticket,
        cause: &str,
        now: Timestamp,
    ) -> Result<(), LinkError> {
        let (ticket, cause) = (ticket.clone(), cause.to_owned());
        let bury = move |server: &mut Memory| {
            if let Some(kept) = server.held(&ticket) {
                (kept.due, kept.cause, kept.died_at) = (None, cause.clone(), now);
            }
        };
        self.ask(Kind::Write, bury).await
    }

    pub(in crate::store) async fn revive_parcel(
        &self,
        name: &str,
        now: Timestamp,
    ) -> Result<bool, LinkError> {
        let name = name.to_owned();
        let revive = move |server: &mut Memory| {
            let dead = server.parcels.get_mut(&name).filter(|kept| kept.due.is_none());
            dead.map(|kept| (kept.due, kept.attempts) = (Some(now), 0)).is_some()
        };
        self.ask(Kind::Write, revive).await
    }

    pub(in crate::store) async fn dead_letters(&self, limit: u32) -> Result<Vec<Buried>, LinkError> {
        self.read(move |server| {
            let latest = server.dead().into_iter().rev().take(limit as usize);
            let letter = |(_, name)| {
                let Kept { body, attempts, cause, died_at, .. } = &server.parcels[&name];
                let (body, cause) = (body.clone(), cause.clone());
                Buried { name, body, attempts: *attempts, cause, died_at: *died_at }
            };
            latest.map(letter).collect()
        })
        .await
    }

    pub(in crate::store) async fn drop_dead_letters(
        &self,
        before: Timestamp,
        most: u32,
    ) -> Result<(), LinkError> {
        self.ask(Kind::Write, move |server| server.drop_dead_letters(before, most)).await
    }

    pub(in crate::store) async fn backlog(&self) -> Result<Backlog, LinkError> {
        self.read(|server| {
            let dead = server.dead().len();
            Backlog { waiting: (server.parcels.len() - dead) as u64, dead: dead as u64 }
        })
        .await
    }

    pub(in crate::store) async fn webhooks(
        &self,
        accounts: &[AccountId],
    ) -> Result<Vec<(AccountId, Webhook)>, LinkError> {
        let accounts = accounts.to_vec();
        self.read(move |server| {
            let of = |account: &AccountId| {
                let own = server.webhooks.get(account).into_iter().flat_map(BTreeMap::values);
                let mut own: Vec<_> = own.map(|webhook| (account.clone(), webhook.clone())).collect();
                own.sort_by_key(|(_, webhook)| webhook.created_at);
                own
            };
            accounts.iter().flat_map(of).collect()
        })
        .await
    }

    pub(in crate::store) async fn put_webhook(
        &self,
        account: &AccountId,
        webhook: &Webhook,
    ) -> Result<(), LinkError> {
        let (account, webhook) = (account.clone(), webhook.clone());
        let put = move |server: &mut Memory| server.put_webhook(&account, &webhook);
        self.ask(Kind::Write, put).await
    }

    pub(in crate::store) async fn remove_webhook(
        &self,
        account: &AccountId,
        id: &WebhookId,
    ) -> Result<bool, LinkError> {
        let (account, id) = (account.clone(), id.clone());
        let remove = move |server: &mut Memory| {
            server.webhooks.get_mut(&account).is_some_and(|own| own.remove(&id).is_some())
        };
        self.ask(Kind::Write, remove).await
    }
}

impl Memory {
    /// One that is there before anybody comes, too.
    pub(crate) fn put_webhook(&mut self, account: &AccountId, webhook: &Webhook) {
        self.webhooks.entry(account.clone()).or_default().insert(webhook.id.clone(), webhook.clone());
    }
}
