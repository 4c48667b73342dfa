use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use billing::{Actor, End, GatewayId, NewCustomer, Outcome, SessionId, Timestamp};
use clap::CommandFactory as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A store of its own, and an environment that points at it.
struct Operator(TempDir);

impl Environment for Operator {
    fn vars(&self) -> Vec<(String, String)> {
        let url = format!("sqlite:{}", self.0.path().join("ledger.db").display());
        vec![("UFB_STORE_URL".to_owned(), url)]
    }
}

impl Operator {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn config(&self) -> Config {
        Config::load(None, self, &[]).unwrap()
    }

    /// What the command prints, and whether it succeeds.
    async fn types(&self, line: &str) -> (String, Result<(), Failure>) {
        let words = ["ufbrowsers"].into_iter().chain(line.split_whitespace()).map(OsString::from);
        let Ok(Invocation::Command(command)) = parse(words, self) else { panic!("{line} is no command") };
        let mut printed = Vec::new();
        let mut output = Output::new(&mut printed, command.json);
        let result = command.run_on(&mut output).await;
        output.flush().unwrap();
        drop(output);
        (String::from_utf8(printed).unwrap(), result)
    }

    async fn text(&self, line: &str) -> String {
        let (printed, result) = self.types(line).await;
        result.expect(line);
        printed
    }

    async fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.text(&format!("{line} --json")).await).unwrap()
    }

    async fn failure(&self, line: &str) -> String {
        self.types(line).await.1.expect_err(line).to_string()
    }
}

const CREATE: &str = "customer create --email a@example.com --id acme";

#[test]
fn the_arguments_are_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let lines = [
        "",
        "fly",
        "serve --json",
        "serve --set edge.listen",
        "customer credit acme 0.5",
        "customer credit acme 1000000000000000",
        "customer show a/b",
        "customer create --email nonsense --plan starter",
        "customer create --email @example.com --plan starter",
        "customer create --email a@example.com --plan starter --prepaid -5",
        "customer low-balance acme -1",
        "key create acme --label \u{7}",
        "audit",
        "audit acme --after -1",
    ];
    for line in lines {
        let words = ["ufbrowsers"].into_iter().chain(line.split_whitespace()).map(OsString::from);
        let code = parse(words, &Operator::new()).expect_err(line);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(64)), "{line}");
    }
}

#[test]
fn serve_gets_its_settings() {
    let words = ["ufbrowsers", "serve", "--ready-file", "r", "--set", "edge.listen=127.0.0.1:0"];
    let parsed = parse(words.map(OsString::from), &Operator::new());
    let Ok(Invocation::Serve(serve)) = parsed else { panic!("not serve") };
    assert_eq!(serve.config.edge.listen.port(), 0);
    assert_eq!(serve.ready_file, Some(PathBuf::from("r")));
}

#[tokio::test]
async fn a_customer_is_created_with_a_key_that_works() {
    let operator = Operator::new();
    let created = operator.json(&format!("{CREATE} --plan starter")).await;
    assert_eq!(created["customerId"], "acme");
    let billing = store::open(&operator.config()).unwrap();
    let principal = billing.authenticate(created["apiKey"].as_str().unwrap()).await.unwrap().unwrap();
    assert_eq!(principal.account.as_str(), "acme");
}

#[tokio::test]
async fn creating_says_what_to_do_next() {
    let text = Operator::new().text(&format!("{CREATE} --plan starter --prepaid 100000")).await;
    for words in ["balance $0.10", "shown once", "connectOverCDP('ws://127.0.0.1:3000/?token=ufb_"] {
        assert!(text.contains(words), "{text}");
    }
}

#[tokio::test]
async fn an_unknown_plan_is_answered_with_those_there_are() {
    let failure = Operator::new().failure(&format!("{CREATE} --plan gold")).await;
    assert_eq!(failure, "there is no plan `gold`; choose one of enterprise, professional, starter");
}

#[tokio::test]
async fn an_unknown_customer_is_answered_with_the_next_command() {
    let operator = Operator::new();
    let lines = [
        "customer show nobody",
        "customer credit nobody 1",
        "customer suspend nobody",
        "key create nobody",
        "key list nobody",
        "key revoke nobody k",
        "audit nobody",
    ];
    for line in lines {
        let failure = operator.failure(line).await;
        assert!(failure.contains("ufbrowsers customer list"), "{line}: {failure}");
    }
}

#[tokio::test]
async fn a_credit_that_is_repeated_counts_once() {
    let operator = Operator::new();
    operator.text(&format!("{CREATE} --plan starter --prepaid 0")).await;
    for _ in 0..2 {
        let account = operator.json("customer credit acme 1500000 --command-id c1").await;
        assert_eq!(account["balanceMicros"], 1_500_000);
        assert_eq!(account["balance"], json!(1.5));
        assert_eq!(account["commandId"], "c1");
    }
}

#[tokio::test]
async fn a_credit_without_an_answer_can_be_repeated() {
    let line = "--set store.url=redis://127.0.0.1:1 customer credit acme 5";
    let failure = Operator::new().failure(line).await;
    let (_, id) = failure.split_once("repeat this with `--command-id ").expect(&failure);
    assert!(id.split_once('`').unwrap().0.parse::<CommandId>().is_ok(), "{failure}");
    let again = Operator::new().failure(&format!("{line} --command-id one")).await;
    assert!(again.contains("`--command-id one`"), "{again}");
}

#[tokio::test]
async fn a_suspension_is_lifted() {
    let operator = Operator::new();
    operator.text(&format!("{CREATE} --plan starter")).await;
    assert_eq!(operator.json("customer suspend acme").await["status"], "suspended");
    assert_eq!(operator.json("customer suspend acme --lift").await["status"], "active");
}

#[tokio::test]
async fn keys_are_listed_without_their_secrets() {
    let operator = Operator::new();
    operator.text(&format!("{CREATE} --plan starter")).await;
    let created = operator.json("key create acme --label ci").await;
    let (id, secret) = (created["keyId"].as_str().unwrap(), created["apiKey"].as_str().unwrap());
    assert!(secret.starts_with("ufb_"));
    operator.text(&format!("key revoke acme {id}")).await;
    let listed = operator.json("key list acme").await;
    let key = listed["keys"].as_array().unwrap().iter().find(|key| key["keyId"] == id).unwrap();
    assert_eq!(key["label"], "ci");
    assert!(key["revokedAt"].is_string());
    assert!(!listed.to_string().contains("ufb_"));
    let failure = operator.failure("key revoke acme nothing").await;
    assert!(failure.contains("ufbrowsers key list CUSTOMER"), "{failure}");
}

#[tokio::test]
async fn a_lost_session_is_shown_with_its_cause() {
    let operator = Operator::new();
    let created = operator.json(&format!("{CREATE} --plan starter")).await;
    let billing = store::open(&operator.config()).unwrap();
    let who = billing.authenticate(created["apiKey"].as_str().unwrap()).await.unwrap().unwrap();
    let (id, start) = ("s1".parse::<SessionId>().unwrap(), store::now());
    let held = billing.hold(&who, id, &GatewayId::random(), start).await.unwrap().session;
    billing.begin(held.name(), start, start).await.unwrap();
    let at = Timestamp::from_millis(start.as_millis() + 1_250);
    let end = End { at, outcome: Outcome::Lost { cause: "crashed" }, up_bytes: 1, down_bytes: 2 };
    billing.post(held.name(), end, at).await.unwrap();

    let session = &operator.json("customer show acme").await["sessions"][0];
    assert_eq!(
        (&session["duration"], &session["cause"], &session["chargedMicros"], &session["refunded"]),
        (&json!(1_250), &json!("crashed"), &json!(0), &json!(true))
    );
    let text = operator.text("customer show acme").await;
    assert!(text.contains("posted  1.250 s   $0       crashed  lost, refunded"), "{text}");
}

#[tokio::test]
async fn the_list_is_aligned() {
    let operator = Operator::new();
    assert!(operator.text("customer list").await.contains("ufbrowsers customer create"));
    operator.text(&format!("{CREATE} --plan professional")).await;
    assert_eq!(
        operator.text("customer list").await,
        "CUSTOMER  EMAIL          PLAN          TYPE          STATUS  BALANCE  INCLUDED  RUNNING\n\
         acme      a@example.com  professional  subscription  active  $0       5000      0\n"
    );
}

#[tokio::test]
async fn the_audit_log_is_printed_and_verified() {
    let operator = Operator::new();
    operator.text(&format!("{CREATE} --plan starter --prepaid 1000000")).await;
    operator.text("customer credit acme 500000").await;
    let audit = operator.json("audit acme").await;
    let entries = audit["entries"].as_array().unwrap();
    assert_eq!(audit["verified"]["ok"], true);
    assert_eq!(audit["verified"]["entries"], entries.len());
    assert_eq!(audit["verified"]["balanceMicros"], 1_500_000);
    let rest = operator.json("audit acme --after 1").await;
    assert_eq!(rest["entries"].as_array().unwrap().len(), entries.len() - 1);
    let text = operator.text("audit acme").await;
    assert!(text.contains("+$0.50         $1.50"), "{text}");
    assert!(text.contains("✓ all "), "{text}");
}

#[tokio::test]
async fn a_customer_is_exported_and_erased() {
    let operator = Operator::new();
    operator.text(&format!("{CREATE} --plan starter --prepaid 1000000")).await;
    operator.text("webhook create acme --url https://example.com/hook").await;
    let exported: Value = serde_json::from_str(&operator.text("customer export acme").await).unwrap();
    assert_eq!(exported["customer"]["email"], "a@example.com");
    assert_eq!(exported["webhooks"][0]["url"], "https://example.com/hook");
    assert_eq!(exported["auditLog"].as_array().map(Vec::len), Some(4));
    let text = exported.to_string();
    assert!(!text.contains("whsec_") && exported["keys"][0].get("hash").is_none(), "{text}");

    assert!(operator.failure("customer erase acme").await.contains("repeat this with --forfeit"));
    assert_eq!(operator.json("customer erase acme --forfeit").await["status"], "erased");
    let left = operator.text("customer export acme").await;
    assert!(!left.contains("example.com") && left.contains("balance forfeited"), "{left}");
}

#[tokio::test]
async fn an_older_log_is_sealed_and_proved() {
    let operator = Operator::new();
    let billing = store::open(&operator.config()).unwrap();
    let [long_ago, later] = [1_600_000_000_000, 1_605_000_000_000].map(Timestamp::from_millis);
    let new = NewCustomer {
        id: Some("acme".parse().unwrap()),
        email: "a@example.com".to_owned(),
        plan: "starter".to_owned(),
        prepaid: Some(Micros::new(1_000_000)),
    };
    let (account, _) = billing.create_customer(new.clone(), Actor::Operator, long_ago).await.unwrap();
    let command = CommandId::random();
    billing.credit(&account.id, Micros::new(500_000), command, Actor::Operator, later).await.unwrap();
    let folder = operator.0.path().join("archives");
    let into = format!("--into {}", folder.display());

    // The first one's archive cannot be written.
    let new = NewCustomer { id: Some("aaa".parse().unwrap()), ..new };
    billing.create_customer(new, Actor::Operator, long_ago).await.unwrap();
    fs::create_dir_all(folder.join("aaa-000000000001-000000000003.jsonl.unfinished")).unwrap();
    let (sealed, result) = operator.types(&format!("archive seal --until 2020-09 {into} --json")).await;
    assert!(result.unwrap_err().to_string().contains("aaa: "));
    let sealed: Value = serde_json::from_str(&sealed).unwrap();
    assert_eq!((&sealed["archives"][0]["first"], &sealed["archives"][0]["last"]), (&json!(1), &json!(3)));
    let first = sealed["archives"][0]["file"].as_str().unwrap();
    let text = operator.text(&format!("archive seal acme {into}")).await;
    assert!(text.contains("acme      4     4   "), "{text}");
    let second = folder.join("acme-000000000004-000000000004.jsonl");

    let proved = operator.text(&format!("archive verify {first} {}", second.display())).await;
    assert!(proved.contains("✓ acme: all 4 entries are in the archives and the log"), "{proved}");
    let (missing, result) = operator.types(&format!("archive verify {first}")).await;
    assert!(missing.contains("✗ acme: log: entry 4 is missing") && result.is_err(), "{missing}");
    let audit = operator.json("audit acme").await;
    assert_eq!(audit["entries"][0]["kind"], "opening_balance", "{audit}");
    assert_eq!((&audit["verified"]["sealedEntries"], &audit["verified"]["ok"]), (&json!(4), &json!(true)));
    let sealed = operator.types("reconcile --month 2020-09").await;
    assert!(sealed.0.contains("sealed up to") && sealed.1.is_err(), "{}", sealed.0);
    operator
        .text(&format!("reconcile --month 2020-09 --archive {first} --archive {}", second.display()))
        .await;
}

#[tokio::test]
async fn what_is_not_there_is_not_taken_for_empty() {
    let operator = Operator::new();
    let folder = operator.0.path().display();
    for line in [
        format!("store backup {folder}/backup.db"),
        format!("store migrate sqlite:{folder}/ledger.db sqlite:{folder}/new.db"),
    ] {
        let failure = operator.failure(&line).await;
        assert!(failure.contains("there is no store at sqlite:"), "{failure}");
        assert_eq!(fs::read_dir(operator.0.path()).unwrap().count(), 0, "{line} leaves nothing");
    }
    operator.text(&format!("{CREATE} --plan starter")).await;
    let cases = [
        (format!("store backup {folder}/nowhere/backup.db"), "in a folder that does"),
        (format!("audit --export {folder}/ledger.db"), "name a file that does not exist"),
        ("reconcile --month 2999-01".to_owned(), "it has not begun"),
        (format!("archive seal --until 2999-01 --into {folder}"), " is the latest month"),
        (format!("webhook create acme --url https://example.com/{}", "a".repeat(2_000)), "2000 is the most"),
        (
            format!("store migrate sqlite:{folder}/ledger.db redis://127.0.0.1:1"),
            "redis://127.0.0.1:1: the store",
        ),
    ];
    for (line, words) in cases {
        let failure = operator.failure(&line).await;
        assert!(failure.contains(words), "{line}: {failure}");
    }
}

#[tokio::test]
async fn a_store_to_move_is_named_by_a_file_so_that_nobody_sees_its_password() {
    let operator = Operator::new();
    let folder = operator.0.path().display();
    operator.text(&format!("{CREATE} --plan starter")).await;
    let [url, other] = ["url", "other"].map(|name| operator.0.path().join(name));
    let target = format!("sqlite:{folder}/new/ledger.db");
    fs::write(&url, format!("{target}\n")).unwrap();
    fs::write(&other, "hunter2").unwrap();

    let from = format!("store migrate sqlite:{folder}/ledger.db");
    for (to, words) in [
        (format!("@{folder}/none"), "TO: "),
        (format!("@{folder}/none"), "none: No such file or directory (os error 2); name a file"),
        (format!("@{}", other.display()), "other: that is no store; write it as `sqlite:PATH`"),
        ("hunter2".to_owned(), "TO: that is no store; write it as `sqlite:PATH`"),
    ] {
        let failure = operator.failure(&format!("{from} {to}")).await;
        assert!(failure.contains(words) && !failure.contains("hunter2"), "{to}: {failure}");
    }
    let moved = operator.text(&format!("{from} @{}", url.display())).await;
    assert!(moved.contains(&format!("are in {target}; ")), "{moved}");
}

#[tokio::test]
async fn check_reports_every_mistake_at_once() {
    let line = "check --json --set edge.listen=here --set log.level=loud";
    let (printed, result) = Operator::new().types(line).await;
    let report: Value = serde_json::from_str(&printed).unwrap();
    let names: Vec<_> = report["checks"].as_array().unwrap().iter().map(|check| &check["name"]).collect();
    assert_eq!(names, ["edge.listen", "log.level"]);
    let problem = &report["checks"][0]["problem"];
    assert_eq!(problem, "`here` is not an IP address with a port (UFB_EDGE_LISTEN, by --set)");
    assert!(matches!(result, Err(Failure::Printed(64))));
}

#[tokio::test]
async fn check_tries_what_the_settings_point_at() {
    let operator = Operator::new();
    let browser = operator.0.path().join("chromium");
    fs::write(&browser, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(&browser, fs::Permissions::from_mode(0o755)).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = format!(
        "check --set pool.process.binary={} --set edge.listen={} --set admin.listen=127.0.0.1:0 \
         --set edge.tls_listen=127.0.0.1:0 --set edge.tls_cert=/nonexistent --set edge.tls_key=/nonexistent",
        browser.display(),
        taken.local_addr().unwrap()
    );
    let (printed, result) = operator.types(&line).await;
    let starts: Vec<_> = printed.lines().map(|line| line.chars().take(22).collect::<String>()).collect();
    let starts: Vec<_> =
        starts.iter().map(|start| start.trim_end()).filter(|start| !start.is_empty()).collect();
    assert_eq!(
        starts,
        [
            "✓ settings",
            "✓ store.url",
            "✗ edge.listen",
            "✓ edge.tls_listen",
            "✓ admin.listen",
            "✗ edge.tls_cert",
            "✗ pool.process.binary",
        ],
        "{printed}"
    );
    assert!(printed.contains("is a script"), "{printed}");
    assert!(matches!(result, Err(Failure::Printed(64))));
}

#[tokio::test]
async fn check_reaches_the_endpoints() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let line = format!(
        "check --set pool.provider=fixed --set pool.fixed.endpoints=ws://{address}/x?token=hunter2 \
         --set edge.listen=127.0.0.1:0 --set admin.listen=127.0.0.1:0"
    );
    let text = Operator::new().text(&line).await;
    assert!(text.contains(&format!("ws://{address} answers")) && !text.contains("hunter2"), "{text}");
    drop(listener);
    assert!(matches!(Operator::new().types(&line).await.1, Err(Failure::Printed(64))));
}

#[tokio::test]
async fn what_was_told_is_shown_in_both_places() {
    let operator = Operator::new();
    operator.text(&format!("{CREATE} --plan starter --prepaid 1000000")).await;
    let told = operator.json("events acme").await;
    assert_eq!(told["events"][0]["type"], "customer:activated");
    assert_eq!(told["events"].as_array().unwrap().len(), 1);
    for line in ["events", "audit --events", "audit acme --events"] {
        assert_eq!(operator.json(line).await, told, "{line}");
    }
    assert_eq!(operator.json("events --dead").await, json!({ "deadLetters": [] }));
    assert_eq!(operator.json("events --retry all").await, json!({ "retried": [] }));
    let words = operator.failure("events --retry notices.acme-1-0.w").await;
    assert!(words.contains("events --dead"), "{words}");
    assert!(operator.failure("events nobody").await.contains("customer list"));
}

#[tokio::test]
async fn a_webhook_is_made_listed_rolled_and_removed() {
    let operator = Operator::new();
    operator.text(&format!("{CREATE} --plan starter")).await;
    let create = "webhook create acme --url https://example.com/hook";
    let created = operator.json(&format!("{create} --event session:lost")).await;
    let (id, secret) = (created["webhookId"].as_str().unwrap(), created["secret"].as_str().unwrap());
    assert!(secret.starts_with("whsec_"));
    let listed = operator.json("webhook list acme").await;
    assert_eq!(listed["webhooks"][0]["events"], json!(["session:lost"]));
    assert!(!operator.text("webhook list acme").await.contains("whsec_"));
    let rolled = operator.json(&format!("webhook roll acme {id}")).await;
    assert!(rolled["secret"] != created["secret"] && rolled["rollsUntil"].is_string(), "{rolled}");
    let rolled = operator.json(&format!("webhook roll acme {id} --at-once")).await;
    assert_eq!(rolled["rollsUntil"], Value::Null);
    operator.text(&format!("webhook remove acme {id}")).await;
    for (line, hint) in [
        (format!("webhook remove acme {id}"), "webhook list"),
        (format!("{create} --event session:gone"), "session:lost"),
        ("webhook create acme --url example.com".to_owned(), "--url example.com"),
        ("webhook create acme --url http://example.com/".to_owned(), "webhooks.private_targets"),
        ("webhook create nobody --url https://example.com/".to_owned(), "customer list"),
    ] {
        let words = operator.failure(&line).await;
        assert!(words.contains(hint), "{line}: {words}");
    }
}

#[tokio::test]
async fn a_low_balance_is_set_and_shown() {
    let operator = Operator::new();
    operator.text(&format!("{CREATE} --plan starter")).await;
    assert!(operator.text("customer show acme").await.contains("low balance   ten sessions"));
    let set = operator.json("customer low-balance acme 2000000").await;
    assert_eq!(set["lowBalanceMicros"], 2_000_000);
    assert!(operator.text("customer low-balance acme 0").await.contains("not told"));
    let set = operator.json("customer low-balance acme default").await;
    assert_eq!(set["lowBalanceMicros"], Value::Null);
    assert_eq!(operator.json("audit acme").await["verified"]["ok"], true);
}
