//! Events as they are read by groups, parcels, and webhooks.
//!
//! A group has one place in the only stream. Its consumers read on from there, and whoever comes first moves it, in the same
//! transaction that keeps the parcels: so nothing is given to a consumer that could die with it.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{Embedded, body, column, parse, patiently};
use crate::consumer::{Batch, DROPPED_AT_A_TIME, READ};
use crate::delivery::{Backlog, Buried, Claim, Group, LINE_MAX, Packed, Ticket};
use crate::event::{Cursor, Event, legible};
use crate::id::{AccountId, GatewayId, WebhookId};
use crate::store::StoreError;
use crate::time::Timestamp;
use crate::webhook::Webhook;

/// A dead letter has no `due`, and is the only one that has a `died`.
pub(super) const SCHEMA: &str = "
    CREATE TABLE event_groups (name TEXT PRIMARY KEY, done INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE parcels (
        name TEXT PRIMARY KEY, line TEXT NOT NULL, due INTEGER, attempts INTEGER NOT NULL,
        body TEXT NOT NULL, cause TEXT, died INTEGER
    ) STRICT;
    CREATE INDEX parcels_by_due ON parcels (due) WHERE due IS NOT NULL;
    CREATE INDEX parcels_by_line ON parcels (line) WHERE due IS NOT NULL;
    CREATE INDEX parcels_by_death ON parcels (died) WHERE died IS NOT NULL;
    CREATE TABLE webhooks (
        account TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (account, id)
    ) STRICT;
";

const SELECT_DONE: &str = "SELECT done FROM event_groups WHERE name = ?1";
const ADD_GROUP: &str = "INSERT INTO event_groups (name, done) VALUES (?1, 0) ON CONFLICT (name) DO NOTHING";
const UPDATE_DONE: &str = "UPDATE event_groups SET done = ?3 WHERE name = ?1 AND done = ?2";
const COUNT_LINE: &str = "SELECT count(*) FROM parcels WHERE line = ?1 AND due IS NOT NULL";
const INSERT_PARCEL: &str = "INSERT INTO parcels (name, line, due, attempts, body)
    VALUES (?1, ?2, ?3, 0, ?4) ON CONFLICT (name) DO NOTHING";
const SELECT_DUE: &str = "SELECT name, line FROM (
        SELECT name, line, due, row_number() OVER (PARTITION BY line ORDER BY due, name) AS place
        FROM parcels WHERE due <= ?1 AND line NOT IN (SELECT value FROM json_each(?2))
    ) WHERE place <= ?3 ORDER BY due, name LIMIT ?4";
const CLAIM_PARCEL: &str = "UPDATE parcels SET attempts = attempts + 1, due = ?3
    WHERE name = ?1 AND due <= ?2 RETURNING line, attempts, body";
const DELETE_PARCEL: &str = "DELETE FROM parcels WHERE name = ?1 AND due IS NOT NULL";
const POSTPONE_PARCEL: &str = "UPDATE parcels SET due = ?3, cause = ?4
    WHERE name = ?1 AND attempts = ?2 AND due IS NOT NULL";
const BURY_PARCEL: &str = "UPDATE parcels SET due = NULL, died = ?3, cause = ?4
    WHERE name = ?1 AND attempts = ?2 AND due IS NOT NULL";
const REVIVE_PARCEL: &str = "UPDATE parcels SET due = ?2, attempts = 0, died = NULL
    WHERE name = ?1 AND died IS NOT NULL";
const SELECT_DEAD: &str = "SELECT name, body, attempts, cause, died FROM parcels WHERE died IS NOT NULL
    ORDER BY died DESC, name LIMIT ?1";
const DELETE_DEAD: &str = "DELETE FROM parcels WHERE rowid IN
    (SELECT rowid FROM parcels WHERE died < ?1 ORDER BY died LIMIT ?2)";
const DELETE_OLDEST_DEAD: &str = "DELETE FROM parcels WHERE rowid IN
    (SELECT rowid FROM parcels WHERE died IS NOT NULL ORDER BY died LIMIT ?1)";
const COUNT_PARCELS: &str = "SELECT count(due), count(died) FROM parcels";
const MIN_DONE: &str = "SELECT min(done), count(*) FROM event_groups";
const OLDEST_EVENTS: &str = "SELECT seq, body FROM events WHERE seq <= ?1 ORDER BY seq LIMIT ?2";
const DELETE_EVENTS: &str = "DELETE FROM events WHERE seq <= ?1";
const SELECT_WAITING: &str = "SELECT name, line, due, body FROM parcels WHERE due IS NOT NULL ORDER BY due";
const SKIP_EVENTS: &str =
    "INSERT INTO event_groups (name, done) VALUES (?1, (SELECT coalesce(max(seq), 0) FROM events))
    ON CONFLICT (name) DO UPDATE SET done = excluded.done";
const SELECT_WEBHOOKS: &str = "SELECT body FROM webhooks WHERE account = ?1 ORDER BY rowid";
const PUT_WEBHOOK: &str = "INSERT INTO webhooks (account, id, body) VALUES (?1, ?2, ?3)
    ON CONFLICT (account, id) DO UPDATE SET body = excluded.body";
const DELETE_WEBHOOK: &str = "DELETE FROM webhooks WHERE account = ?1 AND id = ?2";

/// Events that are read or dropped at a time.
const EVENTS: u32 = 4 * READ;
/// Rounds of a trim, so that it ends where events come faster than it drops them.
const TRIMS: u32 = 100;

impl Embedded {
    /// The place behind which the group has not read, and the one behind what is read now.
    pub(in crate::store) async fn read_events(
        &self,
        group: Group,
        _consumer: &GatewayId,
        _streams: &[u8],
    ) -> Result<Batch, StoreError> {
        let done = self
            .read(move |reader| {
                let mut statement = reader.prepare_cached(SELECT_DONE)?;
                Ok(statement.query_row([group.as_str()], |row| row.get::<_, i64>(0)).optional()?)
            })
            .await?;
        let from = Cursor(done.unwrap_or_default().to_string());
        let events = self.events(0, &from, EVENTS).await?;
        let Some((to, _)) = events.last() else { return Ok(Batch::default()) };
        let more = if events.len() == EVENTS as usize { vec![0] } else { Vec::new() };
        let mut batch = Batch { places: vec![(0, from.0), (0, to.0.clone())], more, ..Batch::default() };
        for (place, told) in events {
            batch.add(group, place.0, told);
        }
        Ok(batch)
    }

    /// Nothing is given to anybody before it is done with.
    pub(in crate::store) async fn forgotten_events(
        &self,
        _group: Group,
        _consumer: &GatewayId,
        _since: Duration,
    ) -> Result<Batch, StoreError> {
        Ok(Batch::default())
    }

    pub(in crate::store) async fn sorted(
        &self,
        group: Group,
        batch: &Batch,
        parcels: &[Packed],
    ) -> Result<Option<u64>, StoreError> {
        let [(_, from), (_, to)] = &batch.places[..] else { return Ok(None) };
        let place = |text: &str| text.parse::<i64>().unwrap_or_default();
        self.write(|transaction| {
            transaction.prepare_cached(ADD_GROUP)?.execute([group.as_str()])?;
            let places = params![group.as_str(), place(from), place(to)];
            if transaction.prepare_cached(UPDATE_DONE)?.execute(places)? == 0 {
                // Another consumer was faster.
                return Ok(None);
            }
            put(transaction, parcels).map(Some)
        })
        .await
    }

    pub(in crate::store) async fn put_parcels(&self, parcels: &[Packed]) -> Result<u64, StoreError> {
        self.write(|transaction| put(transaction, parcels)).await
    }

    pub(in crate::store) async fn waiting_parcels(&self) -> Result<Vec<Packed>, StoreError> {
        self.read(|reader| {
            let mut statement = reader.prepare_cached(SELECT_WAITING)?;
            let row = |row: &Row<'_>| {
                let (name, line, due) = (row.get(0)?, row.get(1)?, timestamp(row, 2)?);
                Ok(Packed { name, line, due, body: text(row, 3)? })
            };
            let rows = statement.query_map([], row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::store) async fn skip_events(&self, group: Group) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.prepare_cached(SKIP_EVENTS)?.execute([group.as_str()])?;
            Ok(())
        })
        .await
    }

    pub(in crate::store) async fn trim_events(
        &self,
        _stream: u16,
        oldest: Timestamp,
    ) -> Result<(), StoreError> {
        for _ in 0..TRIMS {
            let Some(last) = self.last_to_trim(oldest).await? else { return Ok(()) };
            self.write(|transaction| {
                transaction.prepare_cached(DELETE_EVENTS)?.execute([last])?;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Up to where the next few of the oldest events may go.
    async fn last_to_trim(&self, oldest: Timestamp) -> Result<Option<i64>, StoreError> {
        self.read(move |reader| {
            let done = reader
                .prepare_cached(MIN_DONE)?
                .query_row([], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, u32>(1)?)))?;
            let (Some(done), true) = (done.0, done.1 as usize == Group::ALL.len()) else { return Ok(None) };
            let mut statement = reader.prepare_cached(OLDEST_EVENTS)?;
            let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, text(row, 1)?));
            let rows = statement.query_map(params![done, EVENTS], row)?;
            let mut last = None;
            for row in rows {
                let (seq, body) = row?;
                // One that is not understood has been made a parcel of, and goes with those before it.
                if parse::<Event>(&body).is_ok_and(|event| event.at >= oldest) {
                    break;
                }
                last = Some(seq);
            }
            Ok(last)
        })
        .await
    }

    pub(in crate::store) async fn claim_parcels(
        &self,
        claim: &Claim<'_>,
    ) -> Result<Vec<(Ticket, String)>, StoreError> {
        let at_most = crate::delivery::AT_A_TIME;
        let full: Vec<_> =
            claim.busy.iter().filter(|(_, busy)| **busy >= at_most).map(|(line, _)| line).collect();
        let full = body(&full)?;
        let (now, room) = (column(claim.now.as_millis()), claim.room);
        let due: Vec<(String, String)> = self
            .read(move |reader| {
                let mut statement = reader.prepare_cached(SELECT_DUE)?;
                let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
                let rows = statement.query_map(params![now, full, at_most, room], row)?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await?;
        let mut busy = claim.busy.clone();
        let mut names = Vec::new();
        for (name, line) in due {
            let busy = busy.entry(line).or_default();
            if *busy < at_most {
                *busy += 1;
                names.push(name);
            }
        }
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let until = column(claim.until.as_millis());
        self.write(|transaction| {
            let mut claimed = Vec::with_capacity(names.len());
            for name in &names {
                let mut statement = transaction.prepare_cached(CLAIM_PARCEL)?;
                let row = |row: &Row<'_>| {
                    let (line, attempts) = (row.get(0)?, row.get(1)?);
                    Ok((Ticket { name: name.clone(), line, attempts }, text(row, 2)?))
                };
                // Another process may have been faster.
                claimed.extend(statement.query_row(params![name, now, until], row).optional()?);
            }
            Ok(claimed)
        })
        .await
    }

    pub(in crate::store) async fn remove_parcel(&self, ticket: &Ticket) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.prepare_cached(DELETE_PARCEL)?.execute([&ticket.name])?;
            Ok(())
        })
        .await
    }

    pub(in crate::store) async fn postpone_parcel(
        &self,
        ticket: &Ticket,
        cause: &str,
        due: Timestamp,
    ) -> Result<(), StoreError> {
        self.update_parcel(POSTPONE_PARCEL, ticket, cause, due).await
    }

    pub(in crate::store) async fn bury_parcel(
        &self,
        ticket: &Ticket,
        cause: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.update_parcel(BURY_PARCEL, ticket, cause, now).await
    }

    async fn update_parcel(
        &self,
        sql: &str,
        ticket: &Ticket,
        cause: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            let row = params![ticket.name, ticket.attempts, column(at.as_millis()), cause];
            transaction.prepare_cached(sql)?.execute(row)?;
            Ok(())
        })
        .await
    }

    pub(in crate::store) async fn revive_parcel(
        &self,
        name: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let now = column(now.as_millis());
        self.write(|transaction| {
            Ok(transaction.prepare_cached(REVIVE_PARCEL)?.execute(params![name, now])? > 0)
        })
        .await
    }

    pub(in crate::store) async fn dead_letters(&self, limit: u32) -> Result<Vec<Buried>, StoreError> {
        self.read(move |reader| {
            let mut statement = reader.prepare_cached(SELECT_DEAD)?;
            let row = |row: &Row<'_>| {
                let (name, body, attempts) = (row.get(0)?, text(row, 1)?, row.get(2)?);
                let cause = row.get::<_, Option<_>>(3)?.unwrap_or_default();
                Ok(Buried { name, body, attempts, cause, died_at: timestamp(row, 4)? })
            };
            let rows = statement.query_map([limit], row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::store) async fn drop_dead_letters(
        &self,
        before: Timestamp,
        most: u32,
    ) -> Result<(), StoreError> {
        let (backlog, before) = (self.backlog().await?, column(before.as_millis()));
        if backlog.dead == 0 {
            return Ok(());
        }
        let excess = u32::try_from(backlog.dead).unwrap_or(u32::MAX).saturating_sub(most);
        self.write(|transaction| {
            let mut old = transaction.prepare_cached(DELETE_DEAD)?;
            let dropped = old.execute(params![before, DROPPED_AT_A_TIME])?;
            let excess = excess.saturating_sub(u32::try_from(dropped).unwrap_or(u32::MAX));
            transaction.prepare_cached(DELETE_OLDEST_DEAD)?.execute([excess.min(DROPPED_AT_A_TIME)])?;
            Ok(())
        })
        .await
    }

    pub(in crate::store) async fn backlog(&self) -> Result<Backlog, StoreError> {
        self.read(|reader| {
            let count = |row: &Row<'_>, at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            let row = |row: &Row<'_>| Ok(Backlog { waiting: count(row, 0)?, dead: count(row, 1)? });
            Ok(reader.prepare_cached(COUNT_PARCELS)?.query_row([], row)?)
        })
        .await
    }

    pub(in crate::store) async fn webhooks(
        &self,
        accounts: &[AccountId],
    ) -> Result<Vec<(AccountId, Webhook)>, StoreError> {
        let accounts = accounts.to_vec();
        self.read(move |reader| {
            let mut statement = reader.prepare_cached(SELECT_WEBHOOKS)?;
            let mut found = Vec::new();
            for account in accounts {
                let rows = statement.query_map([account.as_str()], |row| row.get::<_, String>(0))?;
                for body in rows {
                    found.push((account.clone(), parse(&body?)?));
                }
            }
            Ok(found)
        })
        .await
    }

    pub(in crate::store) async fn put_webhook(
        &self,
        account: &AccountId,
        webhook: &Webhook,
    ) -> Result<(), StoreError> {
        let body = body(webhook)?;
        self.write(|transaction| {
            let row = params![account.as_str(), webhook.id.as_str(), body];
            transaction.prepare_cached(PUT_WEBHOOK)?.execute(row)?;
            Ok(())
        })
        .await?;
        self.synced().await
    }

    pub(in crate::store) async fn remove_webhook(
        &self,
        account: &AccountId,
        id: &WebhookId,
    ) -> Result<bool, StoreError> {
        let keys = [account.as_str(), id.as_str()];
        let removed = self
            .write(|transaction| Ok(transaction.prepare_cached(DELETE_WEBHOOK)?.execute(keys)? > 0))
            .await?;
        self.synced().await?;
        Ok(removed)
    }

    /// One transaction, which concerns no account.
    pub(super) async fn write<T>(
        &self,
        write: impl Fn(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        patiently(|| {
            let mut hot = self.alone()?;
            let transaction = self.transaction(&mut hot)?;
            let written = write(&transaction)?;
            transaction.commit()?;
            self.committed(&mut hot);
            Ok(written)
        })
        .await
    }
}

/// How many found their line full, and were dropped.
fn put(transaction: &Transaction<'_>, parcels: &[Packed]) -> Result<u64, StoreError> {
    let (mut lines, mut dropped) = (HashMap::<String, u32>::new(), 0);
    for Packed { name, line, due, body } in parcels {
        let waiting = match lines.get(line) {
            Some(waiting) => *waiting,
            None => transaction.prepare_cached(COUNT_LINE)?.query_row([line], |row| row.get(0))?,
        };
        if waiting >= LINE_MAX {
            dropped += 1;
            continue;
        }
        let row = params![name, line, column(due.as_millis()), body];
        let added = transaction.prepare_cached(INSERT_PARCEL)?.execute(row)?;
        lines.insert(line.clone(), waiting + u32::from(added > 0));
    }
    Ok(dropped)
}

/// Whatever bytes it has.
fn text(row: &Row<'_>, at: usize) -> rusqlite::Result<String> {
    Ok(legible(row.get_ref(at)?.as_bytes()?))
}

fn timestamp(row: &Row<'_>, at: usize) -> rusqlite::Result<Timestamp> {
    Ok(Timestamp::from_millis(row.get::<_, i64>(at)?.cast_unsigned()))
}
