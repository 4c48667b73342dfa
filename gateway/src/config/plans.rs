//! `[plans.NAME]`: changes to a default plan, or a plan of the operator's own.
//!
//! A default plan keeps what is not named. A new plan has to give every key: a slip in a default plan's name would
//! otherwise become a plan that nobody meant.

use billing::{Catalogue, Plan};

use super::settings::Settings;
use super::values::{self, Wrong};

const KEYS: [&str; 11] = [
    "price_month",
    "included_sessions",
    "concurrent_sessions",
    "warm_browsers",
    "memory",
    "cpu",
    "overage",
    "overage_cap",
    "session_price",
    "session_minutes",
    "minute_price",
];

const ANY: u64 = u32::MAX as u64;

pub(super) fn read(settings: &mut Settings) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for name in settings.plans() {
        let mut reader = Reader { settings, name: &name, base: catalogue.get(&name).cloned() };
        if let Some(plan) = reader.plan() {
            catalogue.insert(plan);
        }
    }
    catalogue
}

/// Reads the keys of one plan.
struct Reader<'a> {
    settings: &'a mut Settings,
    name: &'a str,
    /// The default plan of this name.
    base: Option<Plan>,
}

impl Reader<'_> {
    /// All keys are read before any that is missing ends it, so that every mistake is found.
    fn plan(&mut self) -> Option<Plan> {
        let price_month = self.key("price_month", |plan| plan.price_month, values::amount);
        let included_sessions =
            self.key("included_sessions", |plan| plan.included_sessions, values::number::<u32, 0, ANY>);
        let concurrent_sessions =
            self.key("concurrent_sessions", |plan| plan.concurrent_sessions, values::number::<u32, 1, ANY>);
        let warm_browsers =
            self.key("warm_browsers", |plan| plan.warm_browsers, values::number::<u32, 0, ANY>);
        let memory = self.key("memory", |plan| plan.memory, values::memory);
        let cpu_millis = self.key("cpu", |plan| plan.cpu_millis, values::cpu);
        let overage = self.key("overage", |plan| plan.overage, values::boolean);
        let overage_cap = self.key("overage_cap", |plan| plan.overage_cap, values::amount);
        let session_price = self.key("session_price", |plan| plan.session_price, values::amount);
        let session_minutes =
            self.key("session_minutes", |plan| plan.session_minutes, values::number::<u32, 1, ANY>);
        let minute_price = self.key("minute_price", |plan| plan.minute_price, values::amount);
        Some(Plan {
            name: self.name.to_owned(),
            price_month: price_month?,
            included_sessions: included_sessions?,
            concurrent_sessions: concurrent_sessions?,
            warm_browsers: warm_browsers?,
            memory: memory?,
            cpu_millis: cpu_millis?,
            overage: overage?,
            overage_cap: overage_cap?,
            session_price: session_price?,
            session_minutes: session_minutes?,
            minute_price: minute_price?,
        })
    }

    fn key<T>(&mut self, key: &str, of: fn(&Plan) -> T, parse: fn(&str) -> Result<T, Wrong>) -> Option<T> {
        let name = format!("plans.{}.{key}", self.name);
        if self.settings.has(&name) {
            return self.settings.read_optional(&name, parse);
        }
        if self.base.is_none() {
            let problem = format!("this is missing, and `{}` is not a default plan", self.name);
            self.settings.mistake(&name, Wrong::new(problem, "a plan of your own has to give every key"));
        }
        self.base.as_ref().map(of)
    }
}

pub(super) fn is_setting(name: &str) -> bool {
    plan_of(name).is_some()
}

/// `plans.starter.cpu` → `starter`.
pub(super) fn plan_of(name: &str) -> Option<&str> {
    let (plan, key) = name.strip_prefix("plans.")?.split_once('.')?;
    (is_plan_name(plan) && KEYS.contains(&key)).then_some(plan)
}

/// `PLANS_STARTER_CPU` → `plans.starter.cpu`. No key ends in `_` and another key, so there is one reading.
pub(super) fn name_of(variable: &str) -> Option<String> {
    let rest = variable.strip_prefix("PLANS_")?.to_ascii_lowercase();
    KEYS.into_iter().find_map(|key| {
        let plan = rest.strip_suffix(key)?.strip_suffix('_')?;
        is_plan_name(plan).then(|| format!("plans.{plan}.{key}"))
    })
}

/// Only such names have an environment variable.
fn is_plan_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// The settings of the default plans.
pub(super) fn default_names() -> Vec<String> {
    let catalogue = Catalogue::default();
    catalogue
        .iter()
        .flat_map(|plan| KEYS.into_iter().map(move |key| format!("plans.{}.{key}", plan.name)))
        .collect()
}
