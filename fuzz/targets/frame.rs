//! Bytes, and where they are split → where frames end and what is wrong with them, as tungstenite sees it.
#![no_main]

use std::io::Cursor;

use gateway::frame::{Sender, Tracker, Violation};
use libfuzzer_sys::fuzz_target;
use tungstenite::protocol::frame::FrameHeader;

fuzz_target!(|input: &[u8]| {
    let [split, stream @ ..] = input else { return };
    let length = usize::from(*split).max(1);
    boundaries(stream, length);
    assert_eq!(first_violation(stream, length), first_violation(stream, 1));
});

/// A browser's frames end where tungstenite says that they end.
fn boundaries(stream: &[u8], length: usize) {
    let (ends, parsed) = ends_by_tungstenite(stream);
    let mut tracker = Tracker::new(Sender::Browser);
    let mut at = 0;
    for piece in stream[..parsed].chunks(length) {
        tracker.advance(piece).expect("a browser's frames are not checked");
        at += piece.len() as u64;
        assert_eq!(tracker.at_boundary(), ends.contains(&at));
        let sure = tracker.until_boundary();
        assert_eq!(sure == 0, tracker.at_boundary());
        if let Some(end) = ends.iter().find(|end| **end >= at) {
            assert!(at.saturating_add(sure) <= *end);
        }
    }
}

/// Where frames end, and how far that is known: tungstenite stops at reserved opcodes.
fn ends_by_tungstenite(stream: &[u8]) -> (Vec<u64>, usize) {
    let (mut cursor, mut ends) = (Cursor::new(stream), Vec::from([0]));
    loop {
        let begin = cursor.position();
        match FrameHeader::parse(&mut cursor) {
            Ok(Some((_, payload))) => ends.push(cursor.position().saturating_add(payload)),
            Ok(None) => return (ends, stream.len()),
            Err(_) => return (ends, usize::try_from(begin).expect("within the stream")),
        }
        let end = *ends.last().expect("pushed above");
        if end > stream.len() as u64 {
            return (ends, stream.len());
        }
        cursor.set_position(end);
    }
}

/// What a client does wrong, if its stream comes in pieces of this length.
fn first_violation(stream: &[u8], length: usize) -> Option<Violation> {
    let mut tracker = Tracker::new(Sender::Client);
    stream.chunks(length).find_map(|piece| tracker.advance(piece).err())
}
