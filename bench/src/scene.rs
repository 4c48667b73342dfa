//! One browser and what stands in front of it: started, on 127.0.0.1 at free ports, and gone afterwards.

mod browser;
mod gateway;
mod haproxy;
mod nginx;
mod stage;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::process::PidArgs;
use crate::target::{DIRECT, MeasureArgs, Trust};

pub(crate) use browser::Browser;
pub(crate) use stage::{Stage, free_address, version};

/// More than any part opens with one proxy.
const SESSIONS_MAX: u64 = 9_000;
/// What a proxy needs beside its sessions.
const DESCRIPTORS_ASIDE: u64 = 500;
/// Open to Chromium at a time: one session, and some that are warm.
const CHROMIUM_SOCKETS: u64 = 8;

pub(crate) struct Scene {
    stage: Stage,
    pub(crate) door: Door,
    browser: Browser,
    fronts: Vec<Front>,
}

/// Which programs are started.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SceneArgs {
    /// Other proxies to start.
    #[arg(long, value_delimiter = ',', default_value = "haproxy,nginx")]
    pub(crate) against: Vec<Rival>,
    /// The gateway's ledger: sqlite:FILE or another store of its own; without it a file that is removed afterwards.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// The gateway's program; without it the one beside this program.
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
    /// The browser's real program, no wrapper script.
    #[arg(long, value_name = "FILE", default_value = "/usr/lib/chromium/chromium-headless-shell")]
    chromium: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Behind {
    /// A warm headless-shell.
    Chromium,
    /// The stand-in browser, which answers at once.
    Fake,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Rival {
    Haproxy,
    Nginx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxy {
    Gateway,
    Haproxy,
    Nginx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Door {
    Plain,
    Tls,
}

/// What stands in front of the browser.
pub(crate) struct Front {
    pub(crate) name: &'static str,
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    /// With the query that shows whose session it is, where somebody asks: one for each customer.
    pub(crate) paths: [String; 2],
    pub(crate) pids: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Customer {
    One = 0,
    Other = 1,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Of one proxy, by its descriptors.
    pub(crate) sessions: u64,
    /// That the gateway may open to the browser.
    pub(crate) browser_sockets: u64,
}

impl SceneArgs {
    /// Fills in what depends on where this program is, and names all that is missing.
    pub(crate) fn complete(&mut self, behind: &[Behind]) -> Result<Vec<String>> {
        let gateway = match self.gateway.take() {
            Some(gateway) => gateway,
            None => std::env::current_exe()?.with_file_name("ufbrowsers"),
        };
        let mut mistakes = Vec::new();
        if !gateway.is_file() {
            let build = "build it with `cargo build --release`, or give --gateway";
            mistakes.push(format!("{} is not there: {build}", gateway.display()));
        }
        self.gateway = Some(gateway);
        if behind.contains(&Behind::Chromium) && !self.chromium.is_file() {
            let install = "apt-get install chromium-headless-shell, or give --chromium";
            mistakes.push(format!("{} is not there: {install}", self.chromium.display()));
        }
        for program in self.against.iter().map(|rival| rival.program()) {
            if version(program, "-v").is_err() {
                mistakes
                    .push(format!("{program} is not there: apt-get install {program}, or give --against"));
            }
        }
        Ok(mistakes)
    }

    /// The gateway, then the others.
    pub(crate) fn cast(&self) -> impl Iterator<Item = Proxy> {
        std::iter::once(Proxy::Gateway).chain(self.against.iter().map(|rival| match rival {
            Rival::Haproxy => Proxy::Haproxy,
            Rival::Nginx => Proxy::Nginx,
        }))
    }

    fn gateway(&self) -> Result<&Path> {
        self.gateway.as_deref().context("the gateway's program was looked for before")
    }

    /// What is compared, in the programs' own words; and the processor.
    pub(crate) fn versions(&self, behind: &[Behind]) -> Result<Vec<String>> {
        let mut versions = vec![version(self.gateway()?, "--version")?];
        for rival in &self.against {
            versions.push(version(rival.program(), "-v")?);
        }
        if behind.contains(&Behind::Chromium) {
            versions.push(version(&self.chromium, "--version")?);
        }
        let processor = fs::read_to_string("/proc/cpuinfo")?;
        let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        versions.extend(model.map(|(_, model)| model.trim().to_owned()));
        Ok(versions)
    }
}

impl Rival {
    fn program(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }
}

impl Proxy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }
}

impl Scene {
    /// Starts a browser, and each of `cast` in front of it.
    pub(crate) async fn set(
        args: &SceneArgs,
        stage: Stage,
        behind: Behind,
        cast: impl IntoIterator<Item = Proxy>,
        door: Door,
    ) -> Result<Self> {
        stage.write_certificate()?;
        Self::begin(args, stage, behind, cast, door).await
    }

    /// All of it once more, with the same certificate. A Redis is shared; a file is not.
    pub(crate) async fn twin(&self, args: &SceneArgs, behind: Behind) -> Result<Self> {
        let mut args = args.clone();
        args.store = args.store.filter(|url| !url.starts_with("sqlite:"));
        let stage = Stage::new()?;
        stage.copy_certificate(&self.stage)?;
        let cast = args.cast().collect::<Vec<_>>();
        Self::begin(&args, stage, behind, cast, self.door).await
    }

    async fn begin(
        args: &SceneArgs,
        mut stage: Stage,
        behind: Behind,
        cast: impl IntoIterator<Item = Proxy>,
        door: Door,
    ) -> Result<Self> {
        let sessions = sessions_by_descriptors();
        let (browser, browser_sockets) = match behind {
            Behind::Chromium => (Browser::chromium(&mut stage, &args.chromium).await?, CHROMIUM_SOCKETS),
            Behind::Fake => (Browser::fake(&mut stage).await?, sessions),
        };
        let limits = Limits { sessions, browser_sockets };
        let mut fronts = Vec::new();
        for proxy in cast {
            fronts.push(match proxy {
                Proxy::Gateway => gateway::start(&mut stage, &browser, limits, args).await?,
                Proxy::Haproxy => haproxy::start(&mut stage, &browser, limits).await?,
                Proxy::Nginx => nginx::start(&mut stage, &browser, limits).await?,
            });
        }
        Ok(Self { stage, door, browser, fronts })
    }

    /// Of what stands in front of the browser.
    pub(crate) fn first_pid(&self) -> Option<u32> {
        self.fronts.first()?.pids.first().copied()
    }

    /// The browser alone, then what stands in front of it.
    pub(crate) fn targets(&self, timeout: Duration) -> MeasureArgs {
        let targets = self.urls(Customer::One);
        let trust = match self.door {
            Door::Plain => Trust::Nobody,
            Door::Tls => Trust::Ca(self.stage.path("cert.pem")),
        };
        MeasureArgs::new(targets, trust, timeout)
    }

    /// NAME=URL of each target.
    pub(crate) fn urls(&self, customer: Customer) -> Vec<String> {
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

    pub(crate) fn pids(&self) -> PidArgs {
        let all = |front: &Front| front.pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        PidArgs { pids: self.fronts.iter().map(|front| format!("{}={}", front.name, all(front))).collect() }
    }

    /// Adds what the programs said last.
    pub(crate) fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        anyhow!("{error:#}\n\nthe last words of what was started:\n\n{}", self.stage.logs())
    }
}

impl Door {
    pub(crate) fn name(self) -> &'static str {
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
