//! Hold → browser: one that is warm, or one that is started while the client waits.

use std::sync::Arc;

use billing::{HoldError, Reserved};
use pool::{Lease, Share, Unavailable};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::hold::{NotHeld, confirm, not_held};
use crate::host::Site;
use crate::refusal::Refusal;
use crate::serve::Gateway;
use crate::settle;

/// An account with at most this many sessions at a time may take the last warm browsers. A script that connects anew while
/// its last session is being settled has two.
const SMALL_SHARE: u32 = 2;

/// Gets a browser for what is held. A hold that gets none is voided here, before the refusal is answered.
///
/// What has to wait is confirmed first: others are to see that its price is set aside.
///
/// Dropping the future (the client hung up) while no browser is there gives the place in the queue up and voids the hold.
///
/// # Errors
///
/// [`Refusal::NoBrowser`]; or another process has changed the account since, so that it may not start one after all.
pub async fn claim(
    gateway: &Arc<Gateway>,
    reserved: Reserved,
    site: &Site<'_>,
) -> Result<(Lease, Reserved), NotHeld> {
    let share = if reserved.concurrent <= SMALL_SHARE { Share::Small } else { Share::Large };
    if let Some(lease) = gateway.pool.try_claim(share) {
        return Ok((lease, reserved));
    }
    // Boxed, like all that is off the path: a session that finds a browser has no room for it.
    Box::pin(async {
        wait(Arc::clone(gateway), reserved, share).await.map_err(|unmet| match unmet {
            Unmet::NotHeld(error) => not_held(error, site),
            Unmet::Refused(refusal) => refusal.into(),
        })
    })
    .await
}

/// Why one who waited has no browser.
enum Unmet {
    NotHeld(HoldError),
    Refused(Refusal),
}

/// The waiting is a task of its own, so that the hold is voided whether or not the client stays to hear of it.
async fn wait(gateway: Arc<Gateway>, held: Reserved, share: Share) -> Result<(Lease, Reserved), Unmet> {
    let (mut reply, answer) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(error) = confirm(&gateway, &held).await {
            return drop(reply.send(Err(Unmet::NotHeld(error))));
        }
        let held = held.confirmed();
        let waits = gateway.sessions.wait(&held.session.account, &held.session.id);
        let deadline = Instant::now() + gateway.start_timeout;
        let claimed = tokio::select! {
            claimed = gateway.pool.claim(held.session.account.as_str(), share, deadline) => claimed.map_err(refusal),
            () = reply.closed() => return settle::void(&gateway, &held, "client left the queue").await,
        };
        drop(waits);
        match claimed {
            Ok(lease) => {
                if let Err(Ok((lease, held))) = reply.send(Ok((lease, held))) {
                    lease.release();
                    settle::void(&gateway, &held, "client left the queue").await;
                }
            }
            Err(refusal) => {
                settle::void(&gateway, &held, "no browser").await;
                // The client may have left while the hold was voided.
                let _ = reply.send(Err(Unmet::Refused(refusal)));
            }
        }
    });
    answer.await.unwrap_or(Err(Unmet::Refused(Refusal::Draining)))
}

fn refusal(unavailable: Unavailable) -> Refusal {
    tracing::warn!(%unavailable, "a session found no browser");
    match unavailable {
        Unavailable::TimedOut { retry_after }
        | Unavailable::QueueFull { retry_after }
        | Unavailable::Failing { retry_after } => Refusal::NoBrowser { retry_after },
        Unavailable::Closed => Refusal::Draining,
    }
}
