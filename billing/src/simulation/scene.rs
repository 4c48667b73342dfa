//! What a run is made of, by its seed: who there is, what is planned, and what goes wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use super::chance::Chance;
use super::world::Crash;
use crate::account::AccountType;
use crate::audit::{Actor, Digest};
use crate::id::{AccountId, SessionId, WebhookId};
use crate::key::{Key, Principal};
use crate::ledger::{self, Change, Context, Opening};
use crate::money::Micros;
use crate::plan::{Catalogue, Plan};
use crate::session::Outcome;
use crate::time::Timestamp;

pub(super) const SECOND: u64 = 1_000;
pub(super) const MINUTE: u64 = 60 * SECOND;

/// 2027-01-15T10:00:00Z.
pub(super) const START: Timestamp = Timestamp::from_millis(1_800_007_200_000);

/// A month earlier than that.
const MONTH_BEFORE: u64 = 31 * 24 * 60 * MINUTE;

/// What is sealed: the month of those who were there before. Nothing is written into it any more.
pub(super) const SEALED: Timestamp = Timestamp::from_millis(START.as_millis() - MONTH_BEFORE);

/// An operator seals what is over, and what is kept for long is far from here.
pub(super) const SEALING: Timestamp = Timestamp::from_millis(START.as_millis() + 100 * 24 * 60 * MINUTE);

/// From the first client to the calm.
pub(super) const TROUBLE: u64 = 4 * MINUTE;

pub(super) const SESSION_PRICE: u64 = 10_000;
pub(super) const MINUTE_PRICE: u64 = 2_000;
/// So few that a short session gets beyond them.
pub(super) const SESSION_MINUTES: u32 = 2;
pub(super) const REFUNDS_PER_DAY: u32 = 2;

/// How likely each misfortune is, for each question, in thousandths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// It does not get through, and its process is told so.
    pub(super) turned_away: u64,
    /// It does not get through, and nobody knows.
    pub(super) lost: u64,
    /// It is carried out, and the answer is lost.
    pub(super) unanswered: u64,
    /// It arrives when its process has given it up.
    pub(super) late: u64,
    /// It arrives a second time, later.
    pub(super) twice: u64,
    /// It takes a good part of a second.
    pub(super) slow: u64,
}

const WEATHERS: [Weather; 4] = [
    Weather { turned_away: 0, lost: 0, unanswered: 0, late: 0, twice: 0, slow: 20 },
    Weather { turned_away: 3, lost: 3, unanswered: 5, late: 3, twice: 5, slow: 50 },
    Weather { turned_away: 10, lost: 30, unanswered: 80, late: 50, twice: 80, slow: 100 },
    Weather { turned_away: 50, lost: 80, unanswered: 150, late: 100, twice: 100, slow: 300 },
];

/// What a client wants, and when.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) at: u64,
    pub(super) slot: usize,
    pub(super) who: Principal,
    pub(super) session: SessionId,
    /// How long it takes to find a browser; none is found where it is `None`.
    pub(super) claim: Option<u64>,
    pub(super) lasts: u64,
    /// Nobody else comes with the same id.
    pub(super) is_fresh: bool,
    pub(super) outcome: Outcome,
    /// When its client leaves before it is held.
    pub(super) leaves: Option<u64>,
}

/// What an operator does, and when.
#[derive(Clone, Debug)]
pub(super) struct Errand {
    pub(super) at: u64,
    pub(super) account: AccountId,
    pub(super) what: Business,
}

#[derive(Clone, Debug)]
pub(super) enum Business {
    /// The number of the command, and micro-dollars.
    Credit(usize, u64),
    Suspend(bool),
    RevokeSecondKey,
    Verify,
    Seal,
}

/// What an operator has set, for all gateways.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credits {
    /// For each account and gateway.
    pub(super) exposure: Micros,
    pub(super) outage_limit: Duration,
    /// Whether customers are told of their events.
    pub(super) events: bool,
}

/// What befalls a process or the store, and when.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mishap {
    Kill(usize),
    CutOff(usize, u64),
    Away(u64),
    /// Its clock is set, by so many milliseconds.
    Jump(usize, i64),
}

#[derive(Debug)]
pub(super) struct Scene {
    pub(super) weather: Weather,
    pub(super) slots: usize,
    pub(super) skews: u64,
    pub(super) credits: Credits,
    pub(super) accounts: Vec<Opened>,
    pub(super) wishes: Vec<Wish>,
    pub(super) errands: Vec<Errand>,
    pub(super) mishaps: Vec<(u64, Mishap)>,
    pub(super) crashes: BTreeMap<u64, Crash>,
}

/// An account as it is when a run begins.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) change: Change,
    pub(super) keys: [Principal; 2],
    /// Whether a period of its ends within the run.
    pub(super) renews: bool,
}

pub(super) fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::default();
    for name in ["starter", "professional"] {
        let plan = catalogue.get(name).expect("it is a published plan").clone();
        catalogue.insert(Plan {
            included_sessions: 3,
            concurrent_sessions: 4,
            overage_cap: Micros::new(60_000),
            session_price: Micros::new(SESSION_PRICE),
            session_minutes: SESSION_MINUTES,
            minute_price: Micros::new(MINUTE_PRICE),
            ..plan
        });
    }
    catalogue
}

impl Scene {
    pub(super) fn of(chance: &mut Chance) -> Scene {
        let accounts: Vec<_> = (0..chance.among(1..3)).map(|number| Opened::of(number, chance)).collect();
        let slots = usize::try_from(chance.among(2..5)).expect("it is small");
        let skews = *chance.one_of(&[0, 50, 2_000, 20_000, 600_000]);
        let weather = *chance.one_of(&WEATHERS);
        let mishaps = mishaps(slots, chance);
        let credits = Credits {
            exposure: Micros::new(*chance.one_of(&[0, 0, SESSION_PRICE, 45_000])),
            outage_limit: Duration::from_millis(*chance.one_of(&[MINUTE, 10 * MINUTE])),
            events: chance.permille(300),
        };
        Scene {
            weather,
            slots,
            skews,
            credits,
            wishes: wishes(&accounts, slots, chance),
            errands: errands(&accounts, chance),
            mishaps,
            crashes: crashes(chance),
            accounts,
        }
    }
}

impl Opened {
    fn of(number: u64, chance: &mut Chance) -> Opened {
        let (plan, prepaid) = *chance.one_of(&[
            ("starter", None),
            ("professional", None),
            ("professional", Some(40_000)),
            ("professional", Some(1_000_000)),
        ]);
        let renews = plan == "professional" && prepaid.is_none() && chance.permille(300);
        let before = if renews { MONTH_BEFORE - chance.among(0..TROUBLE) } else { 0 };
        let now = Timestamp::from_millis(START.as_millis() - before);
        let account: AccountId = format!("a{number}").parse().expect("it is an id");
        let keys = [0, 1].map(|key| key_of(number, key, now));
        let catalogue = catalogue();
        let given = Context { plan: catalogue.get(plan).expect("it is in there"), now };
        let opening = Opening {
            id: account.clone(),
            email: "a@example.com".to_owned(),
            prepaid: prepaid.map(Micros::new),
            key: keys[0].clone(),
        };
        let change = ledger::open(opening, &Actor::Operator, given).expect("it can be opened");
        let change = with_key(change, keys[1].clone(), given);
        let keys = keys.map(|key| Principal { account: account.clone(), key: key.id });
        Opened { change, keys, renews }
    }

    pub(super) fn is_prepaid(&self) -> bool {
        self.change.account.kind == AccountType::Prepaid
    }
}

/// Where an account's customer is told of its events.
pub(super) fn webhook_of(account: &AccountId) -> WebhookId {
    format!("w-{account}").parse().expect("it is an id")
}

/// As minted, but for the randomness: a run must be the same each time.
fn key_of(account: u64, number: u8, now: Timestamp) -> Key {
    Key {
        id: format!("k{account}{number}").parse().expect("it is an id"),
        hash: Digest([number; 32]),
        label: "key".to_owned(),
        created_at: now,
        revoked_at: None,
    }
}

/// Both steps as one change, since nobody is there yet.
fn with_key(opened: Change, key: Key, given: Context<'_>) -> Change {
    let added = ledger::create_key(&opened.account, key, &Actor::Operator, given);
    let Ok(ledger::Answer::Change(added)) = added else { panic!("there is room for it") };
    let entries = opened.entries.into_iter().chain(added.entries.iter().cloned()).collect();
    Change { entries, events: opened.events, ..Change::clone(&added) }
}

fn wishes(accounts: &[Opened], slots: usize, chance: &mut Chance) -> Vec<Wish> {
    let mut wishes: Vec<Wish> = Vec::new();
    let longest = *chance.one_of(&[30 * SECOND, 2 * MINUTE, 5 * MINUTE]);
    for number in 0..chance.among(6..24) {
        let who = chance.one_of(accounts).keys[usize::from(chance.permille(200))].clone();
        let session = format!("s{number}").parse().expect("it is an id");
        let mut wish = Wish {
            at: chance.among(SECOND..TROUBLE),
            slot: usize::try_from(chance.among(0..slots as u64)).expect("it is small"),
            who,
            session,
            claim: (!chance.permille(150)).then(|| chance.among(0..3 * SECOND)),
            lasts: chance.among(0..longest),
            is_fresh: chance.permille(500),
            outcome: match chance.permille(200) {
                true => Outcome::Lost { cause: "browser crashed" },
                false => Outcome::Completed { cause: "client closed" },
            },
            leaves: chance.permille(60).then(|| chance.among(0..2 * SECOND)),
        };
        // A client that asks again, or another one with the same id; soon after, or when all is over.
        if chance.permille(300)
            && let Some(earlier) = wishes.last().filter(|earlier| !earlier.is_fresh)
        {
            let after = *chance.one_of(&[20, SECOND, 40 * SECOND, MINUTE]);
            let (who, session) = (earlier.who.clone(), earlier.session.clone());
            let at = (earlier.at + chance.among(0..after)).min(TROUBLE);
            wish = Wish { at, who, session, is_fresh: false, ..wish };
        }
        wishes.push(wish);
    }
    // Together, so that those of an account meet in one lane.
    if chance.permille(300) {
        let at = chance.among(SECOND..TROUBLE);
        wishes.iter_mut().for_each(|wish| wish.at = at + wish.at % 50);
    }
    wishes
}

fn errands(accounts: &[Opened], chance: &mut Chance) -> Vec<Errand> {
    let mut errands = Vec::new();
    for number in 0..usize::try_from(chance.among(0..10)).expect("it is small") {
        let account = chance.one_of(accounts).change.account.id.clone();
        let at = chance.among(0..TROUBLE);
        let errand = |at, what| Errand { at, account: account.clone(), what };
        match chance.among(0..10) {
            0 => {
                errands.push(errand(at, Business::Suspend(true)));
                errands.push(errand(at + chance.among(0..MINUTE), Business::Suspend(false)));
            }
            1 => errands.push(errand(at, Business::RevokeSecondKey)),
            2 => errands.push(errand(at, Business::Verify)),
            3 => errands.push(errand(at, Business::Seal)),
            _ => {
                let credit = Business::Credit(number, chance.among(1..30_000));
                errands.push(errand(at, credit.clone()));
                if chance.permille(500) {
                    errands.push(errand(at + chance.among(0..200), credit));
                }
            }
        }
    }
    errands
}

fn mishaps(slots: usize, chance: &mut Chance) -> Vec<(u64, Mishap)> {
    let slot = |chance: &mut Chance| usize::try_from(chance.among(0..slots as u64)).expect("it is small");
    let mut mishaps = Vec::new();
    for _ in 0..chance.among(0..5) {
        mishaps.push((chance.among(0..TROUBLE), Mishap::Kill(slot(chance))));
    }
    for _ in 0..chance.among(0..3) {
        let lasts = *chance.one_of(&[2 * SECOND, 15 * SECOND, 40 * SECOND, 90 * SECOND]);
        let lasts = chance.among(0..lasts);
        mishaps.push((chance.among(0..TROUBLE), Mishap::CutOff(slot(chance), lasts)));
    }
    for _ in 0..2 {
        if chance.permille(250) {
            mishaps.push((chance.among(0..TROUBLE), Mishap::Away(chance.among(0..100 * SECOND))));
        }
    }
    if chance.permille(300) {
        for _ in 0..chance.among(1..4) {
            let most = *chance.one_of(&[2 * SECOND, 40 * SECOND, 10 * MINUTE, 120 * MINUTE]);
            let by = i64::try_from(chance.among(0..2 * most)).expect("it is small");
            let by = by - i64::try_from(most).expect("it is small");
            mishaps.push((chance.among(0..TROUBLE), Mishap::Jump(slot(chance), by)));
        }
    }
    mishaps.sort_by_key(|(at, _)| *at);
    mishaps
}

fn crashes(chance: &mut Chance) -> BTreeMap<u64, Crash> {
    let all = [Crash::BeforeItIsSent, Crash::BeforeItIsAnswered, Crash::OnceItIsAnswered];
    (0..chance.among(0..5)).map(|_| (chance.among(0..150), *chance.one_of(&all))).collect()
}
