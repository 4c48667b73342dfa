//! What is aimed at, and what came of it.

use std::fmt;

use serde::Serialize;

use crate::report::{Figures, Row, number};
use crate::scene::Door;
use crate::target::DIRECT;
use crate::throughput::Direction;
use crate::{connect, hold, roundtrip, script, throughput};

const GATEWAY: &str = "gateway";
const NGINX: &str = "nginx";
/// The size of the replies that rates are compared by.
const REPLY_BYTES: u32 = 5_000_000;

/// One figure and its bound.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Goal {
    what: String,
    bound: Bound,
    /// Nothing where what it takes was not measured.
    found: Option<f64>,
    met: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn new(what: impl Into<String>, bound: Bound, found: Option<f64>) -> Self {
        let met = found.map(|found| match bound {
            Bound::AtMost(most) => found <= most,
            Bound::AtLeast(least) => found >= least,
        });
        Self { what: what.into(), bound, found, met }
    }

    /// What it is, the bound, the figure, the verdict.
    pub(super) fn line(&self) -> Vec<String> {
        let verdict = match self.met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "not measured",
        };
        vec![self.what.clone(), self.bound.to_string(), number(self.found, 2), verdict.to_owned()]
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most:.2}"),
            Self::AtLeast(least) => write!(f, "≥ {least:.2}"),
        }
    }
}

/// Without TLS beside the browser itself, with it beside nginx: nobody connects to a browser by TLS.
pub(super) fn of_connect(report: &connect::Report, door: Door, store: Option<&str>) -> Vec<Goal> {
    let p50 = |f: Figures| f.p50_us;
    let p99 = |f: Figures| f.p99_us;
    match door {
        Door::Plain => {
            // A store in another process takes a round trip of its own.
            let most = if store.is_some_and(|url| url.starts_with("redis")) { 0.9 } else { 0.7 };
            let to_direct = |pick| ratio(&report.rows, pick, |rows, pick| figure(rows, DIRECT, pick));
            vec![
                Goal::new("first reply ÷ direct, plain, p50", Bound::AtMost(most), to_direct(p50)),
                Goal::new("first reply ÷ direct, plain, p99", Bound::AtMost(1.0), to_direct(p99)),
            ]
        }
        Door::Tls => {
            let to_nginx = ratio(&report.rows, p50, |rows, pick| figure(rows, NGINX, pick));
            vec![Goal::new("first reply ÷ nginx, TLS, p50", Bound::AtMost(0.7), to_nginx)]
        }
    }
}

/// Beside the better of the two other proxies.
pub(super) fn of_roundtrip(report: &roundtrip::Report, door: Door) -> Vec<Goal> {
    let added = |ours: bool| {
        let chosen = report.added.iter().filter(move |added| (added.target == GATEWAY) == ours);
        chosen.map(|added| added.added_p50_us).reduce(f64::min)
    };
    let added =
        added(true).zip(added(false).filter(|theirs| *theirs > 0.0)).map(|(ours, theirs)| ours / theirs);
    let tail = ratio(
        &report.rows,
        |f| f.p999_us,
        |rows, pick| {
            let others = rows.iter().filter(|row| ![GATEWAY, DIRECT].contains(&row.target.as_str()));
            others.filter_map(|row| row.figures.map(pick)).reduce(f64::min)
        },
    );
    let door = door.name();
    vec![
        Goal::new(format!("added round trip ÷ the better proxy's, {door}, p50"), Bound::AtMost(0.7), added),
        Goal::new(format!("round trip ÷ the better proxy's, {door}, p99.9"), Bound::AtMost(1.0), tail),
    ]
}

pub(super) fn of_clients(report: &roundtrip::Report, door: Door) -> Vec<Goal> {
    let rate = |target: &str| report.rates.iter().find(|r| r.target == target).map(|r| r.commands_per_s);
    let found = rate(GATEWAY).zip(rate(NGINX)).map(|(ours, theirs)| ours / theirs);
    vec![Goal::new(format!("16 clients, commands/s ÷ nginx's, {}", door.name()), Bound::AtLeast(1.3), found)]
}

pub(super) fn of_throughput(report: &throughput::Report, door: Door) -> Vec<Goal> {
    let replies = || {
        let lines = report.lines.iter();
        lines.filter(|line| line.direction == Direction::Replies && line.size_bytes == REPLY_BYTES)
    };
    let ours = replies().find(|line| line.target == GATEWAY).map(|line| line.mb_per_s);
    let others = replies().filter(|line| ![GATEWAY, DIRECT].contains(&line.target.as_str()));
    let theirs = others.map(|line| line.mb_per_s).reduce(f64::max);
    let least = match door {
        Door::Plain => 1.0,
        Door::Tls => 1.2,
    };
    let what = format!("replies of 5 MB, MB/s ÷ the better proxy's, {}", door.name());
    vec![Goal::new(what, Bound::AtLeast(least), ours.zip(theirs).map(|(ours, theirs)| ours / theirs))]
}

/// Nobody connects to a browser by TLS, so with it there is nothing to compare with.
pub(super) fn of_script(report: &script::Report, door: Door) -> Vec<Goal> {
    let found = ratio(&report.rows, |f| f.p50_us, |rows, pick| figure(rows, DIRECT, pick));
    match door {
        Door::Plain => {
            vec![Goal::new("Playwright until loaded ÷ direct, plain, p50", Bound::AtMost(1.0), found)]
        }
        Door::Tls => Vec::new(),
    }
}

pub(super) fn of_hold(report: &hold::Report, door: Door) -> Vec<Goal> {
    let each = |ours: bool| {
        let chosen = report.lines.iter().filter(move |line| (line.target == GATEWAY) == ours);
        chosen.filter_map(|line| line.memory.map(|memory| memory.per_session)).reduce(f64::min)
    };
    let found = each(true).zip(each(false)).map(|(ours, theirs)| ours / theirs);
    let what = format!("memory of an idle session ÷ the better proxy's, {}", door.name());
    vec![Goal::new(what, Bound::AtMost(1.0), found)]
}

pub(super) fn of_long_hold(report: &hold::Report, door: Door) -> Vec<Goal> {
    let ours = report.lines.iter().find(|line| line.target == GATEWAY);
    let missing = |line: &hold::Line| line.not_opened.values().chain(line.lost.values()).sum::<u64>();
    let missing = ours.map(|line| missing(line) as f64);
    let growth = ours.and_then(hold::Line::growth);
    let (sessions, door) = (ours.map_or(0, |line| line.sessions), door.name());
    vec![
        Goal::new(
            format!("{sessions} sessions held, lost or not opened, {door}"),
            Bound::AtMost(0.0),
            missing,
        ),
        Goal::new(format!("added round trip with them ÷ with few, {door}"), Bound::AtMost(1.2), growth),
    ]
}

type Pick = fn(Figures) -> f64;

/// The gateway's figure divided by the one that `other` chooses.
fn ratio(rows: &[Row], pick: Pick, other: impl Fn(&[Row], Pick) -> Option<f64>) -> Option<f64> {
    Some(figure(rows, GATEWAY, pick)? / other(rows, pick)?)
}

fn figure(rows: &[Row], target: &str, pick: Pick) -> Option<f64> {
    rows.iter().find(|row| row.target == target)?.figures.map(pick)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Measured, Times, rows};
    use std::time::Duration;

    fn measured(medians: &[(&str, u64)]) -> Vec<Row> {
        rows(medians.iter().map(|&(name, us)| {
            let mut times = Times::new();
            times.record(Duration::from_micros(us));
            Measured { target: name.to_owned(), product: None, tls: None, times }
        }))
    }

    fn about(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < expected * 0.01)
    }

    #[test]
    fn a_goal_is_met_missed_or_not_measured() {
        let verdict = |bound, found| Goal::new("x", bound, found).line()[3].clone();
        assert_eq!(verdict(Bound::AtMost(0.7), Some(0.7)), "met");
        assert_eq!(verdict(Bound::AtMost(0.7), Some(0.71)), "**missed**");
        assert_eq!(verdict(Bound::AtLeast(1.3), Some(1.2)), "**missed**");
        assert_eq!(verdict(Bound::AtLeast(1.3), None), "not measured");
    }

    #[test]
    fn the_gateway_is_compared_with_the_one_that_is_asked_for() {
        let rows = measured(&[("direct", 200), ("gateway", 100), ("nginx", 400), ("haproxy", 50)]);
        let p50: Pick = |f| f.p50_us;
        assert!(about(ratio(&rows, p50, |rows, pick| figure(rows, DIRECT, pick)), 0.5));
        assert!(about(ratio(&rows, p50, |rows, pick| figure(rows, NGINX, pick)), 0.25));
        assert_eq!(ratio(&rows[..1], p50, |rows, pick| figure(rows, DIRECT, pick)), None);
    }
}
