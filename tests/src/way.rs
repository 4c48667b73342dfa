use std::path::Path;

use anyhow::Result;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Redis;

/// How much is passed on at a time.
const BUFFER: usize = 16 * 1024;

/// A way to a Redis that can be held up or cut for whoever takes it, while the server goes on for others.
#[derive(Debug)]
pub struct Way {
    directory: TempDir,
    is_open: watch::Sender<bool>,
    /// Whether questions are passed on.
    passes: watch::Sender<bool>,
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
        let passes = watch::Sender::new(true);
        let task = tokio::spawn(serve(listener, redis.socket(), is_open.subscribe(), passes.subscribe()));
        Ok(Self { directory, is_open, passes, task })
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

    /// Has what is asked from here on wait on its way.
    pub fn hold_up(&self) {
        self.passes.send_replace(false);
    }

    /// Passes it on.
    pub fn let_pass(&self) {
        self.passes.send_replace(true);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: UnixListener,
    redis: impl AsRef<Path>,
    is_open: watch::Receiver<bool>,
    passes: watch::Receiver<bool>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (mut is_open, passes) = (is_open.clone(), passes.clone());
        if !*is_open.borrow_and_update() {
            continue;
        }
        // One that is gone is told by the end of the connection.
        let Ok(server) = UnixStream::connect(redis.as_ref()).await else { continue };
        tokio::spawn(async move {
            let (questions, mut to_client) = client.into_split();
            let (mut answers, to_server) = server.into_split();
            tokio::select! {
                biased;
                // Also where it was mended since; what was held up is gone by then.
                _ = is_open.changed() => {}
                _ = pass(questions, to_server, passes) => {}
                _ = copy(&mut answers, &mut to_client) => {}
            }
        });
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut passes: watch::Receiver<bool>,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        passes.wait_for(|passes| *passes).await?;
        to.write_all(&buffer[..count]).await?;
    }
}
