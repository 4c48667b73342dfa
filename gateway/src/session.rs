//! One session from its request to its end: the table of contents. The branches are here, the stages are straight.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use billing::{HoldError, NewSession, Principal, Reserved, StoreError};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::api::{self, discovery};
use crate::authenticate::{authenticate, may_try};
use crate::claim::claim;
use crate::hold::{NotHeld, confirm, confirm_begun, hold, may_be_held, not_held};
use crate::host::Site;
use crate::join;
use crate::pacing;
use crate::query::Query;
use crate::refusal::{self, Close, Refusal};
use crate::route::{self, Asked, Route};
use crate::serve::Gateway;
use crate::sessions::{Attached, Estate, Keeper, Last, Live, Starting};
use crate::settle::{self, Judgement, Reason, Target, judge, settle};
use crate::spares;
use crate::splice::{Client, Ended, Standing, cut, hang_up, say_goodbye, splice};
use crate::unsecured;
use crate::upgrade::Handshake;

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
#[expect(clippy::large_enum_variant, reason = "the large one is what nearly every request comes to")]
pub enum Admitted<'a> {
    /// The first socket of a session, which begins with it.
    First {
        started: Started,
        client: IpAddr,
        /// Where others know the session's id.
        starting: Option<Starting<'a>>,
        /// A page's socket, where it is not to be the browser's own.
        page: Option<TcpStream>,
    },
    /// A socket of a session that is live.
    Joined {
        attached: Attached<'a>,
        socket: TcpStream,
        target: Target,
        /// Its own, unless it uses the session's.
        place: Option<OwnedSemaphorePermit>,
    },
}

/// A request for a socket, as far as its path does not matter.
#[derive(Debug)]
pub struct Call<'a, 'r> {
    pub gateway: &'a Arc<Gateway>,
    pub client: IpAddr,
    pub site: Site<'r>,
    pub headers: &'r HeaderMap,
    pub query: Query,
}

/// Whether the request came by TLS, which decides the scheme of the URLs in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Plain,
    Tls,
}

/// The answer to a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one is what nearly every request comes to")]
pub enum Answer<'a> {
    /// A 101, and what it is the beginning of.
    Upgrade(Handshake, Admitted<'a>),
    Http(Response<Full<Bytes>>),
}

/// Everything before the 101.
pub async fn admit(
    gateway: &Arc<Gateway>,
    door: Door,
    client: IpAddr,
    request: Request<Incoming>,
) -> Answer<'_> {
    if !api::has(request.uri().path()) {
        return admit_socket(gateway, door, client, request).await;
    }
    let answer = match may_try(gateway, client, &request) {
        Ok(()) => Box::pin(api::answer(gateway, door, request)).await,
        Err(refusal) => refusal.into_response(),
    };
    Answer::Http(noted(gateway, client, answer))
}

/// The same for a request that is not the [API's](api::has).
pub async fn admit_socket<B>(
    gateway: &Arc<Gateway>,
    door: Door,
    client: IpAddr,
    request: Request<B>,
) -> Answer<'_> {
    let admitted = match may_try(gateway, client, &request) {
        Ok(()) => try_admit(gateway, door, client, &request).await,
        Err(refusal) => Err(refusal),
    };
    admitted.unwrap_or_else(|refusal| {
        debug!(code = refusal.code(), place = route::place(request.uri().path()), "refused");
        Answer::Http(noted(gateway, client, refusal.into_response()))
    })
}

/// A key that is none counts against its client.
fn noted(gateway: &Gateway, client: IpAddr, answer: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    if refusal::tells_bad_key(&answer) {
        gateway.crowd.note_bad_key(client);
    }
    answer
}

/// What does not start a session at once is boxed, so that what does carries none of it along.
async fn try_admit<'a, B>(
    gateway: &'a Arc<Gateway>,
    door: Door,
    client: IpAddr,
    request: &Request<B>,
) -> Result<Answer<'a>, Refusal> {
    let Asked { route, query } = Asked::by(request.uri()).ok_or(Refusal::NotFound)?;
    if let Route::Discovery(document, session) = route {
        let about = (document, session);
        return Ok(Answer::Http(Box::pin(discovery::answer(gateway, door, request, query, about)).await?));
    }
    let handshake = Handshake::parse(request)?;
    if gateway.is_draining() {
        return Err(Refusal::Draining);
    }
    let query = Query::parse(query, gateway.limits.max_duration)?;
    let headers = request.headers();
    let call = Call { gateway, client, site: Site::new(gateway, door, headers), headers, query };
    let admitted = match route {
        Route::Connect if call.query.names_session() => Box::pin(join::named(call)).await?,
        Route::Connect => connect(call).await?,
        Route::Session(id) => Box::pin(join::session(call, id)).await?,
        Route::Browser(id) => Box::pin(join::browser(call, id)).await?,
        Route::Page(target) => Box::pin(join::page(call, target)).await?,
        Route::Discovery(..) => unreachable!("answered above"),
    };
    Ok(Answer::Upgrade(handshake, admitted))
}

/// A session of its own, by a key.
async fn connect<'a>(call: Call<'a, '_>) -> Result<Admitted<'a>, Refusal> {
    let who = authenticate(&call.gateway.billing, call.headers, &call.query).await;
    let who = who.or_else(|refusal| unsecured::recall(call.gateway, call.headers, &call.query, refusal))?;
    let started = start(call.gateway, &who, call.query.into_session(), &call.site).await;
    let started = started.map_err(|not_held| match not_held {
        NotHeld::Refused(refusal) => refusal,
        // 128 random bits that were used before: a broken random generator, or a broken store.
        NotHeld::Exists(_) | NotHeld::ExistsDifferent(_) => Refusal::LedgerAway,
    })?;
    Ok(Admitted::First { started, client: call.client, starting: None, page: None })
}

/// Turn, place, hold, claim: all that a session needs before it begins.
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
    if let Err(refusal) = gateway.crowd.may_start(&who.key) {
        Box::pin(tell_unusual(gateway, who)).await;
        return Err(refusal.into());
    }
    pacing::start(gateway, &who.account).await?;
    let place = gateway.places.enter()?;
    let held = hold(gateway, who, new, site).await?;
    let (lease, held) = claim(gateway, held, site).await?;
    Ok(Started { held, estate: Estate { lease, place } })
}

/// A key that starts more sessions than it may is refused, counted, and told of, so that somebody looks at it.
async fn tell_unusual(gateway: &Gateway, who: &Principal) {
    metrics::counter!("ufb_gateway_unusual_starts_total").increment(1);
    match gateway.billing.tell_unusual(who, "starts of one key", gateway.clock.now()).await {
        Ok(true) => warn!(account = %who.account, key = %who.key, "a key starts more sessions than it may"),
        Ok(false) => {}
        Err(error) => warn!(%error, account = %who.account, "unusual use could not be told of"),
    }
}

/// A session without a socket, which begins now. It ends like any other where nobody attaches to it within
/// `session.connect_timeout`; and by [`Live::end`], after which [`Live::settled`] has its final record.
///
/// While a session of that id is being started elsewhere in this gateway, it is waited for.
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
    let starting = join::may_be_first(gateway, who, &new.id).await?;
    let started = start(gateway, who, new, site).await?;
    let started = confirm_detached(gateway, started).await.map_err(|error| not_held(error, site))?;
    let live = begin(gateway, started);
    let keeper = gateway.sessions.begin_detached(Arc::clone(&live));
    drop(starting);
    tokio::spawn(follow_up(Arc::clone(gateway), Arc::clone(&live)));
    tokio::spawn(keep(Arc::clone(gateway), keeper));
    Ok(live)
}

/// Makes sure that a session is held that is not live yet. That is a task of its own, so that what a client does not stay to
/// hear of is given back.
async fn confirm_detached(gateway: &Arc<Gateway>, started: Started) -> Result<Started, HoldError> {
    let (reply, answer) = oneshot::channel();
    let gateway = Arc::clone(gateway);
    tokio::spawn(async move {
        let confirmed = confirm(&gateway, &started.held).await;
        let unsent = match confirmed {
            Ok(()) => reply.send(Ok(Started { held: started.held.confirmed(), ..started })),
            Err(error) => {
                started.estate.lease.release();
                reply.send(Err(error))
            }
        };
        if let Err(Ok(started)) = unsent {
            void(&gateway, started, "client left before the answer").await;
        }
    });
    // Its task does not end without an answer but with its runtime.
    answer.await.unwrap_or(Err(HoldError::Store(StoreError::Busy)))
}

/// A socket to the first page of a session's browser. The opening is a task of its own, so that the session is given up
/// whether or not the client stays to hear of it.
///
/// # Errors
///
/// [`Refusal::NoBrowser`]; nothing is charged then.
pub(crate) async fn open_first_page(
    gateway: &Arc<Gateway>,
    started: Started,
) -> Result<(Started, TcpStream), Refusal> {
    let (reply, answer) = oneshot::channel();
    let gateway = Arc::clone(gateway);
    tokio::spawn(async move {
        let opened = started.estate.lease.upstream().open_first_page().await;
        let unsent = match opened {
            Ok(socket) => reply.send(Ok((started, socket))),
            Err(error) => {
                warn!(%error, session = %started.held.session.id, "a browser does not open its first page");
                void(&gateway, started, "no browser").await;
                let retry_after = Duration::from_secs(1);
                return drop(reply.send(Err(Refusal::NoBrowser { retry_after })));
            }
        };
        if let Err(Ok((started, _))) = unsent {
            void(&gateway, started, "client left before the 101").await;
        }
    });
    answer.await.unwrap_or(Err(Refusal::Draining))
}

/// Both ends of a connection whose 101 is sent, and the session that it belongs to.
#[derive(Debug)]
pub struct Socket<'a> {
    attached: Attached<'a>,
    browser: TcpStream,
    target: Target,
    /// Its own, unless it uses the session's.
    place: Option<OwnedSemaphorePermit>,
}

/// The 101 is sent: the session begins, unless it has. Not async, so that what it moves takes no room in a session's task.
///
/// # Errors
///
/// The browser's socket cannot be used; [`void`] has to follow.
pub fn open<'a>(gateway: &'a Arc<Gateway>, admitted: Admitted<'a>) -> Result<Socket<'a>, Box<Started>> {
    match admitted {
        Admitted::Joined { attached, socket, target, place } => {
            debug!(session = %attached.live().id, ?target, "a socket joined a session");
            Ok(Socket { attached, browser: socket, target, place })
        }
        Admitted::First { mut started, client, starting, page } => {
            let Some((browser, target)) = first_socket(&mut started, page) else {
                warn!(session = %started.held.session.id, "the browser's socket cannot be used");
                return Err(Box::new(started));
            };
            let live = begin(gateway, started);
            let attached = gateway.sessions.begin(Arc::clone(&live), client);
            drop(starting);
            tokio::spawn(follow_up(Arc::clone(gateway), live));
            Ok(Socket { attached, browser, target, place: None })
        }
    }
}

fn first_socket(started: &mut Started, page: Option<TcpStream>) -> Option<(TcpStream, Target)> {
    if let Some(page) = page {
        return Some((page, Target::Page));
    }
    let ahead = started.estate.lease.take_socket()?;
    Some((TcpStream::from_std(ahead).ok()?, Target::Browser))
}

fn begin(gateway: &Gateway, started: Started) -> Arc<Live> {
    let Started { held, estate } = started;
    let max_duration = held.session.request.timeout.unwrap_or(Duration::MAX).min(gateway.limits.max_duration);
    let live = Arc::new(Live::new(held, max_duration, gateway.clock.now(), estate));
    if let Some(reserved) = live.reserved.as_ref().filter(|reserved| reserved.is_unsecured()) {
        let kept = gateway.owed.keep(live.debt(0));
        gateway.unsecured.release(reserved);
        if let Err(error) = kept {
            warn!(%error, session = %live.id, "a session on credit ends: it cannot be kept for the ledger");
            live.end(Close::TryAgain);
        }
    }
    live
}

/// One socket of a session, from its 101 to its end; the last one ends the session.
/// `early` is what the client sent right behind its request.
///
/// A session's memory is this future, so it is no `async fn`, which would keep its arguments twice; and what comes behind
/// the splice is boxed.
pub fn serve<'a, C: Client + 'a>(
    gateway: &'a Gateway,
    socket: Socket<'a>,
    mut client: C,
    early: Bytes,
) -> impl Future<Output = ()> + Send + 'a {
    let Socket { attached, mut browser, target, place } = socket;
    async move {
        let ended = splice(&mut client, &mut browser, &early, attached.live(), attached.line()).await;
        drop(browser);
        Box::pin(leave_behind(gateway, (attached, place), client, target, ended)).await;
    }
}

/// What a socket's end leads to. `place`: its own, unless it uses the session's.
async fn leave_behind<C: Client>(
    gateway: &Gateway,
    (attached, own_place): (Attached<'_>, Option<OwnedSemaphorePermit>),
    mut client: C,
    target: Target,
    ended: Ended,
) {
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
    drop((place, own_place));
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
    if may_be_held(gateway, last.live()).await {
        settle(gateway, last.live(), lasted, outcome).await;
    }
    Some(place)
}

/// What a session's beginning sets off on other threads. All of it would compete with the browser's first reply, and
/// none of it is missed for a few milliseconds.
///
/// A hold that is on its way is waited for first: its client waits for that, too.
async fn follow_up(gateway: Arc<Gateway>, live: Arc<Live>) {
    if let Some(reserved) = live.reserved.as_ref().filter(|_| !live.is_served()) {
        reserved.arrived().await;
        // Told to the session itself.
        let _ = confirm_begun(&gateway, &live).await;
    }
    sleep(HEAD_START).await;
    gateway.pool.refill();
    // One that is over already has its beginning noted with its end.
    if gateway.sessions.contains(live.name()) && confirm_begun(&gateway, &live).await.is_ok() {
        gateway.meter.begin(&live);
        info!(session = %live.id, account = %live.account, "a session began");
    }
    spares::replace(&gateway, &live).await;
}

/// The 101 could not be sent: the client had left.
pub async fn give_up(gateway: &Gateway, admitted: Admitted<'_>) {
    match admitted {
        Admitted::First { started, .. } => void(gateway, started, "client left before the 101").await,
        Admitted::Joined { attached, place, .. } => {
            leave(gateway, attached).await;
            drop(place);
        }
    }
}

/// A socket leaves that has passed nothing. Where it is the last one, its session ends.
pub(crate) async fn leave(gateway: &Gateway, attached: Attached<'_>) {
    let lasted = attached.live().begun.elapsed();
    if let Some(last) = attached.leave() {
        drop(finish(gateway, last, lasted, Judgement::Left("client gone")).await);
    }
}

/// Gives back what a session took that never began.
pub async fn void(gateway: &Gateway, started: Started, cause: &'static str) {
    let Started { held, estate: Estate { lease, place } } = started;
    lease.release();
    settle::void(gateway, &held, cause).await;
    drop(place);
}
