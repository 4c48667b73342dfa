//! Which streams have events that this process has just told of, so that their reader need not ask all the time.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

const BITS: usize = u64::BITS as usize;
const WORDS: usize = 256 / BITS;

/// One mark for each stream. Ringing costs the one who tells an atomic operation where the mark is there already, and a
/// wake-up of the reader where it is not.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    marks: [AtomicU64; WORDS],
    rung: Notify,
}

impl Bell {
    pub(crate) fn ring(&self, stream: u8) {
        let (word, bit) = (usize::from(stream) / BITS, 1 << (usize::from(stream) % BITS));
        if self.marks[word].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.rung.notify_one();
        }
    }

    /// Returns once it was rung since the last call.
    pub(crate) async fn rung(&self) {
        self.rung.notified().await;
    }

    /// The streams that it was rung for, which it forgets.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut streams = Vec::new();
        for (word, marks) in self.marks.iter().enumerate() {
            let marks = marks.swap(0, Ordering::AcqRel);
            let set = (0..BITS).filter(|bit| marks >> bit & 1 == 1);
            streams.extend(set.filter_map(|bit| u8::try_from(word * BITS + bit).ok()));
        }
        streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_tells_once_which_streams_it_was_rung_for() {
        let bell = Bell::default();
        for stream in [255, 0, 64, 63, 0] {
            bell.ring(stream);
        }
        bell.rung().await;
        assert_eq!(bell.take(), [0, 63, 64, 255]);
        assert!(bell.take().is_empty());
    }
}
