//! Writing what comes from another store into an empty one, a part at a time. No gateway runs meanwhile, so nothing here has
//! to be one step.

use std::collections::BTreeMap;

use redis::cmd;

use super::{Redis, Space, body, figures, key_of, stamp};
use crate::account::Account;
use crate::audit::{Entry, EntryKind};
use crate::event::Event;
use crate::id::AccountId;
use crate::migrate::Part;
use crate::session::Session;
use crate::store::lanes::LinkError;
use crate::store::partition;
use crate::time::Timestamp;
use crate::usage::{Bucket, Usage};

/// Appends to a stream in the order of the arguments: ids and bodies in turn. A name stands beside each body, as the commit
/// writes it; no batch has this one.
const APPEND: &str =
    "for at = 1, #ARGV, 2 do redis.call('XADD', KEYS[1], ARGV[at], 'e', ARGV[at + 1], 'n', 'moved') end";

impl Redis {
    pub(super) async fn put_part(&self, part: Part<'_>) -> Result<(), LinkError> {
        match part {
            Part::Account(account) => self.put_account(account).await,
            Part::Entries(account, entries) => self.put_entries(account, entries).await,
            Part::Commands(account, entries) => self.put_commands(account, entries).await,
            Part::Sessions(account, sessions) => self.put_sessions(account, sessions).await,
            Part::Usage(account, bucket, rows) => self.put_usage(account, bucket, rows).await,
            Part::Events(events) => self.put_events(events).await,
        }
    }

    async fn put_account(&self, account: &Account) -> Result<(), LinkError> {
        let (space, id) = (Space::of_account(&account.id), account.id.as_str());
        for key in &account.keys {
            let whose = format!("{id} {}", key.id);
            self.ask(cmd("SET").arg(key_of(key.hash)).arg(whose)).await?;
        }
        let record = body(account)?;
        let fields = cmd("HSET")
            .arg(space.of("account", id))
            .arg("v")
            .arg(stamp(account.version, account.head.hash))
            .arg("b")
            .arg(record)
            .take();
        self.ask(&fields).await?;
        self.ask(cmd("SADD").arg(space.key("accounts")).arg(id)).await.map(|_| ())
    }

    async fn put_entries(&self, account: &AccountId, entries: &[Entry]) -> Result<(), LinkError> {
        let (space, id) = (Space::of_account(account), account.as_str());
        let mut lines = Vec::with_capacity(2 * entries.len());
        for entry in entries {
            let record = body(entry)?;
            if entry.kind == EntryKind::OpeningBalance {
                self.ask(cmd("SET").arg(space.of("opening", id)).arg(record)).await?;
            } else {
                lines.extend([format!("{}-0", entry.seq), record]);
            }
        }
        self.append(space.of("log", id), lines).await?;
        self.put_commands(account, entries).await
    }

    async fn put_commands(&self, account: &AccountId, entries: &[Entry]) -> Result<(), LinkError> {
        let mut fields = Vec::new();
        for entry in entries {
            if let Some(command) = &entry.command {
                fields.extend([command.to_string(), body(entry)?]);
            }
        }
        if fields.is_empty() {
            return Ok(());
        }
        let commands = Space::of_account(account).of("commands", account.as_str());
        self.ask(cmd("HSET").arg(commands).arg(fields)).await.map(|_| ())
    }

    async fn put_sessions(&self, account: &AccountId, sessions: &[Session]) -> Result<(), LinkError> {
        let (space, id) = (Space::of_account(account), account.as_str());
        let (mut records, mut times) = (Vec::new(), Vec::new());
        for session in sessions {
            records.extend([space.session(account, &session.id), body(session)?]);
            times.extend([session.held_at.as_millis().to_string(), session.id.to_string()]);
        }
        self.ask(cmd("MSET").arg(records)).await?;
        self.ask(cmd("ZADD").arg(space.of("sessions", id)).arg(times)).await?;
        for session in sessions.iter().filter(|session| session.state.is_open()) {
            let (gateway, name) = (session.gateway.as_str(), format!("{id}:{}", session.id));
            self.ask(cmd("SADD").arg(space.of("open", id)).arg(session.id.as_str())).await?;
            self.ask(cmd("SADD").arg(space.of("serves", gateway)).arg(name)).await?;
            self.ask(cmd("SADD").arg(space.key("gateways")).arg(gateway)).await?;
        }
        Ok(())
    }

    async fn put_usage(
        &self,
        account: &AccountId,
        bucket: Bucket,
        rows: &[(Timestamp, Usage)],
    ) -> Result<(), LinkError> {
        let key = Space::of_account(account).of(super::usage_key(bucket), account.as_str());
        let row = |(start, usage): &(Timestamp, Usage)| {
            [start.as_millis().to_string(), figures(usage).map(|figure| figure.to_string()).join(" ")]
        };
        let fields: Vec<_> = rows.iter().flat_map(row).collect();
        self.ask(cmd("HSET").arg(key).arg(fields)).await.map(|_| ())
    }

    async fn put_events(&self, events: &[Event]) -> Result<(), LinkError> {
        let mut lines: BTreeMap<u8, Vec<String>> = BTreeMap::new();
        for event in events {
            lines.entry(partition(&event.customer)).or_default().extend(["*".to_owned(), body(event)?]);
        }
        for (partition, lines) in lines {
            self.append(Space { partition }.key("events"), lines).await?;
        }
        Ok(())
    }

    async fn append(&self, stream: String, lines: Vec<String>) -> Result<(), LinkError> {
        self.ask(cmd("EVAL").arg(APPEND).arg(1).arg(stream).arg(lines)).await.map(|_| ())
    }
}
