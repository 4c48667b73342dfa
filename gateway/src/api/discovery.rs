//! What DevTools clients ask a browser over HTTP before they connect. The answers are made here: no browser is taken and
//! nothing is charged. Their URLs carry a token that lives for a minute; the first socket that shows it starts a session.

use std::sync::Arc;

use billing::{Account, Timestamp};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::Full;
use pool::Version;
use serde_json::{Map, Value, json};

use crate::authenticate::{Identity, identify};
use crate::hold::confirm_begun;
use crate::host::Site;
use crate::join;
use crate::query::Query;
use crate::refusal::Refusal;
use crate::route::Document;
use crate::serve::Gateway;
use crate::session::Door;
use crate::sessions::Live;
use crate::token::{Claims, LIFETIME, Purpose};

/// Where Chrome says that its own front end is.
const FRONTEND: &str = "https://chrome-devtools-frontend.appspot.com/serve_rev";

/// The session that an answer is about.
struct Subject {
    claims: Claims,
    /// Where it has been started.
    live: Option<Arc<Live>>,
}

/// Answers a request of discovery. `session` is the id in its path.
///
/// # Errors
///
/// Why it is not answered.
pub(crate) async fn answer<B>(
    gateway: &Gateway,
    door: Door,
    request: &Request<B>,
    query: Option<&str>,
    (document, session): (Document, Option<&str>),
) -> Result<Response<Full<Bytes>>, Refusal> {
    // nodriver asks with `get`.
    if !request.method().as_str().eq_ignore_ascii_case(Method::GET.as_str()) {
        return Err(Refusal::MethodNotAllowed { allow: Method::GET.to_string() });
    }
    if gateway.is_draining() {
        return Err(Refusal::Draining);
    }
    let query = Query::parse(query, gateway.limits.max_duration)?;
    let (identity, account) = identify(gateway, request.headers(), &query).await?;
    let subject = subject(gateway, identity, &account, query, session).await?;
    let site = Site::new(gateway, door, request.headers());
    let body = match document {
        Document::Protocol => gateway.pool.protocol().await.map_err(|_| no_browser())?,
        Document::Version => text(&version(gateway, &site, &subject).await?),
        Document::List => text(&list(gateway, &site, &subject).await?),
    };
    Ok(response(body))
}

/// A key stands for a session that nobody has thought of yet, a token for its own.
async fn subject(
    gateway: &Gateway,
    identity: Identity,
    account: &Account,
    query: Query,
    session: Option<&str>,
) -> Result<Subject, Refusal> {
    if session.is_some() || matches!(identity, Identity::Token(_)) {
        query.no_parameters()?;
    }
    let expires = Timestamp::from_millis(
        gateway.clock.now().as_millis() + u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX),
    );
    if let Some(id) = session {
        let live = join::find(gateway, &identity, id).await?;
        return Ok(running(live, &identity, expires));
    }
    let names_session = query.names_session();
    if account.suspended {
        return Err(Refusal::Suspended);
    }
    match identity {
        Identity::Key(who) => {
            let mut session = query.into_session();
            if !names_session {
                session.id = gateway.tokens.mint_id(&who.account, expires);
            }
            let claims = Claims { who, session, purpose: Purpose::Start, expires };
            Ok(Subject { claims, live: None })
        }
        Identity::Token(ref claims) => {
            match gateway.sessions.find(&claims.who.account, &claims.session.id) {
                Some(live) => Ok(running(live, &identity, expires)),
                // Asking again must not keep a token alive that starts a session.
                None => Ok(Subject { claims: claims.clone(), live: None }),
            }
        }
    }
}

fn running(live: Arc<Live>, identity: &Identity, expires: Timestamp) -> Subject {
    let session = live.id.clone().into();
    let claims = Claims { who: identity.who().clone(), session, purpose: Purpose::Attach, expires };
    Subject { claims, live: Some(live) }
}

async fn version(
    gateway: &Gateway,
    site: &Site<'_>,
    subject: &Subject,
) -> Result<Map<String, Value>, Refusal> {
    let mut version = Map::clone(&*about(gateway).await?);
    let url =
        socket_url(gateway, &site.ws_with_key(), subject, "browser", subject.claims.session.id.as_str());
    version.insert("webSocketDebuggerUrl".to_owned(), url.into());
    Ok(version)
}

/// A session that nobody has started has the one page that every browser of the pool begins with. Its id is the session's:
/// lower case, as no id of Chrome's is.
async fn list(gateway: &Gateway, site: &Site<'_>, subject: &Subject) -> Result<Vec<Value>, Refusal> {
    let mut pages = match &subject.live {
        Some(live) => pages(gateway, live).await?,
        None => vec![json!({
            "description": "",
            "id": subject.claims.session.id.as_str(),
            "title": "about:blank",
            "type": "page",
            "url": "about:blank",
        })],
    };
    let version = about(gateway).await?;
    for page in pages.iter_mut().filter_map(Value::as_object_mut) {
        let Some(id) = page.get("id").and_then(Value::as_str).map(str::to_owned) else { continue };
        let url = socket_url(gateway, &site.ws_with_key(), subject, "page", &id);
        page.remove("devtoolsFrontendUrl");
        // It is opened elsewhere, so it has no key in it.
        let public = socket_url(gateway, &site.ws(), subject, "page", &id);
        if let Some(frontend) = frontend_url(&version, &public) {
            page.insert("devtoolsFrontendUrl".to_owned(), frontend.into());
        }
        page.insert("webSocketDebuggerUrl".to_owned(), url.into());
    }
    Ok(pages)
}

async fn pages(gateway: &Gateway, live: &Live) -> Result<Vec<Value>, Refusal> {
    // Nothing of its browser is told before it is held.
    confirm_begun(gateway, live).await.map_err(|_| Refusal::NoSession)?;
    let upstream = live.upstream().ok_or(Refusal::NoSession)?;
    upstream.pages().await.map_err(|error| {
        tracing::debug!(%error, session = %live.id, "a browser does not list its pages");
        Refusal::NoSession
    })
}

async fn about(gateway: &Gateway) -> Result<Version, Refusal> {
    gateway.pool.version().await.map_err(|_| no_browser())
}

fn no_browser() -> Refusal {
    Refusal::NoBrowser { retry_after: std::time::Duration::from_secs(1) }
}

fn socket_url(gateway: &Gateway, site: &str, subject: &Subject, what: &str, id: &str) -> String {
    format!("{site}/devtools/{what}/{id}?token={}", gateway.tokens.sign(&subject.claims))
}

/// Opens a page in Chrome's own DevTools. `WebKit-Version` ends in the revision that they have to be of, like `(@a21ce9…)`.
fn frontend_url(version: &Map<String, Value>, socket: &str) -> Option<String> {
    let (_, revision) = version.get("WebKit-Version")?.as_str()?.split_once('(')?;
    let (scheme, rest) = socket.split_once("://")?;
    let rest: String = form_urlencoded::byte_serialize(rest.as_bytes()).collect();
    Some(format!("{FRONTEND}/{}/inspector.html?{scheme}={rest}", revision.trim_end_matches(')')))
}

fn text(document: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec_pretty(document).expect("the keys are texts").into()
}

fn response(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    // It has a token in it, and each answer another one.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
