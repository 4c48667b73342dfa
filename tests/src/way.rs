use std::path::Path;

use anyhow::Result;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Redis;

/// A way to a Redis that can be cut for whoever takes it, while the server goes on for others.
#[derive(Debug)]
pub struct Way {
    directory: TempDir,
    is_open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Way {
    /// # Errors
    ///
    /// No socket could be made.
    pub fn to(redis: &Redis) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = UnixListener::bind(directory.path().join("way.sock"))?;
        let is_open = watch::Sender::new(true);
        let task = tokio::spawn(serve(listener, redis.socket(), is_open.subscribe()));
        Ok(Self { directory, is_open, task })
    }

    /// For `store.url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+unix:{}", self.directory.path().join("way.sock").display())
    }

    /// Ends what is connected, and whatever connects from here on.
    pub fn cut(&self) {
        self.is_open.send_replace(false);
    }

    pub fn mend(&self) {
        self.is_open.send_replace(true);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: UnixListener, redis: impl AsRef<Path>, is_open: watch::Receiver<bool>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut is_open = is_open.clone();
        if !*is_open.borrow() {
            continue;
        }
        // One that is gone is told by the end of the connection.
        let Ok(mut server) = UnixStream::connect(redis.as_ref()).await else { continue };
        tokio::spawn(async move {
            tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => {}
                _ = is_open.wait_for(|open| !open) => {}
            }
        });
    }
}
