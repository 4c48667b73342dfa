//! Whether another process has written to the database since this one last looked.
//!
//! SQLite keeps the state of its WAL in the first 48 bytes of the `-shm` file, and changes it with every commit (the
//! "WAL-index header" of its file format, which is documented and kept). Reading them costs one system call, where asking
//! through a connection would take locks. A read that meets a commit half-way gives bytes that never were: those differ
//! from what was seen as well, which is all that is asked.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::fs::FileExt;
use std::path::Path;

const HEADER: usize = 48;

#[derive(Debug)]
pub(super) struct Others {
    /// Never closed: SQLite has POSIX locks on this file, and the kernel drops all of a process's locks on a file with
    /// any of its descriptors.
    index: ManuallyDrop<File>,
    seen: [u8; HEADER],
}

impl Others {
    /// The database has to be open, in WAL mode.
    pub(super) fn watch(database: &Path) -> io::Result<Self> {
        let mut path = database.as_os_str().to_owned();
        path.push("-shm");
        // What was never seen is not quiet.
        Ok(Self { index: ManuallyDrop::new(File::open(path)?), seen: [0; HEADER] })
    }

    /// Whether nobody else has written since this process last [began](Self::begin) to.
    pub(super) fn are_quiet(&self) -> bool {
        self.read().is_some_and(|now| now == self.seen)
    }

    /// This process has the right to write, so that nothing changes until it does. Whether others were quiet.
    pub(super) fn begin(&mut self) -> bool {
        let were_quiet = self.are_quiet();
        self.seen = self.read().unwrap_or([0; HEADER]);
        were_quiet
    }

    /// This process has committed once since it began. What others may have committed right behind it stays unseen.
    pub(super) fn committed(&mut self) {
        if let Some(now) = self.read()
            && commits(&now) == commits(&self.seen).wrapping_add(1)
        {
            self.seen = now;
        }
    }

    fn read(&self) -> Option<[u8; HEADER]> {
        let mut header = [0; HEADER];
        self.index.read_exact_at(&mut header, 0).ok()?;
        Some(header)
    }
}

/// `iChange`: one more with every commit.
fn commits(header: &[u8; HEADER]) -> u32 {
    u32::from_ne_bytes([header[8], header[9], header[10], header[11]])
}
