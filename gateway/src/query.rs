//! The query of a connect URL: a credential and the session's parameters. What nobody knows is refused, since a
//! parameter that is ignored is a surprise on a bill.

use std::fmt;
use std::time::Duration;

use billing::{ID_MAX, NewSession, SessionId, SessionRequest};

use crate::refusal::Refusal;

/// The parsed query.
#[derive(Default)]
pub struct Query {
    credential: Option<String>,
    session: Option<SessionId>,
    request: SessionRequest,
    /// The first parameter that is about a session which is yet to be started.
    about_start: Option<&'static str>,
}

impl fmt::Debug for Query {
    /// Without the credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query")
            .field("session", &self.session)
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl Query {
    /// Parses `application/x-www-form-urlencoded` pairs. `longest` is what `timeout` may be at most.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownParameter`], [`Refusal::BadParameter`], [`Refusal::UnsupportedParameter`].
    pub fn parse(query: Option<&str>, longest: Duration) -> Result<Self, Refusal> {
        let mut parsed = Self::default();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            parsed.take(&name, &value, longest)?;
        }
        Ok(parsed)
    }

    /// The credential alone, whatever else is wrong.
    #[must_use]
    pub fn credential_alone(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let credentials = pairs.filter(|(name, _)| matches!(name.as_ref(), "token" | "apiKey"));
        Self { credential: credentials.last().map(|(_, value)| value.into_owned()), ..Self::default() }
    }

    fn take(&mut self, name: &str, value: &str, longest: Duration) -> Result<(), Refusal> {
        let name = match name {
            "token" | "apiKey" => {
                self.credential = Some(value.to_owned());
                return Ok(());
            }
            "browser" => {
                browser(value)?;
                "browser"
            }
            "timeout" => {
                self.request.timeout = Some(timeout(value, longest)?);
                "timeout"
            }
            "trackingId" => {
                self.request.tracking_id = Some(value.parse().map_err(|_| not_an_id("trackingId"))?);
                "trackingId"
            }
            "sessionId" => {
                self.session = Some(value.parse().map_err(|_| not_an_id("sessionId"))?);
                "sessionId"
            }
            "keepAlive" => {
                let why = "a session ends with its last connection; leave it out";
                return Err(Refusal::UnsupportedParameter { name: "keepAlive", problem: why });
            }
            unknown => return Err(Refusal::UnknownParameter(unknown.to_owned())),
        };
        self.about_start.get_or_insert(name);
        Ok(())
    }

    /// `?token=` or `?apiKey=`; the last one given.
    pub fn credential(&self) -> Option<&str> {
        self.credential.as_deref()
    }

    /// Whether the session's id was chosen by the client.
    pub fn names_session(&self) -> bool {
        self.session.is_some()
    }

    /// The session to be started.
    pub fn into_session(self) -> NewSession {
        match self.session {
            Some(id) => NewSession::named(id, self.request),
            None => NewSession::fresh(self.request),
        }
    }

    /// For a session that exists already, which nothing but a credential can be said about.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnsupportedParameter`].
    pub fn no_parameters(&self) -> Result<(), Refusal> {
        let why = "it is for the URL that starts a session; this one belongs to a session that exists";
        self.about_start.map_or(Ok(()), |name| Err(Refusal::UnsupportedParameter { name, problem: why }))
    }
}

fn browser(value: &str) -> Result<(), Refusal> {
    match value {
        "chromium" | "chrome" => Ok(()),
        "firefox" => {
            let why = "this gateway has `chromium` only";
            Err(Refusal::UnsupportedParameter { name: "browser", problem: why })
        }
        _ => Err(bad("browser", "it is `chromium`".to_owned())),
    }
}

fn timeout(value: &str, longest: Duration) -> Result<Duration, Refusal> {
    let timeout = value.parse().ok().map(Duration::from_millis);
    timeout.filter(|timeout| !timeout.is_zero() && *timeout <= longest).ok_or_else(|| {
        bad("timeout", format!("it is a whole number of milliseconds, from 1 to {}", longest.as_millis()))
    })
}

fn not_an_id(name: &str) -> Refusal {
    bad(name, format!("it is 1 to {ID_MAX} characters of A-Z a-z 0-9 . _ -"))
}

fn bad(name: &str, problem: String) -> Refusal {
    Refusal::BadParameter { name: name.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(60);

    fn parse(query: &str) -> Result<Query, Refusal> {
        Query::parse(Some(query), LONGEST)
    }

    #[test]
    fn credentials_and_strangers() {
        assert_eq!(parse("token=a%5Fb").unwrap().credential(), Some("a_b"));
        assert_eq!(parse("apiKey=c").unwrap().credential(), Some("c"));
        assert_eq!(Query::parse(None, LONGEST).unwrap().credential(), None);
        let refused = parse("token=a&stealth=1").unwrap_err();
        assert_eq!(refused, Refusal::UnknownParameter("stealth".to_owned()));
    }

    #[test]
    fn parameters_of_a_session() {
        let query = parse("token=a&timeout=60000&trackingId=ci.7&sessionId=s-1&browser=chromium").unwrap();
        assert!(query.names_session());
        assert!(!format!("{query:?}").contains("token"));
        let NewSession { id, request, .. } = query.into_session();
        assert_eq!(id.as_str(), "s-1");
        assert_eq!(request.timeout, Some(LONGEST));
        assert_eq!(request.tracking_id.unwrap().as_str(), "ci.7");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let cases = [
            ("timeout=", "bad_parameter"),
            ("timeout=0", "bad_parameter"),
            ("timeout=-5", "bad_parameter"),
            ("timeout=1.5", "bad_parameter"),
            ("timeout=60001", "bad_parameter"),
            ("timeout=99999999999999999999", "bad_parameter"),
            ("trackingId=", "bad_parameter"),
            ("trackingId=a%20b", "bad_parameter"),
            ("sessionId=a/b", "bad_parameter"),
            ("browser=netscape", "bad_parameter"),
            ("browser=firefox", "unsupported_parameter"),
            ("keepAlive=1000", "unsupported_parameter"),
        ];
        for (query, code) in cases {
            assert_eq!(parse(query).unwrap_err().code(), code, "{query}");
        }
    }

    #[test]
    fn nothing_is_said_about_a_session_that_exists() {
        assert_eq!(parse("token=a").unwrap().no_parameters(), Ok(()));
        for query in ["timeout=5", "trackingId=a", "sessionId=a", "browser=chromium"] {
            assert_eq!(parse(query).unwrap().no_parameters().unwrap_err().code(), "unsupported_parameter");
        }
    }
}
