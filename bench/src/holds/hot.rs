//! Several gateways that hold sessions of one account at the same time, each on a thread and a connection of its own.

use std::fmt;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use billing::{BareScript, Billing, GatewayId, Limits, Plan, Principal, RedisUrl, StoreUrl};
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::Args;
use super::sides::{customer, hold};
use crate::admit::{catalogue, now};
use crate::report::{number, write_table};

#[derive(Debug, Serialize)]
pub(super) struct Hot {
    gateways: usize,
    of_each: usize,
    holds_per_s: f64,
    /// The script alone, on one account and one connection, with as many calls in flight as keep their order.
    script_per_s: f64,
}

pub(super) async fn run(args: &Args, (url, redis): (&StoreUrl, &RedisUrl), plan: &Plan) -> Result<Hot> {
    let (gateways, of_each) = (args.gateways.get(), args.of_each.get());
    let script_per_s = script(redis, plan, args.count.get(), gateways * of_each).await?;
    let billing = open(url)?;
    let who = customer(&billing).await?;
    let each = (args.count.get() as usize).div_ceil(gateways * of_each);
    let start = Arc::new(Barrier::new(gateways));
    let mut answers = Vec::new();
    for _ in 0..gateways {
        let (send, answer) = oneshot::channel();
        let (url, who, start) = (url.clone(), who.clone(), Arc::clone(&start));
        thread::Builder::new().name("gateway".to_owned()).spawn(move || {
            // Nobody waits for it where the run was broken off.
            let _ = send.send(gateway(&url, &who, &start, (of_each, each)));
        })?;
        answers.push(answer);
    }
    let (mut begun, mut ended): (Vec<Instant>, Vec<Instant>) = Default::default();
    for answer in answers {
        let (from, to) = answer.await.context("a thread ended too early")??;
        begun.push(from);
        ended.push(to);
    }
    let took = ended.iter().max().zip(begun.iter().min()).context("there are gateways")?;
    let holds = gateways * of_each * each;
    let open = billing.account(&who.account).await?.context("the customer is gone")?.open;
    // The first of each gateway is not counted.
    anyhow::ensure!(open as usize == holds + gateways, "{open} sessions are held, not {holds}");
    billing.verify(&who.account).await?;
    Ok(Hot { gateways, of_each, holds_per_s: holds as f64 / (*took.0 - *took.1).as_secs_f64(), script_per_s })
}

fn open(url: &StoreUrl) -> Result<Billing> {
    Ok(Billing::open(url, catalogue(u32::MAX)?, Limits::default())?)
}

/// How many a second the script alone does.
async fn script(redis: &RedisUrl, plan: &Plan, count: u32, in_flight: usize) -> Result<f64> {
    let script = BareScript::open(redis)?;
    let mut holds = script.prepare(plan, count, now()).await?;
    let begun = Instant::now();
    let mut done = 0;
    loop {
        match script.run(&mut holds, in_flight).await? {
            0 => return Ok(done as f64 / begun.elapsed().as_secs_f64()),
            some => done += some,
        }
    }
}

/// One gateway: so many at a time, so many of each. When it began, and when it was done.
fn gateway(
    url: &StoreUrl,
    who: &Principal,
    start: &Barrier,
    (at_a_time, each): (usize, usize),
) -> Result<(Instant, Instant)> {
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (billing, id) = (open(url)?, GatewayId::random());
        // The connection is there, and the account is known.
        hold(&billing, who, &id).await?;
        start.wait();
        let begun = Instant::now();
        let clients = (0..at_a_time).map(|_| async {
            for _ in 0..each {
                hold(&billing, who, &id).await?;
            }
            anyhow::Ok(())
        });
        try_join_all(clients).await?;
        Ok((begun, Instant::now()))
    })
}

impl fmt::Display for Hot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gateways, of_each, holds_per_s, script_per_s } = self;
        writeln!(f, "one account, {gateways} gateways with {of_each} holds at a time each\n")?;
        let cells = vec![number(Some(*holds_per_s), 0), number(Some(*script_per_s), 0)];
        write_table(f, &["holds/s", "script alone, calls/s"], [cells])
    }
}
