//! What must be true when all is quiet, however it came about.

use std::collections::BTreeMap;

use super::book::{Book, Hold, Seen};
use super::scene::{MINUTE, MINUTE_PRICE, Opened, REFUNDS_PER_DAY, SESSION_MINUTES, SESSION_PRICE};
use crate::account::Account;
use crate::audit::{Actor, Entry, EntryKind};
use crate::books::Billing;
use crate::event::{Cursor, EventKind};
use crate::id::{AccountId, GatewayId, SessionId};
use crate::session::{Session, State};
use crate::store::LIST_MAX;
use crate::time::{Period, Timestamp};

/// What became of one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    /// What its clock showed beyond the true time, in milliseconds.
    pub(super) skew: i64,
    /// When it died, by that clock.
    pub(super) died: Option<Timestamp>,
}

type Fates = BTreeMap<GatewayId, Fate>;

/// One account with all that the store says of it.
struct Told {
    account: Account,
    log: Vec<Entry>,
    sessions: BTreeMap<SessionId, Session>,
    /// Kinds of events by session.
    events: Vec<(EventKind, Option<SessionId>)>,
}

/// Collects what is wrong, in words.
pub(super) async fn faults(billing: &Billing, book: &Book, fates: &Fates, opened: &[Opened]) -> Vec<String> {
    let mut faults = Vec::new();
    for open in opened {
        let id = &open.change.account.id;
        match billing.verify(id).await {
            Ok(verified) if verified.open == 0 => {}
            verdict => faults.push(format!("{id}: {verdict:?}")),
        }
        for month in [Period::calendar_month(open.change.account.created_at), last_month(open)] {
            let differences = billing.reconcile(id, month, &[]).await.expect("it answers").differences;
            if !differences.is_empty() {
                faults.push(format!("{id}, {month:?}: {differences:?}"));
            }
        }
        let told = Told::of(billing, id).await;
        told.check_money(book, open, &mut faults);
        told.check_log(&mut faults);
        for session in told.sessions.values() {
            let found = told.check_session(session, book, fates);
            faults.extend(found.err().map(|fault| format!("{id} {}: {fault}: {session:?}", session.id)));
        }
        for seen in book.seen.iter().filter(|seen| seen.account == *id) {
            let found = told.check_seen(seen);
            faults.extend(found.err().map(|fault| format!("{id} {}: {fault}: {seen:?}", seen.session)));
        }
    }
    faults
}

fn last_month(open: &Opened) -> Period {
    let month = Period::calendar_month(open.change.account.created_at);
    Period::calendar_month(month.end)
}

fn started(begun: Timestamp, ended: Timestamp) -> u64 {
    // One who counts on fingers: a minute has started when any of it has passed; the first has in any case.
    let lasted = ended.as_millis().saturating_sub(begun.as_millis());
    let mut started = 1;
    while started * MINUTE < lasted {
        started += 1;
    }
    started
}

impl Told {
    async fn of(billing: &Billing, id: &AccountId) -> Told {
        let account = billing.account(id).await.expect("it answers").expect("it is there");
        let (mut log, mut read) = (Vec::new(), 0);
        while read < account.head.seq {
            log.extend(billing.audit(id, read, LIST_MAX).await.expect("it answers"));
            read = log.last().map_or(u64::MAX, |entry: &Entry| entry.seq);
        }
        let sessions = billing.sessions(id, None, LIST_MAX).await.expect("it answers");
        let sessions = sessions.into_iter().map(|session| (session.id.clone(), session)).collect();
        let stream = billing.event_stream_of(id);
        let events = billing.events(stream, &Cursor::start(), LIST_MAX).await.expect("it answers");
        let own = events.into_iter().map(|(_, event)| event).filter(|event| event.customer == *id);
        Told { account, log, sessions, events: own.map(|event| (event.kind, event.session)).collect() }
    }

    /// What there was, and what came in, is what there is and what was charged.
    fn check_money(&self, book: &Book, open: &Opened, faults: &mut Vec<String>) {
        let (id, before) = (&self.account.id, &open.change.account);
        let mine = |(account, _): &(AccountId, usize)| account == id;
        let credits = book.credits.iter().filter(|(name, _)| mine(name));
        let credited: u64 = credits.map(|(_, micros)| micros.get()).sum();
        let sum = |figure: fn(&Session) -> u64| self.sessions.values().map(figure).sum::<u64>();
        let had = before.balance.get() + credited;
        let paid = sum(|session| session.funding.balance.get());
        let owed = sum(|session| session.funding.overage.get());
        let has = self.account.balance.get();
        let is_balanced = match open.renews {
            false => has + paid == had && self.account.overage.get() == owed,
            // What was billed with the period that is over may come back as balance.
            true => has + paid >= had && has + paid <= had + 60_000,
        };
        if !is_balanced {
            faults.push(format!("{id} had {had}, has {has}, paid {paid}, owes {owed}: {:?}", self.account));
        }
        if open.is_prepaid() && owed > 0 {
            faults.push(format!("{id} is prepaid, and owes {owed}"));
        }
        let included = sum(|session| session.funding.included.into());
        if !open.renews && u64::from(self.account.included) + included != u64::from(before.included) {
            faults.push(format!("{id} took {included} of the sessions included: {:?}", self.account));
        }
        let granted = sum(|session| session.refunded.into());
        let used = sum(|session| session.funding.retry.into());
        let days = 1 + u64::from(open.renews);
        if u64::from(self.account.retry) + used != granted || granted > u64::from(REFUNDS_PER_DAY) * days {
            faults.push(format!("{id} was granted {granted}, used {used}: {:?}", self.account));
        }
    }

    /// Each session is held, settled and told of once each time; an id that was voided is free again.
    fn check_log(&self, faults: &mut Vec<String>) {
        for (id, session) in &self.sessions {
            let of_session = self.log.iter().filter(|entry| entry.session.as_ref() == Some(id));
            let kinds: Vec<_> = of_session.map(|entry| entry.kind).collect();
            let count = |wanted: &[EntryKind]| kinds.iter().filter(|kind| wanted.contains(kind)).count();
            let posts = usize::from(session.state == State::Posted);
            let holds = count(&[EntryKind::Held]);
            let counts = (count(&[EntryKind::Posted, EntryKind::LostRefund]), count(&[EntryKind::Voided]));
            let told = |wanted: &[EventKind]| {
                let own = self.events.iter().filter(|(_, session)| session.as_ref() == Some(id));
                own.filter(|(kind, _)| wanted.contains(kind)).count()
            };
            let events = (
                told(&[EventKind::SessionStarted]),
                told(&[EventKind::SessionCompleted, EventKind::SessionLost]),
            );
            if holds == 0 || counts != (posts, holds - posts) || events != (posts, posts) {
                faults.push(format!("{id} was {kinds:?}, and told {events:?}: {session:?}"));
            }
        }
        let commands: Vec<_> = self.log.iter().filter_map(|entry| entry.command.as_ref()).collect();
        for command in &commands {
            if commands.iter().filter(|other| *other == command).count() > 1 {
                faults.push(format!("the command {command} was carried out twice"));
            }
        }
    }

    /// A final record, by what its own gateway saw.
    fn check_session(&self, session: &Session, book: &Book, fates: &Fates) -> Result<(), String> {
        let of_id = |seen: &&Seen| {
            (&seen.account, &seen.session, &seen.gateway) == (&session.account, &session.id, &session.gateway)
        };
        let seen: Vec<_> = book.seen.iter().filter(of_id).collect();
        let held: Vec<_> = seen.iter().filter(|seen| seen.hold == Hold::Held(session.hold)).collect();
        let voided_as = |causes: &[&str]| {
            let cause = session.cause.as_deref().unwrap_or_default();
            session.state == State::Voided && causes.contains(&cause)
        };
        match held[..] {
            // Nobody was told that it is held, so that nobody has served it.
            [] if seen.iter().all(|seen| seen.hold == Hold::Nothing) => {
                Err("it was answered that nothing was changed".to_owned())
            }
            [] if voided_as(&["gateway fault", "gateway lost"]) => Ok(()),
            [] => Err("nobody served it".to_owned()),
            [seen] if session.state == State::Posted => self.check_bill(session, seen, book, fates),
            [seen] if seen.is_noted => Err(format!("it had begun: {seen:?}")),
            [seen] if seen.begun_at.is_some() && !voided_as(&["gateway lost"]) => {
                Err(format!("its client had its browser: {seen:?}"))
            }
            [_] if voided_as(&["gateway fault", "gateway lost", "no browser"]) => Ok(()),
            [_] => Err("it is neither billed nor given up".to_owned()),
            _ => Err(format!("it was held {} times", held.len())),
        }
    }

    fn check_bill(&self, session: &Session, seen: &Seen, book: &Book, fates: &Fates) -> Result<(), String> {
        let (Some(begun), Some(ended)) = (session.begun_at, session.ended_at) else {
            return Err("it has no beginning or no end".to_owned());
        };
        if seen.begun_at != Some(begun) {
            return Err(format!("it began at another time: {seen:?}"));
        }
        let looked = self.settled_by_another(session, fates)?;
        let end = last_moment(session, seen, looked, fates)?;
        let billed = u64::from(session.minutes);
        if billed > started(begun, end) {
            return Err(format!(
                "{billed} minutes are billed, {} had started: {seen:?}",
                started(begun, end)
            ));
        }
        if billed > u64::from(seen.asked.max(SESSION_MINUTES)) {
            return Err(format!("{billed} minutes are billed, {} were asked for: {seen:?}", seen.asked));
        }
        check_price(session)?;
        if session.refunded {
            let is_right = seen.is_lost && billed == 0;
            return if is_right { Ok(()) } else { Err(format!("it is refunded: {seen:?}")) };
        }
        let certain = match looked {
            None if Some(ended) != seen.ended_at => {
                return Err(format!("it ended at another time: {seen:?}"));
            }
            None => ended,
            // Its last heartbeat that had been answered when the other one looked.
            Some(looked) => book.last_beat(&session.gateway, looked).unwrap_or(begun),
        };
        let certain = started(begun, certain).min(seen.paid.into());
        if billed < certain {
            return Err(format!("{billed} minutes are billed, {certain} are certain: {seen:?}"));
        }
        Ok(())
    }

    /// When another gateway looked after this session's, by the true time; `None` where its own has settled it.
    fn settled_by_another(&self, session: &Session, fates: &Fates) -> Result<Option<Timestamp>, String> {
        let is_post = |entry: &&Entry| {
            entry.session.as_ref() == Some(&session.id)
                && matches!(entry.kind, EntryKind::Posted | EntryKind::LostRefund)
        };
        let entry = self.log.iter().find(is_post).ok_or("the log has no end of it")?;
        let Actor::Gateway(by) = &entry.actor else { return Err(format!("{} has settled it", entry.actor)) };
        if *by == session.gateway {
            return Ok(None);
        }
        let skew = fates.get(by).ok_or("nobody knows who has settled it")?.skew;
        Ok(Some(Timestamp::from_millis(entry.at.as_millis().saturating_add_signed(-skew))))
    }

    /// A gateway's own view, by the final record.
    fn check_seen(&self, seen: &Seen) -> Result<(), String> {
        let stored = self.sessions.get(&seen.session);
        match (&seen.hold, stored) {
            (Hold::Nothing | Hold::Unknown, _) => Ok(()),
            (Hold::Held(_), None) => Err("it is not there".to_owned()),
            (Hold::Held(hold), Some(stored)) if *hold == stored.hold => match &seen.settled {
                _ if seen.gateway != stored.gateway => Err(format!("it is another's: {stored:?}")),
                Some(settled) if settled != stored => Err(format!("it was changed since: {stored:?}")),
                Some(_) | None => Ok(()),
            },
            // Its id was held again, which wants that it was voided.
            (Hold::Held(_), Some(stored)) => match &seen.settled {
                _ if seen.is_noted => Err(format!("it had begun, and was held again: {stored:?}")),
                Some(settled) if settled.state != State::Voided => {
                    Err(format!("it was held again: {stored:?}"))
                }
                Some(_) | None => Ok(()),
            },
        }
    }
}

/// Until when a session can have run, by its gateway's clock. Where another gateway has settled it, at a moment of true
/// time, that goes by heartbeats: its own may have sent some after the session's end, and have died before it could say so.
fn last_moment(
    session: &Session,
    seen: &Seen,
    looked: Option<Timestamp>,
    fates: &Fates,
) -> Result<Timestamp, String> {
    let fate = fates.get(&session.gateway).ok_or("nobody knows its gateway")?;
    let looked = looked.map(|at| Timestamp::from_millis(at.as_millis().saturating_add_signed(fate.skew)));
    let lived = looked.map(|looked| fate.died.map_or(looked, |died| died.min(looked)));
    seen.ended_at.max(lived).ok_or_else(|| format!("it has not ended: {seen:?}"))
}

/// What it cost is what its minutes cost.
fn check_price(session: &Session) -> Result<(), String> {
    let Session { funding, minutes, charged, written_off, .. } = session;
    let further = u64::from(minutes.saturating_sub(SESSION_MINUTES)) * MINUTE_PRICE;
    let price = match funding.included + funding.retry {
        0 => SESSION_PRICE + further,
        1 => further,
        _ => return Err("it was paid for twice".to_owned()),
    };
    let due = if session.refunded { 0 } else { price - written_off.get() };
    match charged.get() == due && session.cost() == *charged {
        true => Ok(()),
        false => Err(format!("it cost {charged}, and {due} micro-dollars are due")),
    }
}
