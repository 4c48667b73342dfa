//! The REST API. Its operations are in one table: requests are dispatched by it and the document at `/openapi.json` is
//! made of it, so that each says what the other does.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use tracing::debug;

use crate::refusal::Refusal;
use crate::route;
use crate::serve::Gateway;
use crate::session::Door;

mod operation;
mod parameters;
mod body;
mod shapes;
mod sessions;
mod account;
mod usage;
mod openapi;
pub(crate) mod discovery;

use operation::{Call, Route};

/// What every operation's path begins with.
const PREFIX: &str = "/api/";

/// All operations.
static ROUTES: [Route; 6] = [
    Route::of::<sessions::Create>(),
    Route::of::<sessions::End>(),
    Route::of::<sessions::List>(),
    Route::of::<sessions::Show>(),
    Route::of::<usage::Show>(),
    Route::of::<account::Show>(),
];

/// Whether a path is the API's, with an operation or without.
#[must_use]
pub fn has(path: &str) -> bool {
    path.starts_with(PREFIX) || path == openapi::PATH
}

/// Answers a request whose path is the [API's](has).
pub async fn answer(gateway: &Arc<Gateway>, door: Door, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let answered = if path == openapi::PATH {
        openapi::answer(gateway, &request)
    } else {
        dispatch(gateway, door, request).await
    };
    answered.unwrap_or_else(|refusal| {
        debug!(code = refusal.code(), place = route::place(&path), "refused");
        refusal.into_response()
    })
}

async fn dispatch(
    gateway: &Arc<Gateway>,
    door: Door,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let (route, id) = find(&request)?;
    let (head, body) = request.into_parts();
    let answered = route.serve(Call { gateway, door, head: &head, id }, body).await;
    if let Err(refusal) = &answered {
        // The document would not be true.
        debug_assert!(route.may_refuse(refusal), "{}: {refusal:?} is not among its refusals", route.name);
    }
    answered
}

/// The operation, and the id in its path where it has one. A path that is written out wins over one with an id in it.
fn find<B>(request: &Request<B>) -> Result<(&'static Route, Option<String>), Refusal> {
    let path = request.uri().path();
    let mut there: Vec<_> = ROUTES.iter().filter_map(|route| Some((route, route.matches(path)?))).collect();
    if there.iter().any(|(_, id)| id.is_none()) {
        there.retain(|(_, id)| id.is_none());
    }
    if there.is_empty() {
        return Err(Refusal::NotFound);
    }
    let allowed: Vec<_> = there.iter().map(|(route, _)| route.method.as_str()).collect();
    let refusal = Refusal::MethodNotAllowed { allow: allowed.join(", ") };
    there.into_iter().find(|(route, _)| route.method == *request.method()).ok_or(refusal)
}

/// The name of what is wrong in a query or a body: by its place in it, or, where that is the whole, as the problem quotes
/// it.
fn culprit(place: &str, problem: &str) -> Option<String> {
    let quoted = || Some(problem.split('`').nth(1)?.to_owned());
    if place == "." { quoted() } else { Some(place.to_owned()) }
}

/// A session as its customer sees it, for refusals that tell of one.
pub(crate) fn session_document(gateway: &Gateway, session: &billing::Session) -> serde_json::Value {
    serde_json::to_value(sessions::View::of(session.clone(), gateway)).expect("its keys are texts")
}

/// 200 with a document. It may hold a token, so nobody on the way keeps it.
fn json(document: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(document).expect("answers have no keys that JSON lacks");
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
