use super::*;

fn entry() -> Entry {
    serde_json::from_value(serde_json::json!({
        "seq": 2, "at": 1_800_007_200_000_u64, "account": "acme", "actor": "gateway:gw-1",
        "kind": "lost_refund", "session": "s", "command": null, "key": "k", "cause": "ausgefallen – crashed",
        "amount": 10_000, "included": 0, "retry": 1, "overage": -2_000, "balance_after": 10_000,
        "included_after": 3, "retry_after": 1, "overage_after": 0, "minutes": 6, "ended": 1_800_007_199_000_u64,
        "prev": "0a".repeat(32), "hash": "00".repeat(32),
    }))
    .unwrap()
}

/// What the Python of the module's text prints for this entry.
const EXPECTED: &str = "4655cea146a73ad36d0c94f6b3a131f33db5e909c607bcc4fe03c308dc503b86";

#[test]
fn the_hash_is_the_documented_one() {
    assert_eq!(entry().compute_hash().to_string(), EXPECTED);
}

#[test]
fn every_field_counts_for_the_hash() {
    let changes: [fn(&mut Entry); 20] = [
        |entry| entry.prev = Digest::default(),
        |entry| entry.seq = 3,
        |entry| entry.at = Timestamp::from_millis(0),
        |entry| entry.account = "acne".parse().unwrap(),
        |entry| entry.actor = Actor::System,
        |entry| entry.kind = EntryKind::Posted,
        |entry| entry.session = None,
        |entry| entry.command = entry.session.take().map(|id| id.as_str().parse().unwrap()),
        |entry| entry.key = None,
        |entry| entry.cause = None,
        |entry| entry.amount = 10_001,
        |entry| entry.included = -1,
        |entry| entry.retry = 0,
        |entry| entry.overage = 2_000,
        |entry| entry.balance_after = Micros::ZERO,
        |entry| entry.included_after = 4,
        |entry| entry.retry_after = 2,
        |entry| entry.overage_after = Micros::new(1),
        |entry| entry.minutes = 5,
        |entry| entry.ended = None,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut changed = entry();
        change(&mut changed);
        assert_ne!(changed.compute_hash().to_string(), EXPECTED, "change {number}");
    }
}

#[test]
fn kinds_and_actors_have_one_name_everywhere() {
    let entry = entry();
    let json = serde_json::to_value(&entry).unwrap();
    assert_eq!(json["kind"], entry.kind.as_str());
    assert_eq!(json["actor"], entry.actor.to_string());
    for actor in ["operator", "system", "customer:k", "gateway:g"] {
        assert_eq!(actor.parse::<Actor>().unwrap().to_string(), actor);
    }
    for actor in ["", "root", "customer:", "operator:x"] {
        assert!(actor.parse::<Actor>().is_err(), "{actor:?}");
    }
}

#[test]
fn digests_are_parsed_strictly() {
    let text = "0f".repeat(32);
    assert_eq!(Digest::try_from(text.clone()).unwrap().to_string(), text);
    for text in ["", "0f", &"0F".repeat(32), &"0g".repeat(32), &"0f".repeat(33), &format!("{text}0")] {
        assert!(Digest::try_from(text.to_owned()).is_err(), "{text:?}");
    }
}
