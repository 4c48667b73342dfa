//! The two sides: the script alone, and a hold as a gateway asks for it. Both have so many accounts, and so many calls in
//! flight, on one thread and one connection.

use anyhow::{Context, Result};
use billing::{
    Actor, BareHolds, BareScript, Billing, GatewayId, Limits, NewCustomer, NewSession, Plan, Principal,
    RedisUrl, Session, SessionRequest, StoreUrl,
};
use futures_util::stream::{FuturesUnordered, TryStreamExt};
use tokio::time::Instant;

use crate::admit::{PLAN, catalogue, now};
use crate::report::Times;

pub(super) struct Script {
    script: BareScript,
    accounts: Vec<BareHolds>,
}

impl Script {
    pub(super) async fn open(redis: &RedisUrl, plan: &Plan, accounts: usize, each: u32) -> Result<Self> {
        let script = BareScript::open(redis)?;
        let mut prepared = Vec::new();
        for _ in 0..accounts {
            prepared.push(script.prepare(plan, each, now()).await?);
        }
        Ok(Self { script, accounts: prepared })
    }

    /// So many calls of each account, one after the other.
    pub(super) async fn batch(&mut self, calls: u32) -> Result<Times> {
        let script = &self.script;
        let all = self.accounts.iter_mut().map(|holds| async move {
            let mut times = Times::new();
            for _ in 0..calls {
                let begun = Instant::now();
                script.run(holds, 1).await?;
                times.record(begun.elapsed());
            }
            anyhow::Ok(times)
        });
        let all: FuturesUnordered<_> = all.collect();
        all.try_fold(Times::new(), async |mut all, times| {
            all.add(&times);
            Ok(all)
        })
        .await
    }
}

pub(super) struct Hold {
    billing: Billing,
    gateway: GatewayId,
    accounts: Vec<Principal>,
}

impl Hold {
    pub(super) async fn open(url: &StoreUrl, accounts: usize) -> Result<Self> {
        let billing = Billing::open(url, catalogue(u32::MAX)?, Limits::default())?;
        let mut principals = Vec::new();
        for _ in 0..accounts {
            principals.push(customer(&billing).await?);
        }
        Ok(Self { billing, gateway: GatewayId::random(), accounts: principals })
    }

    /// The same of holds. They are given back afterwards, which is not part of their time.
    pub(super) async fn batch(&mut self, holds: u32) -> Result<Times> {
        let (billing, gateway) = (&self.billing, &self.gateway);
        let all = self.accounts.iter().map(|who| async move {
            let (mut times, mut held) = (Times::new(), Vec::new());
            for _ in 0..holds {
                let begun = Instant::now();
                let session = hold(billing, who, gateway).await?;
                times.record(begun.elapsed());
                held.push(session);
            }
            anyhow::Ok((times, held))
        });
        let all: FuturesUnordered<_> = all.collect();
        let all: Vec<_> = all.try_collect().await?;
        let mut sum = Times::new();
        for (times, held) in all {
            sum.add(&times);
            for session in held {
                billing.void(session.name(), "bench", now()).await?;
            }
        }
        Ok(sum)
    }
}

/// As a gateway does it.
pub(super) async fn hold(billing: &Billing, who: &Principal, gateway: &GatewayId) -> Result<Session> {
    let new = NewSession::fresh(SessionRequest::default());
    let reserved = billing.reserve(who, &new, gateway, now()).await?;
    billing.confirm(&reserved, now()).await?;
    Ok(reserved.session)
}

pub(super) async fn customer(billing: &Billing) -> Result<Principal> {
    let new =
        NewCustomer { id: None, email: "bench@example.com".to_owned(), plan: PLAN.to_owned(), prepaid: None };
    let (_, secret) = billing.create_customer(new, Actor::System, now()).await?;
    billing.authenticate(secret.expose()).await?.context("the customer is gone")
}
