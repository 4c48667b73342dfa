//! `POST /api/sessions/create`: a session without a socket. Its browser is taken and its price set aside at once; a script
//! connects to it later, or nobody does, and it ends like any other.

use std::sync::Arc;
use std::time::Duration;

use billing::{
    Metadata, NewSession, Principal, Session, SessionId, SessionRequest, Standing, State, TrackingId,
};
use http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::hold::NotHeld;
use crate::limits::Limits;
use crate::refusal::Refusal;
use crate::session::start_detached;
use crate::sessions::Live;
use crate::token::{self, Claims, Purpose};

use super::super::body::Json;
use super::super::operation::{Call, Operation};
use super::super::shapes::{self, Dollars, MicroDollars, Time};
use super::super::{account, parameters, session_document};
use super::view::{Status, after, millis};

/// What stands where ids stand in paths.
const TAKEN: &str = "create";

/// The name of the body's shape in the document.
const BODY: &str = "CreateSession";

pub(in crate::api) struct Create;

impl Operation for Create {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/api/sessions/create";
    const NAME: &'static str = "createSession";
    const SUMMARY: &'static str = "Takes a browser and sets the price aside. A repeat with the same `sessionId` and \
        body answers the same session and charges nothing.";
    const LEADS_TO: &'static [&'static str] = &["showSession", "endSession"];
    type Parameters = parameters::None;
    type Body = Json<Asked>;
    type Answer = Created;

    fn refusals() -> Vec<Refusal> {
        let (money, session) = (billing::Micros::ZERO, Value::Null);
        let (top_up_url, retry_after) = (String::new(), Duration::ZERO);
        vec![
            Refusal::Draining,
            Refusal::Full,
            Refusal::Suspended,
            Refusal::Money { balance: money, required: money, top_up_url: top_up_url.clone() },
            Refusal::OverageCap { balance: money, required: money, cap: money, top_up_url },
            Refusal::Concurrency { limit: 0, plan: String::new() },
            Refusal::TooManyStarts { retry_after },
            Refusal::NoBrowser { retry_after },
            Refusal::SessionEnded { session: session.clone() },
            Refusal::SessionDiffers { session },
            Refusal::SessionBusy,
            Refusal::SessionElsewhere,
        ]
    }

    async fn answer(
        call: &Call<'_>,
        who: &Principal,
        _: parameters::None,
        Json(asked): Json<Asked>,
    ) -> Result<Created, Refusal> {
        let gateway = call.gateway;
        let (id, request) = asked.into_request(&gateway.limits)?;
        if gateway.is_draining() {
            return Err(Refusal::Draining);
        }
        let new = match id {
            Some(id) => NewSession::named(id, request),
            None => NewSession::fresh(request),
        };
        // A repeat at the same time waits in there until it finds what the first has made.
        let live = match start_detached(gateway, who, new, &call.site()).await {
            Ok(live) => live,
            Err(NotHeld::Refused(refusal)) => return Err(refusal),
            Err(NotHeld::Exists(session)) => repeated(call, *session)?,
            Err(NotHeld::ExistsDifferent(session)) => {
                return Err(Refusal::SessionDiffers { session: session_document(gateway, &session) });
            }
        };
        let standing = account::standing(call, &who.account).await?;
        Ok(Created::of(call, who, &live, &standing))
    }
}

/// The session that a repeat is answered with, while it lives.
fn repeated(call: &Call<'_>, session: Session) -> Result<Arc<Live>, Refusal> {
    let gateway = call.gateway;
    match gateway.sessions.find(&session.account, &session.id) {
        Some(live) if live.is_ending() => Err(Refusal::SessionBusy),
        Some(live) => Ok(live),
        None => Err(match session.state {
            State::Posted | State::Voided => {
                Refusal::SessionEnded { session: session_document(gateway, &session) }
            }
            State::Held | State::Open if session.gateway == gateway.id => Refusal::SessionBusy,
            State::Held | State::Open => Refusal::SessionElsewhere,
        }),
    }
}

/// What a session is to be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "CreateSession")]
pub(in crate::api) struct Asked {
    /// The session's id, which is yours to choose; a random one if left out.
    #[serde(default)]
    #[schemars(schema_with = "own_id")]
    session_id: Option<SessionId>,
    browser: Option<Browser>,
    /// For how long it may last, in milliseconds; as long as the operator allows if left out.
    #[serde(default, deserialize_with = "shapes::whole_number")]
    #[schemars(range(min = 1))]
    timeout: Option<u64>,
    /// What it is part of; kept in its record.
    #[serde(default)]
    #[schemars(schema_with = "shapes::optional_id")]
    tracking_id: Option<TrackingId>,
    /// Anything to be found in its record: at most 4,096 bytes of JSON.
    metadata: Option<Map<String, Value>>,
    /// Not there yet, and so not in the document.
    #[schemars(skip)]
    keep_alive: Option<Value>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
enum Browser {
    Chromium,
    Chrome,
}

impl Asked {
    fn into_request(self, limits: &Limits) -> Result<(Option<SessionId>, SessionRequest), Refusal> {
        let wrong = |field: &str, problem: String| Refusal::InvalidField { field: field.to_owned(), problem };
        if self.keep_alive.is_some_and(|keep_alive| keep_alive != Value::Bool(false)) {
            let problem = "a session ends with its last connection; leave it out";
            return Err(wrong("keepAlive", problem.to_owned()));
        }
        if self.session_id.as_ref().is_some_and(|id| id.as_str() == TAKEN) {
            return Err(wrong(
                "sessionId",
                format!("`{TAKEN}` stands for something else in a path; take another"),
            ));
        }
        // There is one kind.
        let (Some(Browser::Chromium | Browser::Chrome) | None) = self.browser;
        let most = millis(limits.max_duration);
        if self.timeout.is_some_and(|timeout| !(1..=most).contains(&timeout)) {
            return Err(wrong("timeout", format!("must be 1 to {most} milliseconds")));
        }
        let metadata = self.metadata.map(Metadata::try_from).transpose();
        let metadata = metadata.map_err(|error| wrong("metadata", error.to_string()))?;
        let timeout = self.timeout.map(Duration::from_millis);
        Ok((self.session_id, SessionRequest { timeout, tracking_id: self.tracking_id, metadata }))
    }
}

fn own_id(schemas: &mut SchemaGenerator) -> Schema {
    let mut schema = shapes::optional_id(schemas);
    schema.insert("not".to_owned(), json!({ "const": TAKEN }));
    schema
}

/// Puts the operator's limit into the document.
pub(in crate::api) fn tell_limits(shapes: &mut Map<String, Value>, limits: &Limits) {
    if let Some(timeout) = shapes.get_mut(BODY).and_then(|shape| shape.pointer_mut("/properties/timeout")) {
        timeout["maximum"] = millis(limits.max_duration).into();
    }
}

/// A session that waits for its script.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "CreatedSession")]
pub(in crate::api) struct Created {
    #[schemars(schema_with = "shapes::id")]
    session_id: SessionId,
    status: Status,
    /// The browser's name at whoever runs it; null where it is gone already.
    container_id: Option<String>,
    /// What scripts connect to. Its token is good until `connectBy`.
    cdp_url: String,
    /// The same for clients that want an `http` or `https` URL.
    browser_url: String,
    cost_per_session: Dollars,
    cost_per_session_micros: MicroDollars,
    /// What is left, with this session's price set aside.
    account_balance: Dollars,
    account_balance_micros: MicroDollars,
    /// Sessions that can be started without overage: included ones, retry credits, and what the balance pays for. Null
    /// where a session costs nothing.
    remaining_sessions: Option<u64>,
    started_at: Time,
    /// When it ends if nobody has connected; null once somebody has.
    connect_by: Option<Time>,
    /// When it is ended at the latest.
    expires_at: Time,
}

impl Created {
    fn of(call: &Call<'_>, who: &Principal, live: &Live, standing: &Standing) -> Self {
        let (gateway, site, price) = (call.gateway, call.site(), standing.plan.session_price);
        let connect_by = live.is_detached().then(|| after(live.begun_at, gateway.limits.connect_timeout));
        let expires = connect_by.unwrap_or_else(|| after(gateway.clock.now(), token::LIFETIME));
        let claims =
            Claims { who: who.clone(), session: live.id.clone().into(), purpose: Purpose::Attach, expires };
        let token = gateway.tokens.sign(&claims);
        Self {
            session_id: live.id.clone(),
            status: Status::of_live(live),
            container_id: live.upstream().map(|browser| browser.name()),
            cdp_url: format!("{}/sessions/{}?token={token}", site.ws(), live.id),
            browser_url: format!("{}/sessions/{}?token={token}", site.http(), live.id),
            cost_per_session: Dollars(price),
            cost_per_session_micros: MicroDollars(price),
            account_balance: Dollars(standing.account.balance),
            account_balance_micros: MicroDollars(standing.account.balance),
            remaining_sessions: standing.remaining_sessions(),
            started_at: Time(live.begun_at),
            connect_by: connect_by.map(Time),
            expires_at: Time(after(live.begun_at, live.max_duration)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_duration: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(60),
    };

    fn ask(body: Value) -> Result<(Option<SessionId>, SessionRequest), Refusal> {
        serde_json::from_value::<Asked>(body).unwrap().into_request(&LIMITS)
    }

    #[test]
    fn what_is_asked_for_is_kept() {
        let (id, request) = ask(json!({
            "sessionId": "s1", "browser": "chrome", "timeout": 60_000.0, "trackingId": "t1", "metadata": { "a": [1.1] },
            "keepAlive": false,
        }))
        .unwrap();
        assert_eq!(id.as_ref().map(SessionId::as_str), Some("s1"));
        assert_eq!(request.timeout, Some(LIMITS.max_duration));
        assert_eq!(request.tracking_id.as_ref().map(TrackingId::as_str), Some("t1"));
        assert_eq!(request.metadata.unwrap().as_object()["a"], json!([1.1]));
        assert_eq!(ask(json!({ "timeout": null })).unwrap(), (None, SessionRequest::default()));
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let cases = [
            ("keepAlive", json!({ "keepAlive": 60_000 })),
            ("timeout", json!({ "timeout": 0 })),
            ("timeout", json!({ "timeout": 60_001 })),
            ("sessionId", json!({ "sessionId": "create" })),
            ("metadata", json!({ "metadata": { "a": "x".repeat(4_096) } })),
        ];
        for (name, body) in cases {
            let refusal = ask(body).unwrap_err();
            assert!(matches!(&refusal, Refusal::InvalidField { field, .. } if field == name), "{refusal:?}");
        }
    }
}
