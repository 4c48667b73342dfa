//! What must be true when all is quiet, however it came about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::book::{Book, Hold, Seen};
use super::consumers::ATTEMPTS;
use super::scene::{
    MINUTE, MINUTE_PRICE, Opened, REFUNDS_PER_DAY, SESSION_MINUTES, SESSION_PRICE, webhook_of,
};
use super::spares::NOT_NEEDED;
use super::world::World;
use crate::account::Account;
use crate::archive::Archive;
use crate::audit::{Actor, Entry, EntryKind};
use crate::books::Billing;
use crate::delivery::{Group, Parcel};
use crate::event::EventKind;
use crate::id::{AccountId, GatewayId, SessionId};
use crate::session::{Session, State};
use crate::store::{LIST_MAX, memory};
use crate::time::{Period, Timestamp};
use crate::webhook::NOTICES;

const LOOK: Duration = Duration::from_secs(1);

/// What became of one process.
#[derive(Clone, Debug)]
pub(super) struct Fate {
    /// From when on its clock showed so many milliseconds more than the true time.
    pub(super) skews: Vec<(Timestamp, i64)>,
    /// When it died, by the true time.
    pub(super) died: Option<Timestamp>,
}

impl Fate {
    /// The moments at which its clock can have shown that: the first and the last of them.
    fn moments(&self, shown: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let ends =
            self.skews.iter().skip(1).map(|(start, _)| *start).chain([Timestamp::from_millis(u64::MAX)]);
        let moments = self.skews.iter().zip(ends).filter_map(|((start, skew), end)| {
            let at = Timestamp::from_millis(shown.as_millis().saturating_add_signed(-skew));
            (*start <= at && at <= end).then_some(at)
        });
        let moments: Vec<_> = moments.collect();
        Some((*moments.iter().min()?, *moments.iter().max()?))
    }

    fn jumped(&self) -> bool {
        self.skews.len() > 1
    }
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

/// Looks at the store in the midst of it, as often as that comes: at each moment an account counts as many sessions as are
/// held ahead.
pub(super) async fn watch(world: Arc<World>, accounts: Vec<AccountId>) {
    loop {
        sleep(LOOK).await;
        let server = memory::lock(&world.server);
        for id in &accounts {
            let (counted, held) = server.count_ahead(id);
            if counted != held {
                world.find_fault(format!("{id} counts {counted} held ahead, and has {held}"));
            }
        }
    }
}

/// Collects what is wrong, in words.
pub(super) async fn faults(
    (billing, world): (&Billing, &World),
    book: &Book,
    fates: &Fates,
    opened: &[Opened],
) -> Vec<String> {
    let mut faults = Vec::new();
    let files = world.archived();
    let archives = Archive::by_account(&files).expect("they are archives");
    for (account, proven) in billing.prove_archives(&files).await.expect("they can be read") {
        faults.extend(proven.err().map(|error| format!("the archives of {account}: {error}")));
    }
    for open in opened {
        let id = &open.change.account.id;
        match billing.verify(id).await {
            Ok(verified) if verified.open == 0 => {}
            verdict => faults.push(format!("{id}: {verdict:?}")),
        }
        for month in [Period::calendar_month(open.change.account.created_at), last_month(open)] {
            let own = archives.get(id).map_or(&[][..], Vec::as_slice);
            let differences = billing.reconcile(id, month, own).await.expect("it answers").differences;
            if !differences.is_empty() {
                faults.push(format!("{id}, {month:?}: {differences:?}"));
            }
        }
        let told = Told::of(billing, world, id).await;
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
    /// Entries and events as they were written, also those that were trimmed.
    async fn of(billing: &Billing, world: &World, id: &AccountId) -> Told {
        let account = billing.account(id).await.expect("it answers").expect("it is there");
        let sessions = billing.sessions(id, None, LIST_MAX).await.expect("it answers");
        let sessions = sessions.into_iter().map(|session| (session.id.clone(), session)).collect();
        let server = memory::lock(&world.server);
        let log = server.written.get(id).cloned().unwrap_or_default();
        let own = server.told.iter().filter(|event| event.customer == *id);
        let events = own.map(|event| (event.kind, event.session.clone())).collect();
        Told { account, log, sessions, events }
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
        if self.account.ahead > 0 {
            faults.push(format!("{id} counts sessions that nobody asked for: {:?}", self.account));
        }
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
            [] if voided_as(&["gateway fault", "gateway lost", NOT_NEEDED]) => Ok(()),
            [] => Err("nobody served it".to_owned()),
            [seen] if session.state == State::Posted => self.check_bill(session, seen, book, fates),
            [seen] if seen.is_on_credit => Err(format!("it was kept, and is not billed: {seen:?}")),
            [seen] if seen.is_noted => Err(format!("it had begun: {seen:?}")),
            [seen] if seen.begun_at.is_some() && !voided_as(&["gateway lost"]) => {
                Err(format!("its client had its browser: {seen:?}"))
            }
            [_] if voided_as(&["gateway fault", "gateway lost", "no browser", NOT_NEEDED]) => Ok(()),
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
        let billed = u64::from(session.minutes);
        let had_started = had_started((session, begun, ended), seen, looked, fates)?;
        if billed > had_started {
            return Err(format!("{billed} minutes are billed, {had_started} had started: {seen:?}"));
        }
        if billed > u64::from(seen.asked.max(SESSION_MINUTES)) {
            return Err(format!("{billed} minutes are billed, {} were asked for: {seen:?}", seen.asked));
        }
        check_price(session)?;
        if session.refunded {
            let is_right = seen.is_lost && billed == 0;
            return if is_right { Ok(()) } else { Err(format!("it is refunded: {seen:?}")) };
        }
        let kept = seen.kept.map_or(0, |(_, minutes)| minutes);
        let certain = match looked {
            // Also what the store was away for.
            None => started(begun, ended).min(seen.paid.max(kept).into()),
            // Its last heartbeat that had been answered when the other one looked.
            Some((looked, _)) => {
                let seen_at = book.last_beat(&session.gateway, looked).unwrap_or(begun);
                started(begun, seen_at).min(seen.paid.into())
            }
        };
        if billed < certain {
            return Err(format!("{billed} minutes are billed, {certain} are certain: {seen:?}"));
        }
        Ok(())
    }

    /// When another gateway looked after this session's, by the true time: the first moment and the last one that it can
    /// have been. `None` where its own has settled it, or one that took over what that had kept.
    fn settled_by_another(
        &self,
        session: &Session,
        fates: &Fates,
    ) -> Result<Option<(Timestamp, Timestamp)>, String> {
        let is_post = |entry: &&Entry| {
            entry.session.as_ref() == Some(&session.id)
                && matches!(entry.kind, EntryKind::Posted | EntryKind::LostRefund)
        };
        let entry = self.log.iter().find(is_post).ok_or("the log has no end of it")?;
        let Actor::Gateway(by) = &entry.actor else { return Err(format!("{} has settled it", entry.actor)) };
        if *by == session.gateway {
            return Ok(None);
        }
        let fate = fates.get(by).ok_or("nobody knows who has settled it")?;
        Ok(Some(fate.moments(entry.at).ok_or("its clock has never shown that")?))
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

/// How many of a session's minutes can have started. Where another gateway has settled it, that goes by heartbeats: its own
/// may have sent some after the session's end, and have died before it could say so; and a clock that was set meanwhile may
/// take a minute for started that was set aside, and was about to.
fn had_started(
    (session, begun_at, ended_at): (&Session, Timestamp, Timestamp),
    seen: &Seen,
    looked: Option<(Timestamp, Timestamp)>,
    fates: &Fates,
) -> Result<u64, String> {
    let Some((_, looked)) = looked else {
        let kept = seen.kept.map(|(at, _)| at);
        let is_right = Some(ended_at) == seen.ended_at || (seen.ended_at.is_none() && Some(ended_at) == kept);
        let fault = || format!("it ended at another time: {seen:?}");
        return if is_right { Ok(started(begun_at, ended_at)) } else { Err(fault()) };
    };
    let fate = fates.get(&session.gateway).ok_or("nobody knows its gateway")?;
    let lived = fate.died.map_or(looked, |died| died.min(looked));
    let begun = seen.begun.ok_or("nobody saw it begin")?;
    Ok(started(begun, lived) + u64::from(fate.jumped()))
}

/// Nobody is left out who wanted to be told, whatever died on the way: each notice was delivered, or waits to be, or failed
/// as often as it may.
pub(super) async fn check_notices(billing: &Billing, world: &World, book: &Book, faults: &mut Vec<String>) {
    let dead = billing.dead_letters(LIST_MAX).await.expect("it answers");
    let waiting = billing.store().waiting_parcels().await.expect("it answers");
    let known: BTreeSet<_> = dead.iter().map(|letter| letter.name.clone()).collect();
    let waiting: BTreeSet<_> = waiting.into_iter().map(|parcel| parcel.name).collect();
    for letter in dead.iter().filter(|letter| letter.attempts < ATTEMPTS.get()) {
        faults.push(format!("{} died after {} attempts", letter.name, letter.attempts));
    }
    let events = memory::lock(&world.server).told.clone();
    for event in events.iter().filter(|event| NOTICES.contains(&event.kind)) {
        let to = webhook_of(&event.customer).to_string();
        let name = Parcel { group: Group::Notices, to, event: event.clone() }.name();
        if !book.delivered.contains(&name) && !known.contains(&name) && !waiting.contains(&name) {
            faults.push(format!("nobody was told: {event:?}"));
        }
    }
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
