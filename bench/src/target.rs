//! What is measured: `NAME=URL` on the command line, then an address that can be connected to.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::http::Uri;

use crate::head::Head;
use crate::report::Output;
use crate::{duration, tls};

/// The target that the others are compared with; without one of this name it is the first.
pub(crate) const DIRECT: &str = "direct";
/// Names are a table's first column.
const NAME_LIMIT: usize = 32;
/// A browser's `/json/version` is some 500 bytes.
const DISCOVERY_LIMIT: usize = 64 * 1024;

/// What every measurement is told.
#[derive(Debug, clap::Args)]
pub(crate) struct MeasureArgs {
    /// What to measure; repeat it to compare. The one named "direct", else the first, is what others are compared with.
    ///
    /// ws:// and wss:// are connected to as they are; http://HOST:PORT is a browser's debugging port, asked once
    /// for its own socket before the run.
    #[arg(long = "target", value_name = "NAME=URL", required = true)]
    targets: Vec<String>,
    /// Certificates to trust for wss:// (PEM), such as /etc/ssl/certs/ca-certificates.crt.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Trust any certificate (test machines only).
    #[arg(long)]
    insecure: bool,
    /// How long one connection or one reply may take.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Whose certificates are trusted for `wss://`.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    Nobody,
    Ca(PathBuf),
}

impl MeasureArgs {
    /// What another part of this program measures.
    pub(crate) fn new(targets: Vec<String>, trust: Trust, timeout: Duration) -> Self {
        let ca = match trust {
            Trust::Nobody => None,
            Trust::Ca(file) => Some(file),
        };
        Self { targets, ca, insecure: false, timeout, output: Output::default() }
    }

    pub(crate) fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    pub(crate) fn is_insecure(&self) -> bool {
        self.insecure
    }

    /// Checks all arguments, and only then asks the network where each target is.
    pub(crate) async fn endpoints(&self) -> anyhow::Result<Vec<Endpoint>> {
        self.endpoints_of(&self.targets).await
    }

    /// The same for URLs that another argument names, such as a second customer's.
    pub(crate) async fn endpoints_of(&self, texts: &[String]) -> anyhow::Result<Vec<Endpoint>> {
        let (targets, tls) = self.check(texts)?;
        let mut endpoints = Vec::with_capacity(targets.len());
        for target in targets {
            let name = target.name.clone();
            let endpoint = timeout(self.timeout, target.resolve(tls.as_ref()))
                .await
                .unwrap_or_else(|_| bail!("no answer within {:?}; is it running?", self.timeout))
                .with_context(|| format!("target {name}"))?;
            endpoints.push(endpoint);
        }
        Ok(endpoints)
    }

    fn check(&self, texts: &[String]) -> Result<(Vec<Target>, Option<TlsConnector>), Mistakes> {
        let (targets, mut mistakes) = parse_all(texts);
        let tls = match (&self.ca, self.insecure) {
            (Some(ca), _) => tls::trusting(ca).map(Some).map_err(|e| format!("--ca {}: {e:#}", ca.display())),
            (None, true) => tls::insecure().map(Some).map_err(|e| format!("--insecure: {e:#}")),
            (None, false) => Ok(None),
        };
        let untrusted = matches!(tls, Ok(None));
        if untrusted && let Some(target) = targets.iter().find(|t| t.scheme == Scheme::Wss) {
            mistakes.push(format!("target {}: wss:// needs --ca FILE or --insecure", target.name));
        }
        match tls {
            Ok(tls) if mistakes.is_empty() => Ok((targets, tls)),
            Ok(_) => Err(Mistakes(mistakes)),
            Err(mistake) => Err(Mistakes([mistakes, vec![mistake]].concat())),
        }
    }
}

/// All that is wrong with the arguments, each a line of its own.
#[derive(Debug)]
pub(crate) struct Mistakes(Vec<String>);

impl Mistakes {
    pub(crate) fn of(mistakes: Vec<String>) -> Self {
        Self(mistakes)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\nerror: "))
    }
}

impl std::error::Error for Mistakes {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Ws,
    Wss,
    Http,
}

/// A target as it was asked for.
#[derive(Debug, PartialEq)]
struct Target {
    name: String,
    scheme: Scheme,
    uri: Uri,
}

/// A target that can be connected to: its name is looked up, its browser's socket is known.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Of scheme `ws` or `wss`. Its query may hold an API key: it is never printed.
    pub(crate) uri: Uri,
    /// Where it is connected to from; any address of this machine without it.
    pub(crate) from: Option<IpAddr>,
}

fn parse_all(texts: &[String]) -> (Vec<Target>, Vec<String>) {
    let mut targets: Vec<Target> = Vec::new();
    let mut mistakes = Vec::new();
    for text in texts {
        match parse(text) {
            Ok(target) if targets.iter().any(|t| t.name == target.name) => {
                mistakes.push(format!("target {}: the name is used twice", target.name));
            }
            Ok(target) => targets.push(target),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    (targets, mistakes)
}

/// The mistake never repeats what follows the `=`: it may be an API key.
fn parse(text: &str) -> Result<Target, String> {
    const EXAMPLE: &str = "expected NAME=URL, such as direct=http://127.0.0.1:9222";
    let (name, url) = text.split_once('=').ok_or_else(|| format!("--target: {EXAMPLE}"))?;
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(legal) {
        return Err(format!("--target: the name has 1 to {NAME_LIMIT} of A-Z a-z 0-9 . _ -; {EXAMPLE}"));
    }
    let wrong = |what: &str| Err(format!("target {name}: {what}"));
    let Ok(uri) = url.parse::<Uri>() else { return wrong("this is not a URL") };
    let scheme = match uri.scheme_str() {
        Some("ws") => Scheme::Ws,
        Some("wss") => Scheme::Wss,
        Some("http") => Scheme::Http,
        _ => return wrong("the URL must begin with ws://, wss:// or http://"),
    };
    if uri.host().is_none_or(str::is_empty) {
        return wrong("the URL names no host");
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return wrong("a user and password in the URL are not sent; put the key into ?token=");
    }
    Ok(Target { name: name.to_owned(), scheme, uri })
}

impl Target {
    async fn resolve(self, tls: Option<&TlsConnector>) -> anyhow::Result<Endpoint> {
        match self.scheme {
            Scheme::Ws => Endpoint::locate(self.name, self.uri, None).await,
            Scheme::Wss => Endpoint::locate(self.name, self.uri, tls).await,
            Scheme::Http => {
                let address = locate(&self.uri, 80).await?;
                let socket =
                    discover(address).await.context("/json/version: is this a browser's debugging port?")?;
                Endpoint::locate(self.name, socket, None).await
            }
        }
    }
}

impl Endpoint {
    async fn locate(name: String, uri: Uri, tls: Option<&TlsConnector>) -> anyhow::Result<Self> {
        let address = locate(&uri, if tls.is_some() { 443 } else { 80 }).await?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let tls = match tls {
            Some(connector) => Some((connector.clone(), ServerName::try_from(host)?)),
            None => None,
        };
        Ok(Self { name, address, tls, uri, from: None })
    }

    /// The same from another address.
    pub(crate) fn from(self, from: Option<IpAddr>) -> Self {
        Self { from, ..self }
    }

    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        let Some(from) = self.from else { return TcpStream::connect(self.address).await };
        let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(self.address).await
    }
}

/// Names are looked up here, once, so that no session's time holds a name server's.
async fn locate(uri: &Uri, default_port: u16) -> anyhow::Result<SocketAddr> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let mut found = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(default_port))).await?;
    found.next().with_context(|| format!("{host} has no address"))
}

/// Asks a browser's debugging port for the URL of its own WebSocket.
async fn discover(address: SocketAddr) -> anyhow::Result<Uri> {
    #[derive(Deserialize)]
    struct Version {
        #[serde(rename = "webSocketDebuggerUrl")]
        socket: String,
    }
    let mut stream = TcpStream::connect(address).await?;
    // A Host that is an address is always allowed.
    stream.write_all(format!("GET /json/version HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Chrome keeps the connection open whatever it is asked: only the length tells where the answer ends.
    while answer.len() < DISCOVERY_LIMIT && stream.read_buf(&mut answer).await? > 0 {
        if let Some(body) = body(&answer)? {
            return Ok(serde_json::from_slice::<Version>(body)?.socket.parse()?);
        }
    }
    bail!("the answer has no end")
}

/// The body of a successful answer, once all of it is there.
fn body(answer: &[u8]) -> anyhow::Result<Option<&[u8]>> {
    let Some((head, rest)) = Head::split(answer) else { return Ok(None) };
    if head.second_word() != "200" {
        bail!("answered {}", head.first_line);
    }
    let length = head.header("content-length").context("the answer has no Content-Length")?;
    Ok(rest.get(..length.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_url() {
        let target = parse("gateway=wss://example.com/?token=ufb_a=b").unwrap();
        assert_eq!((target.name.as_str(), target.scheme), ("gateway", Scheme::Wss));
        assert_eq!(target.uri.query(), Some("token=ufb_a=b"));
        assert_eq!(parse("direct=http://[::1]:9222").unwrap().uri.host(), Some("[::1]"));
    }

    #[test]
    fn a_mistake_says_what_is_wrong_and_hides_the_key() {
        let table = [
            ("ws://h/", "expected NAME=URL"),
            ("ws://h/?token=ufb_key", "the name has"),
            ("=ws://h/", "the name has"),
            ("a=https://h/?token=ufb_key", "must begin with"),
            ("a=h:1", "must begin with"),
            ("a=ws://", "not a URL"),
            ("a=ws://ufb_key@h/", "?token="),
        ];
        for (text, expected) in table {
            let mistake = parse(text).unwrap_err();
            assert!(mistake.contains(expected), "{text}: {mistake}");
            assert!(!mistake.contains("ufb_key"), "{mistake}");
        }
    }

    #[test]
    fn a_body_is_there_when_all_of_it_is() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length:2\r\n\r\n{}";
        assert_eq!(body(answer).unwrap(), Some(&b"{}"[..]));
        assert_eq!(body(&answer[..answer.len() - 1]).unwrap(), None);
        assert!(body(b"HTTP/1.1 404 Not Found\r\n\r\n").is_err());
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let args = MeasureArgs {
            targets: ["a=ws://h/", "a=ws://h/", "b=ftp://h/", "c=wss://h/"].map(str::to_owned).to_vec(),
            ca: None,
            insecure: false,
            timeout: Duration::ZERO,
            output: Output::default(),
        };
        let mistakes = args.check(&args.targets).map(|_| ()).unwrap_err().0;
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    }
}
