//! Each part: its measurement, with what it takes, and its goals.

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Args, Part, Section, goals};
use crate::report::{Measurement, Method, Report, draw};
use crate::scene::{Customer, Scene};
use crate::throughput::Direction;
use crate::{connect, hold, roundtrip, script, storm, throughput};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two sessions: time to warm the next browser.
const GAP: Duration = Duration::from_millis(20);
const WARM_UP: u32 = 10;
const SCRIPTS_BEFORE: u32 = 5;
const COMMAND_BYTES: u32 = 100;
const CLIENTS: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not 0");
const CLIENT_BYTES: u32 = 1_000;
const BATCH: NonZeroU32 = NonZeroU32::new(20).expect("20 is not 0");
const LARGE: [u32; 3] = [1_000_000, 5_000_000, 50_000_000];
const CONNECTS: NonZeroUsize = NonZeroUsize::new(500).expect("500 is not 0");
const STORM: Duration = Duration::from_secs(3);
const STORMS: NonZeroU32 = NonZeroU32::new(3).expect("3 is not 0");
const CALM_EVERY: Duration = Duration::from_millis(200);
const CALM_FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const QUIET: NonZeroU32 = NonZeroU32::new(10).expect("10 is not 0");
const AFTER_STORM: Duration = Duration::from_secs(1);
const FEW: NonZeroU32 = NonZeroU32::new(10).expect("10 is not 0");
const MANY: NonZeroU32 = NonZeroU32::new(4_000).expect("4000 is not 0");
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// Each time that the sessions were asked whether they live.
const BESIDE: u32 = 5_000;

pub(super) async fn measure(args: &Args, part: Part, scene: &Scene) -> Result<Section> {
    let (door, method) = (scene.door, Method::of_this_machine()?);
    match part {
        Part::Connect => {
            let report = connect::run(self::connect(args, scene)).await?;
            section(
                args,
                (part, method),
                scene,
                goals::of_connect(&report, door, args.scene.store.as_deref()),
                report,
            )
        }
        Part::Roundtrip => {
            let one = NonZeroUsize::MIN;
            let report = roundtrip::run(self::roundtrip(scene, args.messages, one, COMMAND_BYTES)).await?;
            section(args, (part, method), scene, goals::of_roundtrip(&report, door), report)
        }
        Part::Clients => {
            let count = args.messages.saturating_mul(NonZeroU32::new(4).expect("4 is not 0"));
            let report = roundtrip::run(self::roundtrip(scene, count, CLIENTS, CLIENT_BYTES)).await?;
            section(args, (part, method), scene, goals::of_clients(&report, door), report)
        }
        Part::Throughput => {
            let report = throughput::run(self::throughput(args, scene)).await?;
            section(args, (part, method), scene, goals::of_throughput(&report, door), report)
        }
        Part::Storm => {
            let report = storm::run(self::storm(scene)).await?;
            section(args, (part, method), scene, Vec::new(), report)
        }
        Part::Script => {
            let report = script::run(self::script(args, scene)).await?;
            section(args, (part, method), scene, goals::of_script(&report, door), report)
        }
        Part::Hold => {
            let report = hold::run(self::hold(scene, None, args.sessions, Duration::ZERO, 0)).await?;
            section(args, (part, method), scene, goals::of_hold(&report, door), report)
        }
        Part::LongHold => {
            let few = scene.twin(&args.scene, args.behind(part)).await?;
            let report = hold::run(self::hold(scene, Some(&few), MANY, args.hold_for, BESIDE)).await?;
            section(args, (part, method), scene, goals::of_long_hold(&report, door), report)
        }
    }
}

fn section(
    args: &Args,
    (part, method): (Part, Method),
    scene: &Scene,
    goals: Vec<goals::Goal>,
    report: impl Report,
) -> Result<Section> {
    let name = format!("{}, {}", part.name(), scene.door.name());
    if let Some(directory) = &args.plots
        && report.curves().iter().any(|curve| curve.times.len() > 0)
    {
        let file = directory.join(format!("{}-{}.svg", part.name(), scene.door.name().to_lowercase()));
        draw(&report.curves(), &file).with_context(|| format!("--plots {}", file.display()))?;
    }
    Section::new(name, &Measurement::new(method, report), goals)
}

fn connect(args: &Args, scene: &Scene) -> connect::Args {
    connect::Args { measure: scene.targets(TIMEOUT), count: args.count, gap: GAP, warmup: WARM_UP }
}

fn roundtrip(scene: &Scene, count: NonZeroU32, clients: NonZeroUsize, size: u32) -> roundtrip::Args {
    let (measure, pid) = (scene.targets(TIMEOUT), scene.pids());
    roundtrip::Args { measure, pid, size, count, batch: BATCH, clients, gap: Duration::ZERO }
}

fn throughput(args: &Args, scene: &Scene) -> throughput::Args {
    throughput::Args {
        measure: scene.targets(TIMEOUT),
        pid: scene.pids(),
        sizes: LARGE.to_vec(),
        directions: vec![Direction::Replies, Direction::Requests],
        count: args.large,
    }
}

/// The gateway is the only one that tells customers apart; the others show what a storm does without that.
fn storm(scene: &Scene) -> storm::Args {
    storm::Args {
        measure: scene.targets(TIMEOUT),
        calm: scene.urls(Customer::Other),
        calm_from: Some(CALM_FROM),
        connects: CONNECTS,
        storm_for: STORM,
        nice: 0,
        rounds: STORMS,
        calm_every: CALM_EVERY,
        quiet: QUIET,
        gap: AFTER_STORM,
    }
}

fn script(args: &Args, scene: &Scene) -> script::Args {
    script::Args {
        measure: scene.targets(TIMEOUT),
        playwright: args.playwright.clone(),
        count: args.scripts,
        gap: GAP,
        warmup: SCRIPTS_BEFORE,
    }
}

/// Where there is a twin of the scene, it has few sessions all along.
fn hold(
    scene: &Scene,
    twin: Option<&Scene>,
    sessions: NonZeroU32,
    hold_for: Duration,
    messages: u32,
) -> hold::Args {
    hold::Args {
        measure: scene.targets(TIMEOUT),
        pid: scene.pids(),
        few_at: twin.map(|twin| twin.urls(Customer::One)).unwrap_or_default(),
        sessions,
        few: FEW,
        hold_for,
        check_every: CHECK_EVERY,
        messages,
        size: COMMAND_BYTES,
    }
}
