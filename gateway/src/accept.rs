//! Listeners, permits, TLS, HTTP/1: from a connection to a request, and from its 101 to the session.
//!
//! Each edge thread has a runtime of its own and serves a connection from its accept to its end, so that a relayed byte
//! never crosses threads. All threads accept from the same sockets.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{self, AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::crowd::Origin;
use crate::head::{self, Head};
use crate::pacing;
use crate::serve::{Gateway, Tenure};
use crate::session::{self, Admitted, Answer, Door};
use crate::splice::Client;
use crate::takeover::Part;
use crate::upgrade::Handshake;

/// From the accept to the first byte. A client speaks as soon as it is connected, so its first packet is lost twice in
/// this time, and comes. Whoever is silent has nothing to say, and is not kept for as long as one who says it slowly.
const FIRST_BYTE: Duration = Duration::from_secs(5);
/// A TLS handshake takes two round trips; a client that needs longer than this, the first byte included, is not one.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// From the first to the last byte of a request's header.
const HEADER: Duration = Duration::from_secs(10);
/// By then everybody who came in has asked for something, or was turned away.
pub(crate) const LATEST_REQUEST: Duration = HANDSHAKE.saturating_add(FIRST_BYTE).saturating_add(HEADER);
const _: () = assert!(FIRST_BYTE.as_secs() < HANDSHAKE.as_secs(), "a handshake begins with it");
/// The largest header that is parsed. Cookies and long tokens fit.
const HEADER_BYTES: usize = 32 * 1024;
/// Connections that the kernel holds for us: a burst of new clients within the moments that a thread is busy. The system
/// may allow less (`net.core.somaxconn`); beyond it a client waits a second or more before it tries again.
const BACKLOG: i32 = 4_096;
/// After a failed accept (out of descriptors, mostly): long enough for some to be freed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The two doors of the edge, bound and not yet served.
#[derive(Debug)]
pub struct Doors {
    plain: StdListener,
    tls: Option<(StdListener, Arc<ServerConfig>)>,
}

impl Doors {
    #[must_use]
    pub fn new(plain: StdListener, tls: Option<(StdListener, Arc<ServerConfig>)>) -> Self {
        Self { plain, tls }
    }

    /// # Errors
    ///
    /// The system's.
    pub fn addresses(&self) -> io::Result<(SocketAddr, Option<SocketAddr>)> {
        let tls = self.tls.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?;
        Ok((self.plain.local_addr()?, tls))
    }

    /// The same doors for another process.
    ///
    /// # Errors
    ///
    /// Out of descriptors.
    pub fn heirlooms(&self) -> io::Result<Vec<(Part, OwnedFd)>> {
        let mut doors = vec![(Part::Http, self.plain.try_clone()?.into())];
        if let Some((listener, _)) = &self.tls {
            doors.push((Part::Https, listener.try_clone()?.into()));
        }
        Ok(doors)
    }

    /// The same doors for another thread.
    ///
    /// # Errors
    ///
    /// Out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        let tls = match &self.tls {
            Some((listener, config)) => Some((listener.try_clone()?, Arc::clone(config))),
            None => None,
        };
        Ok(Self { plain: self.plain.try_clone()?, tls })
    }

    /// Accepts at both doors until the gateway leaves them. What was accepted goes on.
    ///
    /// # Errors
    ///
    /// A listener that the reactor does not take.
    pub async fn serve(self, gateway: Arc<Gateway>) -> io::Result<()> {
        let plain = TcpListener::from_std(self.plain)?;
        let plain = accept(plain, None, Arc::clone(&gateway));
        match self.tls {
            Some((listener, config)) => {
                let acceptor = Some(TlsAcceptor::from(config));
                let tls = accept(TcpListener::from_std(listener)?, acceptor, gateway);
                tokio::join!(plain, tls);
            }
            None => plain.await,
        }
        Ok(())
    }
}

/// Binds an address. A port 0 takes a free one.
///
/// # Errors
///
/// An address that is in use or not this machine's.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    listen(address)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// What the standard library does, with a longer queue.
fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
    // A restart finds its port free although connections of the last run linger.
    net::sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted connections inherit it. Without it a small reply waits for the acknowledgement of the one before.
    net::sockopt::set_tcp_nodelay(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Doors that are open, and connections that have no session: who may still come to ask for one. A door counts, too, so
/// that none can come in behind the count.
#[derive(Debug, Default)]
pub struct Arrivals(Arc<AtomicUsize>);

impl Arrivals {
    /// None left: nobody who came in at these doors waits for an answer.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn enter(&self) -> Arrival {
        self.0.fetch_add(1, Ordering::AcqRel);
        Arrival(Arc::clone(&self.0))
    }
}

/// Counts until it is dropped.
#[derive(Debug)]
struct Arrival(Arc<AtomicUsize>);

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, gateway: Arc<Gateway>) {
    let mut tenure = gateway.tenure();
    let _open = gateway.arrivals.enter();
    loop {
        // The permit before the connection: what is not accepted waits in the kernel's bounded queue.
        let next = async {
            let permit = gateway.places.connection().await;
            listener.accept().await.map(|(stream, peer)| (stream, peer.ip().to_canonical(), permit))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            // The gateway, which holds the sender, outlives every door.
            _ = tenure.wait_for(|tenure| *tenure != Tenure::Ours) => return,
        };
        match accepted {
            Ok((stream, client, permit)) => {
                let (gateway, tls) = (Arc::clone(&gateway), tls.clone());
                let visit = Visit { client, arrival: gateway.arrivals.enter(), permit };
                // Apart, so that a plain connection's task has no room for a TLS handshake.
                match tls {
                    None => drop(tokio::spawn(serve_plain(gateway, stream, visit))),
                    Some(tls) => drop(tokio::spawn(serve_tls(gateway, tls, stream, visit))),
                }
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What a connection's task knows of it, whatever it speaks.
struct Visit {
    client: IpAddr,
    arrival: Arrival,
    permit: OwnedSemaphorePermit,
}

async fn serve_plain(gateway: Arc<Gateway>, stream: TcpStream, visit: Visit) {
    // Who has too many is not even told: an answer, a handshake first, is what a flood wants.
    let Some(_guest) = gateway.crowd.enter(visit.client) else { return };
    pacing::greet(Origin::of(visit.client)).await;
    serve_http(&gateway, Door::Plain, stream, visit).await;
}

async fn serve_tls(gateway: Arc<Gateway>, tls: TlsAcceptor, stream: TcpStream, visit: Visit) {
    let Some(_guest) = gateway.crowd.enter(visit.client) else { return };
    pacing::greet(Origin::of(visit.client)).await;
    let handshake = async {
        if !speaks(&stream).await {
            return None;
        }
        Some(tls.accept(stream).await.map(Box::new))
    };
    match Box::pin(timeout(HANDSHAKE, handshake)).await {
        Ok(Some(Ok(stream))) => serve_http(&gateway, Door::Tls, stream, visit).await,
        Ok(Some(Err(error))) => debug!(%error, "a TLS handshake failed"),
        Ok(None) => {}
        Err(_) => debug!("a TLS handshake took too long"),
    }
}

/// Whether anything comes, an end included, while there is time. Nothing is read. A TLS handshake begins with it.
async fn speaks(stream: &TcpStream) -> bool {
    let look = || Ok(net::recv(stream, &mut [0; 1], RecvFlags::PEEK)?.0);
    match stream.try_io(Interest::READABLE, look) {
        // The runtime takes a new connection for readable until a look at it says otherwise.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        looked => return looked.is_ok(),
    }
    match timeout(FIRST_BYTE, stream.readable()).await {
        Ok(readable) => readable.is_ok(),
        Err(_) => {
            debug!("a client was silent");
            false
        }
    }
}

/// Answers requests until one is answered with a 101; then the connection is the session's. What HTTP needed is gone by
/// then: most of a connection's life is its session.
async fn serve_http<C: Client + 'static>(gateway: &Arc<Gateway>, door: Door, stream: C, visit: Visit) {
    let Visit { client, arrival, permit: _permit } = visit;
    let until_admitted = Box::pin(answer_requests(gateway, door, stream, client));
    let Some((admitted, stream, early)) = until_admitted.await else { return };
    drop(arrival);
    match session::open(gateway, admitted) {
        Ok(socket) => Box::pin(session::serve(gateway, socket, stream, early)).await,
        Err(started) => Box::pin(session::void(gateway, *started, "no browser")).await,
    }
}

/// A connection whose 101 is sent, and what the client sent right behind its request.
type Upgraded<'a, C> = (Admitted<'a>, C, Bytes);
/// The answer to a request that is still on the connection.
type Ahead<'a> = Pin<Box<dyn Future<Output = Answer<'a>> + Send + 'a>>;

/// A request that is [plain](Head) and can be answered with a 101 at once is; all others are hyper's.
async fn answer_requests<C: Client + 'static>(
    gateway: &Arc<Gateway>,
    door: Door,
    mut stream: C,
    client: IpAddr,
) -> Option<Upgraded<'_, C>> {
    let Some(Head { request, length }) = look(gateway, &mut stream).await? else {
        return converse(gateway, door, stream, client, None).await;
    };
    let mut admission: Ahead<'_> = Box::pin(session::admit_socket(gateway, door, client, request));
    let answer = poll_fn(|cx| Poll::Ready(admission.as_mut().poll(cx))).await;
    let ahead: Ahead<'_> = match answer {
        Poll::Ready(Answer::Upgrade(handshake, admitted)) => {
            drop(admission);
            match upgrade(&mut stream, length, &handshake).await {
                Ok(early) => return Some((admitted, stream, early)),
                Err(error) => {
                    debug!(%error, "a client left before its 101");
                    session::give_up(gateway, admitted).await;
                    return None;
                }
            }
        }
        Poll::Ready(answer @ Answer::Http(_)) => Box::pin(std::future::ready(answer)),
        // hyper sees it where the client leaves meanwhile.
        Poll::Pending => admission,
    };
    converse(gateway, door, stream, client, Some(ahead)).await
}

/// Looks at what came first. The outer None: nothing comes, and the connection is over.
async fn look<C: Client>(gateway: &Gateway, stream: &mut C) -> Option<Option<Head>> {
    let mut draining = gateway.draining();
    let looked = poll_fn(|cx| {
        let mut bytes = [0; head::LOOK];
        let mut buffer = ReadBuf::new(&mut bytes);
        stream.poll_look(cx, &mut buffer).map_ok(|()| Head::parse(buffer.filled()))
    });
    tokio::select! {
        biased;
        looked = timeout(FIRST_BYTE, looked) => looked.inspect_err(|_| debug!("a client was silent")).ok()?.ok(),
        () = told(&mut draining) => None,
    }
}

/// Takes a head that was looked at, and answers it. What the client sent right behind it comes along.
async fn upgrade<C: Client>(stream: &mut C, length: usize, handshake: &Handshake) -> io::Result<Bytes> {
    let mut bytes = [0; head::LOOK];
    // More than the head, so that the runtime learns that nothing is left and does not look again.
    let count = stream.read(&mut bytes).await?;
    let early = bytes[..count].get(length..).ok_or(io::ErrorKind::UnexpectedEof)?;
    let early = Bytes::copy_from_slice(early);
    stream.write_all(&handshake.bytes()).await?;
    stream.flush().await?;
    Ok(early)
}

/// Answers requests by hyper, the first of them with `ahead` where that is known.
///
/// hyper's own way to upgrade hands the connection to another task through a channel and a box; taking it back from the
/// finished HTTP connection stays in this task. With it comes what the client sent right behind its request.
async fn converse<'a, C: Client + 'static>(
    gateway: &'a Arc<Gateway>,
    door: Door,
    stream: C,
    client: IpAddr,
    ahead: Option<Ahead<'a>>,
) -> Option<Upgraded<'a, C>> {
    let mut draining = gateway.draining();
    let slot: Mutex<Option<Admitted<'a>>> = Mutex::new(None);
    let ahead = Mutex::new(ahead);
    let service = service_fn(|request| {
        let ahead = ahead.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async {
            let answer = match ahead {
                Some(ahead) => ahead.await,
                None => session::admit(gateway, door, client, request).await,
            };
            let response = match answer {
                Answer::Upgrade(handshake, admitted) => {
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(admitted);
                    handshake.response()
                }
                Answer::Http(response) => response,
            };
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = http().serve_connection(TokioIo::new(stream), service);
    let served = tokio::select! {
        served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => served,
        () = told(&mut draining) => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    let parts = connection.into_parts();
    let admitted = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (served, admitted) {
        (Ok(()), Some(admitted)) => Some((admitted, parts.io.into_inner(), owned(&parts.read_buf))),
        (Err(error), Some(admitted)) => {
            debug!(%error, "a client left before its 101");
            session::give_up(gateway, admitted).await;
            None
        }
        (Err(error), None) => {
            debug!(%error, "an HTTP connection failed");
            None
        }
        (Ok(()), None) => None,
    }
}

/// hyper's buffer lives as long as a slice of it, even an empty one.
fn owned(early: &[u8]) -> Bytes {
    if early.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(early) }
}

/// HTTP/1.1 as both doors speak it.
#[must_use]
pub fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(HEADER_BYTES);
    http
}

/// Waits for the drain.
async fn told(draining: &mut watch::Receiver<bool>) {
    // The gateway, which holds the sender, outlives every connection.
    let _ = draining.wait_for(|draining| *draining).await;
}
