//! The real relay between real sockets.

use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::task::{JoinHandle, yield_now};

use super::*;

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PONG: u8 = 0x8a;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// What the kernel is asked to buffer for a socket; it takes twice as much.
const KERNEL_BUFFER: u32 = 64 * 1024;

#[tokio::test]
async fn bytes_pass_unchanged_however_they_are_split() {
    const SHORT: &[usize] = &[0, 1, 125, 126, 1_000];
    const LONG: &[usize] = &[65_535, 0, 65_536, 300_000, 5];
    let cases =
        [(1, SHORT), (2, SHORT), (3, SHORT), (13, SHORT), (1_021, LONG), (65_537, LONG), (usize::MAX, LONG)];
    for (step, lengths) in cases {
        let mut line = Line::open().await;
        let up: Vec<_> = lengths.iter().flat_map(|length| from_client(BINARY, *length)).collect();
        let down: Vec<_> = lengths.iter().flat_map(|length| from_browser(BINARY, *length)).collect();
        let (mut client, mut client_sends) = line.client.split();
        let (mut browser, mut browser_sends) = line.browser.split();

        let (_, _, at_browser, at_client) = tokio::join!(
            send(&mut client_sends, &up, step, &line.live.up_bytes),
            send(&mut browser_sends, &down, step, &line.live.down_bytes),
            receive(&mut browser, up.len()),
            receive(&mut client, down.len()),
        );

        assert!(at_browser == up, "in steps of {step}");
        assert!(at_client == down, "in steps of {step}");
        drop(line.client);
        let ended = line.relay.await.unwrap();
        assert_eq!((ended.up_bytes, ended.down_bytes), (up.len() as u64, down.len() as u64));
    }
}

#[tokio::test]
async fn what_came_with_the_request_goes_first() {
    let frames = [from_client(TEXT, 200), from_client(BINARY, 3)].concat();
    for split in 0..=frames.len() {
        let (early, later) = frames.split_at(split);
        let mut line = Line::with(early).await;
        line.client.write_all(later).await.unwrap();
        assert_eq!(receive(&mut line.browser, frames.len()).await, frames, "{split} bytes were early");

        drop(line.client);
        assert_eq!(line.relay.await.unwrap().up_bytes, frames.len() as u64);
    }
}

#[tokio::test]
async fn a_violation_that_came_with_the_request_ends_it() {
    let line = Line::with(&from_browser(TEXT, 3)).await;
    let ended = line.relay.await.unwrap();
    assert_eq!(
        (ended.cause, ended.standing),
        (Cause::ClientFault(Violation::Protocol), Standing::BetweenFrames)
    );
}

#[tokio::test]
async fn a_close_frame_is_put_behind_the_last_frame() {
    let frame = from_browser(TEXT, 300);
    let mut line = Line::open().await;
    line.browser.write_all(&frame).await.unwrap();
    assert_eq!(receive(&mut line.client, frame.len()).await, frame);

    line.live.end(Close::BalanceUsedUp);
    // Who says so first gives the reason.
    line.live.end(Close::Draining);

    let goodbye = rest(&mut line.client).await.unwrap();
    assert_eq!(goodbye, Close::BalanceUsedUp.frame());
    assert_eq!(goodbye[2..4], 4402_u16.to_be_bytes());
    drop(line.client);
    let ended = line.relay.await.unwrap();
    assert_eq!((ended.cause, ended.standing), (Cause::Told(Close::BalanceUsedUp), Standing::BetweenFrames));
}

#[tokio::test]
async fn a_frame_that_has_begun_is_finished_before_the_close_frame() {
    let (frame, next) = (from_browser(TEXT, 300), from_browser(TEXT, 5));
    for begun in [1, 2, 3, 4, 100, frame.len() - 1] {
        let mut line = Line::open().await;
        let (first, second) = frame.split_at(begun);
        line.browser.write_all(first).await.unwrap();
        assert_eq!(receive(&mut line.client, begun).await, first);

        line.live.end(Close::BalanceUsedUp);
        line.browser.write_all(&[second, &next].concat()).await.unwrap();

        let expected = [second, &Close::BalanceUsedUp.frame()].concat();
        assert_eq!(rest(&mut line.client).await.unwrap(), expected, "{begun} bytes had been passed");
        drop(line.client);
        let ended = line.relay.await.unwrap();
        assert_eq!((ended.standing, ended.down_bytes), (Standing::BetweenFrames, frame.len() as u64));
    }
}

/// The paused clock moves when the relay has read what it may.
#[tokio::test(start_paused = true)]
async fn what_was_read_before_goes_before_the_close_frame() {
    let frame = from_browser(BINARY, 10_000);
    let mut line = Line::open().await;
    let (mut read, mut sent) = (0, 0);
    while read == sent {
        line.browser.write_all(&frame).await.unwrap();
        sent += frame.len() as u64;
        sleep(Duration::from_millis(1)).await;
        read = line.live.down_bytes.load(Ordering::Relaxed);
    }
    tokio::time::resume();

    line.live.end(Close::Draining);

    let passed = rest(&mut line.client).await.unwrap();
    drop(line.client);
    let ended = line.relay.await.unwrap();
    assert_eq!(ended.standing, Standing::BetweenFrames);
    let frames = usize::try_from(ended.down_bytes).unwrap() / frame.len();
    assert!(passed == [frame.repeat(frames), Close::Draining.frame()].concat(), "something is missing");
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_does_not_go_on_is_given_up() {
    let frame = from_browser(TEXT, 300);
    let mut line = Line::open().await;
    line.browser.write_all(&frame[..100]).await.unwrap();
    assert_eq!(receive(&mut line.client, 100).await, frame[..100]);

    line.live.end(Close::BalanceUsedUp);

    let ended = line.relay.await.unwrap();
    assert_eq!((ended.cause, ended.standing), (Cause::Told(Close::BalanceUsedUp), Standing::MidFrame));
    assert!(rest(&mut line.client).await.is_err(), "a reset tells that the frame is not whole");
}

#[tokio::test]
async fn a_ping_is_put_between_two_frames() {
    let frame = from_browser(TEXT, 300);
    let mut line = Line::open().await;
    line.browser.write_all(&frame).await.unwrap();
    assert_eq!(receive(&mut line.client, frame.len()).await, frame);

    line.ask_for_a_ping();
    assert_eq!(receive(&mut line.client, PING.len()).await, PING);
    // The answer reaches the browser, and neither of them is counted.
    let (pong, text) = (from_client(PONG, 3), from_client(TEXT, 5));
    line.client.write_all(&[pong.clone(), text.clone()].concat()).await.unwrap();
    let answer = [pong, text.clone()].concat();
    assert_eq!(receive(&mut line.browser, answer.len()).await, answer);

    drop(line.client);
    let ended = line.relay.await.unwrap();
    assert_eq!((ended.up_bytes, ended.down_bytes), (text.len() as u64, frame.len() as u64));
}

#[tokio::test]
async fn no_ping_is_put_into_a_frame_nor_behind_the_last_one() {
    let frame = from_browser(TEXT, 300);
    let mut line = Line::open().await;
    let (first, second) = frame.split_at(100);
    line.browser.write_all(first).await.unwrap();
    assert_eq!(receive(&mut line.client, first.len()).await, first);
    line.ask_for_a_ping();
    // What passes up shows that the relay has seen it.
    let text = from_client(TEXT, 5);
    line.client.write_all(&text).await.unwrap();
    assert_eq!(receive(&mut line.browser, text.len()).await, text);
    line.browser.write_all(second).await.unwrap();
    assert_eq!(receive(&mut line.client, second.len()).await, second);

    let close = from_browser(CLOSE, 2);
    line.browser.write_all(&close).await.unwrap();
    assert_eq!(receive(&mut line.client, close.len()).await, close);
    line.ask_for_a_ping();
    line.client.write_all(&from_client(CLOSE, 2)).await.unwrap();
    drop(line.browser);
    assert_eq!(rest(&mut line.client).await.unwrap(), b"", "nothing follows a close frame");
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_ended() {
    let too_big = [BINARY, 0x80 | 127, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];
    let cases = [(from_browser(TEXT, 5), Violation::Protocol), (too_big.to_vec(), Violation::TooBig)];
    for (bytes, violation) in cases {
        let mut line = Line::open().await;
        let good = from_client(TEXT, 5);
        line.client.write_all(&good).await.unwrap();
        assert_eq!(receive(&mut line.browser, good.len()).await, good);

        line.client.write_all(&bytes).await.unwrap();

        let ended = line.relay.await.unwrap();
        assert_eq!((ended.cause, ended.standing), (Cause::ClientFault(violation), Standing::BetweenFrames));
        assert_eq!(rest(&mut line.browser).await.unwrap(), b"", "none of it reaches the browser");
    }
}

#[tokio::test]
async fn a_close_frame_is_passed_and_answered() {
    let (close, answer) = (from_client(CLOSE, 2), from_browser(CLOSE, 2));
    let mut line = Line::open().await;
    line.client.write_all(&close).await.unwrap();
    assert_eq!(receive(&mut line.browser, close.len()).await, close);
    line.browser.write_all(&answer).await.unwrap();
    drop(line.browser);

    assert_eq!(rest(&mut line.client).await.unwrap(), answer);
    let ended = line.relay.await.unwrap();
    assert_eq!((ended.cause, ended.standing), (Cause::ClientClosed, Standing::CloseSent));
}

#[tokio::test(start_paused = true)]
async fn a_close_frame_that_the_browser_does_not_answer() {
    let mut line = Line::open().await;
    line.client.write_all(&from_client(CLOSE, 2)).await.unwrap();
    let ended = line.relay.await.unwrap();
    assert_eq!((ended.cause, ended.standing), (Cause::ClientClosed, Standing::BetweenFrames));
}

#[tokio::test]
async fn a_client_that_is_gone() {
    let mut line = Line::open().await;
    let frame = from_client(TEXT, 300);
    line.client.write_all(&frame[..100]).await.unwrap();
    assert_eq!(receive(&mut line.browser, 100).await, frame[..100]);
    drop(line.client);

    let ended = line.relay.await.unwrap();
    assert_eq!((ended.cause, ended.standing), (Cause::ClientGone, Standing::Gone));
    assert_eq!((ended.up_bytes, ended.down_bytes), (100, 0));
    assert_eq!(rest(&mut line.browser).await.unwrap(), b"", "the browser's socket is closed");
}

#[tokio::test]
async fn a_browser_that_is_gone() {
    let frame = from_browser(TEXT, 300);
    for (sent, standing) in [(frame.len(), Standing::BetweenFrames), (100, Standing::MidFrame)] {
        let mut line = Line::open().await;
        let up = from_client(TEXT, 9);
        line.client.write_all(&up).await.unwrap();
        assert_eq!(receive(&mut line.browser, up.len()).await, up);
        line.browser.write_all(&frame[..sent]).await.unwrap();
        assert_eq!(receive(&mut line.client, sent).await, frame[..sent]);
        drop(line.browser);

        let ended = line.relay.await.unwrap();
        assert_eq!((ended.cause, ended.standing), (Cause::BrowserGone, standing));
        assert_eq!((ended.up_bytes, ended.down_bytes), (up.len() as u64, sent as u64));
    }
}

/// The paused clock moves when no socket takes or brings anything more.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_stops_its_browser() {
    let mut line = Line::open().await;
    let message = from_browser(BINARY, 8 << 20);
    let (mut browser, expected, live) = (line.browser, message.clone(), Arc::clone(&line.live));
    let sender = tokio::spawn(async move {
        browser.write_all(&message).await.unwrap();
        browser
    });

    sleep(Duration::from_secs(1)).await;
    let read = live.down_bytes.load(Ordering::Relaxed);
    // What one session holds, and what the kernel holds for its client on both ends of the connection.
    let most = BUFFER as u64 + 2 * 2 * u64::from(KERNEL_BUFFER);
    assert!(read <= most, "{read} bytes were read for a client that takes none");
    assert!(!sender.is_finished());

    assert!(receive(&mut line.client, expected.len()).await == expected, "not all of it arrived");
    drop((sender.await.unwrap(), line.client));
    assert_eq!(line.relay.await.unwrap().down_bytes, expected.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_browser_that_does_not_read_stops_its_client() {
    let mut line = Line::open().await;
    let message = from_client(BINARY, 8 << 20);
    let (mut client, mut client_sends) = line.client.into_split();
    let (expected, live) = (message.clone(), Arc::clone(&line.live));
    let sender = tokio::spawn(async move {
        client_sends.write_all(&message).await.unwrap();
        client_sends
    });

    sleep(Duration::from_secs(1)).await;
    let read = live.up_bytes.load(Ordering::Relaxed);
    let most = BUFFER as u64 + 2 * 2 * u64::from(KERNEL_BUFFER);
    assert!(read <= most, "{read} bytes were read for a browser that takes none");
    assert!(!sender.is_finished());
    // The other direction goes on.
    let event = from_browser(TEXT, 300);
    line.browser.write_all(&event).await.unwrap();
    assert_eq!(receive(&mut client, event.len()).await, event);

    assert!(receive(&mut line.browser, expected.len()).await == expected, "not all of it arrived");
    drop((sender.await.unwrap(), client));
    assert_eq!(line.relay.await.unwrap().up_bytes, expected.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_not_waited_for() {
    let mut line = Line::open().await;
    let mut browser = line.browser;
    let sender = tokio::spawn(async move { browser.write_all(&from_browser(BINARY, 8 << 20)).await });
    sleep(Duration::from_secs(1)).await;

    line.live.end(Close::Draining);

    let ended = line.relay.await.unwrap();
    assert_eq!((ended.cause, ended.standing), (Cause::Told(Close::Draining), Standing::MidFrame));
    assert!(rest(&mut line.client).await.is_err(), "a reset tells that the frame is not whole");
    assert!(sender.await.unwrap().is_err(), "the browser's socket is closed");
}

/// A client and a browser, and between them the relay.
struct Line {
    client: TcpStream,
    browser: TcpStream,
    live: Arc<Live>,
    relay: JoinHandle<Ended>,
}

impl Line {
    async fn open() -> Self {
        Self::with(b"").await
    }

    /// As if a look or two had found it quiet.
    fn ask_for_a_ping(&self) {
        self.live.look_at_lines(1);
        self.live.look_at_lines(1);
    }

    async fn with(early: &[u8]) -> Self {
        let (client, mut clients_end) = pair().await;
        let (browser, mut browsers_end) = pair().await;
        let live = Arc::new(Live::somebody_s());
        let (told, early) = (Arc::clone(&live), early.to_vec());
        let relay = tokio::spawn(async move {
            let first = told.first_line();
            let ended = splice(&mut clients_end, &mut browsers_end, &early, &told, first).await;
            drop(browsers_end);
            match (ended.standing, ended.cause) {
                (Standing::BetweenFrames, Cause::Told(close)) => say_goodbye(&mut clients_end, close).await,
                (Standing::MidFrame, _) => cut(&clients_end),
                _ => {}
            }
            ended
        });
        Self { client, browser, live, relay }
    }
}

/// The two ends of one connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = socket();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let near = socket().connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    for end in [&near, &far] {
        end.set_nodelay(true).unwrap();
    }
    (near, far)
}

fn socket() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(KERNEL_BUFFER).unwrap();
    socket.set_recv_buffer_size(KERNEL_BUFFER).unwrap();
    socket
}

fn from_client(first: u8, length: usize) -> Vec<u8> {
    let mut frame = from_browser(first, length);
    frame[1] |= 0x80;
    let payload = frame.split_off(frame.len() - length);
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn from_browser(first: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![first];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => frame.push(short),
        (_, Ok(middle)) => {
            frame.push(126);
            frame.extend(middle.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    // 251 is prime, so that no two buffers' worth are alike.
    frame.extend((0..=250).cycle().take(length));
    frame
}

/// Sends `bytes` in steps, each when the relay has read the one before.
async fn send(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8], step: usize, passed: &AtomicU64) {
    let mut sent = 0;
    for part in bytes.chunks(step) {
        writer.write_all(part).await.unwrap();
        sent += part.len() as u64;
        while passed.load(Ordering::Relaxed) < sent {
            yield_now().await;
        }
    }
}

async fn receive(reader: &mut (impl AsyncRead + Unpin), length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).await.unwrap();
    bytes
}

/// All until the end of the connection.
async fn rest(reader: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await?;
    Ok(bytes)
}
