//! A request's body: bounded, read by a deadline, and JSON of a known shape.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::time::timeout;

use crate::refusal::Refusal;

/// The largest body that is read. The largest that makes sense has metadata of 4 KiB, written with escapes.
pub(super) const LARGEST: usize = 64 * 1024;
/// From the request's head to the end of its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is read of a body that is too large before the refusal: a client that is still sending when the connection
/// ends would see a reset, not the answer.
const READ_AND_DROPPED: usize = 1024 * 1024;

/// What an operation takes from a request's body.
pub(super) trait Input: Sized + Send {
    fn read(headers: &HeaderMap, body: Incoming) -> impl Future<Output = Result<Self, Refusal>> + Send;

    /// Its shape; none where no body is looked at.
    fn schema(schemas: &mut SchemaGenerator) -> Option<Schema>;

    /// What reading it may be refused with.
    fn refusals() -> Vec<Refusal>;
}

/// No body is looked at.
#[derive(Debug)]
pub(super) struct None;

impl Input for None {
    async fn read(_: &HeaderMap, _: Incoming) -> Result<Self, Refusal> {
        Ok(None)
    }

    fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
        Option::None
    }

    fn refusals() -> Vec<Refusal> {
        Vec::new()
    }
}

/// A JSON object, all of whose fields may be left out; so may the body.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned + JsonSchema + Send> Input for Json<T> {
    async fn read(headers: &HeaderMap, body: Incoming) -> Result<Self, Refusal> {
        check_type(headers)?;
        let bytes = timeout(PATIENCE, collect(body));
        let bytes = bytes.await.map_err(|_| Refusal::BodyTimeout)??;
        parse(if bytes.is_empty() { b"{}" } else { &bytes }).map(Json)
    }

    fn schema(schemas: &mut SchemaGenerator) -> Option<Schema> {
        Some(schemas.subschema_for::<T>())
    }

    fn refusals() -> Vec<Refusal> {
        let (field, problem) = (String::new, String::new);
        vec![
            Refusal::ContentType,
            Refusal::BodyTimeout,
            Refusal::BodyTooLarge { limit: LARGEST },
            Refusal::InvalidJson { problem: problem() },
            Refusal::UnknownField { field: field(), problem: problem() },
            Refusal::InvalidField { field: field(), problem: problem() },
        ]
    }
}

/// A client that names no type is taken to mean JSON.
fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(given) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let given = given.to_str().unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(Refusal::ContentType) }
}

async fn collect(mut body: Incoming) -> Result<Bytes, Refusal> {
    let told = body.size_hint().lower();
    if told > READ_AND_DROPPED as u64 {
        return Err(Refusal::BodyTooLarge { limit: LARGEST });
    }
    let (mut read, mut bytes) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        // Whoever cut it short does not listen any more.
        let Ok(data) = frame.map_err(|_| Refusal::BodyTimeout)?.into_data() else { continue };
        read += data.len();
        if read > READ_AND_DROPPED {
            break;
        }
        if read <= LARGEST {
            bytes.extend_from_slice(&data);
        }
    }
    if read <= LARGEST { Ok(bytes.into()) } else { Err(Refusal::BodyTooLarge { limit: LARGEST }) }
}

/// # Errors
///
/// [`Refusal::InvalidJson`], or what is wrong with which field.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json);
    let parsed = parsed.map_err(|error| {
        let place = error.path().to_string();
        let error = error.into_inner();
        let problem = error.to_string();
        let field = super::culprit(&place, &problem).filter(|_| error.classify() == Category::Data);
        match field {
            Some(field) if problem.starts_with("unknown field") => Refusal::UnknownField { field, problem },
            Some(field) => Refusal::InvalidField { field, problem },
            Option::None => Refusal::InvalidJson { problem },
        }
    })?;
    json.end().map_err(|error| Refusal::InvalidJson { problem: error.to_string() })?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only whether it parses is looked at")]
    struct Shape {
        timeout: Option<u32>,
        metadata: Option<serde_json::Map<String, serde_json::Value>>,
    }

    fn refused(text: &str) -> Refusal {
        parse::<Shape>(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_is_no_json_object() {
        let deep = format!("{{\"metadata\":{{\"a\":{}", "[".repeat(500));
        for text in ["", "{", "[]", "\"a\"", "{} {}", "{'timeout': 1}", "\u{feff}{}", &deep] {
            assert!(matches!(refused(text), Refusal::InvalidJson { .. }), "{text}: {:?}", refused(text));
        }
    }

    #[test]
    fn the_field_is_named() {
        let twice = r#"{"timeout": 1, "timeout": 2}"#;
        for text in [r#"{"timeout": "1"}"#, r#"{"timeout": -1}"#, r#"{"timeout": 1.5}"#, twice] {
            let refusal = refused(text);
            assert!(
                matches!(&refusal, Refusal::InvalidField { field, .. } if field == "timeout"),
                "{text}: {refusal:?}"
            );
        }
        let refusal = refused(r#"{"colour": 1}"#);
        assert!(
            matches!(&refusal, Refusal::UnknownField { field, problem } if field == "colour" && problem.contains("`timeout`")),
            "{refusal:?}"
        );
    }

    #[test]
    fn what_may_be_left_out() {
        parse::<Shape>(b"{}").unwrap();
        parse::<Shape>(br#" {"timeout": null, "metadata": {"a": [1, {"b": 2}]}} "#).unwrap();
    }
}
