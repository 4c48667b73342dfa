//! One session from its request to its end: the table of contents. The branches are here, the stages are straight.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use billing::{NewSession, Principal, Reserved, SessionRequest};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::api;
use crate::authenticate::authenticate;
use crate::claim::claim;
use crate::hold::{NotHeld, confirm, confirm_begun, hold};
use crate::host::Site;
use crate::query::Query;
use crate::refusal::{Close, Refusal};
use crate::serve::Gateway;
use crate::sessions::{Attached, Estate, Keeper, Last, Live};
use crate::settle::{self, Judgement, Reason, Target, judge, settle};
use crate::splice::{Client, Standing, cut, hang_up, say_goodbye, splice};
use crate::upgrade::Handshake;

/// Paths at which a session with Chromium is started.
const CONNECT_PATHS: [&str; 3] = ["/", "/chromium", "/chrome"];

/// A first reply takes about half a millisecond; a start that is put off by this much is not noticed.
const HEAD_START: Duration = Duration::from_millis(5);

/// A session whose price is set aside and whose browser is claimed. It has no socket, and its minutes do not count yet.
#[derive(Debug)]
pub struct Started {
    held: Reserved,
    estate: Estate,
}

/// A request whose 101 is being sent.
#[derive(Debug)]
pub struct Admitted {
    started: Started,
    client: IpAddr,
}

/// Whether the request came by TLS, which decides the scheme of the URLs in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Plain,
    Tls,
}

/// Everything before the 101: the answer to a request, and the session that follows where it is a 101.
pub async fn admit(
    gateway: &Arc<Gateway>,
    door: Door,
    client: IpAddr,
    request: Request<Incoming>,
) -> (Response<Full<Bytes>>, Option<Admitted>) {
    if api::has(request.uri().path()) {
        return (Box::pin(api::answer(gateway, door, request)).await, None);
    }
    match try_admit(gateway, door, client, &request).await {
        Ok((handshake, admitted)) => (handshake.response(), Some(admitted)),
        Err(refusal) => {
            debug!(code = refusal.code(), path = request.uri().path(), "refused");
            (refusal.into_response(), None)
        }
    }
}

async fn try_admit(
    gateway: &Arc<Gateway>,
    door: Door,
    client: IpAddr,
    request: &Request<Incoming>,
) -> Result<(Handshake, Admitted), Refusal> {
    if !CONNECT_PATHS.contains(&request.uri().path()) {
        return Err(Refusal::NotFound);
    }
    let handshake = Handshake::parse(request)?;
    if gateway.is_draining() {
        return Err(Refusal::Draining);
    }
    let query = Query::parse(request.uri().query())?;
    let who = authenticate(&gateway.billing, request.headers(), &query).await?;
    let new = NewSession::fresh(SessionRequest::default());
    let started = start(gateway, &who, new, &Site::new(gateway, door, request.headers())).await;
    let started = started.map_err(|not_held| match not_held {
        NotHeld::Refused(refusal) => refusal,
        // 128 random bits that were used before: a broken random generator, or a broken store.
        NotHeld::Exists(_) | NotHeld::ExistsDifferent(_) => Refusal::LedgerAway,
    })?;
    Ok((handshake, Admitted { started, client }))
}

/// Place, hold, claim: all that a session needs before it begins.
///
/// Dropping the future before it is done gives back what was taken.
///
/// # Errors
///
/// Why there is no session; nothing is charged then.
pub async fn start(
    gateway: &Arc<Gateway>,
    who: &Principal,
    new: NewSession,
    site: &Site<'_>,
) -> Result<Started, NotHeld> {
    gateway.crowd.may_start(&who.key)?;
    let place = gateway.places.enter()?;
    let held = hold(gateway, who, new, site).await?;
    let (lease, held) = claim(gateway, held, site).await?;
    Ok(Started { held, estate: Estate { lease, place } })
}

/// A session without a socket, which begins now. It ends like any other where nobody attaches to it within
/// `session.connect_timeout`; and by [`Live::end`], after which [`Live::settled`] has its final record.
///
/// # Errors
///
/// Why there is no session; nothing is charged then.
pub async fn start_detached(
    gateway: &Arc<Gateway>,
    who: &Principal,
    new: NewSession,
    site: &Site<'_>,
) -> Result<Arc<Live>, NotHeld> {
    let started = start(gateway, who, new, site).await?;
    if let Err(not_held) = confirm(gateway, &started.held, site).await {
        started.estate.lease.release();
        return Err(not_held);
    }
    let live = begin(gateway, started);
    let keeper = gateway.sessions.begin_detached(Arc::clone(&live));
    tokio::spawn(follow_up(Arc::clone(gateway), Arc::clone(&live)));
    tokio::spawn(keep(Arc::clone(gateway), keeper));
    Ok(live)
}

/// Everything after the 101. `early` is what the client sent right behind its request.
pub async fn run<C: Client>(gateway: &Arc<Gateway>, mut admitted: Admitted, client: C, early: Bytes) {
    let browser = match admitted.started.estate.lease.take_socket().map(TcpStream::from_std) {
        Some(Ok(browser)) => browser,
        Some(Err(_)) | None => {
            warn!(session = %admitted.started.held.session.id, "the browser's socket cannot be used");
            return give_up(gateway, admitted).await;
        }
    };
    let live = begin(gateway, admitted.started);
    let attached = gateway.sessions.begin(Arc::clone(&live), admitted.client);
    tokio::spawn(follow_up(Arc::clone(gateway), live));
    serve_socket(gateway, attached, client, early, browser, Target::Browser).await;
}

fn begin(gateway: &Gateway, started: Started) -> Arc<Live> {
    let Started { held, estate } = started;
    let max_duration = held.session.request.timeout.unwrap_or(Duration::MAX).min(gateway.limits.max_duration);
    Arc::new(Live::new(held, max_duration, gateway.clock.now(), estate))
}

/// One socket of a session, from its 101 to its end; the last one ends the session.
async fn serve_socket<C: Client>(
    gateway: &Arc<Gateway>,
    attached: Attached<'_>,
    mut client: C,
    early: Bytes,
    browser: TcpStream,
    target: Target,
) {
    let ended = splice(&mut client, browser, early, attached.live(), attached.line()).await;
    let judgement = judge(ended.cause, target, attached.live()).await;
    if let Judgement::All(reason) = judgement {
        attached.live().end_as(reason);
    }
    let place = match attached.leave() {
        Some(last) => finish(gateway, last, ended.lasted, judgement).await,
        None => None,
    };
    match (ended.standing, judgement.close()) {
        (Standing::BetweenFrames, Some(close)) => say_goodbye(&mut client, close).await,
        (Standing::BetweenFrames | Standing::CloseSent, _) => hang_up(&mut client).await,
        (Standing::MidFrame | Standing::Gone, _) => cut(&client),
    }
    // Last, so that a drain waits for the goodbye as well.
    drop(place);
}

/// Holds a session that has no socket yet, and settles it where it never gets one.
async fn keep(gateway: Arc<Gateway>, keeper: Keeper) {
    let Some(last) = keeper.watch(&gateway.sessions).await else { return };
    let lasted = last.live().begun.elapsed();
    let reason = last.live().told().unwrap_or(Reason::of(Close::NotConnected));
    finish(&gateway, last, lasted, Judgement::All(reason)).await;
}

/// Nobody is attached any more: the browser goes, the session is settled. The answer is its place, to be given up when
/// all is said.
async fn finish(
    gateway: &Gateway,
    mut last: Last<'_>,
    lasted: Duration,
    judgement: Judgement,
) -> Option<OwnedSemaphorePermit> {
    let outcome = match (judgement, last.live().told()) {
        // Its other sockets were told before; what their clients then did is no reason.
        (Judgement::This(_) | Judgement::Left(_), Some(reason)) => reason.outcome,
        (judgement, _) => judgement.outcome(),
    };
    let Estate { lease, place } = last.take_estate()?;
    lease.release();
    if confirm_begun(gateway, last.live()).await.is_ok() {
        settle(gateway, last.live(), lasted, outcome).await;
    }
    Some(place)
}

/// What a session's beginning sets off on other threads. All of it would compete with the browser's first reply, and
/// none of it is missed for a few milliseconds.
async fn follow_up(gateway: Arc<Gateway>, live: Arc<Live>) {
    sleep(HEAD_START).await;
    gateway.pool.refill();
    if !gateway.sessions.contains(&live.account, &live.id) {
        // Over already, and its beginning noted with its end.
        return;
    }
    if let Err(close) = confirm_begun(&gateway, &live).await {
        return live.end(close);
    }
    gateway.meter.begin(&live);
    info!(session = %live.id, account = %live.account, "a session began");
}

/// The 101 could not be sent: the client had left.
pub async fn give_up(gateway: &Gateway, admitted: Admitted) {
    let Started { held, estate: Estate { lease, place } } = admitted.started;
    lease.release();
    settle::void(gateway, &held, "client left before the 101").await;
    drop(place);
}
