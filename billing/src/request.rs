//! What a customer asks for with a session, as the session's record keeps it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{SessionId, TrackingId};

/// The largest metadata, as compact JSON in bytes. It is written with each change to its session.
pub const METADATA_MAX: usize = 4_096;

/// A session that is to start: its id, and what its customer asks for. An id alone asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSession {
    /// Its name within the account.
    pub id: SessionId,
    /// What is asked for.
    pub request: SessionRequest,
    /// Whether the id was made here, so that no session has it.
    pub(crate) is_fresh: bool,
}

impl NewSession {
    /// One with a new id.
    pub fn fresh(request: SessionRequest) -> Self {
        NewSession { id: SessionId::random(), request, is_fresh: true }
    }

    /// Whether nothing is asked for but a session: any id will do.
    pub fn is_any(&self) -> bool {
        self.is_fresh && self.request.is_empty()
    }

    /// One with the customer's own id, which may be that of a session that exists.
    pub fn named(id: SessionId, request: SessionRequest) -> Self {
        NewSession { id, request, is_fresh: false }
    }
}

impl From<SessionId> for NewSession {
    fn from(id: SessionId) -> Self {
        NewSession::named(id, SessionRequest::default())
    }
}

/// What a customer asks for. Two requests with one id are repeats of each other when these are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionRequest {
    /// How long it may last, where that is less than the operator allows. In JSON milliseconds.
    #[serde(rename = "timeout_millis", with = "millis", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracking_id: Option<TrackingId>,
    /// Whatever the customer wants to find in the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

impl SessionRequest {
    /// Whether nothing is asked for, as with most sessions; their records don't mention it.
    pub(crate) fn is_empty(&self) -> bool {
        *self == SessionRequest::default()
    }
}

/// A JSON object of at most [`METADATA_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Metadata(Map<String, Value>);

/// An object that is too large to be kept with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata is at most {METADATA_MAX} bytes of JSON; this has {0}")]
pub struct MetadataTooLarge(pub usize);

impl Metadata {
    /// The object.
    pub fn as_object(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl TryFrom<Map<String, Value>> for Metadata {
    type Error = MetadataTooLarge;

    fn try_from(object: Map<String, Value>) -> Result<Self, MetadataTooLarge> {
        let bytes = serde_json::to_string(&object).map_or(usize::MAX, |text| text.len());
        if bytes <= METADATA_MAX { Ok(Metadata(object)) } else { Err(MetadataTooLarge(bytes)) }
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::deserialize(from)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_request_survives_its_record() {
        let request = SessionRequest {
            timeout: Some(Duration::from_millis(1_500)),
            tracking_id: Some("nightly-7".parse().unwrap()),
            metadata: Some(Metadata::try_from(object(json!({ "job": 7, "tags": ["a"] }))).unwrap()),
        };
        let record = serde_json::to_value(&request).unwrap();
        assert_eq!(record["timeout_millis"], 1_500);
        assert_eq!(serde_json::from_value::<SessionRequest>(record).unwrap(), request);
        assert_eq!(serde_json::to_value(SessionRequest::default()).unwrap(), json!({}));
    }

    #[test]
    fn metadata_has_a_bound() {
        let with = |bytes: usize| object(json!({ "a": "x".repeat(bytes - r#"{"a":""}"#.len()) }));
        assert!(Metadata::try_from(with(METADATA_MAX)).is_ok());
        assert_eq!(Metadata::try_from(with(METADATA_MAX + 1)), Err(MetadataTooLarge(METADATA_MAX + 1)));
    }
}
