//! The OpenAPI document, made of the table of operations and their types.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::Full;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::limits::Limits;
use crate::refusal::Refusal;
use crate::serve::Gateway;

use super::operation::{ID, Route};
use super::{ROUTES, sessions, shapes};

pub(super) const PATH: &str = "/openapi.json";

const DEFINITIONS: &str = "/components/schemas";
const DESCRIPTION: &str = "Browsers that are already running. Create a session, connect a script to its `cdpUrl`, end \
    it. Money is in dollars, with an integer twin in micro-dollars beside each amount; durations are in milliseconds. \
    A refusal is a problem document (RFC 9457) with a stable `code`.";

/// `GET /openapi.json`, for everybody. It says the same as long as the gateway runs.
pub(super) fn answer<B>(gateway: &Gateway, request: &Request<B>) -> Result<Response<Full<Bytes>>, Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::MethodNotAllowed { allow: Method::GET.to_string() });
    }
    let document = gateway.openapi.get_or_init(|| document(&gateway.limits).to_string().into());
    let mut response = Response::new(Full::new(document.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Where shapes are collected. A field that may be left out of what is asked is there in what is answered, as null.
#[derive(Debug)]
pub(super) struct Schemas {
    pub(super) asked: SchemaGenerator,
    pub(super) answered: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = DEFINITIONS.into();
            settings.meta_schema = None;
        });
        Self {
            asked: settings.clone().for_deserialize().into_generator(),
            answered: settings.for_serialize().into_generator(),
        }
    }

    /// All that were collected, by name.
    fn definitions(&mut self) -> Map<String, Value> {
        let mut definitions = self.asked.take_definitions(true);
        definitions.extend(self.answered.take_definitions(true));
        definitions
    }
}

/// All operations, this document's own among them.
pub(super) fn document(limits: &Limits) -> Value {
    let mut schemas = Schemas::new();
    let problem = schemas.answered.subschema_for::<Problem>().to_value();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in &ROUTES {
        let method = route.method.as_str().to_ascii_lowercase();
        paths.entry(route.path).or_default().insert(method, operation(route, &problem, &mut schemas));
    }
    paths.entry(PATH).or_default().insert("get".to_owned(), own_operation());
    let mut definitions = schemas.definitions();
    sessions::tell_limits(&mut definitions, limits);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "UFBrowsers",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "security": [{ "bearer": [] }, { "header": [] }, { "query": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "header": { "type": "apiKey", "in": "header", "name": "x-api-key" },
                "query": { "type": "apiKey", "in": "query", "name": "token" },
            },
            "schemas": definitions,
        },
    })
}

/// A problem document (RFC 9457). Some codes bring further members.
#[derive(Debug, Serialize, JsonSchema)]
struct Problem {
    /// Always `about:blank`: the code says which problem it is.
    #[serde(rename = "type")]
    kind: String,
    /// In words, the same for all of its code.
    title: String,
    /// The answer's status.
    #[schemars(range(min = 400, max = 599))]
    status: u16,
    /// Stable; what programs look at.
    code: String,
    /// What to do about it.
    detail: String,
}

fn operation(route: &Route, problem: &Value, schemas: &mut Schemas) -> Value {
    let description = route.describe(schemas);
    let mut responses = refusals(route, problem);
    responses.insert("200".to_owned(), success(route, &description.answer.to_value()));
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.summary,
        "parameters": parameters(route, &description.parameters.to_value(), &mut schemas.asked),
        "responses": responses,
    });
    if let Some(body) = description.body {
        let content = json!({ "application/json": { "schema": body } });
        operation["requestBody"] = json!({ "required": false, "content": content });
    }
    operation
}

/// The path's id, then the query.
fn parameters(route: &Route, query: &Value, schemas: &mut SchemaGenerator) -> Vec<Value> {
    let mut parameters = Vec::new();
    if route.path.contains(ID) {
        let name = ID.trim_matches(['{', '}']);
        parameters
            .push(json!({ "name": name, "in": "path", "required": true, "schema": shapes::id(schemas) }));
    }
    let Some(Value::Object(properties)) = query.get("properties") else { return parameters };
    for (name, schema) in properties {
        parameters.push(json!({ "name": name, "in": "query", "required": false, "schema": schema }));
    }
    parameters
}

fn success(route: &Route, answer: &Value) -> Value {
    let mut success =
        json!({ "description": "Done.", "content": { "application/json": { "schema": answer } } });
    for name in route.leads_to {
        let id = json!({ ID.trim_matches(['{', '}']): "$response.body#/sessionId" });
        success["links"][name] = json!({ "operationId": name, "parameters": id });
    }
    success
}

/// One response for each status, which names the codes that come with it.
fn refusals(route: &Route, problem: &Value) -> Map<String, Value> {
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for refusal in route.refusals() {
        let words = format!("`{}`: {}.", refusal.code(), refusal.title());
        told.entry(refusal.status().as_str().to_owned()).or_default().push(words);
    }
    let content = json!({ "application/problem+json": { "schema": problem } });
    let response = |words: Vec<String>| json!({ "description": words.join(" "), "content": content });
    told.into_iter().map(|(status, words)| (status, response(words))).collect()
}

fn own_operation() -> Value {
    let content = json!({ "application/json": { "schema": { "type": "object" } } });
    json!({
        "operationId": "describe",
        "summary": "This document.",
        "security": [],
        "responses": { "200": { "description": "Done.", "content": content } },
    })
}
