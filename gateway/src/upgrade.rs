//! The WebSocket handshake (RFC 6455, section 4.2). The accept key is ours to compute, so no round trip to the browser
//! stands between the client's request and its 101. No extension is taken up: Chrome would compress every frame.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use sha1::{Digest, Sha1};

use crate::refusal::Refusal;

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_BYTES: usize = 16;
const FRONT: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ";
const END: &[u8] = b"\r\n\r\n";
const RESPONSE_BYTES: usize = FRONT.len() + ACCEPT_BYTES + END.len();
/// 20 bytes in base64.
const ACCEPT_BYTES: usize = 28;

/// A request that asks for a WebSocket properly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    accept: [u8; ACCEPT_BYTES],
}

impl Handshake {
    /// Checks everything that the answer depends on. A body is refused: what follows a 101 are frames, and a proxy in
    /// front of this gateway must not take for somebody's body what is taken for frames here.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse<B>(request: &Request<B>) -> Result<Self, Refusal> {
        let headers = request.headers();
        if request.method() != Method::GET {
            return Err(Refusal::MethodNotAllowed { allow: Method::GET.to_string() });
        }
        let asked = has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, "websocket");
        if !asked || request.version() != Version::HTTP_11 {
            return Err(Refusal::NotWebSocket);
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(Refusal::WebSocketVersion);
        }
        if headers.contains_key(TRANSFER_ENCODING)
            || headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0")
        {
            return Err(Refusal::UnexpectedBody);
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(Refusal::WebSocketKey)?.as_bytes();
        if STANDARD.decode(key).map_or(0, |bytes| bytes.len()) != KEY_BYTES {
            return Err(Refusal::WebSocketKey);
        }
        Ok(Self { accept: accept(key) })
    }

    /// The 101 as it is sent.
    #[must_use]
    pub fn bytes(&self) -> [u8; RESPONSE_BYTES] {
        let mut bytes = [0; RESPONSE_BYTES];
        let (front, rest) = bytes.split_at_mut(FRONT.len());
        let (accept, end) = rest.split_at_mut(ACCEPT_BYTES);
        front.copy_from_slice(FRONT);
        accept.copy_from_slice(&self.accept);
        end.copy_from_slice(END);
        bytes
    }

    /// The 101 as hyper takes it.
    #[must_use]
    pub fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        let accept = HeaderValue::from_bytes(&self.accept).expect("base64 is printable");
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        response
    }
}

fn accept(key: &[u8]) -> [u8; ACCEPT_BYTES] {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0; ACCEPT_BYTES];
    STANDARD.encode_slice(digest, &mut accept).expect("a SHA-1 has 20 bytes");
    accept
}

fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
        let mut request = Request::builder()
            .header("Connection", "keep-alive, Upgrade")
            .header("Upgrade", "WebSocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        change(&mut request);
        request
    }

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn the_accept_key() {
        let handshake = Handshake::parse(&request(|_| ())).unwrap();
        assert_eq!(&handshake.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_is_refused() {
        type Change = fn(&mut Request<()>);
        let cases: [(Change, Refusal); 8] = [
            (
                |request| *request.method_mut() = Method::POST,
                Refusal::MethodNotAllowed { allow: "GET".to_owned() },
            ),
            (|request| *request.version_mut() = Version::HTTP_10, Refusal::NotWebSocket),
            (|request| drop(request.headers_mut().remove(UPGRADE)), Refusal::NotWebSocket),
            (|request| drop(request.headers_mut().remove(SEC_WEBSOCKET_VERSION)), Refusal::WebSocketVersion),
            (
                |request| drop(request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("1"))),
                Refusal::UnexpectedBody,
            ),
            (
                |request| {
                    drop(request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked")))
                },
                Refusal::UnexpectedBody,
            ),
            (|request| drop(request.headers_mut().remove(SEC_WEBSOCKET_KEY)), Refusal::WebSocketKey),
            (
                |request| {
                    drop(request.headers_mut().insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("eA==")))
                },
                Refusal::WebSocketKey,
            ),
        ];
        for (change, refusal) in cases {
            assert_eq!(Handshake::parse(&request(change)), Err(refusal));
        }
    }
}
