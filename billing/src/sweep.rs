//! Gateways that died: noticed by the others on their store, and what they left open is settled once, by whoever comes
//! first.
//!
//! A gateway that lives beats every few seconds: it adds one to a number that the others look at. Whose number has not
//! changed in several looks is dead. That takes nobody's clock at its word: only the looker's own pauses between two
//! looks count, and only looks that succeeded, so that a store which was away makes nobody dead.
//!
//! A gateway that was taken for dead and is not (its machine stood still, or it alone could not reach the store) finds
//! its sessions settled, and ends them when it next asks for a minute. No minute of theirs is billed twice: a session is
//! settled once, and from then on the ledger refuses all else.

use std::collections::{BTreeMap, BTreeSet};

use crate::books::{Billing, Error};
use crate::id::GatewayId;
use crate::session::Session;
use crate::time::Timestamp;

/// Looks in a row that find the same number. With a beat and a look every 5 s each, a gateway is taken for dead 15 to
/// 20 s after its last beat, and only after at least two beats of its own failed.
const QUIET_LOOKS: u32 = 3;

/// After so many looks (an hour) a dead gateway is forgotten, too. Not sooner: one that comes back must not count from
/// the start and meet a number that somebody remembers.
const FORGET_LOOKS: u32 = 720;

/// Looks after the other gateways of one store.
#[derive(Debug)]
pub struct Sweeper {
    me: GatewayId,
    others: BTreeMap<GatewayId, Watched>,
}

/// A gateway as it was last seen.
#[derive(Debug)]
struct Watched {
    /// `None`: it has never beaten, or was forgotten.
    beats: Option<u64>,
    /// Looks since, that found the same.
    quiet: u32,
}

impl Sweeper {
    /// For the gateway `me`, which does not look after itself.
    pub fn new(me: GatewayId) -> Sweeper {
        Sweeper { me, others: BTreeMap::new() }
    }

    /// Looks once, and settles what dead gateways had open: those that had begun up to the last beat, those that had not
    /// are voided. Gives the final records of what was settled here. To be called every 5 s, and never sooner after the
    /// last time.
    ///
    /// # Errors
    /// The store's. What was settled stays settled; the looks count from the start again.
    pub async fn look(&mut self, billing: &Billing, now: Timestamp) -> Result<Vec<Session>, Error> {
        let looked = self.try_look(billing, now).await;
        if looked.is_err() {
            self.others.clear();
        }
        looked
    }

    async fn try_look(&mut self, billing: &Billing, now: Timestamp) -> Result<Vec<Session>, Error> {
        let beats = billing.beats().await?;
        let serving: BTreeSet<_> = billing.serving().await?.into_iter().collect();
        let mut known: BTreeSet<_> = serving.iter().chain(beats.keys()).cloned().collect();
        known.remove(&self.me);
        self.others.retain(|gateway, _| known.contains(gateway));
        let mut settled = Vec::new();
        for gateway in known {
            let quiet = self.quiet_looks(&gateway, beats.get(&gateway).copied());
            if quiet >= QUIET_LOOKS && serving.contains(&gateway) {
                settled.extend(billing.settle_dead(&gateway, &self.me, now).await?);
            } else if quiet >= FORGET_LOOKS {
                billing.forget(&gateway).await?;
            }
        }
        Ok(settled)
    }

    /// Notes what was seen of a gateway; for how many looks that has not changed.
    fn quiet_looks(&mut self, gateway: &GatewayId, beats: Option<u64>) -> u32 {
        match self.others.get_mut(gateway) {
            Some(watched) if watched.beats == beats => {
                watched.quiet += 1;
                watched.quiet
            }
            Some(_) | None => {
                self.others.insert(gateway.clone(), Watched { beats, quiet: 0 });
                0
            }
        }
    }
}
