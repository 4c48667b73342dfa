//! Sockets of sessions that exist, or that somebody may have started a moment ago: who may have which, and how it is
//! opened.
//!
//! What belongs to somebody else is answered just as what never was.

use std::net::IpAddr;
use std::sync::Arc;

use billing::{NewSession, Principal, Session, SessionId};
use futures_util::future::select_ok;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use crate::api;
use crate::authenticate::{Identity, authenticate, identify, token_beside};
use crate::hold::NotHeld;
use crate::host::Site;
use crate::refusal::Refusal;
use crate::serve::Gateway;
use crate::session::{self, Admitted, Call, Started};
use crate::sessions::{Attached, Live, NotAttached, SOCKETS, Starting};
use crate::settle::Target;
use crate::token::{Claims, Purpose};

/// Sessions that are asked for a page at a time.
const CANDIDATES: usize = 64;
/// The same for who shows no credential, and may be anybody behind the same address.
const STRANGERS_CANDIDATES: usize = 16;
/// Longer than the ids of Chrome's targets.
const TARGET_MAX: usize = 64;

/// `/?sessionId=…`: starts that session, or attaches to it where it was made without a socket.
///
/// # Errors
///
/// Why there is no socket; nothing is charged then.
pub async fn named<'a>(call: Call<'a, '_>) -> Result<Admitted<'a>, Refusal> {
    let who = authenticate(&call.gateway.billing, call.headers, &call.query).await?;
    let Call { gateway, client, site, query, .. } = call;
    let new = query.into_session();
    match start_or_find(gateway, &who, new.clone(), &site).await? {
        Found::Started(started, starting) => Ok(first(started, starting, None, client)),
        Found::Live(live) => {
            same_request(gateway, &live, &new).await?;
            match attach(gateway, &live, client).await {
                Err(Refusal::NoSession) => Err(over(gateway, &live, &new).await),
                attached => attached,
            }
        }
        Found::Known(session) => Err(known(gateway, &session, &new)),
    }
}

/// `/sessions/{id}`: the socket of a session that was made without one.
///
/// # Errors
///
/// Why there is no socket.
pub async fn session<'a>(call: Call<'a, '_>, id: &str) -> Result<Admitted<'a>, Refusal> {
    call.query.no_parameters()?;
    let (identity, _) = identify(call.gateway, call.headers, &call.query).await?;
    attach(call.gateway, &find(call.gateway, &identity, id).await?, call.client).await
}

/// `/devtools/browser/{id}`: one more socket to the browser of that session; the first one where a token from discovery
/// says so.
///
/// # Errors
///
/// Why there is no socket; nothing is charged then.
pub async fn browser<'a>(call: Call<'a, '_>, id: &str) -> Result<Admitted<'a>, Refusal> {
    call.query.no_parameters()?;
    let (identity, _) = identify(call.gateway, call.headers, &call.query).await?;
    let live = match may_start(&call, &identity, id) {
        Some(claims) => match start_claimed(&call, claims).await? {
            Found::Started(started, starting) => {
                return Ok(first(started, starting, None, call.client));
            }
            Found::Live(live) => live,
            Found::Known(session) => return Err(gone(call.gateway, &session)),
        },
        None => find(call.gateway, &identity, id).await?,
    };
    join_browser(&call, &live).await
}

/// `/devtools/page/{target}`: a socket to a page. The id is a session's, as discovery tells it, for the browser's first
/// page; or that of a target, in whichever of the caller's sessions it is. Who shows no credential at all gets what
/// belongs to sessions of the same address: there are clients that open pages without repeating their credential.
///
/// # Errors
///
/// Why there is no socket; nothing is charged then.
pub async fn page<'a>(call: Call<'a, '_>, target: &str) -> Result<Admitted<'a>, Refusal> {
    call.query.no_parameters()?;
    let identity = match identify(call.gateway, call.headers, &call.query).await {
        Ok((identity, _)) => Some(identity),
        Err(Refusal::NoCredential) => None,
        Err(refusal) => return Err(refusal),
    };
    let Some(identity) = identity else {
        let candidates = call.gateway.sessions.of_client(call.client, STRANGERS_CANDIDATES);
        return join_page(&call, candidates, target).await.map_err(|refusal| match refusal {
            // The same whether the page is somebody else's or nobody's.
            Refusal::NoSession => Refusal::NoCredential,
            refusal => refusal,
        });
    };
    if let Some(claims) = may_start(&call, &identity, target) {
        return match start_claimed(&call, claims).await? {
            Found::Started(started, starting) => {
                let (started, socket) = session::open_first_page(call.gateway, started).await?;
                Ok(first(started, starting, Some(socket), call.client))
            }
            Found::Live(live) => join_first_page(&call, &live).await,
            Found::Known(session) => Err(gone(call.gateway, &session)),
        };
    }
    let sessions = &call.gateway.sessions;
    let named = may_know(&identity, target).ok();
    if let Some(live) = named.and_then(|id| sessions.find(&identity.who().account, &id)) {
        return join_first_page(&call, &live).await;
    }
    let candidates = match &identity {
        Identity::Token(Claims { who, session, .. }) => {
            sessions.find(&who.account, &session.id).into_iter().collect()
        }
        Identity::Key(who) => sessions.of_account(&who.account, CANDIDATES),
    };
    match join_page(&call, candidates, target).await {
        // Not a page, then; it may be the name of a session that is not live here.
        Err(Refusal::NoSession) => {
            Err(find(call.gateway, &identity, target).await.err().unwrap_or(Refusal::SessionBusy))
        }
        joined => joined,
    }
}

/// The live session of that id which the caller may know of.
///
/// # Errors
///
/// [`Refusal::NoSession`]; or, of a session of the caller's own, that it is not to be had here or now.
pub(crate) async fn find(gateway: &Gateway, identity: &Identity, id: &str) -> Result<Arc<Live>, Refusal> {
    let id = may_know(identity, id)?;
    let account = &identity.who().account;
    if let Some(live) = gateway.sessions.find(account, &id) {
        return Ok(live);
    }
    match gateway.billing.session(account, &id).await {
        Ok(Some(session)) => Err(gone(gateway, &session)),
        Ok(None) => Err(Refusal::NoSession),
        Err(error) => {
            tracing::warn!(%error, "a session could not be looked up");
            Err(Refusal::LedgerAway)
        }
    }
}

/// A token is for its own session, a key for all of its account's.
fn may_know(identity: &Identity, id: &str) -> Result<SessionId, Refusal> {
    let id = id.parse().map_err(|_| Refusal::NoSession)?;
    match identity {
        Identity::Token(claims) if claims.session.id != id => Err(Refusal::NoSession),
        Identity::Token(_) | Identity::Key(_) => Ok(id),
    }
}

/// Why there is no socket to a session of the caller's own which is not live here.
fn gone(gateway: &Gateway, session: &Session) -> Refusal {
    match session.state.is_open() {
        false => Refusal::NoSession,
        true if session.gateway != gateway.id => Refusal::SessionElsewhere,
        true => Refusal::SessionBusy,
    }
}

/// With what the session of that id may be started: a token says it; or there is a key, and the id is one that discovery
/// thought of for its account.
fn may_start(call: &Call<'_, '_>, identity: &Identity, id: &str) -> Option<Claims> {
    let gateway = call.gateway;
    let claims = match identity {
        Identity::Token(claims) => Some(claims.clone()),
        Identity::Key(who) => token_beside(gateway, who, &call.query).or_else(|| {
            let now = gateway.clock.now();
            let is_minted = gateway.tokens.is_minted(&who.account, id, now);
            let session = id.parse::<SessionId>().ok().filter(|_| is_minted)?.into();
            Some(Claims { who: who.clone(), session, purpose: Purpose::Start, expires: now })
        }),
    };
    claims.filter(|claims| claims.purpose == Purpose::Start && claims.session.id.as_str() == id)
}

/// What became of a session whose id others know as well.
#[expect(clippy::large_enum_variant, reason = "each is taken apart where it is made")]
enum Found<'a> {
    Started(Started, Starting<'a>),
    Live(Arc<Live>),
    /// It is in the ledger, and not live here.
    Known(Box<Session>),
}

async fn start_claimed<'a>(call: &Call<'a, '_>, claims: Claims) -> Result<Found<'a>, Refusal> {
    start_or_find(call.gateway, &claims.who, claims.session, &call.site).await
}

/// Starts a session unless somebody has; one who is at it is waited for.
async fn start_or_find<'a>(
    gateway: &'a Arc<Gateway>,
    who: &Principal,
    new: NewSession,
    site: &Site<'_>,
) -> Result<Found<'a>, Refusal> {
    if let Some(live) = gateway.sessions.find(&who.account, &new.id) {
        return Ok(Found::Live(live));
    }
    let starting = may_be_first(gateway, who, &new.id).await?;
    if let Some(live) = gateway.sessions.find(&who.account, &new.id) {
        return Ok(Found::Live(live));
    }
    match session::start(gateway, who, new, site).await {
        Ok(started) => Ok(Found::Started(started, starting)),
        Err(NotHeld::Exists(session) | NotHeld::ExistsDifferent(session)) => Ok(Found::Known(session)),
        Err(NotHeld::Refused(refusal)) => Err(refusal),
    }
}

/// Waits until nobody else is starting a session of that id. It may be live by then.
///
/// # Errors
///
/// [`Refusal::SessionBusy`]: somebody has been at it for as long as a start may take.
pub(crate) async fn may_be_first<'a>(
    gateway: &'a Gateway,
    who: &Principal,
    id: &SessionId,
) -> Result<Starting<'a>, Refusal> {
    let deadline = Instant::now() + gateway.start_timeout;
    loop {
        match gateway.sessions.start(&who.account, id) {
            Ok(starting) => return Ok(starting),
            Err(mut other) => {
                // An error is what is waited for: whoever was at it is done.
                let _ = timeout_at(deadline, other.changed()).await.map_err(|_| Refusal::SessionBusy)?;
            }
        }
    }
}

/// A repeat that asks for something else is none.
async fn same_request(gateway: &Gateway, live: &Live, new: &NewSession) -> Result<(), Refusal> {
    let asked = &new.request;
    if asked.timeout.is_none() && asked.tracking_id.is_none() {
        return Ok(());
    }
    let record = gateway.billing.session(&live.account, &live.id).await.map_err(|error| {
        tracing::warn!(%error, "a session could not be looked up");
        Refusal::LedgerAway
    })?;
    let record = record.ok_or(Refusal::SessionBusy)?;
    let same = |session: &Session| {
        (&session.request.timeout, &session.request.tracking_id) == (&asked.timeout, &asked.tracking_id)
    };
    if same(&record) {
        return Ok(());
    }
    Err(Refusal::SessionDiffers { session: api::session_document(gateway, &record) })
}

/// Why a session that is in the ledger cannot be had here.
fn known(gateway: &Gateway, session: &Session, new: &NewSession) -> Refusal {
    match session.state.is_open() {
        true => gone(gateway, session),
        false if session.request != new.request => {
            Refusal::SessionDiffers { session: api::session_document(gateway, session) }
        }
        false => Refusal::SessionEnded { session: api::session_document(gateway, session) },
    }
}

/// The same for one that is live and ends at this moment: its record comes soon.
async fn over(gateway: &Gateway, live: &Live, new: &NewSession) -> Refusal {
    match timeout(gateway.start_timeout, live.settled()).await {
        Ok(Some(record)) => known(gateway, &record, new),
        Ok(None) | Err(_) => Refusal::SessionBusy,
    }
}

async fn attach<'a>(gateway: &'a Gateway, live: &Arc<Live>, client: IpAddr) -> Result<Admitted<'a>, Refusal> {
    let attached = gateway.sessions.attach_alone(live, client).map_err(not_attached)?;
    match attached.take_socket().and_then(|socket| TcpStream::from_std(socket).ok()) {
        Some(socket) => Ok(joined(attached, socket, Target::Browser, None)),
        // Nobody was attached before, so nobody has taken it; a reactor that takes no socket more is at its end.
        None => {
            session::leave(gateway, attached).await;
            Err(Refusal::Full)
        }
    }
}

async fn join_browser<'a>(call: &Call<'a, '_>, live: &Arc<Live>) -> Result<Admitted<'a>, Refusal> {
    let place = call.gateway.places.join()?;
    if live.has_socket() {
        let attached = join(call, live)?;
        if let Some(socket) = attached.take_socket().and_then(|socket| TcpStream::from_std(socket).ok()) {
            return Ok(joined(attached, socket, Target::Browser, Some(place)));
        }
        // Somebody else was faster.
        session::leave(call.gateway, attached).await;
    }
    let upstream = live.upstream().ok_or(Refusal::NoSession)?;
    let socket = upstream.open_browser().await.map_err(|_| Refusal::NoSession)?;
    Ok(joined(join(call, live)?, socket, Target::Browser, Some(place)))
}

async fn join_first_page<'a>(call: &Call<'a, '_>, live: &Arc<Live>) -> Result<Admitted<'a>, Refusal> {
    let place = call.gateway.places.join()?;
    let upstream = live.upstream().ok_or(Refusal::NoSession)?;
    let socket = upstream.open_first_page().await.map_err(|_| Refusal::NoSession)?;
    Ok(joined(join(call, live)?, socket, Target::Page, Some(place)))
}

fn first<'a>(
    started: Started,
    starting: Starting<'a>,
    page: Option<TcpStream>,
    client: IpAddr,
) -> Admitted<'a> {
    Admitted::First { started, client, starting: Some(starting), page }
}

fn joined(
    attached: Attached<'_>,
    socket: TcpStream,
    target: Target,
    place: Option<OwnedSemaphorePermit>,
) -> Admitted<'_> {
    Admitted::Joined { attached, socket, target, place }
}

/// Asks the browsers of all candidates for the target; an id of Chrome's is of 128 random bits, so one of them has it.
async fn join_page<'a>(
    call: &Call<'a, '_>,
    candidates: Vec<Arc<Live>>,
    target: &str,
) -> Result<Admitted<'a>, Refusal> {
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if target.len() > TARGET_MAX || !target.bytes().all(is_id) || candidates.is_empty() {
        return Err(Refusal::NoSession);
    }
    let place = call.gateway.places.join()?;
    let opening = candidates.into_iter().map(|live| Box::pin(open_page(live, target)));
    let ((live, socket), _) = select_ok(opening).await.map_err(|()| Refusal::NoSession)?;
    Ok(joined(join(call, &live)?, socket, Target::Page, Some(place)))
}

async fn open_page(live: Arc<Live>, target: &str) -> Result<(Arc<Live>, TcpStream), ()> {
    let upstream = live.upstream().ok_or(())?;
    let socket = upstream.open_page(target).await.map_err(|_| ())?;
    Ok((live, socket))
}

fn join<'a>(call: &Call<'a, '_>, live: &Arc<Live>) -> Result<Attached<'a>, Refusal> {
    call.gateway.sessions.join(live, call.client).map_err(not_attached)
}

fn not_attached(why: NotAttached) -> Refusal {
    match why {
        NotAttached::Over => Refusal::NoSession,
        NotAttached::Connected => Refusal::AlreadyConnected,
        NotAttached::TooMany => Refusal::TooManySockets { limit: SOCKETS },
    }
}

#[cfg(test)]
mod tests {
    use billing::GatewayId;

    use super::*;

    #[tokio::test]
    async fn what_is_not_live_here() {
        let (gateway, _folder) = Gateway::for_tests().await;
        let (owner, other) = (gateway.customer_for_tests().await, gateway.customer_for_tests().await);
        let now = gateway.clock.now();
        for (id, by) in [("here", gateway.id.clone()), ("elsewhere", GatewayId::random())] {
            let id: SessionId = id.parse().unwrap();
            gateway.billing.hold(&owner, id, &by, now).await.unwrap();
        }
        let ended =
            gateway.billing.hold(&owner, SessionId::random(), &gateway.id, now).await.unwrap().session;
        gateway.billing.void(ended.name(), "test", now).await.unwrap();

        let cases = [
            (&owner, "here", "session_busy"),
            (&owner, "elsewhere", "session_elsewhere"),
            (&owner, ended.id.as_str(), "no_session"),
            (&owner, "never", "no_session"),
            (&owner, "no id", "no_session"),
            (&other, "here", "no_session"),
            (&other, "elsewhere", "no_session"),
        ];
        for (who, id, code) in cases {
            let found = find(&gateway, &Identity::Key(who.clone()), id).await;
            assert_eq!(found.unwrap_err().code(), code, "{id}");
        }
    }
}
