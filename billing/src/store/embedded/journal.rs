//! Holds that were decided and are not committed yet, so that a process that is killed in between loses none.
//!
//! One line each, appended by one `write`, which the end of the process survives, as a commit that nobody waits
//! for does. Lines stay after their commit, until the next heartbeat or until there are many; whoever reads them asks the
//! database which are missing.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::id::{GatewayId, HoldId};
use crate::key::Principal;
use crate::request::{NewSession, SessionRequest};
use crate::session::Session;
use crate::time::Timestamp;

/// Beyond this size it is emptied as soon as all of its holds are committed.
const LONG: u64 = 1 << 20;

/// A hold as it is noted: what it takes to decide it again.
#[derive(Debug)]
pub(crate) struct Noted {
    pub(crate) who: Principal,
    pub(crate) new: NewSession,
    pub(crate) hold: HoldId,
    pub(crate) gateway: GatewayId,
    pub(crate) held_at: Timestamp,
}

impl Noted {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.splitn(7, ' ');
        let mut word = || words.next();
        let who = Principal { account: word()?.parse().ok()?, key: word()?.parse().ok()? };
        let id = word()?.parse().ok()?;
        let hold = word()?.parse().ok()?;
        let gateway = word()?.parse().ok()?;
        let held_at = Timestamp::from_millis(word()?.parse().ok()?);
        let request = match word()? {
            "" => SessionRequest::default(),
            request => serde_json::from_str(request).ok()?,
        };
        Some(Self { who, new: NewSession::named(id, request), hold, gateway, held_at })
    }
}

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

    /// The holds in it. A line that was not written to its end was never answered.
    pub(super) fn read(&mut self) -> io::Result<Vec<Noted>> {
        let mut lines = String::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_string(&mut lines)?;
        Ok(lines.split_inclusive('\n').filter_map(Noted::parse).collect())
    }

    /// Notes a session that is held.
    pub(super) fn append(&mut self, held: &Session) -> io::Result<()> {
        self.line.clear();
        for word in [held.account.as_str(), held.key.as_str(), held.id.as_str()] {
            self.line.extend_from_slice(word.as_bytes());
            self.line.push(b' ');
        }
        write!(self.line, "{} {} {} ", held.hold, held.gateway, held.held_at.as_millis())?;
        // Most sessions ask for nothing, and then there is nothing to write.
        if !held.request.is_empty() {
            serde_json::to_writer(&mut self.line, &held.request)?;
        }
        self.line.push(b'\n');
        if let Err(error) = self.file.write_all(&self.line) {
            // What a full disk took of it would be the beginning of the next line.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
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
        if self.length > 0 && self.file.set_len(0).is_ok() {
            self.length = 0;
        }
    }
}
