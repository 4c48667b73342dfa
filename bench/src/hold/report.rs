//! What holding many sessions showed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Args, Stand, Subject};
use crate::report::{Curve, Figures, Times, number, write_table};
use crate::target::DIRECT;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    few: u32,
    held_for_s: u64,
    pub(crate) lines: Vec<Line>,
}

/// One target.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) target: String,
    /// That were opened.
    pub(crate) sessions: usize,
    /// By cause.
    pub(crate) not_opened: BTreeMap<String, u64>,
    pub(crate) lost: BTreeMap<String, u64>,
    /// Where the server's processes were named.
    pub(crate) memory: Option<Memory>,
    with_few: Option<Figures>,
    with_many: Option<Figures>,
    /// What is added to direct's median with few sessions and with many; nothing without a target named `direct`, and a server
    /// with few.
    pub(crate) added: Option<(f64, f64)>,
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    times: Times,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Memory {
    with_few: u64,
    with_many: u64,
    /// After the sessions were held.
    later: u64,
    /// Bytes of one session more, right after they were opened.
    pub(crate) per_session: f64,
    per_session_later: f64,
}

impl Report {
    /// `few_at` are the servers that had few sessions, by the names of the targets.
    pub(super) fn new(args: &Args, subjects: Vec<Subject>, few_at: &[Subject]) -> Self {
        let many = named(DIRECT, &subjects).and_then(p50);
        let few = named(DIRECT, few_at).and_then(p50).or(many);
        let direct = few.zip(many);
        Self {
            few: args.few.get(),
            held_for_s: args.hold_for.as_secs(),
            lines: subjects.into_iter().map(|subject| subject.line(few_at, direct)).collect(),
        }
    }
}

fn named<'a>(name: &str, subjects: &'a [Subject]) -> Option<&'a Subject> {
    subjects.iter().find(|subject| subject.endpoint.name == name)
}

fn p50(subject: &Subject) -> Option<f64> {
    subject.times.figures().map(|figures| figures.p50_us)
}

impl Subject {
    fn line(mut self, few_at: &[Subject], direct: Option<(f64, f64)>) -> Line {
        let is_direct = self.endpoint.name == DIRECT;
        let with_few = named(&self.endpoint.name, few_at);
        let added = direct.filter(|_| !is_direct);
        let added = added.and_then(|(few, many)| Some((p50(with_few?)? - few, p50(&self)? - many)));
        if let Some(few) = with_few {
            for (ours, theirs) in [(&mut self.not_opened, &few.not_opened), (&mut self.lost, &few.lost)] {
                theirs.iter().for_each(|(cause, count)| *ours.entry(cause.clone()).or_default() += count);
            }
        }
        Line {
            sessions: self.many.sessions,
            memory: memory(&self.few, &self.many, self.later),
            with_few: with_few.and_then(|few| few.times.figures()),
            with_many: self.times.figures(),
            added,
            name: format!("{}, {} sessions", self.endpoint.name, self.many.sessions),
            target: self.endpoint.name,
            not_opened: self.not_opened,
            lost: self.lost,
            times: self.times,
        }
    }
}

/// Nothing where the memory was not read, or no session came on top of the few.
fn memory(few: &Stand, many: &Stand, later: Option<u64>) -> Option<Memory> {
    let (with_few, with_many, later) = (few.bytes?, many.bytes?, later?);
    let more = many.sessions.checked_sub(few.sessions).filter(|&more| more > 0)?;
    let each = |bytes: u64| (bytes as f64 - with_few as f64) / more as f64;
    Some(Memory { with_few, with_many, later, per_session: each(with_many), per_session_later: each(later) })
}

impl Line {
    fn memory_line(&self) -> Vec<String> {
        let mebibytes = |pick: fn(&Memory) -> u64| {
            number(self.memory.as_ref().map(|memory| pick(memory) as f64 / f64::from(1 << 20)), 1)
        };
        let kilobytes =
            |pick: fn(&Memory) -> f64| number(self.memory.as_ref().map(|memory| pick(memory) / 1e3), 1);
        vec![
            self.target.clone(),
            self.sessions.to_string(),
            self.not_opened.values().sum::<u64>().to_string(),
            self.lost.values().sum::<u64>().to_string(),
            mebibytes(|memory| memory.with_few),
            mebibytes(|memory| memory.with_many),
            kilobytes(|memory| memory.per_session),
            kilobytes(|memory| memory.per_session_later),
        ]
    }

    /// How many times as much is added with many sessions as with few.
    pub(crate) fn growth(&self) -> Option<f64> {
        self.added.filter(|(few, _)| *few > 0.0).map(|(few, many)| many / few)
    }

    fn talk_line(&self) -> Vec<String> {
        vec![
            self.target.clone(),
            number(self.with_few.map(|figures| figures.p50_us), 1),
            number(self.with_many.map(|figures| figures.p50_us), 1),
            number(self.added.map(|(few, _)| few), 1),
            number(self.added.map(|(_, many)| many), 1),
            number(self.growth(), 2),
        ]
    }
}

impl crate::report::Report for Report {
    const NAME: &'static str = "hold";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.lines.iter().map(|line| Curve { name: &line.name, times: &line.times }).collect()
    }

    fn failed(&self) -> u64 {
        self.lines.iter().flat_map(|line| line.not_opened.values().chain(line.lost.values())).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { few, held_for_s, .. } = self;
        writeln!(
            f,
            "sessions held for {held_for_s} s; memory of the server (Pss) with {few} and with all of them\n"
        )?;
        let header = ["target", "sessions", "not opened", "lost", "MiB, few", "MiB, all", "KB each", "later"];
        write_table(f, &header, self.lines.iter().map(Line::memory_line))?;
        if self.lines.iter().any(|line| line.with_many.is_some()) {
            let few = "few: of a server that has the few all along, asked in turns with this one";
            writeln!(f, "round trip beside them, p50, µs ({few}); × is what is added with all ÷ with few\n")?;
            let header = ["target", "few", "all", "added, few", "added, all", "×"];
            write_table(f, &header, self.lines.iter().map(Line::talk_line))?;
        }
        for line in &self.lines {
            for (what, causes) in [("NOT OPENED", &line.not_opened), ("LOST", &line.lost)] {
                for (cause, count) in causes {
                    writeln!(f, "- {what}: {count} of {}: {cause}", line.target)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand(sessions: usize, bytes: Option<u64>) -> Stand {
        Stand { sessions, bytes }
    }

    #[test]
    fn a_session_costs_what_comes_on_top_of_the_few() {
        let memory =
            memory(&stand(10, Some(1_000_000)), &stand(110, Some(1_500_000)), Some(900_000)).unwrap();
        assert_eq!((memory.per_session, memory.per_session_later), (5_000.0, -1_000.0));
    }

    #[test]
    fn without_more_sessions_or_without_a_process_there_is_no_figure() {
        assert_eq!(memory(&stand(10, Some(1)), &stand(10, Some(2)), Some(2)), None);
        assert_eq!(memory(&stand(10, None), &stand(20, Some(2)), Some(2)), None);
    }
}
