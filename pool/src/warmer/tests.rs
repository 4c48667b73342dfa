//! The real pool, its real warmer and real sockets, in front of a browser of a few lines.

use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;

use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::queue::{WAITING, WAITING_EACH};
use crate::{FixedEndpoint, Pool, ProviderSettings, Share};

const LONG: Duration = Duration::from_secs(60);

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Lease, Unavailable>> + 'a>>;

#[tokio::test]
async fn a_flood_delays_a_calm_owner_by_one_turn() {
    let pool = pool_of(1, serve().await).await;
    let mut lease = pool.claim("flood", Share::Large, far()).await.unwrap();
    let mut flood: Vec<_> = (0..1_000).map(|_| wait(&pool, "flood", far())).collect();
    let mut calm = wait(&pool, "calm", far());
    caught_up(&pool).await;

    lease.release();
    lease = flood.remove(0).await.unwrap();
    assert!(calm.as_mut().now_or_never().is_none(), "the flood had come first");
    lease.release();
    lease = calm.await.unwrap();
    lease.release();

    for claim in flood.drain(..10) {
        claim.await.unwrap().release();
    }
}

#[tokio::test]
async fn who_hangs_up_leaves_the_queue() {
    let pool = pool_of(1, serve().await).await;
    let lease = pool.claim("one", Share::Large, far()).await.unwrap();
    let hangs_up = wait(&pool, "one", far());
    let mut stays = wait(&pool, "one", far());
    assert!(stays.as_mut().now_or_never().is_none());

    drop(hangs_up);
    lease.release();

    stays.await.unwrap().release();
}

#[tokio::test]
async fn a_claim_ends_by_its_deadline() {
    let pool = pool_of(1, serve().await).await;
    let _lease = pool.claim("one", Share::Large, far()).await.unwrap();
    let _flood: Vec<_> = (0..WAITING_EACH).map(|_| wait(&pool, "flood", far())).collect();
    let late = pool.claim("calm", Share::Large, Instant::now()).await;
    let Err(Unavailable::TimedOut { retry_after }) = late else { panic!("{late:?}") };
    assert!(retry_after >= Duration::from_secs(1));
}

#[tokio::test]
async fn who_finds_its_line_full_is_refused_at_once() {
    let pool = pool_of(1, serve().await).await;
    let lease = pool.claim("one", Share::Large, far()).await.unwrap();
    let _flood: Vec<_> = (0..WAITING_EACH).map(|_| wait(&pool, "flood", far())).collect();

    let one_more = pool.claim("flood", Share::Large, far()).await;
    let Err(Unavailable::QueueFull { retry_after }) = one_more else { panic!("{one_more:?}") };
    assert!(retry_after >= Duration::from_secs(1));

    let calm = wait(&pool, "calm", far());
    lease.release();
    drop(_flood);
    calm.await.unwrap().release();
}

#[tokio::test]
async fn a_full_queue_makes_room_at_the_cost_of_the_longest_line() {
    let pool = pool_of(1, serve().await).await;
    let lease = pool.claim("one", Share::Large, far()).await.unwrap();
    let owners = (WAITING / WAITING_EACH).to_string();
    let owners: Vec<_> = (0..owners.parse().unwrap()).map(|owner: usize| owner.to_string()).collect();
    let mut floods: Vec<_> =
        owners.iter().flat_map(|owner| (0..WAITING_EACH).map(|_| wait(&pool, owner, far()))).collect();
    let mut calm = wait(&pool, "calm", far());
    caught_up(&pool).await;

    let refused = floods.iter_mut().filter_map(|claim| claim.as_mut().now_or_never()).collect::<Vec<_>>();
    assert!(matches!(refused[..], [Err(Unavailable::QueueFull { .. }), Err(Unavailable::QueueFull { .. })]));
    assert!(calm.as_mut().now_or_never().is_none());
    drop(lease);
}

/// The clock is a test's, since the breaker pauses for seconds; what fails, fails at any speed.
#[tokio::test(start_paused = true)]
async fn the_breaker_refuses_at_once_until_a_start_succeeds() {
    let gone = nobody_listens().await;
    let pool = pool_of(1, gone).await;

    // Who waits while it opens is told, and so is who comes later.
    for _ in 0..2 {
        let refused = pool.claim("one", Share::Small, Instant::now() + LONG * 60).await;
        assert!(matches!(refused, Err(Unavailable::Failing { .. })), "{refused:?}");
    }

    let listener = TcpListener::bind(gone).await.unwrap();
    tokio::spawn(browse(listener));
    tokio::time::resume();
    let lease = loop {
        match pool.claim("one", Share::Small, far()).await {
            Ok(lease) => break lease,
            Err(Unavailable::Failing { retry_after }) => sleep_until(Instant::now() + retry_after).await,
            Err(other) => panic!("{other}"),
        }
    };
    lease.release();
}

fn far() -> Instant {
    Instant::now() + LONG
}

/// A claim that the warmer was told of.
fn wait<'a>(pool: &'a Pool, owner: &'a str, deadline: Instant) -> Waiting<'a> {
    let mut claim: Waiting<'a> = Box::pin(pool.claim(owner, Share::Large, deadline));
    assert!(claim.as_mut().now_or_never().is_none());
    claim
}

/// The warmer has come to every claim once it has answered one that comes behind them.
async fn caught_up(pool: &Pool) {
    let behind = pool.claim("behind", Share::Large, Instant::now()).await;
    assert!(matches!(behind, Err(Unavailable::TimedOut { .. })), "{behind:?}");
}

/// At most so many browsers at a time, none of them started ahead.
async fn pool_of(sessions: usize, address: SocketAddr) -> Pool {
    let endpoint = FixedEndpoint { authority: address.to_string(), path: Some("/".to_owned()) };
    let provider = ProviderSettings::Fixed {
        endpoints: vec![endpoint],
        sessions_per_endpoint: NonZeroUsize::new(sessions).unwrap(),
    };
    let max_idle = NonZeroUsize::new(sessions).unwrap();
    let settings = Settings { provider, min_idle: 0, max_idle, start_timeout: LONG, directory: "".into() };
    Pool::open(settings).unwrap()
}

async fn nobody_listens() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(browse(listener));
    address
}

async fn browse(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream));
    }
}

/// Says yes to every command; there is one page.
async fn answer(stream: TcpStream) -> Option<()> {
    let mut socket = tokio_tungstenite::accept_async(stream).await.ok()?;
    while let Message::Text(command) = socket.next().await?.ok()? {
        let command: Value = serde_json::from_str(&command).ok()?;
        let result = json!({ "id": command["id"], "result": { "targetInfos": [{ "type": "page" }] } });
        socket.send(Message::text(result.to_string())).await.ok()?;
    }
    Some(())
}
