//! Where WebSocket frames end (RFC 6455, section 5.2), and nothing else about them.
//!
//! A tracker is shown every byte of one direction. It parses the 2 to 14 bytes of each frame's header and counts its
//! payload down; it keeps no byte and changes none. So a close frame can be put between two frames of somebody else's
//! conversation, and a client that breaks the protocol is noticed without any frame being decoded.

#[cfg(test)]
mod tests;

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
const PONG: u8 = 0xa;
const MASK: u8 = 0x80;

/// A ping without a payload, unmasked as a server's frames are.
pub const PING: [u8; 2] = [0x89, 0x00];

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
    /// The current frame is a client's pong.
    pong: bool,
    /// Bytes of a client's pongs that were not asked for yet.
    pongs: u64,
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
            pong: false,
            pongs: 0,
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
                self.pongs += u64::from(self.pong) * step as u64;
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

    /// How many of the bytes since the last call were a client's pongs. It answers a ping by itself, so that they say
    /// nothing of what it wants.
    pub fn take_pongs(&mut self) -> u64 {
        std::mem::take(&mut self.pongs)
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
            self.pong = self.header[0] & OPCODE == PONG;
            self.pongs += if self.pong { self.have as u64 } else { 0 };
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
