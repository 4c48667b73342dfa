//! A request's body.

use http::HeaderMap;
use hyper::body::Incoming;
use schemars::{Schema, SchemaGenerator};

use crate::refusal::Refusal;

/// What an operation takes from a request's body.
pub(super) trait Input: Sized + Send {
    fn read(headers: &HeaderMap, body: Incoming) -> impl Future<Output = Result<Self, Refusal>> + Send;

    /// Its shape; none where no body is looked at.
    fn schema(schemas: &mut SchemaGenerator) -> Option<Schema>;
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
}
