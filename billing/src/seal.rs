//! Sealing: the older part of a log goes into an [archive](crate::Archive), and then an opening balance takes its place.
//!
//! The archive is written, read back and replayed before anything is taken off the log; and that is one commit of the
//! account, as everything else. Whatever ends the command in between, a repeat goes on from there: it writes the same
//! file, finds that it is there, and takes off the log what is in it.
//!
//! The running calendar month and the two before it stay in the log, so that the running billing period and the one before
//! it can be reckoned from the log alone, as can the running month and the last one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::archive::{Archive, ArchiveError, Header, Writer};
use crate::audit::{Actor, Digest, Entry, EntryKind, Fault, Follow, Opening, Verified};
use crate::books::{Billing, CONFLICTS_MAX};
use crate::id::AccountId;
use crate::store::{Committed, Durability, LIST_MAX, StoreError};
use crate::time::{Period, Timestamp};

/// Months before the running one that stay in the log. A billing period is up to a month old when the next begins, so the
/// last one may have begun in the month before the last.
const MONTHS_KEPT: u32 = 2;

/// What of a log was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The archive.
    pub file: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// The number of its first entry.
    pub first: u64,
    /// The number of its last one.
    pub last: u64,
}

/// Why a log was not sealed. Nothing was taken off it.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There is no such account.
    #[error("there is no such account")]
    NoAccount,
    /// The month is still needed in the log.
    #[error(
        "what was written from {kept} on is kept in the log, for the reconciliation of the running and the last period"
    )]
    TooRecent {
        /// The first instant that is kept.
        kept: Timestamp,
    },
    /// The log is not intact.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The archive could not be written, or says something else than the log.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why archives and a log are not one log.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    /// There is no such account.
    #[error("there is no such account")]
    NoAccount,
    /// The log, or what is between it and the archives, has a fault.
    #[error("log: {0}")]
    Fault(#[from] Fault),
    /// An archive has one, or does not follow the one before it.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An opening balance names another archive than the one that stands before it.
    #[error("the opening balance of entry {seq} was made from another archive")]
    Another {
        /// Its number.
        seq: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The first instant that stays in the log at `now`.
fn kept_from(now: Timestamp) -> Timestamp {
    let mut start = Period::calendar_month(now).start;
    for _ in 0..MONTHS_KEPT {
        let before = Timestamp::from_millis(start.as_millis().saturating_sub(1));
        start = Period::calendar_month(before).start;
    }
    start
}

impl Billing {
    /// The last calendar month that can be sealed at `now`.
    pub fn last_to_seal(&self, now: Timestamp) -> Period {
        let before = kept_from(now).as_millis().saturating_sub(1);
        Period::calendar_month(Timestamp::from_millis(before))
    }

    /// Moves what an account's log has up to the end of a calendar month into an archive in a folder; `None` where that is
    /// nothing. Gateways may be at work meanwhile. Writes its file on the caller's thread; waits for the disk.
    ///
    /// # Errors
    /// Nothing was taken off the log then; there may be an archive, which a repeat finds.
    pub async fn seal(
        &self,
        id: &AccountId,
        month: Period,
        folder: &Path,
        (actor, now): (Actor, Timestamp),
    ) -> Result<Option<Sealed>, SealError> {
        let (until, kept) = (month.end, kept_from(now));
        if until > kept {
            return Err(SealError::TooRecent { kept });
        }
        if self.account(id).await?.is_none() {
            return Err(SealError::NoAccount);
        }
        let Some((opening, sealed)) = self.archive_until(id, until, folder, (actor, now)).await? else {
            return Ok(None);
        };
        self.trim(&opening).await?;
        Ok(Some(sealed))
    }

    /// Writes the archive. Gives it, and the entry that may take its place in the log.
    pub(crate) async fn archive_until(
        &self,
        id: &AccountId,
        until: Timestamp,
        folder: &Path,
        (actor, now): (Actor, Timestamp),
    ) -> Result<Option<(Entry, Sealed)>, SealError> {
        let Part { before, after, latest } = self.part_until(id, until).await?;
        // By its entries alone, so that whoever repeats this in a later month writes the same file.
        let until = Period::calendar_month(latest).end;
        let (first, last) = (before.head().seq + 1, after.head().seq);
        if last < first {
            return Ok(None);
        }
        let header = Header::new(id, until, &before, &after);
        let (file, digest) = self.write_archive(id, folder, &header).await?;
        let opening = after.opening(id, (now, actor), (digest, until)).ok_or(Fault::Sum { seq: last })?;
        Ok(Some((opening, Sealed { file, digest, first, last })))
    }

    /// Reads the log to the last entry that was written before `until`: where it begins, behind its opening balance if it
    /// has one, and where that entry leaves it.
    async fn part_until(&self, id: &AccountId, until: Timestamp) -> Result<Part, SealError> {
        let told_at = |entry: &Entry| entry.ended.map_or(entry.at, |ended| ended.max(entry.at));
        let mut part =
            Part { before: Follow::default(), after: Follow::default(), latest: Timestamp::from_millis(0) };
        loop {
            let page = self.audit(id, part.after.head().seq, LIST_MAX).await?;
            for entry in &page {
                if entry.kind == EntryKind::OpeningBalance {
                    part.after.entry(id, entry)?;
                    part.before = part.after.clone();
                } else if told_at(entry) >= until {
                    return Ok(part);
                } else {
                    part.after.entry(id, entry)?;
                    part.latest = part.latest.max(told_at(entry));
                }
            }
            if page.is_empty() {
                return Ok(part);
            }
        }
    }

    async fn write_archive(
        &self,
        id: &AccountId,
        folder: &Path,
        header: &Header,
    ) -> Result<(PathBuf, Digest), SealError> {
        let mut archive = Writer::create(folder, header)?;
        let mut read = 0;
        while read < header.last {
            let page = self.audit(id, read, LIST_MAX).await?;
            // What is missing here is found when the file is read back.
            let Some(last) = page.last() else { break };
            read = last.seq;
            for entry in page.iter().take_while(|entry| entry.seq <= header.last) {
                archive.line(entry)?;
            }
        }
        Ok(archive.finish(|written| written.follow(&mut Follow::default(), |_| ()))?)
    }

    /// Puts an opening balance in the place of the entries that it stands for.
    async fn trim(&self, opening: &Entry) -> Result<(), SealError> {
        for _ in 0..CONFLICTS_MAX {
            let account = self.account(&opening.account).await?.ok_or(SealError::NoAccount)?;
            let is_done = self.is_trimmed(opening).await?
                || match self.store().trim(&account, opening).await? {
                    Committed::Done | Committed::Exists => true,
                    Committed::Conflict => false,
                };
            if is_done {
                self.store().wait_for(&opening.account, Durability::Disk).await?;
                return Ok(self.store().drop_sealed(&opening.account).await?);
            }
            tokio::task::yield_now().await;
        }
        Err(StoreError::Busy.into())
    }

    /// Whether the log begins there already, or behind it: another command may seal the same.
    async fn is_trimmed(&self, opening: &Entry) -> Result<bool, StoreError> {
        let first = self.audit(&opening.account, 0, 1).await?;
        let first = first.first().filter(|first| first.kind == EntryKind::OpeningBalance);
        Ok(first.is_some_and(|first| first.seq >= opening.seq))
    }

    /// Proves that archives and the logs that they were taken from are intact, and each account's one log that leads to the
    /// account. Gives what became of each account that there are archives of.
    ///
    /// # Errors
    /// A file cannot be read, or is no archive. What is wrong with an account's is in the answer.
    pub async fn prove_archives(
        &self,
        files: &[PathBuf],
    ) -> Result<BTreeMap<AccountId, Result<Verified, Unproven>>, ArchiveError> {
        let mut proven = BTreeMap::new();
        for (account, archives) in Archive::by_account(files)? {
            let verified = self.prove_one(&account, &archives).await;
            proven.insert(account, verified);
        }
        Ok(proven)
    }

    async fn prove_one(&self, id: &AccountId, archives: &[Archive]) -> Result<Verified, Unproven> {
        let mut chain = Chain::default();
        for archive in archives {
            chain.archive(archive)?;
        }
        let mut rounds = CONFLICTS_MAX;
        loop {
            self.read_behind(id, &mut chain).await?;
            let now: Account = self.account(id).await?.ok_or(Unproven::NoAccount)?;
            rounds -= 1;
            if chain.follow.head().seq >= now.head.seq || rounds == 0 {
                return Ok(chain.follow.finish(&now)?);
            }
        }
    }

    /// The log from the last archived entry on. That one is still there, or an opening balance in its place.
    async fn read_behind(&self, id: &AccountId, chain: &mut Chain) -> Result<(), Unproven> {
        loop {
            let head = chain.follow.head();
            let page = self.audit(id, head.seq.saturating_sub(1), LIST_MAX).await?;
            let is_known = |entry: &Entry| entry.kind != EntryKind::OpeningBalance && entry.head() == head;
            let is_all = page.iter().all(is_known);
            for entry in page.iter().filter(|entry| !is_known(entry)) {
                chain.entry(id, entry)?;
            }
            if is_all || page.len() < 2 {
                return Ok(());
            }
        }
    }
}

/// What of a log can be sealed.
struct Part {
    before: Follow,
    after: Follow,
    /// When the last of it was, or ended.
    latest: Timestamp,
}

/// Archives and the log behind them, read as one.
#[derive(Debug, Default)]
struct Chain {
    follow: Follow,
    /// The last archive's digest.
    digest: Option<Digest>,
}

impl Chain {
    fn archive(&mut self, archive: &Archive) -> Result<(), Unproven> {
        let expected = self.follow.head().seq + 1;
        if archive.first() != expected {
            return Err(Fault::Missing { expected }.into());
        }
        let mut named = None;
        let digest = archive.follow(&mut self.follow, |entry| named = named.or(opened_by(entry)))?;
        same_archive(named, self.digest)?;
        self.digest = Some(digest);
        Ok(())
    }

    fn entry(&mut self, account: &AccountId, entry: &Entry) -> Result<(), Unproven> {
        self.follow.entry(account, entry)?;
        same_archive(opened_by(entry), self.digest)
    }
}

/// The number of an opening balance, and the archive that it was made from.
fn opened_by(entry: &Entry) -> Option<(u64, Digest)> {
    let opening = Opening::of(entry).filter(|_| entry.kind == EntryKind::OpeningBalance)?;
    Some((entry.seq, opening.archive))
}

fn same_archive(named: Option<(u64, Digest)>, before: Option<Digest>) -> Result<(), Unproven> {
    match named {
        Some((seq, archive)) if Some(archive) != before => Err(Unproven::Another { seq }),
        Some(_) | None => Ok(()),
    }
}
