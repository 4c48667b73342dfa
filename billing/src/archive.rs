//! Archives: what was sealed of an account's log, in a file. What is in one is described with the log
//! ([`audit`](crate::Entry)).
//!
//! The same entries always make the same file, to the byte: so one that was written by a command that did not come to its
//! end is as good as the one that a repeat would write.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::audit::{Digest, Entry, EntryKind, Fault, Follow, Head};
use crate::id::AccountId;
use crate::time::Timestamp;

/// Names the form of the file.
const FORMAT: &str = "ufb-archive-1";

/// The longest line: an opening balance behind which a thousand sessions were open has a tenth of it.
const LINE_MAX: u64 = 1 << 20;

/// A file that was found to begin like an archive.
#[derive(Clone, Debug)]
pub struct Archive {
    path: PathBuf,
    header: Header,
}

/// What an archive says of itself in its first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    format: String,
    pub(crate) account: AccountId,
    pub(crate) until: Timestamp,
    pub(crate) first: u64,
    pub(crate) last: u64,
    prev: Digest,
    hash: Digest,
    opening: Figures,
    closing: Figures,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Figures {
    balance: i64,
    included: i64,
    retry: i64,
    overage: i64,
}

impl Figures {
    fn of(follow: &Follow) -> Figures {
        let [balance, included, retry, overage] = follow.sums();
        Figures { balance, included, retry, overage }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Footer {
    sha256: Digest,
}

/// Why a file is no archive that can be relied on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not what should stand there.
    #[error("{}: line {line} cannot be read", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
    },
    /// What it says at its end is not what its lines come to.
    #[error("{}: it was changed after it was written", path.display())]
    Digest {
        /// Which.
        path: PathBuf,
    },
    /// Its first line says something else than its entries.
    #[error("{}: its first line is not what its entries come to", path.display())]
    Header {
        /// Which.
        path: PathBuf,
    },
    /// Its entries do not follow what was read before them, or each other.
    #[error("{}: {fault}", path.display())]
    Entries {
        /// Which.
        path: PathBuf,
        /// How.
        fault: Fault,
    },
}

impl ArchiveError {
    pub(crate) fn file(path: &Path) -> impl Fn(io::Error) -> ArchiveError {
        move |source| ArchiveError::File { path: path.to_owned(), source }
    }
}

impl Archive {
    /// Reads the first line.
    ///
    /// # Errors
    /// It cannot be read, or is none of an archive.
    pub fn open(path: &Path) -> Result<Archive, ArchiveError> {
        let mut lines = Lines::open(path)?;
        let header: Header = lines.next()?.ok_or_else(|| lines.unreadable())?;
        if header.format != FORMAT {
            return Err(lines.unreadable());
        }
        Ok(Archive { path: path.to_owned(), header })
    }

    /// Opens files, and puts them in order. Of several that begin with the same entry the longest counts: a command that did
    /// not come to its end has left the others, and a later one sealed more.
    ///
    /// # Errors
    /// One of them cannot be read, or is none of an archive.
    pub fn by_account(files: &[PathBuf]) -> Result<BTreeMap<AccountId, Vec<Archive>>, ArchiveError> {
        let mut accounts: BTreeMap<_, Vec<Archive>> = BTreeMap::new();
        for file in files {
            let archive = Archive::open(file)?;
            accounts.entry(archive.account().clone()).or_default().push(archive);
        }
        for archives in accounts.values_mut() {
            archives.sort_by_key(|archive| (archive.first(), Reverse(archive.last())));
            archives.dedup_by_key(|archive| archive.first());
        }
        Ok(accounts)
    }

    /// Whose it is.
    pub fn account(&self) -> &AccountId {
        &self.header.account
    }

    /// The number of its first sealed entry, by which an account's archives are put in order.
    pub fn first(&self) -> u64 {
        self.header.first
    }

    /// The number of its last one.
    pub fn last(&self) -> u64 {
        self.header.last
    }

    /// Reads all of it and hands on the entries; gives its digest. That they lead from one to the next is for whoever
    /// is handed them to see.
    pub(crate) fn read(
        &self,
        mut each: impl FnMut(&Entry) -> Result<(), Fault>,
    ) -> Result<Digest, ArchiveError> {
        let mut lines = Lines::open(&self.path)?;
        if lines.next::<Header>()?.as_ref() != Some(&self.header) {
            return Err(lines.unreadable());
        }
        while !lines.at_footer()? {
            let entry = lines.next()?.ok_or_else(|| lines.unreadable())?;
            each(&entry).map_err(|fault| ArchiveError::Entries { path: self.path.clone(), fault })?;
        }
        let digest = Digest(lines.hash.clone().finalize().into());
        let footer: Footer = lines.next()?.ok_or_else(|| lines.unreadable())?;
        if footer.sha256 == digest {
            Ok(digest)
        } else {
            Err(ArchiveError::Digest { path: self.path.clone() })
        }
    }

    /// The same behind what was read before; the first line has to say what the entries do.
    pub(crate) fn follow(
        &self,
        follow: &mut Follow,
        mut each: impl FnMut(&Entry),
    ) -> Result<Digest, ArchiveError> {
        let mut before = None;
        let digest = self.read(|entry| {
            if entry.kind != EntryKind::OpeningBalance && before.is_none() {
                before = Some((follow.head(), Figures::of(follow)));
            }
            each(entry);
            follow.entry(self.account(), entry).map(|_| ())
        })?;
        let Header { first, last, prev, hash, opening, closing, .. } = self.header;
        let begins = Some((Head { seq: first.wrapping_sub(1), hash: prev }, opening)) == before;
        let ends = (Head { seq: last, hash }, closing) == (follow.head(), Figures::of(follow));
        if begins && ends { Ok(digest) } else { Err(ArchiveError::Header { path: self.path.clone() }) }
    }
}

impl Header {
    /// Of what is sealed between two places in a log.
    pub(crate) fn new(account: &AccountId, until: Timestamp, before: &Follow, after: &Follow) -> Header {
        Header {
            format: FORMAT.to_owned(),
            account: account.clone(),
            until,
            first: before.head().seq + 1,
            last: after.head().seq,
            prev: before.head().hash,
            hash: after.head().hash,
            opening: Figures::of(before),
            closing: Figures::of(after),
        }
    }

    /// What the file is called.
    pub(crate) fn file_name(&self) -> String {
        format!("{}-{:012}-{:012}.jsonl", self.account, self.first, self.last)
    }
}

/// An archive that is being written, under a name that is not its own yet.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Where it will be.
    path: PathBuf,
    lines: BufWriter<File>,
    hash: Sha256,
}

impl Writer {
    pub(crate) fn create(folder: &Path, header: &Header) -> Result<Writer, ArchiveError> {
        fs::create_dir_all(folder).map_err(ArchiveError::file(folder))?;
        let path = folder.join(header.file_name());
        let file = File::create(unfinished(&path)).map_err(ArchiveError::file(&path))?;
        let mut writer = Writer { path, lines: BufWriter::new(file), hash: Sha256::new() };
        writer.line(header)?;
        Ok(writer)
    }

    pub(crate) fn line(&mut self, document: &impl Serialize) -> Result<(), ArchiveError> {
        let written = serde_json::to_vec(document).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.hash.update(&line);
            self.lines.write_all(&line)
        });
        written.map_err(ArchiveError::file(&self.path))
    }

    /// Ends it, waits for the disk, has `check` read it, and gives it its name. Where there is such a file already, that one
    /// is checked and stays.
    pub(crate) fn finish(
        mut self,
        check: impl Fn(&Archive) -> Result<Digest, ArchiveError>,
    ) -> Result<(PathBuf, Digest), ArchiveError> {
        let sha256 = Digest(self.hash.clone().finalize().into());
        self.line(&Footer { sha256 })?;
        let (path, failed) = (self.path.clone(), ArchiveError::file(&self.path));
        let file = self.lines.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(&failed)?;
        let unfinished = unfinished(&path);
        let found = check(&Archive::open(&unfinished)?)?;
        if found != sha256 {
            return Err(ArchiveError::Digest { path: unfinished });
        }
        // Does not replace anything, as a renaming would.
        match fs::hard_link(&unfinished, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if check(&Archive::open(&path)?)? != sha256 {
                    return Err(ArchiveError::Digest { path });
                }
            }
            linked => linked.map_err(&failed)?,
        }
        fs::remove_file(&unfinished).map_err(&failed)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(&failed)?;
        Ok((path, sha256))
    }
}

fn unfinished(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".unfinished");
    path.into()
}

/// The lines of a file, each but the last hashed as it is handed out.
struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    /// The line that is handed out next; empty at the end.
    ahead: Vec<u8>,
    number: u64,
    hash: Sha256,
}

impl Lines {
    fn open(path: &Path) -> Result<Lines, ArchiveError> {
        let file = BufReader::new(File::open(path).map_err(ArchiveError::file(path))?);
        let path = path.to_owned();
        let mut lines = Lines { path, file, ahead: Vec::new(), number: 0, hash: Sha256::new() };
        lines.advance()?;
        Ok(lines)
    }

    /// Reads the next line into `ahead`.
    fn advance(&mut self) -> Result<(), ArchiveError> {
        self.ahead.clear();
        self.number += 1;
        let mut line = (&mut self.file).take(LINE_MAX);
        line.read_until(b'\n', &mut self.ahead).map_err(ArchiveError::file(&self.path))?;
        if self.ahead.last().is_some_and(|last| *last != b'\n') {
            return Err(self.unreadable());
        }
        Ok(())
    }

    /// None at the end.
    fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ArchiveError> {
        if self.ahead.is_empty() {
            return Ok(None);
        }
        let document = serde_json::from_slice(&self.ahead).map_err(|_| self.unreadable())?;
        self.hash.update(&self.ahead);
        self.advance()?;
        Ok(Some(document))
    }

    /// Whether the line ahead is the last one.
    fn at_footer(&mut self) -> Result<bool, ArchiveError> {
        Ok(self.file.fill_buf().map_err(ArchiveError::file(&self.path))?.is_empty())
    }

    fn unreadable(&self) -> ArchiveError {
        ArchiveError::Line { path: self.path.clone(), line: self.number }
    }
}
