//! A copy of a store that is a file, made while gateways run, and proved.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::audit::Fault;
use crate::books::{Billing, Error};
use crate::id::AccountId;
use crate::store::{Store, StoreError, StoreUrl};

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store is no file: whoever runs it makes its backups.
    #[error("the store is no file")]
    NoFile,
    /// The backup cannot be written, or there is one.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A log in the copy is not intact.
    #[error("{account}: {fault}")]
    Fault {
        /// Whose.
        account: AccountId,
        /// How.
        fault: Fault,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Billing {
    /// Copies everything that is committed into a new file, replays every account's log there, and then gives it its name.
    /// The number of accounts. Gateways may be at work meanwhile; waits for the disk.
    ///
    /// # Errors
    /// There is no such file then.
    pub async fn back_up(&self, file: &Path) -> Result<u64, BackupError> {
        let Store::Embedded(store) = self.store() else { return Err(BackupError::NoFile) };
        let failed = |source| BackupError::File { path: file.to_owned(), source };
        if fs::exists(file).map_err(failed)? {
            return Err(failed(io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::metadata(folder).map_err(failed)?;
        let mut unfinished = file.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        remove(&unfinished).map_err(failed)?;
        store.copy_to(&unfinished).await?;
        let accounts = self.prove_copy(&unfinished).await?;
        // Does not replace anything, as a renaming would.
        fs::hard_link(&unfinished, file).and_then(|()| remove(&unfinished)).map_err(failed)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(accounts)
    }

    async fn prove_copy(&self, file: &Path) -> Result<u64, BackupError> {
        let copy = self.same_with(&StoreUrl::Sqlite(file.to_owned()))?;
        let mut proved = 0;
        for account in copy.accounts().await? {
            match copy.verify(&account.id).await {
                Ok(_) => proved += 1,
                Err(Error::Fault(fault)) => return Err(BackupError::Fault { account: account.id, fault }),
                Err(Error::Store(error)) => return Err(error.into()),
                // It was just listed, and nobody else has the copy.
                Err(_) => return Err(BackupError::Store(StoreError::Busy)),
            }
        }
        Ok(proved)
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
