//! The script alone, to measure what a hold costs beyond it: calls that were made ahead of time, with the arguments of
//! real holds, on a connection like that of a store.

use std::sync::Arc;

use futures_util::future::try_join_all;
use redis::{Cmd, Value};

use super::{Call, Link, Redis, RedisUrl, surprise};
use crate::audit::Actor;
use crate::id::{AccountId, GatewayId, HoldId};
use crate::key::Key;
use crate::ledger::{self, Answer, Change, Context, Opening};
use crate::plan::Plan;
use crate::request::{NewSession, SessionRequest};
use crate::store::StoreError;
use crate::store::lanes::{Batch, behind};
use crate::time::Timestamp;

/// So many find room in the connection's queue, and are put there in one turn of their task: beyond that one might overtake
/// another, and be refused.
const IN_ORDER: usize = 32;

/// A connection on which nothing but the script is run.
#[derive(Debug)]
pub struct BareScript {
    redis: Redis,
}

/// Calls of the script that each hold one session of one account, in their order. None of them was sent yet.
#[derive(Debug)]
pub struct BareHolds {
    /// The next one is the last.
    calls: Vec<Cmd>,
}

impl BareScript {
    /// Connects when it is first asked.
    ///
    /// # Errors
    /// When the URL cannot be one of a server's.
    pub fn open(url: &RedisUrl) -> Result<BareScript, StoreError> {
        Ok(BareScript { redis: Redis::open(url)? })
    }

    /// Opens an account of its own on `plan` and decides `count` holds of it, each on the one before.
    ///
    /// # Errors
    /// When the store fails, or the plan does not allow so many sessions.
    pub async fn prepare(&self, plan: &Plan, count: u32, now: Timestamp) -> Result<BareHolds, StoreError> {
        let given = Context { plan, now };
        let (gateway, (key, _)) = (GatewayId::random(), Key::mint("bench".to_owned(), now));
        let key_id = key.id.clone();
        let (id, email) = (AccountId::random(), "bench@example.com".to_owned());
        let opening = Opening { id, email, prepaid: None, key };
        let opened = ledger::open(opening, &Actor::System, given).map_err(|_| surprise())?;
        let mut account = opened.account.clone();
        self.redis.commit(&alone(0, Arc::new(opened))).await?;
        let mut calls = Vec::new();
        for _ in 0..count {
            let new = NewSession::fresh(SessionRequest::default());
            let hold = (&new, HoldId::random());
            let Ok(Answer::Change(change)) = ledger::hold(&account, &key_id, hold, &gateway, None, given)
            else {
                return Err(surprise().into());
            };
            let expected = std::mem::replace(&mut account, change.account.clone()).version;
            calls.push(Call::of(&alone(expected, change))?.cmd("EVALSHA", &self.redis.commit));
        }
        calls.reverse();
        Ok(BareHolds { calls })
    }

    /// Sends the next calls at once, at most `most` and at most [`IN_ORDER`], and waits for all answers. How many there were.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn run(&self, holds: &mut BareHolds, most: usize) -> Result<usize, StoreError> {
        let most = most.min(IN_ORDER);
        let next = holds.calls.split_off(holds.calls.len().saturating_sub(most));
        // In their order: each names the version that the one before leaves.
        let answers = try_join_all(next.iter().rev().map(|call| self.redis.connections.ask(call))).await?;
        match answers.iter().all(|answer| matches!(answer, Value::Array(done) if done[..] == [Value::Int(0)]))
        {
            true => Ok(answers.len()),
            false => Err(surprise().into()),
        }
    }
}

fn alone(expected: u64, change: Arc<Change>) -> Batch {
    let account = change.account.id.clone();
    let name = format!("bare-{account}-{expected}");
    Batch { name, account, expected, behind: behind(&change), changes: vec![change] }
}
