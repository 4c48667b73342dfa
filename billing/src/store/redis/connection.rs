//! Connections to Redis: found by the URL, made anew when they break, each question with a deadline.

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline, RedisError,
    RedisResult, ServerErrorKind, TlsMode, Value,
};
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, timeout};

use crate::store::lanes::LinkError;
use crate::store::{InvalidStoreUrl, StoreError};

/// From a question to its answer. A commit takes a fraction of a millisecond, a fork of a large server a good part of a
/// second.
const ANSWER: Duration = Duration::from_secs(1);

/// To make a connection, names and Sentinels asked.
const CONNECT: Duration = Duration::from_secs(2);

/// After an attempt that failed no other is made for so long: twice as long each time, up to the longest. Whoever asks
/// meanwhile is told at once.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Runtimes that have a connection of their own; beyond it those of runtimes that have ended are closed with the others.
const RUNTIMES: usize = 1_024;

/// Nodes of a Cluster, and Sentinels, that a URL names.
const NODES: usize = 64;

/// What the scheme of a URL begins with, where all that it names is reached by TLS.
const TLS: &str = "rediss";

const DEFAULT_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// What a URL says.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Topology {
    Single { url: String, shown: String },
    Cluster { nodes: Vec<(String, u16)>, login: Login, tls: bool },
    Sentinel { sentinels: Vec<(String, u16)>, master: String, database: u32, login: Login, tls: bool },
}

#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Login {
    user: Option<String>,
    password: Option<String>,
}

impl FromStr for Topology {
    type Err = InvalidStoreUrl;

    fn from_str(url: &str) -> Result<Self, InvalidStoreUrl> {
        let (scheme, rest) = url.split_once(':').ok_or(InvalidStoreUrl)?;
        let of_hosts = || rest.strip_prefix("//").ok_or(InvalidStoreUrl);
        match scheme {
            "redis" | "rediss" => single(url, scheme, of_hosts()?),
            "redis+unix" => socket(rest.strip_prefix("//").unwrap_or(rest)),
            "redis+cluster" | "rediss+cluster" => cluster(of_hosts()?, scheme.starts_with(TLS)),
            "redis+sentinel" | "rediss+sentinel" => sentinel(of_hosts()?, scheme.starts_with(TLS)),
            _ => Err(InvalidStoreUrl),
        }
    }
}

fn single(url: &str, scheme: &str, rest: &str) -> Result<Topology, InvalidStoreUrl> {
    let (_, hosts) = split_login(rest)?;
    let (address, database) = hosts.split_once('/').unwrap_or((hosts, ""));
    let is_number = database.is_empty() || database.parse::<i64>().is_ok_and(|number| number >= 0);
    if address.contains(',') || !is_number || nodes(address, DEFAULT_PORT)?.len() != 1 {
        return Err(InvalidStoreUrl);
    }
    Client::open(url).map_err(|_| InvalidStoreUrl)?;
    Ok(Topology::Single { url: url.to_owned(), shown: format!("{scheme}://{hosts}") })
}

fn socket(path: &str) -> Result<Topology, InvalidStoreUrl> {
    if !path.starts_with('/') || path.contains('?') {
        return Err(InvalidStoreUrl);
    }
    let url = format!("redis+unix://{path}");
    Client::open(url.as_str()).map_err(|_| InvalidStoreUrl)?;
    Ok(Topology::Single { shown: url.clone(), url })
}

fn cluster(rest: &str, tls: bool) -> Result<Topology, InvalidStoreUrl> {
    let (login, hosts) = split_login(rest)?;
    Ok(Topology::Cluster { nodes: nodes(hosts.trim_end_matches('/'), DEFAULT_PORT)?, login, tls })
}

fn sentinel(rest: &str, tls: bool) -> Result<Topology, InvalidStoreUrl> {
    let (login, rest) = split_login(rest)?;
    let (hosts, master) = rest.split_once('/').ok_or(InvalidStoreUrl)?;
    let (master, database) = master.split_once('/').unwrap_or((master, "0"));
    let database = database.parse().map_err(|_| InvalidStoreUrl)?;
    if master.is_empty() {
        return Err(InvalidStoreUrl);
    }
    let sentinels = nodes(hosts, SENTINEL_PORT)?;
    Ok(Topology::Sentinel { sentinels, master: master.to_owned(), database, login, tls })
}

/// `USER:PASSWORD@`, either of which may be missing, and percent-encoded.
fn split_login(rest: &str) -> Result<(Login, &str), InvalidStoreUrl> {
    if rest.contains(['?', '#']) {
        return Err(InvalidStoreUrl);
    }
    let Some((login, rest)) = rest.rsplit_once('@') else {
        return Ok((Login::default(), rest));
    };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let given = |text: &str| decode(text).map(|text| Some(text).filter(|text| !text.is_empty()));
    Ok((Login { user: given(user)?, password: given(password)? }, rest))
}

fn decode(text: &str) -> Result<String, InvalidStoreUrl> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next(), rest.next()].map(|digit| digit.unwrap_or(b'!'));
        let digits = str::from_utf8(&digits).map_err(|_| InvalidStoreUrl)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| InvalidStoreUrl)?);
    }
    String::from_utf8(bytes).map_err(|_| InvalidStoreUrl)
}

/// `HOST:PORT,HOST:PORT`; a host is a name, an IPv4 address, or an IPv6 address in brackets.
fn nodes(text: &str, default_port: u16) -> Result<Vec<(String, u16)>, InvalidStoreUrl> {
    let nodes: Vec<_> =
        text.split(',').map(|node| host_and_port(node, default_port)).collect::<Result<_, _>>()?;
    if nodes.len() > NODES { Err(InvalidStoreUrl) } else { Ok(nodes) }
}

fn host_and_port(text: &str, default_port: u16) -> Result<(String, u16), InvalidStoreUrl> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| InvalidStoreUrl)?),
        Some(_) | None => (text, default_port),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_name =
        |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    let valid = !bare.is_empty()
        && (is_name(host) || (host.len() > bare.len() && bare.parse::<std::net::Ipv6Addr>().is_ok()));
    if valid { Ok((bare.to_owned(), port)) } else { Err(InvalidStoreUrl) }
}

fn scheme(tls: bool) -> &'static str {
    if tls { TLS } else { "redis" }
}

/// Without user and password.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |nodes: &[(String, u16)]| {
            let named = nodes.iter().map(|(host, port)| match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            });
            named.collect::<Vec<_>>().join(",")
        };
        match self {
            Topology::Single { shown, .. } => f.write_str(shown),
            Topology::Cluster { nodes, tls, .. } => {
                write!(f, "{}+cluster://{}", scheme(*tls), list(nodes))
            }
            Topology::Sentinel { sentinels, master, database, tls, .. } => {
                write!(f, "{}+sentinel://{}/{master}/{database}", scheme(*tls), list(sentinels))
            }
        }
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes connections.
enum Source {
    Single(Box<Client>),
    Cluster(Box<ClusterClient>),
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
}

/// One connection, which any number of questions share.
#[derive(Clone)]
enum Wire {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Wire {
    async fn ask(self, question: &Cmd) -> RedisResult<Value> {
        let answer = match self {
            Wire::One(mut wire) => timeout(ANSWER * 2, question.query_async::<Value>(&mut wire)).await,
            Wire::Cluster(mut wire) => timeout(ANSWER * 2, question.query_async::<Value>(&mut wire)).await,
        };
        answer.unwrap_or_else(|elapsed| Err(std::io::Error::from(elapsed).into()))
    }

    /// Several, one behind the other on one connection: in a Cluster to the server of the first one's key. An error of one
    /// is the answer to all.
    async fn ask_all(self, questions: &Pipeline) -> RedisResult<Vec<Value>> {
        let answers = match self {
            Wire::One(mut wire) => timeout(ANSWER * 2, questions.query_async(&mut wire)).await,
            Wire::Cluster(mut wire) => timeout(ANSWER * 2, questions.query_async(&mut wire)).await,
        };
        answers.unwrap_or_else(|elapsed| Err(std::io::Error::from(elapsed).into()))
    }
}

impl Source {
    fn of(topology: &Topology) -> RedisResult<Source> {
        match topology {
            Topology::Single { url, .. } => {
                let mut info = url.as_str().into_connection_info()?;
                if let ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. } = info.addr() {
                    let settings = info.tcp_settings().clone().set_nodelay(true);
                    info = info.set_tcp_settings(settings);
                }
                Client::open(info).map(Box::new).map(Source::Single)
            }
            Topology::Cluster { nodes, login, tls } => {
                let nodes = nodes.iter().map(|node| address(node, *tls));
                let mut builder =
                    ClusterClientBuilder::new(nodes).connection_timeout(CONNECT).response_timeout(ANSWER);
                if let Some(user) = &login.user {
                    builder = builder.username(user);
                }
                if let Some(password) = &login.password {
                    builder = builder.password(password);
                }
                builder.build().map(Box::new).map(Source::Cluster)
            }
            Topology::Sentinel { sentinels, master, database, login, tls } => {
                let sentinels = sentinels.iter().map(|sentinel| address(sentinel, *tls));
                let mut builder = SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master)?
                    .set_client_to_redis_db(i64::from(*database));
                if *tls {
                    builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                }
                if let Some(user) = &login.user {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = &login.password {
                    builder = builder.set_client_to_redis_password(password);
                }
                Ok(Source::Sentinel(Box::new(tokio::sync::Mutex::new(builder.build()?))))
            }
        }
    }

    async fn connect(&self) -> RedisResult<Wire> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER));
        match self {
            Source::Single(client) => {
                client.get_multiplexed_async_connection_with_config(&config).await.map(Wire::One)
            }
            Source::Cluster(client) => client.get_async_connection().await.map(Wire::Cluster),
            Source::Sentinel(client) => {
                client.lock().await.get_async_connection_with_config(&config).await.map(Wire::One)
            }
        }
    }
}

fn address((host, port): &(String, u16), tls: bool) -> ConnectionAddr {
    let (host, port) = (host.clone(), *port);
    match tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    }
}

/// The connections of one process: one for each runtime, so that an answer comes in on the thread that waits for it.
pub(super) struct Connections {
    source: Source,
    shown: String,
    of_runtimes: DashMap<Id, Arc<Connection>>,
}

#[derive(Default)]
struct Connection {
    wire: Mutex<Option<(u64, Wire)>>,
    /// Held by who makes one; the others wait for it.
    attempts: tokio::sync::Mutex<Attempts>,
}

#[derive(Default)]
struct Attempts {
    /// Tells connections apart.
    made: u64,
    failed: Option<Failed>,
}

struct Failed {
    at: Instant,
    pause: Duration,
    error: Arc<dyn Error + Send + Sync>,
}

impl Connections {
    pub(super) fn new(topology: &Topology) -> Result<Connections, StoreError> {
        let source = Source::of(topology).map_err(|error| StoreError::Database(Box::new(error)))?;
        Ok(Connections { source, shown: topology.to_string(), of_runtimes: DashMap::new() })
    }

    pub(super) async fn ask(&self, question: &Cmd) -> Result<Value, LinkError> {
        let connection = self.of_this_runtime();
        let (number, wire) = connection.wire(&self.source).await.map_err(LinkError::Away)?;
        self.take(&connection, number, wire.ask(question).await)
    }

    /// One behind the other on the same connection; the last one's answer.
    pub(super) async fn ask_in_turn(&self, questions: &Pipeline) -> Result<Value, LinkError> {
        let connection = self.of_this_runtime();
        let (number, wire) = connection.wire(&self.source).await.map_err(LinkError::Away)?;
        let answers = wire.ask_all(questions).await;
        self.take(&connection, number, answers.map(|mut answers| answers.pop().unwrap_or(Value::Nil)))
    }

    /// What came of a question on the connection of that number.
    fn take(
        &self,
        connection: &Connection,
        number: u64,
        answer: RedisResult<Value>,
    ) -> Result<Value, LinkError> {
        let error = match answer {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        // Where a server has hung up, it has on the others, too: nobody is to find that out by a question of his own.
        if !is_of_the_question(&error) && connection.give_up(number) && error.is_connection_dropped() {
            self.of_runtimes.iter().for_each(|connection| connection.give_up_any());
        }
        Err(classify(error))
    }

    /// Whether keys are on several servers, so that one question is about one slot.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.source, Source::Cluster(_))
    }

    fn of_this_runtime(&self) -> Arc<Connection> {
        let runtime = Handle::current().id();
        if let Some(connection) = self.of_runtimes.get(&runtime) {
            return Arc::clone(&connection);
        }
        if self.of_runtimes.len() >= RUNTIMES {
            self.of_runtimes.clear();
        }
        Arc::clone(&self.of_runtimes.entry(runtime).or_default())
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connections").field(&self.shown).finish()
    }
}

impl Connection {
    fn current(&self) -> Option<(u64, Wire)> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection that is there, or one that is made now.
    async fn wire(&self, source: &Source) -> Result<(u64, Wire), Arc<dyn Error + Send + Sync>> {
        if let Some(wire) = self.current() {
            return Ok(wire);
        }
        let mut attempts = self.attempts.lock().await;
        // Who came first may have made one.
        if let Some(wire) = self.current() {
            return Ok(wire);
        }
        let earlier = attempts.failed.as_ref();
        if let Some(failed) = earlier.filter(|failed| failed.at.elapsed() < failed.pause) {
            return Err(Arc::clone(&failed.error));
        }
        let pause = earlier.map_or(PAUSE, |failed| PAUSE_MAX.min(failed.pause * 2));
        let error: Arc<dyn Error + Send + Sync> = match timeout(CONNECT * 2, source.connect()).await {
            Ok(Ok(wire)) => {
                attempts.failed = None;
                attempts.made += 1;
                let made = (attempts.made, wire);
                *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.clone());
                return Ok(made);
            }
            Ok(Err(error)) => Arc::new(error),
            Err(elapsed) => Arc::new(elapsed),
        };
        attempts.failed = Some(Failed { at: Instant::now(), pause, error: Arc::clone(&error) });
        Err(error)
    }

    /// That connection is of no more use. Whether that is news.
    fn give_up(&self, number: u64) -> bool {
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        wire.take_if(|(current, _)| *current == number).is_some()
    }

    fn give_up_any(&self) {
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Whether the stream that was asked for has no group of that name.
pub(super) fn lacks_group(error: &(dyn Error + 'static)) -> bool {
    code_of(error) == Some("NOGROUP")
}

/// Whether the group that was to be made is there.
pub(super) fn has_group(error: &(dyn Error + 'static)) -> bool {
    code_of(error) == Some("BUSYGROUP")
}

fn code_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a str> {
    error.downcast_ref::<RedisError>()?.code()
}

/// Whether the server has the script that it was asked to run.
pub(super) fn lacks_script(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<RedisError>();
    error.is_some_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}

/// Whether another question on the same connection may fare better.
fn is_of_the_question(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => !matches!(kind, ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown),
        ErrorKind::Extension => true,
        _ => false,
    }
}

/// What a server says no to was not carried out. All else may have been.
fn classify(error: RedisError) -> LinkError {
    let cause = |error: RedisError| Arc::new(error);
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask,
        )
        | ErrorKind::ClusterConnectionNotFound => LinkError::Away(cause(error)),
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Parse => LinkError::Broken(cause(error)),
        _ => LinkError::Unanswered(cause(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_and_shown_without_their_password() {
        let cases = [
            ("redis://localhost", "redis://localhost"),
            ("redis://user:secret@10.0.0.1:6380/3", "redis://10.0.0.1:6380/3"),
            ("redis://:p%40ss@redis.example.com", "redis://redis.example.com"),
            ("rediss://user:secret@redis.example.com:6380", "rediss://redis.example.com:6380"),
            ("redis+unix:/run/redis.sock", "redis+unix:///run/redis.sock"),
            ("redis+unix:///run/redis.sock", "redis+unix:///run/redis.sock"),
            ("redis+cluster://u:secret@a:1,b,[::1]:3", "redis+cluster://a:1,b:6379,[::1]:3"),
            ("redis+sentinel://:secret@a,b:2/mymaster", "redis+sentinel://a:26379,b:2/mymaster/0"),
            ("redis+sentinel://a:1/mymaster/4", "redis+sentinel://a:1/mymaster/4"),
            ("rediss+cluster://u:secret@a:1,b", "rediss+cluster://a:1,b:6379"),
            ("rediss+sentinel://:secret@a/mymaster", "rediss+sentinel://a:26379/mymaster/0"),
        ];
        for (url, shown) in cases {
            let topology: Topology = url.parse().unwrap_or_else(|_| panic!("{url}"));
            assert_eq!(topology.to_string(), shown);
            assert!(!format!("{topology:?}").contains("secret"));
            assert!(Source::of(&topology).is_ok(), "{url}");
        }
    }

    #[test]
    fn other_texts_are_no_urls() {
        for url in [
            "redis:",
            "redis://",
            "redis:localhost",
            "redis://a:port",
            "redis://a,b",
            "redis://a/x",
            "redis://a/-1",
            "redis://a?x=1",
            "rediss://a#insecure",
            "redis://u:%zz@a",
            "redis+unix:run/redis.sock",
            "redis+cluster://",
            "redis+cluster://a b",
            "redis+sentinel://a:1",
            "redis+sentinel://a:1/",
            "redis+sentinel://a:1/m/x",
            "memcached://a",
        ] {
            assert!(url.parse::<Topology>().is_err(), "{url}");
        }
    }

    #[test]
    fn a_login_is_decoded() {
        let (login, rest) = split_login("us%65r:p%40:ss@host").unwrap();
        assert_eq!((login.user.as_deref(), login.password.as_deref()), (Some("user"), Some("p@:ss")));
        assert_eq!(rest, "host");
    }
}
