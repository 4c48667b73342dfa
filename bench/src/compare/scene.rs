//! One browser and all that stands in front of it, started anew.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::browser::Browser;
use super::stage::{Stage, version};
use super::{Args, Behind, Part, Rival, gateway, haproxy, nginx};
use crate::process::PidArgs;
use crate::target::{DIRECT, MeasureArgs, Trust};

/// More than any part opens with one proxy.
const SESSIONS_MAX: u64 = 9_000;
/// What a proxy needs beside its sessions.
const DESCRIPTORS_ASIDE: u64 = 500;
/// Open to Chromium at a time: one session, and some that are warm.
const CHROMIUM_SOCKETS: u64 = 8;

pub(super) struct Scene {
    stage: Stage,
    pub(super) door: Door,
    browser: Browser,
    fronts: Vec<Front>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Door {
    Plain,
    Tls,
}

/// What stands in front of the browser.
pub(super) struct Front {
    pub(super) name: &'static str,
    pub(super) plain: SocketAddr,
    pub(super) tls: SocketAddr,
    /// With the query that shows whose session it is, where somebody asks: one for each customer.
    pub(super) paths: [String; 2],
    pub(super) pids: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Customer {
    One = 0,
    Other = 1,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of one proxy, by its descriptors.
    pub(super) sessions: u64,
    /// That the gateway may open to the browser.
    pub(super) browser_sockets: u64,
}

impl Scene {
    pub(super) async fn set(args: &Args, part: Part, door: Door) -> Result<Self> {
        let mut stage = Stage::new()?;
        stage.write_certificate()?;
        let sessions = sessions_by_descriptors();
        let (browser, browser_sockets) = match args.behind(part) {
            Behind::Chromium => (Browser::chromium(&mut stage, &args.chromium).await?, CHROMIUM_SOCKETS),
            Behind::Fake => (Browser::fake(&mut stage).await?, sessions),
        };
        let limits = Limits { sessions, browser_sockets };
        let program = args.gateway.as_deref().context("the gateway's program was looked for before")?;
        let gateway = gateway::start(&mut stage, &browser, limits, program, args.store.as_deref()).await?;
        let mut fronts = vec![gateway];
        for rival in &args.against {
            fronts.push(match rival {
                Rival::Haproxy => haproxy::start(&mut stage, &browser, limits).await?,
                Rival::Nginx => nginx::start(&mut stage, &browser, limits).await?,
            });
        }
        Ok(Self { stage, door, browser, fronts })
    }

    /// The browser alone, then what stands in front of it.
    pub(super) fn targets(&self, timeout: std::time::Duration) -> MeasureArgs {
        let targets = self.urls(Customer::One);
        let trust = match self.door {
            Door::Plain => Trust::Nobody,
            Door::Tls => Trust::Ca(self.stage.path("cert.pem")),
        };
        MeasureArgs::new(targets, trust, timeout)
    }

    /// NAME=URL of each target.
    pub(super) fn urls(&self, customer: Customer) -> Vec<String> {
        let direct = format!("{DIRECT}=http://{}", self.browser.address);
        let fronts = self.fronts.iter().map(|front| {
            let path = &front.paths[customer as usize];
            match self.door {
                Door::Plain => format!("{}=ws://{}{path}", front.name, front.plain),
                Door::Tls => format!("{}=wss://{}{path}", front.name, front.tls),
            }
        });
        std::iter::once(direct).chain(fronts).collect()
    }

    pub(super) fn pids(&self) -> PidArgs {
        let all = |front: &Front| front.pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        PidArgs { pids: self.fronts.iter().map(|front| format!("{}={}", front.name, all(front))).collect() }
    }

    /// Adds what the programs said last.
    pub(super) fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        anyhow!("{error:#}\n\nthe last words of what was started:\n\n{}", self.stage.logs())
    }
}

impl Door {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "TLS",
        }
    }
}

/// A session takes three of the gateway's descriptors at most, and two of a proxy's.
fn sessions_by_descriptors() -> u64 {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (descriptors.saturating_sub(DESCRIPTORS_ASIDE) / 2).min(SESSIONS_MAX)
}

/// What was compared, in the programs' own words; and the processor.
pub(super) fn versions(args: &Args) -> Result<Vec<String>> {
    let mut versions = Vec::new();
    if let Some(gateway) = &args.gateway {
        versions.push(version(gateway, "--version")?);
    }
    for rival in &args.against {
        versions.push(version(rival.program(), "-v")?);
    }
    if args.only.iter().any(|part| args.behind(*part) == Behind::Chromium) {
        versions.push(version(&args.chromium, "--version")?);
    }
    let processor = fs::read_to_string("/proc/cpuinfo")?;
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    versions.extend(model.map(|(_, model)| model.trim().to_owned()));
    Ok(versions)
}
