//! One CDP session as a client sees it: connect, ask, close; each stage timed and under a deadline.

mod fault;
mod handshake;

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

use crate::frames::{Frames, Incoming, KEPT, Role};
use crate::target::Endpoint;

pub(crate) use fault::{Cause, Fault, Stage};

/// The close code of a session that is done.
const NORMAL: u16 = 1000;

/// Names the version of the browser; every browser answers it at once, without a page.
pub(crate) fn get_version(id: u64) -> String {
    format!(r#"{{"id":{id},"method":"Browser.getVersion"}}"#)
}

trait Wire: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

/// An open CDP socket.
pub(crate) struct Connection {
    frames: Frames<Box<dyn Wire>>,
}

/// How opening went.
pub(crate) struct Opening {
    pub(crate) tcp: Duration,
    /// Nothing for a target without TLS.
    pub(crate) tls: Option<Secured>,
    pub(crate) upgrade: Duration,
}

pub(crate) struct Secured {
    pub(crate) took: Duration,
    /// Version, cipher suite and key exchange that were agreed on.
    pub(crate) terms: String,
}

/// A successful reply.
pub(crate) struct Answer {
    /// When the whole reply had been read, before it was parsed.
    pub(crate) at: Instant,
    /// What answered, where it says so: `HeadlessChrome/156.0`.
    pub(crate) product: Option<String>,
    /// Bytes of the reply.
    pub(crate) length: u64,
}

impl Connection {
    /// `room` bytes are read at once, at most: see [`crate::frames`].
    pub(crate) async fn open(
        to: &Endpoint,
        room: usize,
        deadline: Instant,
    ) -> Result<(Self, Opening), Fault> {
        let begun = Instant::now();
        let tcp = within(deadline, Stage::Tcp, to.connect()).await?;
        tcp.set_nodelay(true).map_err(|error| Fault { stage: Stage::Tcp, cause: error.into() })?;
        let connected = Instant::now();
        let (mut stream, tls): (Box<dyn Wire>, _) = match &to.tls {
            Some((connector, name)) => {
                let stream = within(deadline, Stage::Tls, connector.connect(name.clone(), tcp)).await?;
                let secured = Secured { took: connected.elapsed(), terms: terms(&stream) };
                (Box::new(stream), Some(secured))
            }
            None => (Box::new(tcp), None),
        };
        let secured = Instant::now();
        let early =
            within(deadline, Stage::Upgrade, handshake::upgrade(&mut stream, &to.uri, to.address)).await?;
        let opening = Opening { tcp: connected - begun, tls, upgrade: secured.elapsed() };
        Ok((Self { frames: Frames::new(stream, Role::Client, &early, room) }, opening))
    }

    /// Sends `command`, whose id is `id`, and waits for its reply; events in between are passed over.
    pub(crate) async fn ask(&mut self, id: u64, command: &str, deadline: Instant) -> Result<Answer, Fault> {
        let exchange = async {
            self.frames.send_text(command.as_bytes()).await?;
            self.reply(id).await
        };
        within(deadline, Stage::Reply, exchange).await
    }

    /// The same with a frame that was made before: see [`crate::frames::text_frame`].
    pub(crate) async fn ask_again(
        &mut self,
        id: u64,
        frame: &[u8],
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let exchange = async {
            self.frames.send_frame(frame).await?;
            self.reply(id).await
        };
        within(deadline, Stage::Reply, exchange).await
    }

    /// A command whose reply's `result` is needed; to a page, where `session` names its session.
    pub(crate) async fn call(
        &mut self,
        method: &str,
        params: Value,
        session: Option<&str>,
        deadline: Instant,
    ) -> Result<Value, Fault> {
        const ID: u64 = 0;
        let mut command = json!({ "id": ID, "method": method, "params": params });
        if let Some(session) = session {
            command["sessionId"] = json!(session);
        }
        self.ask(ID, &command.to_string(), deadline).await?;
        let reply: Result<Value, Cause> = serde_json::from_slice(self.frames.kept()).map_err(Cause::Json);
        reply.map(|mut reply| reply["result"].take()).map_err(|cause| Fault { stage: Stage::Reply, cause })
    }

    /// Closes in an orderly way and waits until the peer has ended the connection.
    pub(crate) async fn close(mut self, deadline: Instant) -> Result<(), Fault> {
        let end = async {
            self.frames.send_close(NORMAL).await?;
            loop {
                match self.frames.receive().await? {
                    Incoming::Close(..) => break,
                    Incoming::End => return Err(Cause::Closed(None, String::new())),
                    Incoming::Text { .. } | Incoming::Binary => {}
                }
            }
            match self.frames.receive().await {
                Ok(_) => Ok(()),
                // Few peers end TLS with a word of its own once the WebSocket is closed.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        within(deadline, Stage::Close, end).await
    }

    async fn reply(&mut self, id: u64) -> Result<Answer, Cause> {
        loop {
            match self.frames.receive().await? {
                Incoming::Text { length } => {
                    let at = Instant::now();
                    if let Some(product) = parse_reply(id, self.frames.kept(), length)? {
                        return Ok(Answer { at, product, length });
                    }
                }
                Incoming::Close(code, reason) => return Err(Cause::Closed(code, reason)),
                Incoming::End => return Err(Cause::Closed(None, String::new())),
                Incoming::Binary => {}
            }
        }
    }
}

fn terms(stream: &TlsStream<TcpStream>) -> String {
    let (_, tls) = stream.get_ref();
    let version = tls.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
    let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("?");
    let group = tls.negotiated_key_exchange_group().map_or("?".to_owned(), |g| format!("{:?}", g.name()));
    format!("{version} {suite} {group}")
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

/// The product that the reply to `id` names, or nothing when the message is no reply to it. `beginning` is what was
/// kept of its `length` bytes.
fn parse_reply(id: u64, beginning: &[u8], length: u64) -> Result<Option<Option<String>>, Cause> {
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
    if length > KEPT as u64 {
        // A browser names the id first; an error is never this long.
        return Ok(beginning.starts_with(format!(r#"{{"id":{id},"result":"#).as_bytes()).then_some(None));
    }
    match serde_json::from_slice(beginning).map_err(Cause::Json)? {
        Reply { error: Some(refusal), .. } => Err(Cause::Refused(refusal.message)),
        Reply { id: Some(replied), result, .. } if replied == id => Ok(Some(result.and_then(|r| r.product))),
        Reply { .. } => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(id: u64, text: &str) -> Result<Option<Option<String>>, Cause> {
        parse_reply(id, text.as_bytes(), text.len() as u64)
    }

    #[test]
    fn a_reply_is_told_from_an_event_and_from_a_refusal() {
        let product = parse(7, r#"{"id":7,"result":{"product":"Chrome/1"}}"#).unwrap();
        assert_eq!(product, Some(Some("Chrome/1".to_owned())));
        assert_eq!(parse(7, r#"{"id":7,"result":{}}"#).unwrap(), Some(None));
        assert_eq!(parse(7, r#"{"method":"Target.targetCreated","params":{}}"#).unwrap(), None);
        assert_eq!(parse(7, r#"{"id":6,"result":{}}"#).unwrap(), None);
        let refused = parse(7, r#"{"id":7,"error":{"code":-32600,"message":"no"}}"#);
        assert!(matches!(refused, Err(Cause::Refused(message)) if message == "no"));
        assert!(matches!(parse(7, "{"), Err(Cause::Json(_))));
    }

    #[test]
    fn of_a_long_reply_the_beginning_tells_what_it_is() {
        let long = KEPT as u64 + 1;
        assert_eq!(parse_reply(7, br#"{"id":7,"result":{"result":{"#, long).unwrap(), Some(None));
        assert_eq!(parse_reply(7, br#"{"id":70,"result":{"result":{"#, long).unwrap(), None);
        assert_eq!(parse_reply(7, br#"{"method":"Page.frame","params":{"#, long).unwrap(), None);
    }
}
