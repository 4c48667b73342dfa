//! A restart that refuses nobody: a new process takes over the doors of the one that runs.
//!
//! A gateway listens on a Unix socket in its data directory. A new one that was told to asks there, and is handed the
//! listening sockets and the directory's lock. It opens the store, warms browsers of its own, and says when it serves;
//! until then nothing has changed for the old one. Then the old one accepts no more, answers who came in before, and
//! drains. What nobody had accepted waits in the sockets' queues, which both processes have. When the
//! connection between the two has ended, and the old process, the new one clears away what it may have left.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use billing::GatewayId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};
use rustix::process::{PidfdFlags, geteuid, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::serve::{Gateway, Tenure};

const SOCKET: &str = "gateway.sock";
/// The old process answers at once; it is busy for moments only.
const ANSWER: Duration = Duration::from_secs(10);
/// From the hand-over to the word that the new process serves: it opens the store and warms a browser.
const WARM: Duration = Duration::from_secs(120);
/// How often it is looked whether the old process has ended that has hung up. Nobody waits for it.
const LOOK: Duration = Duration::from_millis(50);
/// The lock and three doors.
const DESCRIPTORS: usize = 4;
/// More than the offer takes.
const OFFER_BYTES: usize = 4 * 1024;
/// What the new process says once it serves.
const SERVING: u8 = b'S';

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The data directory's.
    Lock,
    Http,
    Https,
    Admin,
}

/// What stands in the message that the descriptors come with.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    gateway: GatewayId,
    /// In the order of the descriptors.
    parts: Vec<Part>,
}

/// What is handed over.
#[derive(Debug)]
pub struct Heirlooms(Vec<(Part, OwnedFd)>);

impl Heirlooms {
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = (Part, OwnedFd)>) -> Self {
        Self(parts.into_iter().collect())
    }

    fn take(&mut self, part: Part) -> Option<OwnedFd> {
        let position = self.0.iter().position(|(own, _)| *own == part)?;
        Some(self.0.swap_remove(position).1)
    }

    fn send(&self, link: impl AsFd, gateway: &GatewayId) -> io::Result<()> {
        let offer = Offer { gateway: gateway.clone(), parts: self.0.iter().map(|(part, _)| *part).collect() };
        let offer = serde_json::to_vec(&offer)?;
        let descriptors: Vec<BorrowedFd<'_>> =
            self.0.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is room for all parts");
        let sent = sendmsg(link, &[IoSlice::new(&offer)], &mut control, SendFlags::NOSIGNAL)?;
        if sent == offer.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn receive(link: impl AsFd) -> Result<(Self, GatewayId)> {
        let mut bytes = [0; OFFER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(link, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let descriptors = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        });
        let descriptors: Vec<_> = descriptors.collect();
        ensure!(received.bytes > 0, "it hung up");
        let Offer { gateway, parts } = serde_json::from_slice(&bytes[..received.bytes])?;
        ensure!(parts.len() == descriptors.len(), "{} descriptors for {parts:?}", descriptors.len());
        Ok((Self(parts.into_iter().zip(descriptors).collect()), gateway))
    }
}

/// The side of the new process: what it was handed.
#[derive(Debug)]
pub struct Inheritance {
    heirlooms: Heirlooms,
    predecessor: GatewayId,
    /// None where the kernel does not tell of the old process.
    process: Option<OwnedFd>,
    asked: Instant,
    link: StdUnixStream,
}

/// Asks the gateway that runs on `data_dir` for its doors. `None`: none runs there. Waits, bounded, for its answer.
///
/// # Errors
///
/// It runs, and does not hand anything over.
pub fn ask(data_dir: &Path) -> Result<Option<Inheritance>> {
    let path = data_dir.join(SOCKET);
    let link = match StdUnixStream::connect(&path) {
        Ok(link) => link,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot connect to {}", path.display())),
    };
    link.set_read_timeout(Some(ANSWER))?;
    let asked = Instant::now();
    let process = sockopt::socket_peercred(&link).and_then(|peer| pidfd_open(peer.pid, PidfdFlags::empty()));
    let received = Heirlooms::receive(&link);
    let (heirlooms, predecessor) =
        received.context("the gateway that runs does not hand its doors over; its log says why")?;
    info!(%predecessor, "taking over");
    Ok(Some(Inheritance { heirlooms, predecessor, process: process.ok(), asked, link }))
}

impl Inheritance {
    #[must_use]
    pub fn predecessor(&self) -> &GatewayId {
        &self.predecessor
    }

    /// The data directory's lock, which both processes hold from here on.
    pub fn lock(&mut self) -> Result<fs::File> {
        let lock = self.heirlooms.take(Part::Lock).context("the lock was not handed over")?;
        Ok(lock.into())
    }

    /// A door that listens at the address that is wanted, if it was handed over. Port 0 wants any.
    pub fn door(&mut self, part: Part, wanted: SocketAddr) -> Option<TcpListener> {
        let listener = TcpListener::from(self.heirlooms.take(part)?);
        let address = listener.local_addr().ok()?;
        let fits = address.ip() == wanted.ip() && (wanted.port() == 0 || wanted.port() == address.port());
        fits.then_some(listener)
    }

    /// Whether the old process waits still for the word that this one serves. Later it goes on with its doors.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn is_in_time(&self) -> Result<()> {
        ensure!(
            self.asked.elapsed() < WARM,
            "this process took longer than {WARM:?} to come to serve, so the one that runs goes on; the log says what took so \
             long, and a shorter `session.start_timeout` may help"
        );
        Ok(())
    }

    /// Tells the old process that this one serves: it accepts no more.
    ///
    /// # Errors
    ///
    /// The reactor does not take the connection.
    pub fn serving(self) -> io::Result<Predecessor> {
        let Self { predecessor, mut link, process, .. } = self;
        // If it has ended meanwhile, that is as good, and is seen below.
        let _ = link.write_all(&[SERVING]);
        link.set_nonblocking(true)?;
        Ok(Predecessor { id: predecessor, link: UnixStream::from_std(link)?, process })
    }
}

/// The old process, as long as it drains.
#[derive(Debug)]
pub struct Predecessor {
    id: GatewayId,
    link: UnixStream,
    process: Option<OwnedFd>,
}

impl Predecessor {
    /// Waits for its end, which its own deadlines bound. The answer is its name.
    pub async fn gone(mut self) -> GatewayId {
        // It says nothing more, so whatever comes is its end.
        let _ = self.link.read(&mut [0]).await;
        // One that was tired of waiting hangs up as well, and has its browsers and sessions still.
        while self.process.as_ref().is_some_and(|process| !has_ended(process)) {
            sleep(LOOK).await;
        }
        self.id
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)).is_ok_and(|ended| ended > 0)
}

/// The side of the old process: the socket at which it is asked.
#[derive(Debug)]
pub struct Offering {
    listener: UnixListener,
}

impl Offering {
    /// Takes the socket's place from whoever had it, at once.
    ///
    /// # Errors
    ///
    /// The directory cannot be written.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join(SOCKET);
        let draft = data_dir.join(format!("{SOCKET}.{}", std::process::id()));
        // What a killed process with this number left.
        let _ = fs::remove_file(&draft);
        let listener =
            UnixListener::bind(&draft).with_context(|| format!("cannot listen on {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { listener })
    }

    /// Hands `heirlooms` over to the first who asks for them and then serves, and has the gateway leave its doors. Goes on
    /// until it is dropped, which ends the connection to the new process.
    pub async fn serve(self, gateway: Arc<Gateway>, heirlooms: Heirlooms) {
        let mut tenure = gateway.tenure();
        let link = loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                // A door that nobody accepts at must not stay open.
                _ = tenure.wait_for(|tenure| *tenure != Tenure::Ours) => return,
            };
            let handed_over = match accepted {
                Ok((link, _)) => hand_over(link, &gateway, &heirlooms).await,
                Err(error) => Err(error.into()),
            };
            match handed_over {
                Ok(link) => break link,
                Err(error) => warn!("the doors were not handed over: {error:#}"),
            }
        };
        drop(heirlooms);
        info!("another process has the doors");
        gateway.hand_over();
        // It sees the end of this process by the end of the link.
        std::future::pending::<()>().await;
        drop(link);
    }
}

async fn hand_over(mut link: UnixStream, gateway: &Gateway, heirlooms: &Heirlooms) -> Result<UnixStream> {
    let asks = link.peer_cred()?.uid();
    ensure!(asks == geteuid().as_raw(), "it was asked for by the user {asks}");
    if gateway.has_predecessor() {
        bail!(
            "this gateway is itself waiting for the end of the one before; try again when that has drained"
        );
    }
    heirlooms.send(&link, &gateway.id)?;
    let mut word = [0];
    let read =
        timeout(WARM, link.read(&mut word)).await.context("the new process did not come to serve in time")?;
    ensure!(read? == 1 && word[0] == SERVING, "the new process gave up");
    Ok(link)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::process::{Command, Stdio};

    use rustix::process::Pid;

    use super::*;

    #[tokio::test]
    async fn a_process_that_hung_up_and_lives_is_not_gone() {
        let mut old = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = pidfd_open(Pid::from_child(&old), PidfdFlags::empty()).unwrap();
        let (link, other) = UnixStream::pair().unwrap();
        drop(other);
        let process = Some(process);
        let predecessor = Predecessor { id: GatewayId::random(), link, process };
        let has_ended = Cell::new(false);
        tokio::join!(
            async {
                predecessor.gone().await;
                assert!(has_ended.get());
            },
            async {
                // Turns in which the end of the link is noticed.
                for _ in 0..1_000 {
                    tokio::task::yield_now().await;
                }
                has_ended.set(true);
                old.kill().unwrap();
                old.wait().unwrap();
            }
        );
    }
}
