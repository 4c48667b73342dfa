//! Random histories, run against every store and against a naive model that was written from the rules alone: after
//! each command all must answer the same, have the same figures and tell the same events, and the log must replay to
//! them. Two processes share each store, and take the commands as they come.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::*;
use crate::money::Micros;
use crate::reconcile::Reckoning;
use crate::store::LIST_MAX;
use crate::time::Period;
use crate::usage::Usage;

const SESSIONS: u8 = 6;
const REFUNDS_PER_DAY: u32 = 2;
const LIMITS: Limits = Limits { refunds_per_day: REFUNDS_PER_DAY };
/// The last is the simulation's.
const STORES: [&str; 3] = ["embedded", "redis", "memory"];
const DAY: u64 = 86_400_000;
/// Micro-dollars: a short history passes it both ways.
const LOW: i64 = 20_000;
const CRASHED: &str = "crashed";

/// Two plans small enough that a short history meets every limit.
fn plans() -> Catalogue {
    let mut catalogue = Catalogue::default();
    for name in ["starter", "professional"] {
        let plan = catalogue.get(name).unwrap().clone();
        let overage_cap = Micros::new(45_000);
        catalogue.insert(Plan { included_sessions: 3, concurrent_sessions: 3, overage_cap, ..plan });
    }
    catalogue
}

#[derive(Clone, Debug)]
enum Step {
    /// A session, and which of two wishes comes with it.
    Hold(u8, bool),
    Begin(u8),
    Extend(u8, u32),
    /// Minutes that have started while nobody set them aside.
    Owe(u8, u32),
    /// Minutes for every session.
    Meter(u32),
    Complete(u8),
    Lose(u8),
    Void(u8),
    /// These come late: for the session that had the id first.
    VoidFirst(u8),
    BeginFirst(u8),
    OweFirst(u8, u32),
    CompleteFirst(u8),
    Abandon,
    Credit(u8, u64),
    Suspend(bool),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..SESSIONS;
    prop_oneof![
        6 => (id.clone(), prop::bool::weighted(0.2)).prop_map(|(id, wish)| Step::Hold(id, wish)),
        4 => id.clone().prop_map(Step::Begin),
        4 => (id.clone(), 5..12_u32).prop_map(|(id, minutes)| Step::Extend(id, minutes)),
        1 => (id.clone(), 5..12_u32).prop_map(|(id, minutes)| Step::Owe(id, minutes)),
        1 => (5..12_u32).prop_map(Step::Meter),
        3 => id.clone().prop_map(Step::Complete),
        3 => id.clone().prop_map(Step::Lose),
        2 => id.clone().prop_map(Step::Void),
        1 => id.clone().prop_map(Step::VoidFirst),
        1 => id.clone().prop_map(Step::BeginFirst),
        1 => (id.clone(), 5..12_u32).prop_map(|(id, minutes)| Step::OweFirst(id, minutes)),
        1 => id.clone().prop_map(Step::CompleteFirst),
        1 => Just(Step::Abandon),
        2 => (0..8_u8, prop_oneof![Just(3_000_u64), Just(10_000), Just(25_000)])
            .prop_map(|(command, amount)| Step::Credit(command, amount)),
        1 => any::<bool>().prop_map(Step::Suspend),
        3 => (0..8 * MINUTE).prop_map(Step::Pass),
        1 => (0..12 * DAY).prop_map(Step::Pass),
    ]
}

/// What a command came to, in words that both sides can say.
type Verdict = Result<(), &'static str>;

#[derive(Default)]
struct Model {
    subscription: bool,
    overage_allowed: bool,
    /// The starts of the periods to come, in milliseconds.
    renewals: Vec<u64>,
    now: u64,
    balance: i64,
    included: i64,
    retry: i64,
    overage: i64,
    suspended: bool,
    credits: BTreeMap<u8, u64>,
    sessions: BTreeMap<u8, Run>,
    refunds: BTreeMap<u64, u32>,
    told_refused: Option<u64>,
    told_low: bool,
    /// What was told, in the words of [`words`].
    events: Vec<String>,
    used: Vec<Used>,
}

/// A session; `begun` and `ended` in milliseconds.
#[derive(Clone, Default)]
struct Run {
    wish: bool,
    attempt: u32,
    begun: Option<u64>,
    minutes: i64,
    from_included: i64,
    from_retry: i64,
    from_balance: i64,
    from_overage: i64,
    written_off: i64,
    ended: Option<Ended>,
}

#[derive(Clone, PartialEq)]
enum Ended {
    Voided,
    Posted { at: u64, cause: &'static str },
}

/// What a session that was posted comes to in the usage of the hour and the month of its end.
struct Used {
    at: u64,
    figures: [i64; 7],
}

impl Model {
    fn renew(&mut self) {
        let mut renewed = false;
        while self.subscription && self.renewals.first().is_some_and(|start| *start <= self.now) {
            self.renewals.remove(0);
            self.included = 3;
            self.overage = 0;
            renewed = true;
        }
        if renewed {
            self.events.push("customer:billing-renewed".to_owned());
        }
    }

    /// What a renewal changes, for where it turns out that nothing is to change.
    fn before_renewal(&self) -> (i64, i64, Vec<u64>, usize) {
        (self.included, self.overage, self.renewals.clone(), self.events.len())
    }

    fn take_renewal_back(&mut self, (included, overage, renewals, events): (i64, i64, Vec<u64>, usize)) {
        (self.included, self.overage, self.renewals) = (included, overage, renewals);
        self.events.truncate(events);
    }

    /// At most once a minute, whatever the reason.
    fn tell_refused(&mut self, id: u8, cause: &str) {
        if self.told_refused.is_none_or(|told| self.now - told >= MINUTE) {
            self.told_refused = Some(self.now);
            self.renew();
            self.events.push(format!("session:refused s{id} {cause}"));
        }
    }

    fn open(&self) -> usize {
        self.sessions.values().filter(|run| run.ended.is_none()).count()
    }

    fn can_pay(&self, price: i64) -> Verdict {
        if self.balance >= price {
            Ok(())
        } else if !(self.subscription && self.overage_allowed) {
            Err("money")
        } else if self.overage + price - self.balance > 45_000 {
            Err("cap")
        } else {
            Ok(())
        }
    }

    fn pay(&mut self, price: i64, run: &mut Run) {
        let from_balance = price.min(self.balance);
        self.balance -= from_balance;
        self.overage += price - from_balance;
        run.from_balance += from_balance;
        run.from_overage += price - from_balance;
    }

    fn hold(&mut self, id: u8, wish: bool) -> Verdict {
        match self.sessions.get(&id) {
            Some(Run { ended: Some(Ended::Voided), .. }) | None => {}
            Some(exists) => return Err(if exists.wish == wish { "exists" } else { "exists different" }),
        }
        if self.suspended {
            self.tell_refused(id, "suspended");
            return Err("suspended");
        }
        let kept = self.before_renewal();
        self.renew();
        let verdict = self.hold_new(id, wish);
        if let Err(refusal) = verdict {
            self.take_renewal_back(kept);
            let cause = match refusal {
                "money" => "insufficient balance",
                "cap" => "overage cap",
                _ => "concurrency limit",
            };
            self.tell_refused(id, cause);
        }
        verdict
    }

    fn hold_new(&mut self, id: u8, wish: bool) -> Verdict {
        let attempt = self.sessions.get(&id).map_or(0, |voided| voided.attempt + 1);
        let mut run = Run { wish, attempt, minutes: 5, ..Run::default() };
        if self.retry == 0 && self.included == 0 {
            self.can_pay(10_000)?;
        }
        if self.open() >= 3 {
            return Err("limit");
        }
        if self.retry > 0 {
            (self.retry, run.from_retry) = (self.retry - 1, 1);
        } else if self.included > 0 {
            (self.included, run.from_included) = (self.included - 1, 1);
        } else {
            self.pay(10_000, &mut run);
        }
        self.sessions.insert(id, run);
        Ok(())
    }

    fn begin(&mut self, id: u8) -> Verdict {
        let now = self.now;
        let run = self.sessions.get_mut(&id).ok_or("no session")?;
        match (run.begun, &run.ended) {
            (Some(begun), _) if begun == now => return Ok(()),
            (Some(_), _) => return Err("different"),
            (None, Some(_)) => return Err("state"),
            (None, None) => run.begun = Some(now),
        }
        self.renew();
        self.events.push(format!("session:started s{id}"));
        Ok(())
    }

    fn extend(&mut self, id: u8, minutes: u32) -> Verdict {
        let mut run = self.sessions.get(&id).ok_or("not open")?.clone();
        if run.begun.is_none() || run.ended.is_some() {
            return Err("not open");
        }
        let further = i64::from(minutes) - run.minutes;
        if further <= 0 {
            return Ok(());
        }
        let kept = self.before_renewal();
        self.renew();
        if let Err(refusal) = self.can_pay(further * 2_000) {
            self.take_renewal_back(kept);
            return Err(refusal);
        }
        self.pay(further * 2_000, &mut run);
        run.minutes += further;
        self.sessions.insert(id, run);
        Ok(())
    }

    fn owe(&mut self, id: u8, minutes: u32) -> Verdict {
        let mut run = self.sessions.get(&id).ok_or("not open")?.clone();
        if run.begun.is_none() || run.ended.is_some() {
            return Err("not open");
        }
        while run.minutes < i64::from(minutes) {
            self.renew();
            let mut price = 2_000;
            if self.can_pay(price).is_err() {
                let room = if self.subscription && self.overage_allowed { 45_000 - self.overage } else { 0 };
                price = price.min(self.balance + room);
            }
            self.pay(price, &mut run);
            run.written_off += 2_000 - price;
            run.minutes += 1;
        }
        self.sessions.insert(id, run);
        Ok(())
    }

    /// The first refusal, if there is one; those that have not begun come last.
    fn meter(&mut self, minutes: u32) -> Verdict {
        let has_begun = |id: &u8| self.sessions.get(id).is_some_and(|run| run.begun.is_some());
        let (begun, others): (Vec<_>, Vec<_>) = (0..SESSIONS).partition(has_begun);
        let metered: Vec<_> = begun.into_iter().chain(others).map(|id| self.extend(id, minutes)).collect();
        metered.into_iter().collect()
    }

    fn post(&mut self, id: u8, at: u64, cause: &'static str) -> Verdict {
        let mut run = self.sessions.get(&id).ok_or("no session")?.clone();
        let begun = run.begun.ok_or("state")?;
        let end = Ended::Posted { at: at.max(begun), cause };
        match &run.ended {
            Some(Ended::Voided) => return Err("state"),
            Some(ended) => return if *ended == end { Ok(()) } else { Err("different") },
            None => {}
        }
        self.renew();
        let refunds = self.refunds.entry(self.now / DAY).or_default();
        let mut billed = 0;
        if cause == CRASHED && *refunds < REFUNDS_PER_DAY {
            *refunds += 1;
            self.retry += 1;
            self.give_back(&mut run);
            (run.from_included, run.from_retry) = (0, 0);
        } else {
            let mut started = 1;
            while begun + started * MINUTE < at {
                started += 1;
            }
            billed = i64::try_from(started).unwrap().min(run.minutes);
            let used = i64::try_from(started).unwrap().max(5);
            while run.minutes > used {
                run.minutes -= 1;
                let unpaid = run.written_off.min(2_000);
                run.written_off -= unpaid;
                self.give_back_money(2_000 - unpaid, &mut run);
            }
        }
        let Run { from_included, from_retry, from_balance, from_overage, .. } = run;
        let (lost, cost) = (i64::from(cause == CRASHED), from_balance + from_overage);
        let figures = [1, lost, from_included, from_retry, billed, cost, from_overage];
        self.used.push(Used { at: at.max(begun), figures });
        run.ended = Some(end);
        let kind = if cause == CRASHED { "lost" } else { "completed" };
        let lasted = at.max(begun) - begun;
        self.events.push(format!("session:{kind} s{id} {cause} {lasted} {cost}"));
        self.sessions.insert(id, run);
        Ok(())
    }

    fn void_first(&mut self, id: u8) -> Verdict {
        match self.sessions.get(&id) {
            Some(Run { attempt: 0, .. }) => self.void(id),
            Some(_) => Ok(()),
            None => Err("no session"),
        }
    }

    /// A later session of its id is none of its business.
    fn is_first(&self, id: u8) -> Verdict {
        match self.sessions.get(&id) {
            Some(Run { attempt: 0, .. }) => Ok(()),
            Some(_) => Err("held anew"),
            None => Err("no session"),
        }
    }

    fn void(&mut self, id: u8) -> Verdict {
        let mut run = self.sessions.get(&id).ok_or("no session")?.clone();
        match (run.begun, &run.ended) {
            (None, Some(_)) => return Ok(()),
            (Some(_), _) => return Err("state"),
            (None, None) => {}
        }
        self.renew();
        self.give_back(&mut run);
        (run.from_included, run.from_retry) = (0, 0);
        run.ended = Some(Ended::Voided);
        self.sessions.insert(id, run);
        Ok(())
    }

    fn give_back(&mut self, run: &mut Run) {
        self.included += run.from_included;
        self.retry += run.from_retry;
        self.give_back_money(run.from_balance + run.from_overage, run);
    }

    /// Overage first; of that, what this period no longer has was billed, and comes as balance.
    fn give_back_money(&mut self, amount: i64, run: &mut Run) {
        let overage = amount.min(run.from_overage);
        run.from_overage -= overage;
        run.from_balance -= amount - overage;
        let cancelled = overage.min(self.overage);
        self.overage -= cancelled;
        self.balance += amount - cancelled;
    }

    /// Every open session, with a gateway that was never heard of.
    fn abandon(&mut self) {
        for id in 0..SESSIONS {
            match self.sessions.get(&id) {
                Some(Run { begun: Some(begun), ended: None, .. }) => {
                    self.post(id, *begun, "gateway lost").unwrap()
                }
                Some(Run { begun: None, ended: None, .. }) => self.void(id).unwrap(),
                Some(_) | None => {}
            }
        }
    }

    fn credit(&mut self, command: u8, amount: u64) -> Verdict {
        match self.credits.get(&command) {
            Some(earlier) if *earlier == amount => return Ok(()),
            Some(_) => return Err("different"),
            None => {}
        }
        self.renew();
        self.credits.insert(command, amount);
        self.balance += i64::try_from(amount).unwrap();
        self.told_low &= self.balance < LOW;
        Ok(())
    }

    fn suspend(&mut self, suspended: bool) {
        if self.suspended != suspended {
            self.renew();
            self.suspended = suspended;
        }
    }

    fn run(&mut self, step: &Step) -> Verdict {
        let before = self.balance;
        let verdict = self.carry_out(step);
        if self.balance < before.min(LOW) && !self.told_low {
            self.told_low = true;
            self.events.push(format!("customer:low-balance {} {LOW}", self.balance));
        }
        verdict
    }

    fn carry_out(&mut self, step: &Step) -> Verdict {
        match *step {
            Step::Hold(id, wish) => self.hold(id, wish),
            Step::Begin(id) => self.begin(id),
            Step::Extend(id, minutes) => self.extend(id, minutes),
            Step::Owe(id, minutes) => self.owe(id, minutes),
            Step::Meter(minutes) => self.meter(minutes),
            Step::Complete(id) => self.post(id, self.now, "client"),
            Step::Lose(id) => self.post(id, self.now, CRASHED),
            Step::Void(id) => self.void(id),
            Step::VoidFirst(id) => self.void_first(id),
            Step::BeginFirst(id) => self.is_first(id).and_then(|()| self.begin(id)),
            Step::OweFirst(id, minutes) => {
                self.is_first(id).map_err(|_| "not open").and_then(|()| self.owe(id, minutes))
            }
            Step::CompleteFirst(id) => self.is_first(id).and_then(|()| self.post(id, self.now, "client")),
            Step::Abandon => {
                self.abandon();
                Ok(())
            }
            Step::Credit(command, amount) => self.credit(command, amount),
            Step::Suspend(suspended) => {
                self.suspend(suspended);
                Ok(())
            }
            Step::Pass(millis) => {
                self.now += millis;
                Ok(())
            }
        }
    }

    fn figures(&self) -> [i64; 5] {
        [self.balance, self.included, self.retry, self.overage, i64::try_from(self.open()).unwrap()]
    }

    /// The months in which there was any use.
    fn months(&self) -> Vec<Period> {
        let mut months: Vec<_> =
            self.used.iter().map(|used| Period::calendar_month(Timestamp::from_millis(used.at))).collect();
        months.dedup();
        months
    }

    fn usage(&self, period: Period) -> [i64; 7] {
        let within = self
            .used
            .iter()
            .filter(|used| (period.start.as_millis()..period.end.as_millis()).contains(&used.at));
        within.fold([0; 7], |sums, used| std::array::from_fn(|at| sums[at] + used.figures[at]))
    }
}

/// The same commands for the real thing.
struct Real {
    /// Two processes.
    handles: [Billing; 2],
    who: Principal,
    now: Timestamp,
    /// Events were read up to here.
    read: Cursor,
    /// What the first hold of each id gave.
    held: BTreeMap<u8, Session>,
}

impl Real {
    async fn open(url: &StoreUrl, plan: &str, prepaid: Option<u64>) -> Real {
        let handles = [(); 2].map(|()| Billing::open(url, plans(), LIMITS).unwrap());
        Real::with(handles, plan, prepaid).await
    }

    async fn in_memory(plan: &str, prepaid: Option<u64>) -> Real {
        let server = Arc::default();
        let handles = [(); 2].map(|()| Billing::over(Line::to(&server), plans(), LIMITS, HoldIds::new()));
        Real::with(handles, plan, prepaid).await
    }

    async fn with(handles: [Billing; 2], plan: &str, prepaid: Option<u64>) -> Real {
        // From here on this is the process that may put commits off.
        handles[0].settle_abandoned(&gateway("me"), START).await.unwrap();
        let new = NewCustomer { prepaid: prepaid.map(Micros::new), ..customer(plan) };
        let (_, secret) = handles[0].create_customer(new, Actor::Operator, START).await.unwrap();
        let who = handles[1].authenticate(secret.expose()).await.unwrap().unwrap();
        let low = Some(Micros::new(LOW.cast_unsigned()));
        handles[1].set_low_balance(&who.account, low, Actor::Operator, START).await.unwrap();
        Real { handles, who, now: START, held: BTreeMap::new(), read: Cursor::start() }
    }

    async fn run(&mut self, process: usize, step: &Step) -> Verdict {
        let (billing, account, now) = (&self.handles[process], &self.who.account, self.now);
        let first_of = |id: u8| self.held.get(&id).map(Session::name).ok_or("no session");
        let id = |id: u8| session(&format!("s{id}"));
        let end = |outcome| End { at: now, outcome, up_bytes: 0, down_bytes: 0 };
        match *step {
            Step::Hold(hold, wish) => {
                let request = SessionRequest {
                    tracking_id: wish.then(|| "nightly".parse().unwrap()),
                    ..SessionRequest::default()
                };
                let new = NewSession::named(id(hold), request);
                let gateway = gateway("gw");
                if self.held.contains_key(&hold) {
                    return held(billing.hold(&self.who, new, &gateway, now).await);
                }
                // Nobody has held this id, so that the commit may be put off; the next step catches up with it. One that is
                // on its way is waited for, since that may come from the other process.
                let new = NewSession { is_fresh: true, ..new };
                let mut reserved = billing.reserve(&self.who, &new, &gateway, now).await;
                if let Ok(first) = &reserved
                    && first.is_on_its_way()
                    && let Err(refused) = billing.confirm(first, now).await
                {
                    reserved = Err(refused);
                }
                if let Ok(first) = &reserved {
                    self.held.insert(hold, first.session.clone());
                }
                held(reserved)
            }
            Step::Begin(begin) => done(billing.begin_latest(account, &id(begin), now, now).await),
            Step::Extend(id, minutes) => first(self.meter(billing, &[id], minutes, 0).await),
            Step::Owe(id, minutes) => first(self.meter(billing, &[id], minutes, minutes).await),
            Step::Meter(minutes) => {
                let all: Vec<_> = (0..SESSIONS).collect();
                first(self.meter(billing, &all, minutes, 0).await)
            }
            Step::Complete(post) => done(billing.post_latest(account, &id(post), end(COMPLETED), now).await),
            Step::Lose(post) => done(
                billing.post_latest(account, &id(post), end(Outcome::Lost { cause: CRASHED }), now).await,
            ),
            Step::Void(void) => match billing.session(account, &id(void)).await.unwrap() {
                Some(session) => done(billing.void(session.name(), "no browser", now).await),
                None => Err("no session"),
            },
            Step::VoidFirst(void) => done(billing.void(first_of(void)?, "no browser", now).await),
            Step::BeginFirst(begin) => done(billing.begin(first_of(begin)?, now, now).await),
            Step::OweFirst(owe, minutes) => match self.held.get(&owe) {
                Some(held) => self.owe_first(billing, held, minutes).await,
                None => Err("not open"),
            },
            Step::CompleteFirst(post) => done(billing.post(first_of(post)?, end(COMPLETED), now).await),
            Step::Abandon => done(self.handles[0].settle_abandoned(&gateway("me"), now).await),
            Step::Credit(command, amount) => {
                let command = format!("c{command}").parse().unwrap();
                done(billing.credit(account, Micros::new(amount), command, Actor::Operator, now).await)
            }
            Step::Suspend(suspended) => done(billing.suspend(account, suspended, Actor::Operator, now).await),
            Step::Pass(millis) => {
                self.now = Timestamp::from_millis(now.as_millis() + millis);
                Ok(())
            }
        }
    }

    /// What became of each session; one that has not begun is not open, which only its gateway would not know.
    async fn meter(&self, billing: &Billing, ids: &[u8], minutes: u32, owed: u32) -> Vec<Verdict> {
        let account = &self.who.account;
        let mut progress = Vec::new();
        for id in ids {
            let session = billing.session(account, &session(&format!("s{id}"))).await.unwrap();
            let Some((session, begun_at)) =
                session.and_then(|session| Some((session.clone(), session.begun_at?)))
            else {
                continue;
            };
            progress.push(Progress { owed, ..minutes_of(&session, begun_at, minutes) });
        }
        let unknown = (progress.len()..ids.len()).map(|_| Err("not open"));
        let metered = billing.meter(account, &progress, self.now).await.unwrap();
        metered.into_iter().map(extended).chain(unknown).collect()
    }

    /// One that has not begun knows that itself.
    async fn owe_first(&self, billing: &Billing, held: &Session, minutes: u32) -> Verdict {
        let latest = billing.session(&held.account, &held.id).await.unwrap();
        let Some(begun_at) = latest.and_then(|latest| latest.begun_at) else { return Err("not open") };
        let progress = Progress { owed: minutes, ..minutes_of(held, begun_at, minutes) };
        extended(billing.meter(&held.account, &[progress], self.now).await.unwrap().remove(0))
    }

    async fn figures(&self) -> [i64; 5] {
        let account = self.handles[0].account(&self.who.account).await.unwrap().unwrap();
        let money = |amount: Micros| i64::try_from(amount.get()).unwrap();
        let Account { balance, included, retry, overage, open, .. } = account;
        [money(balance), included.into(), retry.into(), money(overage), open.into()]
    }

    async fn usage(&self, by: Span) -> Vec<(Period, [i64; 7])> {
        let used = self.handles[0].usage(&self.who.account, by, by.most(), self.now).await.unwrap();
        let figures = |usage: Usage| {
            let Usage { sessions, lost, included, retried, minutes, cost, overage, .. } = usage;
            [sessions, lost, included, retried, minutes, cost.get(), overage.get()]
                .map(|figure| i64::try_from(figure).unwrap())
        };
        used.into_iter().map(|used| (used.period, figures(used.usage))).collect()
    }

    /// What was told since this was last asked.
    async fn events(&mut self) -> Vec<String> {
        let stream = self.handles[0].event_stream_of(&self.who.account);
        let events = self.handles[0].events(stream, &self.read, LIST_MAX).await.unwrap();
        if let Some((last, _)) = events.last() {
            self.read = last.clone();
        }
        // Other accounts may have the same stream.
        let events = events.iter().filter_map(|(_, told)| told.event());
        events.filter(|event| event.customer == self.who.account).map(words).collect()
    }
}

/// What an event tells, but for what is the same for all of an account's.
fn words(event: &Event) -> String {
    let Event { kind, session, cause, duration, cost, balance, threshold, .. } = event;
    let session = session.as_ref().map(ToString::to_string);
    let amounts = [*cost, *balance, *threshold].map(|amount| amount.map(Micros::get));
    let numbers = std::iter::once(*duration).chain(amounts).flatten().map(|number| number.to_string());
    let told = [session, cause.clone()].into_iter().flatten().chain(numbers);
    std::iter::once(kind.as_str().to_owned()).chain(told).collect::<Vec<_>>().join(" ")
}

fn refused(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::KeyRevoked => "key",
        Refusal::Suspended => "suspended",
        Refusal::Money { .. } => "money",
        Refusal::OverageCap { .. } => "cap",
        Refusal::Concurrency { .. } => "limit",
    }
}

fn held<T>(result: Result<T, HoldError>) -> Verdict {
    match result {
        Ok(_) => Ok(()),
        Err(HoldError::Refused(refusal)) => Err(refused(&refusal)),
        Err(HoldError::Exists(_)) => Err("exists"),
        Err(HoldError::ExistsDifferent(_)) => Err("exists different"),
        Err(error @ (HoldError::Ahead(_) | HoldError::Store(_))) => panic!("{error}"),
    }
}

fn first(verdicts: Vec<Verdict>) -> Verdict {
    verdicts.into_iter().collect()
}

fn extended(result: Result<(), ExtendError>) -> Verdict {
    match result {
        Ok(()) => Ok(()),
        Err(ExtendError::Refused(refusal)) => Err(refused(&refusal)),
        Err(ExtendError::NotOpen) => Err("not open"),
        Err(ExtendError::Store(error)) => panic!("{error}"),
    }
}

fn done<T>(result: Result<T, Error>) -> Verdict {
    match result {
        Ok(_) => Ok(()),
        Err(Error::NoSession) => Err("no session"),
        Err(Error::Refused(Refused::State(_))) => Err("state"),
        Err(Error::Refused(Refused::ExistsDifferent)) => Err("different"),
        Err(Error::Refused(Refused::HeldAnew)) => Err("held anew"),
        Err(error) => panic!("{error}"),
    }
}

/// Months from the first of February 2027, and anniversaries from the fifteenth, by `date -u +%s`.
const CALENDAR: [u64; 40] = [
    1_801_440_000,
    1_803_859_200,
    1_806_537_600,
    1_809_129_600,
    1_811_808_000,
    1_814_400_000,
    1_817_078_400,
    1_819_756_800,
    1_822_348_800,
    1_825_027_200,
    1_827_619_200,
    1_830_297_600,
    1_832_976_000,
    1_835_481_600,
    1_838_160_000,
    1_840_752_000,
    1_843_430_400,
    1_846_022_400,
    1_848_700_800,
    1_851_379_200,
    1_853_971_200,
    1_856_649_600,
    1_859_241_600,
    1_861_920_000,
    1_864_598_400,
    1_867_017_600,
    1_869_696_000,
    1_872_288_000,
    1_874_966_400,
    1_877_558_400,
    1_880_236_800,
    1_882_915_200,
    1_885_507_200,
    1_888_185_600,
    1_890_777_600,
    1_893_456_000,
    1_896_134_400,
    1_898_553_600,
    1_901_232_000,
    1_903_824_000,
];
const ANNIVERSARIES: [u64; 40] = [
    1_802_685_600,
    1_805_104_800,
    1_807_783_200,
    1_810_375_200,
    1_813_053_600,
    1_815_645_600,
    1_818_324_000,
    1_821_002_400,
    1_823_594_400,
    1_826_272_800,
    1_828_864_800,
    1_831_543_200,
    1_834_221_600,
    1_836_727_200,
    1_839_405_600,
    1_841_997_600,
    1_844_676_000,
    1_847_268_000,
    1_849_946_400,
    1_852_624_800,
    1_855_216_800,
    1_857_895_200,
    1_860_487_200,
    1_863_165_600,
    1_865_844_000,
    1_868_263_200,
    1_870_941_600,
    1_873_533_600,
    1_876_212_000,
    1_878_804_000,
    1_881_482_400,
    1_884_160_800,
    1_886_752_800,
    1_889_431_200,
    1_892_023_200,
    1_894_701_600,
    1_897_380_000,
    1_899_799_200,
    1_902_477_600,
    1_905_069_600,
];

/// A plan, and the balance of a prepaid account.
type Terms = (&'static str, Option<u64>);

async fn compare(server: &Server, (plan, prepaid): Terms, steps: &[(usize, Step)]) {
    let folder = tempfile::tempdir().unwrap();
    let mut stores = [
        Real::open(&StoreUrl::Sqlite(folder.path().join("ledger.db")), plan, prepaid).await,
        Real::open(&server.url(), plan, prepaid).await,
        Real::in_memory(plan, prepaid).await,
    ];
    let renewals = if plan == "starter" { CALENDAR } else { ANNIVERSARIES };
    let subscription = prepaid.is_none();
    let mut model = Model {
        subscription,
        overage_allowed: plan == "professional",
        renewals: renewals.iter().map(|seconds| seconds * 1_000).collect(),
        now: START.as_millis(),
        balance: i64::try_from(prepaid.unwrap_or_default()).unwrap(),
        included: if subscription { 3 } else { 0 },
        events: vec!["customer:activated".to_owned()],
        ..Model::default()
    };
    for (number, (process, step)) in steps.iter().enumerate() {
        let verdict = model.run(step);
        // A look would commit what was put off, and holds are to be decided on one another.
        let is_looked_at = !matches!(steps.get(number + 1), Some((0, Step::Hold(..))));
        let told = if is_looked_at { std::mem::take(&mut model.events) } else { Vec::new() };
        for (store, name) in stores.iter_mut().zip(STORES) {
            assert_eq!(store.run(*process, step).await, verdict, "{name}, step {number}: {step:?}");
            if !is_looked_at {
                continue;
            }
            assert_eq!(store.figures().await, model.figures(), "{name}, step {number}: {step:?}");
            assert_eq!(store.events().await, told, "{name}, step {number}: {step:?}");
        }
    }
    for (store, name) in stores.iter().zip(STORES) {
        for by in [Span::Hour, Span::Day, Span::Month] {
            for (period, figures) in store.usage(by).await {
                assert_eq!(figures, model.usage(period), "{name}: {by:?} {period:?}");
            }
        }
        store.handles[0].verify(&store.who.account).await.unwrap();
        for month in model.months() {
            let reconciled = store.handles[1].reconcile(&store.who.account, month, &[]).await.unwrap();
            assert_eq!(reconciled.differences, [], "{name}: {month:?}");
            let [sessions, _, included, _, minutes, cost, overage] = model.usage(month);
            assert_eq!(
                figures_of(reconciled.log),
                [sessions, minutes, included, overage, cost],
                "{name}: {month:?}"
            );
        }
    }
}

fn figures_of(reckoning: Reckoning) -> [i64; 5] {
    let Reckoning { sessions, minutes, included, overage, charged } = reckoning;
    [sessions, minutes, included, overage.get(), charged.get()].map(|figure| i64::try_from(figure).unwrap())
}

/// Prints the shortest history that fails, and how to run it again.
fn agree(terms: Terms) {
    const HISTORIES: u32 = 64;
    let server = Server::start();
    let runtime = runtime();
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(HISTORIES) };
    let steps = prop::collection::vec((0..2_usize, step()), 1..60);
    let ran = TestRunner::new(config).run(&steps, |steps| {
        runtime.block_on(compare(&server, terms, &steps));
        Ok(())
    });
    if let Err(failure) = ran {
        panic!("{failure}");
    }
}

/// Long histories of several accounts on each store, their logs in one file, and what `tests/replay.py` finds in it.
#[test]
fn a_separate_program_replays_the_logs() {
    const ACCOUNTS: usize = 6;
    let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
    // One process puts commits off on a file, so each history has its own.
    let url = |number: usize| match number % 2 {
        0 => StoreUrl::Sqlite(folder.path().join(format!("{number}.db"))),
        _ => server.url(),
    };
    let file = folder.path().join("logs.jsonl");
    let runtime = runtime();
    let mut runner = TestRunner::deterministic();
    let steps = prop::collection::vec((0..2_usize, step()), 200..300);
    let (mut stores, mut lines) = (Vec::new(), String::new());
    for number in 0..ACCOUNTS {
        let steps = steps.new_tree(&mut runner).unwrap().current();
        let terms = [("starter", None), ("professional", None), ("professional", Some(900_000))][number / 2];
        let store = runtime.block_on(async {
            let mut store = Real::open(&url(number), terms.0, terms.1).await;
            for (process, step) in &steps {
                let _ = store.run(*process, step).await;
            }
            store
        });
        stores.push(store);
    }
    // Those that came later have settled what the earlier ones of the same server had left open.
    for store in &stores {
        lines += &runtime.block_on(store.log());
    }
    fs::write(&file, &lines).unwrap();
    let found = replay(&file).unwrap();
    for store in &stores {
        let found = &found[store.who.account.as_str()];
        let names = ["balance", "included", "retry", "overage", "open"];
        let figures = names.map(|name| found[name].as_i64().unwrap());
        assert_eq!(figures, runtime.block_on(store.figures()));
        runtime.block_on(same_months(store, found));
    }

    let tampered = lines.replacen("\"amount\":-", "\"amount\":-1", 1);
    assert_ne!(tampered, lines, "somebody paid from a balance");
    fs::write(&file, tampered).unwrap();
    assert!(replay(&file).unwrap_err().contains("does not match its hash"));
}

impl Real {
    /// The whole log, an entry a line.
    async fn log(&self) -> String {
        let (billing, mut lines, mut after) = (&self.handles[0], String::new(), 0);
        loop {
            let page = billing.audit(&self.who.account, after, LIST_MAX).await.unwrap();
            let Some(last) = page.last() else { return lines };
            after = last.seq;
            for entry in &page {
                lines += &(serde_json::to_string(entry).unwrap() + "\n");
            }
        }
    }
}

/// What the separate program says of each month is what the usage does.
async fn same_months(store: &Real, found: &serde_json::Value) {
    for (month, [sessions, _, included, _, minutes, cost, overage]) in store.usage(Span::Month).await {
        let of_month = &found["months"][&month.start.to_string()[..7]];
        let names = ["sessions", "minutes", "included", "overage", "charged"];
        let figures = names.map(|name| of_month[name].as_i64().unwrap_or_default());
        assert_eq!(figures, [sessions, minutes, included, overage, cost], "{month:?}");
    }
}

/// What `tests/replay.py` prints, or what it complains of.
fn replay(file: &Path) -> Result<serde_json::Value, String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/replay.py");
    let ran = Command::new("python3").arg(program).arg(file).output().unwrap();
    if !ran.status.success() {
        return Err(String::from_utf8(ran.stderr).unwrap());
    }
    Ok(serde_json::from_slice(&ran.stdout).unwrap())
}

#[test]
fn a_starter_s_history_agrees_with_the_model() {
    agree(("starter", None));
}

#[test]
fn a_professional_s_history_agrees_with_the_model() {
    agree(("professional", None));
}

#[test]
fn a_prepaid_history_agrees_with_the_model() {
    agree(("professional", Some(35_000)));
}
