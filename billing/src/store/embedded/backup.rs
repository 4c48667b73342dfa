//! A copy of the file, made while others read and write.

use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::Embedded;
use crate::store::StoreError;

impl Embedded {
    /// Writes what is committed at this moment into a new file, whole, without what was deleted. Nobody waits for it.
    pub(crate) async fn copy_to(&self, file: &Path) -> Result<(), StoreError> {
        self.catch_up().await?;
        let (from, to) = (self.path.clone(), file.to_owned());
        let copying = tokio::task::spawn_blocking(move || copy(&from, &to));
        copying.await.map_err(|panic| StoreError::Database(Box::new(panic)))?
    }
}

fn copy(from: &Path, to: &PathBuf) -> Result<(), StoreError> {
    if fs::exists(to).map_err(StoreError::File)? {
        return Err(StoreError::File(Error::from(ErrorKind::AlreadyExists)));
    }
    // A connection of its own: readers have one, which they would wait for.
    let connection = Connection::open(from)?;
    connection.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
    File::open(to).and_then(|file| file.sync_all()).map_err(StoreError::File)
}
