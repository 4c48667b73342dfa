//! What a storm did.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Args, Subject, Tally};
use crate::report::{Curve, Figures, Times, number, write_table};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    connects: usize,
    rounds: u32,
    storm_for_ms: u128,
    calm_every_ms: u128,
    pub(crate) lines: Vec<Line>,
}

/// One target.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) target: String,
    storm: Side,
    /// Successful sessions a second.
    per_s: f64,
    pub(crate) calm: Option<Beside>,
}

/// The calm customer.
#[derive(Debug, Serialize)]
pub(crate) struct Beside {
    quiet: Side,
    stormy: Side,
    /// Stormy divided by quiet: what the other customer's storm costs this one.
    ratio_p50: Option<f64>,
    ratio_p99: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Side {
    succeeded: u64,
    refused: BTreeMap<String, u64>,
    failed: BTreeMap<String, u64>,
    figures: Option<Figures>,
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    times: Times,
}

impl Report {
    pub(super) fn new(args: &Args, subjects: Vec<Subject>) -> Self {
        Self {
            connects: args.connects.get(),
            rounds: args.rounds.get(),
            storm_for_ms: args.storm_for.as_millis(),
            calm_every_ms: args.calm_every.as_millis(),
            lines: subjects.into_iter().map(Line::new).collect(),
        }
    }
}

impl Line {
    fn new(subject: Subject) -> Self {
        let target = subject.endpoint.name;
        let storm = Side::new(format!("{target}, storm"), subject.storm);
        let calm = subject.calm.map(|calm| {
            Beside::new(
                Side::new(format!("{target}, calm alone"), calm.quiet),
                Side::new(format!("{target}, calm beside the storm"), calm.stormy),
            )
        });
        let per_s = storm.succeeded as f64 / subject.busy.as_secs_f64();
        Self { target, storm, per_s, calm }
    }

    fn sides(&self) -> impl Iterator<Item = &Side> {
        let calm = self.calm.iter().flat_map(|calm| [&calm.quiet, &calm.stormy]);
        std::iter::once(&self.storm).chain(calm)
    }

    fn storm_line(&self) -> Vec<String> {
        let Side { succeeded, figures, .. } = &self.storm;
        let milliseconds =
            |pick: fn(&Figures) -> f64| number(figures.as_ref().map(|figures| pick(figures) / 1e3), 1);
        vec![
            self.target.clone(),
            succeeded.to_string(),
            self.storm.refused.values().sum::<u64>().to_string(),
            self.storm.failed.values().sum::<u64>().to_string(),
            number(Some(self.per_s), 0),
            milliseconds(|figures| figures.p50_us),
            milliseconds(|figures| figures.p99_us),
            milliseconds(|figures| figures.max_us),
        ]
    }

    fn calm_line(&self) -> Option<Vec<String>> {
        let Beside { quiet, stormy, ratio_p50, ratio_p99 } = self.calm.as_ref()?;
        let not_served = |side: &Side| side.refused.values().chain(side.failed.values()).sum::<u64>();
        let milliseconds = |side: &Side, pick: fn(&Figures) -> f64| {
            number(side.figures.as_ref().map(|figures| pick(figures) / 1e3), 2)
        };
        Some(vec![
            self.target.clone(),
            quiet.succeeded.to_string(),
            milliseconds(quiet, |figures| figures.p50_us),
            milliseconds(quiet, |figures| figures.p90_us),
            milliseconds(quiet, |figures| figures.p99_us),
            stormy.succeeded.to_string(),
            not_served(stormy).to_string(),
            milliseconds(stormy, |figures| figures.p50_us),
            milliseconds(stormy, |figures| figures.p90_us),
            milliseconds(stormy, |figures| figures.p99_us),
            number(*ratio_p50, 1),
            number(*ratio_p99, 1),
        ])
    }
}

impl Beside {
    fn new(quiet: Side, stormy: Side) -> Self {
        let ratio = |pick: fn(&Figures) -> f64| {
            let (stormy, quiet) = (stormy.figures.as_ref()?, quiet.figures.as_ref()?);
            Some(pick(stormy) / pick(quiet))
        };
        let (ratio_p50, ratio_p99) = (ratio(|figures| figures.p50_us), ratio(|figures| figures.p99_us));
        Self { quiet, stormy, ratio_p50, ratio_p99 }
    }
}

impl Side {
    fn new(name: String, Tally { times, refused, failed }: Tally) -> Self {
        Self { succeeded: times.len(), refused, failed, figures: times.figures(), name, times }
    }
}

impl crate::report::Report for Report {
    const NAME: &'static str = "storm";

    fn curves(&self) -> Vec<Curve<'_>> {
        let sides = self.lines.iter().flat_map(Line::sides);
        sides.map(|side| Curve { name: &side.name, times: &side.times }).collect()
    }

    /// A storm may be refused, in good order; a calm customer may not.
    fn failed(&self) -> u64 {
        let calm = |line: &Line| {
            let refused = line.calm.iter().flat_map(|calm| [&calm.quiet.refused, &calm.stormy.refused]);
            refused.flat_map(BTreeMap::values).sum::<u64>()
        };
        let failed = |side: &Side| side.failed.values().sum::<u64>();
        self.lines.iter().map(|line| calm(line) + line.sides().map(failed).sum::<u64>()).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connects, rounds, storm_for_ms, calm_every_ms, .. } = self;
        writeln!(
            f,
            "{rounds} storms of {connects} connects at once, renewed for {storm_for_ms} ms; to the first reply, ms\n"
        )?;
        let header = ["target", "succeeded", "refused", "failed", "per s", "p50", "p99", "max"];
        write_table(f, &header, self.lines.iter().map(Line::storm_line))?;
        let calm: Vec<_> = self.lines.iter().filter_map(Line::calm_line).collect();
        if !calm.is_empty() {
            writeln!(
                f,
                "another customer, a session each {calm_every_ms} ms, alone and beside the storm, ms; × is beside ÷ alone\n"
            )?;
            let header = [
                "target",
                "n, alone",
                "p50",
                "p90",
                "p99",
                "n, beside",
                "not served",
                "p50",
                "p90",
                "p99",
                "× p50",
                "× p99",
            ];
            write_table(f, &header, calm)?;
        }
        for side in self.lines.iter().flat_map(Line::sides) {
            for (what, causes) in [("refused", &side.refused), ("FAILED", &side.failed)] {
                for (cause, count) in causes {
                    writeln!(f, "- {}: {what} {count}: {cause}", side.name)?;
                }
            }
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn side(millis: &[u64]) -> Side {
        let mut tally = Tally::default();
        millis.iter().for_each(|&ms| tally.note(Ok(Duration::from_millis(ms))));
        Side::new(String::new(), tally)
    }

    #[test]
    fn a_storm_costs_a_calm_customer_what_it_waits_longer() {
        let beside = Beside::new(side(&[10, 10, 20]), side(&[20, 30, 60]));
        assert!((beside.ratio_p50.unwrap() - 3.0).abs() < 0.01);
        assert!((beside.ratio_p99.unwrap() - 3.0).abs() < 0.01);
        assert_eq!(Beside::new(side(&[]), side(&[1])).ratio_p50, None);
    }

    #[test]
    fn a_refused_storm_is_no_failure_and_a_refused_calm_customer_is_one() {
        let refused = || BTreeMap::from([("HTTP 429".to_owned(), 3)]);
        let line = |storm, calm| Line { target: "a".to_owned(), storm, per_s: 0.0, calm };
        let report =
            |line| Report { connects: 1, rounds: 1, storm_for_ms: 0, calm_every_ms: 0, lines: vec![line] };
        let stormy = Side { refused: refused(), ..side(&[1]) };
        assert_eq!(crate::report::Report::failed(&report(line(stormy, None))), 0);
        let calm = Beside::new(side(&[1]), Side { refused: refused(), ..side(&[1]) });
        assert_eq!(crate::report::Report::failed(&report(line(side(&[1]), Some(calm)))), 3);
    }
}
