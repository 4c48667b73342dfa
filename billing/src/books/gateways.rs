//! Gateways: that they live, and what those that died have left open.

use std::collections::BTreeMap;
use std::slice;
use std::sync::Arc;

use futures_util::future::try_join_all;

use super::{Applied, Billing, Error, Order, session_of};
use crate::id::GatewayId;
use crate::ledger::{self, Answer};
use crate::session::Session;
use crate::store::{Durability, StoreError};
use crate::time::Timestamp;

/// Sessions of a dead gateway that are settled side by side; those of one account are committed together.
const SETTLED_AT_A_TIME: usize = 64;

impl Billing {
    /// Notes that the gateway lives. What it leaves behind is billed up to its last note.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn heartbeat(&self, gateway: &GatewayId, now: Timestamp) -> Result<(), StoreError> {
        self.store().heartbeat(gateway, now).await
    }

    /// Settles every session that is held or open by a gateway other than `me`, and answers their final records. What those
    /// gateways had noted is forgotten.
    /// The caller has made sure that none of those gateways runs: one server has a store of this kind.
    ///
    /// # Errors
    /// The store's. What was settled before stays settled, and a repeat goes on from there.
    pub async fn settle_abandoned(&self, me: &GatewayId, now: Timestamp) -> Result<Vec<Session>, Error> {
        self.recover().await?;
        let mut settled = Vec::new();
        for session in self.open_sessions().await? {
            if session.gateway != *me {
                let last_seen = self.store().last_seen(&session.gateway).await?;
                settled.extend(self.expire(&session, last_seen, me, now).await?);
            }
        }
        for gateway in self.beats().await?.into_keys().filter(|gateway| gateway != me) {
            self.forget(&gateway).await?;
        }
        Ok(settled)
    }

    /// Settles what one gateway that runs no more has open; others may be at it, too.
    pub(crate) async fn settle_dead(
        &self,
        gateway: &GatewayId,
        me: &GatewayId,
        now: Timestamp,
    ) -> Result<Vec<Session>, Error> {
        let last_seen = self.store().last_seen(gateway).await?;
        let open = self.store().open_sessions_of(gateway).await?;
        let mut settled = Vec::new();
        for some in open.chunks(SETTLED_AT_A_TIME) {
            let expiries = some.iter().map(|session| self.expire(session, last_seen, me, now));
            settled.extend(try_join_all(expiries).await?.into_iter().flatten());
        }
        Ok(settled)
    }

    /// `None`: it was settled by somebody else meanwhile.
    async fn expire(
        &self,
        session: &Session,
        last_seen: Option<Timestamp>,
        me: &GatewayId,
        now: Timestamp,
    ) -> Result<Option<Session>, Error> {
        let Session { account, id, hold, .. } = session;
        let order = Order { account, sessions: slice::from_ref(id), durability: Durability::Disk, now };
        let expired = self.apply(order, |account, session, given| match session {
            // An id that was voided may have been held anew, by a gateway that lives.
            Some(session) if session.state.is_open() && session.hold == *hold => {
                ledger::expire(account, session, last_seen, me, given).map_err(Error::Refused)
            }
            Some(_) | None => Ok(Answer::Exists),
        });
        Ok(match expired.await?.ok_or(Error::NoAccount)? {
            Applied::Changed(change) => Some(session_of(Arc::unwrap_or_clone(change))),
            Applied::Exists => None,
        })
    }

    /// How often each gateway has noted that it lives.
    pub(crate) async fn beats(&self) -> Result<BTreeMap<GatewayId, u64>, StoreError> {
        self.store().beats().await
    }

    /// The gateways that have sessions held or open.
    pub(crate) async fn serving(&self) -> Result<Vec<GatewayId>, StoreError> {
        self.store().serving().await
    }

    /// Drops what a gateway has noted; it can come back.
    pub(crate) async fn forget(&self, gateway: &GatewayId) -> Result<(), StoreError> {
        self.store().forget(gateway).await
    }

    /// The sessions that a gateway has held or open.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open_sessions_of(&self, gateway: &GatewayId) -> Result<Vec<Session>, StoreError> {
        self.store().open_sessions_of(gateway).await
    }
}
