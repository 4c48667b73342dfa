//! `GET /api/account`: what a customer has, and what its plan allows.

use billing::{Account, AccountId, AccountType, Micros, Plan, Principal, Standing};
use http::Method;
use schemars::JsonSchema;
use serde::Serialize;
use tracing::warn;

use crate::refusal::Refusal;

use super::operation::{Call, Operation};
use super::shapes::{self, Dollars, MicroDollars, Time};
use super::{body, parameters};

pub(super) struct Show;

impl Operation for Show {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/api/account";
    const NAME: &'static str = "showAccount";
    const SUMMARY: &'static str = "The account: plan, balance, what is left of this period.";
    type Parameters = parameters::None;
    type Body = body::None;
    type Answer = View;

    fn refusals() -> Vec<Refusal> {
        Vec::new()
    }

    async fn answer(
        call: &Call<'_>,
        who: &Principal,
        _: parameters::None,
        _: body::None,
    ) -> Result<View, Refusal> {
        let standing = standing(call, &who.account).await?;
        Ok(View::of(&standing, call.site().top_up_url()))
    }
}

/// The caller's account as it stands now.
pub(super) async fn standing(call: &Call<'_>, account: &AccountId) -> Result<Standing, Refusal> {
    match call.gateway.billing.standing(account, call.gateway.clock.now()).await {
        Ok(Some(standing)) => Ok(standing),
        // Accounts are never removed: the store has lost what it answered a moment ago.
        Ok(None) => Err(Refusal::LedgerAway),
        Err(error) => {
            warn!(%error, "an account could not be read");
            Err(Refusal::LedgerAway)
        }
    }
}

/// An account. Each amount is there twice: in dollars, and in micro-dollars as an integer.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Account")]
pub(super) struct View {
    #[schemars(schema_with = "shapes::id")]
    customer_id: AccountId,
    email: String,
    status: Status,
    #[serde(rename = "type")]
    kind: Kind,
    /// The plan's name.
    plan: String,
    created_at: Time,
    /// The start of the period that included sessions and overage count in; null for a prepaid account.
    period_start: Option<Time>,
    /// Its end, when included sessions are refilled.
    period_end: Option<Time>,
    /// Money that is there to spend. What is set aside for running sessions is already taken from it.
    balance: Dollars,
    balance_micros: MicroDollars,
    /// Sessions that the plan's price covers in a period.
    included_sessions: u32,
    /// Of these, what is left in this period.
    included_left: u32,
    /// Sessions granted for lost ones.
    retry_credits: u32,
    /// Sessions that can be started without overage: included ones, retry credits, and what the balance pays for. Null
    /// where a session costs nothing.
    remaining_sessions: Option<u64>,
    /// Money to be billed for this period beyond the plan's price.
    overage: Dollars,
    overage_micros: MicroDollars,
    /// The most overage in a period; null where the account has none.
    overage_cap: Option<Dollars>,
    overage_cap_micros: Option<MicroDollars>,
    /// The price of a session beyond the included ones.
    cost_per_session: Dollars,
    cost_per_session_micros: MicroDollars,
    /// Minutes that this price, or an included session, covers.
    minutes_per_session: u32,
    /// The price of each started minute after them.
    cost_per_minute: Dollars,
    cost_per_minute_micros: MicroDollars,
    /// Sessions that are running.
    running_sessions: u32,
    /// Sessions that may run at a time.
    concurrent_sessions: u32,
    /// Where money is added.
    top_up_url: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
enum Status {
    Active,
    /// An operator has stopped it from starting sessions.
    Suspended,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
enum Kind {
    Subscription,
    Prepaid,
}

impl View {
    fn of(standing: &Standing, top_up_url: String) -> Self {
        let remaining_sessions = standing.remaining_sessions();
        let Standing { account, plan } = standing;
        let overage_cap = overage_cap(account, plan);
        Self {
            customer_id: account.id.clone(),
            email: account.email.clone(),
            status: if account.suspended { Status::Suspended } else { Status::Active },
            kind: match account.kind {
                AccountType::Subscription => Kind::Subscription,
                AccountType::Prepaid => Kind::Prepaid,
            },
            plan: account.plan.clone(),
            created_at: Time(account.created_at),
            period_start: account.period.map(|period| Time(period.start)),
            period_end: account.period.map(|period| Time(period.end)),
            balance: Dollars(account.balance),
            balance_micros: MicroDollars(account.balance),
            included_sessions: match account.kind {
                AccountType::Subscription => plan.included_sessions,
                AccountType::Prepaid => 0,
            },
            included_left: account.included,
            retry_credits: account.retry,
            remaining_sessions,
            overage: Dollars(account.overage),
            overage_micros: MicroDollars(account.overage),
            overage_cap: overage_cap.map(Dollars),
            overage_cap_micros: overage_cap.map(MicroDollars),
            cost_per_session: Dollars(plan.session_price),
            cost_per_session_micros: MicroDollars(plan.session_price),
            minutes_per_session: plan.session_minutes,
            cost_per_minute: Dollars(plan.minute_price),
            cost_per_minute_micros: MicroDollars(plan.minute_price),
            running_sessions: account.open,
            concurrent_sessions: plan.concurrent_sessions,
            top_up_url,
        }
    }
}

fn overage_cap(account: &Account, plan: &Plan) -> Option<Micros> {
    (plan.overage && account.kind == AccountType::Subscription).then_some(plan.overage_cap)
}
