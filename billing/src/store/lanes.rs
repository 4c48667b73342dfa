//! A lane for each account, on which its commands go to a store that is a round trip away.
//!
//! A lane knows the account as it will be once all that this process has under way is committed: its tip. A command is
//! decided on the tip. While one commit of the account is under way, what is decided meanwhile gathers, and goes as one
//! commit when that one has landed. So an account costs one round trip at a time, however many commands wait on it, and
//! a command that meets nobody costs one round trip.
//!
//! What a command was decided on has to be the tip still when it joins: the same record, not one of the same version. A
//! tip that did not come to be had a version, too, and what the next one gets by the same number is another account.
//!
//! When another process got in between, the store answers with the account as it is, and whoever was under way is
//! decided anew. When no answer comes, the same commit is sent again until there is one: it names the version that it
//! was decided on, so it is carried out once at most; and the store answers who wrote the log's entry at the place
//! where the commit's last one would be, which tells whether it was. (What the entry says would not tell: another
//! process may have been given the same command at the same moment.)

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{Notify, SetOnce, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::{Committed, LIST_MAX, StoreError, remember};
use crate::account::Account;
use crate::audit::{Digest, Entry, Fault, Head, Replay, Verified};
use crate::event::{Cursor, Heard};
use crate::id::{AccountId, CommandId, GatewayId, SessionId};
use crate::key::{self, Principal};
use crate::ledger::{Change, SessionChange};
use crate::migrate::Part;
use crate::session::{Session, SessionCursor};
use crate::time::Timestamp;
use crate::usage::{Bucket, Usage};

/// How long a commit without an answer is sent again. A client waits that long for its session at most; what is
/// settled is tried again by who settles it.
const PATIENCE: Duration = Duration::from_secs(3);

/// From one sending to the next.
const PAUSE: Duration = Duration::from_millis(50);

/// A hold may be answered before its commit has landed where it would still be granted after so many more were started
/// by others in each second since the account was seen last, the first one begun: four other gateways that do this with
/// [`AHEAD`] sessions each at the same moment.
const OTHERS: u64 = 16;

/// Commands of an account that may wait for a commit before holds are not answered ahead of it any more. What others
/// start in a burst is as large as what is started here; so few of it are refused late, whatever comes.
const AHEAD: usize = 4;

/// What was seen of an account longer ago is no ground to answer by: it may have been suspended since.
const SEEN_LATELY: Duration = Duration::from_secs(30);

/// So long a commit is put off that nobody waits for. Writing it down and telling the server takes as long as a client takes
/// to say its first word, which is to be passed on before that.
const LEISURE: Duration = Duration::from_millis(1);

/// Accounts that have a lane, and keys that are remembered. Beyond it those that nobody waits on are forgotten, and
/// come back when they are asked for.
const LANES: usize = 10_000;
const KEYS_CACHED: usize = 100_000;

/// How often a log is read anew because what was to be read next had gone: nobody trims one three times in a row.
const TRIMMED_MEANWHILE: u32 = 3;

/// Open sessions that a lane remembers: far more than a plan allows at a time.
const SESSIONS: usize = 1_024;

/// The store's side: each call is one question and its answer, with a deadline of its own.
pub(crate) trait Link: fmt::Debug + Send + Sync + 'static {
    /// Carries a commit out, or says why not. Atomic; sent twice, it is carried out once.
    fn commit(&self, batch: &Batch) -> impl Future<Output = Result<Reply, LinkError>> + Send;

    fn probe(&self) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// The time by a clock that all gateways share, where there is one.
    fn time(&self) -> impl Future<Output = Result<Option<Timestamp>, LinkError>> + Send {
        std::future::ready(Ok(None))
    }

    /// Waits until all of an account that was answered before is as safe as the operator wants it.
    fn kept(&self, _: &AccountId) -> impl Future<Output = Result<(), StoreError>> + Send {
        std::future::ready(Ok(()))
    }

    fn account(&self, id: &AccountId) -> impl Future<Output = Result<Option<Account>, LinkError>> + Send;

    /// An account and the number of its open sessions, at one moment.
    fn count(&self, id: &AccountId)
    -> impl Future<Output = Result<Option<(Account, u32)>, LinkError>> + Send;

    fn session(
        &self,
        account: &AccountId,
        id: &SessionId,
    ) -> impl Future<Output = Result<Option<Session>, LinkError>> + Send;

    /// Lets a key be found by its hash. Nobody has the key before its account's commit has landed, and a key that its
    /// account does not know is nobody's: so it comes first, and may stay behind alone.
    fn put_key(&self, hash: Digest, whose: &Principal) -> impl Future<Output = Result<(), LinkError>> + Send;

    fn principal(&self, hash: Digest) -> impl Future<Output = Result<Option<Principal>, LinkError>> + Send;

    fn command(
        &self,
        account: &AccountId,
        id: &CommandId,
    ) -> impl Future<Output = Result<Option<Entry>, LinkError>> + Send;

    /// Ordered by id.
    fn accounts(&self) -> impl Future<Output = Result<Vec<Account>, LinkError>> + Send;

    /// Newest first, from the one after `after` on.
    fn sessions(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Session>, LinkError>> + Send;

    /// Those that are held or open, in any order.
    fn running(&self, account: &AccountId) -> impl Future<Output = Result<Vec<Session>, LinkError>> + Send;

    fn usage(
        &self,
        account: &AccountId,
        bucket: Bucket,
        from: Timestamp,
    ) -> impl Future<Output = Result<Vec<(Timestamp, Usage)>, LinkError>> + Send;

    /// Drops records of sessions that were held before `before` and have ended, up to `most`.
    fn drop_sessions(
        &self,
        account: &AccountId,
        before: Timestamp,
        most: u32,
    ) -> impl Future<Output = Result<u32, LinkError>> + Send;

    fn drop_key(&self, hash: Digest) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Of those that were trimmed off the log, ordered by number.
    fn sealed_commands(
        &self,
        account: &AccountId,
    ) -> impl Future<Output = Result<Vec<Entry>, LinkError>> + Send;

    /// Puts an opening balance in the place of a log's older entries, if the account is at this version. Atomic.
    fn trim(
        &self,
        account: &Account,
        opening: &Entry,
    ) -> impl Future<Output = Result<Committed, LinkError>> + Send;

    /// Writes what comes from another store into this one, which is empty but for earlier parts.
    fn put(&self, part: Part<'_>) -> impl Future<Output = Result<(), LinkError>> + Send;

    fn secret(
        &self,
        name: &str,
        offered: [u8; 32],
    ) -> impl Future<Output = Result<[u8; 32], LinkError>> + Send;

    fn open_sessions(&self) -> impl Future<Output = Result<Vec<Session>, LinkError>> + Send;

    fn open_sessions_of(
        &self,
        gateway: &GatewayId,
    ) -> impl Future<Output = Result<Vec<Session>, LinkError>> + Send;

    /// The gateways that have sessions open.
    fn serving(&self) -> impl Future<Output = Result<Vec<GatewayId>, LinkError>> + Send;

    fn beats(&self) -> impl Future<Output = Result<BTreeMap<GatewayId, u64>, LinkError>> + Send;

    fn forget(&self, gateway: &GatewayId) -> impl Future<Output = Result<(), LinkError>> + Send;

    fn audit(
        &self,
        account: &AccountId,
        after: u64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Entry>, LinkError>> + Send;

    fn events(
        &self,
        stream: u16,
        after: &Cursor,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<(Cursor, Heard)>, LinkError>> + Send;

    fn heartbeat(
        &self,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    fn last_seen(
        &self,
        gateway: &GatewayId,
    ) -> impl Future<Output = Result<Option<Timestamp>, LinkError>> + Send;
}

/// Changes to one account, to be committed all or none. Without a change it only asks for the version.
#[derive(Debug)]
pub(crate) struct Batch {
    /// No other batch has the same.
    pub(super) name: String,
    pub(super) account: AccountId,
    /// The version of the account that the first change was decided on; each further one on the one before it.
    pub(super) expected: u64,
    /// The hash of its last log entry. Two that have the same version and not the same entry are of two histories, of which
    /// a failover has forgotten one.
    pub(super) behind: Digest,
    pub(super) changes: Vec<Arc<Change>>,
}

impl Batch {
    /// The account as the batch leaves it.
    pub(super) fn after(&self) -> Option<&Account> {
        self.changes.last().map(|change| &change.account)
    }

    /// The log's last entry, where the batch has any.
    pub(super) fn head(&self) -> Option<Head> {
        let has_entries = self.changes.iter().any(|change| !change.entries.is_empty());
        self.after().filter(|_| has_entries).map(|account| account.head)
    }
}

/// What became of a batch.
#[derive(Debug)]
pub(crate) enum Reply {
    Done,
    /// The account is not at the version expected; nothing was written now.
    Conflict {
        /// The account as it is.
        stored: Option<Box<Account>>,
        /// The name of the batch that wrote the log's entry with the number of this one's last, if there is one.
        written_by: Option<String>,
    },
    /// The session's or the command's id of this change is taken; nothing was written.
    Exists(usize),
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) enum LinkError {
    /// Nothing was sent, or it was turned away: nothing was carried out.
    Away(Arc<dyn Error + Send + Sync>),
    /// It may have been carried out.
    Unanswered(Arc<dyn Error + Send + Sync>),
    /// It was answered with what this program does not understand; nothing was carried out.
    Broken(Arc<dyn Error + Send + Sync>),
}

impl LinkError {
    fn cause(&self) -> Arc<dyn Error + Send + Sync> {
        let (LinkError::Away(cause) | LinkError::Unanswered(cause) | LinkError::Broken(cause)) = self;
        Arc::clone(cause)
    }
}

impl From<LinkError> for StoreError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Away(cause) => StoreError::Away(Box::new(cause)),
            LinkError::Unanswered(cause) => StoreError::Unanswered(Box::new(cause)),
            LinkError::Broken(cause) => StoreError::Database(Box::new(cause)),
        }
    }
}

/// A commit that is taken there whoever waits for it.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    landed: SetOnce<Result<Committed, LinkError>>,
    hurry: Notify,
}

impl Sent {
    /// Somebody waits: it sets off now.
    pub(super) fn hurry(&self) {
        if self.landed.get().is_none() {
            self.hurry.notify_one();
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.landed.get(), Some(Ok(Committed::Done)))
    }

    /// What became of it.
    pub(super) async fn landed(&self) -> Result<Committed, LinkError> {
        self.landed.wait().await.clone()
    }
}

#[derive(Debug)]
pub(crate) struct Lanes<L: Link> {
    link: Arc<L>,
    lanes: DashMap<AccountId, Arc<Lane<L>>>,
    keys: DashMap<Digest, Principal>,
    names: Arc<Names>,
    /// [`OTHERS`], unless a test wants to see what comes of less.
    others: u64,
}

/// Names batches: those of this process are numbered, behind a word that no other process has.
#[derive(Debug)]
struct Names {
    process: String,
    given: AtomicU64,
}

impl Names {
    fn next(&self) -> String {
        format!("{}-{}", self.process, self.given.fetch_add(1, Ordering::Relaxed))
    }
}

/// One account's.
#[derive(Debug)]
struct Lane<L: Link> {
    state: Mutex<State<L>>,
}

#[derive(Debug)]
struct State<L: Link> {
    /// The account as the last answer left it.
    stored: Option<Arc<Account>>,
    /// When that was.
    seen: Option<Instant>,
    /// As it will be when what is under way has landed.
    aloft: Option<Arc<Account>>,
    /// As it will be when those who wait have landed, too. `None`: not known.
    tip: Option<Arc<Account>>,
    /// Sessions that this process has changed, as they are at the tip.
    sessions: HashMap<SessionId, Session>,
    /// Commands that are under way.
    commands: HashSet<CommandId>,
    /// Whether a commit is under way.
    flying: bool,
    /// It, where it may not have set off yet.
    leisurely: Option<Arc<Sent>>,
    waiting: Vec<Passenger<L>>,
}

/// A command that waits for a commit.
#[derive(Debug)]
struct Passenger<L: Link> {
    /// `None`: it changes nothing, and wants to know that what it saw is so.
    change: Option<Arc<Change>>,
    /// What it is told once what it saw is so.
    landed: Committed,
    answer: oneshot::Sender<News<L>>,
}

/// What a passenger is told.
#[derive(Debug)]
enum News<L: Link> {
    Landed(Result<Committed, LinkError>),
    /// To hear of a commit there, and to take it there. In this order: news that nobody takes drops its parts as they
    /// stand here, and a flight that is dropped looks for a passenger who still listens, which this one must not be.
    Fly(oneshot::Receiver<News<L>>, Flight<L>),
}

/// A command's way on: with the commit where it is this one's to take there, and what it will be told.
type Boarded<L> = (Option<Flight<L>>, oneshot::Receiver<News<L>>);

impl<L: Link> Lanes<L> {
    pub(super) fn new(link: L) -> Self {
        let process = format!("{:016x}", u64::from_ne_bytes(key::random()));
        let names = Arc::new(Names { process, given: AtomicU64::new(0) });
        Lanes { link: Arc::new(link), lanes: DashMap::new(), keys: DashMap::new(), names, others: OTHERS }
    }

    /// One that answers ahead of its commits also where there is no room for others.
    #[cfg(test)]
    pub(super) fn hasty(link: L) -> Self {
        Lanes { others: 0, ..Lanes::new(link) }
    }

    /// For what concerns no account's lane.
    pub(super) fn link(&self) -> &L {
        &self.link
    }

    pub(super) async fn load(&self, id: &AccountId) -> Result<Option<Arc<Account>>, StoreError> {
        let lane = self.lanes.get(id).map(|lane| Arc::clone(&lane));
        match lane.and_then(|lane| lane.lock().tip.clone()) {
            Some(tip) => Ok(Some(tip)),
            None => self.reload(id).await,
        }
    }

    pub(super) async fn load_session(
        &self,
        account: &AccountId,
        id: &SessionId,
    ) -> Result<Option<Session>, StoreError> {
        let lane = self.lanes.get(account).map(|lane| Arc::clone(&lane));
        let known = lane.and_then(|lane| lane.lock().sessions.get(id).cloned());
        match known {
            Some(session) => Ok(Some(session)),
            None => self.session(account, id).await,
        }
    }

    pub(super) async fn reload(&self, id: &AccountId) -> Result<Option<Arc<Account>>, StoreError> {
        let account = self.link.account(id).await?.map(Arc::new);
        Ok(account.map(|account| self.lane(id).lock().learn(account)))
    }

    /// Commits a change that was decided on an account as it was loaded; on none, where it opens one.
    pub(super) async fn commit(
        &self,
        decided_on: Option<&Arc<Account>>,
        change: &Arc<Change>,
    ) -> Result<Committed, StoreError> {
        let id = &change.account.id;
        if change.new_key
            && let Some(key) = change.account.keys.last()
        {
            self.link.put_key(key.hash, &Principal { account: id.clone(), key: key.id.clone() }).await?;
        }
        match self.lane(id).board(self, id, (decided_on, Some(change))) {
            Some(boarded) => Ok(land(boarded).await?),
            None => Ok(Committed::Conflict),
        }
    }

    /// Decides on an account as it is known, having seen it lately, and has the commit taken there by a task of its own.
    /// `decide` is given how many sessions others may have started since, for which there has to be room.
    ///
    /// `None`: there is too little known of the account, or the decision was no. The caller has to ask in the ordinary way.
    pub(super) fn send(
        &self,
        id: &AccountId,
        decide: impl FnOnce(&Account, u32) -> Option<Arc<Change>>,
    ) -> Option<Arc<Sent>> {
        let lane = Arc::clone(&*self.lanes.get(id)?);
        let (tip, others) = lane.lock().known(self.others)?;
        let change = decide(&tip, others)?;
        // Where somebody has come first since, there is more to be asked.
        let boarded = lane.board(self, id, (Some(&tip), Some(&change)))?;
        let sent = Arc::<Sent>::default();
        let outcome = Outcome(Arc::clone(&sent));
        let sets_off = boarded.0.is_some();
        if sets_off {
            lane.lock().leisurely = Some(Arc::clone(&sent));
        }
        tokio::spawn(async move {
            if sets_off {
                let _ = timeout(LEISURE, outcome.0.hurry.notified()).await;
            }
            let landed = land(boarded).await;
            outcome.tell(landed);
        });
        Some(sent)
    }

    pub(super) async fn confirm(&self, account: &Arc<Account>) -> Result<bool, StoreError> {
        match self.lane(&account.id).board(self, &account.id, (Some(account), None)) {
            Some(boarded) => Ok(land(boarded).await? == Committed::Done),
            None => Ok(false),
        }
    }

    fn lane(&self, id: &AccountId) -> Arc<Lane<L>> {
        if let Some(lane) = self.lanes.get(id) {
            return Arc::clone(&lane);
        }
        if self.lanes.len() >= LANES {
            // One that is taken out here while somebody is about to board it goes on beside its successor: the
            // versions keep the two apart.
            self.lanes.retain(|_, lane| lane.lock().is_busy());
        }
        Arc::clone(&self.lanes.entry(id.clone()).or_default())
    }

    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        Ok(self.link.probe().await?)
    }

    pub(super) async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.link.time().await?)
    }

    pub(super) async fn kept(&self, account: &AccountId) -> Result<(), StoreError> {
        self.link.kept(account).await
    }

    pub(super) fn remembers(&self, hash: &Digest) -> bool {
        self.keys.contains_key(hash)
    }

    pub(super) fn recall(&self, hash: &Digest) -> Option<Principal> {
        self.keys.get(hash).map(|principal| principal.clone())
    }

    pub(super) async fn principal(&self, hash: Digest) -> Result<Option<Principal>, StoreError> {
        let cached = self.keys.get(&hash).map(|principal| principal.clone());
        let (principal, account) = match cached {
            Some(principal) => {
                let account = self.load(&principal.account).await?;
                (principal, account)
            }
            None => match self.link.principal(hash).await? {
                // Another process may have made the key since the account was cached.
                Some(principal) => {
                    let account = self.reload(&principal.account).await?;
                    (principal, account)
                }
                None => return Ok(None),
            },
        };
        if !account.is_some_and(|account| account.has_live_key(&principal.key)) {
            return Ok(None);
        }
        remember(&self.keys, KEYS_CACHED, hash, principal.clone());
        Ok(Some(principal))
    }

    pub(super) async fn session(
        &self,
        account: &AccountId,
        id: &SessionId,
    ) -> Result<Option<Session>, StoreError> {
        Ok(self.link.session(account, id).await?)
    }

    pub(super) async fn command(
        &self,
        account: &AccountId,
        id: &CommandId,
    ) -> Result<Option<Entry>, StoreError> {
        Ok(self.link.command(account, id).await?)
    }

    pub(super) async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        Ok(self.link.accounts().await?)
    }

    pub(super) async fn sessions(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        Ok(self.link.sessions(account, after, limit).await?)
    }

    pub(super) async fn running(
        &self,
        account: &AccountId,
        after: Option<&SessionCursor>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        let mut sessions = self.link.running(account).await?;
        let is_behind = |session: &Session| {
            after.is_none_or(|after| (session.held_at, &session.id) < (after.held_at, &after.id))
        };
        sessions.retain(is_behind);
        sessions.sort_unstable_by(|one, other| (other.held_at, &other.id).cmp(&(one.held_at, &one.id)));
        sessions.truncate(limit as usize);
        Ok(sessions)
    }

    pub(super) async fn usage(
        &self,
        account: &AccountId,
        bucket: Bucket,
        from: Timestamp,
    ) -> Result<Vec<(Timestamp, Usage)>, StoreError> {
        Ok(self.link.usage(account, bucket, from).await?)
    }

    pub(super) async fn secret(&self, name: &str, offered: [u8; 32]) -> Result<[u8; 32], StoreError> {
        Ok(self.link.secret(name, offered).await?)
    }

    pub(super) async fn open_sessions(&self) -> Result<Vec<Session>, StoreError> {
        Ok(by_name(self.link.open_sessions().await?))
    }

    pub(super) async fn open_sessions_of(&self, gateway: &GatewayId) -> Result<Vec<Session>, StoreError> {
        Ok(by_name(self.link.open_sessions_of(gateway).await?))
    }

    pub(super) async fn drop_sessions(
        &self,
        account: &AccountId,
        before: Timestamp,
        most: u32,
    ) -> Result<u32, StoreError> {
        Ok(self.link.drop_sessions(account, before, most).await?)
    }

    pub(super) async fn drop_key(&self, hash: Digest) -> Result<(), StoreError> {
        self.keys.remove(&hash);
        Ok(self.link.drop_key(hash).await?)
    }

    pub(super) async fn sealed_commands(&self, account: &AccountId) -> Result<Vec<Entry>, StoreError> {
        Ok(self.link.sealed_commands(account).await?)
    }

    /// Goes past the lane, as what another process does; whoever is under way then is decided anew.
    pub(super) async fn trim(&self, account: &Account, opening: &Entry) -> Result<Committed, StoreError> {
        Ok(self.link.trim(account, opening).await?)
    }

    pub(super) async fn put(&self, part: Part<'_>) -> Result<(), StoreError> {
        Ok(self.link.put(part).await?)
    }

    pub(super) async fn serving(&self) -> Result<Vec<GatewayId>, StoreError> {
        Ok(self.link.serving().await?)
    }

    pub(super) async fn beats(&self) -> Result<BTreeMap<GatewayId, u64>, StoreError> {
        Ok(self.link.beats().await?)
    }

    pub(super) async fn forget(&self, gateway: &GatewayId) -> Result<(), StoreError> {
        Ok(self.link.forget(gateway).await?)
    }

    pub(super) async fn audit(
        &self,
        account: &AccountId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        Ok(self.link.audit(account, after, limit).await?)
    }

    pub(super) async fn events(
        &self,
        stream: u16,
        after: &Cursor,
        limit: u32,
    ) -> Result<Vec<(Cursor, Heard)>, StoreError> {
        Ok(self.link.events(stream, after, limit).await?)
    }

    /// Replays the log up to the entry that the account ends with. Entries are only ever added behind it, so that all
    /// of this is of the moment at which the account was read; unless the log was trimmed meanwhile.
    pub(super) async fn verify(&self, id: &AccountId) -> Result<Option<Result<Verified, Fault>>, StoreError> {
        let mut tries = TRIMMED_MEANWHILE;
        loop {
            let verified = self.try_verify(id).await?;
            tries -= 1;
            if tries == 0 || !matches!(verified, Some(Err(Fault::Missing { .. }))) {
                return Ok(verified);
            }
        }
    }

    async fn try_verify(&self, id: &AccountId) -> Result<Option<Result<Verified, Fault>>, StoreError> {
        let Some((account, open)) = self.link.count(id).await? else {
            return Ok(None);
        };
        let mut replay = Replay::default();
        let mut read = 0;
        while read < account.head.seq {
            let page = self.link.audit(id, read, LIST_MAX).await?;
            let page: Vec<_> = page.into_iter().filter(|entry| entry.seq <= account.head.seq).collect();
            let Some(last) = page.last() else { break };
            read = last.seq;
            for entry in &page {
                if let Err(fault) = replay.entry(id, entry) {
                    return Ok(Some(Err(fault)));
                }
            }
        }
        Ok(Some(replay.finish(&account, open)))
    }

    pub(super) async fn heartbeat(&self, gateway: &GatewayId, now: Timestamp) -> Result<(), StoreError> {
        Ok(self.link.heartbeat(gateway, now).await?)
    }

    pub(super) async fn last_seen(&self, gateway: &GatewayId) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.link.last_seen(gateway).await?)
    }
}

fn by_name(mut sessions: Vec<Session>) -> Vec<Session> {
    sessions.sort_unstable_by(|one, other| (&one.account, &one.id).cmp(&(&other.account, &other.id)));
    sessions
}

/// Waits until it is known what became of a command. Whoever finds nothing under way takes the commit there itself, on
/// its own thread, and then leaves the next one to somebody who waits for it.
async fn land<L: Link>((mut flight, mut news): Boarded<L>) -> Result<Committed, LinkError> {
    loop {
        if let Some(flight) = flight.take() {
            flight.fly().await;
        }
        match news.await {
            Ok(News::Landed(result)) => return result,
            Ok(News::Fly(more, ours)) => (flight, news) = (Some(ours), more),
            Err(_) => return Err(LinkError::Unanswered(Arc::new(Dropped))),
        }
    }
}

/// Is told for certain: also where the task that was to do so ends with its runtime.
struct Outcome(Arc<Sent>);

impl Outcome {
    fn tell(&self, landed: Result<Committed, LinkError>) {
        // The first word counts.
        let _ = self.0.landed.set(landed);
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.tell(Err(LinkError::Unanswered(Arc::new(Dropped))));
    }
}

/// All who waited for a commit gave up.
#[derive(Debug, thiserror::Error)]
#[error("the command was given up")]
struct Dropped;

impl<L: Link> Default for Lane<L> {
    fn default() -> Self {
        let state = State {
            stored: None,
            seen: None,
            aloft: None,
            tip: None,
            sessions: HashMap::new(),
            commands: HashSet::new(),
            flying: false,
            leisurely: None,
            waiting: Vec::new(),
        };
        Lane { state: Mutex::new(state) }
    }
}

impl<L: Link> Lane<L> {
    fn lock(&self) -> MutexGuard<'_, State<L>> {
        // What panics while it is held leaves an account that a commit finds to be wrong.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a command on with what it was decided on. `None`: that is not the tip any more.
    fn board(
        self: &Arc<Self>,
        lanes: &Lanes<L>,
        id: &AccountId,
        (decided_on, change): (Option<&Arc<Account>>, Option<&Arc<Change>>),
    ) -> Option<Boarded<L>> {
        let mut state = self.lock();
        if state.tip.as_ref().map(Arc::as_ptr) != decided_on.map(Arc::as_ptr) {
            return None;
        }
        let (answer, news) = oneshot::channel();
        // An id that is taken by what is under way is taken once that has landed.
        let is_taken = change.is_some_and(|change| state.takes_what_is_taken(change));
        let change = change.filter(|_| !is_taken);
        if let Some(change) = change {
            state.advance(change);
        }
        let landed = if is_taken { Committed::Exists } else { Committed::Done };
        state.waiting.push(Passenger { change: change.cloned(), landed, answer });
        if state.flying {
            if let Some(leisurely) = state.leisurely.take() {
                leisurely.hurry();
            }
            return Some((None, news));
        }
        let (batch, passengers) = state.depart(&lanes.names, id);
        let (link, names) = (Arc::clone(&lanes.link), Arc::clone(&lanes.names));
        Some((Some(Flight { link, lane: Arc::clone(self), names, batch, passengers }), news))
    }
}

impl<L: Link> State<L> {
    fn is_busy(&self) -> bool {
        self.flying || !self.waiting.is_empty()
    }

    /// The tip, and how many sessions others may have started since the account was seen. `None`: that is too long ago, or
    /// too many wait.
    fn known(&self, others: u64) -> Option<(Arc<Account>, u32)> {
        let since = self.seen?.elapsed();
        if since > SEEN_LATELY || self.waiting.len() >= AHEAD {
            return None;
        }
        let others = u32::try_from(others * (since.as_secs() + 1)).ok()?;
        Some((Arc::clone(self.tip.as_ref()?), others))
    }

    /// Takes in what was read, and gives it as the lane has it. Not while something is under way: its answer tells more.
    fn learn(&mut self, account: Arc<Account>) -> Arc<Account> {
        let is_same = |tip: &&Arc<Account>| stamp_of(Some(tip)) == stamp_of(Some(&account));
        let known = self.tip.as_ref().filter(|tip| !self.is_busy() && is_same(tip));
        if let Some(known) = known {
            self.seen = Some(Instant::now());
            return Arc::clone(known);
        }
        if !self.is_busy() && self.tip.as_ref().is_none_or(|tip| tip.version < account.version) {
            self.reset(Some(Arc::clone(&account)));
        }
        account
    }

    fn reset(&mut self, stored: Option<Arc<Account>>) {
        self.sessions.clear();
        self.commands.clear();
        self.tip.clone_from(&stored);
        self.seen = stored.is_some().then(Instant::now);
        self.stored = stored;
    }

    /// Whether it has an id that the store, which checks before it writes, would find free twice in one batch.
    fn takes_what_is_taken(&self, change: &Change) -> bool {
        let session = match &change.session {
            SessionChange::New(session) => self.sessions.contains_key(&session.id),
            SessionChange::None
            | SessionChange::Again(_)
            | SessionChange::Update(_)
            | SessionChange::Several(_) => false,
        };
        session || commands_of(change).any(|command| self.commands.contains(command))
    }

    fn advance(&mut self, change: &Change) {
        self.tip = Some(Arc::new(change.account.clone()));
        self.commands.extend(commands_of(change).cloned());
        for session in change.session.sessions() {
            self.sessions.insert(session.id.clone(), session.clone());
        }
    }

    /// Everybody who waits goes on board.
    fn depart(&mut self, names: &Names, id: &AccountId) -> (Batch, Vec<Passenger<L>>) {
        self.flying = true;
        let passengers = std::mem::take(&mut self.waiting);
        let changes = passengers.iter().filter_map(|passenger| passenger.change.clone()).collect();
        let (expected, behind) = stamp_of(self.stored.as_deref());
        self.aloft.clone_from(&self.tip);
        (Batch { name: names.next(), account: id.clone(), expected, behind, changes }, passengers)
    }

    /// Takes in what became of a batch, and tells its passengers.
    fn arrive(&mut self, batch: &Batch, passengers: Vec<Passenger<L>>, outcome: Result<Reply, LinkError>) {
        self.flying = false;
        self.leisurely = None;
        match outcome {
            Ok(Reply::Done) => {
                self.stored = self.aloft.take();
                self.seen = Some(Instant::now());
                self.tidy();
                answer_landed(passengers);
            }
            Ok(Reply::Conflict { stored, written_by }) => {
                self.start_anew(stored.map(Arc::from), &Ok(Committed::Conflict));
                if written_by.is_some_and(|name| name == batch.name) {
                    answer_landed(passengers);
                } else {
                    answer_all(passengers, &Ok(Committed::Conflict));
                }
            }
            Ok(Reply::Exists(taken)) => {
                // A record of its own: what was decided on this one since has seen sessions that did not come to be.
                let stored = self.stored.take().map(|account| Arc::new(Account::clone(&account)));
                self.start_anew(stored, &Ok(Committed::Conflict));
                answer_exists(passengers, taken);
            }
            Err(error) => {
                // Those who wait were not sent.
                self.start_anew(None, &Err(LinkError::Away(error.cause())));
                answer_all(passengers, &Err(error));
            }
        }
    }

    /// Those who wait were decided on what did not come to be.
    fn start_anew(&mut self, stored: Option<Arc<Account>>, answer: &Result<Committed, LinkError>) {
        self.reset(stored);
        answer_all(std::mem::take(&mut self.waiting), answer);
    }

    /// Forgets what has landed and is not asked for again soon: commands, and sessions that have ended.
    fn tidy(&mut self) {
        if !self.waiting.is_empty() && self.sessions.len() <= SESSIONS {
            return;
        }
        let waiting = || self.waiting.iter().filter_map(|passenger| passenger.change.as_deref());
        let waited_for: HashSet<_> =
            waiting().flat_map(|change| change.session.sessions()).map(|session| &session.id).collect();
        let commands = waiting().flat_map(commands_of).cloned().collect();
        self.sessions.retain(|id, session| session.state.is_open() || waited_for.contains(id));
        self.commands = commands;
        if self.sessions.len() > SESSIONS && !self.is_busy() {
            self.sessions.clear();
        }
    }
}

/// The hash of the last log entry of the account that a change was decided on.
pub(super) fn behind(change: &Change) -> Digest {
    change.entries.first().map_or(change.account.head.hash, |first| first.prev)
}

/// Which state of an account it is.
pub(super) fn stamp_of(account: Option<&Account>) -> (u64, Digest) {
    account.map_or_else(Default::default, |account| (account.version, account.head.hash))
}

fn commands_of(change: &Change) -> impl Iterator<Item = &CommandId> {
    change.entries.iter().filter_map(|entry| entry.command.as_ref())
}

fn answer_landed<L: Link>(passengers: Vec<Passenger<L>>) {
    for passenger in passengers {
        let _ = passenger.answer.send(News::Landed(Ok(passenger.landed)));
    }
}

/// Who does not listen any more is carried out all the same.
fn answer_all<L: Link>(passengers: Vec<Passenger<L>>, answer: &Result<Committed, LinkError>) {
    for passenger in passengers {
        let _ = passenger.answer.send(News::Landed(answer.clone()));
    }
}

/// The change that is number `taken` of its batch is told so; the others are decided anew.
fn answer_exists<L: Link>(passengers: Vec<Passenger<L>>, taken: usize) {
    let mut change = 0;
    for passenger in passengers {
        let is_taken = passenger.change.is_some() && change == taken;
        change += usize::from(passenger.change.is_some());
        let committed = if is_taken { Committed::Exists } else { Committed::Conflict };
        let _ = passenger.answer.send(News::Landed(Ok(committed)));
    }
}

/// A commit under way. Dropped before it has landed, it is handed to another of its passengers.
#[derive(Debug)]
struct Flight<L: Link> {
    link: Arc<L>,
    lane: Arc<Lane<L>>,
    names: Arc<Names>,
    batch: Batch,
    passengers: Vec<Passenger<L>>,
}

impl<L: Link> Flight<L> {
    /// Takes it there, tells its passengers, and hands the next one to somebody who waits for it.
    async fn fly(mut self) {
        let outcome = self.ask().await;
        let passengers = std::mem::take(&mut self.passengers);
        let mut state = self.lane.lock();
        state.arrive(&self.batch, passengers, outcome);
        if state.waiting.is_empty() {
            return;
        }
        let (batch, passengers) = state.depart(&self.names, &self.batch.account);
        drop(state);
        let (link, lane, names) = (Arc::clone(&self.link), Arc::clone(&self.lane), Arc::clone(&self.names));
        Flight { link, lane, names, batch, passengers }.hand_over();
    }

    /// Asks until it is known what became of the batch.
    async fn ask(&self) -> Result<Reply, LinkError> {
        let deadline = Instant::now() + PATIENCE;
        let mut unanswered = None;
        loop {
            let error = match self.link.commit(&self.batch).await {
                Err(error) => error,
                reply => return reply,
            };
            match (error, &unanswered) {
                (LinkError::Unanswered(cause), _) => unanswered = Some(cause),
                // One that was sent before may still be carried out.
                (LinkError::Away(_) | LinkError::Broken(_), Some(_)) => {}
                (error, None) => return Err(error),
            }
            if let Some(cause) = &unanswered
                && Instant::now() >= deadline
            {
                return Err(LinkError::Unanswered(Arc::clone(cause)));
            }
            sleep(PAUSE).await;
        }
    }

    /// Gives it to the first passenger who still waits. Where none does, nobody misses what becomes of it; and whether
    /// it was carried out shows when the account is read again.
    fn hand_over(mut self) {
        for at in 0..self.passengers.len() {
            let (answer, more) = oneshot::channel();
            let pilot = std::mem::replace(&mut self.passengers[at].answer, answer);
            match pilot.send(News::Fly(more, self)) {
                Err(News::Fly(_, refused)) => self = refused,
                Ok(()) | Err(News::Landed(_)) => return,
            }
        }
        let passengers = std::mem::take(&mut self.passengers);
        let unknown = Err(LinkError::Unanswered(Arc::new(Dropped)));
        self.lane.lock().arrive(&self.batch, passengers, unknown);
    }
}

impl<L: Link> Drop for Flight<L> {
    /// Who was taking it there gave up. The others have not, and may take the same commit there again.
    fn drop(&mut self) {
        if self.passengers.is_empty() {
            return;
        }
        let batch = Batch {
            name: std::mem::take(&mut self.batch.name),
            account: self.batch.account.clone(),
            expected: self.batch.expected,
            behind: self.batch.behind,
            changes: std::mem::take(&mut self.batch.changes),
        };
        let flight = Flight {
            link: Arc::clone(&self.link),
            lane: Arc::clone(&self.lane),
            names: Arc::clone(&self.names),
            batch,
            passengers: std::mem::take(&mut self.passengers),
        };
        flight.hand_over();
    }
}
