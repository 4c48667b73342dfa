//! The comparison as one page of Markdown, or one JSON document.

use std::fmt;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::goals::Goal;
use crate::report::{self, Curve, Measurement, write_table};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    versions: Vec<String>,
    sections: Vec<Section>,
    /// What could not be measured, and why.
    failures: Vec<String>,
}

/// One measurement.
#[derive(Debug, Serialize)]
pub(super) struct Section {
    name: String,
    report: Value,
    goals: Vec<Goal>,
    failed: u64,
    #[serde(skip)]
    text: String,
}

impl Section {
    pub(super) fn new(
        name: String,
        measured: &Measurement<impl report::Report>,
        goals: Vec<Goal>,
    ) -> Result<Self> {
        let (failed, text) = (measured.report.failed(), measured.to_string());
        Ok(Self { name, report: serde_json::to_value(measured)?, goals, failed, text })
    }
}

impl Report {
    pub(super) fn new(versions: Vec<String>) -> Self {
        Self { versions, sections: Vec::new(), failures: Vec::new() }
    }

    pub(super) fn add(&mut self, section: Section) {
        self.sections.push(section);
    }

    pub(super) fn fail(&mut self, why: &str) {
        self.failures.push(why.to_owned());
    }
}

impl report::Report for Report {
    const NAME: &'static str = "compare";

    /// Each section has a plot of its own.
    fn curves(&self) -> Vec<Curve<'_>> {
        Vec::new()
    }

    /// A goal that is missed is no failure: the figures are right.
    fn failed(&self) -> u64 {
        self.sections.iter().map(|section| section.failed).sum::<u64>() + self.failures.len() as u64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## Comparison\n")?;
        for version in &self.versions {
            writeln!(f, "- {version}")?;
        }
        writeln!(f)?;
        for section in &self.sections {
            writeln!(f, "### {}\n\n{}", section.name, section.text.trim_end())?;
            writeln!(f)?;
        }
        for failure in &self.failures {
            writeln!(f, "**FAILED** {failure}\n")?;
        }
        let goals: Vec<_> = self.sections.iter().flat_map(|section| &section.goals).collect();
        if goals.is_empty() {
            return Ok(());
        }
        writeln!(f, "### Targets\n")?;
        write_table(f, &["ratio", "target", "measured", "verdict"], goals.iter().map(|goal| goal.line()))
    }
}
