//! The operator's port: metrics, health, drain. It asks for no credential, so it listens on loopback unless told otherwise.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::serve::{Gateway, Tenure};

/// Prometheus, a probe or two, a person.
const CONNECTIONS: usize = 64;
const HEADER: Duration = Duration::from_secs(5);
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
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &gateway, &metrics);
                async { Ok::<_, Infallible>(response) }
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

fn answer(
    request: &Request<Incoming>,
    gateway: &Gateway,
    metrics: &PrometheusHandle,
) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => text(StatusCode::OK, metrics.render()),
        (&Method::GET, "/healthz") => text(StatusCode::OK, "alive\n".to_owned()),
        (&Method::GET, "/readyz") if gateway.is_draining() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned())
        }
        (&Method::GET, "/readyz") if !gateway.is_serving() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned())
        }
        (&Method::GET, "/readyz") => text(StatusCode::OK, "ready\n".to_owned()),
        (&Method::POST, "/drain") => {
            gateway.drain();
            text(StatusCode::ACCEPTED, format!("draining {} sessions\n", gateway.sessions.len()))
        }
        (_, "/metrics" | "/healthz" | "/readyz" | "/drain") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "GET /metrics /healthz /readyz, POST /drain\n".to_owned())
        }
        _ => text(StatusCode::NOT_FOUND, "GET /metrics /healthz /readyz, POST /drain\n".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}
