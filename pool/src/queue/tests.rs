use std::time::Duration;

use super::*;

type Answer = oneshot::Receiver<Result<Lease, Unavailable>>;

fn claim(owner: &str) -> (Claim, Answer) {
    claim_until(owner, Instant::now() + Duration::from_secs(10))
}

fn claim_until(owner: &str, deadline: Instant) -> (Claim, Answer) {
    let (reply, answer) = oneshot::channel();
    (Claim { owner: owner.into(), share: Share::Large, deadline, reply }, answer)
}

/// Lets so many claims of `owner` wait.
fn line(queue: &mut Queue, owner: &str, length: usize) -> Vec<Answer> {
    let (claims, answers): (Vec<_>, Vec<_>) = (0..length).map(|_| claim(owner)).unzip();
    for claim in claims {
        assert!(queue.push(claim).is_none());
    }
    answers
}

/// The owners in the order that they are served in; `-` is the reserve.
fn order(queue: &mut Queue, reserve_is_short: bool, most: usize) -> String {
    let one = |queue: &mut Queue| match queue.next(reserve_is_short) {
        Next::Claim(claim) => Some(claim.owner.to_string()),
        Next::Reserve => Some("-".to_owned()),
        Next::Nobody => None,
    };
    std::iter::from_fn(|| one(queue)).take(most).collect()
}

#[test]
fn owners_are_served_in_turn_and_each_in_order() {
    let mut queue = Queue::new();
    let _flood = line(&mut queue, "a", 5);
    let _calm = line(&mut queue, "b", 1);
    let _other = line(&mut queue, "c", 2);
    assert_eq!(order(&mut queue, false, 100), "abcacaaa");
    assert!(queue.is_empty());
}

#[test]
fn who_comes_late_has_its_turn_before_a_long_line_has_two() {
    let mut queue = Queue::new();
    let _flood = line(&mut queue, "a", 1_000);
    assert_eq!(order(&mut queue, false, 10), "aaaaaaaaaa");
    let _calm = line(&mut queue, "b", 1);
    assert_eq!(order(&mut queue, false, 3), "aba");
}

#[test]
fn the_reserve_has_a_turn_like_an_owner() {
    let mut queue = Queue::new();
    let _flood = line(&mut queue, "a", 4);
    let _calm = line(&mut queue, "b", 1);
    assert_eq!(order(&mut queue, true, 6), "-ab-a-");
    assert_eq!(order(&mut queue, false, 100), "aa");
}

#[test]
fn who_has_left_is_passed_over() {
    let mut queue = Queue::new();
    let _stay = line(&mut queue, "a", 2);
    drop(line(&mut queue, "a", 3));
    drop(line(&mut queue, "b", 2));
    let _stay_too = line(&mut queue, "b", 1);
    assert_eq!(order(&mut queue, false, 100), "aba");
    assert!(queue.is_empty());
}

#[test]
fn a_full_line_refuses_its_owner_alone() {
    let mut queue = Queue::new();
    let _flood = line(&mut queue, "a", WAITING_EACH);
    let (one_more, _answer) = claim("a");
    assert_eq!(&*queue.push(one_more).unwrap().owner, "a");
    let _calm = line(&mut queue, "b", 1);
    assert_eq!(queue.len(), WAITING_EACH + 1);
}

#[test]
fn whose_clients_have_left_count_no_longer() {
    let mut queue = Queue::new();
    drop(line(&mut queue, "a", WAITING_EACH));
    let _stay = line(&mut queue, "a", 1);
    assert_eq!(queue.len(), 1);
}

#[test]
fn when_all_places_are_taken_the_longest_line_gives_way() {
    let mut queue = Queue::new();
    let owners = WAITING / WAITING_EACH;
    let mut floods: Vec<_> =
        (0..owners).map(|owner| line(&mut queue, &owner.to_string(), WAITING_EACH)).collect();
    assert_eq!(queue.len(), WAITING);

    let (calm, mut answer) = claim("calm");
    let refused = queue.push(calm).unwrap();

    let owner: usize = refused.owner.parse().unwrap();
    drop(refused);
    assert!(floods[owner].last_mut().unwrap().try_recv().is_err(), "the last of a long line is gone");
    assert_eq!((queue.len(), queue.line_len(&"calm".into())), (WAITING, 1));
    assert_eq!(answer.try_recv().unwrap_err(), oneshot::error::TryRecvError::Empty);

    // Where all lines are as short, the newcomer is the one.
    let mut queue = Queue::new();
    let _each: Vec<_> = (0..WAITING).map(|owner| line(&mut queue, &owner.to_string(), 1)).collect();
    let (calm, _answer) = claim("calm");
    assert_eq!(&*queue.push(calm).unwrap().owner, "calm");
}

#[test]
fn each_leaves_by_its_deadline() {
    let begun = Instant::now();
    let at = |seconds| begun + Duration::from_secs(seconds);
    let mut queue = Queue::new();
    let (claims, mut answers): (Vec<_>, Vec<_>) = [("a", 3), ("a", 1), ("b", 2), ("a", 2)]
        .map(|(owner, end)| claim_until(owner, at(end)))
        .into_iter()
        .unzip();
    for claim in claims {
        assert!(queue.push(claim).is_none());
    }
    // The client of the third has left; nobody is told.
    answers.remove(2);

    assert_eq!(queue.next_deadline(), Some(at(1)));
    assert!(queue.expire(begun).is_empty());
    assert_eq!(queue.expire(at(1)).len(), 1);
    assert_eq!((queue.next_deadline(), queue.len()), (Some(at(2)), 2));
    assert_eq!(queue.expire(at(4)).len(), 2);
    assert_eq!((queue.next_deadline(), queue.len()), (None, 0));
    assert_eq!(order(&mut queue, true, 100), "");
}

#[test]
fn how_many_are_ahead() {
    let mut queue = Queue::new();
    let _lines = [line(&mut queue, "a", 100), line(&mut queue, "b", 3), line(&mut queue, "c", 1)];
    let ahead = |owner: &str| queue.ahead_of(&owner.into());
    assert_eq!(ahead("nobody yet"), 3);
    assert_eq!(ahead("c"), 1 + 2 + 2);
    assert_eq!(ahead("b"), 3 + 4 + 1);
    assert_eq!(ahead("a"), 100 + 3 + 1);
}
