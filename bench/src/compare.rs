//! Direct, HAProxy, nginx and the gateway side by side, in front of one browser: starts all of them, measures, and
//! says what was aimed at and what came of it.

mod goals;
mod parts;
mod report;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::scene::{Behind, Door, Scene, SceneArgs, Stage};
use crate::target::Mistakes;
use crate::{duration, script};

pub(crate) use report::Report;
use report::Section;

/// Compares the gateway with no proxy, HAProxy and nginx, each with one thread in front of the same browser.
///
/// Everything is started for it, on 127.0.0.1 at free ports, anew for each table, and is gone afterwards.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    scene: SceneArgs,
    /// What to measure, comma-separated; everything but long-hold without it.
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<Part>,
    /// With TLS, without it, or both one after the other.
    #[arg(long, value_name = "DOORS", value_delimiter = ',', default_value = "plain,tls")]
    doors: Vec<Door>,
    /// What stands behind the proxies; without it Chromium or the stand-in, whichever tells more about the part.
    #[arg(long)]
    browser: Option<Behind>,
    /// Sessions for each target of connect.
    #[arg(long, value_name = "N", default_value = "200")]
    count: NonZeroU32,
    /// Commands for each target of roundtrip; clients has four times as many.
    #[arg(long, value_name = "N", default_value = "20000")]
    messages: NonZeroU32,
    /// Messages of each size for each target of throughput.
    #[arg(long, value_name = "N", default_value = "20")]
    large: NonZeroU32,
    /// Sessions for each target of script.
    #[arg(long, value_name = "N", default_value = "50")]
    scripts: NonZeroU32,
    /// The directory whose node_modules has playwright-core.
    #[arg(long, value_name = "DIRECTORY", default_value = "tests/clients", overrides_with = "playwright")]
    playwright: PathBuf,
    /// Sessions for each target of hold.
    #[arg(long, value_name = "N", default_value = "1000")]
    sessions: NonZeroU32,
    /// How long long-hold holds its 4,000 sessions.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    hold_for: Duration,
    /// Print one JSON document instead of Markdown.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the percentiles of each table into a file of this directory.
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// TCP connect to first CDP reply.
    Connect,
    /// One command of 100 bytes and its reply.
    Roundtrip,
    /// 16 clients at once, commands of 1 KB.
    Clients,
    /// Replies and requests of 1, 5 and 50 MB.
    Throughput,
    /// 500 connects at once, over and over, beside another customer.
    Storm,
    /// Playwright: connectOverCDP, a new page, loaded.
    Script,
    /// Memory of an idle session.
    Hold,
    /// 4,000 sessions for ten minutes; only where it is asked for.
    LongHold,
}

impl Part {
    const DEFAULT: [Self; 7] = [
        Self::Connect,
        Self::Roundtrip,
        Self::Clients,
        Self::Throughput,
        Self::Storm,
        Self::Script,
        Self::Hold,
    ];
}

/// Measures until done, or until SIGINT or SIGTERM; what was started ends either way, and what was measured is shown.
pub(crate) async fn run(mut args: Args) -> Result<Report> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    args.complete()?;
    let mut report = Report::new(args.scene.versions(&args.all_behind())?);
    tokio::select! {
        () = measure(&args, &mut report) => {}
        _ = term.recv() => report.fail("stopped by SIGTERM"),
        _ = int.recv() => report.fail("stopped by SIGINT"),
    }
    Ok(report)
}

/// A part that fails is no reason to lose the others.
async fn measure(args: &Args, report: &mut Report) {
    for &part in &args.only {
        for &door in &args.doors {
            match section(args, part, door).await {
                Ok(section) => report.add(section),
                Err(error) => report.fail(&format!("{}, {}: {error:#}", part.name(), door.name())),
            }
        }
    }
}

async fn section(args: &Args, part: Part, door: Door) -> Result<Section> {
    let (behind, cast) = (args.behind(part), args.scene.cast());
    let scene = Scene::set(&args.scene, Stage::new()?, behind, cast, door).await?;
    parts::measure(args, part, &scene).await.map_err(|error| scene.explain(&error))
}

impl Args {
    /// Fills in what depends on where this program is, and reports all that is missing at once.
    fn complete(&mut self) -> Result<()> {
        if self.only.is_empty() {
            self.only = Part::DEFAULT.to_vec();
            // The stand-in renders no page.
            let renders = self.behind(Part::Script) == Behind::Chromium;
            self.only.retain(|&part| part != Part::Script || renders);
        }
        let mut mistakes = self.scene.complete(&self.all_behind())?;
        if self.only.contains(&Part::Script) && self.behind(Part::Script) == Behind::Fake {
            mistakes.push("--only script: the stand-in renders no page; leave --browser fake out".to_owned());
        }
        if self.only.contains(&Part::Script) {
            mistakes.extend(script::missing(&self.playwright));
        }
        if let Some(plots) = &self.plots
            && let Err(error) = std::fs::create_dir_all(plots)
        {
            mistakes.push(format!("--plots {}: {error}", plots.display()));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Mistakes::of(mistakes).into()) }
    }

    fn all_behind(&self) -> Vec<Behind> {
        self.only.iter().map(|&part| self.behind(part)).collect()
    }

    /// The real browser where a script's time is the question; the stand-in where it would hide the proxies.
    fn behind(&self, part: Part) -> Behind {
        self.browser.unwrap_or(match part {
            Part::Connect | Part::Roundtrip | Part::Script => Behind::Chromium,
            Part::Clients | Part::Throughput | Part::Storm | Part::Hold | Part::LongHold => Behind::Fake,
        })
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Roundtrip => "roundtrip",
            Self::Clients => "clients",
            Self::Throughput => "throughput",
            Self::Storm => "storm",
            Self::Script => "script",
            Self::Hold => "hold",
            Self::LongHold => "long-hold",
        }
    }
}
