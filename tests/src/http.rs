//! HTTP/1.1 as far as tests need it: one request a connection, headers sent as they are given.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::Cdp;

const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    method: &'static str,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    from: Option<IpAddr>,
}

impl Request {
    #[must_use]
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    #[must_use]
    pub fn new(method: &'static str, target: &str) -> Self {
        Self { method, target: target.to_owned(), headers: Vec::new(), body: Vec::new(), from: None }
    }

    #[must_use]
    pub fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    /// With a body and its length.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// With one chunk and the end, for `Transfer-Encoding: chunked`.
    #[must_use]
    pub fn chunk(mut self, body: &str) -> Self {
        self.body = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes();
        self
    }

    /// With a JSON document.
    #[must_use]
    pub fn json(self, document: &Value) -> Self {
        self.header("Content-Type", "application/json").body(document.to_string())
    }

    /// With `key` in the header that API clients use.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("Authorization", &format!("Bearer {key}"))
    }

    /// Asks for a WebSocket, with the headers that RFC 6455 wants.
    #[must_use]
    pub fn websocket(target: &str) -> Self {
        Self::get(target)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", WEBSOCKET_KEY)
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// From another address of this machine, as if it were another client's.
    #[must_use]
    pub fn from(mut self, address: IpAddr) -> Self {
        self.from = Some(address);
        self
    }

    /// Sends it over a new connection and reads the answer's head.
    ///
    /// # Errors
    ///
    /// Nobody listens there, or the answer is not HTTP.
    pub async fn send(self, to: SocketAddr) -> Result<Response> {
        let socket = TcpSocket::new_v4()?;
        if let Some(address) = self.from {
            socket.bind(SocketAddr::new(address, 0))?;
        }
        let mut stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        stream.write_all(self.head(to).as_bytes()).await?;
        stream.write_all(&self.body).await?;
        let (head, rest) = read_head(&mut stream).await?;
        Response::parse(&head, rest, stream).with_context(|| head.clone())
    }

    fn head(&self, to: SocketAddr) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(name, _)| name == "Host") {
            head += &format!("Host: {to}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + "\r\n"
    }
}

/// Reads up to the empty line. The second part is what was read beyond it.
async fn read_head(stream: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD) {
            let rest = bytes.split_off(end + END_OF_HEAD.len());
            return Ok((String::from_utf8(bytes)?, rest));
        }
        ensure!(stream.read_buf(&mut bytes).await? > 0, "the connection ended within the answer's head");
    }
}

/// An answer whose body has not been read yet.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    rest: Vec<u8>,
    stream: TcpStream,
}

impl Response {
    fn parse(head: &str, rest: Vec<u8>, stream: TcpStream) -> Result<Self> {
        let mut lines = head.trim_end().split("\r\n");
        let status_line = lines.next().context("an empty answer")?;
        let status = status_line.split(' ').nth(1).context("no status")?.parse()?;
        let headers = lines
            .map(|line| line.split_once(':').context("a header without a colon"))
            .map(|header| header.map(|(name, value)| (name.to_owned(), value.trim().to_owned())))
            .collect::<Result<_>>()?;
        Ok(Self { status, headers, rest, stream })
    }

    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// # Errors
    ///
    /// The connection ended before the body did, or the body is not UTF-8.
    pub async fn text(mut self) -> Result<String> {
        let length = self.header("content-length").context("no content-length")?.parse()?;
        while self.rest.len() < length {
            ensure!(self.stream.read_buf(&mut self.rest).await? > 0, "the connection ended within the body");
        }
        Ok(String::from_utf8(self.rest)?)
    }

    /// # Errors
    ///
    /// Those of [`Response::text`], or the body is not JSON.
    pub async fn json(self) -> Result<Value> {
        let text = self.text().await?;
        serde_json::from_str(&text).context(text)
    }

    /// The WebSocket that a 101 begins, or the refusal that anything else is.
    ///
    /// # Errors
    ///
    /// A [`Refusal`], or a 101 that RFC 6455 tells clients to fail.
    pub async fn into_cdp(self) -> Result<Cdp> {
        if self.status != 101 {
            return Err(Refusal::read(self).await?.into());
        }
        let expected = derive_accept_key(WEBSOCKET_KEY.as_bytes());
        ensure!(
            self.header("sec-websocket-accept") == Some(expected.as_str()),
            "a wrong accept key: {self:?}"
        );
        ensure!(self.header("sec-websocket-extensions").is_none(), "an extension nobody offered: {self:?}");
        Ok(Cdp::new(self.stream, self.rest).await)
    }
}

/// A no, as `application/problem+json` (RFC 9457).
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    /// The member `code`, which programs may rely on.
    pub code: String,
    /// The header, in seconds.
    pub retry_after: Option<u64>,
    /// All of the body.
    pub problem: Value,
}

impl Refusal {
    /// # Errors
    ///
    /// The answer is not such a document, or its `status` is not the answer's.
    pub async fn read(response: Response) -> Result<Self> {
        let status = response.status;
        let kind = response.header("content-type").unwrap_or_default();
        ensure!(kind == "application/problem+json", "{status} with a body of the type {kind:?}");
        let retry_after = response.header("retry-after").map(str::parse).transpose()?;
        let problem = response.json().await?;
        ensure!(problem["status"] == status, "{status} with the body {problem}");
        let code = problem["code"].as_str().with_context(|| format!("no code: {problem}"))?.to_owned();
        Ok(Self { status, code, retry_after, problem })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused with {}: {}", self.status, self.problem)
    }
}

impl std::error::Error for Refusal {}
