//! A stand-in for a browser: it answers CDP at once and renders nothing, so that tests and benchmarks measure
//! what stands in front of it. It says what it is wherever a client asks.

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::frames::{Frames, Incoming, KEPT, LARGE_ROOM, Role, SMALL_ROOM, text_frame};
use crate::head::Head;

const PRODUCT: &str = concat!("UFBrowsersStandIn/", env!("CARGO_PKG_VERSION"));
const PAGE: &str = "page-1";
const PAGE_SESSION: &str = "session-1";
/// What Playwright and Puppeteer accept in one message.
const MESSAGE_LIMIT: usize = 256 << 20;
/// Below the usual limit of 20,000 descriptors, with room for what else the process has open.
const CONNECTION_LIMIT: usize = 16_384;
/// As much as the kernel allows by default (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// A client's request is a few hundred bytes.
const HEAD_LIMIT: usize = 16 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, which is almost always a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A stand-in browser that answers CDP at once, for tests and for measuring what stands in front of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Write {"http":"ADDRESS:PORT"} there once connections are taken.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT; what is open then just ends, as it does with a browser that is killed.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = listen(args.listen).with_context(|| format!("--listen {}", args.listen))?;
    let address = listener.local_addr()?;
    if let Some(path) = &args.ready_file {
        write_ready_file(path, address).with_context(|| format!("--ready-file {}", path.display()))?;
    }
    writeln!(io::stdout(), "stand-in browser on http://{address}")?;
    tokio::select! {
        () = serve(listener, Arc::new(Browser { address })) => Ok(()),
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    }
}

/// `TcpListener::bind` has room for 128 connections that wait for `accept`: in a storm the kernel drops the others, and
/// their clients try again a second later.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Appears whole or not at all, since somebody waits for it.
fn write_ready_file(path: &Path, address: SocketAddr) -> io::Result<()> {
    let unfinished = path.with_added_extension("unfinished");
    std::fs::write(&unfinished, json!({ "http": address.to_string() }).to_string())?;
    std::fs::rename(&unfinished, path)
}

async fn serve(listener: TcpListener, browser: Arc<Browser>) {
    let permits = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let browser = Arc::clone(&browser);
        tokio::spawn(async move {
            // A client that breaks off is how many sessions end.
            let _ = browser.connection(stream).await;
            drop(permit);
        });
    }
}

struct Browser {
    address: SocketAddr,
}

/// A CDP command as far as it matters here.
#[derive(Deserialize)]
struct Command<'a> {
    id: i64,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(default)]
    params: Params,
    #[serde(rename = "sessionId")]
    session: Option<String>,
}

#[derive(Default, Deserialize)]
struct Params {
    expression: Option<String>,
}

impl<'a> Command<'a> {
    /// Of a command longer than what is kept only that is known which stands ahead of its `params`.
    fn parse(beginning: &'a [u8], length: u64, room: &'a mut Vec<u8>) -> Option<Self> {
        if length <= KEPT as u64 {
            return serde_json::from_slice(beginning).ok();
        }
        let ahead = beginning.windows(PARAMS.len()).position(|window| window == PARAMS)?;
        room.extend_from_slice(&beginning[..ahead]);
        room.push(b'}');
        serde_json::from_slice(room).ok()
    }
}

const PARAMS: &[u8] = br#","params""#;

impl Browser {
    async fn connection(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let mut request = Vec::new();
        timeout(HEAD_TIMEOUT, read_head(&mut stream, &mut request)).await??;
        let (head, rest) = Head::split(&request).context("read_head returns whole heads only")?;
        let path = head.second_word();
        if let Some(key) = head.header("sec-websocket-key")
            && [self.browser_path(), self.page_path()].iter().any(|known| known == path)
        {
            stream.write_all(switching_protocols(key).as_bytes()).await?;
            return Ok(converse(stream, rest).await?);
        }
        stream.write_all(self.page(path).as_bytes()).await?;
        Ok(stream.shutdown().await?)
    }

    /// What plain HTTP gets: the discovery pages, or 404.
    fn page(&self, path: &str) -> String {
        let found = match path {
            "/json/version" | "/json/version/" => self.version(),
            "/json" | "/json/list" => self.list(),
            _ => {
                return "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
            }
        }
        .to_string();
        let length = found.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{found}"
        )
    }

    fn version(&self) -> Value {
        json!({
            "Browser": PRODUCT,
            "Protocol-Version": "1.3",
            "User-Agent": PRODUCT,
            "webSocketDebuggerUrl": format!("ws://{}{}", self.address, self.browser_path()),
        })
    }

    fn list(&self) -> Value {
        json!([{
            "id": PAGE,
            "type": "page",
            "title": "stand-in",
            "url": "about:blank",
            "webSocketDebuggerUrl": format!("ws://{}{}", self.address, self.page_path()),
        }])
    }

    fn browser_path(&self) -> String {
        browser_path(self.address)
    }

    fn page_path(&self) -> String {
        format!("/devtools/page/{PAGE}")
    }
}

/// Of the stand-in that listens there. The port tells several of them on one machine apart.
pub(crate) fn browser_path(address: SocketAddr) -> String {
    format!("/devtools/browser/stand-in-{}", address.port())
}

async fn read_head(stream: &mut TcpStream, request: &mut Vec<u8>) -> anyhow::Result<()> {
    while Head::split(request).is_none() {
        if request.len() > HEAD_LIMIT || stream.read_buf(request).await? == 0 {
            bail!("no whole request");
        }
    }
    Ok(())
}

fn switching_protocols(key: &str) -> String {
    let accept = derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 WebSocket Protocol Handshake\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

async fn converse(stream: TcpStream, early: &[u8]) -> io::Result<()> {
    let mut frames = Frames::new(stream, Role::Server, early, SMALL_ROOM);
    // The last command and the frame that answered it: who measures large replies asks for the same one many times.
    let mut last = (Vec::new(), Vec::new());
    loop {
        // Chrome ends the connection on a binary message.
        let length = match frames.receive().await? {
            Incoming::Text { length } => length,
            Incoming::Close(code, _) => {
                frames.send_close(code.unwrap_or(1000)).await?;
                return frames.shutdown().await;
            }
            Incoming::Binary | Incoming::End => return Ok(()),
        };
        if length > KEPT as u64 {
            frames.read_at_once(LARGE_ROOM);
        }
        if frames.kept() == last.0.as_slice() {
            frames.send_frame(&last.1).await?;
            continue;
        }
        let mut room = Vec::new();
        let Some(command) = Command::parse(frames.kept(), length, &mut room) else {
            frames.send_text(malformed().as_bytes()).await?;
            continue;
        };
        let closes = command.method == "Browser.close";
        let reply = text_frame(Role::Server, reply(&command).as_bytes());
        last = (frames.kept().to_vec(), reply);
        frames.send_frame(&last.1).await?;
        if closes {
            // Chrome exits without a close frame: the client sees the connection end.
            return frames.shutdown().await;
        }
    }
}

fn malformed() -> String {
    json!({ "error": { "code": -32700, "message": "not a CDP command" } }).to_string()
}

fn reply(command: &Command<'_>) -> String {
    let mut reply = json!({ "id": command.id, "result": result(command) });
    if let Some(session) = &command.session {
        reply["sessionId"] = json!(session);
    }
    reply.to_string()
}

fn result(command: &Command<'_>) -> Value {
    match &*command.method {
        "Browser.getVersion" => json!({
            "protocolVersion": "1.3",
            "product": PRODUCT,
            "revision": "stand-in",
            "userAgent": PRODUCT,
            "jsVersion": "none",
        }),
        "Target.getTargets" => json!({ "targetInfos": [{
            "targetId": PAGE,
            "type": "page",
            "title": "stand-in",
            "url": "about:blank",
            "attached": false,
            "canAccessOpener": false,
        }] }),
        "Target.createTarget" => json!({ "targetId": PAGE }),
        "Target.attachToTarget" => json!({ "sessionId": PAGE_SESSION }),
        "Runtime.evaluate" => match repeated(&command.params) {
            Some(length) => json!({ "result": { "type": "string", "value": "x".repeat(length) } }),
            None => json!({ "result": { "type": "undefined" } }),
        },
        _ => json!({}),
    }
}

/// The N of `'x'.repeat(N)`, the one expression that is understood, up to what clients accept in a message.
fn repeated(params: &Params) -> Option<usize> {
    let count = params.expression.as_deref()?.strip_prefix("'x'.repeat(")?.strip_suffix(')')?;
    count.parse().ok().filter(|&length| length <= MESSAGE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(command: &str) -> Value {
        let mut room = Vec::new();
        let kept = &command.as_bytes()[..command.len().min(KEPT)];
        let command = Command::parse(kept, command.len() as u64, &mut room).unwrap();
        serde_json::from_str(&reply(&command)).unwrap()
    }

    #[test]
    fn a_reply_carries_the_id_and_the_session_of_its_command() {
        assert_eq!(answer(r#"{"id":3,"method":"Page.enable"}"#), json!({"id": 3, "result": {}}));
        let flat = answer(r#"{"id":4,"method":"Page.enable","sessionId":"S"}"#);
        assert_eq!(flat, json!({"id": 4, "result": {}, "sessionId": "S"}));
    }

    #[test]
    fn a_long_command_is_answered_by_what_stands_ahead_of_its_params() {
        let pad = "x".repeat(2 * KEPT);
        let ahead = r#"{"id":5,"sessionId":"S","method":"Browser.getVersion""#;
        let long = answer(&format!(r#"{ahead},"params":{{"pad":"{pad}"}}}}"#));
        assert_eq!((&long["id"], &long["sessionId"]), (&json!(5), &json!("S")));
        assert_eq!(long["result"]["product"], PRODUCT);
        assert!(Command::parse(&pad.as_bytes()[..KEPT], 2 * KEPT as u64, &mut Vec::new()).is_none());
    }

    #[test]
    fn evaluate_makes_a_string_of_the_length_that_was_asked_for() {
        let evaluate = |expression: &str| {
            answer(
                &json!({"id": 1, "method": "Runtime.evaluate", "params": {"expression": expression}})
                    .to_string(),
            )["result"]["result"]
                .clone()
        };
        assert_eq!(evaluate("'x'.repeat(5)")["value"], "xxxxx");
        assert_eq!(evaluate("'x'.repeat(0)")["value"], "");
        for expression in ["1 + 1", "'x'.repeat(-1)", "'x'.repeat(999999999999)"] {
            assert_eq!(evaluate(expression)["type"], "undefined", "{expression}");
        }
    }

    #[test]
    fn discovery_names_its_own_address() {
        let browser = Browser { address: "127.0.0.1:9222".parse().unwrap() };
        let url = "ws://127.0.0.1:9222/devtools/browser/stand-in-9222";
        assert_eq!(browser.version()["webSocketDebuggerUrl"], url);
        assert!(browser.page("/json/version/").contains(url));
        assert!(browser.page("/json/new").starts_with("HTTP/1.1 404"));
    }
}
