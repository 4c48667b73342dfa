//! `POST /api/sessions/{sessionId}/end`.

use std::time::Duration;

use billing::{Micros, Principal, Session, SessionId, State};
use http::Method;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::timeout;

use crate::refusal::{Close, Refusal};

use super::super::operation::{Call, Operation};
use super::super::shapes::{self, Dollars, MicroDollars};
use super::super::{body, parameters};
use super::show::record;
use super::view::{Status, duration};

/// A session that was told to end is settled within milliseconds; one whose browser hangs or whose store is slow takes
/// seconds, and whoever asks may ask again.
const PATIENCE: Duration = Duration::from_secs(10);

pub(in crate::api) struct End;

impl Operation for End {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/api/sessions/{sessionId}/end";
    const NAME: &'static str = "endSession";
    const SUMMARY: &'static str =
        "Ends a session and tells what it cost. One that has ended is left as it is.";
    type Parameters = parameters::None;
    type Body = body::None;
    type Answer = Ended;

    fn refusals() -> Vec<Refusal> {
        vec![Refusal::NoSession, Refusal::SessionBusy, Refusal::SessionElsewhere]
    }

    async fn answer(
        call: &Call<'_>,
        who: &Principal,
        _: parameters::None,
        _: body::None,
    ) -> Result<Ended, Refusal> {
        let id = call.session_id()?;
        let gateway = call.gateway;
        if let Some(live) = gateway.sessions.find(&who.account, &id) {
            live.end(Close::Owner);
            let settled = timeout(PATIENCE, live.settled()).await;
            return settled.ok().flatten().map(Ended::of).ok_or(Refusal::SessionBusy);
        }
        let session = record(call, who, &id).await?;
        match session.state {
            State::Posted | State::Voided => Ok(Ended::of(session)),
            State::Held | State::Open if session.gateway == gateway.id => Err(Refusal::SessionBusy),
            State::Held | State::Open => Err(Refusal::SessionElsewhere),
        }
    }
}

/// What a session came to.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "EndedSession")]
pub(in crate::api) struct Ended {
    #[schemars(schema_with = "shapes::id")]
    session_id: SessionId,
    status: Status,
    /// In milliseconds.
    duration: u64,
    /// From balance and overage together.
    actual_cost: Dollars,
    actual_cost_micros: MicroDollars,
    /// The same for people.
    message: String,
}

impl Ended {
    fn of(session: Session) -> Self {
        Self {
            status: Status::of(&session),
            duration: duration(&session),
            actual_cost: Dollars(session.charged),
            actual_cost_micros: MicroDollars(session.charged),
            message: message(&session),
            session_id: session.id,
        }
    }
}

fn message(session: &Session) -> String {
    let why = session.cause.as_deref().unwrap_or("ended");
    let paid = match session.funding {
        _ if session.state == State::Voided => "it never got a browser, and cost nothing".to_owned(),
        _ if session.refunded => "all that it had taken was given back".to_owned(),
        funding if funding.included > 0 && session.charged == Micros::ZERO => {
            "an included session covered it".to_owned()
        }
        funding if funding.retry > 0 && session.charged == Micros::ZERO => {
            "a retry credit covered it".to_owned()
        }
        _ => format!("it cost {}", session.charged),
    };
    format!("{why}: {paid}")
}
