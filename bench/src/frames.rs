//! WebSocket frames, as far as the two ends of a benchmark need them.
//!
//! A library checks and copies each message; of replies of megabytes that would be a large part of the time (and
//! tungstenite moves what is left of a message after each partial write). Here the beginning of a message is kept
//! and the rest is only counted, and a client's masking key is zero, which no server can tell from another.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Of a message this much is kept. All commands and replies are shorter but those whose size is what is measured.
pub(crate) const KEPT: usize = 16 * 1024;
/// `man 7 tcp`: what the kernel hands over at once, at most. For messages of megabytes.
pub(crate) const LARGE_ROOM: usize = 256 * 1024;
/// For the rest: a session's first reply does not wait for a larger one to be made.
pub(crate) const SMALL_ROOM: usize = 16 * 1024;
/// A control frame's payload, by RFC 6455.
const CONTROL_LIMIT: u64 = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A whole message; see [`Frames::kept`].
    Text {
        length: u64,
    },
    Binary,
    /// The close frame's code, if it has one, and its reason.
    Close(Option<u16>, String),
    /// The connection ended between two frames.
    End,
}

/// A WebSocket after its handshake.
pub(crate) struct Frames<S> {
    stream: S,
    role: Role,
    input: Vec<u8>,
    /// What was read and not yet used: `input[start..end]`.
    start: usize,
    end: usize,
    output: Vec<u8>,
    kept: Vec<u8>,
}

#[derive(Debug)]
struct Header {
    fin: bool,
    opcode: u8,
    mask: Option<[u8; 4]>,
    length: u64,
}

/// A text frame as it is sent, for a message that is sent many times.
pub(crate) fn text_frame(role: Role, text: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(text.len() + 14);
    encode(role, TEXT, text, &mut frame);
    frame
}

fn encode(role: Role, opcode: u8, payload: &[u8], into: &mut Vec<u8>) {
    let masked = if role == Role::Client { MASKED } else { 0 };
    into.push(FIN | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ 0..126), _) => into.push(masked | length),
        (_, Ok(length)) => {
            into.push(masked | 126);
            into.extend(length.to_be_bytes());
        }
        _ => {
            into.push(masked | 127);
            into.extend((payload.len() as u64).to_be_bytes());
        }
    }
    if role == Role::Client {
        into.extend([0; 4]);
    }
    into.extend_from_slice(payload);
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// `early` was read behind the handshake. `room` bytes are read at once, at most.
    pub(crate) fn new(stream: S, role: Role, early: &[u8], room: usize) -> Self {
        let mut input = vec![0; room.max(early.len())];
        input[..early.len()].copy_from_slice(early);
        Self { stream, role, input, start: 0, end: early.len(), output: Vec::new(), kept: Vec::new() }
    }

    pub(crate) async fn send_text(&mut self, text: &[u8]) -> io::Result<()> {
        self.send(TEXT, text).await
    }

    /// Sends what [`text_frame`] made.
    pub(crate) async fn send_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        self.stream.write_all(frame).await?;
        self.stream.flush().await
    }

    pub(crate) async fn send_close(&mut self, code: u16) -> io::Result<()> {
        self.send(CLOSE, &code.to_be_bytes()).await
    }

    /// Ends the connection for writing, without a close frame.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Reads this much at once from here on, where that is more.
    pub(crate) fn read_at_once(&mut self, room: usize) {
        if self.input.len() < room {
            self.input.resize(room, 0);
        }
    }

    /// The beginning of the last message: all of it, where it is no longer than [`KEPT`].
    pub(crate) fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// The next message. Pings are answered on the way.
    pub(crate) async fn receive(&mut self) -> io::Result<Incoming> {
        let mut binary = false;
        let mut total = 0;
        self.kept.clear();
        loop {
            let Some(header) = self.header().await? else {
                return if total == 0 { Ok(Incoming::End) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            };
            match header.opcode {
                CONTINUATION | TEXT | BINARY => {
                    binary |= header.opcode == BINARY;
                    self.payload(&header).await?;
                    total += header.length;
                    match (header.fin, binary) {
                        (false, _) => {}
                        (true, true) => return Ok(Incoming::Binary),
                        (true, false) => return Ok(Incoming::Text { length: total }),
                    }
                }
                CLOSE | PING | PONG if header.length <= CONTROL_LIMIT => {
                    let payload = self.control(&header).await?;
                    match header.opcode {
                        PING => self.send(PONG, &payload).await?,
                        CLOSE => return Ok(close_frame(&payload)),
                        _ => {}
                    }
                }
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a WebSocket frame")),
            }
        }
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        self.output.clear();
        encode(self.role, opcode, payload, &mut self.output);
        self.stream.write_all(&self.output).await?;
        self.stream.flush().await
    }

    /// The next frame's header; nothing where the connection ended.
    async fn header(&mut self) -> io::Result<Option<Header>> {
        loop {
            if let Some((header, size)) = parse_header(&self.input[self.start..self.end]) {
                self.start += size;
                return Ok(Some(header));
            }
            let empty = self.start == self.end;
            if self.fill().await? == 0 {
                return if empty { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Reads a frame's payload; keeps what there is still room for.
    async fn payload(&mut self, header: &Header) -> io::Result<()> {
        let mut left = header.length;
        while left > 0 {
            if self.start == self.end && self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.end - self.start);
            let chunk = &self.input[self.start..self.start + here];
            let keep = here.min(KEPT - self.kept.len());
            let position = header.length - left;
            self.kept.extend(chunk[..keep].iter().zip(position..).map(|(byte, at)| byte ^ header.mask(at)));
            self.start += here;
            left -= here as u64;
        }
        Ok(())
    }

    /// A control frame may stand between two frames of a message: its payload is kept apart.
    async fn control(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let message = std::mem::take(&mut self.kept);
        self.payload(header).await?;
        Ok(std::mem::replace(&mut self.kept, message))
    }

    /// Reads more, behind what is there. 0 at the end of the connection.
    async fn fill(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let read = self.stream.read(&mut self.input[self.end..]).await?;
        self.end += read;
        Ok(read)
    }
}

impl Header {
    fn mask(&self, position: u64) -> u8 {
        self.mask.map_or(0, |mask| mask[(position % 4) as usize])
    }
}

/// The header at the beginning of `bytes` and its size, once all of it is there.
fn parse_header(bytes: &[u8]) -> Option<(Header, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (length, at) = match second & !MASKED {
        126 => (u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?), 10),
        short => (u64::from(short), 2),
    };
    let mask = if second & MASKED == 0 { None } else { Some(*bytes.get(at..)?.first_chunk()?) };
    let size = at + if mask.is_some() { 4 } else { 0 };
    Some((Header { fin: first & FIN != 0, opcode: first & 0x0f, mask, length }, size))
}

fn close_frame(payload: &[u8]) -> Incoming {
    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
    Incoming::Close(code, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    /// The two ends of a connection whose every read and write is `step` bytes, at most.
    fn ends(step: usize) -> (Frames<tokio::io::DuplexStream>, Frames<tokio::io::DuplexStream>) {
        let (client, server) = duplex(step);
        (
            Frames::new(client, Role::Client, &[], SMALL_ROOM),
            Frames::new(server, Role::Server, &[], SMALL_ROOM),
        )
    }

    #[tokio::test]
    async fn messages_of_every_form_of_length_arrive() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 300_000] {
            for step in [1000, 1 << 20] {
                let (mut client, mut server) = ends(step);
                let text: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).collect();
                let (sent, received) = tokio::join!(client.send_text(&text), server.receive());
                sent.unwrap();
                assert_eq!(received.unwrap(), Incoming::Text { length: length as u64 });
                assert_eq!(server.kept(), &text[..length.min(KEPT)], "{length}");
            }
        }
    }

    #[tokio::test]
    async fn a_mask_is_taken_off_and_fragments_are_put_together() {
        let (mut raw, end) = duplex(1024);
        let mut server = Frames::new(end, Role::Server, &[0x01, 0x83, 1, 2], SMALL_ROOM);
        raw.write_all(&[3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3]).await.unwrap();
        raw.write_all(&[0x89, 0x81, 0, 0, 0, 0, b'!']).await.unwrap();
        raw.write_all(&[0x80, 0x82, 9, 9, 9, 9, b'd' ^ 9, b'e' ^ 9]).await.unwrap();
        assert_eq!(server.receive().await.unwrap(), Incoming::Text { length: 5 });
        assert_eq!(server.kept(), b"abcde");
        let mut pong = [0; 3];
        raw.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong, [0x8a, 1, b'!']);
    }

    #[tokio::test]
    async fn a_close_frame_is_told_from_an_end_and_from_a_broken_message() {
        let (mut client, mut server) = ends(64);
        client.send_close(1000).await.unwrap();
        assert_eq!(server.receive().await.unwrap(), Incoming::Close(Some(1000), String::new()));
        client.shutdown().await.unwrap();
        assert_eq!(server.receive().await.unwrap(), Incoming::End);

        for broken in [&[0x81][..], &[0x81, 5, b'a'], &[0x01, 1, b'a']] {
            let (mut raw, end) = duplex(64);
            let mut client = Frames::new(end, Role::Client, &[], SMALL_ROOM);
            raw.write_all(broken).await.unwrap();
            drop(raw);
            assert_eq!(
                client.receive().await.unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof,
                "{broken:?}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error() {
        for bytes in [&[0x83, 0][..], &[0x88, 126, 0, 200]] {
            let mut client = Frames::new(tokio::io::empty(), Role::Client, bytes, SMALL_ROOM);
            assert_eq!(client.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
