//! Holds that are answered while their commits are on their way.

use super::*;
use crate::plan::Catalogue;
use crate::store::memory::Line;

/// Micro-dollars.
const PRICE: u64 = 10_000;
/// What there has to be room for beside a session that is answered ahead, where the account was seen this second.
const OTHERS: u64 = 16;

async fn reserve(billing: &Billing, who: &Principal) -> Reserved {
    let new = NewSession::fresh(SessionRequest::default());
    billing.reserve(who, &new, &gateway("gw"), START).await.unwrap()
}

/// Starts so many, and does not end them.
async fn hold(billing: &Billing, who: &Principal, sessions: u64) {
    for _ in 0..sessions {
        billing.hold(who, SessionId::random(), &gateway("other"), START).await.unwrap();
    }
}

/// One process on a server in memory, which has seen an account of a great plan.
async fn in_memory() -> (Billing, Principal) {
    let billing =
        Billing::over(Line::to(&Arc::default()), Catalogue::default(), Limits::default(), HoldIds::new());
    let new = NewCustomer { prepaid: Some(Micros::new(100 * PRICE)), ..customer("enterprise") };
    let (_, secret) = billing.create_customer(new, Actor::Operator, START).await.unwrap();
    let who = billing.authenticate(secret.expose()).await.unwrap().unwrap();
    (billing, who)
}

#[tokio::test]
async fn a_hold_is_answered_ahead_of_its_commit_and_confirmed_by_it() {
    let bench = Bench::redis();
    let customer = bench.prepaid(100 * PRICE).await;
    let reserved = reserve(&bench.billing, &customer.who).await;
    assert!(reserved.is_on_its_way());
    assert_eq!((reserved.session.state, reserved.concurrent), (State::Held, 1));

    bench.billing.confirm(&reserved, START).await.unwrap();
    bench.billing.confirm(&reserved, START).await.unwrap();
    let stored = bench.another().session(&customer.id, &reserved.session.id).await.unwrap();
    assert_eq!(stored.as_ref(), Some(&reserved.session));
    assert_eq!(balance(&bench.another(), &customer.id).await, 99 * PRICE);
}

#[tokio::test]
async fn the_commit_comes_first_where_others_might_leave_no_room() {
    let bench = Bench::redis();
    for (sessions, is_ahead) in [(OTHERS, false), (OTHERS + 1, true)] {
        let customer = bench.prepaid(sessions * PRICE).await;
        let reserved = reserve(&bench.billing, &customer.who).await;
        assert_eq!(reserved.is_on_its_way(), is_ahead, "{sessions} sessions are paid for");
        let held = bench.another().session(&customer.id, &reserved.session.id).await.unwrap();
        assert!(is_ahead || held.is_some());
    }
    // The plan allows 50 at a time.
    for (open, is_ahead) in [(50 - OTHERS, false), (50 - OTHERS - 1, true)] {
        let customer = bench.prepaid(100 * PRICE).await;
        hold(&bench.billing, &customer.who, open).await;
        let reserved = reserve(&bench.billing, &customer.who).await;
        assert_eq!(reserved.is_on_its_way(), is_ahead, "{open} sessions run");
    }
}

#[tokio::test]
async fn what_others_did_in_between_is_decided_on() {
    let bench = Bench::redis();
    let customer = bench.prepaid(100 * PRICE).await;
    hold(&bench.another(), &customer.who, 1).await;
    let reserved = reserve(&bench.billing, &customer.who).await;
    assert!(reserved.is_on_its_way());
    bench.billing.confirm(&reserved, START).await.unwrap();
    bench.billing.confirm(&reserved, START).await.unwrap();
    assert_eq!(balance(&bench.another(), &customer.id).await, 98 * PRICE);
    assert_eq!(bench.billing.verify(&customer.id).await.unwrap().open, 2);
}

#[tokio::test]
async fn a_hold_that_is_refused_after_all_costs_nothing() {
    let bench = Bench::redis();
    let customer = bench.prepaid((OTHERS + 1) * PRICE).await;
    hold(&bench.another(), &customer.who, OTHERS + 1).await;
    let reserved = reserve(&bench.billing, &customer.who).await;
    assert!(reserved.is_on_its_way());
    let refused = bench.billing.confirm(&reserved, START).await;
    assert!(matches!(refused, Err(HoldError::Refused(Refusal::Money { .. }))), "{refused:?}");
    assert_eq!(bench.billing.session(&customer.id, &reserved.session.id).await.unwrap(), None);
    assert_eq!(balance(&bench.billing, &customer.id).await, 0);

    let customer = bench.prepaid(100 * PRICE).await;
    bench.another().suspend(&customer.id, true, Actor::Operator, START).await.unwrap();
    let reserved = reserve(&bench.billing, &customer.who).await;
    assert!(reserved.is_on_its_way());
    let refused = bench.billing.confirm(&reserved, START).await;
    assert!(matches!(refused, Err(HoldError::Refused(Refusal::Suspended))), "{refused:?}");
    assert_eq!(balance(&bench.billing, &customer.id).await, 100 * PRICE);
}

#[tokio::test]
async fn few_are_answered_ahead_at_a_time() {
    let (billing, who) = in_memory().await;
    let mut reserved = Vec::new();
    for _ in 0..6 {
        reserved.push(reserve(&billing, &who).await);
    }
    // One is on its way, four wait for it, and the next one with them.
    let ahead: Vec<_> = reserved.iter().map(Reserved::is_on_its_way).collect();
    assert_eq!(ahead, [true, true, true, true, true, false]);
    for reserved in &reserved {
        billing.confirm(reserved, START).await.unwrap();
    }
    assert_eq!(balance(&billing, &who.account).await, 94 * PRICE);
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_long_ago_is_no_ground_to_answer_ahead() {
    let (billing, who) = in_memory().await;
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(!reserve(&billing, &who).await.is_on_its_way());
    tokio::time::advance(Duration::from_secs(29)).await;
    assert!(reserve(&billing, &who).await.is_on_its_way());
}

#[tokio::test]
async fn nobody_s_session_is_held_where_it_leaves_others_room() {
    let bench = Bench::redis();
    let hold_ahead = async |who: &Principal| {
        let others = u32::try_from(OTHERS).unwrap();
        bench.billing.hold_ahead(who, SessionId::random(), &gateway("gw"), others, START).await
    };
    // What another process has taken is seen.
    for (left, is_held) in [(OTHERS, false), (OTHERS + 1, true)] {
        let customer = bench.prepaid((left + 1) * PRICE).await;
        hold(&bench.another(), &customer.who, 1).await;
        let spare = hold_ahead(&customer.who).await.unwrap();
        assert_eq!(spare.is_some(), is_held, "{left} sessions are paid for");
        let left = if is_held { left - 1 } else { left };
        assert_eq!(balance(&bench.another(), &customer.id).await, left * PRICE);
    }

    let customer = bench.prepaid(100 * PRICE).await;
    let spare = hold_ahead(&customer.who).await.unwrap().expect("there is room");
    assert!(spare.is_spare() && spare.is_held() && !spare.is_on_its_way());
    bench.billing.confirm(&spare, START).await.unwrap();
    bench.another().void(spare.session.name(), "not needed", START).await.unwrap();
    assert_eq!(balance(&bench.billing, &customer.id).await, 100 * PRICE);

    // So is a key that it has revoked.
    bench.another().revoke_key(&customer.id, &customer.who.key, Actor::Operator, START).await.unwrap();
    let refused = hold_ahead(&customer.who).await;
    assert!(matches!(refused, Err(HoldError::Refused(Refusal::KeyRevoked))), "{refused:?}");
}

#[tokio::test]
async fn nobody_is_refused_for_what_is_held_ahead() {
    let bench = Bench::redis();
    for (is_limited, is_taken) in [(false, false), (false, true), (true, false), (true, true)] {
        // The plan allows 50 at a time.
        let sessions = if is_limited { 100 } else { OTHERS + 1 };
        let customer = bench.prepaid(sessions * PRICE).await;
        let open = if is_limited { 50 - OTHERS - 1 } else { 0 };
        hold(&bench.another(), &customer.who, open).await;
        let others = u32::try_from(OTHERS).unwrap();
        let spare =
            bench.billing.hold_ahead(&customer.who, SessionId::random(), &gateway("gw"), others, START).await;
        let spare = spare.unwrap().expect("there is room").session;
        hold(&bench.another(), &customer.who, OTHERS).await;

        let other = bench.another();
        let ask = async || other.hold(&customer.who, SessionId::random(), &gateway("other"), START).await;
        let refused = ask().await;
        assert!(matches!(refused, Err(HoldError::Ahead(_))), "{refused:?}");
        let account = bench.billing.account(&customer.id).await.unwrap().unwrap();
        assert_eq!((account.ahead, account.refused_at), (1, None), "it is told of nobody yet");
        if is_taken {
            bench.billing.begin(spare.name(), START, START).await.unwrap();
            let refused = ask().await;
            assert!(matches!(refused, Err(HoldError::Refused(_))), "{refused:?}");
        } else {
            bench.billing.void(spare.name(), "not needed", START).await.unwrap();
            ask().await.unwrap();
        }
        assert_eq!(bench.billing.account(&customer.id).await.unwrap().unwrap().ahead, 0);
    }
}

/// However a session that was held ahead ends, none is left of which it could be thought that it is given back.
#[tokio::test]
async fn what_was_held_ahead_is_so_until_it_begins_or_ends() {
    let bench = Bench::redis();
    let customer = bench.prepaid(100 * PRICE).await;
    for way in 0..4 {
        let spare =
            bench.billing.hold_ahead(&customer.who, SessionId::random(), &gateway("gw"), 1, START).await;
        let spare = spare.unwrap().expect("there is room").session;
        match way {
            0 => drop(bench.billing.post_begun(spare.name(), START, end(START), START).await.unwrap()),
            1 => drop(bench.billing.void(spare.name(), "not needed", START).await.unwrap()),
            2 => {
                let progress = minutes_of(&spare, START, 6);
                bench.billing.meter(&customer.id, &[progress], START).await.unwrap().remove(0).unwrap();
            }
            // By those who find its gateway dead.
            _ => drop(bench.another().settle_abandoned(&gateway("other"), START).await.unwrap()),
        }
        let account = bench.billing.account(&customer.id).await.unwrap().unwrap();
        assert_eq!(account.ahead, 0, "way {way}");
        let stored = bench.billing.session(&customer.id, &spare.id).await.unwrap().unwrap();
        assert!(!stored.ahead, "way {way}");
    }
}

#[tokio::test]
async fn nobody_s_session_is_held_shortly_before_a_renewal_or_told_of_as_a_low_balance() {
    let bench = Bench::redis();
    let new = customer("professional");
    let (account, secret) = bench.billing.create_customer(new, Actor::Operator, START).await.unwrap();
    let who = bench.billing.authenticate(secret.expose()).await.unwrap().unwrap();
    let end = account.period.expect("it is a subscription").end.as_millis();
    for (before, is_held) in [(30_000, false), (90_000, true), (0, true)] {
        let at = Timestamp::from_millis(end - before);
        let spare = bench.billing.hold_ahead(&who, SessionId::random(), &gateway("gw"), 1, at).await.unwrap();
        assert_eq!(spare.is_some(), is_held, "{before} ms before it");
    }

    let low = bench.prepaid(100 * PRICE).await;
    let threshold = Some(Micros::new(100 * PRICE));
    bench.billing.set_low_balance(&low.id, threshold, Actor::Operator, START).await.unwrap();
    let spare = bench.billing.hold_ahead(&low.who, SessionId::random(), &gateway("gw"), 1, START).await;
    assert!(spare.unwrap().is_none());
    assert_eq!(balance(&bench.billing, &low.id).await, 100 * PRICE);
}
