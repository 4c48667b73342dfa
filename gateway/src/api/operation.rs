//! One operation: what it takes and what it answers, as types, and the two things made of them: a way to serve it and
//! its part of the document.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use billing::{Principal, SessionId};
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::authenticate::authenticate_now;
use crate::host::Site;
use crate::query::Query;
use crate::refusal::Refusal;
use crate::serve::Gateway;
use crate::session::Door;

use super::body::Input;
use super::openapi::Schemas;
use super::parameters;

/// The part of a path that is a session's id.
pub(super) const ID: &str = "{sessionId}";

/// An operation of the API. The shapes in the document are those of its types.
pub(super) trait Operation: 'static {
    const METHOD: Method;
    /// With [`ID`] where a session's id stands.
    const PATH: &'static str;
    /// The name that generated clients call it by.
    const NAME: &'static str;
    /// One line for people.
    const SUMMARY: &'static str;

    /// The query, beside the credential.
    type Parameters: DeserializeOwned + JsonSchema + Send;
    type Body: Input;
    type Answer: Serialize + JsonSchema;

    /// Operations that take the id of the session that this one answers with, by their names.
    const LEADS_TO: &'static [&'static str] = &[];

    /// Every refusal of its own, beside [those of all](refusals_of_all). What is in them is an example.
    fn refusals() -> Vec<Refusal>;

    fn answer(
        call: &Call<'_>,
        who: &Principal,
        parameters: Self::Parameters,
        body: Self::Body,
    ) -> impl Future<Output = Result<Self::Answer, Refusal>> + Send;
}

/// What is known of a request before its operation looks at it.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) gateway: &'a Arc<Gateway>,
    pub(super) door: Door,
    pub(super) head: &'a Parts,
    /// The path's id, as it was sent.
    pub(super) id: Option<String>,
}

impl Call<'_> {
    /// Where the client reaches this gateway.
    pub(super) fn site(&self) -> Site<'_> {
        Site::new(self.gateway, self.door, &self.head.headers)
    }

    /// The session that the path names. What cannot be an id is nobody's.
    pub(super) fn session_id(&self) -> Result<SessionId, Refusal> {
        self.id.as_deref().and_then(|id| id.parse().ok()).ok_or(Refusal::NoSession)
    }
}

type Served<'a> = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Refusal>> + Send + 'a>>;

/// An operation, for the table.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) leads_to: &'static [&'static str],
    serve: for<'a> fn(Call<'a>, Incoming) -> Served<'a>,
    describe: fn(&mut Schemas) -> Description,
    refusals: fn() -> Vec<Refusal>,
    body_refusals: fn() -> Vec<Refusal>,
}

/// What the document says of an operation's types.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) parameters: Schema,
    pub(super) body: Option<Schema>,
    pub(super) answer: Schema,
}

impl Route {
    pub(super) const fn of<O: Operation>() -> Self {
        Self {
            method: O::METHOD,
            path: O::PATH,
            name: O::NAME,
            summary: O::SUMMARY,
            leads_to: O::LEADS_TO,
            serve: |call, body| Box::pin(serve::<O>(call, body)),
            describe: |schemas| Description {
                parameters: O::Parameters::json_schema(&mut schemas.asked),
                body: O::Body::schema(&mut schemas.asked),
                answer: schemas.answered.subschema_for::<O::Answer>(),
            },
            refusals: O::refusals,
            body_refusals: O::Body::refusals,
        }
    }

    /// Whether the path is this operation's; then what stands for the id in it.
    pub(super) fn matches(&self, path: &str) -> Option<Option<String>> {
        let mut id = None;
        let (mut own, mut given) = (self.path.split('/'), path.split('/'));
        loop {
            match (own.next(), given.next()) {
                (None, None) => return Some(id),
                (Some(ID), Some(given)) if !given.is_empty() => id = Some(given.to_owned()),
                (Some(own), Some(given)) if own == given => {}
                _ => return None,
            }
        }
    }

    pub(super) fn serve<'a>(&self, call: Call<'a>, body: Incoming) -> Served<'a> {
        (self.serve)(call, body)
    }

    pub(super) fn describe(&self, schemas: &mut Schemas) -> Description {
        (self.describe)(schemas)
    }

    /// Everything that it may refuse with, once each.
    pub(super) fn refusals(&self) -> Vec<Refusal> {
        let mut refusals = refusals_of_all();
        refusals.extend((self.body_refusals)());
        refusals.extend((self.refusals)());
        refusals
    }

    pub(super) fn may_refuse(&self, refusal: &Refusal) -> bool {
        self.refusals().iter().any(|own| own.code() == refusal.code())
    }
}

/// What any operation may refuse with, once its path and method were found.
fn refusals_of_all() -> Vec<Refusal> {
    let name = String::new;
    vec![
        Refusal::UnknownParameter(name()),
        Refusal::BadParameter { name: name(), problem: String::new() },
        Refusal::NoCredential,
        Refusal::BadCredential,
        Refusal::TooManyBadKeys { retry_after: Duration::ZERO },
        Refusal::LedgerAway,
    ]
}

async fn serve<O: Operation>(call: Call<'_>, body: Incoming) -> Result<Response<Full<Bytes>>, Refusal> {
    let (credential, rest) = parameters::split(call.head.uri.query());
    let query = Query::parse(credential.as_deref(), call.gateway.limits.max_duration)?;
    let who = authenticate_now(call.gateway, &call.head.headers, &query).await?;
    let parameters = parameters::read(&rest)?;
    let body = O::Body::read(&call.head.headers, body).await?;
    let answer = O::answer(&call, &who, parameters, body).await?;
    metrics::counter!("ufb_gateway_api_answers_total", "operation" => O::NAME).increment(1);
    Ok(super::json(&answer))
}
