//! One store, its customers, and their sessions: the steps as a gateway takes them.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use billing::{
    AccountId, Actor, Billing, Catalogue, End, GatewayId, Limits, NewCustomer, NewSession, Outcome,
    Principal, Secret, SessionRequest, StoreUrl, Timestamp,
};
use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};

use crate::report::Times;

/// Sessions of a log that is made, at a time.
const AT_ONCE: usize = 64;

pub(crate) const PLAN: &str = "enterprise";
/// What a gateway does for a session, in its order: the key is known already; the price is set aside, first in memory
/// and then for sure; minutes count; it is over, which waits for the disk.
pub(crate) const STEPS: [&str; 5] = ["authenticate", "reserve", "confirm", "begin", "post"];

pub(crate) struct Ledger {
    pub(crate) name: String,
    billing: Billing,
    gateway: GatewayId,
    customers: Vec<Secret>,
    /// The customer of the next session.
    next: usize,
    pub(crate) times: [Times; STEPS.len()],
    /// How long its batches took.
    pub(super) busy: Duration,
}

impl Ledger {
    pub(crate) async fn open(name: &str, url: &StoreUrl, accounts: u32, clients: u32) -> Result<Self> {
        let billing = Billing::open(url, catalogue(clients)?, Limits::default())
            .with_context(|| format!("store {name}"))?;
        billing.probe().await.with_context(|| format!("store {name}"))?;
        let gateway = GatewayId::random();
        // As a gateway starts: before that a store of its own puts no commit off.
        if !billing.is_shared() {
            billing.settle_abandoned(&gateway, now()).await?;
        }
        billing.heartbeat(&gateway, now()).await?;
        let mut customers = Vec::new();
        for _ in 0..accounts {
            let (email, plan) = ("bench@example.com".to_owned(), PLAN.to_owned());
            let new = NewCustomer { id: None, email, plan, prepaid: None };
            let (_, secret) = billing.create_customer(new, Actor::System, now()).await?;
            customers.push(secret);
        }
        let (name, times) = (name.to_owned(), Default::default());
        Ok(Self { name, billing, gateway, customers, next: 0, times, busy: Duration::ZERO })
    }

    /// Forgets what was measured so far.
    pub(crate) fn begin(&mut self) {
        self.times = Default::default();
        self.busy = Duration::ZERO;
    }

    /// So many sessions of each client.
    pub(crate) async fn batch(&mut self, clients: u32, sessions: u32, gap: Duration) -> Result<()> {
        let begun = Instant::now();
        let next = self.next;
        self.next = next + (clients * sessions) as usize;
        let this = &*self;
        let clients = (0..clients as usize).map(|client| async move {
            let mut steps = Vec::with_capacity(sessions as usize);
            for session in 0..sessions as usize {
                let customer = next + client * sessions as usize + session;
                steps.push(this.session(&this.customers[customer % this.customers.len()], now()).await?);
                if !gap.is_zero() {
                    sleep(gap).await;
                }
            }
            anyhow::Ok(steps)
        });
        let clients: FuturesUnordered<_> = clients.collect();
        let steps: Vec<_> = clients.try_collect().await.with_context(|| format!("store {}", self.name))?;
        self.busy += begun.elapsed();
        for steps in steps.into_iter().flatten() {
            self.times.iter_mut().zip(steps).for_each(|(times, step)| times.record(step));
        }
        Ok(())
    }

    /// A customer who had so many sessions at that time. Each leaves two entries in its log.
    pub(crate) async fn customer_of(&self, sessions: u32, at: Timestamp) -> Result<AccountId> {
        let (email, plan) = ("bench@example.com".to_owned(), PLAN.to_owned());
        let new = NewCustomer { id: None, email, plan, prepaid: None };
        let (account, secret) = self.billing.create_customer(new, Actor::System, at).await?;
        let all = stream::iter(0..sessions).map(|_| self.session(&secret, at));
        all.buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
        Ok(account.id)
    }

    /// How long each step took.
    async fn session(&self, key: &Secret, at: Timestamp) -> Result<[Duration; STEPS.len()]> {
        let mut clock = Clock(Instant::now());
        let who: Option<Principal> = self.billing.authenticate(key.expose()).await?;
        let authenticate = clock.lap();
        let who = who.context("its customer is gone")?;
        let new = NewSession::fresh(SessionRequest::default());
        let reserved = self.billing.reserve(&who, &new, &self.gateway, at).await?;
        let reserve = clock.lap();
        self.billing.confirm(&reserved, at).await?;
        let confirm = clock.lap();
        let held = reserved.session.name();
        self.billing.begin(held, at, at).await?;
        let begin = clock.lap();
        let outcome = Outcome::Completed { cause: "client closed" };
        let end = End { at, outcome, up_bytes: 1_000, down_bytes: 100_000 };
        let posted = self.billing.post(held, end, at).await?;
        let post = clock.lap();
        ensure!(posted.ended_at.is_some(), "a session was not settled");
        Ok([authenticate, reserve, confirm, begin, post])
    }
}

/// A stopwatch.
struct Clock(Instant);

impl Clock {
    /// The time since the last call.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Nobody's limit is what is measured.
pub(crate) fn catalogue(clients: u32) -> Result<Catalogue> {
    let mut catalogue = Catalogue::default();
    let mut plan = catalogue.get(PLAN).context("the default plans have it")?.clone();
    plan.included_sessions = u32::MAX;
    plan.concurrent_sessions = plan.concurrent_sessions.max(clients);
    catalogue.insert(plan);
    Ok(catalogue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_session_takes_every_step() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", directory.path().join("ledger.db").display()).parse().unwrap();
        let mut ledger = Ledger::open("sqlite", &url, 2, 3).await.unwrap();
        ledger.batch(3, 4, Duration::ZERO).await.unwrap();
        assert!(ledger.times.iter().all(|times| times.len() == 12));
        ledger.begin();
        assert!(ledger.times.iter().all(|times| times.len() == 0));
        let accounts = ledger.billing.accounts().await.unwrap();
        for account in &accounts {
            let sessions = ledger.billing.verify(&account.id).await.unwrap();
            assert_eq!(account.open, 0, "{sessions:?}");
        }
        assert_eq!(accounts.len(), 2);
    }
}
