//! Where WebSocket frames end (RFC 6455, section 5.2), and nothing else about them.
//!
//! A tracker is shown every byte of one direction. It parses the 2 to 14 bytes of each frame's header and counts its
//! payload down; it keeps no byte and changes none. So a close frame can be put between two frames of somebody else's
//! conversation, and a client that breaks the protocol is noticed without any frame being decoded.

/// Chrome resets a connection on which it is sent a message of about 100 MB; the client is told a little before that.
pub const CLIENT_MESSAGE_MAX: u64 = 99_000_000;

/// Longest payload of a control frame (RFC 6455, section 5.5).
const CONTROL_MAX: u64 = 125;
const HEADER_MAX: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const CONTROL: u8 = 0x08;
const CLOSE: u8 = 0x8;
const MASK: u8 = 0x80;

/// Whose frames are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A client: on the open internet, so its frames are checked.
    Client,
    /// A browser: trusted to keep the protocol; its messages have no bound.
    Browser,
}

/// What a client's frame does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Not masked, reserved bits or opcodes, a control frame that is long or fragmented, a continuation of nothing, a
    /// new message within another, a length that is not minimal or past 2^63.
    #[error("the frame breaks RFC 6455")]
    Protocol,
    /// A message beyond [`CLIENT_MESSAGE_MAX`].
    #[error("the message is too big")]
    TooBig,
}

/// Follows one direction of one connection.
#[derive(Debug)]
pub struct Tracker {
    sender: Sender,
    header: [u8; HEADER_MAX],
    /// Bytes of the current header so far.
    have: usize,
    /// Payload of the current frame still to come.
    payload: u64,
    /// Payload of the current message so far.
    message: u64,
    /// Between the first and the last frame of a message.
    fragmented: bool,
    close_seen: bool,
}

impl Tracker {
    /// At the start of a connection, which is between two frames.
    #[must_use]
    pub fn new(sender: Sender) -> Self {
        Self {
            sender,
            header: [0; HEADER_MAX],
            have: 0,
            payload: 0,
            message: 0,
            fragmented: false,
            close_seen: false,
        }
    }

    /// Follows `bytes`, the next ones of the stream.
    ///
    /// # Errors
    ///
    /// A client's violation. The tracker is of no use afterwards.
    pub fn advance(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let step = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= step as u64;
                bytes = &bytes[step..];
                continue;
            }
            let step = (self.header_len() - self.have).min(bytes.len());
            self.header[self.have..self.have + step].copy_from_slice(&bytes[..step]);
            self.have += step;
            bytes = &bytes[step..];
            if self.have >= 2 && self.have == self.header_len() {
                self.begin_frame()?;
            }
        }
        Ok(())
    }

    /// Whether the next byte is the first of a frame.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.have == 0 && self.payload == 0
    }

    /// How many bytes can follow for certain without passing the end of the current frame: at least one within a frame,
    /// none between two.
    #[must_use]
    pub fn until_boundary(&self) -> u64 {
        match (self.payload, self.have) {
            (0, 0) => 0,
            (0, have) => (self.header_len() - have) as u64,
            (payload, _) => payload,
        }
    }

    /// Whether a close frame has begun: no data frame may follow it (RFC 6455, section 5.5.1).
    #[must_use]
    pub fn close_seen(&self) -> bool {
        self.close_seen
    }

    /// How long the current header is, as far as its first two bytes tell.
    fn header_len(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let length = match self.header[1] & !MASK {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & MASK == 0 { 0 } else { 4 };
        2 + length + mask
    }

    fn begin_frame(&mut self) -> Result<(), Violation> {
        let length = self.length();
        if self.sender == Sender::Client {
            self.check(length)?;
        }
        self.close_seen |= self.header[0] & OPCODE == CLOSE;
        self.payload = length;
        self.have = 0;
        Ok(())
    }

    fn length(&self) -> u64 {
        match self.header[1] & !MASK {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&self.header[2..10]);
                u64::from_be_bytes(bytes)
            }
            short => u64::from(short),
        }
    }

    fn check(&mut self, length: u64) -> Result<(), Violation> {
        let [first, second, ..] = self.header;
        let minimal = match second & !MASK {
            126 => length >= 126,
            127 => length > u64::from(u16::MAX) && length >> 63 == 0,
            _ => true,
        };
        if second & MASK == 0 || first & RESERVED != 0 || !minimal || self.close_seen {
            return Err(Violation::Protocol);
        }
        let last = first & FIN != 0;
        match first & OPCODE {
            CLOSE..=0xa if last && length <= CONTROL_MAX => return Ok(()),
            0 if self.fragmented => {}
            1 | 2 if !self.fragmented => self.message = 0,
            _ => return Err(Violation::Protocol),
        }
        debug_assert!(first & CONTROL == 0, "control frames are done with");
        self.fragmented = !last;
        self.message = self.message.saturating_add(length);
        if self.message > CLIENT_MESSAGE_MAX { Err(Violation::TooBig) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn a_browser_may_send_more() {
        let mut tracker = Tracker::new(Sender::Browser);
        tracker.advance(&[0x81, 127, 0, 0, 0, 0, 0x10, 0, 0, 0]).unwrap();
        assert_eq!(tracker.until_boundary(), 0x1000_0000);
    }

    proptest! {
        /// However the stream is split, the boundaries are where the frames end.
        #[test]
        fn any_split_finds_the_same_boundaries(
            lengths in prop::collection::vec(prop_oneof![0_usize..200, 65_500_usize..65_600], 1..6),
            splits in prop::collection::vec(1_usize..70_000, 1..40),
        ) {
            let stream: Vec<u8> = lengths.iter().flat_map(|length| frame(0x82, *length)).collect();
            let mut ends = Vec::new();
            let mut end = 0;
            for length in &lengths {
                end += frame(0x82, *length).len();
                ends.push(end);
            }
            let mut tracker = Tracker::new(Sender::Client);
            let (mut at, mut splits) = (0, splits.into_iter().cycle());
            while at < stream.len() {
                let next = (at + splits.next().unwrap()).min(stream.len());
                tracker.advance(&stream[at..next]).unwrap();
                at = next;
                prop_assert_eq!(tracker.at_boundary(), ends.contains(&at));
                let sure = usize::try_from(tracker.until_boundary()).unwrap();
                let frame_end = ends.iter().copied().find(|end| *end >= at).unwrap();
                prop_assert!(at + sure <= frame_end);
            }
        }
    }
}
