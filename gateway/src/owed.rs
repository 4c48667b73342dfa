//! What the ledger has to be told and could not be: minutes that started and sessions that ended while its store was away.
//!
//! Kept in a file of the data directory, a line an entry, so that a gateway which is killed meanwhile loses none of it: the
//! next start on the directory goes on with the file. It is not synced, so a power cut may take the last seconds of it. An
//! entry takes the place of an earlier one of its session; a line says of another that it was committed; the file is
//! written anew when most of its lines are of no more use, and emptied when nothing is owed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use billing::{AccountId, Debt, GatewayId, HoldId, Micros, SessionId, SessionName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

#[cfg(test)]
mod tests;

/// Where the files are, below the data directory.
const FOLDER: &str = "owed";
/// Sessions that something is owed of: more than end or run in a gateway during a long outage. An entry takes about 250
/// bytes, on disk up to three times as much.
const MOST: usize = 65_536;
/// Lines of no use that are not worth writing the file anew.
const SLACK: usize = 1_024;
type Key = (AccountId, SessionId, HoldId);

fn key_of(name: SessionName<'_>) -> Key {
    (name.account.clone(), name.session.clone(), name.hold)
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Owed(Box<Debt>),
    /// Nothing is owed of that session any more.
    Paid(AccountId, SessionId, HoldId),
}

/// Why an entry was not kept.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    #[error("{MOST} sessions are kept already")]
    Full,
    #[error("the file cannot be written")]
    File(#[from] io::Error),
}

/// All that one gateway owes.
#[derive(Debug)]
pub struct Owed {
    path: PathBuf,
    state: Mutex<State>,
    count: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Key, Debt>,
    /// Made with the first entry.
    file: Option<File>,
    /// Of the file.
    lines: usize,
    /// The last write stopped half-way.
    is_torn: bool,
}

impl Owed {
    /// Nothing, yet.
    #[must_use]
    pub fn new(data_dir: &Path, gateway: &GatewayId) -> Self {
        let path = data_dir.join(FOLDER).join(format!("{gateway}.jsonl"));
        Self { path, state: Mutex::default(), count: watch::Sender::new(0) }
    }

    /// Takes over what other gateways of this directory left, which run no more. How many entries those were.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or written anew here; what was not taken over is where it was.
    pub fn adopt(&self) -> Result<usize, NotKept> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let files = match fs::read_dir(folder) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let mut adopted = 0;
        for file in files {
            let path = file?.path();
            let is_ours = path == self.path || path.extension().is_none_or(|extension| extension != "jsonl");
            if is_ours {
                continue;
            }
            for entry in read(&path)? {
                self.keep(entry)?;
                adopted += 1;
            }
            fs::remove_file(&path)?;
        }
        Ok(adopted)
    }

    /// Keeps an entry, in the place of an earlier one of its session.
    ///
    /// # Errors
    ///
    /// It is not kept: the session must not go on, or is tried to be settled at once.
    pub fn keep(&self, entry: Debt) -> Result<(), NotKept> {
        let mut state = self.state();
        let key = key_of(entry.name());
        // Its meter may be a moment behind its end.
        if entry.end.is_none() && state.entries.get(&key).is_some_and(|earlier| earlier.end.is_some()) {
            return Ok(());
        }
        if state.entries.len() >= MOST && !state.entries.contains_key(&key) {
            return Err(NotKept::Full);
        }
        state.append(&self.path, &Line::Owed(Box::new(entry.clone())))?;
        state.entries.insert(key, entry);
        state.tidy(&self.path);
        self.count.send_replace(state.entries.len());
        Ok(())
    }

    /// The entry was committed, or cannot be. Whether it was owed until now; another one of its session stays.
    pub fn forget(&self, entry: &Debt) -> bool {
        let mut state = self.state();
        let key = key_of(entry.name());
        if state.entries.get(&key) != Some(entry) {
            return false;
        }
        state.remove(&self.path, key);
        self.count.send_replace(state.entries.len());
        true
    }

    /// Whether this very entry is owed: no later one of its session has taken its place.
    #[must_use]
    pub fn owes(&self, entry: &Debt) -> bool {
        self.state().entries.get(&key_of(entry.name())) == Some(entry)
    }

    /// The session was settled without any of this.
    pub fn settled(&self, name: SessionName<'_>) {
        // Nearly always nothing is owed at all.
        if self.is_empty() {
            return;
        }
        let mut state = self.state();
        let key = key_of(name);
        if state.entries.contains_key(&key) {
            state.remove(&self.path, key);
            self.count.send_replace(state.entries.len());
        }
    }

    #[must_use]
    pub fn contains(&self, name: SessionName<'_>) -> bool {
        !self.is_empty() && self.state().entries.contains_key(&key_of(name))
    }

    #[must_use]
    pub fn entries(&self) -> Vec<Debt> {
        self.state().entries.values().cloned().collect()
    }

    /// What an account's sessions on credit come to so far.
    #[must_use]
    pub fn on_credit(&self, account: &AccountId) -> Micros {
        let state = self.state();
        let theirs = state.entries.values().filter(|entry| entry.account == *account);
        theirs.fold(Micros::ZERO, |sum, entry| sum.checked_add(entry.on_credit()).unwrap_or(Micros::MAX))
    }

    /// The same of all accounts.
    #[must_use]
    pub fn all_on_credit(&self) -> Micros {
        if self.is_empty() {
            return Micros::ZERO;
        }
        let all = self.state().entries.values().map(Debt::on_credit).collect::<Vec<_>>();
        all.into_iter().fold(Micros::ZERO, |sum, debt| sum.checked_add(debt).unwrap_or(Micros::MAX))
    }

    /// Sessions of which something is owed.
    #[must_use]
    pub fn len(&self) -> usize {
        *self.count.borrow()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until something is owed.
    pub async fn is_owing(&self) {
        // The sender is here, so that it cannot be gone.
        let _ = self.count.subscribe().wait_for(|count| *count > 0).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// One write, so that a kill leaves whole lines and at most one that was cut short, the last.
    fn append(&mut self, path: &Path, line: &Line) -> io::Result<()> {
        let mut text = if self.is_torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open(path)?),
        };
        self.is_torn = true;
        file.write_all(&text)?;
        self.is_torn = false;
        self.lines += 1;
        Ok(())
    }

    /// A line that could not be written is found out when the entry is committed once more, which changes nothing.
    fn remove(&mut self, path: &Path, key: Key) {
        self.entries.remove(&key);
        let (account, session, hold) = key;
        if let Err(error) = self.append(path, &Line::Paid(account, session, hold)) {
            tracing::warn!(%error, "it is not noted that a session is settled");
        }
        self.tidy(path);
    }

    fn tidy(&mut self, path: &Path) {
        let tidied = match &self.file {
            Some(file) if self.entries.is_empty() => {
                file.set_len(0).map(|()| (self.lines, self.is_torn) = (0, false))
            }
            Some(_) if self.lines > 2 * self.entries.len() + SLACK => self.rewrite(path),
            Some(_) | None => return,
        };
        if let Err(error) = tidied {
            tracing::warn!(%error, "the file of what is owed cannot be written anew");
        }
    }

    /// Whole or not at all: the old file is there until the new one is.
    fn rewrite(&mut self, path: &Path) -> io::Result<()> {
        let draft = path.with_extension("draft");
        let mut text = Vec::new();
        for entry in self.entries.values() {
            serde_json::to_writer(&mut text, &Line::Owed(Box::new(entry.clone())))?;
            text.push(b'\n');
        }
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // What was opened under the old name is written on under the new one: behind the renaming nothing may fail.
        let mut file = open(&draft)?;
        file.write_all(&text)?;
        fs::rename(&draft, path)?;
        self.file = Some(file);
        (self.lines, self.is_torn) = (self.entries.len(), false);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// What the file of a gateway that ended says is owed.
fn read(path: &Path) -> io::Result<Vec<Debt>> {
    let mut entries = BTreeMap::new();
    for line in fs::read_to_string(path)?.lines() {
        match serde_json::from_str(line) {
            Ok(Line::Owed(entry)) => drop(entries.insert(key_of(entry.name()), *entry)),
            Ok(Line::Paid(account, session, hold)) => drop(entries.remove(&(account, session, hold))),
            // The last one of a gateway that was killed, or whose disk was full.
            Err(error) => tracing::warn!(%error, file = %path.display(), "a line is none"),
        }
    }
    Ok(entries.into_values().collect())
}
