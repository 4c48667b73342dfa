//! The composition root of `ufbrowsers serve`: builds the parts, lets them run, takes them down.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener as StdListener};
#[cfg(test)]
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use billing::{Billing, GatewayId, Limits, Sweeper, Timestamp};
use bytes::Bytes;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use pool::{FixedEndpoint, Pool, ProviderSettings, remove_leftovers};
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{error, info, warn};

use crate::accept::{self, Arrivals, Doors};
use crate::busy_poll::keep_awake;
use crate::cli::Serve;
use crate::clock::Clock;
use crate::config::{Config, Provider, PublicUrl};
use crate::crowd::Crowd;
use crate::drain::{self, Signals};
use crate::meter::Meter;
use crate::outage::{self, Outage};
use crate::owed::Owed;
use crate::pacing::Company;
use crate::places::Places;
use crate::sessions::Sessions;
use crate::settle::Strays;
use crate::settling::Settling;
use crate::spares::{self, Spares};
use crate::takeover::{self, Heirlooms, Inheritance, Offering, Part, Predecessor};
use crate::token::Signer;
use crate::unsecured::Unsecured;
use crate::webhook::Sender;
use crate::{admin, keeping, limits, notices, pacing, settle, suspension, tls};

/// How often this gateway notes that it lives: what it leaves behind is billed up to the last note.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often the first warm browser is looked for before the gateway says that it is ready.
const WARM_POLL: Duration = Duration::from_millis(20);

/// Tasks that an edge thread runs, at most, before it looks at what has come: a task that starts a session takes it a third
/// of a millisecond, and a look a microsecond.
const EDGE_EVENTS: u32 = 16;

/// Where browsers' profiles are, below the data directory: each run of a gateway has a directory there.
const BROWSERS: &str = "browsers";

/// What all parts of a running gateway share.
#[derive(Debug)]
pub struct Gateway {
    pub id: GatewayId,
    pub billing: Billing,
    pub pool: Pool,
    pub sessions: Sessions,
    pub meter: Meter,
    pub tokens: Signer,
    pub clock: Clock,
    /// Whether the ledger can be reached, and what it is to be told when it can again.
    pub outage: Outage,
    pub owed: Owed,
    /// Who may have sessions while it cannot.
    pub unsecured: Unsecured,
    /// How much of a session the ledger may be away for.
    pub outage_limit: Duration,
    pub places: Places,
    pub settling: Settling,
    pub spares: Spares,
    pub company: Company,
    pub crowd: Crowd,
    pub public_url: Option<PublicUrl>,
    /// How long a client may wait for a browser.
    pub start_timeout: Duration,
    pub limits: limits::Limits,
    /// The document of the REST API, made when it is first asked for.
    pub openapi: OnceLock<Bytes>,
    /// This one and those of the edge threads.
    runtimes: Mutex<Vec<Handle>>,
    /// Who may still come to ask for a session.
    pub arrivals: Arrivals,
    /// Both doors accept.
    serving: AtomicBool,
    /// The process that had the doors before still drains.
    has_predecessor: AtomicBool,
    tenure: watch::Sender<Tenure>,
    draining: watch::Sender<bool>,
}

/// Whose the doors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenure {
    Ours,
    /// Another process's. Who had come in is still served.
    HandedOver,
    Closed,
}

impl Gateway {
    /// A customer on the plan `starter`, by its key.
    #[cfg(test)]
    pub(crate) async fn customer_for_tests(&self) -> billing::Principal {
        let (email, plan) = ("a@example.com".to_owned(), "starter".to_owned());
        let new = billing::NewCustomer { id: None, email, plan, prepaid: None };
        let created = self.billing.create_customer(new, billing::Actor::Operator, self.clock.now());
        let (_, secret) = created.await.expect("the store works");
        let known = self.billing.authenticate(secret.expose()).await.expect("the store works");
        known.expect("it was made above")
    }

    /// One without doors and browsers, whose meter runs. It goes with the folder.
    #[cfg(test)]
    pub(crate) async fn for_tests() -> (Arc<Self>, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let store = billing::StoreUrl::Sqlite(folder.path().join("ledger.db"));
        let billing = Billing::open(&store, billing::Catalogue::default(), Limits::default());
        let billing = billing.expect("the folder is new");
        let nowhere = FixedEndpoint { authority: "127.0.0.1:1".to_owned(), path: None };
        let settings = pool::Settings {
            provider: ProviderSettings::Fixed {
                endpoints: vec![nowhere],
                sessions_per_endpoint: std::num::NonZeroUsize::MIN,
            },
            min_idle: 0,
            max_idle: std::num::NonZeroUsize::MIN,
            start_timeout: Duration::from_secs(1),
            directory: folder.path().join("browsers"),
        };
        let pool = Pool::open(settings).expect("it needs nothing");
        let tokens = Signer::new(&billing.signing_key().await.expect("the store works"));
        let (meter, inbox) = Meter::new();
        let id = GatewayId::random();
        let gateway = Arc::new(Self {
            owed: Owed::new(folder.path(), &id),
            outage: Outage::new(),
            outage_limit: Duration::from_secs(600),
            unsecured: Unsecured::new(billing::Micros::ZERO),
            id,
            settling: Settling::of(&billing),
            spares: Spares::of(&billing),
            company: Company::new(),
            billing,
            pool,
            sessions: Sessions::default(),
            meter,
            tokens,
            clock: Clock::new(),
            places: Places::by_descriptors(1, 1),
            crowd: Crowd::for_tests(NonZeroU32::MAX),
            public_url: None,
            start_timeout: Duration::from_secs(10),
            limits: limits::Limits {
                max_duration: Duration::from_secs(86_400),
                idle_timeout: Duration::from_secs(86_400),
                connect_timeout: Duration::from_secs(300),
            },
            openapi: OnceLock::new(),
            runtimes: Mutex::default(),
            arrivals: Arrivals::default(),
            serving: AtomicBool::new(true),
            has_predecessor: AtomicBool::new(false),
            tenure: watch::Sender::new(Tenure::Ours),
            draining: watch::Sender::new(false),
        });
        tokio::spawn(inbox.run(Arc::clone(&gateway)));
        (gateway, folder)
    }

    /// The doors are another process's from here on. Who has come in is still served.
    pub fn hand_over(&self) {
        self.tenure.send_replace(Tenure::HandedOver);
    }

    /// No new sessions from here on. What is open is [`drain`]'s business.
    pub fn drain(&self) {
        self.tenure.send_if_modified(|tenure| {
            let ours = *tenure == Tenure::Ours;
            if ours {
                *tenure = Tenure::Closed;
            }
            ours
        });
        self.draining.send_replace(true);
    }

    /// The runtimes whose tasks are this gateway's.
    #[must_use]
    pub fn runtimes(&self) -> Vec<Handle> {
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    #[must_use]
    pub fn has_predecessor(&self) -> bool {
        self.has_predecessor.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn tenure(&self) -> watch::Receiver<Tenure> {
        self.tenure.subscribe()
    }

    #[must_use]
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }
}

/// Runs the gateway until it is drained.
///
/// # Errors
///
/// What keeps it from starting, with the mend.
pub async fn serve(serve: Serve) -> Result<()> {
    let Serve { config, ready_file, takeover } = serve;
    let signals = Signals::listen()?;
    let metrics = metrics_recorder()?;
    crate::metrics::begin();
    let data_dir = config.data_dir.clone();
    let mut inheritance = if takeover { takeover::ask(&data_dir)? } else { None };
    let lock = match &mut inheritance {
        Some(inheritance) => inheritance.lock()?,
        None => lock(&data_dir)?,
    };
    let gateway = open(&config, &data_dir, inheritance.is_some()).await?;
    let (doors, admin) = listen(&config, &data_dir, inheritance.as_mut())?;
    let addresses = Addresses { edge: doors.addresses()?, admin: admin.local_addr()? };
    let heirlooms = Heirlooms::new(
        doors
            .heirlooms()?
            .into_iter()
            .chain([(Part::Lock, lock.try_clone()?.into()), (Part::Admin, admin.try_clone()?.into())]),
    );

    let mut tasks = JoinSet::new();
    tasks.spawn(beat(Arc::clone(&gateway)));
    tasks.spawn(tend(Arc::clone(&gateway), metrics.clone()));
    tasks.spawn(outage::watch(Arc::clone(&gateway)));
    tasks.spawn(outage::repay(Arc::clone(&gateway)));
    tasks.spawn(limits::enforce(Arc::clone(&gateway)));
    tasks.spawn(suspension::enforce(Arc::clone(&gateway)));
    tasks.spawn(spares::tend(Arc::clone(&gateway)));
    tasks.spawn(keeping::run(Arc::clone(&gateway), config.session.kept));
    tasks.spawn(notices::consume(Arc::clone(&gateway)));
    tasks.spawn(notices::tidy(Arc::clone(&gateway), config.events.kept));
    let sender = Arc::new(Sender::new(config.webhooks.private_targets));
    tasks.spawn(notices::deliver(Arc::clone(&gateway), sender, config.webhooks.attempts));
    let operator = admin::serve(TcpListener::from_std(admin)?, Arc::clone(&gateway), metrics);
    // Where another process answers at that door, it does so until this one serves.
    let operator = if inheritance.is_none() {
        tasks.spawn(operator);
        None
    } else {
        Some(operator)
    };
    wait_for_warmth(&gateway, config.session.start_timeout).await;
    if let Some(inheritance) = &inheritance {
        inheritance.is_in_time()?;
    }
    for number in 0..config.edge.threads.get() {
        start_edge(number, config.edge.busy_poll, doors.try_clone()?, Arc::clone(&gateway))?;
    }
    drop(doors);
    gateway.serving.store(true, Ordering::Release);
    if let Some(inheritance) = inheritance {
        tasks.spawn(succeed(Arc::clone(&gateway), inheritance.serving()?, data_dir.clone()));
    }
    operator.map(|operator| tasks.spawn(operator));
    tasks.spawn(Offering::open(&data_dir)?.serve(Arc::clone(&gateway), heirlooms));
    addresses.announce(ready_file.as_deref())?;

    drain::until_drained(&gateway, signals, config.session.drain_deadline).await;
    spares::close(&gateway).await;
    gateway.pool.close().await;
    tasks.shutdown().await;
    // Where profiles are still being removed, the next start goes on with it.
    let _ = fs::remove_dir(browsers_of(&data_dir, &gateway.id));
    match gateway.owed.len() {
        0 => info!("drained; every session is settled"),
        sessions => {
            warn!(sessions, "drained; the ledger is away, so the next start here tells it what some came to")
        }
    }
    drop(lock);
    Ok(())
}

/// The doors and the operator's one: those that were handed over where they are what is wanted, else new ones.
fn listen(
    config: &Config,
    data_dir: &Path,
    mut inheritance: Option<&mut Inheritance>,
) -> Result<(Doors, StdListener)> {
    let mut open = |part, address| {
        let inherited = inheritance.as_mut().and_then(|inheritance| inheritance.door(part, address));
        inherited.map_or_else(|| accept::bind(address), Ok)
    };
    let admin = open(Part::Admin, config.admin.listen).context("admin.listen")?;
    let plain = open(Part::Http, config.edge.listen).context("edge.listen")?;
    let tls = match &config.edge.tls {
        Some(tls) => {
            let listener = open(Part::Https, tls.listen).context("edge.tls_listen")?;
            Some((listener, tls::server_config(tls, data_dir)?))
        }
        None => None,
    };
    Ok((Doors::new(plain, tls), admin))
}

/// Waits for the end of the process that had the doors before, and clears away what it may have left.
async fn succeed(gateway: Arc<Gateway>, predecessor: Predecessor, data_dir: PathBuf) {
    let gone = predecessor.gone().await;
    if let Err(error) = remove_leftovers(&browsers_of(&data_dir, &gone)).await {
        warn!(%error, "what it left of browsers could not be removed");
    }
    // Its open sessions were its own until now.
    while let Err(error) = take_on(&gateway).await {
        warn!(%error, "what it left open is not settled yet");
        sleep(HEARTBEAT).await;
    }
    gateway.has_predecessor.store(false, Ordering::Release);
    info!(gateway = %gone, "the gateway that had the doors before has ended, and nothing of it is left");
}

/// What it could not tell the ledger is told first: that is more than its last sign of life.
async fn take_on(gateway: &Gateway) -> Result<()> {
    let Gateway { id, billing, owed, clock, sessions, .. } = gateway;
    pay_debts(owed, billing, clock, sessions).await?;
    settle_abandoned(billing, id, clock.now()).await
}

/// Commits what gateways that have ended here could not.
async fn pay_debts(owed: &Owed, billing: &Billing, clock: &Clock, sessions: &Sessions) -> Result<()> {
    let debts = owed.adopt().context("cannot take over what an earlier gateway has kept for the ledger")?;
    if debts > 0 {
        warn!(sessions = debts, "an earlier gateway could not tell the ledger what sessions came to");
        outage::repay_all(owed, billing, clock, sessions).await?;
    }
    Ok(())
}

fn browsers_of(data_dir: &Path, gateway: &GatewayId) -> PathBuf {
    data_dir.join(BROWSERS).join(gateway.as_str())
}

/// `succeeds`: another gateway still runs here, and is about to drain.
async fn open(config: &Config, data_dir: &Path, succeeds: bool) -> Result<Arc<Gateway>> {
    let id = GatewayId::random();
    let clock = Clock::new();
    let limits = Limits { refunds_per_day: config.session.refunds_per_day };
    let billing = Billing::open(&config.store, config.plans.clone(), limits).with_context(|| {
        format!("cannot open the store {:?}; `ufbrowsers check` tells more", config.store)
    })?;
    clock.keep(&billing).await;
    if let Some(apart) = clock.contradiction() {
        bail!(
            "this machine's clock and that of the store {} are {apart:?} apart: set the one that is wrong",
            config.store
        );
    }
    let (owed, sessions) = (Owed::new(data_dir, &id), Sessions::default());
    if !succeeds {
        pay_debts(&owed, &billing, &clock, &sessions).await?;
        settle_abandoned(&billing, &id, clock.now()).await?;
        remove_leftovers(&data_dir.join(BROWSERS))
            .await
            .context("cannot remove what earlier browsers left")?;
    }
    billing.heartbeat(&id, clock.now()).await.with_context(|| format!("the store {} fails", config.store))?;
    let tokens = Signer::new(&billing.signing_key().await?);
    let settings = pool_settings(config, browsers_of(data_dir, &id));
    let descriptors = settings.provider.descriptors();
    let pool = Pool::open(settings)?;
    let (meter, inbox) = Meter::new();
    let gateway = Arc::new(Gateway {
        id,
        settling: Settling::of(&billing),
        spares: Spares::of(&billing),
        company: Company::new(),
        billing,
        pool,
        sessions,
        meter,
        tokens,
        clock,
        outage: Outage::new(),
        owed,
        outage_limit: config.outage_limit,
        unsecured: Unsecured::new(config.unsecured_exposure),
        places: Places::by_descriptors(descriptors, config.pool.max_idle.get()),
        crowd: Crowd::new(config.edge.bounds),
        public_url: config.edge.public_url.clone(),
        start_timeout: config.session.start_timeout,
        limits: limits::Limits {
            max_duration: config.session.max_duration,
            idle_timeout: config.session.idle_timeout,
            connect_timeout: config.session.connect_timeout,
        },
        openapi: OnceLock::new(),
        runtimes: Mutex::new(vec![Handle::current()]),
        arrivals: Arrivals::default(),
        serving: AtomicBool::new(false),
        has_predecessor: AtomicBool::new(succeeds),
        tenure: watch::Sender::new(Tenure::Ours),
        draining: watch::Sender::new(false),
    });
    tokio::spawn(inbox.run(Arc::clone(&gateway)));
    info!(gateway = %gateway.id, sessions_at_most = gateway.places.sessions(), "opened");
    Ok(gateway)
}

/// Whoever was here before has left this gateway's store; others may be at work on one that is shared.
async fn settle_abandoned(billing: &Billing, me: &GatewayId, now: Timestamp) -> Result<()> {
    if billing.is_shared() {
        return Ok(());
    }
    let settled = billing.settle_abandoned(me, now).await;
    let settled = settled.context("cannot settle what an earlier gateway left open")?;
    if !settled.is_empty() {
        warn!(sessions = settled.len(), "settled sessions that an earlier gateway had left open");
    }
    Ok(())
}

fn pool_settings(config: &Config, directory: PathBuf) -> pool::Settings {
    let provider = match &config.pool.provider {
        Provider::Process { binary } => ProviderSettings::Process { binary: binary.clone() },
        Provider::Fixed { endpoints, sessions_per_endpoint } => ProviderSettings::Fixed {
            endpoints: endpoints.iter().map(fixed_endpoint).collect(),
            sessions_per_endpoint: *sessions_per_endpoint,
        },
    };
    pool::Settings {
        provider,
        min_idle: config.pool.min_idle,
        max_idle: config.pool.max_idle,
        start_timeout: config.session.start_timeout,
        directory,
    }
}

fn fixed_endpoint(endpoint: &crate::config::Endpoint) -> FixedEndpoint {
    let path = endpoint.uri().path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    FixedEndpoint {
        authority: format!("{}:{}", endpoint.host(), endpoint.port()),
        path: (path.len() > 1).then(|| path.to_owned()),
    }
}

/// One gateway has a data directory: it removes the browsers of the one before, and settles its sessions.
pub(crate) fn lock(data_dir: &Path) -> Result<File> {
    fs::create_dir_all(data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    let path = data_dir.join("gateway.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another gateway runs on {}: stop it, or give this one another `store.url` or `store.data_dir`",
            data_dir.display()
        );
    }
    Ok(file)
}

/// Start times in the steps that the targets are set in: a few milliseconds for a warm browser, a quarter of a second and
/// more for one started on demand.
const START_BUCKETS: [f64; 10] = [0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0];

fn metrics_recorder() -> Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("ufb_pool_start_seconds".to_owned()), &START_BUCKETS)?;
    builder.install_recorder().context("the metrics' recorder is installed once")
}

/// Notes that this gateway lives. Apart from all else that is done every so often: the others take one for dead that is
/// silent for 15 s, and thousands of sessions that want repair may take longer.
async fn beat(gateway: Arc<Gateway>) {
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = gateway.billing.heartbeat(&gateway.id, gateway.clock.now()).await {
            gateway.outage.note(&error);
            warn!(%error, "a heartbeat was not noted");
        }
        gateway.clock.keep(&gateway.billing).await;
    }
}

/// The upkeep of what is counted, and the repair of what was left open, by this gateway or by one that died.
async fn tend(gateway: Arc<Gateway>, metrics: PrometheusHandle) {
    let mut ticks = interval(HEARTBEAT);
    // A look at the others that comes late must not be followed by one that comes soon.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sweeper, mut strays) = (Sweeper::new(gateway.id.clone()), Strays::default());
    loop {
        ticks.tick().await;
        gateway.crowd.forget();
        // Histograms keep each sample until they are read or kept up.
        metrics.run_upkeep();
        if let Err(error) = settle::repair(&gateway, &mut strays).await {
            warn!(%error, "the ledger could not be looked through for sessions that were left open");
        }
        if gateway.billing.is_shared() {
            sweep(&gateway, &mut sweeper).await;
        }
    }
}

/// Looks whether another gateway has died, and settles what it left.
async fn sweep(gateway: &Gateway, sweeper: &mut Sweeper) {
    match sweeper.look(&gateway.billing, gateway.clock.now()).await {
        Ok(settled) => settled.iter().for_each(settle::report_lost_gateway),
        Err(error) => warn!(%error, "the other gateways could not be looked after"),
    }
}

/// Ready means that a client would find a browser. Browsers that do not start are no reason not to say so in time: the
/// refusals then tell why.
async fn wait_for_warmth(gateway: &Gateway, limit: Duration) {
    let warm = async {
        while gateway.pool.idle() == 0 {
            sleep(WARM_POLL).await;
        }
    };
    if timeout(limit, warm).await.is_err() {
        warn!("no browser is warm yet; sessions wait or are refused until one is");
    }
}

/// A thread with a reactor of its own, on which sessions live from accept to end.
fn start_edge(number: usize, busy_poll: bool, doors: Doors, gateway: Arc<Gateway>) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().event_interval(EDGE_EVENTS).build()?;
    gateway.runtimes.lock().unwrap_or_else(PoisonError::into_inner).push(runtime.handle().clone());
    thread::Builder::new().name(format!("edge-{number}")).spawn(move || {
        runtime.block_on(async {
            if busy_poll {
                tokio::spawn(keep_awake());
            }
            tokio::spawn(pacing::call(Arc::clone(&gateway)));
            if let Err(error) = doors.serve(gateway).await {
                error!(%error, "an edge thread cannot accept");
                return;
            }
            // The sessions are tasks of this runtime: it runs until the process ends, which waits for them.
            std::future::pending::<()>().await;
        });
    })?;
    Ok(())
}

/// Where the gateway really listens.
#[derive(Debug)]
struct Addresses {
    edge: (SocketAddr, Option<SocketAddr>),
    admin: SocketAddr,
}

impl Addresses {
    fn announce(&self, ready_file: Option<&Path>) -> Result<()> {
        let (http, https) = self.edge;
        info!(%http, https = ?https, admin = %self.admin, "ready");
        let Some(file) = ready_file else { return Ok(()) };
        let addresses = serde_json::json!({
            "http": http.to_string(),
            "https": https.map(|address| address.to_string()),
            "admin": self.admin.to_string(),
        });
        // Whole or not at all: somebody waits for the file to appear.
        let draft = file.with_extension("draft");
        fs::write(&draft, addresses.to_string())
            .and_then(|()| fs::rename(&draft, file))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}
