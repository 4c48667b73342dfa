//! The table and the document say the same.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Method;
use serde_json::Value;

use super::operation::ID;
use super::*;
use crate::limits::Limits;

const LIMITS: Limits = Limits {
    max_duration: Duration::from_secs(60),
    idle_timeout: Duration::from_secs(60),
    connect_timeout: Duration::from_secs(60),
};

const METHODS: [Method; 7] =
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD, Method::OPTIONS];

fn asked(method: &Method, path: &str) -> Result<(&'static str, Option<String>), Refusal> {
    let request = Request::builder().method(method).uri(path).body(()).unwrap();
    find(&request).map(|(route, id)| (route.name, id))
}

#[test]
fn what_is_served_is_in_the_document_and_the_other_way_round() {
    let document = openapi::document(&LIMITS);
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap().to_owned();
            assert!(described.insert((path.clone(), method.to_uppercase(), name)));
        }
    }
    let mut served = BTreeSet::from([(openapi::PATH.to_owned(), "GET".to_owned(), "describe".to_owned())]);
    for route in &ROUTES {
        let path = route.path.replace(ID, "x1");
        for method in &METHODS {
            match asked(method, &path) {
                Ok((name, _)) => {
                    served.insert((route.path.to_owned(), method.to_string(), name.to_owned()));
                }
                Err(refusal) => assert_eq!(refusal.code(), "method_not_allowed", "{method} {path}"),
            }
        }
    }
    assert_eq!(described, served);
}

#[test]
fn every_reference_in_the_document_leads_somewhere() {
    let document = openapi::document(&LIMITS);
    let mut left = vec![&document];
    let mut found = 0;
    while let Some(value) = left.pop() {
        if let Some(reference) = value.get("$ref") {
            let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            found += 1;
        }
        match value {
            Value::Array(items) => left.extend(items),
            Value::Object(fields) => left.extend(fields.values()),
            _ => {}
        }
    }
    assert!(found > 0);
}

#[test]
fn the_document_tells_the_operators_limit() {
    let document = openapi::document(&LIMITS);
    let timeout = document.pointer("/components/schemas/CreateSession/properties/timeout").unwrap();
    assert_eq!((&timeout["minimum"], &timeout["maximum"]), (&1.into(), &60_000.into()));
    let shapes = document.pointer("/components/schemas/CreateSession/properties").unwrap();
    assert!(shapes.get("keepAlive").is_none(), "it is refused");
}

#[test]
fn what_may_be_left_out_is_still_answered() {
    let document = openapi::document(&LIMITS);
    let required = |shape: &str| {
        let shape = document.pointer(&format!("/components/schemas/{shape}")).unwrap();
        let fields = shape["properties"].as_object().unwrap().len();
        (shape.get("required").map_or(0, |required| required.as_array().unwrap().len()), fields)
    };
    assert_eq!(required("CreateSession").0, 0);
    for shape in ["Account", "CreatedSession", "EndedSession", "Session", "SessionPage"] {
        let (required, fields) = required(shape);
        assert_eq!(required, fields, "{shape}");
    }
}

#[test]
fn paths_that_are_nobodys() {
    for path in
        ["/api/", "/api/session", "/api/sessions/", "/api/sessions//", "/api/sessions/a/b", "/api/account/"]
    {
        assert_eq!(asked(&Method::GET, path), Err(Refusal::NotFound), "{path}");
    }
    let (name, id) = asked(&Method::GET, "/api/sessions/nightly-7").unwrap();
    assert_eq!((name, id.as_deref()), ("showSession", Some("nightly-7")));
    let refused = asked(&Method::DELETE, "/api/sessions/nightly-7");
    assert_eq!(refused, Err(Refusal::MethodNotAllowed { allow: "GET".to_owned() }));
}
