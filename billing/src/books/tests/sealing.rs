//! Logs are sealed into archives and trimmed behind them, and still say all that they said.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::*;
use crate::archive::Archive;
use crate::reconcile::Difference;
use crate::seal::{SealError, Unproven};
use crate::time::Period;

of_every_store! {
    what_is_sealed_is_in_the_archive_and_the_log_goes_on
    sessions_that_are_open_at_the_cut_are_counted_where_they_end
    a_command_that_is_sealed_is_still_known
    a_seal_that_was_cut_short_is_repeated
    a_seal_that_was_cut_short_is_repeated_in_a_later_month
    what_a_reconciliation_needs_is_not_sealed
    two_that_seal_at_a_time_seal_once
    gateways_are_at_work_while_a_log_is_sealed
    archives_that_were_changed_or_are_missing_are_found_out
    ; of the real ones:
    a_log_that_was_trimmed_moves
    what_cannot_be_replayed_is_named_in_one_line
}

/// Milliseconds from `date -u -d 2027-02-01 +%s` on.
const FEBRUARY: u64 = 1_801_440_000_000;
const APRIL: u64 = 1_806_537_600_000;
const MAY: u64 = 1_809_129_600_000;
const HOUR: u64 = 60 * MINUTE;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn month(name: &str) -> Period {
    Period::named_month(name).unwrap()
}

/// A session of six minutes from then on, which ends when it is posted.
async fn six_minutes(billing: &Billing, who: &Principal, name: &str, from: u64) {
    begin_six(billing, who, name, from).await;
    post_six(billing, who, name, from).await;
}

async fn begin_six(billing: &Billing, who: &Principal, name: &str, from: u64) {
    let (id, from) = (session(name), at(from));
    billing.hold(who, id.clone(), &gateway("gw"), from).await.unwrap();
    billing.begin_latest(&who.account, &id, from, from).await.unwrap();
    extend(billing, &who.account, &id, 6).await.unwrap();
}

async fn post_six(billing: &Billing, who: &Principal, name: &str, from: u64) {
    let ended = at(from + 6 * MINUTE);
    billing.post_latest(&who.account, &session(name), end(ended), ended).await.unwrap();
}

impl Bench {
    async fn seal(&self, id: &AccountId, until: &str, now: u64, folder: &TempDir) -> Option<PathBuf> {
        let by = (Actor::Operator, at(now));
        let sealed = self.billing.seal(id, month(until), folder.path(), by).await.unwrap();
        sealed.map(|sealed| sealed.file)
    }

    async fn prove(&self, id: &AccountId, files: &[PathBuf]) -> Result<Verified, Unproven> {
        self.billing.prove_archives(files).await.unwrap().remove(id).unwrap()
    }

    /// The log in a file, an entry a line.
    async fn export(&self, id: &AccountId, folder: &TempDir) -> PathBuf {
        let (file, mut lines, mut after) = (folder.path().join("log.jsonl"), String::new(), 0);
        loop {
            let page = self.billing.audit(id, after, 7).await.unwrap();
            let Some(last) = page.last() else { break };
            after = last.seq;
            lines.extend(page.iter().map(|entry| serde_json::to_string(entry).unwrap() + "\n"));
        }
        fs::write(&file, lines).unwrap();
        file
    }
}

/// What `tests/replay.py` prints, or what it complains of.
fn replay(files: &[PathBuf]) -> Result<Value, String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/replay.py");
    let ran = Command::new("python3").arg(program).args(files).output().unwrap();
    if !ran.status.success() {
        return Err(String::from_utf8(ran.stderr).unwrap());
    }
    Ok(serde_json::from_slice(&ran.stdout).unwrap())
}

async fn what_is_sealed_is_in_the_archive_and_the_log_goes_on(bench: Bench) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(1_000_000).await, tempfile::tempdir().unwrap());
    let billing = &bench.billing;
    for (name, from) in [("a", START.as_millis()), ("b", FEBRUARY + HOUR), ("c", APRIL + HOUR)] {
        six_minutes(billing, &who, name, from).await;
    }
    let whole = billing.audit(&id, 0, LIST_MAX).await.unwrap();
    let before = billing.verify(&id).await.unwrap();

    let january = bench.seal(&id, "2027-01", APRIL + HOUR, &folder).await.unwrap();
    let february = bench.seal(&id, "2027-02", MAY + HOUR, &folder).await.unwrap();
    assert_eq!(bench.seal(&id, "2027-02", MAY + HOUR, &folder).await, None, "it is sealed");

    let log = billing.audit(&id, 0, LIST_MAX).await.unwrap();
    let (opening, rest) = log.split_first().unwrap();
    assert_eq!(
        (opening.kind, opening.seq, opening.balance_after.get()),
        (EntryKind::OpeningBalance, 9, 976_000)
    );
    assert_eq!(rest, &whole[9..]);
    let after = bench.another().verify(&id).await.unwrap();
    assert_eq!(after, Verified { sealed: 9, ..before });
    six_minutes(billing, &who, "d", MAY + 2 * HOUR).await;
    six_minutes(&bench.another(), &who, "e", MAY + 3 * HOUR).await;

    let files = [february, january];
    assert_eq!(bench.prove(&id, &files).await.unwrap().sealed, 0, "all was read");
    let files = [&files[1..], &files[..1], &[bench.export(&id, &folder).await]].concat();
    let found = replay(&files).unwrap();
    assert_eq!(found[id.as_str()]["balance"], 940_000);
    assert_eq!(found[id.as_str()]["months"]["2027-02"]["charged"], 12_000);
    let found = replay(&files[2..]).unwrap();
    assert_eq!(found[id.as_str()]["balance"], 940_000, "the log is enough for the figures");
    assert_eq!(found[id.as_str()]["months"]["2027-05"]["sessions"], 2);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing else is left in the folder");
}

async fn sessions_that_are_open_at_the_cut_are_counted_where_they_end(bench: Bench) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(1_000_000).await, tempfile::tempdir().unwrap());
    let billing = &bench.billing;
    begin_six(billing, &who, "over-the-end", FEBRUARY - 2 * MINUTE).await;
    begin_six(billing, &who, "void-after-it", FEBRUARY - MINUTE).await;
    let held = billing.hold(&who, session("held"), &gateway("gw"), at(FEBRUARY - 1)).await.unwrap().session;
    post_six(billing, &who, "over-the-end", FEBRUARY - 2 * MINUTE).await;
    billing.void(held.name(), "no browser", at(FEBRUARY + 1)).await.unwrap();

    let archive = bench.seal(&id, "2027-01", APRIL, &folder).await.unwrap();

    assert_eq!(bench.prove(&id, slice::from_ref(&archive)).await.unwrap().open, 1);
    post_six(billing, &who, "void-after-it", FEBRUARY - MINUTE).await;
    assert_eq!(billing.verify(&id).await.unwrap().open, 0);
    let february = billing.reconcile(&id, month("2027-02"), &[]).await.unwrap();
    assert_eq!((february.differences.as_slice(), february.log.charged.get()), (&[] as &[_], 24_000));
    let january = billing.reconcile(&id, month("2027-01"), &[]).await.unwrap();
    assert!(matches!(january.differences[..], [Difference::Sealed { until }] if until == at(FEBRUARY)));
    let files = [archive, bench.export(&id, &folder).await];
    for found in [replay(&files).unwrap(), replay(&files[1..]).unwrap()] {
        assert_eq!(found[id.as_str()]["months"]["2027-02"]["charged"], 24_000);
        assert_eq!(found[id.as_str()]["open"], 0);
    }
}

async fn a_command_that_is_sealed_is_still_known(bench: Bench) {
    let (Customer { id, .. }, folder) = (bench.prepaid(0).await, tempfile::tempdir().unwrap());
    let credit = |billing: Billing, micros, now| {
        let id = id.clone();
        async move {
            let command = "invoice-17".parse().unwrap();
            billing.credit(&id, Micros::new(micros), command, Actor::Operator, at(now)).await
        }
    };
    credit(bench.billing.clone(), 5, START.as_millis()).await.unwrap();
    bench.seal(&id, "2027-01", APRIL, &folder).await.unwrap();
    assert_eq!(credit(bench.another(), 5, APRIL).await.unwrap().balance.get(), 5);
    let other = credit(bench.billing.clone(), 6, APRIL).await;
    assert!(matches!(other, Err(Error::Refused(Refused::ExistsDifferent))), "{other:?}");
    let sealed = bench.billing.store().sealed_commands(&id).await.unwrap();
    assert_eq!(sealed.len(), 1);
}

/// Whatever a command left that was killed: an unfinished file, an archive without a trimmed log.
async fn a_seal_that_was_cut_short_is_repeated(bench: Bench) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(1_000_000).await, tempfile::tempdir().unwrap());
    six_minutes(&bench.billing, &who, "a", START.as_millis()).await;
    let whole = bench.billing.audit(&id, 0, LIST_MAX).await.unwrap();
    let by = || (Actor::Operator, at(APRIL));
    let archive = bench.billing.archive_until(&id, month("2027-01").end, folder.path(), by()).await.unwrap();
    let (opening, archived) = archive.unwrap();
    assert_eq!(bench.billing.audit(&id, 0, LIST_MAX).await.unwrap(), whole, "nothing was taken off yet");
    fs::write(archived.file.with_extension("jsonl.unfinished"), "{").unwrap();
    six_minutes(&bench.billing, &who, "b", FEBRUARY).await;

    let sealed = bench.billing.seal(&id, month("2027-01"), folder.path(), by()).await.unwrap();

    assert_eq!(sealed.as_ref(), Some(&archived));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let log = bench.billing.audit(&id, 0, LIST_MAX).await.unwrap();
    assert_eq!(log[0], opening);
    assert_eq!(bench.prove(&id, &[archived.file]).await.unwrap().balance.get(), 976_000);
}

async fn a_seal_that_was_cut_short_is_repeated_in_a_later_month(bench: Bench) {
    let folder = tempfile::tempdir().unwrap();
    let [idle, busy] = [bench.prepaid(1_000_000).await, bench.prepaid(1_000_000).await];
    let mut cut_short = Vec::new();
    for customer in [&idle, &busy] {
        six_minutes(&bench.billing, &customer.who, "a", START.as_millis()).await;
        let (until, by) = (month("2027-01").end, (Actor::Operator, at(APRIL)));
        let archive = bench.billing.archive_until(&customer.id, until, folder.path(), by).await.unwrap();
        cut_short.push(archive.unwrap().1.file);
    }
    six_minutes(&bench.billing, &busy.who, "b", FEBRUARY).await;

    let same = bench.seal(&idle.id, "2027-02", MAY + HOUR, &folder).await.unwrap();
    let longer = bench.seal(&busy.id, "2027-02", MAY + HOUR, &folder).await.unwrap();

    assert_eq!(same, cut_short[0], "it has the same entries");
    assert!(longer != cut_short[1]);
    for (id, mut files, balance) in
        [(&idle.id, vec![same], 988_000), (&busy.id, vec![cut_short[1].clone(), longer], 976_000)]
    {
        assert_eq!(bench.prove(id, &files).await.unwrap().sealed, 0, "all was read");
        let archives = Archive::by_account(&files).unwrap();
        let reconciled = bench.billing.reconcile(id, month("2027-01"), &archives[id]).await.unwrap();
        assert_eq!((reconciled.log.sessions, &*reconciled.differences), (1, &[][..]));
        files.push(bench.export(id, &folder).await);
        assert_eq!(
            replay(&files).unwrap()[id.as_str()]["balance"],
            balance,
            "the separate program reads it, too"
        );
    }
}

async fn what_a_reconciliation_needs_is_not_sealed(bench: Bench) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(1_000_000).await, tempfile::tempdir().unwrap());
    six_minutes(&bench.billing, &who, "a", START.as_millis()).await;
    let by = || (Actor::Operator, at(APRIL - 1));
    let sealed = bench.billing.seal(&id, month("2027-01"), folder.path(), by()).await;
    assert!(
        matches!(sealed, Err(SealError::TooRecent { kept }) if kept == month("2027-01").start),
        "{sealed:?}"
    );
    assert_eq!(bench.billing.last_to_seal(at(APRIL - 1)), month("2026-12"));
    assert_eq!(bench.billing.last_to_seal(at(APRIL)), month("2027-01"));
    assert_eq!(bench.seal(&id, "2026-12", APRIL - 1, &folder).await, None, "there is nothing of it");
}

async fn two_that_seal_at_a_time_seal_once(bench: Bench) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(1_000_000).await, tempfile::tempdir().unwrap());
    six_minutes(&bench.billing, &who, "a", START.as_millis()).await;
    let (other, elsewhere) = (bench.another(), tempfile::tempdir().unwrap());
    let by = || (Actor::Operator, at(APRIL));
    let (one, two) = join(
        bench.billing.seal(&id, month("2027-01"), folder.path(), by()),
        other.seal(&id, month("2027-01"), elsewhere.path(), by()),
    )
    .await;
    let digests: Vec<_> =
        [one, two].into_iter().filter_map(|sealed| sealed.ok()?).map(|sealed| sealed.digest).collect();
    assert!(!digests.is_empty() && digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    assert_eq!(other.verify(&id).await.unwrap().sealed, 6);
}

async fn gateways_are_at_work_while_a_log_is_sealed(bench: Bench) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(10_000_000).await, tempfile::tempdir().unwrap());
    for number in 0..40 {
        six_minutes(&bench.billing, &who, &format!("old-{number}"), START.as_millis() + number).await;
    }
    let (operator, other) = (bench.another(), bench.another());
    let work = |billing: Billing, name: &'static str| {
        let who = who.clone();
        async move {
            for number in 0..40 {
                six_minutes(&billing, &who, &format!("{name}-{number}"), APRIL + number).await;
            }
        }
    };
    let by = (Actor::Operator, at(APRIL));
    let seal = operator.seal(&id, month("2027-01"), folder.path(), by);
    let (sealed, ((), ())) = join(seal, join(work(bench.billing.clone(), "one"), work(other, "two"))).await;
    let verified = bench.prove(&id, &[sealed.unwrap().unwrap().file]).await.unwrap();
    assert_eq!((verified.open, verified.balance.get()), (0, 10_000_000 - 120 * 12_000));
}

async fn archives_that_were_changed_or_are_missing_are_found_out(bench: Bench) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(1_000_000).await, tempfile::tempdir().unwrap());
    six_minutes(&bench.billing, &who, "a", START.as_millis()).await;
    six_minutes(&bench.billing, &who, "b", FEBRUARY).await;
    let first = bench.seal(&id, "2027-01", MAY, &folder).await.unwrap();
    let second = bench.seal(&id, "2027-02", MAY, &folder).await.unwrap();
    let (first, second) = (&first, &second);
    let proved = |files: Vec<PathBuf>| {
        let (bench, id) = (&bench, &id);
        async move { bench.prove(id, &files).await }
    };
    proved(vec![first.clone(), second.clone()]).await.unwrap();
    let missing = proved(vec![second.clone()]).await;
    assert!(matches!(missing, Err(Unproven::Fault(Fault::Missing { expected: 1 }))), "{missing:?}");
    let missing = proved(vec![first.clone()]).await;
    assert!(matches!(missing, Err(Unproven::Fault(Fault::Missing { expected: 7 }))), "{missing:?}");

    let text = fs::read_to_string(first).unwrap();
    let changes: [(&str, &str); 4] = [
        ("\"amount\":-10000", "\"amount\":-10001"),
        ("\"closing\":{\"balance\":988000", "\"closing\":{\"balance\":988001"),
        ("\"sha256\":\"", "\"sha256\":\"0"),
        ("\n", "\r\n"),
    ];
    for (from, to) in changes {
        let changed = folder.path().join("changed.jsonl");
        let words = text.replacen(from, to, 1);
        assert_ne!(words, text, "{from}");
        fs::write(&changed, words).unwrap();
        assert!(proved(vec![changed.clone(), second.clone()]).await.is_err(), "{from}");
        assert!(replay(&[changed, second.clone()]).is_err(), "{from}");
    }
    fs::write(first, &text[..text.len() - 1]).unwrap();
    assert!(matches!(Archive::open(first).unwrap().read(|_| Ok(())), Err(ArchiveError::Line { .. })));
}

async fn a_log_that_was_trimmed_moves(bench: Bench) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(1_000_000).await, tempfile::tempdir().unwrap());
    let credit = |billing: Billing| {
        let id = id.clone();
        async move {
            let command = "invoice-17".parse().unwrap();
            billing.credit(&id, Micros::new(5), command, Actor::Operator, START).await.unwrap().balance
        }
    };
    let balance = credit(bench.billing.clone()).await;
    let archive = bench.seal(&id, "2027-01", APRIL, &folder).await.unwrap();
    for target in [Bench::embedded(), Bench::redis()] {
        bench.billing.move_to(&target.billing).await.unwrap();
        assert_eq!(credit(target.another()).await, balance, "it was made before");
        six_minutes(&target.billing, &who, "a", MAY).await;
        assert_eq!(target.prove(&id, slice::from_ref(&archive)).await.unwrap().entries, 7);
    }
}

/// The separate program names the file, the line and what to do, whatever it is given.
async fn what_cannot_be_replayed_is_named_in_one_line(bench: Bench) {
    let (Customer { id, who, .. }, folder) = (bench.prepaid(1_000_000).await, tempfile::tempdir().unwrap());
    six_minutes(&bench.billing, &who, "a", START.as_millis()).await;
    let archive = fs::read(bench.seal(&id, "2027-01", APRIL + HOUR, &folder).await.unwrap()).unwrap();
    let log = fs::read(bench.export(&id, &folder).await).unwrap();
    let file = folder.path().join("given.jsonl");
    let complaint = || {
        let words = replay(slice::from_ref(&file)).unwrap_err();
        let [line] = words.lines().collect::<Vec<_>>()[..] else { panic!("one line: {words}") };
        let told = line.strip_prefix(&format!("error: {}", file.display()));
        told.unwrap_or_else(|| panic!("the file is named: {line}")).to_owned()
    };
    assert!(complaint().starts_with(": No such file or directory; name "), "{}", complaint());

    let lines: Vec<_> = archive.split_inclusive(|byte| *byte == b'\n').collect();
    let in_header =
        |from: &str, to: &str| String::from_utf8(archive.clone()).unwrap().replacen(from, to, 1).into_bytes();
    let cases: [(&[u8], &str); 11] = [
        (b"not a log\n", ", line 1: no JSON, or cut off; export the log again"),
        (&[0x7f, b'E', b'L', b'F', 0xff, 0, b'\n'], ", line 1: no JSON, or cut off; export"),
        (b"[1]\n", ", line 1: no JSON object; "),
        (b"{}\n", ", line 1: no entry of an audit log, it has no seq; "),
        (&"[".repeat(100_000).into_bytes(), ", line 1: no JSON, or cut off; "),
        (&log[..log.len() / 2], ", line 1: no JSON, or cut off; "),
        (&archive[..archive.len() - 9], ", line 8: no JSON, or cut off; "),
        (&lines[..3].concat(), ", line 3: the archive is cut off, its last line is no checksum; "),
        (lines[0], ", line 1: the archive is cut off, its last line is no checksum; "),
        (&in_header("\"opening\"", "\"opened\""), ", line 1: no header of an archive, it has no opening; "),
        (&in_header("\"first\":1", "\"first\":[1]"), ": not an archive, or changed since; "),
    ];
    for (given, expected) in cases {
        fs::write(&file, given).unwrap();
        assert!(complaint().starts_with(expected), "{expected:?}: {}", complaint());
    }

    // Entries, the log's an opening balance, of which a field has another type.
    let changes: [(&[u8], &str, &str); 3] = [
        (lines[1], "account", "its account is no text; "),
        (lines[1], "prev", "does not follow the one before it"),
        (&log, "prev", ", line 1: no entry of an audit log ("),
    ];
    for (line, field, expected) in changes {
        let mut entry: Value = serde_json::from_slice(line).unwrap();
        entry[field] = 7.into();
        fs::write(&file, entry.to_string()).unwrap();
        assert!(complaint().contains(expected), "{expected:?}: {}", complaint());
    }
}
