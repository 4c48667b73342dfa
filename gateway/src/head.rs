//! The head of a request for a WebSocket, where it came whole at once, as it nearly always does.
//!
//! It is read where it lies, without taking it from the connection, by the parser that hyper uses (`httparse`) and into the
//! same types. What is only a little unusual (a body, many headers, a head in two parts, another path) is none of these:
//! hyper then finds it on the connection, untouched. So hyper judges all that may be hostile, and what is answered without
//! it is what it would have answered the same.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use crate::api;
use crate::route::Route;

/// What is looked at of a connection at once. The heads of the known clients have 150 to 700 bytes.
pub(crate) const LOOK: usize = 2 * 1024;
/// More is hyper's. The known clients send up to 15.
const HEADERS: usize = 32;

/// A request without a body, and how many bytes it has.
#[derive(Debug)]
pub struct Head {
    pub request: Request<()>,
    pub length: usize,
}

impl Head {
    /// None where `bytes` do not begin with a whole head that asks for a socket and for nothing else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        // One copy, of which all values are parts.
        let bytes = Bytes::copy_from_slice(bytes);
        let mut slots = [const { MaybeUninit::uninit() }; HEADERS];
        let mut parsed = httparse::Request::new(&mut []);
        let parser = httparse::ParserConfig::default();
        let status = parser.parse_request_with_uninit_headers(&mut parsed, &bytes, &mut slots).ok()?;
        let httparse::Status::Complete(length) = status else { return None };
        if parsed.method != Some(Method::GET.as_str()) || parsed.version != Some(1) {
            return None;
        }
        let uri = Uri::from_maybe_shared(bytes.slice_ref(parsed.path?.as_bytes())).ok()?;
        if api::has(uri.path()) || matches!(Route::of(uri.path()), None | Some(Route::Discovery(..))) {
            return None;
        }
        let mut headers = HeaderMap::with_capacity(parsed.headers.len());
        for header in parsed.headers.iter() {
            let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_maybe_shared(bytes.slice_ref(header.value)).ok()?);
        }
        let is_plain =
            [CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT].iter().all(|name| !headers.contains_key(name));
        if !is_plain || !headers.contains_key(UPGRADE) {
            return None;
        }
        let mut request = Request::new(());
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Some(Self { request, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "GET /chromium?token=x HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn with(more: &str) -> Option<Head> {
        Head::parse(format!("{PLAIN}{more}\r\n").as_bytes())
    }

    #[test]
    fn a_plain_request() {
        let Head { request, length } = with("x-api-key: one\r\nX-Api-Key: two\r\n").unwrap();
        assert_eq!((request.uri().path(), request.uri().query()), ("/chromium", Some("token=x")));
        assert_eq!((request.method(), request.version()), (&Method::GET, http::Version::HTTP_11));
        assert_eq!(request.headers().len(), 7);
        let keys: Vec<_> = request.headers().get_all("x-api-key").iter().collect();
        assert_eq!(keys, ["one", "two"], "in their order");
        assert_eq!(length, PLAIN.len() + 32 + 2);
    }

    #[test]
    fn what_follows_is_left() {
        assert_eq!(with("\r\n\x01\x02").unwrap().length, PLAIN.len() + 2);
    }

    #[test]
    fn a_part_is_no_head() {
        let whole = format!("{PLAIN}\r\n");
        for length in 0..whole.len() {
            assert!(Head::parse(&whole.as_bytes()[..length]).is_none(), "{length} bytes");
        }
        assert!(Head::parse(whole.as_bytes()).is_some());
    }

    #[test]
    fn what_is_left_to_hyper() {
        let many: String = (0..HEADERS).map(|n| format!("x-{n}: y\r\n")).collect();
        for more in
            ["Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n", &many]
        {
            assert!(with(more).is_none(), "{more}");
        }
        let changes = [
            ("GET", "POST"),
            ("GET", "get"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("Upgrade: websocket", "X: y"),
            ("/chromium", "/json/version"),
            ("/chromium", "/api/sessions"),
            ("/chromium", "/nowhere"),
            ("Host: example.com", "Host: example\rcom"),
            ("Host:", "Host :"),
        ];
        for (from, to) in changes {
            let changed = format!("{PLAIN}\r\n").replacen(from, to, 1);
            assert!(Head::parse(changed.as_bytes()).is_none(), "{to}");
        }
    }
}
