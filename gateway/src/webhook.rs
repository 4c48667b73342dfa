//! Sends notices to customers' webhooks, and lets nobody use that to reach what only this machine can.
//!
//! A customer chooses the URL, so it may name anything: the addresses behind a name are looked at, and one of those that were
//! looked at is connected to. Redirects are not followed. An answer's status is read, and nothing else of it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use billing::Notice;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::warn;

/// From the look-up of the name to the answer's status. Well within [`billing::LEASE`].
const DEADLINE: Duration = Duration::from_secs(10);
/// To connect to one of a name's addresses, of which so many are tried.
const CONNECT: Duration = Duration::from_secs(3);
const ADDRESSES: usize = 3;
/// The largest head of an answer that is parsed.
const HEAD_BYTES: usize = 64 * 1024;

/// Carries `t=…,v1=…`, as Stripe's header of that name does.
const SIGNATURE: HeaderName = HeaderName::from_static("ufbrowsers-signature");
const AGENT: &str = concat!("UFBrowsers/", env!("CARGO_PKG_VERSION"));

/// What a webhook's URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    secure: bool,
    /// A name, an IPv4 address, or an IPv6 address without its brackets.
    host: String,
    port: u16,
    /// For the `Host` header.
    authority: String,
    path: String,
}

/// Why a URL is not a webhook's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("it is not `https://HOST[:PORT]/PATH`")]
    NotOne,
    #[error("it is not https; `webhooks.private_targets` allows http")]
    NotSecure,
    #[error("it has a user or a password")]
    Login,
    #[error("its address is not a public one; `webhooks.private_targets` allows those")]
    Private,
}

impl Target {
    /// `allow_private`: whether it may be plain HTTP, and an address that is not public.
    ///
    /// # Errors
    ///
    /// What is wrong with it. That a name leads to a private address is not seen here.
    pub fn parse(url: &str, allow_private: bool) -> Result<Self, BadUrl> {
        let uri: Uri = url.parse().map_err(|_| BadUrl::NotOne)?;
        let secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP && allow_private => false,
            Some(scheme) if *scheme == Scheme::HTTP => return Err(BadUrl::NotSecure),
            Some(_) | None => return Err(BadUrl::NotOne),
        };
        let authority = uri.authority().ok_or(BadUrl::NotOne)?;
        if authority.as_str().contains('@') {
            return Err(BadUrl::Login);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        if host.is_empty() || port == 0 {
            return Err(BadUrl::NotOne);
        }
        if !allow_private && host.parse().is_ok_and(|address| !is_public(address)) {
            return Err(BadUrl::Private);
        }
        Ok(Self {
            secure,
            host: host.to_owned(),
            port,
            authority: authority.to_string(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

/// Why a notice did not arrive. None of it says where it was sent to: that may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("its URL cannot be used: {0}")]
    Url(#[from] BadUrl),
    #[error("its host has no address")]
    Unresolved,
    #[error("its host has no public address")]
    Private,
    #[error("no connection: {0}")]
    Connect(io::ErrorKind),
    #[error("no certificates of authorities are installed here")]
    NoRoots,
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("the connection broke: {0}")]
    Broken(hyper::Error),
    #[error("it answered {}", .0.as_u16())]
    Answered(StatusCode),
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Late,
}

/// Sends notices. What it takes to speak TLS is loaded when it is first needed.
pub struct Sender {
    allow_private: bool,
    tls: OnceCell<Option<TlsConnector>>,
}

impl Sender {
    #[must_use]
    pub fn new(allow_private: bool) -> Self {
        Self { allow_private, tls: OnceCell::new() }
    }

    /// Sends it once. Any 2xx means that it arrived. May be dropped, and has arrived then or not.
    ///
    /// # Errors
    ///
    /// Why it did not.
    pub async fn send(&self, notice: Notice) -> Result<(), Failed> {
        timeout(DEADLINE, self.try_send(notice)).await.unwrap_or(Err(Failed::Late))
    }

    async fn try_send(&self, notice: Notice) -> Result<(), Failed> {
        let target = Target::parse(&notice.url, self.allow_private)?;
        let stream = self.connect(&target).await?;
        let request = request(&target, notice).ok_or(BadUrl::NotOne)?;
        let status = if target.secure {
            let name = ServerName::try_from(target.host).map_err(|_| BadUrl::NotOne)?;
            let tls = self.tls().await.ok_or(Failed::NoRoots)?;
            let stream = tls.connect(name, stream).await.map_err(Failed::Tls)?;
            exchange(stream, request).await
        } else {
            exchange(stream, request).await
        };
        match status.map_err(Failed::Broken)? {
            status if status.is_success() => Ok(()),
            status => Err(Failed::Answered(status)),
        }
    }

    async fn connect(&self, target: &Target) -> Result<TcpStream, Failed> {
        let found = lookup_host((target.host.as_str(), target.port)).await;
        let found: Vec<SocketAddr> = found.map_err(|_| Failed::Unresolved)?.collect();
        if found.is_empty() {
            return Err(Failed::Unresolved);
        }
        let mut failed = Failed::Private;
        let allowed = found.iter().filter(|address| self.allow_private || is_public(address.ip()));
        for address in allowed.take(ADDRESSES) {
            match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = Failed::Connect(error.kind()),
                Err(_) => failed = Failed::Connect(io::ErrorKind::TimedOut),
            }
        }
        Err(failed)
    }

    /// None where this machine trusts no authority.
    async fn tls(&self) -> Option<&TlsConnector> {
        let load = async || tokio::task::spawn_blocking(connector).await.ok().flatten();
        self.tls.get_or_init(load).await.as_ref()
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("allow_private", &self.allow_private).finish_non_exhaustive()
    }
}

/// Trusts whom this machine trusts.
fn connector() -> Option<TlsConnector> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        warn!(errors = ?loaded.errors, "no certificates of authorities: webhooks with https cannot be reached");
        return None;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
}

fn request(target: &Target, notice: Notice) -> Option<Request<Full<Bytes>>> {
    Request::post(target.path.as_str())
        .header(HOST, target.authority.as_str())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(USER_AGENT, HeaderValue::from_static(AGENT))
        .header(SIGNATURE, notice.signature)
        .body(Full::from(notice.body))
        .ok()
}

/// The status of the answer. What comes behind its head is not waited for.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<StatusCode, hyper::Error> {
    let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await?;
    let (mut answer, mut connection) = (pin!(sender.send_request(request)), pin!(connection));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // It has handed on what it read before.
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    answer.map(|answer| answer.status())
}

/// Whether an address is one of the public internet, and not of this machine, its networks, or what they reserve.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// After IANA's registry of special-purpose addresses. The metadata service of clouds, 169.254.169.254, is link-local.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match a {
        // This network, private, loopback, multicast and reserved.
        0 | 10 | 127 | 224.. => true,
        // Shared by the customers of a carrier.
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        // Protocol assignments, documentation, 6to4's relays, private.
        192 => (b == 0 && (c == 0 || c == 2)) || (b == 88 && c == 99) || b == 168,
        // Benchmarks, documentation.
        198 => b == 18 || b == 19 || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => false,
    };
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(embedded) = embedded_v4(address) {
        return is_public_v4(embedded);
    }
    let [a, b, ..] = address.segments();
    // Global unicast, without Teredo and the other assignments of 2001::/23, documentation, and its newer prefix.
    (0x2000..0x4000).contains(&a)
        && !(a == 0x2001 && (b < 0x200 || b == 0xdb8))
        && !(a == 0x3fff && b < 0x1000)
}

/// The IPv4 address that this one leads to: mapped, translated (NAT64) or 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
