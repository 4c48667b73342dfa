//! A server in memory, for tests: it answers what Redis does with `commit.lua`, step by step, and forgets all with its
//! end. The suites that run against the real stores run against it, too. Behind a [`Route`] it is as far away as the
//! simulation likes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lanes::{Batch, Link, LinkError, Reply, stamp_of};
use super::{Committed, partition};
use crate::account::Account;
use crate::audit::{Digest, Entry};
use crate::event::{Cursor, Event, Heard};
use crate::id::{AccountId, CommandId, GatewayId, SessionId, WebhookId};
use crate::key::Principal;
use crate::ledger::{Change, SessionChange};
use crate::migrate::Part;
use crate::session::{Session, SessionCursor, State};
use crate::simulation::{Kind, Route};
use crate::time::Timestamp;
use crate::usage::{Bucket, HOURS_KEPT, Usage, Used};
use crate::webhook::Webhook;
use parcels::{Kept, Stream};

const HOUR_MILLIS: u64 = 3_600_000;

mod parcels;

type Name = (AccountId, SessionId);

/// What the keys of `redis.rs` hold.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    accounts: BTreeMap<AccountId, Account>,
    /// Each entry with the name of the batch that wrote it.
    logs: BTreeMap<AccountId, Vec<(Entry, String)>>,
    /// What a log begins with that was trimmed.
    openings: BTreeMap<AccountId, Entry>,
    commands: BTreeMap<(AccountId, CommandId), Entry>,
    sessions: BTreeMap<Name, Session>,
    /// All sessions of an account, with the time of their hold.
    lists: BTreeMap<AccountId, BTreeMap<SessionId, Timestamp>>,
    open: BTreeMap<AccountId, BTreeSet<SessionId>>,
    serves: BTreeMap<GatewayId, BTreeSet<Name>>,
    hours: BTreeMap<AccountId, BTreeMap<Timestamp, Usage>>,
    months: BTreeMap<AccountId, BTreeMap<Timestamp, Usage>>,
    events: BTreeMap<u16, Stream>,
    parcels: BTreeMap<String, Kept>,
    webhooks: BTreeMap<AccountId, BTreeMap<WebhookId, Webhook>>,
    keys: BTreeMap<[u8; 32], Principal>,
    secrets: BTreeMap<String, [u8; 32]>,
    seen: BTreeMap<GatewayId, Timestamp>,
    beats: BTreeMap<GatewayId, u64>,
    /// All entries and events that there ever were, for a judge who comes when they were trimmed.
    pub(crate) written: BTreeMap<AccountId, Vec<Entry>>,
    pub(crate) told: Vec<Event>,
}

impl Memory {
    /// An account that is there before anybody comes.
    pub(crate) fn open(&mut self, opened: Change) {
        let account = opened.account.id.clone();
        let name = "opening".to_owned();
        let changes = vec![Arc::new(opened)];
        let opening = Batch { name, account, expected: 0, behind: Digest::default(), changes };
        assert!(matches!(self.commit(&opening), Reply::Done), "{opening:?}");
    }

    /// What an account counts of sessions that are held ahead, and how many those are.
    pub(crate) fn count_ahead(&self, account: &AccountId) -> (usize, usize) {
        let own = self.sessions.values().filter(|session| session.account == *account);
        let held = own.filter(|session| session.ahead && session.state == State::Held).count();
        let counted = self.accounts.get(account).map_or(0, |account| account.ahead);
        (usize::try_from(counted).expect("it is small"), held)
    }

    fn commit(&mut self, batch: &Batch) -> Reply {
        let Batch { name, account, expected, behind, changes } = batch;
        let stored = self.accounts.get(account);
        if stamp_of(stored) != (*expected, *behind) {
            let (head, log) = (batch.head(), self.logs.get(account));
            let entry =
                head.zip(log).and_then(|(head, log)| log.iter().find(|(entry, _)| entry.seq == head.seq));
            let written_by = entry.map(|(_, batch)| batch.clone());
            return Reply::Conflict { stored: stored.cloned().map(Box::new), written_by };
        }
        let Some(after) = batch.after() else { return Reply::Done };
        let has_taken_session = changes.iter().position(|change| self.has_session_of(change));
        if let Some(taken) =
            has_taken_session.or_else(|| changes.iter().position(|change| self.has_command_of(change)))
        {
            return Reply::Exists(taken);
        }

        // From here on nothing is refused.
        self.accounts.insert(account.clone(), after.clone());
        for change in changes {
            self.write(name, change);
        }
        Reply::Done
    }

    fn has_session_of(&self, change: &Change) -> bool {
        match &change.session {
            SessionChange::New(session) => {
                self.sessions.contains_key(&(session.account.clone(), session.id.clone()))
            }
            SessionChange::None
            | SessionChange::Again(_)
            | SessionChange::Update(_)
            | SessionChange::Several(_) => false,
        }
    }

    fn has_command_of(&self, change: &Change) -> bool {
        let commands = change.entries.iter().filter_map(|entry| entry.command.clone());
        commands.map(|command| (change.account.id.clone(), command)).any(|id| self.commands.contains_key(&id))
    }

    fn write(&mut self, batch: &str, change: &Change) {
        let account = &change.account.id;
        let is_update = matches!(change.session, SessionChange::Update(_) | SessionChange::Several(_));
        for session in change.session.sessions() {
            self.write_session(session, is_update);
        }
        let log = self.logs.entry(account.clone()).or_default();
        let written = self.written.entry(account.clone()).or_default();
        for entry in &change.entries {
            assert_eq!(entry.seq, written.len() as u64 + 1, "a stream takes greater ids only");
            written.push(entry.clone());
            log.push((entry.clone(), batch.to_owned()));
            if let Some(command) = &entry.command {
                self.commands.insert((account.clone(), command.clone()), entry.clone());
            }
        }
        let stream = partition(account).into();
        self.events.entry(stream).or_default().tell(&change.events);
        self.told.extend(change.events.iter().cloned());
        if let Some(used) = &change.used {
            self.add_use(account, used);
        }
    }

    fn write_session(&mut self, session: &Session, is_update: bool) {
        let Session { account, id, gateway, held_at, .. } = session;
        let name = (account.clone(), id.clone());
        self.sessions.insert(name.clone(), session.clone());
        if !is_update {
            self.lists.entry(account.clone()).or_default().insert(id.clone(), *held_at);
        }
        if !session.state.is_open() {
            self.open.entry(account.clone()).or_default().remove(id);
            let served = self.serves.entry(gateway.clone()).or_default();
            served.remove(&name);
            if served.is_empty() {
                self.serves.remove(gateway);
            }
        } else if !is_update {
            self.open.entry(account.clone()).or_default().insert(id.clone());
            self.serves.entry(gateway.clone()).or_default().insert(name);
        }
    }

    fn add_use(&mut self, account: &AccountId, used: &Used) {
        let [hour, month] = [Bucket::Hour, Bucket::Month].map(|bucket| bucket.holding(used.at).start);
        let hours = self.hours.entry(account.clone()).or_default();
        if !hours.contains_key(&hour) {
            let kept = hour.as_millis().saturating_sub(u64::from(HOURS_KEPT) * HOUR_MILLIS);
            hours.retain(|start, _| start.as_millis() >= kept);
        }
        let months = self.months.entry(account.clone()).or_default();
        for sums in [hours.entry(hour).or_default(), months.entry(month).or_default()] {
            *sums = sums.plus(used.usage);
        }
    }

    /// In an order that a set has, where nobody asks for one.
    fn sessions_named<'a>(&self, names: impl IntoIterator<Item = &'a Name>) -> Vec<Session> {
        names.into_iter().filter_map(|name| self.sessions.get(name).cloned()).collect()
    }

    fn open_of(&self, gateway: &GatewayId) -> Vec<Session> {
        self.serves.get(gateway).map(|served| self.sessions_named(served)).unwrap_or_default()
    }

    fn newest(&self, account: &AccountId, after: Option<&SessionCursor>, limit: usize) -> Vec<Session> {
        let list = self.lists.get(account).into_iter().flatten();
        let mut list: Vec<_> = list.map(|(id, held_at)| (*held_at, id.clone())).collect();
        list.retain(|(held_at, id)| after.is_none_or(|after| (*held_at, id) < (after.held_at, &after.id)));
        list.sort_unstable_by(|one, other| other.cmp(one));
        let names: Vec<_> = list.into_iter().take(limit).map(|(_, id)| (account.clone(), id)).collect();
        self.sessions_named(&names)
    }

    fn count(&self, account: &AccountId) -> Option<(Account, u32)> {
        let open = self.open.get(account).map_or(0, BTreeSet::len);
        Some((self.accounts.get(account)?.clone(), u32::try_from(open).ok()?))
    }

    fn entries(&self, account: &AccountId, after: u64, limit: usize) -> Vec<Entry> {
        let (opening, log) = (self.openings.get(account), self.logs.get(account).into_iter().flatten());
        let entries = opening.into_iter().chain(log.map(|(entry, _)| entry));
        entries.filter(|entry| entry.seq > after).take(limit).cloned().collect()
    }

    fn events_after(&self, stream: u16, after: &Cursor, limit: usize) -> Vec<(Cursor, Heard)> {
        self.events.get(&stream).map(|stream| stream.after(after, limit)).unwrap_or_default()
    }

    fn drop_sessions(&mut self, account: &AccountId, before: Timestamp, most: u32) -> u32 {
        let list = self.lists.entry(account.clone()).or_default();
        let mut old: Vec<_> = list.iter().map(|(id, held_at)| (*held_at, id.clone())).collect();
        old.retain(|(held_at, _)| *held_at < before);
        old.sort_unstable();
        old.truncate(most as usize);
        old.retain(|(_, id)| !self.open.get(account).is_some_and(|open| open.contains(id)));
        for (_, id) in &old {
            list.remove(id);
            self.sessions.remove(&(account.clone(), id.clone()));
        }
        u32::try_from(old.len()).unwrap_or(u32::MAX)
    }

    fn trim(&mut self, decided_on: &Account, opening: &Entry) -> Committed {
        let id = &decided_on.id;
        let Some(account) =
            self.accounts.get_mut(id).filter(|stored| stamp_of(Some(stored)) == stamp_of(Some(decided_on)))
        else {
            return Committed::Conflict;
        };
        account.version += 1;
        self.openings.insert(id.clone(), opening.clone());
        self.logs.entry(id.clone()).or_default().retain(|(entry, _)| entry.seq > opening.seq);
        Committed::Done
    }

    fn sealed_commands(&self, account: &AccountId) -> Vec<Entry> {
        let sealed = self.openings.get(account).map_or(0, |opening| opening.seq);
        let own = self.commands.iter().filter(|((whose, _), entry)| whose == account && entry.seq <= sealed);
        let mut entries: Vec<_> = own.map(|(_, entry)| entry.clone()).collect();
        entries.sort_unstable_by_key(|entry| entry.seq);
        entries
    }

    fn usage(&self, account: &AccountId, bucket: Bucket, from: Timestamp) -> Vec<(Timestamp, Usage)> {
        let rows = match bucket {
            Bucket::Hour => &self.hours,
            Bucket::Month => &self.months,
        };
        let rows = rows.get(account).into_iter().flat_map(|rows| rows.range(from..));
        rows.map(|(start, usage)| (*start, *usage)).collect()
    }

    /// Greater only: a clock that was set back takes nothing back.
    fn beat(&mut self, gateway: &GatewayId, now: Timestamp) {
        let seen = self.seen.entry(gateway.clone()).or_insert(now);
        *seen = now.max(*seen);
        *self.beats.entry(gateway.clone()).or_default() += 1;
    }
}

/// One process's way to a server in memory.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    server: Arc<Mutex<Memory>>,
    /// None: there is nothing in between.
    route: Option<Route>,
}

impl Line {
    pub(crate) fn to(server: &Arc<Mutex<Memory>>) -> Line {
        Line { server: Arc::clone(server), route: None }
    }

    pub(crate) fn along(route: Route, server: &Arc<Mutex<Memory>>) -> Line {
        Line { server: Arc::clone(server), route: Some(route) }
    }

    async fn read<T: fmt::Debug + Send + 'static>(
        &self,
        question: impl Fn(&Memory) -> T + Send + Sync + 'static,
    ) -> Result<T, LinkError> {
        self.ask(Kind::Read, move |server| question(server)).await
    }

    async fn ask<T: fmt::Debug + Send + 'static>(
        &self,
        kind: Kind,
        question: impl Fn(&mut Memory) -> T + Send + Sync + 'static,
    ) -> Result<T, LinkError> {
        let server = Arc::clone(&self.server);
        let answer = move || question(&mut lock(&server));
        match &self.route {
            Some(route) => route.carry(kind, answer).await,
            None => Ok(answer()),
        }
    }
}

pub(crate) fn lock(server: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link for Line {
    async fn commit(&self, batch: &Batch) -> Result<Reply, LinkError> {
        let Batch { name, account, expected, behind, changes } = batch;
        let (name, account, changes) = (name.clone(), account.clone(), changes.clone());
        let sent = Batch { name, account, expected: *expected, behind: *behind, changes };
        self.ask(Kind::Commit, move |server| server.commit(&sent)).await
    }

    async fn probe(&self) -> Result<(), LinkError> {
        self.read(|_| ()).await
    }

    async fn account(&self, id: &AccountId) -> Result<Option<Account>, LinkError> {
        let id = id.clone();
        self.read(move |server| server.accounts.get(&id).cloned()).await
    }

    async fn count(&self, id: &AccountId) -> Result<Option<(Account, u32)>, LinkError> {
        let id = id.clone();
        self.read(move |server| server.count(&id)).await
    }

    async fn session(&self, account: &AccountId, id: &SessionId) -> Result<Option<Session>, LinkError> {
        let name = (account.clone(), id.clone());
        self.read(move |server| server.sessions.get(&name).cloned()).await
    }

    async fn put_key(&self, hash: Digest, whose: &Principal) -> Result<(), LinkError> {
        let whose = whose.clone();
        self.ask(Kind::Write, move |server| drop(server.keys.insert(hash.0, whose.clone()))).await
    }

    async fn principal(&self, hash: Digest) -> Result<Option<Principal>, LinkError> {
        self.read(move |server| server.keys.get(&hash.0).cloned()).await
    }

    async fn command(&self, account: &AccountId, id: &CommandId) -> Result<Option<Entry>, LinkError> {
        let name = (account.clone(), id.clone());
        self.read(move |server| server.commands.get(&name).cloned()).await
    }

    async fn accounts(&self) -> Result<Vec<Account>, LinkError> {
        self.read(|server| server.accounts.values().cloned().collect()).await
    }

    async fn sessions(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, LinkError> {
        let (account, after) = (account.clone(), after.cloned());
        self.read(move |server| server.newest(&account, after.as_ref(), limit as usize)).await
    }

    async fn running(&self, account: &AccountId) -> Result<Vec<Session>, LinkError> {
        let account = account.clone();
        self.read(move |server| {
            let open = server.open.get(&account).into_iter().flatten();
            let names: Vec<_> = open.map(|id| (account.clone(), id.clone())).collect();
            server.sessions_named(&names)
        })
        .await
    }

    async fn usage(
        &self,
        account: &AccountId,
        bucket: Bucket,
        from: Timestamp,
    ) -> Result<Vec<(Timestamp, Usage)>, LinkError> {
        let account = account.clone();
        self.read(move |server| server.usage(&account, bucket, from)).await
    }

    async fn drop_sessions(
        &self,
        account: &AccountId,
        before: Timestamp,
        most: u32,
    ) -> Result<u32, LinkError> {
        let account = account.clone();
        self.ask(Kind::Write, move |server| server.drop_sessions(&account, before, most)).await
    }

    async fn drop_key(&self, hash: Digest) -> Result<(), LinkError> {
        self.ask(Kind::Write, move |server| drop(server.keys.remove(&hash.0))).await
    }

    async fn sealed_commands(&self, account: &AccountId) -> Result<Vec<Entry>, LinkError> {
        let account = account.clone();
        self.read(move |server| server.sealed_commands(&account)).await
    }

    async fn trim(&self, account: &Account, opening: &Entry) -> Result<Committed, LinkError> {
        let (account, opening) = (account.clone(), opening.clone());
        self.ask(Kind::Commit, move |server| server.trim(&account, &opening)).await
    }

    async fn put(&self, _: Part<'_>) -> Result<(), LinkError> {
        Err(LinkError::Broken(Arc::new(Unmade)))
    }

    async fn secret(&self, name: &str, offered: [u8; 32]) -> Result<[u8; 32], LinkError> {
        let name = name.to_owned();
        self.ask(Kind::Write, move |server| *server.secrets.entry(name.clone()).or_insert(offered)).await
    }

    async fn open_sessions(&self) -> Result<Vec<Session>, LinkError> {
        self.read(|server| server.sessions_named(server.serves.values().flatten())).await
    }

    async fn open_sessions_of(&self, gateway: &GatewayId) -> Result<Vec<Session>, LinkError> {
        let gateway = gateway.clone();
        self.read(move |server| server.open_of(&gateway)).await
    }

    async fn serving(&self) -> Result<Vec<GatewayId>, LinkError> {
        self.read(|server| server.serves.keys().cloned().collect()).await
    }

    async fn beats(&self) -> Result<BTreeMap<GatewayId, u64>, LinkError> {
        self.read(|server| server.beats.clone()).await
    }

    async fn forget(&self, gateway: &GatewayId) -> Result<(), LinkError> {
        let gateway = gateway.clone();
        self.ask(Kind::Write, move |server| {
            server.beats.remove(&gateway);
            server.seen.remove(&gateway);
        })
        .await
    }

    async fn audit(&self, account: &AccountId, after: u64, limit: u32) -> Result<Vec<Entry>, LinkError> {
        let account = account.clone();
        self.read(move |server| server.entries(&account, after, limit as usize)).await
    }

    async fn events(
        &self,
        stream: u16,
        after: &Cursor,
        limit: u32,
    ) -> Result<Vec<(Cursor, Heard)>, LinkError> {
        let after = after.clone();
        self.read(move |server| server.events_after(stream, &after, limit as usize)).await
    }

    async fn heartbeat(&self, gateway: &GatewayId, now: Timestamp) -> Result<(), LinkError> {
        let gateway = gateway.clone();
        self.ask(Kind::Write, move |server| server.beat(&gateway, now)).await
    }

    async fn last_seen(&self, gateway: &GatewayId) -> Result<Option<Timestamp>, LinkError> {
        let gateway = gateway.clone();
        self.read(move |server| server.seen.get(&gateway).copied()).await
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a store in memory takes nothing from another")]
struct Unmade;
