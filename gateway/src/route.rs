//! What a request's path asks for.

use http::Uri;

/// A request's path, understood, and its query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    pub route: Route<'a>,
    pub query: Option<&'a str>,
}

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/`, `/chromium`, `/chrome`: start a session with Chromium.
    Connect,
    /// `/devtools/browser/{id}`: a socket to the browser of that session.
    Browser(&'a str),
    /// `/devtools/page/{target}`: a socket to a page.
    Page(&'a str),
    /// `/sessions/{id}`: the socket of a session that was made without one.
    Session(&'a str),
    /// What DevTools clients ask a browser over HTTP. Below `/sessions/{id}` it is about that session.
    Discovery(Document, Option<&'a str>),
}

/// A document of discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    Version,
    List,
    Protocol,
}

/// Playwright puts a slash at the end, and keeps what path it was given in front.
const DOCUMENTS: [(&str, Document); 4] = [
    ("/json/version", Document::Version),
    ("/json/list", Document::List),
    ("/json/protocol", Document::Protocol),
    ("/json", Document::List),
];

/// pyppeteer puts this behind all of its URL, which is behind the query.
const BEHIND_QUERY: &str = "/json/version";

impl<'a> Asked<'a> {
    /// None where nothing is served.
    #[must_use]
    pub fn by(uri: &'a Uri) -> Option<Self> {
        let (route, query) = (Route::of(uri.path())?, uri.query());
        match query.and_then(|query| query.strip_suffix(BEHIND_QUERY)) {
            Some(query) if route == Route::Connect => {
                Some(Self { route: Route::Discovery(Document::Version, None), query: Some(query) })
            }
            Some(_) | None => Some(Self { route, query }),
        }
    }
}

impl<'a> Route<'a> {
    /// None where nothing is served.
    #[must_use]
    pub fn of(path: &'a str) -> Option<Self> {
        if let Some((base, document)) = document(path) {
            return match Self::of_socket(base) {
                Some(Self::Connect) => Some(Self::Discovery(document, None)),
                Some(Self::Session(id)) => Some(Self::Discovery(document, Some(id))),
                _ => None,
            };
        }
        Self::of_socket(path)
    }

    fn of_socket(path: &'a str) -> Option<Self> {
        match path {
            "" | "/" | "/chromium" | "/chrome" => Some(Self::Connect),
            _ => None
                .or_else(|| below("/devtools/browser/", path).map(Self::Browser))
                .or_else(|| below("/devtools/page/", path).map(Self::Page))
                .or_else(|| below("/sessions/", path).map(Self::Session)),
        }
    }
}

/// What a path is known by in the log. People put keys into the strangest places, so nothing of it is repeated.
#[must_use]
pub fn place(path: &str) -> &'static str {
    let known = PLACES.into_iter().find(|place| path.starts_with(place));
    known.unwrap_or(if path == "/" { "/" } else { "elsewhere" })
}

const PLACES: [&str; 8] = [
    "/devtools/browser",
    "/devtools/page",
    "/sessions",
    "/json",
    "/chromium",
    "/chrome",
    "/api",
    "/openapi.json",
];

/// The document that a path ends with, and what stands before it.
fn document(path: &str) -> Option<(&str, Document)> {
    let path = path.strip_suffix('/').unwrap_or(path);
    DOCUMENTS.into_iter().find_map(|(suffix, document)| Some((path.strip_suffix(suffix)?, document)))
}

/// The one segment that follows.
fn below<'a>(folder: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(folder).filter(|rest| !rest.is_empty() && !rest.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        use Document::{List, Protocol, Version};
        let cases = [
            ("/", Some(Route::Connect)),
            ("/chromium", Some(Route::Connect)),
            ("/chrome", Some(Route::Connect)),
            ("/firefox", None),
            ("/json/version", Some(Route::Discovery(Version, None))),
            ("/json/version/", Some(Route::Discovery(Version, None))),
            ("//json/version/", Some(Route::Discovery(Version, None))),
            ("/chromium/json/version/", Some(Route::Discovery(Version, None))),
            ("/json", Some(Route::Discovery(List, None))),
            ("/json/", Some(Route::Discovery(List, None))),
            ("/json/list", Some(Route::Discovery(List, None))),
            ("/json/protocol", Some(Route::Discovery(Protocol, None))),
            ("/json/new", None),
            ("/sessions/s1", Some(Route::Session("s1"))),
            ("/sessions/s1/json/list", Some(Route::Discovery(List, Some("s1")))),
            ("/sessions/", None),
            ("/sessions/a/b", None),
            ("/devtools/browser/s1", Some(Route::Browser("s1"))),
            ("/devtools/page/ABC", Some(Route::Page("ABC"))),
            ("/devtools/page/ABC/json/list", None),
            ("/devtools/inspector.html", None),
            ("/nowhere/json/version", None),
        ];
        for (path, route) in cases {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }

    #[test]
    fn a_document_may_be_behind_the_query() {
        let uri = "/?token=abc/json/version".parse().unwrap();
        let version = Route::Discovery(Document::Version, None);
        assert_eq!(Asked::by(&uri), Some(Asked { route: version, query: Some("token=abc") }));
        let uri = "/sessions/s1?token=abc/json/version".parse().unwrap();
        assert_eq!(Asked::by(&uri).unwrap().route, Route::Session("s1"));
    }
}
