//! One CDP session as a client sees it: connect, ask, close; each stage timed and under a deadline.

use std::fmt;
use std::io;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::target::Endpoint;

/// Room for many small messages; what is larger is read in several turns.
const READ_BUFFER: usize = 16 * 1024;
/// What Playwright and Puppeteer accept in one message.
pub(crate) const MESSAGE_LIMIT: usize = 256 << 20;

/// Buffers that cost little to make anew for each session, and limits that fit CDP.
pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(Some(MESSAGE_LIMIT))
        .max_frame_size(Some(MESSAGE_LIMIT))
}

/// Names the version of the browser; every browser answers it at once, without a page.
pub(crate) fn get_version(id: u64) -> String {
    format!(r#"{{"id":{id},"method":"Browser.getVersion"}}"#)
}

trait Wire: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

/// An open CDP socket.
pub(crate) struct Connection {
    socket: WebSocketStream<Box<dyn Wire>>,
}

/// How long each stage of opening took.
pub(crate) struct Opening {
    pub(crate) tcp: Duration,
    /// Nothing for a target without TLS.
    pub(crate) tls: Option<Duration>,
    pub(crate) upgrade: Duration,
}

/// A successful reply.
pub(crate) struct Answer {
    /// When the whole reply had been read, before it was parsed.
    pub(crate) at: Instant,
    /// What answered, where it says so: `HeadlessChrome/156.0`.
    pub(crate) product: Option<String>,
}

impl Connection {
    pub(crate) async fn open(to: &Endpoint, deadline: Instant) -> Result<(Self, Opening), Fault> {
        let begun = Instant::now();
        let tcp = within(deadline, Stage::Tcp, TcpStream::connect(to.address)).await?;
        tcp.set_nodelay(true).map_err(|e| Fault { stage: Stage::Tcp, cause: e.into() })?;
        let connected = Instant::now();
        let stream: Box<dyn Wire> = match &to.tls {
            Some((connector, name)) => {
                Box::new(within(deadline, Stage::Tls, connector.connect(name.clone(), tcp)).await?)
            }
            None => Box::new(tcp),
        };
        let secured = Instant::now();
        let upgrade = client_async_with_config(&to.uri, stream, Some(websocket_config()));
        let (socket, _) = within(deadline, Stage::Upgrade, upgrade).await?;
        let opening = Opening {
            tcp: connected - begun,
            tls: to.tls.is_some().then(|| secured - connected),
            upgrade: secured.elapsed(),
        };
        Ok((Self { socket }, opening))
    }

    /// Sends `command`, whose id is `id`, and waits for its reply; events in between are passed over.
    pub(crate) async fn ask(
        &mut self,
        id: u64,
        command: Utf8Bytes,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let exchange = async {
            self.socket.send(Message::Text(command)).await?;
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let at = Instant::now();
                        if let Some(product) = parse_reply(id, &text)? {
                            return Ok(Answer { at, product });
                        }
                    }
                    Some(Ok(Message::Close(frame))) => return Err(Cause::Closed(frame)),
                    Some(message) => drop(message?),
                    None => return Err(Cause::Closed(None)),
                }
            }
        };
        within(deadline, Stage::Reply, exchange).await
    }

    /// Closes in an orderly way and waits until the peer has ended the connection.
    pub(crate) async fn close(mut self, deadline: Instant) -> Result<(), Fault> {
        let end = async {
            self.socket
                .close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))
                .await?;
            while let Some(message) = self.socket.next().await {
                drop(message?);
            }
            Ok::<_, Cause>(())
        };
        within(deadline, Stage::Close, end).await
    }
}

async fn within<T, E: Into<Cause>>(
    deadline: Instant,
    stage: Stage,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Fault> {
    match timeout_at(deadline, work).await {
        Ok(done) => done.map_err(|e| Fault { stage, cause: e.into() }),
        Err(_) => Err(Fault { stage, cause: Cause::Deadline }),
    }
}

/// The product that the reply to `id` names, or nothing when `text` is no reply to it.
fn parse_reply(id: u64, text: &str) -> Result<Option<Option<String>>, Cause> {
    #[derive(Deserialize)]
    struct Reply {
        id: Option<u64>,
        result: Option<Version>,
        error: Option<Refusal>,
    }
    #[derive(Deserialize)]
    struct Version {
        product: Option<String>,
    }
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    match serde_json::from_str(text).map_err(Cause::Json)? {
        Reply { error: Some(refusal), .. } => Err(Cause::Refused(refusal.message)),
        Reply { id: Some(replied), result, .. } if replied == id => Ok(Some(result.and_then(|r| r.product))),
        Reply { .. } => Ok(None),
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    Tcp,
    Tls,
    Upgrade,
    Reply,
    Close,
}

/// Why a session failed, and where on its way.
#[derive(Debug)]
pub(crate) struct Fault {
    stage: Stage,
    cause: Cause,
}

#[derive(Debug)]
pub(crate) enum Cause {
    Deadline,
    Io(io::Error),
    Status(StatusCode),
    /// The peer ended the session; its close frame, if it sent one.
    Closed(Option<CloseFrame>),
    /// The browser's own words about a command that it would not carry out.
    Refused(String),
    Json(serde_json::Error),
    WebSocket(Box<tungstenite::Error>),
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<tungstenite::Error> for Cause {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Io(error) => Self::Io(error),
            tungstenite::Error::Http(response) => Self::Status(response.status()),
            other => Self::WebSocket(Box::new(other)),
        }
    }
}

impl Fault {
    /// What the operator can do about it.
    fn mend(&self) -> Option<&'static str> {
        match (&self.cause, self.stage) {
            (Cause::Io(e), Stage::Tcp) if e.kind() == io::ErrorKind::ConnectionRefused => {
                Some("is it running, and is the port right?")
            }
            (Cause::Io(_), Stage::Tls) => {
                Some("is it a TLS port, and does --ca name who signed its certificate (or --insecure)?")
            }
            (Cause::Status(status), _) => match status.as_u16() {
                401 => Some("give an API key in the URL: ?token=KEY"),
                402 => Some("credit the account: ufbrowsers customer credit"),
                403 => Some("the account is suspended, or a browser refused an Origin"),
                404 => Some("is the URL's path right? A restarted browser has another"),
                429 => Some("raise the account's plan, or --gap"),
                500 => Some("a browser wants its own address as Host: does the proxy set it?"),
                503 => Some("no browser was free: raise the pool's size, or --gap"),
                _ => None,
            },
            (Cause::Deadline, _) => Some("raise --timeout if it is only slow"),
            _ => None,
        }
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.stage {
            Stage::Tcp => "TCP connect: ",
            Stage::Tls => "TLS handshake: ",
            Stage::Upgrade => "WebSocket upgrade: ",
            Stage::Reply => "CDP reply: ",
            Stage::Close => "close: ",
        })?;
        match &self.cause {
            Cause::Deadline => f.write_str("no answer in time")?,
            Cause::Io(error) => write!(f, "{error}")?,
            Cause::Status(status) => write!(f, "HTTP {status}")?,
            Cause::Closed(Some(frame)) => write!(f, "closed with {} {}", frame.code, frame.reason)?,
            Cause::Closed(None) => f.write_str("the connection ended")?,
            Cause::Refused(message) => write!(f, "the browser refused the command: {message}")?,
            Cause::Json(error) => write!(f, "not a CDP message: {error}")?,
            Cause::WebSocket(error) => write!(f, "{error}")?,
        }
        self.mend().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_told_from_an_event_and_from_a_refusal() {
        let product = parse_reply(7, r#"{"id":7,"result":{"product":"Chrome/1"}}"#).unwrap();
        assert_eq!(product, Some(Some("Chrome/1".to_owned())));
        assert_eq!(parse_reply(7, r#"{"id":7,"result":{}}"#).unwrap(), Some(None));
        assert_eq!(parse_reply(7, r#"{"method":"Target.targetCreated","params":{}}"#).unwrap(), None);
        assert_eq!(parse_reply(7, r#"{"id":6,"result":{}}"#).unwrap(), None);
        let refused = parse_reply(7, r#"{"id":7,"error":{"code":-32600,"message":"no"}}"#);
        assert!(matches!(refused, Err(Cause::Refused(message)) if message == "no"));
        assert!(matches!(parse_reply(7, "{"), Err(Cause::Json(_))));
    }
}
