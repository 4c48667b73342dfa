//! Every no: before the 101 a plain HTTP answer, after it a close frame. One closed enum each.

use std::time::Duration;

use billing::Micros;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_VERSION, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Map, Value, json};

/// When nothing tells how long a shortage lasts, a client may come back after this.
const SOON: Duration = Duration::from_secs(1);

/// Why a request gets no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing is served there.
    NotFound,
    /// Something is served there, by these methods.
    MethodNotAllowed {
        allow: String,
    },
    /// It did not ask for a WebSocket.
    NotWebSocket,
    /// It asked for a version of the protocol other than 13.
    WebSocketVersion,
    /// The WebSocket request lacks a key or has a wrong one.
    WebSocketKey,
    /// A request for a WebSocket that announces a body.
    UnexpectedBody,
    /// A query parameter that nobody knows.
    UnknownParameter(String),
    /// A query parameter whose value makes no sense.
    BadParameter {
        name: String,
        problem: String,
    },
    /// A body that is not `application/json`.
    ContentType,
    /// A body that did not arrive in time.
    BodyTimeout,
    /// A body of more bytes than are read.
    BodyTooLarge {
        limit: usize,
    },
    /// A body that is no JSON object.
    InvalidJson {
        problem: String,
    },
    /// A field of the body that nobody knows.
    UnknownField {
        field: String,
        problem: String,
    },
    /// A field of the body whose value makes no sense or cannot be honoured.
    InvalidField {
        field: String,
        problem: String,
    },
    /// A parameter that is known, and cannot be honoured here.
    UnsupportedParameter {
        name: &'static str,
        problem: &'static str,
    },
    /// The caller has no session of that id.
    NoSession,
    /// The session has its one socket.
    AlreadyConnected,
    /// The session has as many sockets as it may.
    TooManySockets {
        limit: u32,
    },
    /// A session of that id was asked for before, and is over. Its record is JSON.
    SessionEnded {
        session: Value,
    },
    /// A session of that id was asked for before, with other words. Its record is JSON.
    SessionDiffers {
        session: Value,
    },
    /// A session of that id is on its way, or is being settled.
    SessionBusy,
    /// A session that another gateway serves.
    SessionElsewhere,
    /// No credential.
    NoCredential,
    /// A credential that is none, or was revoked.
    BadCredential,
    /// A token that was good once.
    ExpiredToken,
    Suspended,
    Money {
        balance: Micros,
        required: Micros,
        top_up_url: String,
    },
    OverageCap {
        balance: Micros,
        required: Micros,
        cap: Micros,
        top_up_url: String,
    },
    Concurrency {
        limit: u32,
        plan: String,
    },
    /// No browser in time.
    NoBrowser {
        retry_after: Duration,
    },
    /// Too many keys of that address were none.
    TooManyBadKeys {
        retry_after: Duration,
    },
    /// The key started too many sessions within a minute; or so many of its account wait to be started.
    TooManyStarts {
        retry_after: Duration,
    },
    /// As many sessions as this gateway has descriptors for.
    Full,
    /// The ledger cannot be reached.
    LedgerAway,
    Draining,
}

/// Goes with the answer to a key that is none, as far as to whoever counts them. It does not reach the client.
#[derive(Debug, Clone, Copy)]
struct BadKey;

/// Whether an answer says that a key is none.
#[must_use]
pub fn tells_bad_key<B>(answer: &Response<B>) -> bool {
    answer.extensions().get::<BadKey>().is_some()
}

/// What a refusal is to a program.
struct Form {
    status: StatusCode,
    /// Stable; also the label of the metric.
    code: &'static str,
    title: &'static str,
}

impl Refusal {
    fn form(&self) -> Form {
        let (status, code, title) = match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "Nothing is served at this path"),
            Self::MethodNotAllowed { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This path takes other methods")
            }
            Self::NotWebSocket => {
                (StatusCode::UPGRADE_REQUIRED, "not_websocket", "This path takes WebSocket connections only")
            }
            Self::WebSocketVersion => (
                StatusCode::UPGRADE_REQUIRED,
                "websocket_version",
                "Only WebSocket version 13 is spoken here",
            ),
            Self::WebSocketKey => {
                (StatusCode::BAD_REQUEST, "websocket_key", "Sec-WebSocket-Key must be 16 bytes in base64")
            }
            Self::UnexpectedBody => {
                (StatusCode::BAD_REQUEST, "unexpected_body", "A WebSocket request has no body")
            }
            Self::UnknownParameter(_) => {
                (StatusCode::BAD_REQUEST, "unknown_parameter", "The query has an unknown parameter")
            }
            Self::BadParameter { .. } => {
                (StatusCode::BAD_REQUEST, "bad_parameter", "A query parameter has a wrong value")
            }
            Self::UnsupportedParameter { .. } => {
                (StatusCode::BAD_REQUEST, "unsupported_parameter", "A parameter cannot be honoured here")
            }
            Self::AlreadyConnected => {
                (StatusCode::CONFLICT, "already_connected", "The session is connected already")
            }
            Self::TooManySockets { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "socket_limit", "The session has too many connections")
            }
            Self::ExpiredToken => (StatusCode::UNAUTHORIZED, "expired_token", "The token has expired"),
            Self::ContentType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", "The body must be JSON")
            }
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body took too long"),
            Self::BodyTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large")
            }
            Self::InvalidJson { .. } => {
                (StatusCode::BAD_REQUEST, "invalid_json", "The body is not a JSON object")
            }
            Self::UnknownField { .. } => {
                (StatusCode::BAD_REQUEST, "unknown_field", "The body has an unknown field")
            }
            Self::InvalidField { .. } => {
                (StatusCode::BAD_REQUEST, "invalid_field", "A field of the body has a wrong value")
            }
            Self::NoSession => (StatusCode::NOT_FOUND, "no_session", "There is no such session"),
            Self::SessionEnded { .. } => (StatusCode::CONFLICT, "session_ended", "The session has ended"),
            Self::SessionDiffers { .. } => (
                StatusCode::CONFLICT,
                "session_differs",
                "The id belongs to a session that was asked for otherwise",
            ),
            Self::SessionBusy => {
                (StatusCode::SERVICE_UNAVAILABLE, "session_busy", "The session is starting or ending")
            }
            Self::SessionElsewhere => {
                (StatusCode::SERVICE_UNAVAILABLE, "session_elsewhere", "Another gateway serves the session")
            }
            Self::NoCredential => (StatusCode::UNAUTHORIZED, "no_credential", "An API key is needed"),
            Self::BadCredential => (StatusCode::UNAUTHORIZED, "bad_credential", "The API key is not valid"),
            Self::Suspended => (StatusCode::FORBIDDEN, "suspended", "The account is suspended"),
            Self::Money { .. } => {
                (StatusCode::PAYMENT_REQUIRED, "insufficient_balance", "The balance does not cover a session")
            }
            Self::OverageCap { .. } => {
                (StatusCode::PAYMENT_REQUIRED, "overage_cap", "The overage of this period is used up")
            }
            Self::Concurrency { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "concurrency_limit", "Too many sessions at a time")
            }
            Self::NoBrowser { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "no_browser", "No browser became free in time")
            }
            Self::TooManyBadKeys { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_bad_keys",
                "Too many keys of this address were no keys",
            ),
            Self::TooManyStarts { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_starts",
                "Too many sessions are started by this customer",
            ),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, "full", "This gateway serves no further session"),
            Self::LedgerAway => {
                (StatusCode::SERVICE_UNAVAILABLE, "ledger_away", "The ledger cannot be reached")
            }
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining", "This gateway is shutting down"),
        };
        Form { status, code, title }
    }

    fn detail(&self) -> String {
        match self {
            Self::NotFound => {
                "connect to `/`, `/chromium` or `/chrome`; `/openapi.json` describes the REST API".to_owned()
            }
            Self::MethodNotAllowed { allow } => format!("use {allow}"),
            Self::NotWebSocket => {
                "send `Connection: Upgrade` and `Upgrade: websocket`, with a ws:// or wss:// URL".to_owned()
            }
            Self::WebSocketVersion => "send `Sec-WebSocket-Version: 13`".to_owned(),
            Self::WebSocketKey => "use a WebSocket client library".to_owned(),
            Self::UnexpectedBody => "leave `Content-Length` and `Transfer-Encoding` out".to_owned(),
            Self::UnknownParameter(name) => format!("there is no parameter `{name}`; leave it out"),
            Self::BadParameter { name, problem } => format!("`{name}`: {problem}"),
            Self::UnsupportedParameter { name, problem } => format!("`{name}`: {problem}"),
            Self::AlreadyConnected => {
                "one connection at a time; use `/devtools/…` for further ones".to_owned()
            }
            Self::TooManySockets { limit } => format!("it has {limit}; close some"),
            Self::ExpiredToken => "ask discovery or the REST API for a new URL".to_owned(),
            Self::ContentType => "send `Content-Type: application/json`".to_owned(),
            Self::BodyTimeout => "send the whole body at once".to_owned(),
            Self::BodyTooLarge { limit } => format!("send at most {limit} bytes"),
            Self::InvalidJson { problem } => format!("{problem}; send a JSON object"),
            Self::UnknownField { problem, .. } => format!("{problem}; leave it out"),
            Self::InvalidField { field, problem } => format!("`{field}`: {problem}"),
            Self::NoSession => "check the id; ended sessions are found as well".to_owned(),
            Self::SessionEnded { .. } => "use another `sessionId` for another session".to_owned(),
            Self::SessionDiffers { .. } => {
                "a repeat has the same body; use another `sessionId` for another session".to_owned()
            }
            Self::SessionBusy => "ask again".to_owned(),
            Self::SessionElsewhere => "ask that one".to_owned(),
            Self::NoCredential => {
                "send the key as `Authorization: Bearer KEY`, as `x-api-key: KEY`, or as `?token=KEY`"
                    .to_owned()
            }
            Self::BadCredential => "check the key; a revoked one does not come back".to_owned(),
            Self::Suspended => "ask the operator of this service".to_owned(),
            Self::Money { balance, required, .. } => format!("{balance} is there, {required} is needed"),
            Self::OverageCap { balance, required, cap, .. } => {
                format!("{balance} is there, {required} is needed, and overage ends at {cap}")
            }
            Self::Concurrency { limit, plan } => {
                format!("the plan {plan} allows {limit} sessions at a time; end one or change the plan")
            }
            Self::TooManyBadKeys { .. } => "check the key that your clients use, and try again".to_owned(),
            Self::TooManyStarts { .. } => "nothing was charged; start fewer at a time".to_owned(),
            Self::NoBrowser { .. } | Self::Full | Self::LedgerAway | Self::Draining => {
                "nothing was charged; try again".to_owned()
            }
        }
    }

    /// What a program needs beside the code.
    fn fields(&self) -> Map<String, Value> {
        let fields = match self {
            Self::UnknownParameter(name) | Self::BadParameter { name, .. } => json!({ "parameter": name }),
            Self::UnsupportedParameter { name, .. } => json!({ "parameter": name }),
            Self::TooManySockets { limit } => json!({ "limit": limit }),
            Self::UnknownField { field, .. } | Self::InvalidField { field, .. } => json!({ "field": field }),
            Self::BodyTooLarge { limit } => json!({ "limit": limit }),
            Self::SessionEnded { session } | Self::SessionDiffers { session } => {
                json!({ "session": session })
            }
            Self::Money { balance, required, top_up_url } => money_fields(*balance, *required, top_up_url),
            Self::OverageCap { balance, required, top_up_url, .. } => {
                money_fields(*balance, *required, top_up_url)
            }
            Self::Concurrency { limit, plan } => json!({ "limit": limit, "plan": plan }),
            _ => return Map::new(),
        };
        let Value::Object(fields) = fields else { unreachable!("each of these is an object") };
        fields
    }

    fn header(&self) -> Option<(http::HeaderName, HeaderValue)> {
        // Up: who comes back a moment too early is refused once more.
        let seconds =
            |wait: Duration| HeaderValue::from((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1));
        Some(match self {
            Self::MethodNotAllowed { allow } => (ALLOW, HeaderValue::try_from(allow).ok()?),
            Self::NotWebSocket => (http::header::UPGRADE, HeaderValue::from_static("websocket")),
            Self::WebSocketVersion => (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
            Self::NoCredential | Self::BadCredential | Self::ExpiredToken => {
                (WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ufbrowsers\""))
            }
            Self::NoBrowser { retry_after }
            | Self::TooManyBadKeys { retry_after }
            | Self::TooManyStarts { retry_after } => (RETRY_AFTER, seconds(*retry_after)),
            Self::Concurrency { .. }
            | Self::TooManySockets { .. }
            | Self::Full
            | Self::LedgerAway
            | Self::Draining
            | Self::SessionBusy
            | Self::SessionElsewhere => (RETRY_AFTER, seconds(SOON)),
            _ => return None,
        })
    }

    /// The answer, counted. `application/problem+json` (RFC 9457).
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let is_bad_key = self == Self::BadCredential;
        let Form { status, code, title } = self.form();
        metrics::counter!("ufb_gateway_refusals_total", "code" => code).increment(1);
        let mut body = self.fields();
        body.insert("type".into(), "about:blank".into());
        body.insert("title".into(), title.into());
        body.insert("status".into(), status.as_u16().into());
        body.insert("code".into(), code.into());
        body.insert("detail".into(), self.detail().into());
        let mut response = Response::new(Full::from(Value::Object(body).to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.extend(self.header());
        if is_bad_key {
            response.extensions_mut().insert(BadKey);
        }
        response
    }

    /// Stable; what programs and the log know it by.
    pub fn code(&self) -> &'static str {
        self.form().code
    }

    pub fn status(&self) -> StatusCode {
        self.form().status
    }

    /// In words, for people.
    pub fn title(&self) -> &'static str {
        self.form().title
    }
}

fn money_fields(balance: Micros, required: Micros, top_up_url: &str) -> Value {
    json!({
        "currentBalance": balance.dollars(),
        "currentBalanceMicros": balance.get(),
        "requiredBalance": required.dollars(),
        "requiredBalanceMicros": required.get(),
        "topUpUrl": top_up_url,
    })
}

/// Why a session ends, as its client is told (RFC 6455, section 7.4; 4000 and up are ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Close {
    /// The browser was closed by its client.
    Done,
    Draining,
    /// The client broke the WebSocket protocol.
    Protocol,
    TooBig,
    /// The browser was lost.
    Lost,
    /// Something of ours failed that may work again.
    TryAgain,
    BalanceUsedUp,
    /// The account may not have sessions any more.
    NotAllowed,
    /// It has lasted as long as a session may.
    TimeLimit,
    /// Nothing was said for too long.
    Idle,
    /// The page that the socket belonged to was closed; its browser goes on.
    PageClosed,
    /// Nobody connected to it in time.
    NotConnected,
    /// Its owner ended it.
    Owner,
}

impl Close {
    pub const ALL: [Self; 13] = [
        Self::Done,
        Self::Draining,
        Self::Protocol,
        Self::TooBig,
        Self::Lost,
        Self::TryAgain,
        Self::BalanceUsedUp,
        Self::NotAllowed,
        Self::TimeLimit,
        Self::Idle,
        Self::PageClosed,
        Self::NotConnected,
        Self::Owner,
    ];

    /// The close code.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Done | Self::PageClosed => 1000,
            Self::Draining => 1001,
            Self::Protocol => 1002,
            Self::NotAllowed => 1008,
            Self::TooBig => 1009,
            Self::Lost => 1011,
            Self::TryAgain => 1013,
            Self::BalanceUsedUp => 4402,
            Self::TimeLimit | Self::Idle | Self::NotConnected => 4408,
            Self::Owner => 4410,
        }
    }

    /// The reason: at most 123 bytes, so that it fits a control frame.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Done => "the browser was closed",
            Self::Draining => "the gateway is shutting down; connect again",
            Self::Protocol => "a frame broke the WebSocket protocol",
            Self::TooBig => "a message was over 99 MB",
            Self::Lost => "the browser was lost; the session is refunded within the daily limit",
            Self::TryAgain => "the ledger did not confirm that the session is paid for; connect again",
            Self::BalanceUsedUp => "the balance does not cover the next minute",
            Self::NotAllowed => "the account is suspended, or the key was revoked",
            Self::TimeLimit => "the session has lasted as long as it may",
            Self::Idle => "nothing was sent for too long",
            Self::PageClosed => "the page was closed",
            Self::NotConnected => "nobody connected in time",
            Self::Owner => "the session was ended by its owner",
        }
    }

    /// What the record and the metrics call it.
    #[must_use]
    pub fn cause(self) -> &'static str {
        match self {
            Self::Done => "browser closed",
            Self::Draining => "gateway draining",
            Self::Protocol => "protocol error",
            Self::TooBig => "message too big",
            Self::Lost => "browser lost",
            Self::TryAgain => "ledger away",
            Self::BalanceUsedUp => "balance used up",
            Self::NotAllowed => "not allowed",
            Self::TimeLimit => "time limit",
            Self::Idle => "idle",
            Self::PageClosed => "page closed",
            Self::NotConnected => "never connected",
            Self::Owner => "ended by owner",
        }
    }

    /// The frame that says so, unmasked as a server's frames are.
    #[must_use]
    pub fn frame(self) -> Vec<u8> {
        let reason = self.reason().as_bytes();
        let length = u8::try_from(reason.len() + 2).expect("reasons are short literals");
        let mut frame = vec![0x88, length];
        frame.extend(self.code().to_be_bytes());
        frame.extend(reason);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_frame_is_a_control_frame() {
        for close in [
            Close::Done,
            Close::Draining,
            Close::Protocol,
            Close::TooBig,
            Close::Lost,
            Close::TryAgain,
            Close::BalanceUsedUp,
            Close::NotAllowed,
            Close::TimeLimit,
            Close::Idle,
            Close::PageClosed,
            Close::NotConnected,
            Close::Owner,
        ] {
            let frame = close.frame();
            assert_eq!(frame.len(), 2 + usize::from(frame[1]));
            assert!(frame[1] <= 125, "{close:?}");
        }
    }
}
