//! `GET /api/sessions`.

use billing::{Principal, Session, SessionCursor, Timestamp};
use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::refusal::Refusal;

use super::super::body;
use super::super::operation::{Call, Operation};
use super::view::View;

/// Sessions in an answer where nothing else is asked for, and at most.
const USUAL: u32 = 20;
const MOST: u32 = 100;

pub(in crate::api) struct List;

/// Which part of the list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Which {
    /// `running` leaves out those that have ended.
    #[serde(default)]
    show: Kind,
    /// How many at most; 20 where it is not said.
    #[schemars(range(min = 1, max = MOST))]
    limit: Option<u32>,
    /// Goes on where an earlier answer stopped: its `next`.
    #[schemars(regex(pattern = "^[0-9]{1,15}-[A-Za-z0-9._-]{1,64}$"))]
    after: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
enum Kind {
    #[default]
    All,
    Running,
}

impl Operation for List {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/api/sessions";
    const NAME: &'static str = "listSessions";
    const SUMMARY: &'static str = "Sessions, the newest first.";
    type Parameters = Which;
    type Body = body::None;
    type Answer = Page;

    fn refusals() -> Vec<Refusal> {
        Vec::new()
    }

    async fn answer(call: &Call<'_>, who: &Principal, which: Which, _: body::None) -> Result<Page, Refusal> {
        let limit = which.limit.unwrap_or(USUAL);
        if !(1..=MOST).contains(&limit) {
            return Err(bad("limit", format!("must be a number from 1 to {MOST}")));
        }
        let after = which.after.as_deref().map(parse_cursor).transpose()?;
        let billing = &call.gateway.billing;
        // One more than asked for tells whether there are any further ones.
        let found = match which.show {
            Kind::All => billing.sessions(&who.account, after.as_ref(), limit + 1).await,
            Kind::Running => billing.running(&who.account, after.as_ref(), limit + 1).await,
        };
        let mut sessions = found.map_err(|error| {
            warn!(%error, "sessions could not be read");
            Refusal::LedgerAway
        })?;
        let more = sessions.len() > limit as usize;
        sessions.truncate(limit as usize);
        let next = sessions.last().filter(|_| more).map(cursor);
        let sessions = sessions.into_iter().map(|session| View::of(session, call.gateway)).collect();
        Ok(Page { sessions, next })
    }
}

/// A part of the list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SessionPage")]
pub(in crate::api) struct Page {
    /// The newest first.
    sessions: Vec<View>,
    /// What to give as `after` for the ones that follow; null where there are none.
    next: Option<String>,
}

fn cursor(last: &Session) -> String {
    format!("{}-{}", last.held_at.as_millis(), last.id)
}

fn parse_cursor(text: &str) -> Result<SessionCursor, Refusal> {
    let parsed = text.split_once('-').and_then(|(held_at, id)| {
        let held_at = Timestamp::from_millis(held_at.parse().ok()?);
        Some(SessionCursor { held_at, id: id.parse().ok()? })
    });
    parsed.ok_or_else(|| bad("after", "must be the `next` of an earlier answer".to_owned()))
}

fn bad(name: &str, problem: String) -> Refusal {
    Refusal::BadParameter { name: name.to_owned(), problem }
}
