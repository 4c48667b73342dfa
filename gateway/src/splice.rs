//! Bytes both ways between a client and its browser. Knows no money, no HTTP, and of WebSocket only where frames end.
//!
//! Both sides speak the same frames (a client's are masked, a browser takes them masked), so what is read from one side is
//! written to the other as it is, from one buffer that all sessions of a thread share. Only what the other side does not
//! take at once is kept, and then nothing more is read: a session holds at most one buffer's worth in each direction, and
//! none at all while it is quiet.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::server::TlsStream;

use crate::busy_poll;
use crate::frame::{PING, Sender, Tracker, Violation};
use crate::refusal::Close;
use crate::sessions::{Line, Live};

#[cfg(test)]
mod tests;

/// The read buffer of a thread. What one read brings of a large message; beyond this size throughput no longer grows.
const BUFFER: usize = 128 * 1024;
/// How long the rest of a frame may take, and the browser's answer to a close frame, before the connection is given up.
const GRACE: Duration = Duration::from_secs(2);
/// What a session's clients may have said before its hold has arrived: any client's first commands, and no work to speak of.
const UNPAID: u64 = 64 * 1024;
/// How long a client that was sent a close frame may take to hang up.
const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// The end of a splice. Bytes are those of the whole session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// From the session's beginning. What follows (a verdict, a goodbye) is not the client's time.
    pub lasted: Duration,
    pub up_bytes: u64,
    pub down_bytes: u64,
    pub cause: Cause,
    pub standing: Standing,
}

/// How the client's side was left, which decides how it can be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A close frame may be put.
    BetweenFrames,
    /// Nothing but a reset tells that what came is not whole.
    MidFrame,
    /// The browser's close frame was passed on; nothing may follow it.
    CloseSent,
    Gone,
}

/// Who ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The client, by a close frame.
    ClientClosed,
    /// The client, without one: its connection ended.
    ClientGone,
    /// The client, by breaking the protocol.
    ClientFault(Violation),
    /// The browser: its connection ended.
    BrowserGone,
    /// Somebody on our side.
    Told(Close),
}

/// What a client's connection has to be able to do.
pub trait Client: AsyncRead + AsyncWrite + Unpin + Send {
    /// The TCP connection underneath.
    fn tcp(&self) -> &TcpStream;

    /// Fills `buffer` with what is to be read next, and leaves it to be read. Nothing: the client has ended its side.
    fn poll_look(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;
}

impl Client for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }

    fn poll_look(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_peek(cx, buffer).map_ok(drop)
    }
}

/// Boxed: what TLS keeps of a connection is large, and a task that is handed it by value has room for it at each stage.
impl Client for Box<TlsStream<TcpStream>> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }

    fn poll_look(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let there = ready!(Pin::new(self).poll_fill_buf(cx))?;
        buffer.put_slice(&there[..there.len().min(buffer.remaining())]);
        Poll::Ready(Ok(()))
    }
}

/// Passes bytes until one side ends, or [`Live::end`] is called, which `line` tells. `early` is what the client sent right
/// behind its request. Dropping the future leaves both connections where they stand.
pub fn splice<'a, C: Client>(
    client: &'a mut C,
    browser: &'a mut TcpStream,
    early: &[u8],
    live: &'a Live,
    line: &'a Line,
) -> impl Future<Output = Ended> + Send + 'a {
    let mut relay = Relay {
        is_served: live.is_served(),
        up: Flow::new(Sender::Client, &live.up_bytes, line),
        down: Flow::new(Sender::Browser, &live.down_bytes, line),
        told: None,
        grace: None,
    };
    let violation = relay.up.take_in(early).err();
    Splice { client, browser, live, line, relay, violation }
}

/// The future of [`splice`]. Written out, since a session is this for nearly all of its life: an `async fn` keeps its
/// arguments twice.
struct Splice<'a, C> {
    client: &'a mut C,
    browser: &'a mut TcpStream,
    live: &'a Live,
    line: &'a Line,
    relay: Relay<'a>,
    /// What came with the request was one.
    violation: Option<Violation>,
}

impl<C: Client> Future for Splice<'_, C> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { client, browser, live, line, relay, violation } = &mut *self;
        let cause = match violation {
            None => ready!(relay.poll(*client, browser, live, line, cx)),
            Some(violation) => Cause::ClientFault(*violation),
        };
        Poll::Ready(relay.ended(cause, live))
    }
}

/// Sends a close frame, then waits, bounded, for the client to hang up: closing at once could reset the connection before
/// the client has read why.
pub async fn say_goodbye<C: Client>(client: &mut C, close: Close) {
    let goodbye = async {
        client.write_all(&close.frame()).await?;
        client.shutdown().await?;
        discard(client).await
    };
    // A client that is gone needs no goodbye, and one that does not listen gets none.
    if !matches!(timeout(LINGER, goodbye).await, Ok(Ok(()))) {
        cut(client);
    }
}

/// Ends a connection that has said all it had to say.
pub async fn hang_up<C: Client>(client: &mut C) {
    if !matches!(timeout(LINGER, client.shutdown()).await, Ok(Ok(()))) {
        cut(client);
    }
}

/// Ends a connection in the middle of a frame, where no close frame can be put: by a reset, which no client takes for a
/// proper end. What the kernel had buffered goes with it.
pub fn cut<C: Client>(client: &C) {
    // It fails on a connection that is gone, which is what was wanted.
    let _ = client.tcp().set_zero_linger();
}

async fn discard<C: Client>(client: &mut C) -> io::Result<()> {
    poll_fn(|cx| {
        SHARED.with_borrow_mut(|shared| {
            loop {
                let mut buffer = ReadBuf::new(shared);
                ready!(Pin::new(&mut *client).poll_read(cx, &mut buffer))?;
                if buffer.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
        })
    })
    .await
}

/// Both directions, and the way to the end.
struct Relay<'a> {
    up: Flow<'a>,
    down: Flow<'a>,
    /// Whether the browser is listened to. What its client says reaches it before the session's hold has arrived, so that
    /// it has begun by then; what it answers waits where it is.
    is_served: bool,
    /// Set once: from then on only the rest of the browser's current frame is passed.
    told: Option<Close>,
    /// Runs once the end is near.
    grace: Option<Pin<Box<Sleep>>>,
}

impl Relay<'_> {
    fn ended(&self, cause: Cause, live: &Live) -> Ended {
        let standing = match cause {
            Cause::ClientGone => Standing::Gone,
            _ if !self.down.is_between_frames() => Standing::MidFrame,
            _ if self.down.tracker.close_seen() => Standing::CloseSent,
            _ => Standing::BetweenFrames,
        };
        Ended {
            lasted: live.begun.elapsed(),
            up_bytes: live.up_bytes.load(Ordering::Relaxed),
            down_bytes: live.down_bytes.load(Ordering::Relaxed),
            cause,
            standing,
        }
    }

    fn poll<C: Client>(
        &mut self,
        client: &mut C,
        browser: &mut TcpStream,
        live: &Live,
        line: &Line,
        cx: &mut Context<'_>,
    ) -> Poll<Cause> {
        if self.told.is_none() {
            self.told = live.poll_end(line, cx);
        }
        match self.told {
            None => {
                if line.take_ping() {
                    self.down.put_ping();
                }
                // Whoever makes it so wakes this task.
                self.is_served = self.is_served || live.is_served();
                let polled = self.poll_open(client, browser, cx);
                // The browser has something to do, and its answer waits for the hold.
                if !self.is_served && live.passed().0 > 0 {
                    live.hurry();
                }
                polled
            }
            Some(close) => self.poll_told(close, client, browser, cx),
        }
    }

    fn poll_open<C: Client>(
        &mut self,
        client: &mut C,
        browser: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Cause> {
        // A browser that takes nothing more may still have said something: its own end is what counts.
        let most = if self.is_served { u64::MAX } else { UNPAID };
        match self.up.poll(client, browser, most, cx) {
            Poll::Ready(Stop::ReaderEnded) => return Poll::Ready(self.client_left()),
            Poll::Ready(Stop::Violation(violation)) => return Poll::Ready(Cause::ClientFault(violation)),
            Poll::Ready(Stop::WriterEnded) | Poll::Pending => {}
        }
        let down = if self.is_served { self.down.poll(browser, client, u64::MAX, cx) } else { Poll::Pending };
        match down {
            Poll::Ready(Stop::ReaderEnded) if self.up.tracker.close_seen() => {
                return Poll::Ready(Cause::ClientClosed);
            }
            Poll::Ready(Stop::ReaderEnded) => return Poll::Ready(Cause::BrowserGone),
            Poll::Ready(Stop::WriterEnded) => return Poll::Ready(self.client_left()),
            Poll::Ready(Stop::Violation(_)) => unreachable!("a browser's frames are not checked"),
            Poll::Pending => {}
        }
        if self.up.tracker.close_seen() || self.up.writer_ended {
            ready!(self.poll_grace(cx));
            let closed = self.up.tracker.close_seen();
            return Poll::Ready(if closed { Cause::ClientClosed } else { Cause::BrowserGone });
        }
        Poll::Pending
    }

    fn poll_told<C: Client>(
        &mut self,
        close: Close,
        client: &mut C,
        browser: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Cause> {
        loop {
            let rest = usize::try_from(self.down.tracker.until_boundary()).unwrap_or(usize::MAX);
            if self.down.is_between_frames() {
                return Poll::Ready(Cause::Told(close));
            }
            // With no rest of the frame to come, only what the client has not yet taken is passed.
            match self.down.poll_once(browser, client, rest, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Stop::WriterEnded)) => return Poll::Ready(Cause::ClientGone),
                Poll::Ready(Err(_)) => return Poll::Ready(Cause::Told(close)),
                Poll::Pending => {
                    ready!(self.poll_grace(cx));
                    return Poll::Ready(Cause::Told(close));
                }
            }
        }
    }

    fn client_left(&self) -> Cause {
        if self.up.tracker.close_seen() { Cause::ClientClosed } else { Cause::ClientGone }
    }

    fn poll_grace(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.grace.get_or_insert_with(|| Box::pin(sleep(GRACE))).as_mut().poll(cx)
    }
}

/// Why one direction passes nothing more.
enum Stop {
    ReaderEnded,
    WriterEnded,
    Violation(Violation),
}

/// One direction.
struct Flow<'a> {
    tracker: Tracker,
    bytes: &'a AtomicU64,
    line: &'a Line,
    /// What the writer did not take yet, from `taken` on.
    pending: Vec<u8>,
    taken: usize,
    /// A writer that buffers (TLS) has bytes that are not on the wire.
    unflushed: bool,
    writer_ended: bool,
}

impl<'a> Flow<'a> {
    fn new(sender: Sender, bytes: &'a AtomicU64, line: &'a Line) -> Self {
        Self {
            tracker: Tracker::new(sender),
            bytes,
            line,
            pending: Vec::new(),
            taken: 0,
            unflushed: false,
            writer_ended: false,
        }
    }

    fn is_between_frames(&self) -> bool {
        self.tracker.at_boundary() && self.pending.is_empty()
    }

    /// Puts a ping between two frames. In the middle of one there is something on its way, so that none is needed.
    fn put_ping(&mut self) {
        if self.is_between_frames() && !self.tracker.close_seen() {
            self.pending.extend_from_slice(&PING);
        }
    }

    /// Takes bytes that were read elsewhere.
    fn take_in(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        self.tracker.advance(bytes)?;
        self.count(bytes.len());
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Passes what there is until there is nothing more, one side ends, or the session has passed `most` this way.
    fn poll(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        most: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Stop> {
        if self.writer_ended {
            return Poll::Pending;
        }
        loop {
            let most = most.saturating_sub(self.bytes.load(Ordering::Relaxed));
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            if most == 0 {
                return Poll::Pending;
            }
            if let Err(stop) = ready!(self.poll_once(reader, writer, most, cx)) {
                self.writer_ended = matches!(stop, Stop::WriterEnded);
                return Poll::Ready(stop);
            }
        }
    }

    /// Writes what is pending; then reads once, at most `most` bytes, and writes that.
    fn poll_once(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stop>> {
        ready!(self.poll_pending(writer, cx))?;
        if most == 0 {
            return Poll::Ready(Ok(()));
        }
        SHARED.with_borrow_mut(|shared| {
            let room = shared.len().min(most);
            let mut buffer = ReadBuf::new(&mut shared[..room]);
            if ready!(Pin::new(reader).poll_read(cx, &mut buffer)).is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Err(Stop::ReaderEnded));
            }
            let bytes = buffer.filled();
            self.tracker.advance(bytes).map_err(Stop::Violation)?;
            self.count(bytes.len());
            busy_poll::note_message();
            Poll::Ready(self.pass_on(bytes, writer, cx))
        })
    }

    /// Writes `bytes`, and keeps what the writer does not take.
    fn pass_on(
        &mut self,
        bytes: &[u8],
        writer: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Result<(), Stop> {
        let mut written = 0;
        while written < bytes.len() {
            match Pin::new(&mut *writer).poll_write(cx, &bytes[written..]) {
                Poll::Ready(Ok(count)) if count > 0 => written += count,
                Poll::Ready(Ok(_) | Err(_)) => return Err(Stop::WriterEnded),
                Poll::Pending => {
                    self.pending.extend_from_slice(&bytes[written..]);
                    break;
                }
            }
        }
        self.unflushed = true;
        match self.poll_flush(writer, cx) {
            Poll::Ready(flushed) => flushed,
            // The next call goes on with it before it reads.
            Poll::Pending => Ok(()),
        }
    }

    fn poll_pending(
        &mut self,
        writer: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stop>> {
        while self.taken < self.pending.len() {
            match ready!(Pin::new(&mut *writer).poll_write(cx, &self.pending[self.taken..])) {
                Ok(count) if count > 0 => self.taken += count,
                Ok(_) | Err(_) => return Poll::Ready(Err(Stop::WriterEnded)),
            }
            self.unflushed = true;
        }
        if !self.pending.is_empty() {
            // Its memory goes too: a session that is quiet holds no buffer.
            self.pending = Vec::new();
            self.taken = 0;
        }
        self.poll_flush(writer, cx)
    }

    fn poll_flush(
        &mut self,
        writer: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stop>> {
        if self.unflushed {
            ready!(Pin::new(writer).poll_flush(cx)).map_err(|_| Stop::WriterEnded)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// All sockets of a session count together; others read it from their threads. A pong is passed on, which does a browser
    /// no harm and spares cutting it out of the stream, but not counted: it only says that our ping came through. (The
    /// part of its header that came with an earlier read was.)
    fn count(&mut self, bytes: usize) {
        let counted = (bytes as u64).saturating_sub(self.tracker.take_pongs());
        self.bytes.fetch_add(counted, Ordering::Relaxed);
        self.line.note_traffic();
    }
}
