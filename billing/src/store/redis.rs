//! The store of several gateways: Redis, alone, with Sentinel, or as a Cluster.
//!
//! Accounts are spread over 256 partitions. All keys of one carry the same hash tag, so that a Cluster keeps them in one
//! slot and one script may write them all:
//!
//! | key | what |
//! | --- | --- |
//! | `ufb:{P}:account:A` | hash: version and first digits of the last entry's hash `v`, body `b` |
//! | `ufb:{P}:log:A` | stream of the audit log; entry n has the id `n-0`, the body `e`, and the name `n` of the batch that wrote it |
//! | `ufb:{P}:opening:A` | the opening balance that the log begins with, where it was trimmed |
//! | `ufb:{P}:commands:A` | hash: id of a command → the entry that it led to |
//! | `ufb:{P}:session:A:S` | a session's record |
//! | `ufb:{P}:sessions:A` | sorted set: ids of all sessions, by the time of their hold |
//! | `ufb:{P}:open:A` | set: ids of the sessions that are held or open |
//! | `ufb:{P}:hours:A`, `ufb:{P}:months:A` | hash: start of a period → what was used in it, nine figures in the order of `Usage` |
//! | `ufb:{P}:serves:G` | set: the sessions `A:S` that gateway G has open |
//! | `ufb:{P}:gateways` | set: the gateways that have any open here |
//! | `ufb:{P}:accounts` | set: the ids of all accounts |
//! | `ufb:{P}:events` | stream of the events, with a consumer group for each of `Group` |
//! | `ufb:{P}:webhooks:A` | hash: id of a webhook → what it is |
//! | `ufb:key:H` | the account and the id of the key whose hash is H |
//! | `ufb:{gateways}:seen` | sorted set: gateways, by the time at which they were last noted to live |
//! | `ufb:{gateways}:beats` | hash: gateway → how often it was |
//! | `ufb:{parcels}:…` | what is to be done because of events; `parcels.lua` says which |
//! | `ufb:secret:N` | a secret of the gateways, in hexadecimal digits |
//! | `ufb:kept`, in a Cluster `ufb:{P}:kept` | written before it is asked what the replicas have |
//! | `ufb:schema` | the version of all this |
//!
//! P is the partition's number in two hexadecimal digits. An id holds no colon.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::future::try_join_all;
use redis::{Cmd, Value, cmd};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha1::{Digest as _, Sha1};
use tokio::sync::OnceCell;

use super::lanes::{Batch, Link, LinkError, Reply};
use super::{Committed, InvalidStoreUrl, PARTITIONS, StoreError, partition};
use crate::account::Account;
use crate::audit::{Digest, Entry};
use crate::event::{Cursor, Heard};
use crate::id::{AccountId, CommandId, GatewayId, KeyId, SessionId};
use crate::key::Principal;
use crate::ledger::SessionChange;
use crate::migrate::Part;
use crate::money::Micros;
use crate::session::{Session, SessionCursor};
use crate::time::Timestamp;
use crate::usage::{Bucket, HOURS_KEPT, Usage, Used};
use connection::{Connections, Topology};
use replicas::Replicas;

#[cfg(feature = "measure")]
pub(crate) mod bare;
mod connection;
mod parcels;
mod put;
mod replicas;
mod schema;
mod drop;
mod trim_log;
#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;

const COMMIT: &str = include_str!("commit.lua");

/// An account and the number of its open sessions, of one moment.
const COUNT: &str = "
    local account = redis.call('HMGET', KEYS[1], 'v', 'b')
    return {account[1], account[2], redis.call('SCARD', KEYS[2])}";

const HOUR_MILLIS: u64 = 3_600_000;

/// The words before a call's keys, and more bytes than they and a number have.
const HEAD: usize = 3;
const HEAD_BYTES: usize = 32;
/// Most records are no longer than this.
const BODY: usize = 1_024;

const SEEN: &str = "ufb:{gateways}:seen";
const BEATS: &str = "ufb:{gateways}:beats";

/// Where a Redis is. `Debug` and `Display` show no password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    topology: Topology,
    /// Replicas that must have what must not be lost.
    replicas: u32,
}

impl RedisUrl {
    pub(super) fn with_replicas(self, replicas: u32) -> Self {
        RedisUrl { replicas, ..self }
    }
}

impl FromStr for RedisUrl {
    type Err = InvalidStoreUrl;

    fn from_str(url: &str) -> Result<Self, InvalidStoreUrl> {
        Ok(RedisUrl { topology: url.parse()?, replicas: 0 })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.topology.fmt(f)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug)]
pub(crate) struct Redis {
    connections: Connections,
    /// The name under which the server keeps the script.
    commit: String,
    /// Set once the schema was found to be the one that this program knows.
    schema: OnceCell<()>,
    /// None: nobody waits for them.
    replicas: Option<Replicas>,
}

impl Redis {
    /// Connects when it is first asked.
    pub(super) fn open(url: &RedisUrl) -> Result<Redis, StoreError> {
        let digest = Sha1::digest(COMMIT).iter().map(|byte| format!("{byte:02x}")).collect();
        let connections = Connections::new(&url.topology)?;
        let replicas = match url.replicas {
            0 => None,
            wanted => Some(Replicas::new(Connections::new(&url.topology)?, wanted)),
        };
        Ok(Redis { connections, commit: digest, schema: OnceCell::new(), replicas })
    }

    async fn ask(&self, question: &Cmd) -> Result<Value, LinkError> {
        self.schema.get_or_try_init(|| self.check_schema()).await?;
        self.connections.ask(question).await
    }

    /// A server that was started anew does not have the script.
    async fn run_commit(&self, batch: &Batch) -> Result<Value, LinkError> {
        let call = Call::of(batch)?;
        match self.ask(&call.cmd("EVALSHA", &self.commit)).await {
            Err(LinkError::Broken(error)) if connection::lacks_script(&*error) => {
                self.ask(&call.cmd("EVAL", COMMIT)).await
            }
            answered => answered,
        }
    }

    async fn bodies<T: DeserializeOwned>(&self, keys: Vec<String>) -> Result<Vec<T>, LinkError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let bodies = array(self.ask(cmd("MGET").arg(keys)).await?)?;
        // A record may have gone between the two looks.
        bodies.into_iter().filter_map(|body| parse(body).transpose()).collect()
    }

    /// From a sorted set by time, newest first: those of one instant from the greatest id down.
    async fn session_ids(
        &self,
        key: &str,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<String>, LinkError> {
        let range = |from: &str, most: u32| {
            let bounds = [from, "-inf", "WITHSCORES", "LIMIT", "0"];
            cmd("ZREVRANGEBYSCORE").arg(key).arg(&bounds).arg(most).take()
        };
        let Some(after) = after else {
            return Ok(keys_of(texts(self.ask(&range("+inf", limit)).await?)?));
        };
        let held_at = after.held_at.as_millis().to_string();
        // Those of the cursor's own instant that it has passed are not counted.
        let mut most = limit;
        loop {
            let found = texts(self.ask(&range(&held_at, most)).await?)?;
            let (found, is_all) = (found.as_chunks().0.to_vec(), found.len() < 2 * most as usize);
            let is_behind = |[id, at]: &[String; 2]| *at != held_at || id.as_str() < after.id.as_str();
            let behind: Vec<_> = found.into_iter().filter(is_behind).map(|[id, _]| id).collect();
            if is_all || behind.len() >= limit as usize {
                return Ok(behind.into_iter().take(limit as usize).collect());
            }
            most = most.saturating_mul(2);
        }
    }

    /// All sessions that a gateway has open in one partition.
    async fn open_in(&self, space: Space, gateway: &str) -> Result<Vec<Session>, LinkError> {
        let names = texts(self.ask(cmd("SMEMBERS").arg(space.of("serves", gateway))).await?)?;
        self.bodies(names.into_iter().map(|name| space.of("session", &name)).collect()).await
    }

    /// The gateways that have sessions open in one partition.
    async fn serving_in(&self, space: Space) -> Result<Vec<String>, LinkError> {
        texts(self.ask(cmd("SMEMBERS").arg(space.key("gateways"))).await?)
    }

    async fn all_open_in(&self, space: Space) -> Result<Vec<Session>, LinkError> {
        let gateways = self.serving_in(space).await?;
        let sessions = try_join_all(gateways.iter().map(|gateway| self.open_in(space, gateway))).await?;
        Ok(sessions.into_iter().flatten().collect())
    }

    async fn accounts_in(&self, space: Space) -> Result<Vec<Account>, LinkError> {
        let ids = texts(self.ask(cmd("SMEMBERS").arg(space.key("accounts"))).await?)?;
        let ids: Vec<_> = ids.into_iter().map(|id| id.parse().map_err(broken)).collect::<Result<_, _>>()?;
        let accounts = try_join_all(ids.iter().map(|id: &AccountId| self.account(id))).await?;
        Ok(accounts.into_iter().flatten().collect())
    }
}

impl Link for Redis {
    async fn commit(&self, batch: &Batch) -> Result<Reply, LinkError> {
        let mut reply = array(self.run_commit(batch).await?)?.into_iter();
        match (reply.next(), reply.next(), reply.next(), reply.next()) {
            (Some(Value::Int(0)), ..) => Ok(Reply::Done),
            (Some(Value::Int(1)), Some(version), body, entry) => {
                let stored = body.map(|body| account(version, body)).transpose()?.flatten().map(Box::new);
                Ok(Reply::Conflict { stored, written_by: entry.map(text).transpose()?.flatten() })
            }
            (Some(Value::Int(2)), Some(Value::Int(number)), ..) => {
                change_of_session(batch, number).map(Reply::Exists).ok_or_else(surprise)
            }
            (Some(Value::Int(3)), Some(Value::Int(number)), ..) => {
                change_of_entry(batch, number).map(Reply::Exists).ok_or_else(surprise)
            }
            _ => Err(surprise()),
        }
    }

    async fn probe(&self) -> Result<(), LinkError> {
        self.ask(&cmd("PING")).await.map(|_| ())
    }

    async fn time(&self) -> Result<Option<Timestamp>, LinkError> {
        let [seconds, micros] = &texts(self.ask(&cmd("TIME")).await?)?[..] else { return Err(surprise()) };
        let [seconds, micros]: [u64; 2] = [seconds.parse().map_err(broken)?, micros.parse().map_err(broken)?];
        Ok(Some(Timestamp::from_millis(seconds.saturating_mul(1_000).saturating_add(micros / 1_000))))
    }

    async fn kept(&self, account: &AccountId) -> Result<(), StoreError> {
        match &self.replicas {
            Some(replicas) => replicas.have_all(partition(account)).await,
            None => Ok(()),
        }
    }

    async fn account(&self, id: &AccountId) -> Result<Option<Account>, LinkError> {
        let key = Space::of_account(id).of("account", id.as_str());
        let mut fields = array(self.ask(cmd("HMGET").arg(key).arg(&["v", "b"])).await?)?.into_iter();
        match (fields.next(), fields.next()) {
            (Some(version), Some(body)) => account(version, body),
            _ => Err(surprise()),
        }
    }

    async fn count(&self, id: &AccountId) -> Result<Option<(Account, u32)>, LinkError> {
        let space = Space::of_account(id);
        let keys = [space.of("account", id.as_str()), space.of("open", id.as_str())];
        let answer = self.ask(cmd("EVAL").arg(COUNT).arg(keys.len()).arg(&keys)).await?;
        let mut answer = array(answer)?.into_iter();
        let (Some(version), Some(body), Some(Value::Int(open))) =
            (answer.next(), answer.next(), answer.next())
        else {
            return Err(surprise());
        };
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        Ok(account(version, body)?.map(|account| (account, open)))
    }

    async fn session(&self, account: &AccountId, id: &SessionId) -> Result<Option<Session>, LinkError> {
        parse(self.ask(cmd("GET").arg(Space::of_account(account).session(account, id))).await?)
    }

    async fn put_key(&self, hash: Digest, whose: &Principal) -> Result<(), LinkError> {
        let value = format!("{} {}", whose.account, whose.key);
        self.ask(cmd("SET").arg(key_of(hash)).arg(value)).await.map(|_| ())
    }

    async fn principal(&self, hash: Digest) -> Result<Option<Principal>, LinkError> {
        let Some(value) = text(self.ask(cmd("GET").arg(key_of(hash))).await?)? else {
            return Ok(None);
        };
        let (account, key) = value.split_once(' ').ok_or_else(surprise)?;
        let account = account.parse().map_err(broken)?;
        let key = key.parse::<KeyId>().map_err(broken)?;
        Ok(Some(Principal { account, key }))
    }

    async fn command(&self, account: &AccountId, id: &CommandId) -> Result<Option<Entry>, LinkError> {
        let key = Space::of_account(account).of("commands", account.as_str());
        parse(self.ask(cmd("HGET").arg(key).arg(id.as_str())).await?)
    }

    async fn accounts(&self) -> Result<Vec<Account>, LinkError> {
        let accounts = try_join_all(Space::all().map(|space| self.accounts_in(space))).await?;
        let mut accounts: Vec<_> = accounts.into_iter().flatten().collect();
        accounts.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        Ok(accounts)
    }

    async fn sessions(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, LinkError> {
        let space = Space::of_account(account);
        let ids = self.session_ids(&space.of("sessions", account.as_str()), after, limit).await?;
        self.bodies(ids.iter().map(|id| space.of("session", &format!("{account}:{id}"))).collect()).await
    }

    async fn running(&self, account: &AccountId) -> Result<Vec<Session>, LinkError> {
        let space = Space::of_account(account);
        let ids = texts(self.ask(cmd("SMEMBERS").arg(space.of("open", account.as_str()))).await?)?;
        self.bodies(ids.iter().map(|id| space.of("session", &format!("{account}:{id}"))).collect()).await
    }

    async fn usage(
        &self,
        account: &AccountId,
        bucket: Bucket,
        from: Timestamp,
    ) -> Result<Vec<(Timestamp, Usage)>, LinkError> {
        let key = Space::of_account(account).of(usage_key(bucket), account.as_str());
        let fields = texts(self.ask(cmd("HGETALL").arg(key)).await?)?;
        let row = |row: &[String; 2]| {
            let start = row[0].parse().map(Timestamp::from_millis).map_err(broken)?;
            Ok((start, usage(&row[1]).ok_or_else(surprise)?))
        };
        let mut rows = fields.as_chunks().0.iter().map(row).collect::<Result<Vec<_>, LinkError>>()?;
        rows.retain(|(start, _)| *start >= from);
        rows.sort_unstable_by_key(|(start, _)| *start);
        Ok(rows)
    }

    async fn drop_sessions(
        &self,
        account: &AccountId,
        before: Timestamp,
        most: u32,
    ) -> Result<u32, LinkError> {
        self.drop_ended(account, before, most).await
    }

    async fn drop_key(&self, hash: Digest) -> Result<(), LinkError> {
        self.ask(cmd("DEL").arg(key_of(hash))).await.map(|_| ())
    }

    async fn sealed_commands(&self, account: &AccountId) -> Result<Vec<Entry>, LinkError> {
        self.commands_before_opening(account).await
    }

    async fn trim(&self, account: &Account, opening: &Entry) -> Result<Committed, LinkError> {
        self.trim_log(account, opening).await
    }

    async fn put(&self, part: Part<'_>) -> Result<(), LinkError> {
        self.put_part(part).await
    }

    async fn secret(&self, name: &str, offered: [u8; 32]) -> Result<[u8; 32], LinkError> {
        let key = format!("ufb:secret:{name}");
        self.ask(cmd("SET").arg(&key).arg(String::from(Digest(offered))).arg("NX")).await?;
        let secret = text(self.ask(cmd("GET").arg(key)).await?)?.ok_or_else(surprise)?;
        Ok(Digest::try_from(secret).map_err(|_| surprise())?.0)
    }

    async fn open_sessions(&self) -> Result<Vec<Session>, LinkError> {
        let sessions = try_join_all(Space::all().map(|space| self.all_open_in(space))).await?;
        Ok(sessions.into_iter().flatten().collect())
    }

    async fn open_sessions_of(&self, gateway: &GatewayId) -> Result<Vec<Session>, LinkError> {
        let in_space = |space| self.open_in(space, gateway.as_str());
        let sessions = try_join_all(Space::all().map(in_space)).await?;
        Ok(sessions.into_iter().flatten().collect())
    }

    async fn serving(&self) -> Result<Vec<GatewayId>, LinkError> {
        let gateways = try_join_all(Space::all().map(|space| self.serving_in(space))).await?;
        let gateways: BTreeSet<String> = gateways.into_iter().flatten().collect();
        gateways.into_iter().map(|gateway| gateway.parse().map_err(broken)).collect()
    }

    async fn audit(&self, account: &AccountId, after: u64, limit: u32) -> Result<Vec<Entry>, LinkError> {
        let log = Space::of_account(account).of("log", account.as_str());
        let range = cmd("XRANGE").arg(log).arg(format!("({after}")).arg("+").arg("COUNT").arg(limit).take();
        let entries = stream(self.ask(&range).await?, |entry| parse(entry)?.ok_or_else(surprise))?;
        let mut entries: Vec<Entry> = entries.into_iter().map(|(_, entry)| entry).collect();
        // What was trimmed off is missing here, and an opening balance is there for it.
        if entries.first().is_none_or(|first| first.seq != after + 1)
            && let Some(opening) = self.opening(account).await?.filter(|opening| opening.seq > after)
        {
            entries.retain(|entry| entry.seq > opening.seq);
            entries.truncate((limit as usize).saturating_sub(1));
            entries.insert(0, opening);
        }
        Ok(entries)
    }

    async fn events(
        &self,
        number: u16,
        after: &Cursor,
        limit: u32,
    ) -> Result<Vec<(Cursor, Heard)>, LinkError> {
        let Ok(partition) = u8::try_from(number) else { return Ok(Vec::new()) };
        let start = if after.0.is_empty() { "-".to_owned() } else { format!("({}", after.0) };
        let events = Space { partition }.key("events");
        let range = cmd("XRANGE").arg(events).arg(start).arg("+").arg("COUNT").arg(limit).take();
        let events = stream(self.ask(&range).await?, heard)?;
        Ok(events.into_iter().map(|(id, event)| (Cursor(id), event)).collect())
    }

    async fn heartbeat(&self, gateway: &GatewayId, now: Timestamp) -> Result<(), LinkError> {
        let (gateway, now) = (gateway.as_str(), now.as_millis());
        // Greater only: a clock that was set back takes nothing back.
        self.ask(cmd("ZADD").arg(SEEN).arg("GT").arg(now).arg(gateway)).await?;
        self.ask(cmd("HINCRBY").arg(BEATS).arg(gateway).arg(1)).await.map(|_| ())
    }

    async fn beats(&self) -> Result<BTreeMap<GatewayId, u64>, LinkError> {
        let fields = texts(self.ask(cmd("HGETALL").arg(BEATS)).await?)?;
        let beat = |[gateway, beats]: &[String; 2]| {
            Ok((gateway.parse().map_err(broken)?, beats.parse().map_err(broken)?))
        };
        fields.as_chunks().0.iter().map(beat).collect()
    }

    async fn forget(&self, gateway: &GatewayId) -> Result<(), LinkError> {
        self.ask(cmd("HDEL").arg(BEATS).arg(gateway.as_str())).await?;
        self.ask(cmd("ZREM").arg(SEEN).arg(gateway.as_str())).await.map(|_| ())
    }

    async fn last_seen(&self, gateway: &GatewayId) -> Result<Option<Timestamp>, LinkError> {
        let seen = text(self.ask(cmd("ZSCORE").arg(SEEN).arg(gateway.as_str())).await?)?;
        let millis = seen.map(|millis| millis.parse().map_err(broken)).transpose()?;
        Ok(millis.map(Timestamp::from_millis))
    }
}

/// The keys of one partition.
#[derive(Clone, Copy, Debug)]
struct Space {
    partition: u8,
}

impl Space {
    fn of_account(account: &AccountId) -> Space {
        Space { partition: partition(account) }
    }

    fn all() -> impl Iterator<Item = Space> {
        const { assert!(PARTITIONS == 256, "a partition is a byte") };
        (0..=u8::MAX).map(|partition| Space { partition })
    }

    /// Of the partition that a key of `Space::key` belongs to.
    fn of_key(key: &str) -> Option<Space> {
        let digits = key.strip_prefix("ufb:{")?.get(..2)?;
        Some(Space { partition: u8::from_str_radix(digits, 16).ok()? })
    }

    fn key(self, what: &str) -> String {
        format!("ufb:{{{:02x}}}:{what}", self.partition)
    }

    fn of(self, what: &str, whose: &str) -> String {
        format!("ufb:{{{:02x}}}:{what}:{whose}", self.partition)
    }

    fn session(self, account: &AccountId, id: &SessionId) -> String {
        format!("ufb:{{{:02x}}}:session:{account}:{id}", self.partition)
    }
}

fn key_of(hash: Digest) -> String {
    format!("ufb:key:{hash}")
}

/// What `commit.lua` is called with; it says what is where.
struct Call {
    keys: Vec<String>,
    arguments: Vec<String>,
}

impl Call {
    fn of(batch: &Batch) -> Result<Call, LinkError> {
        let (account, space) = (batch.account.as_str(), Space::of_account(&batch.account));
        let keys = vec![
            space.of("account", account),
            space.of("log", account),
            space.key("events"),
            space.of("commands", account),
            space.of("sessions", account),
            space.of("open", account),
            space.key("gateways"),
            space.key("accounts"),
            space.of("hours", account),
            space.of("months", account),
        ];
        let head = batch.head().map_or(0, |head| head.seq);
        let expected = stamp(batch.expected, batch.behind);
        let (version, body) = match batch.after() {
            Some(account) => (stamp(account.version, account.head.hash), body(account)?),
            None => (expected.clone(), String::new()),
        };
        let mut arguments = vec![expected, version, body, format!("{head}-0"), account.to_owned()];
        let sessions = sessions_of(batch);
        let entries: usize = batch.changes.iter().map(|change| change.entries.len()).sum();
        let events: usize = batch.changes.iter().map(|change| change.events.len()).sum();
        arguments.extend([sessions.len(), entries, events].map(|number| number.to_string()));
        arguments.push(batch.name.clone());

        let mut call = Call { keys, arguments };
        for (how, session) in sessions {
            call.add_session(space, how, session)?;
        }
        for entry in batch.changes.iter().flat_map(|change| &change.entries) {
            let command = entry.command.as_ref().map_or("", CommandId::as_str);
            call.arguments.extend([format!("{}-0", entry.seq), command.to_owned(), self::body(entry)?]);
        }
        for event in batch.changes.iter().flat_map(|change| &change.events) {
            call.arguments.push(self::body(event)?);
        }
        batch.changes.iter().filter_map(|change| change.used.as_ref()).for_each(|used| call.add_use(used));
        Ok(call)
    }

    fn add_use(&mut self, used: &Used) {
        let [hour, month] = [Bucket::Hour, Bucket::Month].map(|bucket| bucket.holding(used.at).start);
        let starts = [hour, oldest_hour(hour), month].map(|start| start.as_millis().to_string());
        self.arguments.extend(starts);
        self.arguments.extend(figures(&used.usage).map(|figure| figure.to_string()));
    }

    fn add_session(&mut self, space: Space, how: &str, session: &Session) -> Result<(), LinkError> {
        let gateway = session.gateway.as_str();
        self.keys.extend([space.session(&session.account, &session.id), space.of("serves", gateway)]);
        self.arguments.extend([
            how.to_owned(),
            u8::from(session.state.is_open()).to_string(),
            session.id.to_string(),
            session.held_at.as_millis().to_string(),
            gateway.to_owned(),
            body(session)?,
        ]);
        Ok(())
    }

    fn cmd(&self, command: &str, script: &str) -> Cmd {
        // As much room as it takes, at once: it is some kilobytes, on every session's way.
        let words = self.keys.iter().chain(&self.arguments);
        let (count, bytes) = words.fold((0, 0), |(count, bytes), word| (count + 1, bytes + word.len()));
        let mut call = Cmd::with_capacity(count + HEAD, bytes + HEAD_BYTES + script.len());
        call.arg(command).arg(script).arg(self.keys.len()).arg(&self.keys).arg(&self.arguments);
        call
    }
}

/// The batch's sessions, each with how it comes; one that is changed again as the last change leaves it.
fn sessions_of(batch: &Batch) -> Vec<(&'static str, &Session)> {
    let mut sessions: Vec<(&str, &Session)> = Vec::new();
    for change in &batch.changes {
        let how = match &change.session {
            SessionChange::New(_) => "new",
            SessionChange::Again(_) => "again",
            SessionChange::None | SessionChange::Update(_) | SessionChange::Several(_) => "update",
        };
        for session in change.session.sessions() {
            let earlier = sessions.iter_mut().rev().find(|(_, own)| how == "update" && own.id == session.id);
            match earlier {
                Some((_, earlier)) => *earlier = session,
                None => sessions.push((how, session)),
            }
        }
    }
    sessions
}

/// In the order in which they are stored.
fn figures(usage: &Usage) -> [u64; 9] {
    let Usage { sessions, lost, included, retried, minutes, up_bytes, down_bytes, cost, overage } = *usage;
    [sessions, lost, included, retried, minutes, up_bytes, down_bytes, cost.get(), overage.get()]
}

fn usage(row: &str) -> Option<Usage> {
    let figures =
        row.split_ascii_whitespace().map(|figure| figure.parse().ok()).collect::<Option<Vec<u64>>>()?;
    let [sessions, lost, included, retried, minutes, up_bytes, down_bytes, cost, overage] =
        figures.try_into().ok()?;
    let (cost, overage) = (Micros::new(cost), Micros::new(overage));
    Some(Usage { sessions, lost, included, retried, minutes, up_bytes, down_bytes, cost, overage })
}

/// The change that makes the `number`th session of the batch, both counted as in Lua and in Rust.
fn change_of_session(batch: &Batch, number: i64) -> Option<usize> {
    let (_, taken) = *sessions_of(batch).get(usize::try_from(number).ok()?.checked_sub(1)?)?;
    batch
        .changes
        .iter()
        .position(|change| matches!(&change.session, SessionChange::New(session) if session.id == taken.id))
}

/// The change that adds the `number`th log entry of the batch.
fn change_of_entry(batch: &Batch, number: i64) -> Option<usize> {
    let taken = usize::try_from(number).ok()?;
    let mut entries = 0;
    batch.changes.iter().position(|change| {
        entries += change.entries.len();
        entries >= taken
    })
}

fn usage_key(bucket: Bucket) -> &'static str {
    match bucket {
        Bucket::Hour => "hours",
        Bucket::Month => "months",
    }
}

/// Of pairs of key and value.
fn keys_of(pairs: Vec<String>) -> Vec<String> {
    pairs.into_iter().step_by(2).collect()
}

/// The first hour that is kept when `hour` is the latest.
fn oldest_hour(hour: Timestamp) -> Timestamp {
    Timestamp::from_millis(hour.as_millis().saturating_sub(u64::from(HOURS_KEPT) * HOUR_MILLIS))
}

fn body(value: &impl Serialize) -> Result<String, LinkError> {
    let mut body = Vec::with_capacity(BODY);
    serde_json::to_writer(&mut body, value).map_err(broken)?;
    String::from_utf8(body).map_err(broken)
}

/// `None` where nothing is stored.
fn parse<T: DeserializeOwned>(value: Value) -> Result<Option<T>, LinkError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(body) => serde_json::from_slice(&body).map(Some).map_err(broken),
        _ => Err(surprise()),
    }
}

fn account(version: Value, body: Value) -> Result<Option<Account>, LinkError> {
    let account: Option<Account> = parse(body)?;
    let Some(account) = account else { return Ok(None) };
    let version = text(version)?.and_then(|stamp| stamp.split(' ').next()?.parse().ok());
    Ok(Some(Account { version: version.ok_or_else(surprise)?, ..account }))
}

/// What a commit compares: the version, and of the last log entry's hash as much as tells two histories apart.
fn stamp(version: u64, behind: Digest) -> String {
    match version {
        0 => "0".to_owned(),
        version => format!("{version} {:.16}", String::from(behind)),
    }
}

/// The entries of a stream: each its id, and the body of its one field.
fn stream<T>(
    value: Value,
    read: impl Fn(Value) -> Result<T, LinkError>,
) -> Result<Vec<(String, T)>, LinkError> {
    let entry = |entry: Value| {
        let mut entry = array(entry)?.into_iter();
        let id = text(entry.next().unwrap_or(Value::Nil))?.ok_or_else(surprise)?;
        let field = array(entry.next().unwrap_or(Value::Nil))?.into_iter().nth(1);
        Ok((id, read(field.unwrap_or(Value::Nil))?))
    };
    array(value)?.into_iter().map(entry).collect()
}

fn heard(field: Value) -> Result<Heard, LinkError> {
    match field {
        Value::BulkString(body) => Ok(Heard::read(&body)),
        _ => Err(surprise()),
    }
}

fn array(value: Value) -> Result<Vec<Value>, LinkError> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(surprise()),
    }
}

fn texts(value: Value) -> Result<Vec<String>, LinkError> {
    array(value)?.into_iter().map(|value| text(value)?.ok_or_else(surprise)).collect()
}

fn text(value: Value) -> Result<Option<String>, LinkError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(text) => String::from_utf8(text).map(Some).map_err(broken),
        Value::SimpleString(text) => Ok(Some(text)),
        _ => Err(surprise()),
    }
}

/// An answer of another shape than the question has.
#[derive(Debug, thiserror::Error)]
#[error("the server answered with something else than was asked for")]
struct Surprise;

fn surprise() -> LinkError {
    broken(Surprise)
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> LinkError {
    LinkError::Broken(Arc::new(error))
}
