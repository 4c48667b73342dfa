use std::collections::VecDeque;
use std::io::{self, Cursor, ErrorKind, Read, Write};

use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, WebSocket};

use super::*;

/// One frame as a client sends it.
fn frame(first: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..126 => bytes.push(MASK | u8::try_from(length).unwrap()),
        126..65_536 => {
            bytes.push(MASK | 126);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            bytes.push(MASK | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend([1, 2, 3, 4]);
    bytes.resize(bytes.len() + length, 0x81);
    bytes
}

fn follow(bytes: &[u8]) -> Result<Tracker, Violation> {
    let mut tracker = Tracker::new(Sender::Client);
    tracker.advance(bytes).map(|()| tracker)
}

#[test]
fn violations() {
    let unmasked = [0x81, 0x01, b'x'].to_vec();
    let long_ping = frame(0x89, 126);
    let not_minimal = [0x81, MASK | 126, 0, 5, 0, 0, 0, 0].to_vec();
    let negative = [0x82, MASK | 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let cases = [
        (unmasked, Violation::Protocol),
        (frame(0xc1, 5), Violation::Protocol),
        (frame(0x83, 5), Violation::Protocol),
        (frame(0x8b, 5), Violation::Protocol),
        (frame(0x09, 5), Violation::Protocol),
        (long_ping, Violation::Protocol),
        (not_minimal, Violation::Protocol),
        (negative, Violation::Protocol),
        (frame(0x80, 5), Violation::Protocol),
        ([frame(0x01, 5), frame(0x81, 5)].concat(), Violation::Protocol),
        ([frame(0x88, 2), frame(0x81, 5)].concat(), Violation::Protocol),
        ([0x82, MASK | 127, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0].to_vec(), Violation::TooBig),
    ];
    for (bytes, violation) in cases {
        assert_eq!(follow(&bytes).unwrap_err(), violation, "{:02x?}", &bytes[..bytes.len().min(14)]);
    }
}

#[test]
fn a_fragmented_message_with_a_ping_inside_is_fine() {
    let bytes = [frame(0x01, 5), frame(0x89, 3), frame(0x00, 300), frame(0x80, 70_000)].concat();
    assert!(follow(&bytes).unwrap().at_boundary());
}

#[test]
fn fragments_add_up() {
    let mut tracker = Tracker::new(Sender::Client);
    let part = frame(0x00, 50_000_000);
    tracker.advance(&frame(0x01, 0)).unwrap();
    tracker.advance(&part).unwrap();
    assert_eq!(tracker.advance(&part), Err(Violation::TooBig));
}

#[test]
fn pongs_are_told_apart() {
    let bytes = [frame(0x81, 300), frame(0x8a, 3), frame(0x89, 3), frame(0x8a, 0)].concat();
    for step in [bytes.len(), 7] {
        let mut tracker = Tracker::new(Sender::Client);
        let parts = bytes.chunks(step);
        let pongs: u64 =
            parts.map(|part| tracker.advance(part).map(|()| tracker.take_pongs()).unwrap()).sum();
        assert_eq!(pongs, 9 + 6);
    }
}

#[test]
fn a_browser_may_send_more() {
    let mut tracker = Tracker::new(Sender::Browser);
    tracker.advance(&[0x81, 127, 0, 0, 0, 0, 0x10, 0, 0, 0]).unwrap();
    assert_eq!(tracker.until_boundary(), 0x1000_0000);
}

/// A frame's header and payload, right or wrong. tungstenite takes lengths that are not minimal, so there are none here.
#[derive(Debug, Clone)]
struct Wire {
    first: u8,
    masked: bool,
    length: usize,
}

impl Wire {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = frame(self.first, self.length);
        if !self.masked {
            let mask = bytes.len() - self.length - 4;
            bytes[1] &= !MASK;
            bytes.drain(mask..mask + 4);
        }
        // A close frame's payload is a code and a reason, which tungstenite reads: 1000, and letters.
        let payload = bytes.len() - self.length;
        for (number, byte) in bytes[payload..].iter_mut().enumerate() {
            let plain = match (self.first & OPCODE, number) {
                (CLOSE, 0) => 0x03,
                (CLOSE, 1) => 0xe8,
                _ => b'x',
            };
            let mask = if self.masked { [1, 2, 3, 4][number % 4] } else { 0 };
            *byte = plain ^ mask;
        }
        bytes
    }
}

/// Mostly what a client may send, so that streams go on for some frames.
fn wire() -> impl Strategy<Value = Wire> {
    let first = prop_oneof![
        20 => prop::sample::select(vec![0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x89, 0x8a]),
        1 => Just(0x88),
        1 => any::<u8>(),
    ];
    let length = prop_oneof![8 => 0_usize..200, 1 => 120_usize..131, 1 => 65_530_usize..65_540];
    let masked = prop::bool::weighted(0.98);
    (first, masked, length).prop_map(|(first, masked, length)| {
        // One byte is no close code. Whoever sends that breaks a rule about payloads, which are not looked at here.
        let length = if first & OPCODE == CLOSE && length == 1 { 2 } else { length };
        Wire { first, masked, length }
    })
}

fn streams() -> impl Strategy<Value = Vec<u8>> {
    let frames = prop::collection::vec(wire(), 1..12);
    let frames = frames.prop_map(|frames| frames.iter().flat_map(Wire::bytes).collect::<Vec<_>>());
    let cut = (frames, any::<prop::sample::Index>());
    prop_oneof![
        // Cut off anywhere, and bytes that nobody thought of.
        cut.prop_map(|(mut bytes, end)| {
            bytes.truncate(end.index(bytes.len()) + 1);
            bytes
        }),
        prop::collection::vec(any::<u8>(), 0..2_000),
    ]
}

/// Cuts `stream` into pieces of these lengths, over and over.
fn pieces<'a>(stream: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let (mut rest, mut lengths, mut pieces) = (stream, lengths.iter().cycle(), Vec::new());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*lengths.next().unwrap()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let length = prop_oneof![1_usize..20, 1_usize..70_000];
    prop::collection::vec(length, 1..40)
}

/// Where the frames of `stream` end, as tungstenite parses it, and how far that went: it stops at reserved opcodes.
fn ends_by_tungstenite(stream: &[u8]) -> (Vec<u64>, u64) {
    let (mut cursor, mut ends, whole) = (Cursor::new(stream), Vec::new(), stream.len() as u64);
    loop {
        let begin = cursor.position();
        match FrameHeader::parse(&mut cursor) {
            Ok(Some((_, length))) => ends.push(cursor.position().saturating_add(length)),
            Ok(None) => return (ends, whole),
            Err(_) => return (ends, begin),
        }
        let end = *ends.last().unwrap();
        if end > whole {
            return (ends, whole);
        }
        cursor.set_position(end);
    }
}

/// What a server made of tungstenite says to frames that come one after the other.
struct Oracle(WebSocket<Pipe>);

#[derive(Default)]
struct Pipe(VecDeque<u8>);

impl Read for Pipe {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { self.0.read(to) }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Oracle {
    fn new() -> Self {
        let most = usize::try_from(CLIENT_MESSAGE_MAX).unwrap();
        let limits = WebSocketConfig::default().max_frame_size(Some(most)).max_message_size(Some(most));
        Self(WebSocket::from_raw_socket(Pipe::default(), Role::Server, Some(limits)))
    }

    /// Whether it takes the next frame.
    fn takes(&mut self, frame: &[u8]) -> bool {
        self.0.get_mut().0.extend(frame);
        loop {
            match self.0.read() {
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return true,
                // It has answered a close frame, and its part is done.
                Err(Error::ConnectionClosed) => return self.0.get_ref().0.is_empty(),
                Err(_) => return false,
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// However any stream is split, a frame ends where tungstenite says that it ends.
    #[test]
    fn any_split_of_any_stream_has_the_boundaries_that_tungstenite_finds(
        stream in streams(),
        lengths in lengths(),
    ) {
        let (ends, parsed) = ends_by_tungstenite(&stream);
        let parsed = &stream[..usize::try_from(parsed).unwrap()];
        let mut tracker = Tracker::new(Sender::Browser);
        let mut at = 0;
        prop_assert!(tracker.at_boundary());
        for piece in pieces(parsed, &lengths) {
            tracker.advance(piece).unwrap();
            at += piece.len() as u64;
            prop_assert_eq!(tracker.at_boundary(), ends.contains(&at), "at {}", at);
            let sure = tracker.until_boundary();
            prop_assert_eq!(sure == 0, tracker.at_boundary());
            // Past the last header that tungstenite had all of, only the header itself is sure.
            if let Some(end) = ends.iter().find(|end| **end >= at) {
                prop_assert!(at.saturating_add(sure) <= *end);
            }
        }
    }

    /// A server made of tungstenite and a tracker give up at the same frame of a client.
    #[test]
    fn a_client_violates_what_tungstenite_says_it_violates(frames in prop::collection::vec(wire(), 1..12)) {
        let (mut oracle, mut tracker) = (Oracle::new(), Tracker::new(Sender::Client));
        for frame in frames {
            let bytes = frame.bytes();
            let after_close = tracker.close_seen();
            let violation = tracker.advance(&bytes).err();
            if after_close {
                prop_assert_eq!(violation, Some(Violation::Protocol), "nothing follows a close frame");
                break;
            }
            let said = oracle.takes(&bytes);
            prop_assert_eq!(violation.is_none(), said, "{:?}", &frame);
            if !said {
                break;
            }
        }
    }

    /// However a client's stream is split, it is told off or not for the same frame: when its header is there.
    #[test]
    fn any_split_finds_the_same_violation(stream in streams(), lengths in lengths()) {
        let violation = |pieces: &[&[u8]]| {
            let mut tracker = Tracker::new(Sender::Client);
            let mut at = 0;
            for piece in pieces {
                if let Err(violation) = tracker.advance(piece) {
                    return Some((violation, at..at + piece.len()));
                }
                at += piece.len();
            }
            None
        };
        let bytes: Vec<_> = stream.chunks(1).collect();
        match (violation(&bytes), violation(&pieces(&stream, &lengths))) {
            (None, None) => {}
            (Some((one, byte)), Some((other, piece))) => {
                prop_assert_eq!(one, other);
                prop_assert!(piece.contains(&byte.start));
            }
            (one, other) => prop_assert!(false, "byte by byte {:?}, in pieces {:?}", one, other),
        }
    }
}
