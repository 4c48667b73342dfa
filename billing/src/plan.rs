//! What a customer may rent, and for how much. Plans are configuration: the catalogue starts from the
//! published ones, and an operator changes or adds to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::money::Micros;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// $0.01 a session, with its first five minutes; $0.002 for each started minute after them.
const SESSION_PRICE: Micros = Micros::new(10_000);
const SESSION_MINUTES: u32 = 5;
const MINUTE_PRICE: Micros = Micros::new(2_000);

/// About ten times the monthly price: beyond it a runaway script is likelier than a good month.
const PROFESSIONAL_OVERAGE_CAP: Micros = Micros::new(500_000_000);
const ENTERPRISE_OVERAGE_CAP: Micros = Micros::new(5_000_000_000);

/// The terms of one plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The name that accounts refer to.
    pub name: String,
    /// The price of a month.
    pub price_month: Micros,
    /// Sessions a month that the price covers.
    pub included_sessions: u32,
    /// Sessions at a time.
    pub concurrent_sessions: u32,
    /// Warm browsers of the customer's own.
    pub warm_browsers: u32,
    /// Memory that its browsers may request together, in bytes.
    pub memory: u64,
    /// CPU that its browsers may request together, in thousandths of a core.
    pub cpu_millis: u32,
    /// Whether sessions beyond the included ones are billed afterwards.
    pub overage: bool,
    /// The most overage in one billing period.
    pub overage_cap: Micros,
    /// The price of one session.
    pub session_price: Micros,
    /// Minutes that this price, or an included session, covers.
    pub session_minutes: u32,
    /// The price of each started minute after them.
    pub minute_price: Micros,
}

impl Plan {
    /// Whether the plan ever makes an invoice. One that does renews on the anniversary of its start; one that
    /// does not follows the calendar month.
    pub fn is_invoiced(&self) -> bool {
        self.price_month > Micros::ZERO || self.overage
    }
}

/// The plans on offer, by name.
#[derive(Clone, Debug)]
pub struct Catalogue(BTreeMap<String, Plan>);

impl Catalogue {
    /// The plan of that name.
    pub fn get(&self, name: &str) -> Option<&Plan> {
        self.0.get(name)
    }

    /// Adds a plan, or replaces the one of the same name.
    pub fn insert(&mut self, plan: Plan) {
        self.0.insert(plan.name.clone(), plan);
    }

    /// All plans, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = &Plan> {
        self.0.values()
    }
}

/// The published plans. An enterprise's price is set by its contract; until then it is nothing.
impl Default for Catalogue {
    fn default() -> Self {
        let mut catalogue = Catalogue(BTreeMap::new());
        catalogue.insert(starter());
        catalogue.insert(professional());
        catalogue.insert(enterprise());
        catalogue
    }
}

fn starter() -> Plan {
    Plan {
        name: "starter".to_owned(),
        price_month: Micros::ZERO,
        included_sessions: 500,
        concurrent_sessions: 5,
        warm_browsers: 1,
        memory: 640 * MIB,
        cpu_millis: 1_000,
        overage: false,
        overage_cap: Micros::ZERO,
        session_price: SESSION_PRICE,
        session_minutes: SESSION_MINUTES,
        minute_price: MINUTE_PRICE,
    }
}

fn professional() -> Plan {
    Plan {
        name: "professional".to_owned(),
        price_month: Micros::new(49_000_000),
        included_sessions: 5_000,
        concurrent_sessions: 50,
        warm_browsers: 5,
        // 6.4 GiB is no whole number of bytes; Kubernetes rounds such a quantity up.
        memory: (64 * GIB).div_ceil(10),
        cpu_millis: 10_000,
        overage: true,
        overage_cap: PROFESSIONAL_OVERAGE_CAP,
        ..starter()
    }
}

fn enterprise() -> Plan {
    Plan {
        name: "enterprise".to_owned(),
        included_sessions: 50_000,
        concurrent_sessions: 500,
        warm_browsers: 20,
        memory: 64 * GIB,
        cpu_millis: 100_000,
        overage: true,
        overage_cap: ENTERPRISE_OVERAGE_CAP,
        ..starter()
    }
}

/// What a session costs. It keeps the terms that it started with, whatever becomes of its account's plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The price of the session.
    pub session_price: Micros,
    /// Minutes that the price covers.
    pub session_minutes: u32,
    /// The price of each started minute after them.
    pub minute_price: Micros,
    /// Whether what the balance lacks is billed afterwards.
    pub overage: bool,
    /// The most overage in one billing period.
    pub overage_cap: Micros,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_plans() {
        let catalogue = Catalogue::default();
        let figures = |name: &str| {
            let plan = catalogue.get(name).unwrap();
            (
                plan.price_month.get(),
                plan.included_sessions,
                plan.concurrent_sessions,
                plan.warm_browsers,
                plan.memory,
            )
        };
        assert_eq!(figures("starter"), (0, 500, 5, 1, 671_088_640));
        assert_eq!(figures("professional"), (49_000_000, 5_000, 50, 5, 6_871_947_674));
        assert_eq!(figures("enterprise"), (0, 50_000, 500, 20, 68_719_476_736));
        assert!(catalogue.get("gold").is_none());
    }

    #[test]
    fn an_operator_changes_and_adds_plans() {
        let mut catalogue = Catalogue::default();
        catalogue.insert(Plan { name: "gold".to_owned(), ..enterprise() });
        catalogue.insert(Plan { included_sessions: 7, ..starter() });
        assert_eq!(catalogue.iter().count(), 4);
        assert_eq!(catalogue.get("starter").unwrap().included_sessions, 7);
    }

    #[test]
    fn only_plans_that_cost_something_are_invoiced() {
        assert!(!starter().is_invoiced());
        assert!(professional().is_invoiced() && enterprise().is_invoiced());
    }
}
