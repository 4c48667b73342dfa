//! One session from its request to its end: the table of contents. The branches are here, the stages are straight.

use std::sync::Arc;
use std::time::Duration;

use billing::Session;
use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use pool::Lease;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::authenticate::authenticate;
use crate::claim::claim;
use crate::hold::hold;
use crate::query::Query;
use crate::refusal::Refusal;
use crate::serve::Gateway;
use crate::sessions::Live;
use crate::settle::{self, judge, settle};
use crate::splice::{Client, Standing, cut, hang_up, say_goodbye, splice};
use crate::upgrade::Handshake;

/// Paths at which a session with Chromium is started.
const CONNECT_PATHS: [&str; 3] = ["/", "/chromium", "/chrome"];

/// A first reply takes about half a millisecond; a start that is put off by this much is not noticed.
const HEAD_START: Duration = Duration::from_millis(5);

/// A session whose 101 is being sent: the price is set aside and the browser is taken.
#[derive(Debug)]
pub struct Admitted {
    held: Session,
    lease: Lease,
    /// Counts it until it is settled; a drain waits for all of them.
    place: OwnedSemaphorePermit,
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
    request: Request<Incoming>,
) -> (Response<Full<Bytes>>, Option<Admitted>) {
    match try_admit(gateway, door, &request).await {
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
    let place = gateway.places.enter()?;
    let held = hold(gateway, &who, &top_up_url(gateway, door, request)).await?;
    let (lease, held) = claim(gateway, held).await?;
    Ok((handshake, Admitted { held, lease, place }))
}

/// Everything after the 101. `early` is what the client sent right behind its request.
pub async fn run<C: Client>(gateway: &Arc<Gateway>, admitted: Admitted, mut client: C, early: Bytes) {
    let Admitted { held, mut lease, place } = admitted;
    let live = Arc::new(Live::new(held.account.clone(), held.id.clone(), held.terms, gateway.clock.now()));
    let browser = match lease.take_socket().map(TcpStream::from_std) {
        Some(Ok(browser)) => browser,
        Some(Err(_)) | None => {
            warn!(session = %held.id, "the browser's socket cannot be used");
            return give_up(gateway, Admitted { held, lease, place }).await;
        }
    };
    let registered = gateway.sessions.insert(&live);
    tokio::spawn(follow_up(Arc::clone(gateway), Arc::clone(&live)));
    let ended = splice(&mut client, browser, early, &live).await;
    let judgement = judge(ended.cause, &lease).await;
    lease.release();
    settle(gateway, &live, ended, judgement.outcome).await;
    drop(registered);

    match (ended.standing, judgement.close) {
        (Standing::BetweenFrames, Some(close)) => say_goodbye(&mut client, close).await,
        (Standing::BetweenFrames | Standing::CloseSent, _) => hang_up(&mut client).await,
        (Standing::MidFrame | Standing::Gone, _) => cut(&client),
    }
    // Last, so that a drain waits for the goodbye as well.
    drop(place);
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
    gateway.meter.begin(&live);
    info!(session = %live.id, account = %live.account, "a session began");
}

/// The 101 could not be sent: the client had left.
pub async fn give_up(gateway: &Gateway, admitted: Admitted) {
    let Admitted { held, lease, place } = admitted;
    lease.release();
    settle::void(gateway, &held, "client left before the 101").await;
    drop(place);
}

/// Where money is added, at the address that the client knows this gateway by.
fn top_up_url<B>(gateway: &Gateway, door: Door, request: &Request<B>) -> String {
    if let Some(public) = &gateway.public_url {
        let scheme = if public.is_secure() { "https" } else { "http" };
        return format!("{scheme}://{}/account/billing", public.authority());
    }
    let scheme = match door {
        Door::Plain => "http",
        Door::Tls => "https",
    };
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| host.parse::<Uri>().ok()?.authority().map(ToString::to_string));
    format!("{scheme}://{}/account/billing", host.unwrap_or_else(|| "localhost".to_owned()))
}
