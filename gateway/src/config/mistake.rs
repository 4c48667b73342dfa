//! What is wrong with the settings, and how to mend it.

use std::fmt;

use super::settings::Origin;

/// One setting that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The setting's name (`edge.listen`), or what was given instead of a name that exists.
    pub setting: String,
    /// The environment variable of the same setting; none where there is no such setting.
    pub variable: Option<String>,
    /// Where the value stands; none where there is none.
    pub origin: Option<Origin>,
    /// What is wrong, without secrets.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Mistake {
    /// ` (UFB_EDGE_LISTEN, by --set)`, as far as it is known.
    #[must_use]
    pub fn place(&self) -> String {
        let known = [self.variable.clone(), self.origin.as_ref().map(Origin::to_string)];
        let known: Vec<_> = known.into_iter().flatten().collect();
        if known.is_empty() { String::new() } else { format!(" ({})", known.join(", ")) }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}: {}; {}", self.setting, self.place(), self.problem, self.remedy)
    }
}

/// All settings that are wrong: at least one. Displayed one a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines())]
pub struct Mistakes(pub(super) Vec<Mistake>);

impl Mistakes {
    /// In the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    fn lines(&self) -> String {
        self.0.iter().map(Mistake::to_string).collect::<Vec<_>>().join("\n")
    }
}
