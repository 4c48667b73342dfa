//! The three places that settings are given in, laid over each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fmt, fs};

use super::mistake::{Mistake, Mistakes};
use super::plans;
use super::values::Wrong;

/// Every setting except the plans', in the order of the documentation.
pub(super) const NAMES: [&str; 35] = [
    "edge.listen",
    "edge.tls_listen",
    "edge.tls_cert",
    "edge.tls_key",
    "edge.public_url",
    "edge.threads",
    "edge.busy_poll",
    "edge.connections_per_address",
    "edge.bad_keys_per_minute",
    "edge.starts_per_minute",
    "admin.listen",
    "store.url",
    "store.data_dir",
    "store.replicas",
    "store.outage_limit",
    "store.unsecured_exposure",
    "pool.provider",
    "pool.kinds",
    "pool.min_idle",
    "pool.max_idle",
    "pool.process.binary",
    "pool.process.trusted_customers",
    "pool.fixed.endpoints",
    "pool.fixed.sessions_per_endpoint",
    "session.max_duration",
    "session.idle_timeout",
    "session.connect_timeout",
    "session.start_timeout",
    "session.drain_deadline",
    "session.refunds_per_day",
    "session.kept",
    "events.kept",
    "webhooks.attempts",
    "webhooks.private_targets",
    "log.level",
];

/// Settings that the documentation names and this build does not have.
const NOT_YET: [&str; 3] = ["stripe", "costs", "pool.reuse"];

/// What the variables of all settings begin with.
const PREFIX: &str = "UFB_";

/// How alike (from 0 to 1, Jaro-Winkler) a name has to be to be suggested: one slip of the finger gives about 0.95, two
/// names that only share their section about 0.8.
const ALIKE: f64 = 0.85;

/// The environment, so that tests can fake it.
pub trait Environment {
    /// All variables, in any order.
    fn vars(&self) -> Vec<(String, String)>;
}

/// The environment of this process. The only place that reads it.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    /// What is not Unicode is replaced, since a foreign variable must not end the program.
    fn vars(&self) -> Vec<(String, String)> {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
        env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect()
    }
}

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    Environment,
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "in {}", path.display()),
            Self::Environment => f.write_str("in the environment"),
            Self::Flag => f.write_str("by --set"),
        }
    }
}

/// What was given for each name, and what turned out to be wrong so far.
#[derive(Debug)]
pub(super) struct Settings {
    given: BTreeMap<String, Given>,
    mistakes: Vec<Mistake>,
}

#[derive(Debug)]
struct Given {
    value: Value,
    origin: Origin,
}

#[derive(Debug)]
enum Value {
    One(String),
    Many(Vec<String>),
}

impl Settings {
    pub(super) fn gather(file: Option<&Path>, env: &impl Environment, flags: &[(String, String)]) -> Self {
        let mut settings = Self { given: BTreeMap::new(), mistakes: Vec::new() };
        if let Some(path) = file {
            settings.add_file(path);
        }
        let mut variables = env.vars();
        variables.retain(|(variable, _)| variable.starts_with(PREFIX));
        variables.sort();
        for (variable, text) in variables {
            match name_of(&variable) {
                Some(name) => settings.add(name, Value::One(text), Origin::Environment),
                None => settings.unknown(variable, Origin::Environment),
            }
        }
        for (name, text) in flags {
            settings.add_if_known(name.clone(), Value::One(text.clone()), Origin::Flag);
        }
        settings
    }

    fn add_file(&mut self, path: &Path) {
        let origin = Origin::File(path.to_owned());
        match read_table(path) {
            Ok(table) => {
                let mut entries = Vec::new();
                flatten(String::new(), toml::Value::Table(table), &mut entries);
                for (name, value) in entries {
                    self.add_if_known(name, value, origin.clone());
                }
            }
            Err(wrong) => self.mistakes.push(Mistake {
                setting: path.display().to_string(),
                variable: None,
                origin: None,
                problem: wrong.problem,
                remedy: wrong.remedy,
            }),
        }
    }

    fn add_if_known(&mut self, name: String, value: Value, origin: Origin) {
        if NAMES.contains(&name.as_str()) || plans::is_setting(&name) {
            self.add(name, value, origin);
        } else {
            self.unknown(name, origin);
        }
    }

    /// Later places win over earlier ones.
    fn add(&mut self, name: String, value: Value, origin: Origin) {
        self.given.insert(name, Given { value, origin });
    }

    fn unknown(&mut self, name: String, origin: Origin) {
        let (setting, wrong) = match not_yet(&name) {
            Some(missing) if origin == Origin::Environment => (name, Wrong::not_yet(missing)),
            Some(missing) => (missing.to_owned(), Wrong::not_yet(missing)),
            None => {
                let remedy = nearest(&name).unwrap_or_else(|| "take it out".to_owned());
                (name, Wrong::new("there is no such setting", remedy))
            }
        };
        let mistake = Mistake {
            setting,
            variable: None,
            origin: Some(origin),
            problem: wrong.problem,
            remedy: wrong.remedy,
        };
        // A section that is missing is reported once, however many keys it has.
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// The names of the plans that settings were given for.
    pub(super) fn plans(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.given.keys().filter_map(|name| plans::plan_of(name)).map(str::to_owned).collect();
        names.dedup();
        names
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// The setting's value, or `default` where it was not given. Also `default` where it is wrong, so that the settings
    /// after it are read too; the mistake then keeps it from being used.
    pub(super) fn read<T>(&mut self, name: &str, default: T, parse: fn(&str) -> Result<T, Wrong>) -> T {
        self.read_optional(name, parse).unwrap_or(default)
    }

    pub(super) fn read_optional<T>(&mut self, name: &str, parse: fn(&str) -> Result<T, Wrong>) -> Option<T> {
        let parsed = match &self.given.get(name)?.value {
            Value::One(text) => parse_text(text, parse),
            Value::Many(_) => Err(Wrong::new("this is a list", "give one value")),
        };
        parsed.map_err(|wrong| self.mistake(name, wrong)).ok()
    }

    /// Empty where the setting was not given; a list that was given has at least one item.
    pub(super) fn read_list<T>(&mut self, name: &str, parse: fn(&str) -> Result<T, Wrong>) -> Vec<T> {
        let parsed = match self.given.get(name).map(|given| &given.value) {
            None => return Vec::new(),
            Some(Value::One(text)) => text.split(',').map(|item| parse_text(item, parse)).collect(),
            Some(Value::Many(items)) if items.is_empty() => {
                Err(Wrong::new("the list is empty", "name at least one, or leave it out"))
            }
            Some(Value::Many(items)) => items.iter().map(|item| parse_text(item, parse)).collect(),
        };
        parsed.map_err(|wrong| self.mistake(name, wrong)).unwrap_or_default()
    }

    /// Records that `name`, a setting that exists, is wrong.
    pub(super) fn mistake(&mut self, name: &str, wrong: Wrong) {
        self.mistakes.push(Mistake {
            setting: name.to_owned(),
            variable: Some(variable_of(name)),
            origin: self.given.get(name).map(|given| given.origin.clone()),
            problem: wrong.problem,
            remedy: wrong.remedy,
        });
    }

    /// `whole`, unless anything was wrong.
    pub(super) fn finish<T>(self, whole: T) -> Result<T, Mistakes> {
        if self.mistakes.is_empty() { Ok(whole) } else { Err(Mistakes(self.mistakes)) }
    }
}

fn parse_text<T>(text: &str, parse: fn(&str) -> Result<T, Wrong>) -> Result<T, Wrong> {
    match text.trim() {
        "" => Err(Wrong::new("the value is empty", "give one, or leave the setting out")),
        text => parse(text),
    }
}

fn read_table(path: &Path) -> Result<toml::Table, Wrong> {
    let text = fs::read_to_string(path)
        .map_err(|error| Wrong::new(error.to_string(), "name a file that can be read with --config"))?;
    // The parser's own display quotes the line, which may hold a password.
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Wrong::new(format!("line {line}: {}", error.message().trim_end()), "write it as TOML")
    })
}

/// `{a: {b: 1}}` becomes `a.b = 1`. What no setting can hold (an empty section, a list of tables) keeps its name and
/// becomes an empty list, so that it is refused where there is no such setting.
fn flatten(name: String, value: toml::Value, entries: &mut Vec<(String, Value)>) {
    match value {
        toml::Value::Table(table) if table.is_empty() && is_section(&name) => {}
        toml::Value::Table(table) if !table.is_empty() => {
            for (key, value) in table {
                let name = if name.is_empty() { key } else { format!("{name}.{key}") };
                flatten(name, value, entries);
            }
        }
        toml::Value::Array(items) => {
            let items = items.into_iter().map(scalar).collect::<Option<_>>().unwrap_or_default();
            entries.push((name, Value::Many(items)));
        }
        value => {
            entries.push((name, scalar(value).map_or_else(|| Value::Many(Vec::new()), Value::One)));
        }
    }
}

/// Numbers and truth values become the text that the environment would have.
fn scalar(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        toml::Value::Datetime(time) => Some(time.to_string()),
        toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

fn is_section(name: &str) -> bool {
    name.is_empty() || name == "plans" || NAMES.iter().any(|known| section_holds(name, known))
}

fn section_holds(section: &str, name: &str) -> bool {
    name.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

fn not_yet(name: &str) -> Option<&'static str> {
    NOT_YET.into_iter().find(|missing| {
        let variable = variable_of(missing);
        name == *missing
            || section_holds(missing, name)
            || name == variable
            || name.strip_prefix(&variable).is_some_and(|rest| rest.starts_with('_'))
    })
}

/// `edge.listen` → `UFB_EDGE_LISTEN`.
fn variable_of(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('.', "_").to_ascii_uppercase())
}

fn name_of(variable: &str) -> Option<String> {
    NAMES
        .into_iter()
        .find(|name| variable_of(name) == variable)
        .map(str::to_owned)
        .or_else(|| plans::name_of(variable.strip_prefix(PREFIX)?))
}

/// Words that suggest the name that was probably meant.
fn nearest(name: &str) -> Option<String> {
    let as_given = |known: String| if name.starts_with(PREFIX) { variable_of(&known) } else { known };
    NAMES
        .into_iter()
        .map(str::to_owned)
        .chain(plans::default_names())
        .map(as_given)
        .map(|known| (strsim::jaro_winkler(name, &known), known))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| format!("did you mean `{known}`?"))
}
