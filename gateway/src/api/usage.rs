//! `GET /api/usage`: what a customer has used, by hour, day or month.

use billing::{Principal, Span, Usage};
use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::refusal::Refusal;

use super::operation::{Call, Operation};
use super::shapes::{Dollars, MicroDollars, Time};
use super::{account, body};

/// Periods in an answer where nothing else is asked for: this year and the same month of the last one; a month of days;
/// two days of hours.
const MONTHS: u32 = 13;
const DAYS: u32 = 31;
const HOURS: u32 = 48;

/// As many as hours are kept.
const MOST: u32 = Span::Hour.most();

pub(super) struct Show;

/// Which periods.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// How the figures are told apart. Hours and days are kept for 62 days, months for ever.
    #[serde(default)]
    by: By,
    /// How many periods, up to and with the one that is now: more than are kept gives those that are. Where
    /// it is not said, 48 hours, 31 days or 13 months.
    #[schemars(range(min = 1, max = MOST))]
    last: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
enum By {
    Hour,
    Day,
    #[default]
    Month,
}

impl By {
    fn span(self) -> Span {
        match self {
            Self::Hour => Span::Hour,
            Self::Day => Span::Day,
            Self::Month => Span::Month,
        }
    }

    fn usual(self) -> u32 {
        match self {
            Self::Hour => HOURS,
            Self::Day => DAYS,
            Self::Month => MONTHS,
        }
    }
}

impl Operation for Show {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/api/usage";
    const NAME: &'static str = "showUsage";
    const SUMMARY: &'static str = "What sessions came to, by hour, day or month. Each counts where it ended.";
    type Parameters = Which;
    type Body = body::None;
    type Answer = View;

    fn refusals() -> Vec<Refusal> {
        Vec::new()
    }

    async fn answer(
        call: &Call<'_>,
        who: &Principal,
        Which { by, last }: Which,
        _: body::None,
    ) -> Result<View, Refusal> {
        let last = last.unwrap_or(by.usual());
        if !(1..=MOST).contains(&last) {
            let problem = format!("must be a number from 1 to {MOST}");
            return Err(Refusal::BadParameter { name: "last".to_owned(), problem });
        }
        let running = account::standing(call, &who.account).await?.account.open;
        let now = call.gateway.clock.now();
        let used = call.gateway.billing.usage(&who.account, by.span(), last, now).await.map_err(|error| {
            warn!(%error, "usage could not be read");
            Refusal::LedgerAway
        })?;
        let total = used.iter().fold(Usage::default(), |sum, used| sum.plus(used.usage));
        let periods = used.into_iter().map(|used| PeriodView {
            start: Time(used.period.start),
            end: Time(used.period.end),
            figures: Figures::of(used.usage),
        });
        Ok(View { by, running_sessions: running, total: Figures::of(total), periods: periods.collect() })
    }
}

/// What was used.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Usage")]
pub(super) struct View {
    by: By,
    /// Sessions that are running, which no period has yet.
    running_sessions: u32,
    /// Of all periods in this answer.
    total: Figures,
    /// The one that is now comes first. Those without any use are among them.
    periods: Vec<PeriodView>,
}

/// What was used in one period, UTC.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PeriodUsage")]
struct PeriodView {
    start: Time,
    /// The first instant after it.
    end: Time,
    #[serde(flatten)]
    figures: Figures,
}

/// What sessions came to.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "UsageFigures")]
struct Figures {
    /// Sessions that ended, lost ones among them; not those that never began.
    sessions: u64,
    /// Those of them whose browser was lost.
    lost_sessions: u64,
    /// Those that an included session paid for.
    included_sessions: u64,
    /// Those that a retry credit paid for.
    retried_sessions: u64,
    /// Started minutes that were billed, included ones among them.
    browser_minutes: u64,
    /// From clients to browsers.
    up_bytes: u64,
    /// From browsers to clients.
    down_bytes: u64,
    /// Beside the plan's price, from balance and overage together.
    cost: Dollars,
    cost_micros: MicroDollars,
    /// The part of it that is billed afterwards.
    overage: Dollars,
    overage_micros: MicroDollars,
}

impl Figures {
    fn of(usage: Usage) -> Self {
        Self {
            sessions: usage.sessions,
            lost_sessions: usage.lost,
            included_sessions: usage.included,
            retried_sessions: usage.retried,
            browser_minutes: usage.minutes,
            up_bytes: usage.up_bytes,
            down_bytes: usage.down_bytes,
            cost: Dollars(usage.cost),
            cost_micros: MicroDollars(usage.cost),
            overage: Dollars(usage.overage),
            overage_micros: MicroDollars(usage.overage),
        }
    }
}
