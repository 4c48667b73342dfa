use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::*;

/// What a test says the environment is.
struct Fake(Vec<(String, String)>);

impl Environment for Fake {
    fn vars(&self) -> Vec<(String, String)> {
        self.0.clone()
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn from_flags(flags: &[(&str, &str)]) -> Result<Config, Mistakes> {
    Config::load(None, &Fake(Vec::new()), &pairs(flags))
}

fn from_env(variables: &[(&str, &str)]) -> Result<Config, Mistakes> {
    Config::load(None, &Fake(pairs(variables)), &[])
}

fn from_file(text: &str) -> Result<Config, Mistakes> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ufbrowsers.toml");
    fs::write(&path, text).unwrap();
    Config::load(Some(&path), &Fake(Vec::new()), &[])
}

/// The settings that are wrong.
fn wrong(loaded: Result<Config, Mistakes>) -> Vec<String> {
    loaded.unwrap_err().iter().map(|mistake| mistake.setting.clone()).collect()
}

#[test]
fn documented_defaults() {
    let config = from_flags(&[]).unwrap();
    assert_eq!(config.edge.listen.to_string(), "127.0.0.1:3000");
    assert!(config.edge.tls.is_none());
    assert_eq!(config.edge.public_url, None);
    assert_eq!(config.edge.threads, half_of_the_cores());
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.store.to_string(), "sqlite:data/ledger.db");
    assert_eq!((config.pool.min_idle, config.pool.max_idle.get()), (20, 50));
    assert!(matches!(config.pool.provider, Provider::Process { binary } if binary == default_browser()));
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    assert_eq!(config.session.max_duration, minutes(24 * 60));
    assert_eq!(config.session.idle_timeout, minutes(10));
    assert_eq!(config.session.start_timeout, Duration::from_secs(10));
    assert_eq!(config.session.drain_deadline, Duration::from_secs(25));
    assert_eq!(config.session.refunds_per_day, 10);
    assert_eq!(config.log.to_string(), "info");
    assert!(config.plans.iter().eq(Catalogue::default().iter()));
    let fixed = from_flags(&[("pool.provider", "fixed"), ("pool.fixed.endpoints", "http://h:1")]).unwrap();
    assert!(
        matches!(fixed.pool.provider, Provider::Fixed { sessions_per_endpoint, .. } if sessions_per_endpoint.get() == 1)
    );
}

#[test]
fn flags_win_over_the_environment_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ufbrowsers.toml");
    fs::write(&path, "[pool]\nmin_idle = 1\nmax_idle = 11\n[session]\nrefunds_per_day = 111\n").unwrap();
    let env = Fake(pairs(&[("UFB_POOL_MIN_IDLE", "2"), ("UFB_POOL_MAX_IDLE", "22"), ("HOME", "/")]));
    let config = Config::load(Some(&path), &env, &pairs(&[("pool.min_idle", "3")])).unwrap();
    assert_eq!((config.pool.min_idle, config.pool.max_idle.get()), (3, 22));
    assert_eq!(config.session.refunds_per_day, 111);
}

#[test]
fn a_wrong_value_that_is_overridden_is_no_mistake() {
    let env = Fake(pairs(&[("UFB_EDGE_THREADS", "many")]));
    let config = Config::load(None, &env, &pairs(&[("edge.threads", "3")])).unwrap();
    assert_eq!(config.edge.threads.get(), 3);
}

#[test]
fn the_file_takes_toml_types_and_text() {
    let config = from_file(
        r#"
        [edge]
        tls_listen = "127.0.0.1:0"
        tls_cert = "c.pem"
        tls_key = "k.pem"
        public_url = "https://browsers.example.com:8443"
        threads = 2
        [pool]
        provider = "fixed"
        kinds = ["chromium"]
        [pool.fixed]
        endpoints = ["ws://127.0.0.1:9222/devtools/browser/a", "http://[::1]"]
        [session]
        idle_timeout = "1h30m"
        [log]
        level = "warn,gateway=debug"
        [plans.starter]
        memory = "6.4Gi"
        cpu = 0.5
        overage = true
        "#,
    )
    .unwrap();
    let tls = config.edge.tls.unwrap();
    assert_eq!(tls.listen.port(), 0);
    assert_eq!(tls.certificate, Some(Certificate { chain: "c.pem".into(), key: "k.pem".into() }));
    let url = config.edge.public_url.unwrap();
    assert_eq!((url.authority(), url.is_secure()), ("browsers.example.com:8443", true));
    assert_eq!(config.edge.threads.get(), 2);
    assert_eq!(config.session.idle_timeout, Duration::from_secs(5_400));
    assert_eq!(config.log.to_string(), "gateway=debug,warn");
    let Provider::Fixed { endpoints, .. } = config.pool.provider else { panic!("not the provider `fixed`") };
    let places: Vec<_> = endpoints.iter().map(|endpoint| (endpoint.host(), endpoint.port())).collect();
    assert_eq!(places, [("127.0.0.1", 9222), ("[::1]", 80)]);
    let starter = config.plans.get("starter").unwrap();
    assert_eq!((starter.memory, starter.cpu_millis, starter.overage), (6_871_947_673, 500, true));
    assert_eq!(starter.included_sessions, 500);
}

#[test]
fn a_list_is_comma_separated_in_the_environment() {
    let endpoints = "ws://a:1/x, ws://b:2/y";
    let config =
        from_env(&[("UFB_POOL_PROVIDER", "fixed"), ("UFB_POOL_FIXED_ENDPOINTS", endpoints)]).unwrap();
    let Provider::Fixed { endpoints, .. } = config.pool.provider else { panic!("not the provider `fixed`") };
    assert_eq!(endpoints[1].uri().to_string(), "ws://b:2/y");
}

/// One row a mistake: what is given, and words of the report.
#[test]
fn mistakes_name_the_setting_what_is_wrong_and_how_to_mend_it() {
    let table = [
        (
            "edge.listen",
            "3000",
            "edge.listen (UFB_EDGE_LISTEN, by --set): `3000` is not an IP address with a port",
        ),
        ("edge.listen", "", "the value is empty"),
        ("edge.listen", "0.0.0.0:3000", "`pool.process.trusted_customers = true`"),
        ("edge.tls_listen", "[::]:8443", "does not isolate customers"),
        ("edge.tls_cert", "c.pem", "edge.tls_key (UFB_EDGE_TLS_KEY): this is missing"),
        ("edge.public_url", "https://h/path", "scheme, host and port only"),
        ("edge.threads", "0", "from 1 to 1024"),
        ("store.replicas", "1", "a file has no replicas"),
        ("store.url", "rediss://u:hunter2@h#insecure", "this is not a store's URL"),
        (
            "store.url",
            "redis://u:hunter2@h?x=1",
            "not a store's URL; write it like one of these: `sqlite:PATH`",
        ),
        ("store.url", "hunter2", "not a store's URL; write it like one of these: `sqlite:PATH`"),
        (
            "pool.provider",
            "docker",
            "this build does not have the provider `docker` yet; choose `process` or",
        ),
        ("pool.provider", "kubernetes", "this build does not have the provider `kubernetes` yet"),
        ("pool.provider", "podman", "there is no provider `podman`"),
        ("pool.provider", "fixed", "pool.fixed.endpoints (UFB_POOL_FIXED_ENDPOINTS): this is missing"),
        ("pool.kinds", "chromium,firefox", "this build does not have `firefox` yet"),
        ("pool.min_idle", "51", "51 is more than `pool.max_idle`, which is 50"),
        ("pool.max_idle", "10001", "from 1 to 10000"),
        ("pool.process.trusted_customers", "yes", "neither true nor false"),
        ("pool.fixed.endpoints", "ws://h/?token=hunter2,h:9222", "not the address of a DevTools endpoint"),
        ("pool.reuse", "never", "this build does not have `pool.reuse` yet"),
        ("session.max_duration", "0s", "a duration of 1ms to 366d"),
        ("session.max_duration", "367d", "a duration of 1ms to 366d"),
        ("session.idle_timeout", "10", "`10` is not a duration"),
        ("session.idle_timeout", "10 s", "`10 s` is not a duration"),
        ("session.refunds_per_day", "-1", "from 0 to"),
        ("log.level", "inof", "`inof` is not a level"),
        ("log.level", "gateway=", "is not a level"),
        ("plans.starter.memory", "640MB", "an amount of memory"),
        ("plans.starter.cpu", "0m", "an amount of CPU"),
        ("plans.starter.session_price", "0.01", "an amount in micro-dollars"),
        ("plans.starter.session_price", "1000000000000000", "an amount in micro-dollars"),
        ("plans.starter.session_minutes", "0", "from 1 to"),
        ("plans.Starter.cpu", "1", "did you mean `plans.starter.cpu`?"),
        ("edge.listn", "127.0.0.1:1", "there is no such setting; did you mean `edge.listen`?"),
        ("quux", "1", "there is no such setting; take it out"),
        ("stripe.secret_key", "hunter2", "stripe (by --set): this build does not have `stripe` yet"),
    ];
    for (name, text, words) in table {
        let report = from_flags(&[(name, text)]).expect_err(name).to_string();
        assert!(report.contains(words), "{name} = {text}: {report}");
        assert!(!report.contains("hunter2"), "{report}");
    }
}

#[test]
fn unknown_variables_are_mistakes() {
    let report = from_env(&[("UFB_STORE_ULR", "x"), ("UFB_STRIPE_SECRET_KEY", "x")]).unwrap_err().to_string();
    let lines: Vec<_> = report.lines().collect();
    assert_eq!(
        lines,
        [
            "UFB_STORE_ULR (in the environment): there is no such setting; did you mean `UFB_STORE_URL`?",
            "UFB_STRIPE_SECRET_KEY (in the environment): this build does not have `stripe` yet; take it out",
        ]
    );
}

#[test]
fn unknown_sections_are_reported_once() {
    let text =
        "[stripe]\nsecret_key = 'a'\napi_base = 'b'\n[costs]\n[edge]\n[nonsense]\n[[pool.fixed]]\nx = 1\n";
    assert_eq!(wrong(from_file(text)), ["costs", "nonsense", "pool.fixed", "stripe"]);
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let text = "[edge]\nlisten = 'here'\nthreads = 1.5\n[admin]\nlisten = ['127.0.0.1:1']\n[session]\ntimeout = '1s'\n";
    assert_eq!(wrong(from_file(text)), ["session.timeout", "edge.listen", "edge.threads", "admin.listen"]);
}

/// A name in the table that nothing reads would be a setting without effect.
#[test]
fn every_setting_is_read() {
    let flags: Vec<_> = settings::NAMES.iter().map(|name| (*name, "")).collect();
    let mut wrong = wrong(from_flags(&flags));
    wrong.sort();
    let mut names = settings::NAMES.map(str::to_owned);
    names.sort();
    assert_eq!(wrong, names);
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake() {
    let loaded = Config::load(Some(Path::new("/nonexistent.toml")), &Fake(Vec::new()), &[]);
    assert_eq!(wrong(loaded), ["/nonexistent.toml"]);
}

#[test]
fn a_file_that_is_no_toml_is_not_quoted() {
    let report = from_file("[store]\n\nurl = hunter2\n").unwrap_err().to_string();
    assert!(report.contains("line 3: ") && !report.contains("hunter2"), "{report}");
}

#[test]
fn a_new_plan_gives_every_key() {
    let whole = "[plans.big]\nprice_month = 99000000\nincluded_sessions = 1\nconcurrent_sessions = 2\nwarm_browsers = 0\n\
                 memory = '1Gi'\ncpu = '1'\noverage = false\noverage_cap = 0\nsession_price = 1\nsession_minutes = 5\n\
                 minute_price = 3\n";
    let config = from_file(whole).unwrap();
    assert_eq!(config.plans.get("big").unwrap().price_month.get(), 99_000_000);
    assert_eq!(wrong(from_file(&whole.replace("minute_price = 3\n", ""))), ["plans.big.minute_price"]);
    assert_eq!(wrong(from_env(&[("UFB_PLANS_BIG_OVERAGE_CAP", "1")])).len(), 10);
}

#[test]
fn a_plan_is_changed_by_the_environment() {
    let config = from_env(&[("UFB_PLANS_PROFESSIONAL_OVERAGE_CAP", "7")]).unwrap();
    assert_eq!(config.plans.get("professional").unwrap().overage_cap.get(), 7);
}

#[test]
fn customers_who_are_trusted_may_come_from_other_machines() {
    let open = ("edge.listen", "0.0.0.0:3000");
    assert!(from_flags(&[open, ("pool.process.trusted_customers", "true")]).is_ok());
    assert!(
        from_flags(&[open, ("pool.provider", "fixed"), ("pool.fixed.endpoints", "http://h:9222")]).is_ok()
    );
    assert_eq!(wrong(from_flags(&[open])), ["edge.listen"]);
}

#[test]
fn debug_shows_no_credential() {
    let endpoints = "ws://u:hunter2@h:9222/devtools?token=hunter2";
    let config = from_flags(&[("pool.provider", "fixed"), ("pool.fixed.endpoints", endpoints)]).unwrap();
    let debug = format!("{config:?}");
    assert!(debug.contains("ws://h:9222") && !debug.contains("hunter2"), "{debug}");
}

#[test]
fn the_data_lives_beside_the_ledger_or_where_it_is_told_to() {
    for (url, directory) in [
        ("sqlite:data/ledger.db", "data"),
        ("sqlite:/var/lib/ufbrowsers/ledger.db", "/var/lib/ufbrowsers"),
        ("sqlite:ledger.db", "."),
        ("redis://user:hunter2@h", "data"),
    ] {
        let config = from_flags(&[("store.url", url)]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from(directory), "{url}");
        assert!(!format!("{config:?}").contains("hunter2"));
        let config = from_flags(&[("store.url", url), ("store.data_dir", "/srv/one")]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/srv/one"), "{url}");
    }
}

#[test]
fn durations() {
    for (text, millis) in [("250ms", 250), ("10s", 10_000), ("1h30m", 5_400_000), ("1d", 86_400_000)] {
        assert_eq!(values::duration(text).unwrap(), Duration::from_millis(millis), "{text}");
    }
    for text in ["", "s", "1", "1x", "-1s", "1.5s", "1s2", "99999999999999999999s", "18446744073709551615d"] {
        assert!(values::duration(text).is_err(), "{text}");
    }
}

#[test]
fn quantities() {
    for (text, bytes) in [("640Mi", 640 << 20), ("1.5Ki", 1_536), ("12", 12), ("64Gi", 64 << 30)] {
        assert_eq!(values::memory(text).unwrap(), bytes, "{text}");
    }
    for (text, millis) in [("200m", 200), ("1", 1_000), ("0.25", 250)] {
        assert_eq!(values::cpu(text).unwrap(), millis, "{text}");
    }
    for text in ["1.", ".5", "1.0001", "1.5m", "-1", "1..2", "18446744073709551615Gi"] {
        assert!(values::memory(text).is_err() && values::cpu(text).is_err(), "{text}");
    }
}
