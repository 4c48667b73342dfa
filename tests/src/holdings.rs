use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Customer, Gateway, Pid, Request, eventually};

/// What a gateway has at a moment, of everything that a session takes and has to give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Of its runtimes.
    tasks: u64,
    descriptors: u64,
    connections: u64,
    /// Live, or waiting for a browser.
    sessions: u64,
    /// Sessions that the ledger has not settled.
    holds: u64,
    /// Warm or claimed, or about to be one of them.
    browsers: u64,
    /// Processes that are not another one's helper.
    processes: u64,
    /// Directories of browsers.
    profiles: u64,
}

impl Gateway {
    /// What it has once it has nothing to do: nobody is connected, and the pool is full. A session of `customer` goes
    /// before, so that what is made once is there.
    ///
    /// # Errors
    ///
    /// It does not come to rest.
    pub async fn at_rest(&self, customer: &Customer) -> Result<Holdings> {
        self.connect(customer).await?.close().await?;
        let mut resting = None;
        eventually("the gateway rests", async || {
            let (now, idle) = self.holdings().await?;
            let rests = now.sessions == 0 && now.connections == 0 && idle && resting == Some(now);
            resting = Some(now);
            Ok(rests)
        })
        .await
        .with_context(|| format!("{resting:?}"))?;
        resting.context("it rested")
    }

    /// Waits until it has no more than `before`, and as many browsers.
    ///
    /// # Errors
    ///
    /// Something is left.
    pub async fn nothing_is_left(&self, before: Holdings) -> Result<()> {
        let mut last = None;
        let as_before = eventually("nothing is left", async || {
            let (now, idle) = self.holdings().await?;
            last = Some(now);
            Ok(idle && before.covers(&now))
        });
        as_before.await.with_context(|| format!("before {before:?}, now {last:?}"))
    }

    /// What it has now, and whether its pool is at work on nothing.
    async fn holdings(&self) -> Result<(Holdings, bool)> {
        let report = self.ask_admin(Request::get("/debug/sessions")).await?.json().await?;
        let census = |name: &str| number(&report["census"][name]);
        let metric =
            async |name: &str| -> Result<u64> { number(&self.metric(name).await?.to_string().parse()?) };
        let idle = metric("ufb_pool_idle_browsers").await?;
        let browsers = metric("ufb_pool_browsers").await?;
        let busy = metric("ufb_pool_starting_browsers").await? + metric("ufb_pool_waiting_claims").await?;
        let holdings = Holdings {
            tasks: census("tasks")?,
            descriptors: census("descriptors")?,
            connections: census("connections")?,
            sessions: census("liveSessions")? + census("waitingSessions")?,
            holds: census("holds")?,
            browsers,
            processes: self.browser_processes()?,
            profiles: self.profiles()?,
        };
        Ok((holdings, busy == 0 && idle == browsers))
    }

    fn browser_processes(&self) -> Result<u64> {
        let is_helper = |process: &Pid| process.option("--type").is_ok();
        Ok(self.browsers()?.iter().filter(|process| !is_helper(process)).count() as u64)
    }

    fn profiles(&self) -> Result<u64> {
        let Ok(runs) = fs::read_dir(self.data().join("browsers")) else { return Ok(0) };
        let mut profiles = 0;
        for run in runs {
            profiles += fs::read_dir(run?.path())?.count() as u64;
        }
        Ok(profiles)
    }
}

impl Holdings {
    fn covers(&self, now: &Self) -> bool {
        now.tasks <= self.tasks
            && now.descriptors <= self.descriptors
            && now.connections <= self.connections
            && now.sessions <= self.sessions
            && now.holds <= self.holds
            && now.browsers == self.browsers
            && now.processes <= self.processes
            && now.profiles <= self.profiles
    }
}

/// A count, whatever the document calls it.
fn number(value: &Value) -> Result<u64> {
    let number = value.as_f64().with_context(|| format!("{value} is no number"))?;
    ensure!(number >= 0.0 && number.fract() == 0.0, "{number} is no count");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a count")]
    Ok(number as u64)
}
