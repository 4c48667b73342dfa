//! Whatever a stranger sends, it ends in an answer, a close code or the end of the connection; and then nothing is left
//! of it: no task, descriptor, process, profile or hold.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::{join_all, try_join_all};
use serde_json::json;
use tests::{Customer, Door, Gateway, Holdings, Request, StandIn, State, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// How often a client that dawdles sends a byte.
const DAWDLE: Duration = Duration::from_secs(1);
/// Opened at once, by fewer addresses than would be turned away.
const CONNECTS: u32 = 10_000;
const ADDRESSES: u32 = 10;
/// More than are answered without a pause anywhere.
const PINGS: usize = 100_000;

/// A gateway with stand-in browsers, and what it has at rest.
async fn fast() -> Result<(StandIn, Gateway, Customer, Holdings)> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 2).start().await?;
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    let before = gateway.at_rest(&customer).await?;
    Ok((browser, gateway, customer, before))
}

/// A gateway with real browsers, and what it has at rest.
async fn real() -> Result<(Gateway, Customer, Holdings)> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    let before = gateway.at_rest(&customer).await?;
    Ok((gateway, customer, before))
}

#[tokio::test]
async fn garbage_instead_of_a_tls_hello() -> Result<()> {
    let (_browser, gateway, _, before) = fast().await?;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 20_000], b"\x16\x03\x01\xff\xff"] {
        let mut client = connect(tls_door(&gateway)).await?;
        // It may hang up before all of it is taken.
        let _ = client.write_all(garbage).await;
        let _ = client.shutdown().await;
        let said = rest(&mut client).await;
        // An alert at most.
        ensure!(said.is_empty() || said.starts_with(&[0x15]), "{said:?}");
    }
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn clients_that_dawdle() -> Result<()> {
    let (_browser, gateway, customer, before) = fast().await?;
    let head = upgrade(&customer, "");
    let half_a_hello: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

    // Nothing at all, half a hello, and a header in single bytes. Each is hung up on without a word.
    let silent = async { Ok(rest(&mut connect(gateway.door()).await?).await) };
    let silent_tls = async { Ok(rest(&mut connect(tls_door(&gateway)).await?).await) };
    let hello = async {
        let mut client = connect(tls_door(&gateway)).await?;
        client.write_all(half_a_hello).await?;
        Ok(rest(&mut client).await)
    };
    let slow = async {
        let mut client = connect(gateway.door()).await?;
        let (mut reader, mut writer) = client.split();
        let write = async {
            for byte in head.as_bytes() {
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(DAWDLE).await;
            }
        };
        let mut said = Vec::new();
        tokio::select! {
            () = write => {}
            _ = reader.read_to_end(&mut said) => {}
        }
        Ok::<_, anyhow::Error>(said)
    };
    let (silent, silent_tls, hello, slow) = tokio::try_join!(silent, silent_tls, hello, slow)?;

    for said in [silent, silent_tls, hello, slow] {
        ensure!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }
    assert_eq!(gateway.account(&customer).await?.sessions.len(), 1, "no session but the one before");
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn who_says_nothing_is_kept_for_less_long_than_who_speaks_slowly() -> Result<()> {
    let (_browser, gateway, _, before) = fast().await?;
    let (mut plain, mut tls) = (connect(gateway.door()).await?, connect(tls_door(&gateway)).await?);
    plain.write_all(b"GET /nowhere").await?;
    tls.write_all(b"\x16\x03\x01\x02\x00").await?;

    // They come later, and have to go first.
    let mut silent = [connect(gateway.door()).await?, connect(tls_door(&gateway)).await?];
    for said in join_all(silent.iter_mut().map(rest)).await {
        ensure!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }

    plain.write_all(b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await?;
    let said = rest(&mut plain).await;
    ensure!(said.starts_with(b"HTTP/1.1 404 "), "{}", String::from_utf8_lossy(&said));
    tls.write_all(&[0; 512]).await?;
    let said = rest(&mut tls).await;
    ensure!(said.starts_with(&[0x15]), "no alert, but {said:?}");
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn headers_that_are_too_large() -> Result<()> {
    let (_browser, gateway, customer, before) = fast().await?;
    let one = format!("x-large: {}\r\n", "x".repeat(64 * 1024));
    let many: String = (0..2_000).map(|number| format!("x-{number}: 12345678901234567890\r\n")).collect();
    for headers in [one, many] {
        assert_eq!(status(&gateway, &upgrade(&customer, &headers)).await?, "431");
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(100_000));
    let status = status(&gateway, &long).await?;
    ensure!(["414", "431"].contains(&status.as_str()), "{status}");
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn requests_that_two_servers_would_read_differently() -> Result<()> {
    let (_browser, gateway, customer, before) = fast().await?;
    let requests = [
        upgrade(&customer, "Content-Length: 3\r\nContent-Length: 4\r\n") + "abcd",
        upgrade(&customer, "Content-Length: 3, 4\r\n") + "abcd",
        upgrade(&customer, "Content-Length: +3\r\n") + "abc",
        upgrade(&customer, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") + "3\r\nabc\r\n0\r\n\r\n",
        upgrade(&customer, "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n") + "3\r\nabc\r\n0\r\n\r\n",
        upgrade(&customer, "Transfer-Encoding: identity\r\n") + "abc",
        upgrade(&customer, "Transfer-Encoding : chunked\r\n") + "0\r\n\r\n",
        upgrade(&customer, "Content-Length: 3\r\n") + "abc",
        upgrade(&customer, "x: y\rContent-Length: 3\r\n"),
        upgrade(&customer, " folded: x\r\n"),
        upgrade(&customer, "").replace("HTTP/1.1\r\n", "HTTP/1.1\r"),
        upgrade(&customer, "").replace("Host:", "Host\0:"),
        "POST /api/sessions/create HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"
            .to_owned(),
    ];
    for request in requests {
        let status = status(&gateway, &request).await?;
        assert_eq!(status, "400", "{request:?}");
    }
    assert_eq!(gateway.account(&customer).await?.sessions.len(), 1, "no session but the one before");
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn a_request_behind_an_upgrade_is_no_request() -> Result<()> {
    let (_browser, gateway, customer, before) = fast().await?;
    let both = upgrade(&customer, "") + "GET /json/version HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut client = connect(gateway.door()).await?;
    client.write_all(both.as_bytes()).await?;

    let said = rest(&mut client).await;

    // The 101, and a close frame: 0x47, which is `G`, has a reserved bit set.
    let end = said.windows(4).position(|four| four == b"\r\n\r\n").context("no end of a head")? + 4;
    ensure!(said.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&said));
    assert_eq!(said.get(end..end + 4).and_then(|frame| frame.first_chunk()).map(code), Some(1002));
    ensure!(!said[end..].windows(5).any(|five| five == b"HTTP/"), "it was answered");
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn frames_behind_the_request_reach_the_browser() -> Result<()> {
    let (gateway, customer, before) = real().await?;
    let command = json!({ "id": 1, "method": "Browser.getVersion" }).to_string();
    let mut both = upgrade(&customer, "").into_bytes();
    both.extend(frame(0x81, command.as_bytes()));
    let mut client = connect(gateway.door()).await?;
    client.write_all(&both).await?;

    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("protocolVersion") {
        ensure!(client.read_buf(&mut said).await? > 0, "{}", String::from_utf8_lossy(&said));
    }
    drop(client);
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn frames_that_break_the_protocol() -> Result<()> {
    let (gateway, customer, before) = real().await?;
    let negative = [&[0x82, 0xff, 0x80][..], &[0; 7], &[1, 2, 3, 4]].concat();
    let hundred_megabytes = [&[0x82, 0xff, 0, 0, 0, 0, 0x05, 0xf5, 0xe1, 0x00][..], &[1, 2, 3, 4]].concat();
    let in_fragments = [
        frame(0x01, b"{"),
        hundred_megabytes.iter().enumerate().map(|(n, byte)| if n == 0 { 0x80 } else { *byte }).collect(),
    ]
    .concat();
    let cases: [(&str, Vec<u8>, u16); 9] = [
        ("not masked", b"\x81\x02{}".to_vec(), 1002),
        ("reserved bits", frame(0xc1, b"{}"), 1002),
        ("a reserved opcode", frame(0x83, b"{}"), 1002),
        ("a length of 2^63", negative, 1002),
        ("a ping in fragments", frame(0x09, b"a"), 1002),
        ("a ping of 126 bytes", frame(0x89, &[b'x'; 126]), 1002),
        ("a continuation of nothing", frame(0x80, b"{}"), 1002),
        ("a message of 100 MB", hundred_megabytes, 1009),
        ("100 MB in fragments", in_fragments, 1009),
    ];
    for (what, bytes, code) in cases {
        let mut session = gateway.connect(&customer).await?;
        session.call("Browser.getVersion", json!({})).await?;
        session.send_bytes(&bytes).await?;
        assert_eq!(session.ending().await?.code(), Some(code), "{what}");
    }
    let account = gateway.settled(&customer).await?;
    let faults = account.sessions.iter().filter(|session| session.charged == 10_000 && !session.lost);
    assert_eq!(faults.count(), 10, "{account:?}");
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn a_flood_of_pings() -> Result<()> {
    let (gateway, customer, before) = real().await?;
    let mut session = gateway.connect(&customer).await?;
    for _ in 0..PINGS / 1_000 {
        session.send_bytes(&frame(0x89, b"").repeat(1_000)).await?;
        // Its pongs are read meanwhile; whoever does not read them only holds itself up.
        session.call("Browser.getVersion", json!({})).await?;
    }
    assert_eq!(session.close().await?.code(), Some(1000));
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn a_client_that_sends_and_never_reads() -> Result<()> {
    let gateway = Gateway::builder().set("SESSION_MAX_DURATION", "3s").start().await?;
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    let before = gateway.at_rest(&customer).await?;
    let mut session = gateway.connect(&customer).await?;
    let page = session.open_page().await?;
    let expression = "'x'.repeat(20_000_000)";
    let params = json!({ "expression": expression, "returnByValue": true });
    let command = json!({ "sessionId": page, "method": "Runtime.evaluate", "params": params });

    // Its time limit ends it, whether or not it hears of that.
    while session.send(command.clone()).await.is_ok() {
        tokio::task::yield_now().await;
    }

    let account = gateway.settled(&customer).await?;
    assert_eq!(account.sessions[0].state, State::Posted);
    assert_eq!(account.sessions[0].cause.as_deref(), Some("time limit"), "{account:?}");
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn a_client_that_half_closes() -> Result<()> {
    let (gateway, customer, before) = real().await?;
    let mut session = gateway.connect(&customer).await?;
    session.call("Browser.getVersion", json!({})).await?;
    session.half_close().await?;

    // Nothing can be asked any more, so the session is over.
    session.ending().await?;

    let account = gateway.settled(&customer).await?;
    assert_eq!(account.sessions[0].cause.as_deref(), Some("client gone"), "{account:?}");
    gateway.nothing_is_left(before).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connects_that_do_nothing() -> Result<()> {
    let (_browser, gateway, customer, before) = fast().await?;
    let mut idle = Vec::new();
    for number in 0..ADDRESSES {
        let address = IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + number));
        let some = (0..CONNECTS / ADDRESSES).map(|_| connect_from(address, gateway.door()));
        idle.extend(try_join_all(some).await?);
    }

    gateway.connect(&customer).await?.call("Browser.getVersion", json!({})).await?;
    for said in join_all(idle.iter_mut().map(rest)).await {
        ensure!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }

    drop(idle);
    gateway.nothing_is_left(before).await
}

#[tokio::test]
async fn a_client_that_leaves_the_queue() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    let before = gateway.at_rest(&customer).await?;
    let only = gateway.connect(&customer).await?;
    let mut waits = connect(gateway.door()).await?;
    waits.write_all(upgrade(&customer, "").as_bytes()).await?;
    stages(&gateway, &["open", "waiting"]).await?;

    waits.shutdown().await?;

    stages(&gateway, &["open"]).await?;
    ensure!(rest(&mut waits).await.is_empty(), "it was answered");
    only.close().await?;
    gateway.nothing_is_left(before).await
}

/// Waits until `/debug/sessions` lists these, the oldest first, and nothing that is a customer's.
async fn stages(gateway: &Gateway, stages: &[&str]) -> Result<()> {
    eventually("the stages of sessions", async || {
        let report = gateway.ask_admin(Request::get("/debug/sessions")).await?.text().await?;
        ensure!(!report.contains("ufb_"), "a key in {report}");
        let report: serde_json::Value = serde_json::from_str(&report)?;
        let sessions = report["sessions"].as_array().context("no sessions")?;
        Ok(sessions.iter().map(|session| &session["stage"]).eq(stages))
    })
    .await
}

fn tls_door(gateway: &Gateway) -> SocketAddr {
    SocketAddr::new(gateway.door().ip(), gateway.port(Door::Tls))
}

async fn connect(door: SocketAddr) -> Result<TcpStream> {
    Ok(TcpStream::connect(door).await?)
}

async fn connect_from(address: IpAddr, door: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(address, 0))?;
    Ok(socket.connect(door).await?)
}

/// All that comes until the connection ends, however it does.
async fn rest(client: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    while let Ok(1..) = client.read_buf(&mut said).await {}
    said
}

/// A request for a session, with more headers.
fn upgrade(customer: &Customer, headers: &str) -> String {
    format!(
        "GET /?token={} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n",
        customer.key
    )
}

/// The status that `request` is answered with.
async fn status(gateway: &Gateway, request: &str) -> Result<String> {
    let mut client = connect(gateway.door()).await?;
    // It may have its answer before all of it is taken.
    let _ = client.write_all(request.as_bytes()).await;
    // Who ends its side may have left, and gets no answer.
    let mut said = Vec::new();
    while !said.contains(&b'\n') && matches!(client.read_buf(&mut said).await, Ok(1..)) {}
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok(said.split(' ').nth(1).with_context(|| format!("no status in {said:?} for {request:?}"))?.to_owned())
}

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let length = u16::try_from(payload.len()).expect("short frames only");
    let mut bytes = match length {
        0..126 => vec![first, 0x80 | length.to_be_bytes()[1]],
        _ => [&[first, 0xfe][..], &length.to_be_bytes()].concat(),
    };
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Of a close frame.
fn code(frame: &[u8; 4]) -> u16 {
    if frame[0] == 0x88 { u16::from_be_bytes([frame[2], frame[3]]) } else { 0 }
}
