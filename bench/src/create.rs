//! What a program waits for over REST: `POST /api/sessions/create` and the end of that session.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::http::Uri;

use crate::duration;
use crate::head::Head;
use crate::report::{self, Curve, Measured, Output, Row, Times, write_rows};

/// More than any answer of these two has.
const ANSWER_LIMIT: usize = 64 * 1024;

/// Time of a warm `POST /api/sessions/create` and of the session's end, one after another over one connection.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The gateway's door without TLS: http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    gateway: Uri,
    /// A customer's key. Its sessions are billed like any others.
    #[arg(long, value_name = "KEY")]
    key: String,
    #[arg(long, value_name = "N", default_value = "200")]
    count: NonZeroU32,
    /// Pause between two sessions, in which the gateway makes its next browser ready: with fewer warm ones than that
    /// takes, cold starts are measured.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = duration::parse)]
    gap: Duration,
    /// Sessions before those that count.
    #[arg(long, value_name = "N", default_value_t = 10)]
    warmup: u32,
    /// How long one answer may take.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    gap_us: u128,
    rows: Vec<Row>,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let mut gateway = Connection::open(&args).await?;
    let (mut create, mut end) = (Times::new(), Times::new());
    let progress = report::progress("create", u64::from(args.count.get()));
    for round in 0..args.warmup + args.count.get() {
        let begun = Instant::now();
        let created = gateway.post("/api/sessions/create").await?;
        let took = begun.elapsed();
        let id = created["sessionId"].as_str().context("the answer names no sessionId")?.to_owned();
        let begun = Instant::now();
        gateway.post(&format!("/api/sessions/{id}/end")).await?;
        if round >= args.warmup {
            create.record(took);
            end.record(begun.elapsed());
            progress.inc(1);
        }
        sleep(args.gap).await;
    }
    progress.finish_and_clear();
    let measured = [("create", create), ("end", end)].map(|(name, times)| Measured {
        target: name.to_owned(),
        product: Some(format!("{} sessions over {}", args.count, args.gateway)),
        tls: None,
        times,
    });
    Ok(Report { gap_us: args.gap.as_micros(), rows: report::rows(measured) })
}

/// One connection that stays open.
struct Connection {
    stream: TcpStream,
    authority: String,
    key: String,
    timeout: Duration,
}

impl Connection {
    async fn open(args: &Args) -> Result<Self> {
        ensure!(args.gateway.scheme_str() == Some("http"), "--gateway: expected http://HOST:PORT");
        let authority = args.gateway.authority().context("--gateway: no host")?.to_string();
        let stream = TcpStream::connect(&authority).await.context("cannot connect; is it running?")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, authority, key: args.key.clone(), timeout: args.timeout })
    }

    /// An empty request; the document of its 200.
    async fn post(&mut self, path: &str) -> Result<Value> {
        timeout(self.timeout, self.exchange(path)).await.context("it took too long")?
    }

    async fn exchange(&mut self, path: &str) -> Result<Value> {
        let Self { stream, authority, key, .. } = self;
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer {key}\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        loop {
            ensure!(stream.read_buf(&mut answer).await? > 0, "the connection ended within the answer");
            ensure!(answer.len() <= ANSWER_LIMIT, "the answer is too long");
            let Some((head, body)) = Head::split(&answer) else { continue };
            let length: usize = head.header("content-length").context("no content-length")?.parse()?;
            if body.len() < length {
                continue;
            }
            let status = head.second_word();
            if status != "200" {
                bail!("{path} was answered with {status}: {}", String::from_utf8_lossy(body));
            }
            return Ok(serde_json::from_slice(body)?);
        }
    }
}

impl report::Report for Report {
    const NAME: &'static str = "create";

    fn curves(&self) -> Vec<Curve<'_>> {
        self.rows.iter().map(Row::curve).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_rows(f, "REST request to answer", &self.rows)
    }
}
