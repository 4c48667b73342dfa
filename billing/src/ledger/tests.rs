use std::collections::BTreeMap;

use super::*;
use crate::audit::{Replay, Verified};
use crate::plan::Catalogue;

const MINUTE: u64 = 60_000;
const DAY: u64 = 86_400_000;

/// 2027-01-15T10:00:00Z.
const START: Timestamp = Timestamp::from_millis(1_800_007_200_000);

const REFUNDS_PER_DAY: u32 = 2;

/// One account with its sessions and its log, as a store would keep them.
struct Desk {
    plan: Plan,
    now: Timestamp,
    account: Account,
    sessions: BTreeMap<SessionId, Session>,
    log: Vec<Entry>,
    events: Vec<Event>,
    used: Vec<Used>,
}

impl Desk {
    fn subscription(plan: &str) -> Desk {
        Desk::open(plan, None)
    }

    fn prepaid(micros: u64) -> Desk {
        Desk::open("professional", Some(Micros::new(micros)))
    }

    fn open(plan: &str, prepaid: Option<Micros>) -> Desk {
        let plan = Catalogue::default().get(plan).unwrap().clone();
        let key = Key { id: id("key"), ..key(0) };
        let opening = Opening { id: id("acme"), email: "a@example.com".to_owned(), prepaid, key };
        let change = super::open(opening, &Actor::Operator, Context { plan: &plan, now: START }).unwrap();
        let Change { account, entries: log, events, .. } = change;
        Desk { plan, now: START, account, sessions: BTreeMap::new(), log, events, used: Vec::new() }
    }

    fn given(&self) -> Context<'_> {
        Context { plan: &self.plan, now: self.now }
    }

    /// Writes what the ledger answered; tells whether there was anything to write.
    fn write(&mut self, answer: Answer) -> bool {
        let Answer::Change(change) = answer else {
            return false;
        };
        let change = Arc::unwrap_or_clone(change);
        assert_eq!(change.account.version, self.account.version + 1);
        self.account = change.account;
        self.log.extend(change.entries);
        self.events.extend(change.events);
        match change.session {
            SessionChange::None => {}
            SessionChange::New(session) => {
                assert!(self.sessions.insert(session.id.clone(), session).is_none());
            }
            SessionChange::Again(session) | SessionChange::Update(session) => {
                assert!(self.sessions.insert(session.id.clone(), session).is_some());
            }
            SessionChange::Several(sessions) => {
                for session in sessions {
                    assert!(self.sessions.insert(session.id.clone(), session).is_some());
                }
            }
        }
        self.used.extend(change.used);
        true
    }

    fn hold(&mut self, session: &str) -> Result<bool, Refusal> {
        let (new, voided) = (NewSession::from(id::<SessionId>(session)), self.sessions.get(&id(session)));
        let hold = (&new, HoldId::random());
        let answer = super::hold(&self.account, &id_of("key"), hold, &id("gw"), voided, self.given())?;
        Ok(self.write(answer))
    }

    fn begin(&mut self, session: &str) -> Result<bool, Refused> {
        self.begin_hold(session, self.session(session).hold)
    }

    fn begin_hold(&mut self, session: &str, hold: HoldId) -> Result<bool, Refused> {
        let answer = super::begin(&self.account, self.session(session), hold, self.now, self.given())?;
        Ok(self.write(answer))
    }

    fn extend(&mut self, session: &str, minutes: u32) -> Result<bool, NotExtended> {
        self.meter(&[(session, minutes, 0)]).remove(0)
    }

    /// So many minutes set aside, and owed, for each of these sessions; whether that changed anything.
    fn meter(&mut self, progress: &[(&str, u32, u32)]) -> Vec<Result<bool, NotExtended>> {
        let sessions: Vec<_> =
            progress.iter().map(|(session, ..)| self.sessions.get(&id(session)).cloned()).collect();
        let of = |(session, minutes, owed): &(&str, u32, u32), record: &Option<Session>| Progress {
            session: id(session),
            hold: record.as_ref().map_or_else(HoldId::random, |session| session.hold),
            begun_at: record.as_ref().and_then(|session| session.begun_at).unwrap_or(self.now),
            minutes: *minutes,
            owed: *owed,
            up_bytes: 0,
            down_bytes: 0,
        };
        let progress: Vec<_> =
            progress.iter().zip(&sessions).map(|(some, record)| of(some, record)).collect();
        let (answer, verdicts) = super::meter(&self.account, &sessions, &progress, self.given());
        let changed = self.write(answer);
        verdicts.into_iter().map(|verdict| verdict.map(|()| changed)).collect()
    }

    fn post(&mut self, session: &str, outcome: Outcome) -> Result<bool, Refused> {
        self.post_hold(session, self.session(session).hold, outcome)
    }

    fn post_hold(&mut self, session: &str, hold: HoldId, outcome: Outcome) -> Result<bool, Refused> {
        let end = End { at: self.now, outcome, up_bytes: 7, down_bytes: 9 };
        let session = self.session(session);
        let answer = super::post(&self.account, session, (hold, &end), REFUNDS_PER_DAY, self.given())?;
        Ok(self.write(answer))
    }

    /// The same where the beginning may not be noted: now, if it is not.
    fn post_begun(&mut self, session: &str, begun_at: Option<Timestamp>) -> Result<bool, Refused> {
        let end = End { at: self.now, outcome: COMPLETED, up_bytes: 7, down_bytes: 9 };
        let session = self.session(session);
        let begun_at = begun_at.or(session.begun_at).unwrap_or(self.now);
        let answer = super::post_begun(
            &self.account,
            session,
            (session.hold, begun_at, &end),
            REFUNDS_PER_DAY,
            self.given(),
        )?;
        Ok(self.write(answer))
    }

    fn void(&mut self, session: &str) -> Result<bool, Refused> {
        self.void_hold(session, self.session(session).hold)
    }

    fn void_hold(&mut self, session: &str, hold: HoldId) -> Result<bool, Refused> {
        let answer = super::void(&self.account, self.session(session), hold, "no browser", self.given())?;
        Ok(self.write(answer))
    }

    fn credit(&mut self, micros: u64) -> Result<bool, Refused> {
        let (amount, command) = (Micros::new(micros), CommandId::random());
        let answer = super::credit(&self.account, amount, &command, &Actor::Operator, self.given())?;
        Ok(self.write(answer))
    }

    fn start(&mut self, session: &str) {
        self.hold(session).unwrap();
        self.begin(session).unwrap();
    }

    /// A whole session of so many minutes, each of them set aside before it starts.
    fn run(&mut self, session: &str, minutes: u32) -> Session {
        self.start(session);
        self.extend(session, minutes).unwrap();
        self.now = Timestamp::from_millis(self.now.as_millis() + u64::from(minutes) * MINUTE);
        self.post(session, COMPLETED).unwrap();
        self.session(session).clone()
    }

    fn session(&self, session: &str) -> &Session {
        &self.sessions[&id::<SessionId>(session)]
    }

    fn pass(&mut self, millis: u64) {
        self.now = Timestamp::from_millis(self.now.as_millis() + millis);
    }

    /// Balance, included, retry and overage.
    fn figures(&self) -> (u64, u32, u32, u64) {
        let Funds { balance, included, retry, overage } = self.account.funds();
        (balance.get(), included, retry, overage.get())
    }

    fn kinds(&self) -> Vec<EntryKind> {
        self.log.iter().map(|entry| entry.kind).collect()
    }

    fn verify(&self) -> Verified {
        let mut replay = Replay::default();
        for entry in &self.log {
            replay.entry(&self.account.id, entry).unwrap();
        }
        let open = self.sessions.values().filter(|session| session.state.is_open()).count();
        replay.finish(&self.account, u32::try_from(open).unwrap()).unwrap()
    }
}

const COMPLETED: Outcome = Outcome::Completed { cause: "client" };
const LOST: Outcome = Outcome::Lost { cause: "crashed" };

fn id<T: std::str::FromStr<Err = crate::id::InvalidId>>(text: &str) -> T {
    text.parse().unwrap()
}

fn id_of(text: &str) -> KeyId {
    id(text)
}

fn key(number: u8) -> Key {
    let hash = crate::audit::Digest([number; 32]);
    let label = format!("key {number}");
    Key { id: id(&format!("key-{number}")), hash, label, created_at: START, revoked_at: None }
}

fn money(balance: u64, required: u64) -> Refusal {
    Refusal::Money { balance: Micros::new(balance), required: Micros::new(required) }
}

// The worked examples of the price list.

#[test]
fn a_month_of_7000_sessions_costs_69_dollars_and_of_7500_costs_74() {
    for (sessions, dollars) in [(5_000, 49), (7_000, 69), (7_500, 74)] {
        let mut desk = Desk::subscription("professional");
        for number in 0..sessions {
            desk.run(&number.to_string(), [1, 5][number % 2]);
            desk.now = START;
        }
        let total = desk.plan.price_month.checked_add(desk.account.overage);
        assert_eq!(total, Some(Micros::new(dollars * 1_000_000)), "{sessions} sessions");
        desk.verify();
    }
}

#[test]
fn a_prepaid_session_of_12_minutes_costs_2_4_cents() {
    let mut desk = Desk::prepaid(1_000_000);
    assert_eq!(desk.run("s", 12).charged, Micros::new(24_000));
    assert_eq!(desk.figures(), (976_000, 0, 0, 0));
    desk.verify();
}

#[test]
fn ten_cents_are_ten_sessions_and_one_cent_is_one() {
    for (micros, sessions) in [(100_000, 10), (10_000, 1), (9_999, 0)] {
        let mut desk = Desk::prepaid(micros);
        let held = (0..20).filter(|number| desk.hold(&number.to_string()).is_ok()).count();
        assert_eq!(held, sessions);
        assert_eq!(desk.hold("more"), Err(money(desk.account.balance.get(), 10_000)));
    }
}

// Refusals.

#[test]
fn a_hold_is_refused_for_the_first_reason() {
    // The key is revoked, the account suspended, the money spent, the limit reached; and what it comes to.
    let limit = || Refusal::Concurrency { limit: 1, plan: "starter".to_owned() };
    let cases = [
        ((true, true, true, true), Err(Refusal::KeyRevoked)),
        ((false, true, true, true), Err(Refusal::Suspended)),
        ((false, false, true, true), Err(money(9_999, 10_000))),
        ((false, false, false, true), Err(limit())),
        ((false, false, false, false), Ok(true)),
    ];
    for ((revoked, suspended, spent, full), expected) in cases {
        let mut desk = Desk::subscription("starter");
        desk.plan.concurrent_sessions = 1;
        desk.account.keys[0].revoked_at = revoked.then_some(START);
        desk.account.suspended = suspended;
        desk.account.included = if spent { 0 } else { 1 };
        desk.account.balance = Micros::new(9_999);
        desk.account.open = u32::from(full);
        let before = desk.account.clone();
        assert_eq!(desk.hold("s"), expected);
        assert_eq!(desk.account == before, expected.is_err());
    }
}

#[test]
fn a_key_of_another_account_is_refused() {
    let desk = Desk::subscription("starter");
    let refused = super::hold(
        &desk.account,
        &id_of("stranger"),
        (&NewSession::from(id::<SessionId>("s")), HoldId::random()),
        &id("gw"),
        None,
        desk.given(),
    );
    assert_eq!(refused, Err(Refusal::KeyRevoked));
}

#[test]
fn commands_are_refused_by_the_session_s_state() {
    use Refused::{ExistsDifferent, State as Wrong};
    type Command = fn(&mut Desk, &str) -> Result<bool, Refused>;
    let begin: Command = |desk, session| desk.begin(session);
    let post: Command = |desk, session| desk.post(session, COMPLETED);
    let post_otherwise: Command = |desk, session| desk.post(session, LOST);
    let void: Command = |desk, session| desk.void(session);
    let post_begun: Command = |desk, session| desk.post_begun(session, None);
    let post_begun_otherwise: Command =
        |desk, session| desk.post_begun(session, Some(Timestamp::from_millis(1)));
    let cases: [(&str, Command, Result<bool, Refused>); 17] = [
        ("held", post_begun, Ok(true)),
        ("open", post_begun, Ok(true)),
        ("open", post_begun_otherwise, Err(ExistsDifferent)),
        ("posted", post_begun, Ok(false)),
        ("voided", post_begun, Err(Wrong(State::Voided))),
        ("held", begin, Ok(true)),
        ("held", post, Err(Wrong(State::Held))),
        ("held", void, Ok(true)),
        ("open", begin, Ok(false)),
        ("open", post, Ok(true)),
        ("open", void, Err(Wrong(State::Open))),
        ("posted", post, Ok(false)),
        ("posted", post_otherwise, Err(ExistsDifferent)),
        ("posted", void, Err(Wrong(State::Posted))),
        ("voided", begin, Err(Wrong(State::Voided))),
        ("voided", post, Err(Wrong(State::Voided))),
        ("voided", void, Ok(false)),
    ];
    for (number, (state, command, expected)) in cases.into_iter().enumerate() {
        let mut desk = Desk::subscription("starter");
        ["open", "posted"].into_iter().for_each(|session| desk.start(session));
        ["held", "voided"].into_iter().for_each(|session| assert_eq!(desk.hold(session), Ok(true)));
        desk.post("posted", COMPLETED).unwrap();
        desk.void("voided").unwrap();
        let before = desk.account.clone();
        assert_eq!(command(&mut desk, state), expected, "case {number}");
        assert_eq!(desk.account == before, expected != Ok(true), "case {number}");
        desk.verify();
    }
}

#[test]
fn a_session_begins_once() {
    let mut desk = Desk::subscription("starter");
    desk.start("s");
    desk.pass(1);
    assert_eq!(desk.begin("s"), Err(Refused::ExistsDifferent));
}

#[test]
fn only_a_session_that_runs_is_metered() {
    let mut desk = Desk::subscription("starter");
    assert_eq!(desk.extend("none", 6), Err(NotExtended::NotOpen));
    desk.hold("s").unwrap();
    assert_eq!(desk.extend("s", 5), Ok(true), "its beginning had not been noted");
    assert_eq!(desk.session("s").begun_at, Some(START));
    assert_eq!(desk.extend("s", 5), Ok(false));
    desk.post("s", COMPLETED).unwrap();
    assert_eq!(desk.extend("s", 6), Err(NotExtended::NotOpen));
}

#[test]
fn sessions_are_metered_together_and_one_that_cannot_pay_keeps_no_other_from_it() {
    let mut desk = Desk::prepaid(3 * 10_000 + 2_000);
    for session in ["a", "b", "c"] {
        desk.start(session);
    }
    let entries = desk.log.len();
    let refused = Err(NotExtended::Refused(money(0, 2_000)));
    assert_eq!(desk.meter(&[("a", 6, 0), ("b", 6, 0), ("c", 5, 0)]), [Ok(true), refused, Ok(true)]);
    assert_eq!(["a", "b", "c"].map(|session| desk.session(session).minutes), [6, 5, 5]);
    assert_eq!(desk.log.len(), entries + 1);
    desk.verify();
}

#[test]
fn minutes_that_an_outage_let_through_are_billed_as_far_as_there_is_money_and_the_rest_is_written_off() {
    let cases = [(20_000, 8, 6_000, 0), (13_000, 8, 3_000, 3_000), (10_000, 8, 0, 6_000)];
    for (micros, owed, paid, written_off) in cases {
        let mut desk = Desk::prepaid(micros);
        desk.start("s");
        assert_eq!(desk.meter(&[("s", owed, owed)]), [Ok(true)]);
        let session = desk.session("s");
        assert_eq!((session.minutes, session.written_off), (8, Micros::new(written_off)), "{micros}");
        assert_eq!(desk.account.balance, Micros::new(micros - 10_000 - paid));
        let is_told = desk.kinds().contains(&EntryKind::WrittenOff);
        assert_eq!(is_told, written_off > 0);

        desk.pass(8 * MINUTE);
        desk.post("s", COMPLETED).unwrap();
        assert_eq!(desk.session("s").charged, Micros::new(10_000 + paid));
        desk.verify();
    }
}

#[test]
fn minutes_that_were_written_off_and_had_not_started_give_nothing_back() {
    let mut desk = Desk::prepaid(13_000);
    desk.start("s");
    desk.meter(&[("s", 8, 8)]).remove(0).unwrap();
    desk.pass(6 * MINUTE);
    desk.post("s", COMPLETED).unwrap();
    let session = desk.session("s");
    assert_eq!((session.charged, session.written_off), (Micros::new(12_000), Micros::ZERO));
    assert_eq!(desk.account.balance, Micros::new(1_000));
    desk.verify();
}

#[test]
fn an_outage_s_minutes_go_to_the_overage_up_to_its_cap() {
    let mut desk = Desk::subscription("professional");
    desk.account.included = 0;
    desk.start("s");
    desk.account.overage = desk.plan.overage_cap.checked_sub(Micros::new(3_000)).unwrap();
    desk.meter(&[("s", 8, 8)]).remove(0).unwrap();
    assert_eq!(desk.account.overage, desk.plan.overage_cap);
    assert_eq!(desk.session("s").written_off, Micros::new(3_000));
}

#[test]
fn amounts_and_texts_out_of_range_are_refused() {
    let mut desk = Desk::prepaid(10_001);
    assert_eq!(desk.credit(0), Err(Refused::OutOfRange));
    assert_eq!(desk.credit(Micros::MAX.get()), Err(Refused::OutOfRange));
    assert_eq!(desk.credit(u64::MAX), Err(Refused::OutOfRange));
    for label in [String::new(), "x".repeat(LABEL_MAX + 1)] {
        let refused =
            super::create_key(&desk.account, Key { label, ..key(1) }, &Actor::Operator, desk.given());
        assert_eq!(refused, Err(Refused::Text { field: "label", limit: LABEL_MAX }));
    }
    desk.start("s");
    assert!(matches!(desk.extend("s", u32::MAX), Err(NotExtended::Refused(Refusal::Money { .. }))));
}

// What a session is paid from.

#[test]
fn a_session_is_paid_from_retry_then_included_then_balance_then_overage() {
    let mut desk = Desk::subscription("professional");
    let funds = Funds { balance: Micros::new(15_000), included: 1, retry: 1, overage: Micros::ZERO };
    desk.account.set_funds(funds);
    let cases = [
        ("a", (15_000, 1, 0, 0)),
        ("b", (15_000, 0, 0, 0)),
        ("c", (5_000, 0, 0, 0)),
        ("d", (0, 0, 0, 5_000)),
        ("e", (0, 0, 0, 15_000)),
    ];
    for (session, expected) in cases {
        desk.hold(session).unwrap();
        assert_eq!(desk.figures(), expected, "{session}");
    }
    let split = Funding { balance: Micros::new(5_000), overage: Micros::new(5_000), ..Funding::default() };
    assert_eq!(desk.session("d").funding, split);
}

#[test]
fn a_prepaid_account_has_neither_included_sessions_nor_overage() {
    let mut desk = Desk::prepaid(15_000);
    assert_eq!((desk.account.included, desk.account.period), (0, None));
    desk.hold("a").unwrap();
    assert_eq!(desk.hold("b"), Err(money(5_000, 10_000)));
}

#[test]
fn overage_ends_at_the_cap() {
    let mut desk = Desk::subscription("professional");
    desk.plan.overage_cap = Micros::new(25_000);
    desk.account.included = 0;
    desk.account.balance = Micros::new(1_000);
    desk.start("a");
    desk.start("b");
    let (balance, required, cap) = (Micros::ZERO, Micros::new(10_000), Micros::new(25_000));
    assert_eq!(desk.hold("c"), Err(Refusal::OverageCap { balance, required, cap }));
    assert_eq!(desk.extend("a", 8), Ok(true));
    assert_eq!(desk.account.overage, cap);
    let required = Micros::new(2_000);
    let refused = Refusal::OverageCap { balance, required, cap };
    assert_eq!(desk.extend("a", 9), Err(NotExtended::Refused(refused)));
}

#[test]
fn further_minutes_of_an_included_session_come_from_balance_then_overage() {
    let mut desk = Desk::subscription("professional");
    desk.account.balance = Micros::new(3_000);
    desk.start("s");
    desk.extend("s", 6).unwrap();
    assert_eq!(desk.figures(), (1_000, 4_999, 0, 0));
    desk.extend("s", 8).unwrap();
    assert_eq!(desk.figures(), (0, 4_999, 0, 3_000));
}

#[test]
fn a_starter_without_balance_gets_five_minutes_and_may_top_up() {
    let mut desk = Desk::subscription("starter");
    desk.start("s");
    assert_eq!(desk.extend("s", 6), Err(NotExtended::Refused(money(0, 2_000))));
    desk.credit(2_000).unwrap();
    assert_eq!(desk.extend("s", 6), Ok(true));
    assert_eq!(desk.figures(), (0, 499, 0, 0));
}

#[test]
fn a_session_keeps_the_terms_that_it_started_with() {
    let mut desk = Desk::prepaid(100_000);
    desk.start("s");
    desk.plan.minute_price = Micros::new(50_000);
    desk.extend("s", 6).unwrap();
    assert_eq!(desk.account.balance, Micros::new(88_000));
}

// What goes back.

#[test]
fn minutes_that_had_not_started_go_back_overage_first() {
    let mut desk = Desk::subscription("professional");
    desk.credit(6_000).unwrap();
    desk.start("s");
    desk.extend("s", 10).unwrap();
    assert_eq!(desk.figures(), (0, 4_999, 0, 4_000));
    desk.pass(6 * MINUTE + 1);
    desk.post("s", COMPLETED).unwrap();
    assert_eq!(desk.figures(), (2_000, 4_999, 0, 0));
    let session = desk.session("s");
    assert_eq!((session.minutes, session.charged), (7, Micros::new(4_000)));
    desk.verify();
}

#[test]
fn minutes_that_were_not_set_aside_are_not_billed() {
    let mut desk = Desk::prepaid(100_000);
    desk.start("s");
    desk.pass(60 * MINUTE);
    desk.post("s", COMPLETED).unwrap();
    assert_eq!((desk.session("s").minutes, desk.account.balance), (5, Micros::new(90_000)));
}

#[test]
fn a_voided_session_costs_nothing() {
    let mut desk = Desk::prepaid(10_000);
    desk.hold("s").unwrap();
    desk.void("s").unwrap();
    assert_eq!(desk.figures(), (10_000, 0, 0, 0));
    assert_eq!((desk.session("s").state, desk.account.open), (State::Voided, 0));
    desk.verify();
}

#[test]
fn the_id_of_a_voided_session_is_free_and_what_comes_late_for_it_does_nothing() {
    let mut desk = Desk::prepaid(20_000);
    desk.hold("s").unwrap();
    let first = desk.session("s").hold;
    desk.void("s").unwrap();
    desk.hold("s").unwrap();
    let second = desk.session("s").hold;
    assert_ne!(first, second);

    let late = |desk: &mut Desk| {
        let before = (desk.session("s").clone(), desk.account.clone());
        assert_eq!(desk.void_hold("s", first), Ok(false));
        assert_eq!(desk.begin_hold("s", first), Err(Refused::HeldAnew));
        assert_eq!(desk.post_hold("s", first, COMPLETED), Err(Refused::HeldAnew));
        let (session, begun_at) = (desk.session("s").clone(), desk.session("s").begun_at);
        let progress = Progress {
            session: session.id.clone(),
            hold: first,
            begun_at: begun_at.unwrap_or(desk.now),
            minutes: 7,
            owed: 7,
            up_bytes: 1,
            down_bytes: 1,
        };
        let metered = super::meter(&desk.account, &[Some(session)], &[progress], desk.given());
        assert_eq!(metered, (Answer::Exists, vec![Err(NotExtended::NotOpen)]));
        assert_eq!((desk.session("s").clone(), desk.account.clone()), before);
    };
    late(&mut desk);
    desk.begin("s").unwrap();
    late(&mut desk);
    desk.post("s", COMPLETED).unwrap();
    late(&mut desk);
    assert_eq!(desk.account.balance, Micros::new(10_000));
    desk.verify();
}

#[test]
fn what_a_session_came_to_is_added_to_the_usage_when_it_ends() {
    let mut desk = Desk::subscription("professional");
    desk.start("included");
    desk.pass(5 * MINUTE);
    desk.post("included", COMPLETED).unwrap();
    desk.start("lost");
    desk.post("lost", LOST).unwrap();
    desk.hold("voided").unwrap();
    desk.void("voided").unwrap();
    let retried = desk.run("retried", 7);

    let used = |at, usage| Used { at, usage };
    let bytes = Usage { sessions: 1, up_bytes: 7, down_bytes: 9, ..Usage::default() };
    let ended = Timestamp::from_millis(START.as_millis() + 5 * MINUTE);
    let (cost, overage) = (Micros::new(4_000), Micros::new(4_000));
    assert_eq!(retried.charged, cost);
    let expected = [
        used(ended, Usage { included: 1, minutes: 5, ..bytes }),
        used(ended, Usage { lost: 1, ..bytes }),
        used(desk.now, Usage { retried: 1, minutes: 7, cost, overage, ..bytes }),
    ];
    assert_eq!(desk.used, expected);
}

#[test]
fn an_account_stands_as_its_next_command_would_find_it() {
    let mut desk = Desk::subscription("starter");
    desk.start("s");
    desk.pass(40 * DAY);
    let standing = super::standing(&desk.account, desk.given());
    assert_eq!((standing.included, standing.version), (500, desk.account.version));
    assert!(standing.period.unwrap().contains(desk.now));
    assert_eq!((desk.account.included, standing.head), (499, desk.account.head));
}

#[test]
fn a_lost_session_gives_back_all_and_a_retry_credit() {
    let mut desk = Desk::prepaid(100_000);
    desk.start("s");
    desk.extend("s", 9).unwrap();
    desk.pass(9 * MINUTE);
    desk.post("s", LOST).unwrap();
    assert_eq!(desk.figures(), (100_000, 0, 1, 0));
    let session = desk.session("s");
    assert!(session.lost && session.refunded && session.charged == Micros::ZERO);
    assert_eq!(desk.log.last().unwrap().kind, EntryKind::LostRefund);

    desk.hold("again").unwrap();
    assert_eq!(desk.figures(), (100_000, 0, 0, 0));
    desk.verify();
}

#[test]
fn lost_sessions_are_refunded_up_to_a_number_a_day() {
    let mut desk = Desk::prepaid(1_000_000);
    let lose = |desk: &mut Desk, session: &str| {
        desk.start(session);
        desk.post(session, LOST).unwrap();
        desk.session(session).refunded
    };
    assert_eq!(["a", "b", "c"].map(|session| lose(&mut desk, session)), [true, true, false]);
    assert!(desk.session("c").lost);
    assert_eq!(desk.log.last().unwrap().kind, EntryKind::Posted);
    desk.pass(DAY);
    assert!(lose(&mut desk, "d"));
    desk.now = START;
    assert!(lose(&mut desk, "e"), "a clock that goes back counts on the later day");
    assert!(!lose(&mut desk, "f"), "and starts no new one");
    desk.verify();
}

#[test]
fn an_abandoned_session_is_billed_to_the_last_sign_of_life() {
    // The last sign of life, in milliseconds from the beginning, and the minutes billed.
    let cases =
        [(None, 1), (Some(0), 1), (Some(MINUTE), 1), (Some(MINUTE + 1), 2), (Some(5 * MINUTE + 1), 6)];
    for (seen, minutes) in cases {
        let mut desk = Desk::prepaid(100_000);
        desk.start("s");
        desk.extend("s", 8).unwrap();
        desk.pass(DAY);
        let seen = seen.map(|millis| Timestamp::from_millis(START.as_millis() + millis));
        let answer = super::expire(&desk.account, desk.session("s"), seen, &id("other"), desk.given());
        assert!(desk.write(answer.unwrap()));
        let session = desk.session("s");
        assert_eq!((session.state, session.minutes), (State::Posted, minutes), "{seen:?}");
        assert_eq!(session.cause.as_deref(), Some(GATEWAY_LOST));
        assert_eq!(desk.log.last().unwrap().actor, Actor::Gateway(id("other")));
        desk.verify();
    }
}

#[test]
fn an_abandoned_session_that_never_began_is_voided() {
    let mut desk = Desk::prepaid(10_000);
    desk.hold("s").unwrap();
    let answer = super::expire(&desk.account, desk.session("s"), Some(START), &id("other"), desk.given());
    assert!(desk.write(answer.unwrap()));
    assert_eq!((desk.session("s").state, desk.account.balance), (State::Voided, Micros::new(10_000)));
}

// Renewal.

#[test]
fn the_next_command_after_the_period_renews_first() {
    let mut desk = Desk::subscription("professional");
    desk.account.included = 0;
    desk.hold("a").unwrap();
    desk.pass(31 * DAY - 1);
    desk.hold("b").unwrap();
    assert_eq!(desk.figures(), (0, 0, 0, 20_000));
    desk.pass(1);
    desk.hold("c").unwrap();
    assert_eq!(desk.figures(), (0, 4_999, 0, 0));

    let [.., renewed, held] = desk.log.as_slice() else { panic!() };
    assert_eq!((renewed.kind, &renewed.actor), (EntryKind::Renewed, &Actor::System));
    assert_eq!((renewed.included, renewed.overage), (5_000, -20_000));
    assert_eq!(held.kind, EntryKind::Held);
    assert_eq!(desk.account.last_billed, Some(desk.now));
}

#[test]
fn a_starter_renews_with_the_calendar_month_and_after_a_rest_once() {
    let mut desk = Desk::subscription("starter");
    desk.start("s");
    desk.pass(200 * DAY); // 2027-08-03
    desk.credit(1).unwrap();
    let expected =
        [EntryKind::Opened, EntryKind::KeyCreated, EntryKind::Held, EntryKind::Renewed, EntryKind::Credited];
    assert_eq!(desk.kinds(), expected);
    assert_eq!(desk.account.period, Some(Period::calendar_month(desk.now)));
    assert_eq!(desk.account.included, 500);
    desk.verify();
}

#[test]
fn a_prepaid_account_never_renews() {
    let mut desk = Desk::prepaid(10_000);
    desk.pass(400 * DAY);
    desk.credit(1).unwrap();
    assert!(!desk.kinds().contains(&EntryKind::Renewed));
}

#[test]
fn overage_of_a_period_that_is_closed_comes_back_as_balance() {
    let mut desk = Desk::subscription("professional");
    desk.account.included = 0;
    desk.start("s");
    desk.pass(31 * DAY);
    desk.post("s", LOST).unwrap();
    assert_eq!(desk.figures(), (10_000, 5_000, 1, 0));
}

// Keys and suspension.

#[test]
fn suspending_twice_changes_nothing() {
    let mut desk = Desk::subscription("starter");
    for (suspended, changes) in [(false, false), (true, true), (true, false), (false, true)] {
        let answer = super::suspend(&desk.account, suspended, &Actor::Operator, desk.given());
        assert_eq!(desk.write(answer), changes);
    }
    let expected = [EntryKind::Opened, EntryKind::KeyCreated, EntryKind::Suspended, EntryKind::Resumed];
    assert_eq!(desk.kinds(), expected);
}

#[test]
fn a_running_session_of_a_suspended_account_goes_on() {
    let mut desk = Desk::prepaid(100_000);
    desk.start("s");
    let answer = super::suspend(&desk.account, true, &Actor::Operator, desk.given());
    desk.write(answer);
    assert_eq!(desk.extend("s", 6), Ok(true));
    assert_eq!(desk.post("s", COMPLETED), Ok(true));
}

#[test]
fn keys_are_bounded_and_the_first_revoked_makes_room() {
    let mut desk = Desk::subscription("starter");
    let create = |desk: &mut Desk, number| {
        let answer = super::create_key(&desk.account, key(number), &Actor::Operator, desk.given())?;
        Ok(desk.write(answer))
    };
    let revoke = |desk: &mut Desk, key: &str| {
        let answer = super::revoke_key(&desk.account, &id_of(key), &Actor::Operator, desk.given())?;
        Ok(desk.write(answer))
    };
    let room = u8::try_from(KEYS_MAX).unwrap() - 1;
    for number in 0..room {
        assert_eq!(create(&mut desk, number), Ok(true));
    }
    assert_eq!(create(&mut desk, 100), Err(Refused::TooManyKeys));
    assert_eq!(revoke(&mut desk, "nobody"), Err(Refused::NoKey));
    assert_eq!(revoke(&mut desk, "key-7"), Ok(true));
    assert_eq!(revoke(&mut desk, "key-7"), Ok(false));
    desk.pass(1);
    assert_eq!(revoke(&mut desk, "key-3"), Ok(true));
    assert_eq!(create(&mut desk, 100), Ok(true));
    assert_eq!(desk.account.keys.len(), KEYS_MAX);
    assert!(desk.account.keys.iter().all(|key| key.id.as_str() != "key-7"));
    desk.verify();
}

#[test]
fn what_happened_is_told_once_with_its_session_its_duration_and_its_cost() {
    let mut desk = Desk::prepaid(100_000);
    desk.run("s", 12);
    desk.start("t");
    desk.post("t", Outcome::Lost { cause: "browser crashed" }).unwrap();
    desk.hold("u").unwrap();
    desk.void("u").unwrap();
    let told: Vec<_> = desk
        .events
        .iter()
        .map(|event| (event.id.as_str(), event.kind.as_str(), event.duration, event.cost.map(Micros::get)))
        .collect();
    assert_eq!(
        told,
        [
            ("acme-1-0", "customer:activated", None, None),
            ("acme-2-0", "customer:low-balance", None, None),
            ("acme-3-0", "session:started", None, None),
            ("acme-5-0", "session:completed", Some(12 * MINUTE), Some(24_000)),
            ("acme-7-0", "session:started", None, None),
            ("acme-8-0", "session:lost", Some(0), Some(0)),
        ]
    );
}

#[test]
fn a_low_balance_is_told_once_until_enough_is_added() {
    let mut desk = Desk::prepaid(110_000);
    let told = |desk: &Desk| {
        let low = desk.events.iter().filter(|event| event.kind == EventKind::LowBalance);
        low.map(|event| (event.balance.unwrap().get(), event.threshold.unwrap().get())).collect::<Vec<_>>()
    };
    let credit = |desk: &mut Desk, command: &str, amount| {
        let amount = Micros::new(amount);
        let answer = super::credit(&desk.account, amount, &id(command), &Actor::Operator, desk.given());
        desk.write(answer.unwrap());
    };
    let set = |desk: &mut Desk, below: Option<u64>| {
        let below = below.map(Micros::new);
        let answer = super::set_low_balance(&desk.account, below, &Actor::Operator, desk.given()).unwrap();
        desk.write(answer)
    };
    desk.start("a");
    assert_eq!(told(&desk), [], "ten sessions are left");
    desk.start("b");
    assert_eq!(told(&desk), [(90_000, 100_000)]);
    // What comes back is no reason to tell again when it goes.
    desk.post("b", Outcome::Lost { cause: "crashed" }).unwrap();
    for session in ["retry", "c", "d"] {
        desk.start(session);
    }
    credit(&mut desk, "c1", 4_999);
    desk.start("e");
    assert_eq!((told(&desk).len(), desk.account.balance.get()), (1, 74_999));
    credit(&mut desk, "c2", 100_000);
    assert_eq!(desk.extend("a", 6), Ok(true));
    assert_eq!(told(&desk).len(), 1);
    desk.extend("a", 50).unwrap();
    assert_eq!(told(&desk).len(), 2, "a minute that is set aside counts as well");

    assert!(set(&mut desk, Some(0)));
    assert!(!set(&mut desk, Some(0)));
    credit(&mut desk, "c3", 200_000);
    desk.extend("a", 130).unwrap();
    assert_eq!(told(&desk).len(), 2, "nobody wants to know");
    assert!(set(&mut desk, Some(30_000)));
    desk.extend("a", 185).unwrap();
    assert_eq!(told(&desk)[2].1, 30_000);
    desk.verify();

    let mut included = Desk::subscription("starter");
    included.start("a");
    assert_eq!(told(&included), [], "nothing was taken from a balance that was never there");
}

#[test]
fn refusals_are_told_once_a_minute() {
    let mut desk = Desk::prepaid(0);
    let tell = |desk: &Desk| {
        let refusal = Refusal::Money { balance: Micros::ZERO, required: Micros::new(10_000) };
        super::tell_refused(&desk.account, &id("s"), &refusal, desk.given())
    };
    for (pass, told) in [(0, true), (MINUTE - 1, false), (1, true), (1, false)] {
        desk.pass(pass);
        let answer = tell(&desk);
        assert_eq!(desk.write(answer), told, "{pass}");
    }
    assert_eq!(desk.events.len(), 3);
    assert_eq!(desk.verify().entries, 2, "no money moved");
}
