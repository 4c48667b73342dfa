//! Bytes as they come in at a door → requests, and what each of them asks for or why it is refused. All but the sockets and
//! the look-up of the key is what the gateway runs. What it reads without hyper has to be what hyper reads.
#![no_main]

use std::cell::Cell;
use std::convert::Infallible;
use std::io::Cursor;
use std::time::Duration;

use bytes::Bytes;
use gateway::accept;
use gateway::authenticate::credential;
use gateway::head::Head;
use gateway::host::Host;
use gateway::query::Query;
use gateway::refusal::Refusal;
use gateway::upgrade::Handshake;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

/// What `timeout` may say at most.
const LONGEST: Duration = Duration::from_secs(3600);

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("no descriptor is needed");
}

fuzz_target!(|bytes: &[u8]| {
    let mut answers = Vec::new();
    let first = Cell::new(Head::parse(bytes));
    let wire = TokioIo::new(tokio::io::join(Cursor::new(bytes), &mut answers));
    let service = service_fn(|request| {
        if let Some(head) = first.take() {
            assert_same(&head.request, &request);
        }
        Box::pin(async move { Ok::<_, Infallible>(answer(&request)) })
    });
    let mut connection = accept::http().serve_connection(wire, service);
    RUNTIME.with(|runtime| {
        // As the doors do: what follows a 101 is not HTTP.
        let served = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx));
        // A parser that refuses is no finding.
        let _ = runtime.block_on(served);
    });
    drop(connection);
    assert!(first.take().is_none(), "hyper takes it for no request");
    assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."), "{:?}", answers.get(..16));
});

fn assert_same(ours: &Request<()>, hypers: &Request<Incoming>) {
    assert_eq!((ours.method(), ours.uri(), ours.version()), (hypers.method(), hypers.uri(), hypers.version()));
    assert_eq!(ours.headers(), hypers.headers());
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let headers = request.headers();
    let both = headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH);
    assert!(!both, "two lengths for one body");
    assert!(headers.get_all(CONTENT_LENGTH).iter().count() <= 1, "two lengths for one body");
    match asked(request) {
        Ok(handshake) => {
            let response = handshake.response();
            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            assert!(!headers.contains_key(TRANSFER_ENCODING), "a body where frames are");
            response
        }
        Err(refusal) => {
            let response = refusal.into_response();
            assert!(response.status().is_client_error(), "a request alone is nobody else's fault");
            response
        }
    }
}

fn asked(request: &Request<Incoming>) -> Result<Handshake, Refusal> {
    let handshake = Handshake::parse(request)?;
    let query = Query::parse(request.uri().query(), LONGEST)?;
    if let Some(host) = Host::of(request.headers()) {
        assert!(!format!("{host:?}").contains("ufb_"), "a key in what may be logged");
    }
    credential(request.headers(), &query).ok_or(Refusal::NoCredential)?;
    Ok(handshake)
}
