//! What the gateways themselves saw: kept apart from the store, and by nobody who can be killed.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{AccountId, GatewayId, HoldId, SessionId};
use crate::money::Micros;
use crate::session::Session;
use crate::time::Timestamp;

/// What a gateway was answered when it asked for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// It is held: this hold of its id.
    Held(HoldId),
    /// Nothing was changed.
    Nothing,
    /// Nobody knows.
    Unknown,
}

/// One session as its gateway saw it, by the gateway's clock.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) account: AccountId,
    pub(super) session: SessionId,
    pub(super) gateway: GatewayId,
    pub(super) hold: Hold,
    pub(super) begun_at: Option<Timestamp>,
    /// The same by the true time.
    pub(super) begun: Option<Timestamp>,
    /// Whether the store has answered that it began.
    pub(super) is_noted: bool,
    /// Minutes that were asked for, in all.
    pub(super) asked: u32,
    /// Minutes that the store has answered to be set aside, in all.
    pub(super) paid: u32,
    pub(super) ended_at: Option<Timestamp>,
    pub(super) is_lost: bool,
    /// Whether it began without a word to the store.
    pub(super) is_on_credit: bool,
    /// What was kept on disk last: the moment, and the minutes that had started.
    pub(super) kept: Option<(Timestamp, u32)>,
    /// The final record as it was answered.
    pub(super) settled: Option<Session>,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) seen: Vec<Seen>,
    /// When heartbeats were answered, by the true time, and what each said.
    pub(super) beats: BTreeMap<GatewayId, Vec<(Timestamp, Timestamp)>>,
    /// By command, so that each counts once.
    pub(super) credits: BTreeMap<(AccountId, usize), Micros>,
    /// Errands that the operators have not done yet.
    pub(super) errands: BTreeSet<usize>,
    /// The names of parcels that were carried.
    pub(super) delivered: BTreeSet<String>,
}

impl Book {
    /// A session is asked for.
    pub(super) fn ask(&mut self, account: &AccountId, session: &SessionId, gateway: &GatewayId) -> usize {
        self.seen.push(Seen {
            account: account.clone(),
            session: session.clone(),
            gateway: gateway.clone(),
            hold: Hold::Unknown,
            begun_at: None,
            begun: None,
            is_noted: false,
            asked: 0,
            paid: 0,
            ended_at: None,
            is_lost: false,
            is_on_credit: false,
            kept: None,
            settled: None,
        });
        self.seen.len() - 1
    }

    /// A session that was owed is settled.
    pub(super) fn settle(&mut self, account: &AccountId, record: Session) {
        let hold = Hold::Held(record.hold);
        let is_it =
            |seen: &&mut Seen| (&seen.account, &seen.session, &seen.hold) == (account, &record.id, &hold);
        if let Some(seen) = self.seen.iter_mut().find(is_it) {
            seen.settled = Some(record);
        }
    }

    /// The last heartbeat of a gateway that had been answered at `now`, as it was sent.
    pub(super) fn last_beat(&self, gateway: &GatewayId, now: Timestamp) -> Option<Timestamp> {
        let beats = self.beats.get(gateway).into_iter().flatten();
        beats.filter(|(answered, _)| *answered <= now).map(|(_, said)| *said).max()
    }
}
