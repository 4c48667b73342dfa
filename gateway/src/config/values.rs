//! From a setting's text to its value.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use billing::{InvalidStoreUrl, Micros, StoreUrl};
use http::Uri;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::ProviderName;

/// Longer than any deadline is useful, and far from where the addition to an `Instant` overflows.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Why a text is not the value of a setting.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl Wrong {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }

    /// `because` was given, so that `what` has to be given as well.
    pub(super) fn missing(because: &str, what: &str) -> Self {
        Self::new(format!("this is missing, and `{because}` needs it"), format!("give {what}"))
    }

    pub(super) fn not_yet(what: &str) -> Self {
        Self::new(format!("this build does not have `{what}` yet"), "take it out")
    }

    fn is_not(text: &str, what: &str, example: &str) -> Self {
        Self::new(format!("`{text}` is not {what}"), format!("write it like {example}"))
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| Wrong::is_not(text, "an IP address with a port", "`127.0.0.1:3000`"))
}

pub(super) fn path(text: &str) -> Result<PathBuf, Wrong> {
    Ok(PathBuf::from(text))
}

pub(super) fn boolean(text: &str) -> Result<bool, Wrong> {
    text.parse().map_err(|_| Wrong::new(format!("`{text}` is neither true nor false"), "give one of them"))
}

/// A whole number from `MIN` to `MAX`.
pub(super) fn number<T: FromStr, const MIN: u64, const MAX: u64>(text: &str) -> Result<T, Wrong> {
    text.parse::<u64>()
        .ok()
        .filter(|number| (MIN..=MAX).contains(number))
        .and_then(|_| text.parse().ok())
        .ok_or_else(|| {
            Wrong::new(
                format!("`{text}` is not a whole number from {MIN} to {MAX}"),
                "give one in these bounds",
            )
        })
}

/// Micro-dollars.
pub(super) fn amount(text: &str) -> Result<Micros, Wrong> {
    text.parse()
        .ok()
        .map(Micros::new)
        .filter(|amount| *amount <= Micros::MAX)
        .ok_or_else(|| Wrong::is_not(text, "an amount in micro-dollars", "`10000`, which is one cent"))
}

/// `250ms`, `10s`, `5m`, `1h30m`: more than nothing, at most a year.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    parse_duration(text)
        .filter(|duration| (Duration::from_millis(1)..=LONGEST).contains(duration))
        .ok_or_else(|| Wrong::is_not(text, "a duration of 1ms to 366d", "`250ms`, `10s`, `5m` or `1h30m`"))
}

fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut whole = Duration::ZERO;
    while !rest.is_empty() {
        let (count, after) = split_digits(rest);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        let part = Duration::from_millis(count.parse::<u64>().ok()?.checked_mul(millis)?);
        whole = whole.checked_add(part)?;
        rest = after;
    }
    Some(whole)
}

/// Kubernetes' notation of bytes: `640Mi`, `6.4Gi`.
pub(super) fn memory(text: &str) -> Result<u64, Wrong> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let bytes = match unit {
        "" => Some(1),
        "Ki" => Some(1 << 10),
        "Mi" => Some(1 << 20),
        "Gi" => Some(1_u64 << 30),
        _ => None,
    };
    bytes
        .and_then(|bytes| thousandths(number)?.checked_mul(bytes))
        .map(|thousandths| thousandths / 1_000)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| Wrong::is_not(text, "an amount of memory", "`640Mi` or `6.4Gi`"))
}

/// Kubernetes' notation of cores, as thousandths: `200m`, `1`, `0.5`.
pub(super) fn cpu(text: &str) -> Result<u32, Wrong> {
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None => thousandths(text).and_then(|millis| u32::try_from(millis).ok()),
    };
    millis
        .filter(|millis| *millis > 0)
        .ok_or_else(|| Wrong::is_not(text, "an amount of CPU", "`200m` or `1`"))
}

/// A decimal number of at most three places, times 1,000.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, places) = text.split_once('.').unwrap_or((text, "0"));
    if places.is_empty() || places.len() > 3 || !split_digits(places).1.is_empty() {
        return None;
    }
    let places: u64 = format!("{places:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000)?.checked_add(places)
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// The text may hold a password, so that it is not repeated.
pub(super) fn store_url(text: &str) -> Result<StoreUrl, Wrong> {
    text.parse().map_err(|invalid: InvalidStoreUrl| {
        Wrong::new("this is not a store's URL", format!("write it like one of these: {invalid}"))
    })
}

pub(super) fn provider(text: &str) -> Result<ProviderName, Wrong> {
    match text {
        "process" => Ok(ProviderName::Process),
        "fixed" => Ok(ProviderName::Fixed),
        "docker" | "kubernetes" => Err(Wrong::new(
            format!("this build does not have the provider `{text}` yet"),
            "choose `process` or `fixed`",
        )),
        _ => Err(Wrong::new(format!("there is no provider `{text}`"), "choose `process` or `fixed`")),
    }
}

pub(super) fn kind(text: &str) -> Result<(), Wrong> {
    match text {
        "chromium" => Ok(()),
        "firefox" => Err(Wrong::new("this build does not have `firefox` yet", "choose `chromium`")),
        _ => Err(Wrong::new(format!("there is no kind of browser `{text}`"), "choose `chromium`")),
    }
}

/// A level for everything, levels for targets, or both: `info,gateway::session=debug`.
///
/// `Targets` itself takes a bare word that is no level for a target whose every event is wanted, which would make a slip
/// of the finger the loudest setting of all; so each directive has to end in a level.
pub(super) fn log_targets(text: &str) -> Result<Targets, Wrong> {
    let is_level = |directive: &str| {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    Some(text)
        .filter(|text| text.split(',').all(is_level))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Wrong::is_not(text, "a level", "`info`, or `info,gateway=debug` with targets"))
}

/// The DevTools endpoint of a browser that somebody else runs: `ws://HOST:PORT/…` or `http://HOST:PORT`.
///
/// It may carry a credential, so `Debug` and `Display` show its scheme, host and port only.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Uri);

impl Endpoint {
    /// The whole address, credentials included.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.0
    }

    /// Of the URI, or its scheme's own.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(80)
    }

    /// A name, an IPv4 address, or an IPv6 address in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host().expect("an endpoint is only made of a URI with a host")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.0.scheme_str().unwrap_or_default(), self.host(), self.port())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(super) fn endpoint(text: &str) -> Result<Endpoint, Wrong> {
    uri_with(&["ws", "http"], text).map(Endpoint).ok_or_else(|| {
        Wrong::new(
            "this is not the address of a DevTools endpoint",
            "write it like `ws://127.0.0.1:9222/devtools/browser/ID` or `http://127.0.0.1:9222`",
        )
    })
}

/// `https://HOST[:PORT]` or `http://HOST[:PORT]`: how clients reach this gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    authority: String,
    secure: bool,
}

impl PublicUrl {
    /// Host and, where one was given, port.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether clients come by TLS: `https` and `wss` rather than `http` and `ws`.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }
}

pub(super) fn public_url(text: &str) -> Result<PublicUrl, Wrong> {
    uri_with(&["https", "http"], text)
        .filter(|uri| uri.path() == "/" && uri.query().is_none())
        .and_then(|uri| {
            let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
            Some(PublicUrl { authority: authority.to_string(), secure: uri.scheme_str() == Some("https") })
        })
        .ok_or_else(|| {
            Wrong::is_not(text, "a URL of scheme, host and port only", "`https://browsers.example.com`")
        })
}

fn uri_with(schemes: &[&str], text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let known = schemes.contains(&uri.scheme_str()?);
    let named = uri.host().is_some_and(|host| !host.is_empty());
    (known && named).then_some(uri)
}
