use billing::{Ended, Outcome, Timestamp};

use super::*;
use crate::refusal::Close;
use crate::settle;

fn entry(session: usize, minutes: u32, end: Option<Outcome>) -> Debt {
    Debt {
        account: "acme".parse().unwrap(),
        session: format!("s{session}").parse().unwrap(),
        hold: format!("{session:016x}").parse().unwrap(),
        begun_at: Timestamp::from_millis(1_000),
        minutes,
        at: Timestamp::from_millis(400_000),
        up_bytes: 1,
        down_bytes: 2,
        end: end.map(Ended::from),
        credit: None,
    }
}

fn gateway() -> GatewayId {
    GatewayId::random()
}

/// What a gateway that comes after them finds.
fn adopted(folder: &Path) -> Owed {
    let next = Owed::new(folder, &gateway());
    next.adopt().unwrap();
    next
}

#[test]
fn what_is_kept_survives_its_gateway_and_is_handed_on_once() {
    let folder = tempfile::tempdir().unwrap();
    let owed = Owed::new(folder.path(), &gateway());
    let ended = entry(2, 0, Some(Outcome::Lost { cause: "browser crashed" }));
    for kept in [entry(1, 6, None), entry(1, 7, None), ended.clone(), entry(3, 1, None)] {
        owed.keep(kept).unwrap();
    }
    assert!(!owed.forget(&entry(1, 6, None)), "a later one took its place");
    assert!(owed.forget(&entry(3, 1, None)));
    drop(owed);

    let next = adopted(folder.path());
    assert_eq!(next.entries(), [entry(1, 7, None), ended]);
    assert!(next.contains(entry(1, 7, None).name()));
    assert!(!next.contains(SessionName { hold: HoldId::random(), ..entry(1, 7, None).name() }));
    assert_eq!(adopted(folder.path()).len(), 2, "and on, where that one ends, too");
}

#[test]
fn an_end_is_not_replaced_by_a_minute_that_comes_late() {
    let folder = tempfile::tempdir().unwrap();
    let owed = Owed::new(folder.path(), &gateway());
    let ended = entry(1, 7, Some(Outcome::Completed { cause: "idle" }));
    owed.keep(ended.clone()).unwrap();
    owed.keep(entry(1, 8, None)).unwrap();
    assert_eq!(owed.entries(), [ended]);
}

#[test]
fn sessions_that_had_the_same_id_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let owed = Owed::new(folder.path(), &gateway());
    let ended = entry(1, 7, Some(Outcome::Completed { cause: "idle" }));
    let again = Debt { hold: HoldId::random(), ..entry(1, 1, None) };
    owed.keep(ended.clone()).unwrap();
    owed.keep(again.clone()).unwrap();
    owed.settled(again.name());
    assert!(owed.contains(ended.name()) && owed.len() == 1);
    owed.keep(again).unwrap();
    owed.settled(ended.name());
    assert_eq!(adopted(folder.path()).len(), 1);
}

#[test]
fn the_file_stays_small_and_is_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let owed = Owed::new(folder.path(), &gateway());
    let size = || fs::metadata(&owed.path).unwrap().len();
    owed.keep(entry(1, 1, None)).unwrap();
    let line = size();
    for minute in 2..10_000 {
        owed.keep(entry(1, minute, None)).unwrap();
    }
    assert!(size() < line * 2 * SLACK as u64);
    assert_eq!(adopted_copy(&owed), [entry(1, 9_999, None)]);
    owed.settled(entry(1, 0, None).name());
    assert_eq!((size(), owed.len()), (0, 0));
}

/// What another gateway would read.
fn adopted_copy(owed: &Owed) -> Vec<Debt> {
    read(&owed.path).unwrap()
}

#[test]
fn a_line_that_was_cut_short_costs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let owed = Owed::new(folder.path(), &gateway());
    owed.keep(entry(1, 6, None)).unwrap();
    let mut file = OpenOptions::new().append(true).open(&owed.path).unwrap();
    file.write_all(b"{\"owed\":{\"account\":\"ac").unwrap();
    assert_eq!(adopted(folder.path()).entries(), [entry(1, 6, None)]);
}

#[test]
fn it_has_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let owed = Owed::new(folder.path(), &gateway());
    let mut state = owed.state();
    state
        .entries
        .extend((0..MOST).map(|number| entry(number, 1, None)).map(|entry| (key_of(entry.name()), entry)));
    drop(state);
    assert!(matches!(owed.keep(entry(MOST, 1, None)), Err(NotKept::Full)));
    owed.keep(entry(0, 2, None)).unwrap();
}

#[test]
fn each_end_is_told_as_it_was() {
    for cause in settle::causes() {
        for outcome in [Outcome::Completed { cause }, Outcome::Lost { cause }] {
            let line = serde_json::to_string(&entry(1, 1, Some(outcome))).unwrap();
            let read: Debt = serde_json::from_str(&line).unwrap();
            assert_eq!(read.end(settle::causes()).outcome, outcome);
        }
    }
    assert!(settle::causes().any(|cause| cause == Close::Lost.cause()));
}
