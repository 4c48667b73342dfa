//! The operator's port: metrics, health, what there is, drain. It asks for no credential, so it listens on loopback unless told otherwise.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::host::Host;
use crate::metrics::{Census, Report};
use crate::serve::{Gateway, Tenure};

/// Prometheus, a probe or two, a person.
const CONNECTIONS: usize = 64;
const HEADER: Duration = Duration::from_secs(5);
const WHAT_THERE_IS: &str = "GET /metrics /healthz /readyz /debug/sessions, POST /drain\n";
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until it is dropped, or another process has the door.
pub async fn serve(listener: TcpListener, gateway: Arc<Gateway>, metrics: PrometheusHandle) {
    let mut tenure = gateway.tenure();
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("nobody closes it");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = tenure.wait_for(|tenure| *tenure == Tenure::HandedOver) => return,
        };
        let Ok((stream, _)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (gateway, metrics) = (Arc::clone(&gateway), metrics.clone());
        let is_local = stream.local_addr().is_ok_and(|own| own.ip().is_loopback());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (gateway, metrics) = (&gateway, &metrics);
                async move {
                    let answer = match stranger(request.headers(), is_local) {
                        Some(why) => text(StatusCode::FORBIDDEN, why.to_owned()),
                        None => answer(&request, gateway, metrics).await,
                    };
                    Ok::<_, Infallible>(answer)
                }
            });
            // A scraper that hangs up is no news.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}

/// Why whoever asks is none for whom this door is: a page, which a browser of this machine shows, can reach it as well.
///
/// Only browsers send an origin. They send none with what a page reads from its own host, which its owner may have let
/// lead here for that (DNS rebinding); but then the host has a name, by which nobody else calls a loopback address.
fn stranger(headers: &HeaderMap, is_local: bool) -> Option<&'static str> {
    if headers.contains_key(ORIGIN) {
        return Some("pages have no business here\n");
    }
    let host = Host::of(headers);
    let is_named = host.is_some_and(|host| !is_address(host.authority().host()));
    (is_local && is_named).then_some("ask for it by its address, or as localhost\n")
}

fn is_address(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost")
}

async fn answer(
    request: &Request<Incoming>,
    gateway: &Gateway,
    metrics: &PrometheusHandle,
) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            Census::take(gateway).await.report();
            text(StatusCode::OK, metrics.render())
        }
        (&Method::GET, "/debug/sessions") => json(&Report::make(gateway).await),
        (&Method::GET, "/healthz") => text(StatusCode::OK, "alive\n".to_owned()),
        (&Method::GET, "/readyz") if gateway.is_draining() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned())
        }
        (&Method::GET, "/readyz") if !gateway.is_serving() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned())
        }
        (&Method::GET, "/readyz") if gateway.outage.is_away() => {
            let is_ready = gateway.unsecured.is_allowed();
            let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            text(status, ledger_away(gateway))
        }
        (&Method::GET, "/readyz") if gateway.clock.contradiction().is_some() => {
            let apart = gateway.clock.contradiction().unwrap_or_default();
            text(
                StatusCode::OK,
                format!("ready; this machine's clock and the ledger's are {apart:?} apart\n"),
            )
        }
        (&Method::GET, "/readyz") => text(StatusCode::OK, "ready\n".to_owned()),
        (&Method::POST, "/drain") => {
            gateway.drain();
            text(StatusCode::ACCEPTED, format!("draining {} sessions\n", gateway.sessions.len()))
        }
        (_, "/metrics" | "/healthz" | "/readyz" | "/debug/sessions" | "/drain") => {
            text(StatusCode::METHOD_NOT_ALLOWED, WHAT_THERE_IS.to_owned())
        }
        _ => text(StatusCode::NOT_FOUND, WHAT_THERE_IS.to_owned()),
    }
}

fn ledger_away(gateway: &Gateway) -> String {
    let seconds = gateway.outage.lasts().unwrap_or_default().as_secs();
    let (owed, running) = (gateway.owed.len(), gateway.sessions.len());
    let new = if gateway.unsecured.is_allowed() { "on credit" } else { "refused" };
    format!(
        "the ledger is away, for {seconds} s now: new sessions are {new}, {running} run on, \
         {owed} are to be committed when it is back\n"
    )
}

fn json(document: &impl Serialize) -> Response<Full<Bytes>> {
    let mut response =
        Response::new(Full::from(serde_json::to_vec(document).expect("it has no keys that JSON lacks")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}
