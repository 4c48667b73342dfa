use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use futures_util::future::{join, join_all};
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::audit::EntryKind;
use crate::event::{Event, EventKind};
use crate::request::SessionRequest;
use crate::session::{Outcome, State};
use crate::store::LIST_MAX;
use crate::store::memory::{Line, Memory};
use crate::store::redis_server::Server;
use crate::sweep::Sweeper;

mod ahead;
mod deferred;
mod group;
mod history;
mod moving;
mod year;

const MINUTE: u64 = 60_000;

/// 2027-01-15T10:00:00Z.
const START: Timestamp = Timestamp::from_millis(1_800_007_200_000);

const COMPLETED: Outcome = Outcome::Completed { cause: "client" };

fn after(millis: u64) -> Timestamp {
    Timestamp::from_millis(START.as_millis() + millis)
}

fn end(at: Timestamp) -> End {
    End { at, outcome: COMPLETED, up_bytes: 1, down_bytes: 2 }
}

fn session(name: &str) -> SessionId {
    name.parse().unwrap()
}

fn gateway(name: &str) -> GatewayId {
    name.parse().unwrap()
}

/// For those to whom it is of no matter which hold of an id they speak of: the one that there is.
impl Billing {
    pub(crate) async fn begin_latest(
        &self,
        account: &AccountId,
        session: &SessionId,
        at: Timestamp,
        now: Timestamp,
    ) -> Result<(), Error> {
        let hold = self.latest(account, session).await;
        self.begin(SessionName { account, session, hold }, at, now).await
    }

    pub(crate) async fn post_latest(
        &self,
        account: &AccountId,
        session: &SessionId,
        end: End,
        now: Timestamp,
    ) -> Result<Session, Error> {
        let hold = self.latest(account, session).await;
        self.post(SessionName { account, session, hold }, end, now).await
    }

    async fn latest(&self, account: &AccountId, session: &SessionId) -> HoldId {
        let known = self.session(account, session).await.ok().flatten();
        known.map_or_else(HoldId::random, |known| known.hold)
    }
}

fn reserved(session: &Session) -> Reserved {
    Reserved { session: session.clone(), concurrent: 1, cover: Cover::Held }
}

/// A store of one's own.
struct Bench {
    billing: Billing,
    place: Place,
}

enum Place {
    Folder(TempDir),
    Server(Server),
    /// What the simulation runs on.
    Memory(Arc<Mutex<Memory>>),
}

impl Place {
    fn open(&self, catalogue: Catalogue) -> Billing {
        let url = match self {
            Place::Memory(server) => {
                return Billing::over(Line::to(server), catalogue, Limits::default(), HoldIds::new());
            }
            Place::Folder(folder) => StoreUrl::Sqlite(folder.path().join("ledger.db")),
            Place::Server(server) => server.url(),
        };
        Billing::open(&url, catalogue, Limits::default()).unwrap()
    }
}

impl Bench {
    fn embedded() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let billing = open(&StoreUrl::Sqlite(folder.path().join("ledger.db")));
        Bench { place: Place::Folder(folder), billing }
    }

    fn redis() -> Bench {
        let server = Server::start();
        let billing = open(&server.url());
        Bench { place: Place::Server(server), billing }
    }

    fn memory() -> Bench {
        let place = Place::Memory(Arc::default());
        Bench { billing: place.open(Catalogue::default()), place }
    }

    /// What another process does, or the same after a restart.
    fn another(&self) -> Billing {
        self.place.open(Catalogue::default())
    }

    fn url(&self) -> StoreUrl {
        match &self.place {
            Place::Folder(folder) => StoreUrl::Sqlite(folder.path().join("ledger.db")),
            Place::Server(server) => server.url(),
            Place::Memory(_) => unreachable!("no other program can reach it"),
        }
    }

    /// What a kill of this process at this moment leaves, opened anew.
    fn killed(&self) -> (Option<TempDir>, Billing) {
        let Place::Folder(files) = &self.place else {
            return (None, self.another());
        };
        let folder = tempfile::tempdir().unwrap();
        for name in ["ledger.db", "ledger.db-wal", "ledger.db-holds"] {
            if !files.path().join(name).exists() {
                continue;
            }
            fs::copy(files.path().join(name), folder.path().join(name)).unwrap();
        }
        let billing = open(&StoreUrl::Sqlite(folder.path().join("ledger.db")));
        (Some(folder), billing)
    }

    async fn prepaid(&self, micros: u64) -> Customer {
        let new = NewCustomer { prepaid: Some(Micros::new(micros)), ..customer("professional") };
        let (account, secret) = self.billing.create_customer(new, Actor::Operator, START).await.unwrap();
        let who = self.billing.authenticate(secret.expose()).await.unwrap().unwrap();
        Customer { id: account.id, secret, who }
    }
}

/// What every store must do, asked of each; also of the simulation's, so that it is known to do what the others do. What
/// looks into the store from outside is asked of the real ones alone.
macro_rules! of_every_store {
    ($($promise:ident)* $(; of the real ones: $($real:ident)*)?) => {
        mod embedded_store {
            $(#[tokio::test] async fn $promise() { super::$promise(super::Bench::embedded()).await })*
            $($(#[tokio::test] async fn $real() { super::$real(super::Bench::embedded()).await })*)?
        }
        mod redis_store {
            $(#[tokio::test] async fn $promise() { super::$promise(super::Bench::redis()).await })*
            $($(#[tokio::test] async fn $real() { super::$real(super::Bench::redis()).await })*)?
        }
        mod memory_store {
            $(#[tokio::test] async fn $promise() { super::$promise(super::Bench::memory()).await })*
        }
    };
}

// Behind the macro, which they use.
mod consumers;
mod unread;
mod sealing;
mod erasing;

of_every_store! {
    a_session_from_hold_to_final_record
    a_repeated_hold_answers_its_session_and_charges_once
    a_repeat_that_asks_for_something_else_is_told_apart
    the_id_of_a_voided_session_is_free_again
    what_comes_late_for_a_session_says_nothing_of_a_later_one_of_its_id
    the_id_of_a_voided_session_is_taken_by_one
    what_was_given_on_credit_is_billed_though_it_was_given_up_meanwhile
    two_accounts_may_use_the_same_session_id
    a_credit_is_made_once
    commands_at_the_same_time_are_carried_out_once_each
    customers_are_unique_and_on_a_plan_that_exists
    unknown_accounts_and_sessions_are_told_apart
    an_account_on_a_plan_that_was_removed_says_so
    all_gateways_of_a_store_sign_with_one_key
    two_processes_never_spend_the_same_cent
    what_another_process_changed_is_seen_by_the_next_command
    a_key_that_was_revoked_here_is_unknown_at_once
    a_killed_gateway_s_sessions_are_settled_up_to_its_last_heartbeat
    a_dead_gateway_is_settled_once_by_the_others_and_one_that_lives_is_left_alone
    a_gateway_that_was_taken_for_dead_comes_back
    a_store_that_was_closed_holds_all_it_held
    lists_are_in_order_and_bounded
    a_list_goes_on_behind_its_cursor_among_sessions_of_one_instant
    usage_is_kept_by_hour_for_two_months_and_by_month_for_ever
    what_is_left_counts_included_sessions_and_balance_together
    commands_may_be_spawned
    events_are_told_in_the_order_of_their_changes
}

struct Customer {
    id: AccountId,
    secret: Secret,
    who: Principal,
}

fn open(url: &StoreUrl) -> Billing {
    Billing::open(url, Catalogue::default(), Limits::default()).unwrap()
}

fn customer(plan: &str) -> NewCustomer {
    NewCustomer { id: None, email: "a@example.com".to_owned(), plan: plan.to_owned(), prepaid: None }
}

/// Minutes set aside for a session that has begun.
async fn extend(
    billing: &Billing,
    account: &AccountId,
    id: &SessionId,
    minutes: u32,
) -> Result<(), ExtendError> {
    let known = billing.session(account, id).await?.ok_or(ExtendError::NotOpen)?;
    let begun_at = known.begun_at.ok_or(ExtendError::NotOpen)?;
    billing.meter(account, &[minutes_of(&known, begun_at, minutes)], begun_at).await?.remove(0)
}

/// So many minutes, all of which the store was there for.
fn minutes_of(session: &Session, begun_at: Timestamp, minutes: u32) -> Progress {
    let (session, hold) = (session.id.clone(), session.hold);
    Progress { session, hold, begun_at, minutes, owed: 0, up_bytes: 0, down_bytes: 0 }
}

async fn balance(billing: &Billing, id: &AccountId) -> u64 {
    billing.account(id).await.unwrap().unwrap().balance.get()
}

async fn a_session_from_hold_to_final_record(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(1_000_000).await;
    let billing = &bench.billing;

    let held = billing.hold(&who, session("s"), &gateway("gw"), START).await.unwrap();
    assert_eq!((held.concurrent, held.session.state, held.plan_terms), (1, State::Held, held.session.terms));
    billing.begin_latest(&id, &session("s"), START, START).await.unwrap();
    assert_eq!(billing.open_sessions().await.unwrap().len(), 1);
    for minutes in 6..=12 {
        extend(billing, &id, &session("s"), minutes).await.unwrap();
    }
    let posted = billing.post_latest(&id, &session("s"), end(after(12 * MINUTE)), START).await.unwrap();
    assert_eq!((posted.charged, posted.state), (Micros::new(24_000), State::Posted));

    let again = billing.post_latest(&id, &session("s"), end(after(12 * MINUTE)), after(1)).await.unwrap();
    assert_eq!(again, posted);
    let other = billing.post_latest(&id, &session("s"), end(START), START).await;
    assert!(matches!(other, Err(Error::Refused(Refused::ExistsDifferent))));
    assert_eq!(billing.session(&id, &session("s")).await.unwrap(), Some(posted));
    assert_eq!(balance(billing, &id).await, 976_000);
    assert_eq!(billing.verify(&id).await.unwrap().open, 0);
}

async fn a_repeated_hold_answers_its_session_and_charges_once(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(10_000).await;
    let gateway = gateway("gw");
    let hold = || bench.billing.hold(&who, session("s"), &gateway, START);
    let held = hold().await.unwrap().session;
    // No money is left for another session, but this is none.
    assert!(matches!(hold().await, Err(HoldError::Exists(exists)) if *exists == held));
    bench
        .billing
        .credit(&id, Micros::new(10_000), CommandId::random(), Actor::Operator, START)
        .await
        .unwrap();
    assert!(matches!(hold().await, Err(HoldError::Exists(exists)) if *exists == held));
    assert_eq!(balance(&bench.billing, &id).await, 10_000);
}

async fn a_repeat_that_asks_for_something_else_is_told_apart(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(10_000).await;
    let gateway = gateway("gw");
    let asking = |timeout| {
        let request = SessionRequest { timeout, ..SessionRequest::default() };
        let new = NewSession::named(session("s"), request);
        bench.billing.hold(&who, new, &gateway, START)
    };
    let minute = Some(Duration::from_secs(60));
    let held = asking(minute).await.unwrap().session;
    assert_eq!(held.request.timeout, minute);
    assert!(matches!(asking(minute).await, Err(HoldError::Exists(exists)) if *exists == held));
    for other in [None, Some(Duration::from_secs(61))] {
        assert!(matches!(asking(other).await, Err(HoldError::ExistsDifferent(exists)) if *exists == held));
    }
    assert_eq!(balance(&bench.billing, &id).await, 0);
}

async fn the_id_of_a_voided_session_is_free_again(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(10_000).await;
    let (billing, gateway) = (&bench.billing, gateway("gw"));
    let hold = || billing.hold(&who, session("s"), &gateway, START);
    let first = hold().await.unwrap().session;
    billing.void(first.name(), "no browser", START).await.unwrap();
    let second = hold().await.unwrap().session;
    assert_eq!((second.hold == first.hold, second.state), (false, State::Held));

    assert_eq!(billing.void(first.name(), "no browser", START).await.unwrap(), second);
    assert!(matches!(hold().await, Err(HoldError::Exists(exists)) if *exists == second));
    billing.begin_latest(&id, &session("s"), START, START).await.unwrap();
    billing.post_latest(&id, &session("s"), end(START), START).await.unwrap();
    assert!(matches!(hold().await, Err(HoldError::Exists(exists)) if exists.state == State::Posted));
    assert_eq!(bench.billing.sessions(&id, None, 10).await.unwrap().len(), 1);
    assert_eq!(bench.billing.verify(&id).await.unwrap().open, 0);
}

async fn what_comes_late_for_a_session_says_nothing_of_a_later_one_of_its_id(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(10_000).await;
    let (here, there) = (&bench.billing, bench.another());
    let first = here.hold(&who, session("s"), &gateway("away"), START).await.unwrap().session;
    there.settle_abandoned(&gateway("sweeps"), after(1)).await.unwrap();
    let second = there.hold(&who, session("s"), &gateway("sweeps"), after(2)).await.unwrap().session;

    let tell = async || {
        let begun = here.begin(first.name(), after(1), after(3)).await;
        assert!(matches!(begun, Err(Error::Refused(Refused::HeldAnew))), "{begun:?}");
        let mut owed = minutes_of(&first, after(1), 7);
        owed.owed = 7;
        let metered = here.meter(&id, &[owed], after(3)).await.unwrap();
        assert!(matches!(metered[..], [Err(ExtendError::NotOpen)]), "{metered:?}");
        let posted = here.post(first.name(), end(after(2)), after(3)).await;
        assert!(matches!(posted, Err(Error::Refused(Refused::HeldAnew))), "{posted:?}");
        let restored = here.restore(&first, after(3)).await;
        assert!(matches!(restored, Err(HoldError::Exists(_))), "{restored:?}");
        let owes = Debt {
            account: id.clone(),
            session: session("s"),
            hold: first.hold,
            begun_at: after(1),
            minutes: 7,
            at: after(2),
            up_bytes: 0,
            down_bytes: 0,
            end: None,
            credit: Credit::of(&Reserved {
                session: first.clone(),
                cover: Cover::Credit,
                ..reserved(&second)
            }),
        };
        assert!(!here.repay(&owes, after(3)).await.unwrap());
        here.void(first.name(), "no browser", after(3)).await.unwrap();
    };
    tell().await;
    assert_eq!(there.session(&id, &session("s")).await.unwrap(), Some(second.clone()));
    there.begin(second.name(), after(2), after(4)).await.unwrap();
    tell().await;
    let posted = there.post(second.name(), end(after(5)), after(5)).await.unwrap();
    assert_eq!((posted.hold, posted.begun_at), (second.hold, Some(after(2))));
    tell().await;
    assert_eq!(there.session(&id, &session("s")).await.unwrap(), Some(posted));
    assert_eq!((balance(&there, &id).await, there.verify(&id).await.unwrap().open), (0, 0));
}

async fn what_was_given_on_credit_is_billed_though_it_was_given_up_meanwhile(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(100_000).await;
    let (here, there) = (&bench.billing, bench.another());
    let known = here.hold(&who, session("s"), &gateway("away"), START).await.unwrap().session;
    here.void(known.name(), "no browser", START).await.unwrap();
    let new = NewSession::fresh(SessionRequest::default());
    let given = Reserved::unsecured(&who, &new, known.terms, &gateway("away"), START).unwrap();
    let Session { id: name, hold, .. } = given.session.clone();
    let owed = Debt {
        account: id.clone(),
        session: name.clone(),
        hold,
        begun_at: after(1),
        minutes: 0,
        at: after(1),
        up_bytes: 0,
        down_bytes: 0,
        end: None,
        credit: Credit::of(&given),
    };
    // Its gateway is killed between the two commits of which that consists.
    here.hold_begun(&owed, after(2)).await.unwrap();
    assert_eq!(balance(here, &id).await, 90_000);
    there.settle_abandoned(&gateway("sweeps"), after(3)).await.unwrap();
    assert_eq!(there.session(&id, &name).await.unwrap().unwrap().state, State::Voided);
    assert_eq!(balance(&there, &id).await, 100_000);

    for _ in 0..2 {
        assert!(here.repay(&owed, after(4)).await.unwrap());
        let held = here.session(&id, &name).await.unwrap().unwrap();
        assert_eq!((held.hold, held.begun_at, held.state), (hold, Some(after(1)), State::Open));
        assert_eq!(balance(here, &id).await, 90_000);
    }
    here.post(owed.name(), end(after(5)), after(5)).await.unwrap();
    assert!(!here.repay(&owed, after(6)).await.unwrap());
    assert_eq!((balance(&there, &id).await, there.verify(&id).await.unwrap().open), (90_000, 0));
}

async fn the_id_of_a_voided_session_is_taken_by_one(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(100_000).await;
    let gateway = gateway("gw");
    let held = bench.billing.hold(&who, session("s"), &gateway, START).await.unwrap().session;
    bench.billing.void(held.name(), "no browser", START).await.unwrap();

    let theirs = bench.another();
    let (ours, theirs) = tokio::join!(
        bench.billing.hold(&who, session("s"), &gateway, START),
        theirs.hold(&who, session("s"), &gateway, START)
    );
    assert_ne!(ours.is_ok(), theirs.is_ok());
    assert_eq!(balance(&bench.billing, &id).await, 90_000);
}

async fn two_accounts_may_use_the_same_session_id(bench: Bench) {
    for _ in 0..2 {
        let who = bench.prepaid(10_000).await.who;
        bench.billing.hold(&who, session("s"), &gateway("gw"), START).await.unwrap();
    }
}

async fn a_credit_is_made_once(bench: Bench) {
    let id = bench.prepaid(0).await.id;
    let command = CommandId::random();
    let credit =
        |micros| bench.billing.credit(&id, Micros::new(micros), command.clone(), Actor::Operator, START);
    assert_eq!(credit(5).await.unwrap().balance, Micros::new(5));
    assert_eq!(credit(5).await.unwrap().balance, Micros::new(5));
    assert!(matches!(credit(6).await, Err(Error::Refused(Refused::ExistsDifferent))));
    let theirs = bench.another();
    let repeated = theirs.credit(&id, Micros::new(5), command.clone(), Actor::Operator, START).await.unwrap();
    assert_eq!(repeated.balance, Micros::new(5));
}

/// Those that meet on one account in one process are committed together where the store is far away.
async fn commands_at_the_same_time_are_carried_out_once_each(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(100_000).await;
    let (billing, gateway) = (&bench.billing, &gateway("gw"));
    let hold = |number: usize| {
        let id = session(&format!("s{}", number % 20));
        async { billing.hold(&who, id, gateway, START).await }
    };
    let credit = |number: usize| {
        let command = format!("c{}", number % 5).parse().unwrap();
        billing.credit(&id, Micros::new(7), command, Actor::Operator, START)
    };
    let holds = join_all((0..60).map(hold));
    let (held, credited) = join(holds, join_all((0..20).map(credit))).await;

    assert!(credited.iter().all(Result::is_ok), "{credited:?}");
    let count = |is: fn(&HoldError) -> bool| held.iter().filter(|held| held.as_ref().is_err_and(is)).count();
    assert_eq!(held.iter().filter(|held| held.is_ok()).count(), 10, "there is money for ten");
    assert_eq!(count(|error| matches!(error, HoldError::Exists(_))), 20);
    assert_eq!(count(|error| matches!(error, HoldError::Refused(Refusal::Money { .. }))), 30);
    assert_eq!(balance(billing, &id).await, 5 * 7);

    let held: Vec<_> = held.into_iter().flatten().map(|held| held.session.id).collect();
    let begun = join_all(held.iter().map(|session| billing.begin_latest(&id, session, START, START))).await;
    assert!(begun.iter().all(Result::is_ok), "{begun:?}");
    let posted =
        join_all(held.iter().map(|session| billing.post_latest(&id, session, end(after(1)), after(1)))).await;
    assert!(posted.iter().all(Result::is_ok), "{posted:?}");
    let verified = billing.verify(&id).await.unwrap();
    assert_eq!((verified.open, verified.entries), (0, 3 + 5 + 10 + 10));
}

async fn customers_are_unique_and_on_a_plan_that_exists(bench: Bench) {
    let create = |new| bench.billing.create_customer(new, Actor::Operator, START);
    let acme = || NewCustomer { id: Some("acme".parse().unwrap()), ..customer("starter") };
    create(acme()).await.unwrap();
    assert!(matches!(create(acme()).await, Err(Error::AccountExists)));
    assert!(matches!(create(customer("gold")).await, Err(Error::NoPlan(plan)) if plan == "gold"));
    let nameless = NewCustomer { email: String::new(), ..customer("starter") };
    assert!(matches!(create(nameless).await, Err(Error::Refused(Refused::Text { field: "email", .. }))));
    let rich = NewCustomer { prepaid: Some(Micros::new(u64::MAX)), ..customer("starter") };
    assert!(matches!(create(rich).await, Err(Error::Refused(Refused::OutOfRange))));
    assert_eq!(bench.billing.accounts().await.unwrap().len(), 1);
}

async fn unknown_accounts_and_sessions_are_told_apart(bench: Bench) {
    let Customer { id, secret, who } = bench.prepaid(0).await;
    let (nobody, none) = ("nobody".parse().unwrap(), session("none"));
    let post = |account| bench.billing.post_latest(account, &none, end(START), START);
    assert!(matches!(post(&nobody).await, Err(Error::NoAccount)));
    assert!(matches!(post(&id).await, Err(Error::NoSession)));
    assert!(matches!(extend(&bench.billing, &id, &none, 6).await, Err(ExtendError::NotOpen)));
    assert!(matches!(bench.billing.verify(&nobody).await, Err(Error::NoAccount)));
    let credit = bench.billing.credit(&nobody, Micros::new(1), CommandId::random(), Actor::Operator, START);
    assert!(matches!(credit.await, Err(Error::NoAccount)));
    let stranger = Principal { account: nobody.clone(), ..who };
    let hold = bench.billing.hold(&stranger, none.clone(), &gateway("gw"), START).await;
    assert!(matches!(hold, Err(HoldError::Refused(Refusal::KeyRevoked))));
    for presented in
        ["", "ufb_", &secret.expose().replace("ufb_", "ufc_"), &format!("ufb_{}", "a".repeat(52))]
    {
        assert_eq!(bench.billing.authenticate(presented).await.unwrap(), None);
    }
}

async fn an_account_on_a_plan_that_was_removed_says_so(bench: Bench) {
    let mut catalogue = Catalogue::default();
    catalogue.insert(Plan { name: "gold".to_owned(), ..catalogue.get("starter").unwrap().clone() });
    let richer = bench.place.open(catalogue);
    let (account, _) = richer.create_customer(customer("gold"), Actor::Operator, START).await.unwrap();
    let suspended = bench.billing.suspend(&account.id, true, Actor::Operator, START).await;
    assert!(matches!(suspended, Err(Error::Store(StoreError::UnknownPlan(plan))) if plan == "gold"));
}

#[tokio::test]
async fn money_that_moves_for_good_waits_for_the_disk_and_a_session_s_path_does_not() {
    let bench = Bench::embedded();
    let Store::Embedded(store) = bench.billing.store() else { unreachable!() };
    let Customer { id, who, .. } = bench.prepaid(100_000).await;
    let (billing, gateway, by) = (&bench.billing, gateway("gw"), || Actor::Operator);
    let mut before = store.tickets();
    assert_eq!(before, 1, "opening an account waits");
    let mut waited = || store.tickets() - std::mem::replace(&mut before, store.tickets());

    billing.hold(&who, session("a"), &gateway, START).await.unwrap();
    let b = billing.hold(&who, session("b"), &gateway, START).await.unwrap().session;
    billing.begin_latest(&id, &session("a"), START, START).await.unwrap();
    extend(billing, &id, &session("a"), 6).await.unwrap();
    billing.heartbeat(&gateway, START).await.unwrap();
    assert_eq!(waited(), 0);

    billing.post_latest(&id, &session("a"), end(START), START).await.unwrap();
    assert_eq!(waited(), 1);
    billing.post_latest(&id, &session("a"), end(START), START).await.unwrap();
    assert_eq!(waited(), 1, "the first may have been given up before it was durable");
    billing.void(b.name(), "no browser", START).await.unwrap();
    assert_eq!(waited(), 1);
    for _ in 0..2 {
        billing.credit(&id, Micros::new(1), "c".parse().unwrap(), by(), START).await.unwrap();
        assert_eq!(waited(), 1);
    }
    billing.suspend(&id, true, by(), START).await.unwrap();
    billing.create_key(&id, "ci".to_owned(), by(), START).await.unwrap();
    billing.revoke_key(&id, &who.key, by(), START).await.unwrap();
    assert_eq!(waited(), 3);
}

// Two processes on one store.

async fn all_gateways_of_a_store_sign_with_one_key(bench: Bench) {
    let (one, other) =
        (bench.billing.signing_key().await.unwrap(), bench.another().signing_key().await.unwrap());
    assert_eq!(one.expose(), other.expose());
    let elsewhere = Bench::embedded().billing.signing_key().await.unwrap();
    assert_ne!(one.expose(), elsewhere.expose());
    assert_eq!(format!("{one:?}"), "SigningKey(***)");
}

async fn two_processes_never_spend_the_same_cent(bench: Bench) {
    const MONEY_FOR: usize = 50;
    const HOLDS: usize = 200;
    const THREADS: usize = 8;
    let Customer { id, who, .. } = bench.prepaid(10_000 * MONEY_FOR as u64).await;
    let who = Arc::new(who);
    let handles = [bench.billing.clone(), bench.another()];
    let threads = (0..THREADS).map(|number| {
        let (billing, who) = (handles[number % 2].clone(), Arc::clone(&who));
        thread::spawn(move || runtime_holds(&billing, &who, number, HOLDS / THREADS))
    });
    let threads: Vec<_> = threads.collect();
    let held: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(held, MONEY_FOR);
    for billing in handles {
        assert_eq!(balance(&billing, &id).await, 0);
        assert_eq!(billing.verify(&id).await.unwrap().open as usize, MONEY_FOR);
    }
}

/// Holds so many sessions; gives how many it got. All others must be refused for want of money.
fn runtime_holds(billing: &Billing, who: &Principal, thread: usize, holds: usize) -> usize {
    let hold = |number| async move {
        let id = session(&format!("{thread}-{number}"));
        match billing.hold(who, id, &gateway("gw"), START).await {
            Ok(_) => true,
            Err(HoldError::Refused(Refusal::Money { .. })) => false,
            Err(error) => panic!("{error}"),
        }
    };
    let runtime = runtime();
    (0..holds).filter(|number| runtime.block_on(hold(*number))).count()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn what_another_process_changed_is_seen_by_the_next_command(bench: Bench) {
    let Customer { id, who, secret } = bench.prepaid(0).await;
    let theirs = bench.another();
    let hold = |name: &str| {
        let (id, gateway) = (session(name), gateway("gw"));
        let (billing, who) = (bench.billing.clone(), who.clone());
        async move { billing.hold(&who, id, &gateway, START).await }
    };
    assert!(matches!(hold("a").await, Err(HoldError::Refused(Refusal::Money { .. }))));
    theirs.credit(&id, Micros::new(50_000), CommandId::random(), Actor::Operator, START).await.unwrap();
    hold("b").await.unwrap();

    theirs.suspend(&id, true, Actor::Operator, START).await.unwrap();
    assert!(matches!(hold("c").await, Err(HoldError::Refused(Refusal::Suspended))));
    theirs.suspend(&id, false, Actor::Operator, START).await.unwrap();
    hold("d").await.unwrap();
    assert!(!bench.billing.suspend(&id, false, Actor::Operator, START).await.unwrap().suspended);

    theirs.revoke_key(&id, &who.key, Actor::Operator, START).await.unwrap();
    assert!(matches!(hold("e").await, Err(HoldError::Refused(Refusal::KeyRevoked))));
    assert!(matches!(hold("b").await, Err(HoldError::Refused(Refusal::KeyRevoked))));
    assert_eq!(bench.billing.authenticate(secret.expose()).await.unwrap(), None);
}

async fn a_key_that_was_revoked_here_is_unknown_at_once(bench: Bench) {
    let id = bench.prepaid(0).await.id;
    let created = bench.billing.create_key(&id, "ci".to_owned(), Actor::Operator, START).await;
    let (key, secret) = created.unwrap();
    let principal = bench.billing.authenticate(secret.expose()).await.unwrap();
    assert_eq!(principal, Some(Principal { account: id.clone(), key: key.id.clone() }));
    bench.billing.revoke_key(&id, &key.id, Actor::Customer(key.id.clone()), START).await.unwrap();
    assert_eq!(bench.billing.authenticate(secret.expose()).await.unwrap(), None);
    assert_eq!(bench.another().authenticate(secret.expose()).await.unwrap(), None);
}

// After a crash.

async fn a_killed_gateway_s_sessions_are_settled_up_to_its_last_heartbeat(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(1_000_000).await;
    let dead = gateway("dead");
    for name in ["begun", "held"] {
        bench.billing.hold(&who, session(name), &dead, START).await.unwrap();
    }
    bench.billing.begin_latest(&id, &session("begun"), START, START).await.unwrap();
    extend(&bench.billing, &id, &session("begun"), 9).await.unwrap();
    bench.billing.heartbeat(&dead, after(7 * MINUTE + 1)).await.unwrap();
    bench.billing.heartbeat(&dead, after(1)).await.unwrap();
    let (_folder, billing) = bench.killed();

    let me = gateway("me");
    billing.hold(&who, session("mine"), &me, START).await.unwrap();
    let settled = billing.settle_abandoned(&me, after(60 * MINUTE)).await.unwrap();
    let mut outcomes: Vec<_> =
        settled.iter().map(|session| (session.id.as_str(), session.state, session.charged.get())).collect();
    outcomes.sort_unstable_by_key(|outcome| outcome.0);
    // Eight minutes had started by the last heartbeat, of nine that were set aside.
    assert_eq!(outcomes, [("begun", State::Posted, 16_000), ("held", State::Voided, 0)]);
    assert_eq!(balance(&billing, &id).await, 1_000_000 - 16_000 - 10_000);
    assert_eq!(billing.verify(&id).await.unwrap().open, 1);
    assert!(billing.settle_abandoned(&me, after(61 * MINUTE)).await.unwrap().is_empty());
}

/// Lives as long as it beats.
struct Other {
    billing: Billing,
    sweeper: Sweeper,
}

impl Other {
    fn new(bench: &Bench, name: &str) -> Other {
        Other { billing: bench.another(), sweeper: Sweeper::new(gateway(name)) }
    }

    async fn look(&mut self, now: Timestamp) -> Vec<Session> {
        self.sweeper.look(&self.billing, now).await.unwrap()
    }
}

async fn a_dead_gateway_is_settled_once_by_the_others_and_one_that_lives_is_left_alone(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(1_000_000).await;
    let (billing, dead, alive) = (&bench.billing, gateway("dead"), gateway("alive"));
    for (name, gateway) in [("begun", &dead), ("held", &dead), ("other", &alive)] {
        billing.hold(&who, session(name), gateway, START).await.unwrap();
    }
    billing.begin_latest(&id, &session("begun"), START, START).await.unwrap();
    extend(billing, &id, &session("begun"), 9).await.unwrap();
    billing.heartbeat(&dead, after(7 * MINUTE + 1)).await.unwrap();

    let mut looking = [Other::new(&bench, "one"), Other::new(&bench, "two")];
    let mut settled = Vec::new();
    for number in 0..4 {
        assert!(settled.is_empty(), "after {number} looks");
        // Its clock stands, and it lives all the same.
        billing.heartbeat(&alive, START).await.unwrap();
        let [one, two] = &mut looking;
        let (ours, theirs) = join(one.look(after(8 * MINUTE)), two.look(after(8 * MINUTE))).await;
        settled.extend(ours.into_iter().chain(theirs));
    }
    settled.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    let outcomes: Vec<_> =
        settled.iter().map(|session| (session.id.as_str(), session.state, session.charged.get())).collect();
    assert_eq!(outcomes, [("begun", State::Posted, 16_000), ("held", State::Voided, 0)]);
    assert_eq!(balance(billing, &id).await, 1_000_000 - 16_000 - 10_000);
    assert_eq!(billing.verify(&id).await.unwrap().open, 1);
}

#[tokio::test]
async fn a_dead_gateway_is_forgotten_after_an_hour() {
    let bench = Bench::embedded();
    let alive = gateway("alive");
    bench.billing.heartbeat(&gateway("dead"), START).await.unwrap();
    let mut other = Other::new(&bench, "other");
    for _ in 0..=720 {
        bench.billing.heartbeat(&alive, START).await.unwrap();
        assert_eq!(bench.billing.beats().await.unwrap().len(), 2);
        other.look(START).await;
    }
    assert_eq!(bench.billing.beats().await.unwrap().into_keys().collect::<Vec<_>>(), [alive]);
}

async fn a_gateway_that_was_taken_for_dead_comes_back(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(1_000_000).await;
    let (billing, slow) = (&bench.billing, gateway("slow"));
    billing.heartbeat(&slow, START).await.unwrap();
    billing.hold(&who, session("a"), &slow, START).await.unwrap();
    billing.begin_latest(&id, &session("a"), START, START).await.unwrap();
    let mut other = Other::new(&bench, "other");
    for _ in 0..3 {
        assert!(other.look(START).await.is_empty());
    }
    assert_eq!(other.look(START).await.len(), 1);

    let extended = extend(billing, &id, &session("a"), 6).await;
    assert!(matches!(extended, Err(ExtendError::NotOpen)), "{extended:?}");
    let posted = billing.post_latest(&id, &session("a"), end(after(MINUTE)), START).await;
    assert!(matches!(posted, Err(Error::Refused(Refused::ExistsDifferent))), "{posted:?}");
    billing.hold(&who, session("b"), &slow, START).await.unwrap();
    for _ in 0..4 {
        billing.heartbeat(&slow, START).await.unwrap();
        assert!(other.look(START).await.is_empty());
    }
    assert_eq!(billing.verify(&id).await.unwrap().open, 1);
}

async fn a_store_that_was_closed_holds_all_it_held(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(1_000_000).await;
    for number in 0..300 {
        let name = session(&number.to_string());
        if let Ok(held) = bench.billing.hold(&who, name, &gateway("gw"), START).await {
            bench.billing.void(held.session.name(), "no browser", START).await.unwrap();
        }
    }
    let before = bench.billing.verify(&id).await.unwrap();
    let Bench { billing, place } = bench;
    drop(billing);
    let billing = place.open(Catalogue::default());
    assert_eq!(billing.verify(&id).await.unwrap(), before);
    drop(place);
    assert_eq!(before.entries, 3 + 600);
}

// The log.

#[tokio::test]
async fn a_tampered_log_is_found_out() {
    let cases = [
        ("UPDATE audit SET body = json_set(body, '$.amount', 1) WHERE seq = 2", Fault::Hash { seq: 2 }),
        (
            "UPDATE audit SET body = json_set(body, '$.prev', body ->> '$.hash') WHERE seq = 3",
            Fault::Chain { seq: 3 },
        ),
        ("DELETE FROM audit WHERE seq = 2", Fault::Missing { expected: 2 }),
        ("DELETE FROM audit WHERE seq = 4", Fault::Head { log: 3, account: 4 }),
        ("UPDATE accounts SET body = json_set(body, '$.balance', 7)", Fault::Account),
        ("DELETE FROM open_sessions", Fault::Open { sessions: 0, account: 1 }),
    ];
    for (tampering, expected) in cases {
        let bench = Bench::embedded();
        let Customer { id, who, .. } = bench.prepaid(50_000).await;
        bench.billing.hold(&who, session("s"), &gateway("gw"), START).await.unwrap();
        assert_eq!(bench.billing.verify(&id).await.unwrap().entries, 4);
        let StoreUrl::Sqlite(path) = bench.url() else { unreachable!() };
        Connection::open(path).unwrap().execute_batch(tampering).unwrap();
        let verdict = bench.billing.verify(&id).await;
        assert!(
            matches!(&verdict, Err(Error::Fault(fault)) if *fault == expected),
            "{tampering}: {verdict:?}"
        );
    }
}

async fn lists_are_in_order_and_bounded(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(1_000_000).await;
    for number in 0..5 {
        let name = session(&format!("s{number}"));
        bench.billing.hold(&who, name, &gateway("gw"), after(number)).await.unwrap();
    }
    let sessions = bench.billing.sessions(&id, None, 3).await.unwrap();
    let names: Vec<_> = sessions.iter().map(|session| session.id.as_str()).collect();
    assert_eq!(names, ["s4", "s3", "s2"]);
    let entries = bench.billing.audit(&id, 2, 2).await.unwrap();
    let kinds: Vec<_> = entries.iter().map(|entry| (entry.seq, entry.kind)).collect();
    assert_eq!(kinds, [(3, EntryKind::KeyCreated), (4, EntryKind::Held)]);
    assert_eq!(entries[1].actor, Actor::Customer(who.key));
    assert_eq!((entries[1].amount, entries[1].balance_after), (-10_000, Micros::new(990_000)));
}

async fn a_list_goes_on_behind_its_cursor_among_sessions_of_one_instant(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(1_000_000).await;
    for number in 0..6 {
        let name = session(&format!("s{number}"));
        let held = bench.billing.hold(&who, name, &gateway("gw"), START).await.unwrap();
        if number % 2 == 0 {
            bench.billing.void(held.session.name(), "no browser", START).await.unwrap();
        }
    }
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let page = bench.billing.sessions(&id, after.as_ref(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(SessionCursor::from(last));
        names.extend(page.into_iter().map(|session| session.id.to_string()));
    }
    assert_eq!(names, ["s5", "s4", "s3", "s2", "s1", "s0"]);
    let running = bench.billing.running(&id, None, 2).await.unwrap();
    assert_eq!(running.iter().map(|session| session.id.as_str()).collect::<Vec<_>>(), ["s5", "s3"]);
    let after = running.last().map(SessionCursor::from);
    let running = bench.billing.running(&id, after.as_ref(), 2).await.unwrap();
    assert_eq!(running.iter().map(|session| session.id.as_str()).collect::<Vec<_>>(), ["s1"]);
}

async fn usage_is_kept_by_hour_for_two_months_and_by_month_for_ever(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(1_000_000).await;
    let billing = &bench.billing;
    let run = async |name: &str, at: Timestamp| {
        billing.hold(&who, session(name), &gateway("gw"), at).await.unwrap();
        billing.begin_latest(&id, &session(name), at, at).await.unwrap();
        billing.post_latest(&id, &session(name), end(at), at).await.unwrap();
    };
    let sessions = async |by: Span, now| {
        let used = billing.usage(&id, by, u32::MAX, now).await.unwrap();
        used.iter().map(|used| used.usage.sessions).sum::<u64>()
    };
    run("a", START).await;
    run("b", START).await;
    assert_eq!(sessions(Span::Hour, START).await, 2);

    let later = after(63 * 24 * 60 * MINUTE);
    assert_eq!((sessions(Span::Hour, later).await, sessions(Span::Day, later).await), (0, 0));
    run("c", later).await;
    assert_eq!(sessions(Span::Hour, START).await, 0, "what is no longer asked for is not kept");
    assert_eq!((sessions(Span::Day, later).await, sessions(Span::Month, later).await), (1, 3));
    let months = billing.usage(&id, Span::Month, 3, later).await.unwrap();
    let figures: Vec<_> = months.iter().map(|month| (month.usage.sessions, month.usage.cost.get())).collect();
    assert_eq!(figures, [(1, 10_000), (0, 0), (2, 20_000)]);
    assert_eq!((months[2].usage.up_bytes, months[2].usage.down_bytes), (2, 4));
}

async fn what_is_left_counts_included_sessions_and_balance_together(bench: Bench) {
    let customer = NewCustomer { prepaid: None, ..customer("starter") };
    let (account, _) = bench.billing.create_customer(customer, Actor::Operator, START).await.unwrap();
    let left =
        async || bench.billing.standing(&account.id, START).await.unwrap().unwrap().remaining_sessions();
    assert_eq!(left().await, Some(500));
    let credit = Micros::new(25_000);
    bench.billing.credit(&account.id, credit, CommandId::random(), Actor::Operator, START).await.unwrap();
    assert_eq!(left().await, Some(502));
    assert!(bench.billing.standing(&"nobody".parse().unwrap(), START).await.unwrap().is_none());
}

async fn events_are_told_in_the_order_of_their_changes(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(20_000).await;
    let billing = &bench.billing;
    billing.hold(&who, session("s"), &gateway("gw"), START).await.unwrap();
    billing.begin_latest(&id, &session("s"), START, START).await.unwrap();
    billing.post_latest(&id, &session("s"), end(after(1)), after(1)).await.unwrap();
    assert!(billing.event_stream_of(&id) < billing.event_streams());

    let theirs = bench.another();
    let stream = theirs.event_stream_of(&id);
    let mut read = Cursor::start();
    let kinds = [
        EventKind::CustomerActivated,
        EventKind::LowBalance,
        EventKind::SessionStarted,
        EventKind::SessionCompleted,
    ];
    for kind in kinds {
        let events = theirs.events(stream, &read, 1).await.unwrap();
        let [(place, Heard::Event(event))] = &events[..] else { panic!("{events:?}") };
        assert_eq!((event.kind, &event.customer), (kind, &id));
        read = place.clone();
    }
    assert!(theirs.events(stream, &read, 1).await.unwrap().is_empty());
}

async fn commands_may_be_spawned(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(20_000).await;
    let billing = bench.billing.clone();
    let task = async move {
        billing.hold(&who, session("s"), &gateway("gw"), START).await?;
        billing.begin_latest(&id, &session("s"), START, START).await.unwrap();
        extend(&billing, &id, &session("s"), 6).await.unwrap();
        billing.post_latest(&id, &session("s"), end(after(1)), after(1)).await.unwrap();
        Ok::<_, HoldError>(
            billing.credit(&id, Micros::new(1), CommandId::random(), Actor::System, START).await,
        )
    };
    let account = tokio::spawn(task).await.unwrap().unwrap().unwrap();
    assert_eq!(account.balance, Micros::new(10_001));
}
