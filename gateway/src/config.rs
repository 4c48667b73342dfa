//! Settings: read once, when the program starts.
//!
//! A setting has one name, `section.key`. It is given by `--set section.key=value`, by the environment variable
//! `UFB_SECTION_KEY`, or by the TOML file, and the first of these three that names it wins. No file is needed: every
//! setting has a default. All mistakes are gathered and reported together, since whoever mends one wants to see the rest.

mod mistake;
mod plans;
mod settings;
mod values;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use billing::{ATTEMPTS_MAX, Catalogue, Micros, StoreUrl};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::crowd::Bounds;

use self::settings::Settings;
use self::values::Wrong;

pub use self::mistake::{Mistake, Mistakes};
pub use self::settings::{Environment, Origin, ProcessEnvironment};
pub use self::values::{Endpoint, PublicUrl};

/// Plain HTTP is for a load balancer on the same machine, or for trying it out.
const EDGE_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3000);
/// `POST /drain` asks for no credential, so it is not for other machines.
const ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// Needs no server beside this one.
const STORE_URL: &str = "sqlite:data/ledger.db";
/// Where a gateway whose ledger is elsewhere keeps what is its own.
const DATA_DIR: &str = "data";
/// $1,000,000: a mistake in the unit shows.
const MOST_EXPOSURE: u64 = 1_000_000_000_000;
/// More than anybody keeps.
const MOST_REPLICAS: u64 = 100;
/// An operator who is woken has mended or replaced a Redis by then; more is not let run that perhaps nobody can pay for.
const OUTAGE_LIMIT: Duration = Duration::from_secs(60 * 60);
/// What a burst finds warm: at 20 the first 20 clients wait for no start.
const MIN_IDLE: usize = 20;
/// Beyond this, idle browsers cost more memory than the starts that they spare.
const MAX_IDLE: NonZeroUsize = NonZeroUsize::new(50).expect("50 is not zero");
/// The queue of warm browsers is allocated at once, so its length has a bound; no machine holds this many browsers.
const MOST_IDLE: u64 = 10_000;
/// A thread beyond the cores of the largest machines only costs memory.
const MOST_THREADS: u64 = 1_024;
/// Latency before power: a thread that sleeps takes longer to wake than to serve.
const BUSY_POLL: bool = true;
/// A DevTools endpoint that somebody else runs is one browser; sharing it lets sessions see each other.
const SESSIONS_PER_ENDPOINT: NonZeroUsize = NonZeroUsize::MIN;
/// All sessions of the largest default plan from behind one router, each with a few sockets. Behind a load balancer, whose
/// address all clients have, it has to be raised.
const CONNECTIONS_PER_ADDRESS: NonZeroU32 = NonZeroU32::new(2_000).expect("2,000 is not zero");
/// A fleet that was given a wrong key makes more, and learns no less by being told to wait; a key has 256 bits, so this
/// spares the ledger, not the keys.
const BAD_KEYS_PER_MINUTE: NonZeroU32 = NonZeroU32::new(60).expect("60 is not zero");
/// Unusual for anybody: the largest default plan would end each session within three seconds.
const STARTS_PER_MINUTE: NonZeroU32 = NonZeroU32::new(10_000).expect("10,000 is not zero");
/// A nightly job fits, and a session that everybody forgot costs its customer at most $2.88.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than a script waits for a page (clients give up after 3 minutes); a client that vanished without closing its
/// connection is billed for no more than this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// A person who was handed a URL has opened it by then; what waits for longer was forgotten.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How long a client may wait for a browser when none is warm; a slow Firefox start takes 3 s.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Kubernetes kills 30 s after it asked; the last 5 are for the goodbyes and for settling.
const DRAIN_DEADLINE: Duration = Duration::from_secs(25);
/// A page can crash its browser on purpose, so what crashes give back in a day has a bound.
const REFUNDS_PER_DAY: u32 = 10;
/// A quarter of a year, for whoever looks back; money is in the audit log, which is kept.
const RECORDS_KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// As long as what they tell of.
const EVENTS_KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// The events of sessions' lives, without the peers' faults.
const LOG_LEVEL: LevelFilter = LevelFilter::INFO;
/// Where Debian keeps the browsers, the lighter one first. The programs of the same names in /usr/bin are shell scripts
/// that do not exec: a signal to them orphans the browser.
const BROWSERS: [&str; 2] = ["/usr/lib/chromium/chromium-headless-shell", "/usr/lib/chromium/chromium"];

/// All settings, each parsed and in agreement with the others.
#[derive(Debug, Clone)]
pub struct Config {
    pub edge: Edge,
    pub admin: Admin,
    /// Where the ledger is kept.
    pub store: StoreUrl,
    /// Where the gateway keeps what is not in the ledger: its own certificate, its lock, browsers' profiles. Unless it
    /// is given, the directory of the embedded store's file, so that one volume holds everything.
    pub data_dir: PathBuf,
    /// How much of a session may go on while the ledger's store is away, beyond what its price covers.
    pub outage_limit: Duration,
    /// What an account's new sessions may come to while it is away. Zero: there are none.
    pub unsecured_exposure: Micros,
    pub pool: Pool,
    pub session: Session,
    pub events: Events,
    pub webhooks: Webhooks,
    /// The default plans as `[plans.NAME]` changed them, and the plans that it added.
    pub plans: Catalogue,
    /// Which events are logged, by target.
    pub log: Targets,
}

/// `[edge]`: where clients come in.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Without TLS. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// With TLS, where there is such a door.
    pub tls: Option<Tls>,
    /// How clients reach this gateway, where that differs from the `Host` they send.
    pub public_url: Option<PublicUrl>,
    /// Threads that serve sessions.
    pub threads: NonZeroUsize,
    /// Whether these stay awake for a moment behind a message.
    pub busy_poll: bool,
    /// What one address and one key may take.
    pub bounds: Bounds,
}

/// The door with TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    pub listen: SocketAddr,
    /// None: a self-signed certificate is made in [`Config::data_dir`].
    pub certificate: Option<Certificate>,
}

/// A certificate chain and its private key, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// `[admin]`: metrics, health, drain.
#[derive(Debug, Clone)]
pub struct Admin {
    pub listen: SocketAddr,
}

/// `[pool]`: where browsers come from and how many wait.
#[derive(Debug, Clone)]
pub struct Pool {
    pub provider: Provider,
    /// Below this many idle browsers, more are started. At most `max_idle`.
    pub min_idle: usize,
    /// Above this many idle browsers, some are stopped.
    pub max_idle: NonZeroUsize,
}

/// Who makes the browsers.
#[derive(Debug, Clone)]
pub enum Provider {
    /// Child processes of this one.
    Process { binary: PathBuf },
    /// Browsers that somebody else runs; at least one endpoint.
    Fixed { endpoints: Vec<Endpoint>, sessions_per_endpoint: NonZeroUsize },
}

/// `[session]`: how long what may take.
#[derive(Debug, Clone)]
pub struct Session {
    /// From the 101 to a close with 4408.
    pub max_duration: Duration,
    /// Without a byte in either direction.
    pub idle_timeout: Duration,
    /// From the creation of a session without a socket to its first one.
    pub connect_timeout: Duration,
    /// From the request to a browser, started on demand where none is warm.
    pub start_timeout: Duration,
    /// From the drain signal to the end of the last session.
    pub drain_deadline: Duration,
    /// Lost sessions that are given back, for each account and UTC day.
    pub refunds_per_day: u32,
    /// How long the record of one that has ended is kept.
    pub kept: Duration,
}

/// `[events]`: what is told of accounts and sessions.
#[derive(Debug, Clone)]
pub struct Events {
    /// How long one is kept once everybody has read it.
    pub kept: Duration,
}

/// `[webhooks]`: where customers are told of their events.
#[derive(Debug, Clone)]
pub struct Webhooks {
    /// How often a delivery is tried.
    pub attempts: NonZeroU32,
    /// Whether they may be at addresses that are not public, and without TLS. Customers choose the addresses.
    pub private_targets: bool,
}

impl Config {
    /// Reads all settings: `flags` (pairs of name and value) win over `env`, that over `file`, that over the defaults.
    ///
    /// # Errors
    ///
    /// Every mistake that there is, not only the first one.
    pub fn load(
        file: Option<&Path>,
        env: &impl Environment,
        flags: &[(String, String)],
    ) -> Result<Self, Mistakes> {
        let mut settings = Settings::gather(file, env, flags);
        let store = store(&mut settings);
        let config = Self {
            edge: edge(&mut settings),
            admin: Admin { listen: settings.read("admin.listen", ADMIN_LISTEN, values::address) },
            data_dir: data_dir(&mut settings, &store),
            outage_limit: settings.read("store.outage_limit", OUTAGE_LIMIT, values::duration),
            store,
            unsecured_exposure: Micros::new(settings.read(
                "store.unsecured_exposure",
                0,
                values::number::<u64, 0, MOST_EXPOSURE>,
            )),
            pool: pool(&mut settings),
            session: session(&mut settings),
            events: Events { kept: settings.read("events.kept", EVENTS_KEPT, values::duration) },
            webhooks: webhooks(&mut settings),
            plans: plans::read(&mut settings),
            log: settings.read("log.level", Targets::new().with_default(LOG_LEVEL), values::log_targets),
        };
        keep_strangers_out(&config, &mut settings);
        settings.finish(config)
    }
}

fn edge(settings: &mut Settings) -> Edge {
    Edge {
        listen: settings.read("edge.listen", EDGE_LISTEN, values::address),
        tls: tls(settings),
        public_url: settings.read_optional("edge.public_url", values::public_url),
        threads: settings.read(
            "edge.threads",
            half_of_the_cores(),
            values::number::<NonZeroUsize, 1, MOST_THREADS>,
        ),
        busy_poll: settings.read("edge.busy_poll", BUSY_POLL, values::boolean),
        bounds: bounds(settings),
    }
}

fn bounds(settings: &mut Settings) -> Bounds {
    let number = values::number::<NonZeroU32, 1, { u32::MAX as u64 }>;
    Bounds {
        connections_per_address: settings.read(
            "edge.connections_per_address",
            CONNECTIONS_PER_ADDRESS,
            number,
        ),
        bad_keys_per_minute: settings.read("edge.bad_keys_per_minute", BAD_KEYS_PER_MINUTE, number),
        starts_per_minute: settings.read("edge.starts_per_minute", STARTS_PER_MINUTE, number),
    }
}

fn tls(settings: &mut Settings) -> Option<Tls> {
    let listen = settings.read_optional("edge.tls_listen", values::address);
    let chain = settings.read_optional("edge.tls_cert", values::path);
    let key = settings.read_optional("edge.tls_key", values::path);
    let certificate = match (chain, key) {
        (Some(chain), Some(key)) => Some(Certificate { chain, key }),
        (None, None) => None,
        (Some(_), None) => {
            settings.mistake("edge.tls_key", Wrong::missing("edge.tls_cert", "the file of its private key"));
            None
        }
        (None, Some(_)) => {
            settings.mistake("edge.tls_cert", Wrong::missing("edge.tls_key", "the file of its certificate"));
            None
        }
    };
    if certificate.is_some() && !settings.has("edge.tls_listen") {
        settings
            .mistake("edge.tls_listen", Wrong::missing("edge.tls_cert", "an address, like `127.0.0.1:8443`"));
    }
    Some(Tls { listen: listen?, certificate })
}

/// The browsers need the other half.
fn half_of_the_cores() -> NonZeroUsize {
    thread::available_parallelism()
        .ok()
        .and_then(|cores| NonZeroUsize::new(cores.get() / 2))
        .unwrap_or(NonZeroUsize::MIN)
}

fn store(settings: &mut Settings) -> StoreUrl {
    let default = STORE_URL.parse().expect("the default is a store's URL");
    let store = settings.read("store.url", default, values::store_url);
    match settings.read("store.replicas", 0, values::number::<u32, 0, MOST_REPLICAS>) {
        0 => store,
        replicas => store.clone().with_replicas(replicas).unwrap_or_else(|error| {
            let remedy = "leave it out, or name one of those in `store.url`";
            settings.mistake("store.replicas", Wrong::new(error.to_string(), remedy));
            store
        }),
    }
}

fn data_dir(settings: &mut Settings, store: &StoreUrl) -> PathBuf {
    let beside = match store {
        StoreUrl::Sqlite(file) => match file.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory.to_owned(),
            Some(_) | None => PathBuf::from("."),
        },
        StoreUrl::Redis(_) => PathBuf::from(DATA_DIR),
    };
    settings.read("store.data_dir", beside, values::path)
}

fn pool(settings: &mut Settings) -> Pool {
    // Nothing is kept of it as long as there is one kind.
    settings.read_list("pool.kinds", values::kind);
    let min_idle = settings.read("pool.min_idle", MIN_IDLE, values::number::<usize, 0, MOST_IDLE>);
    let max_idle = settings.read("pool.max_idle", MAX_IDLE, values::number::<NonZeroUsize, 1, MOST_IDLE>);
    if min_idle > max_idle.get() {
        let problem = format!("{min_idle} is more than `pool.max_idle`, which is {max_idle}");
        settings.mistake("pool.min_idle", Wrong::new(problem, "lower the one or raise the other"));
    }
    Pool { provider: provider(settings), min_idle, max_idle }
}

/// The sections of both providers are read, so that a mistake in one shows before somebody switches to it.
fn provider(settings: &mut Settings) -> Provider {
    let process =
        Provider::Process { binary: settings.read("pool.process.binary", default_browser(), values::path) };
    let endpoints = settings.read_list("pool.fixed.endpoints", values::endpoint);
    let sessions_per_endpoint = settings.read(
        "pool.fixed.sessions_per_endpoint",
        SESSIONS_PER_ENDPOINT,
        values::number::<NonZeroUsize, 1, MOST_IDLE>,
    );
    match settings.read("pool.provider", ProviderName::Process, values::provider) {
        ProviderName::Process => process,
        ProviderName::Fixed => {
            if !settings.has("pool.fixed.endpoints") {
                let example = "the endpoints, like `ws://127.0.0.1:9222/devtools/browser/ID`";
                settings.mistake("pool.fixed.endpoints", Wrong::missing("pool.provider = fixed", example));
            }
            Provider::Fixed { endpoints, sessions_per_endpoint }
        }
    }
}

/// The value of `pool.provider`.
#[derive(Debug, Clone, Copy)]
enum ProviderName {
    Process,
    Fixed,
}

/// A machine without a browser is no mistake here: the ledger's commands work without one, and `check` names what is
/// missing.
fn default_browser() -> PathBuf {
    let [first, _] = BROWSERS;
    PathBuf::from(BROWSERS.into_iter().find(|path| Path::new(path).exists()).unwrap_or(first))
}

fn session(settings: &mut Settings) -> Session {
    Session {
        max_duration: settings.read("session.max_duration", MAX_DURATION, values::duration),
        idle_timeout: settings.read("session.idle_timeout", IDLE_TIMEOUT, values::duration),
        connect_timeout: settings.read("session.connect_timeout", CONNECT_TIMEOUT, values::duration),
        start_timeout: settings.read("session.start_timeout", START_TIMEOUT, values::duration),
        drain_deadline: settings.read("session.drain_deadline", DRAIN_DEADLINE, values::duration),
        refunds_per_day: settings.read(
            "session.refunds_per_day",
            REFUNDS_PER_DAY,
            values::number::<u32, 0, { u32::MAX as u64 }>,
        ),
        kept: settings.read("session.kept", RECORDS_KEPT, values::duration),
    }
}

fn webhooks(settings: &mut Settings) -> Webhooks {
    const MOST: u64 = ATTEMPTS_MAX.get() as u64;
    Webhooks {
        attempts: settings.read("webhooks.attempts", ATTEMPTS_MAX, values::number::<NonZeroU32, 1, MOST>),
        private_targets: settings.read("webhooks.private_targets", false, values::boolean),
    }
}

/// A process of the same user is no wall between customers, so whoever lets other machines in with the provider
/// `process` has to say that its customers are trusted.
fn keep_strangers_out(config: &Config, settings: &mut Settings) {
    let trusted = settings.read("pool.process.trusted_customers", false, values::boolean);
    if trusted || matches!(config.pool.provider, Provider::Fixed { .. }) {
        return;
    }
    let doors = [
        ("edge.listen", Some(config.edge.listen)),
        ("edge.tls_listen", config.edge.tls.as_ref().map(|tls| tls.listen)),
    ];
    for (name, address) in doors {
        if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
            let problem = format!(
                "{address} lets other machines in, and the provider `process` does not isolate customers"
            );
            let remedy = "listen on 127.0.0.1, or set `pool.process.trusted_customers = true` if they trust each other";
            settings.mistake(name, Wrong::new(problem, remedy));
        }
    }
}
