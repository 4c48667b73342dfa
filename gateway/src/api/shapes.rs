//! What answers are made of, and how it looks in the document.

use std::borrow::Cow;

use billing::{ID_MAX, Micros, Timestamp};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Number;

/// What an id looks like.
const ID_PATTERN: &str = "^[A-Za-z0-9._-]+$";

/// Dollars as a decimal number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dollars(pub(super) Micros);

impl Serialize for Dollars {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.dollars().serialize(to)
    }
}

impl JsonSchema for Dollars {
    fn schema_name() -> Cow<'static, str> {
        "Dollars".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0 })
    }
}

/// Micro-dollars as an integer.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct MicroDollars(pub(super) Micros);

impl JsonSchema for MicroDollars {
    fn schema_name() -> Cow<'static, str> {
        "MicroDollars".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": Micros::MAX.get() })
    }
}

/// An instant, in RFC 3339.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// A whole number from 0 on, or null. In JSON `1.0` is one as well, and some languages write it.
pub(super) fn whole_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(from)? else { return Ok(None) };
    let whole = || number.to_string().strip_suffix(".0")?.parse().ok();
    let wrong = || D::Error::custom(format!("{number} is not a whole number from 0 on"));
    number.as_u64().or_else(whole).map(Some).ok_or_else(wrong)
}

/// An id, to be named by `#[schemars(schema_with = "…")]`.
pub(super) fn id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": ID_PATTERN, "minLength": 1, "maxLength": ID_MAX })
}

/// An id, or null.
pub(super) fn optional_id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "null"], "pattern": ID_PATTERN, "minLength": 1, "maxLength": ID_MAX })
}
