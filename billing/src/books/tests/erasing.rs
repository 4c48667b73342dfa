//! A customer is erased: what is personal is nowhere in the store, what is money is all there.

use super::*;
use crate::request::Metadata;

of_every_store! {
    nobody_is_erased_who_has_sessions_or_money
    ; of the real ones:
    what_is_personal_goes_and_what_is_money_stays
}

impl Bench {
    /// Everything that the store has, as text.
    fn dump(&self) -> String {
        match &self.place {
            Place::Memory(_) => unreachable!("it is not asked of it"),
            Place::Server(server) => server.ask(&["EVAL", DUMP, "0"]),
            Place::Folder(folder) => {
                let file = Connection::open(folder.path().join("ledger.db")).unwrap();
                let tables =
                    ["accounts", "audit", "open_sessions", "ended_sessions", "events", "parcels", "webhooks"];
                let bodies = |table: &&str| -> Option<String> {
                    let query = format!("SELECT group_concat(body) FROM {table}");
                    file.query_row(&query, [], |row| row.get(0)).unwrap()
                };
                tables.iter().filter_map(bodies).collect()
            }
        }
    }
}

const DUMP: &str = "
    local read = {string = {'GET'}, hash = {'HGETALL'}, set = {'SMEMBERS'}, zset = {'ZRANGE', 0, -1}, stream = {'XRANGE', '-', '+'}}
    local found = {}
    for _, key in ipairs(redis.call('KEYS', '*')) do
        local command, first, last = unpack(read[redis.call('TYPE', key).ok])
        local all = {command, key, first, last}
        found[#found + 1] = cjson.encode({key, redis.call(unpack(all))})
    end
    return table.concat(found)";

async fn what_is_personal_goes_and_what_is_money_stays(bench: Bench) {
    let Customer { id, who, secret } = bench.prepaid(1_000_000).await;
    let billing = &bench.billing;
    let metadata: serde_json::Value = serde_json::json!({ "name": "Lovelace" });
    let serde_json::Value::Object(metadata) = metadata else { unreachable!("it is an object") };
    let request = SessionRequest {
        tracking_id: Some("lovelace-1".parse().unwrap()),
        metadata: Some(Metadata::try_from(metadata).unwrap()),
        ..SessionRequest::default()
    };
    billing.hold(&who, NewSession::named(session("s"), request), &gateway("gw"), START).await.unwrap();
    let terms = billing.session(&id, &session("s")).await.unwrap().unwrap().terms;
    billing.begin_latest(&id, &session("s"), START, START).await.unwrap();
    billing.post_latest(&id, &session("s"), end(after(1)), after(1)).await.unwrap();
    billing.create_key(&id, "Lovelace's laptop".to_owned(), Actor::Operator, START).await.unwrap();
    billing.create_webhook(&id, "https://lovelace.example.com/", &[], Actor::Operator, START).await.unwrap();
    let before = billing.audit(&id, 0, LIST_MAX).await.unwrap();

    let erase = |billing: Billing| {
        let id = id.clone();
        async move { billing.erase(&id, true, Actor::Operator, after(MINUTE)).await }
    };
    let erased = erase(billing.clone()).await.unwrap();

    assert_eq!(
        (erased.email.as_str(), erased.balance, erased.erased_at),
        ("", Micros::ZERO, Some(after(MINUTE)))
    );
    assert_eq!(bench.another().authenticate(secret.expose()).await.unwrap(), None);
    assert!(billing.hold(&who, session("t"), &gateway("gw"), after(MINUTE)).await.is_err());
    assert_eq!(billing.session(&id, &session("s")).await.unwrap(), None);
    assert_eq!(billing.webhooks(&id).await.unwrap(), []);
    let kept = [
        serde_json::to_string(&billing.account(&id).await.unwrap()).unwrap(),
        serde_json::to_string(&billing.audit(&id, 0, LIST_MAX).await.unwrap()).unwrap(),
        bench.dump(),
    ];
    for text in kept {
        let text = text.to_lowercase();
        assert!(text.contains(id.as_str()), "it was looked into");
        assert!(!text.contains("lovelace") && !text.contains("example.com"), "{text}");
    }

    let log = billing.audit(&id, 0, LIST_MAX).await.unwrap();
    let (last, earlier) = log.split_last().unwrap();
    assert_eq!((earlier, last.kind, last.amount), (before.as_slice(), EntryKind::Erased, -990_000));
    assert_eq!((&last.actor, last.cause.as_deref()), (&Actor::Operator, Some("balance forfeited")));
    assert_eq!(billing.usage(&id, crate::usage::Span::Month, 1, START).await.unwrap()[0].usage.sessions, 1);
    billing.verify(&id).await.unwrap();

    assert_eq!(erase(bench.another()).await.unwrap(), erased, "a repeat changes nothing");
    // It was given on credit by a gateway that had not heard of it.
    let new = NewSession::fresh(SessionRequest::default());
    let given = Reserved::unsecured(&who, &new, terms, &gateway("gw"), after(MINUTE)).unwrap();
    let owed = Debt {
        account: id.clone(),
        session: given.session.id.clone(),
        hold: given.session.hold,
        begun_at: after(MINUTE),
        minutes: 7,
        at: after(MINUTE),
        up_bytes: 0,
        down_bytes: 0,
        end: None,
        credit: Credit::of(&given),
    };
    assert!(matches!(billing.hold_begun(&owed, after(MINUTE)).await, Err(Error::Refused(Refused::Erased))));
    assert!(!billing.repay(&owed, after(MINUTE)).await.unwrap());
    assert_eq!(billing.account(&id).await.unwrap().unwrap(), erased);
    let refused = [
        billing.create_key(&id, "new".to_owned(), Actor::Operator, START).await.map(|_| ()),
        billing.suspend(&id, false, Actor::Operator, START).await.map(|_| ()),
        billing.credit(&id, Micros::new(1), CommandId::random(), Actor::Operator, START).await.map(|_| ()),
        billing.set_low_balance(&id, Some(Micros::new(1)), Actor::Operator, START).await.map(|_| ()),
        billing
            .create_webhook(&id, "https://a.example.com/", &[], Actor::Operator, START)
            .await
            .map(|_| ())
            .map_err(Error::from),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::Refused(Refused::Erased))), "{refused:?}");
    }
}

async fn nobody_is_erased_who_has_sessions_or_money(bench: Bench) {
    let Customer { id, who, .. } = bench.prepaid(10_000).await;
    let billing = &bench.billing;
    let erase = |forfeit| billing.erase(&id, forfeit, Actor::Operator, START);
    let left = erase(false).await;
    assert!(
        matches!(left, Err(Error::Refused(Refused::BalanceLeft(left))) if left.get() == 10_000),
        "{left:?}"
    );
    let held = billing.hold(&who, session("s"), &gateway("gw"), START).await.unwrap().session;
    let open = erase(true).await;
    assert!(matches!(open, Err(Error::Refused(Refused::SessionsOpen(1)))), "{open:?}");
    billing.void(held.name(), "no browser", START).await.unwrap();
    let entries = billing.verify(&id).await.unwrap().entries;
    assert!(erase(false).await.is_err());
    assert_eq!(billing.verify(&id).await.unwrap().entries, entries, "a refusal writes nothing");
    erase(true).await.unwrap();
}
