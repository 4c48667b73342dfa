//! Whether the ledger's store can be reached. While it cannot, new sessions are refused, running ones go on and what they
//! come to is [kept](crate::owed); when it is back, that is committed.

use std::sync::Arc;
use std::time::Duration;

use billing::{Billing, Debt, Error, StoreError};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::owed::Owed;
use crate::serve::Gateway;
use crate::sessions::Sessions;
use crate::settle;

/// How often a store that answered is asked for a sign of life, so that it is known to be away before a client comes.
const LOOK: Duration = Duration::from_secs(2);
/// How often one that is away is asked again.
const RETRY: Duration = Duration::from_millis(250);
/// Entries that are committed side by side; those of one account become one commit.
const AT_A_TIME: usize = 64;

/// What this gateway knows of its store.
#[derive(Debug)]
pub struct Outage {
    /// Since when it has not answered.
    since: watch::Sender<Option<Instant>>,
}

impl Outage {
    #[must_use]
    pub fn new() -> Self {
        Self { since: watch::Sender::new(None) }
    }

    #[must_use]
    pub fn is_away(&self) -> bool {
        self.since.borrow().is_some()
    }

    /// How long it has been away.
    #[must_use]
    pub fn lasts(&self) -> Option<Duration> {
        self.since.borrow().map(|since| since.elapsed())
    }

    /// Somebody asked it, and this came of it. What a store says no to, it has answered.
    pub fn note(&self, error: &StoreError) {
        if matches!(error, StoreError::Away(_) | StoreError::Unanswered(_)) {
            self.begin(error);
        }
    }

    fn begin(&self, error: &StoreError) {
        let has_begun = self.since.send_if_modified(|since| {
            let is_new = since.is_none();
            since.get_or_insert_with(Instant::now);
            is_new
        });
        if has_begun {
            warn!(%error, "the ledger is away: new sessions are refused, running ones go on");
        }
    }

    fn end(&self) {
        if let Some(since) = self.since.send_replace(None) {
            info!(after = ?since.elapsed(), "the ledger is back");
        }
    }

    /// As if it could not be reached from here on, or could again.
    #[cfg(test)]
    pub(crate) fn pretend(&self, away: bool) {
        if away { self.begin(&StoreError::Busy) } else { self.end() }
    }
}

impl Default for Outage {
    fn default() -> Self {
        Self::new()
    }
}

/// Asks a store behind a network for signs of life, for ever.
pub async fn watch(gateway: Arc<Gateway>) {
    let outage = &gateway.outage;
    if !gateway.billing.is_shared() {
        return;
    }
    let mut since = outage.since.subscribe();
    loop {
        match gateway.billing.probe().await {
            Ok(()) => outage.end(),
            // Whatever it says, nothing can be committed.
            Err(error) => outage.begin(&error),
        }
        if outage.is_away() {
            sleep(RETRY).await;
        } else {
            since.mark_unchanged();
            tokio::select! {
                () = sleep(LOOK) => {}
                _ = since.changed() => {}
            }
        }
    }
}

/// Commits what is owed whenever the ledger can be reached, for ever.
pub async fn repay(gateway: Arc<Gateway>) {
    let mut since = gateway.outage.since.subscribe();
    loop {
        gateway.owed.is_owing().await;
        if since.wait_for(Option::is_none).await.is_err() {
            return;
        }
        if let Err(error) =
            repay_all(&gateway.owed, &gateway.billing, &gateway.clock, &gateway.sessions).await
        {
            gateway.outage.note(&error);
            warn!(%error, owed = gateway.owed.len(), "what sessions came to could not be committed yet");
            sleep(LOOK).await;
        }
        // What has just been kept again is no reason to hurry.
        sleep(RETRY).await;
    }
}

/// Commits all that is owed at this moment, each entry once.
///
/// # Errors
///
/// The store's; what was not committed is owed still.
pub async fn repay_all(
    owed: &Owed,
    billing: &Billing,
    clock: &Clock,
    sessions: &Sessions,
) -> Result<(), StoreError> {
    for entries in owed.entries().chunks(AT_A_TIME) {
        let paid = join_all(entries.iter().map(|entry| pay(owed, billing, clock, sessions, entry))).await;
        paid.into_iter().collect::<Result<(), StoreError>>()?;
    }
    Ok(())
}

/// Commits one entry. All of its commands are repeats where they were carried out before.
async fn pay(
    owed: &Owed,
    billing: &Billing,
    clock: &Clock,
    sessions: &Sessions,
    entry: &Debt,
) -> Result<(), StoreError> {
    let now = clock.now();
    let is_noted = billing.repay(entry, now).await?;
    if entry.end.is_none() && sessions.contains(entry.name()) {
        // It runs; where the ledger does not have it open, its next date will show.
        let live = sessions.find(&entry.account, &entry.session).filter(|live| live.hold == entry.hold);
        if let Some(live) = live.filter(|_| is_noted) {
            live.note_repaid();
        }
        if owed.forget(entry) && is_noted {
            info!(session = %entry.session, minutes = entry.minutes, "minutes that the ledger was away for are committed");
        }
        return Ok(());
    }
    if !owed.owes(entry) {
        // It ended since this was looked at: how, is kept or settled already.
        return Ok(());
    }
    let end = entry.end(settle::causes());
    match billing.post(entry.name(), end.clone(), now).await {
        Ok(record) => {
            if owed.forget(entry) {
                settle::report(&record, &end.outcome);
            }
        }
        Err(Error::Store(error)) => return Err(error),
        // Settled by another gateway that had taken this one for dead, or forgotten by the store.
        Err(error) => {
            owed.forget(entry);
            metrics::counter!("ufb_gateway_owed_dropped_total").increment(1);
            warn!(%error, session = %entry.session, account = %entry.account, minutes = entry.minutes, "what a session came to while the ledger was away is not billed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use billing::{Micros, NewSession, Outcome, Reserved, SessionRequest, State};

    use super::*;
    use crate::sessions::Live;

    #[tokio::test]
    async fn what_the_ledger_was_told_of_is_on_credit_no_more() {
        let (gateway, _folder) = Gateway::for_tests().await;
        let Gateway { billing, owed, clock, sessions, id, .. } = &*gateway;
        let who = gateway.customer_for_tests().await;
        let fresh = || NewSession::fresh(SessionRequest::default());
        let terms = billing.hold(&who, fresh(), id, clock.now()).await.unwrap().session.terms;
        let given = Reserved::unsecured(&who, &fresh(), terms, id, clock.now()).unwrap();
        let live = Arc::new(Live::held_for_tests(given, clock.now()));
        let _attached = sessions.begin(Arc::clone(&live), [127, 0, 0, 1].into());
        owed.keep(live.debt(0)).unwrap();
        assert!(live.is_unsecured() && owed.on_credit(&who.account) == terms.session_price);

        repay_all(owed, billing, clock, sessions).await.unwrap();
        // The ledger is away once more.
        owed.keep(live.debt(2)).unwrap();
        assert!(!live.is_unsecured() && owed.on_credit(&who.account) == Micros::ZERO);
        repay_all(owed, billing, clock, sessions).await.unwrap();
        assert!(owed.is_empty());
    }

    #[tokio::test]
    async fn how_a_session_ended_counts_and_not_that_it_had_run_before() {
        let (gateway, _folder) = Gateway::for_tests().await;
        let Gateway { billing, owed, clock, sessions, id, .. } = &*gateway;
        let who = gateway.customer_for_tests().await;
        let now = clock.now();
        let new = NewSession::fresh(SessionRequest::default());
        let held = billing.hold(&who, new, id, now).await.unwrap().session;
        let ran = Debt {
            account: who.account.clone(),
            session: held.id.clone(),
            hold: held.hold,
            begun_at: now,
            minutes: 1,
            at: now,
            up_bytes: 0,
            down_bytes: 0,
            end: None,
            credit: None,
        };
        let lost = Outcome::Lost { cause: crate::refusal::Close::Lost.cause() };
        owed.keep(ran.clone()).unwrap();
        owed.keep(Debt { end: Some(lost.into()), ..ran.clone() }).unwrap();

        // Somebody had looked at what is owed before it ended.
        pay(owed, billing, clock, sessions, &ran).await.unwrap();
        assert_eq!(billing.session(&who.account, &held.id).await.unwrap().unwrap().state, State::Open);
        repay_all(owed, billing, clock, sessions).await.unwrap();
        assert!(billing.session(&who.account, &held.id).await.unwrap().unwrap().refunded);
        assert!(owed.is_empty());
    }
}
