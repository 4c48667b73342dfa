//! The composition root of `ufbrowsers serve`: builds the parts, lets them run, takes them down.

use std::fs::{self, File};
use std::net::SocketAddr;
#[cfg(test)]
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use billing::{Billing, GatewayId, Limits, Sweeper, Timestamp};
use bytes::Bytes;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use pool::{FixedEndpoint, Pool, ProviderSettings};
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{error, info, warn};

use crate::accept::Doors;
use crate::cli::Serve;
use crate::clock::Clock;
use crate::config::{Config, Provider, PublicUrl};
use crate::crowd::Crowd;
use crate::drain::{self, Signals};
use crate::meter::Meter;
use crate::places::Places;
use crate::sessions::Sessions;
use crate::token::Signer;
use crate::{admin, limits, settle, tls};

/// How often this gateway notes that it lives: what it leaves behind is billed up to the last note.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often the first warm browser is looked for before the gateway says that it is ready.
const WARM_POLL: Duration = Duration::from_millis(20);

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
    pub places: Places,
    pub crowd: Crowd,
    pub public_url: Option<PublicUrl>,
    /// How long a client may wait for a browser.
    pub start_timeout: Duration,
    pub limits: limits::Limits,
    /// The document of the REST API, made when it is first asked for.
    pub openapi: OnceLock<Bytes>,
    /// Both doors accept.
    serving: AtomicBool,
    draining: watch::Sender<bool>,
}

impl Gateway {
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
        let pool = Pool::open(settings).await.expect("it needs nothing");
        let tokens = Signer::new(&billing.signing_key().await.expect("the store works"));
        let (meter, inbox) = Meter::new();
        let gateway = Arc::new(Self {
            id: GatewayId::random(),
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
            serving: AtomicBool::new(true),
            draining: watch::Sender::new(false),
        });
        tokio::spawn(inbox.run(Arc::clone(&gateway)));
        (gateway, folder)
    }

    /// No new sessions from here on. What is open is [`drain`]'s business.
    pub fn drain(&self) {
        self.draining.send_replace(true);
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
    let Serve { config, ready_file } = serve;
    let signals = Signals::listen()?;
    let metrics = metrics_recorder()?;
    let data_dir = config.data_dir.clone();
    let lock = lock(&data_dir)?;
    let gateway = open(&config, &data_dir).await?;

    let admin = TcpListener::bind(config.admin.listen)
        .await
        .with_context(|| format!("cannot listen on {} (admin.listen)", config.admin.listen))?;
    let tls = config.edge.tls.as_ref();
    let tls = tls.map(|tls| anyhow::Ok((tls.listen, tls::server_config(tls, &data_dir)?))).transpose()?;
    let doors = Doors::bind(config.edge.listen, tls)?;
    let addresses = Addresses { edge: doors.addresses()?, admin: admin.local_addr()? };

    let heart = tokio::spawn(beat(Arc::clone(&gateway), metrics.clone()));
    let limits = tokio::spawn(limits::enforce(Arc::clone(&gateway)));
    let admin = tokio::spawn(admin::serve(admin, Arc::clone(&gateway), metrics));
    wait_for_warmth(&gateway, config.session.start_timeout).await;
    for number in 0..config.edge.threads.get() {
        start_edge(number, doors.try_clone()?, Arc::clone(&gateway))?;
    }
    drop(doors);
    gateway.serving.store(true, Ordering::Release);
    addresses.announce(ready_file.as_deref())?;

    drain::until_drained(&gateway, signals, config.session.drain_deadline).await;
    gateway.pool.close().await;
    heart.abort();
    limits.abort();
    admin.abort();
    info!("drained; every session is settled");
    drop(lock);
    Ok(())
}

async fn open(config: &Config, data_dir: &Path) -> Result<Arc<Gateway>> {
    let id = GatewayId::random();
    let clock = Clock::new();
    let limits = Limits { refunds_per_day: config.session.refunds_per_day };
    let billing = Billing::open(&config.store, config.plans.clone(), limits).with_context(|| {
        format!("cannot open the store {:?}; `ufbrowsers check` tells more", config.store)
    })?;
    settle_abandoned(&billing, &id, clock.now()).await?;
    billing.heartbeat(&id, clock.now()).await.with_context(|| format!("the store {} fails", config.store))?;
    let tokens = Signer::new(&billing.signing_key().await?);
    let settings = pool_settings(config, data_dir);
    let descriptors = settings.provider.descriptors();
    let pool = Pool::open(settings).await?;
    let (meter, inbox) = Meter::new();
    let gateway = Arc::new(Gateway {
        id,
        billing,
        pool,
        sessions: Sessions::default(),
        meter,
        tokens,
        clock,
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
        serving: AtomicBool::new(false),
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

fn pool_settings(config: &Config, data_dir: &Path) -> pool::Settings {
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
        directory: data_dir.join("browsers"),
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
fn lock(data_dir: &Path) -> Result<File> {
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

/// What has to be done every so often: the heartbeat, the metrics' upkeep, and the repair of what was left open, by this
/// gateway or by one that died.
async fn beat(gateway: Arc<Gateway>, metrics: PrometheusHandle) {
    let mut ticks = interval(HEARTBEAT);
    // A look at the others that comes late must not be followed by one that comes soon.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweeper = Sweeper::new(gateway.id.clone());
    loop {
        ticks.tick().await;
        gateway.clock.resync();
        gateway.crowd.forget();
        // Histograms keep each sample until they are read or kept up.
        metrics.run_upkeep();
        if let Err(error) = gateway.billing.heartbeat(&gateway.id, gateway.clock.now()).await {
            warn!(%error, "a heartbeat was not noted");
        }
        if let Err(error) = settle::repair(&gateway).await {
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
fn start_edge(number: usize, doors: Doors, gateway: Arc<Gateway>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let closing = gateway.draining();
    thread::Builder::new().name(format!("edge-{number}")).spawn(move || {
        runtime.block_on(async {
            if let Err(error) = doors.serve(gateway, closing).await {
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
