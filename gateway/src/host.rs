//! The `Host` header: the address that a client knows this gateway by, and maybe its key.
//!
//! A client that can send neither headers nor a query still says which host it means. So a key may stand before the
//! host's name, as `KEY.browsers.example.com`. Whoever sees DNS queries or TLS handshakes on the way sees it too.

use http::HeaderMap;
use http::header::HOST;
use http::uri::Authority;

use crate::config::PublicUrl;
use crate::serve::Gateway;
use crate::session::Door;

/// How a key begins in a host name. Some TLS libraries accept no underscore there, so a hyphen may stand for it.
const PREFIXES: [&str; 2] = ["ufb_", "ufb-"];

/// A `Host` header, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Host {
    authority: Authority,
    /// The first label, where it is a key.
    label: Option<String>,
}

impl Host {
    /// None where there is no header, or none that makes sense.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(HOST)?.to_str().ok()?;
        let (label, rest) = match text.split_once('.').filter(|(label, _)| key(label).is_some()) {
            Some((label, rest)) => (Some(label.to_owned()), rest),
            None => (None, text),
        };
        let authority: Authority = rest.parse().ok()?;
        // A key that stands elsewhere than before a name must not come into URLs and logs.
        let has_key = authority.as_str().to_ascii_lowercase().contains(PREFIXES[0]);
        let is_name = !has_key && !authority.as_str().contains('@');
        is_name.then_some(Self { authority, label })
    }

    /// The host, and the port where one was named; without the key.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The key in its usual form.
    #[must_use]
    pub fn into_key(self) -> Option<String> {
        key(&self.label?)
    }
}

impl std::fmt::Debug for Host {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// Where a client reaches this gateway, as far as it is known from its request. Cheap to make; the rest is done when it is
/// asked for.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    public: Option<&'a PublicUrl>,
    door: Door,
    headers: &'a HeaderMap,
}

impl<'a> Site<'a> {
    #[must_use]
    pub fn new(gateway: &'a Gateway, door: Door, headers: &'a HeaderMap) -> Self {
        Self { public: gateway.public_url.as_ref(), door, headers }
    }

    /// `https://HOST`, without a slash at its end.
    #[must_use]
    pub fn http(&self) -> String {
        self.url("http")
    }

    /// `wss://HOST`, without a slash at its end.
    #[must_use]
    pub fn ws(&self) -> String {
        self.url("ws")
    }

    /// The same, with the key that the client put before the host's name: it has resolved and verified that name, a wildcard
    /// does not hold for what is behind it, and some clients show nothing else when they connect. Not for error bodies.
    #[must_use]
    pub fn ws_with_key(&self) -> String {
        let url = self.ws();
        match (Host::of(self.headers).and_then(|host| host.label), url.split_once("://")) {
            (Some(label), Some((scheme, authority))) => format!("{scheme}://{label}.{authority}"),
            _ => url,
        }
    }

    /// Where money is added.
    #[must_use]
    pub fn top_up_url(&self) -> String {
        format!("{}/account/billing", self.http())
    }

    /// The operator's word wins over the client's. A client that names no host gets a name that works on this machine.
    fn url(&self, scheme: &str) -> String {
        if let Some(public) = self.public {
            let secure = if public.is_secure() { "s" } else { "" };
            return format!("{scheme}{secure}://{}", public.authority());
        }
        let secure = if self.door == Door::Tls { "s" } else { "" };
        match Host::of(self.headers) {
            Some(host) => format!("{scheme}{secure}://{}", host.authority),
            None => format!("{scheme}{secure}://localhost"),
        }
    }
}

/// Host names know no case, a key does.
fn key(label: &str) -> Option<String> {
    let label = label.to_ascii_lowercase();
    let digits = PREFIXES.iter().find_map(|prefix| label.strip_prefix(prefix))?;
    Some(format!("{}{digits}", PREFIXES[0]))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn host(text: &str) -> Option<Host> {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(text).unwrap());
        Host::of(&headers)
    }

    #[test]
    fn a_key_may_stand_before_the_host() {
        let cases = [
            ("localhost:3000", "localhost:3000", None),
            ("localhost", "localhost", None),
            ("[::1]:3000", "[::1]:3000", None),
            ("127.0.0.1:3000", "127.0.0.1:3000", None),
            ("ufb_abc.localhost:3000", "localhost:3000", Some("ufb_abc")),
            ("ufb-abc.localhost", "localhost", Some("ufb_abc")),
            ("UFB_ABC.Browsers.Example.com", "Browsers.Example.com", Some("ufb_abc")),
        ];
        for (text, authority, key) in cases {
            let host = host(text).unwrap();
            assert_eq!(host.authority().as_str(), authority, "{text}");
            assert!(!format!("{host:?}").to_ascii_lowercase().contains("abc"), "{host:?}");
            assert_eq!(host.into_key().as_deref(), key, "{text}");
        }
    }

    #[test]
    fn what_is_no_host() {
        let keys = ["ufb_abc", "UFB_ABC:3000", "ufb_abc.", "other.ufb_abc.localhost"];
        for text in ["", "a/b", "user@host"].into_iter().chain(keys) {
            assert_eq!(host(text), None, "{text}");
        }
    }
}
