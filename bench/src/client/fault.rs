//! Why a session failed, and what can be done about it.

use std::fmt;
use std::io;

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
    pub(crate) stage: Stage,
    pub(crate) cause: Cause,
}

#[derive(Debug)]
pub(crate) enum Cause {
    Deadline,
    Io(io::Error),
    /// An answer other than 101, and the `code` in its body.
    Status(u16, Option<String>),
    NoWebSocket(&'static str),
    /// The peer ended the session; its close frame's code, if there was one, and its reason.
    Closed(Option<u16>, String),
    /// The browser's own words about a command that it would not carry out.
    Refused(String),
    Json(serde_json::Error),
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
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
            (Cause::Status(status, _), _) => match status {
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
            Cause::Status(status, None) => write!(f, "HTTP {status}")?,
            Cause::Status(status, Some(code)) => write!(f, "HTTP {status} {code}")?,
            Cause::NoWebSocket(what) => f.write_str(what)?,
            Cause::Closed(Some(code), reason) => write!(f, "closed with {code} {reason}")?,
            Cause::Closed(None, _) => f.write_str("the connection ended without a close frame")?,
            Cause::Refused(message) => write!(f, "the browser refused the command: {message}")?,
            Cause::Json(error) => write!(f, "not a CDP message: {error}")?,
        }
        self.mend().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}
