//! Holds that were decided and are not committed yet, so that a process that is killed in between loses none.
//!
//! One line of JSON each, appended by one `write`, which the end of the process survives, as a commit that nobody waits
//! for does. Lines stay after their commit, until there are many; whoever reads them asks the database which are missing.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::session::Session;

/// Beyond this size it is emptied as soon as all of its holds are committed.
const LONG: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    length: u64,
    /// Kept for the next line.
    line: Vec<u8>,
}

impl Journal {
    /// That of a database; a new one where there is none.
    pub(super) fn open(database: &Path) -> io::Result<Self> {
        let mut path = OsString::from(database);
        path.push("-holds");
        let file = File::options().read(true).append(true).create(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length, line: Vec::new() })
    }

    /// The sessions in it. A line that was not written to its end was never answered.
    pub(super) fn read(&mut self) -> io::Result<Vec<Session>> {
        let mut lines = String::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_string(&mut lines)?;
        Ok(lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    pub(super) fn append(&mut self, held: &Session) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, held)?;
        self.line.push(b'\n');
        self.file.write_all(&self.line)?;
        self.length += self.line.len() as u64;
        Ok(())
    }

    /// All that is in it is committed.
    pub(super) fn all_committed(&mut self) {
        if self.length > LONG {
            self.clear();
        }
    }

    /// Empties it. Where that fails it stays as it is, and does no harm.
    pub(super) fn clear(&mut self) {
        if self.file.set_len(0).is_ok() {
            self.length = 0;
        }
    }
}
