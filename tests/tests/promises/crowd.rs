//! One address and one key take no more than their share, whatever they try.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use tests::{Customer, Gateway, Refusal, Request, Response, StandIn, eventually};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Another one than tests come from otherwise.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

#[tokio::test]
async fn an_address_has_so_many_connections() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway =
        Gateway::builder().fixed(&browser, 10).set("EDGE_CONNECTIONS_PER_ADDRESS", 3).start().await?;
    let customer = gateway.customer("starter").await?;
    let session = gateway.connect(&customer).await?;
    let _idle = [TcpStream::connect(gateway.door()).await?, TcpStream::connect(gateway.door()).await?];

    let mut one_more = TcpStream::connect(gateway.door()).await?;
    // Closed without a word, and whether that is an end or a reset is the kernel's.
    ensure!(one_more.read(&mut [0; 1]).await.map_or(true, |read| read == 0), "it was answered");
    assert_eq!(gateway.ask(start(&customer).from(ELSEWHERE)).await?.status, 101);
    let turned_away = gateway.metric("ufb_gateway_turned_away_connections_total").await?;
    ensure!(turned_away >= 1.0, "nobody was counted");

    session.close().await?;
    eventually("there is room again", async || {
        Ok(gateway.ask(start(&customer)).await.is_ok_and(|answer| answer.status == 101))
    })
    .await
}

#[tokio::test]
async fn who_shows_too_many_bad_keys_is_not_listened_to() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 10).set("EDGE_BAD_KEYS_PER_MINUTE", 3).start().await?;
    let (known, unknown) = (gateway.customer("starter").await?, gateway.customer("starter").await?);
    gateway.connect(&known).await?.close().await?;
    let guess = || Request::websocket(&format!("/?token=ufb_{}", "a".repeat(52)));
    for _ in 0..4 {
        refused(gateway.ask(guess()).await?, 401, "bad_credential").await?;
    }

    let refusal = refused(gateway.ask(guess()).await?, 429, "too_many_bad_keys").await?;
    ensure!(refusal.retry_after.is_some_and(|seconds| seconds <= 20), "{refusal}");
    refused(gateway.ask(start(&unknown)).await?, 429, "too_many_bad_keys").await?;
    refused(gateway.ask(Request::get("/api/account")).await?, 429, "too_many_bad_keys").await?;
    // A key that was used lately is no guess, and other addresses have not guessed.
    gateway.connect(&known).await?.close().await?;
    assert_eq!(gateway.ask(start(&unknown).from(ELSEWHERE)).await?.status, 101);
    Ok(())
}

#[tokio::test]
async fn a_key_starts_so_many_sessions() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 10).set("EDGE_STARTS_PER_MINUTE", 2).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    for _ in 0..2 {
        gateway.connect(&customer).await?.close().await?;
    }

    let refusal = refused(gateway.ask(start(&customer)).await?, 429, "too_many_starts").await?;
    ensure!(refusal.retry_after.is_some(), "{refusal}");
    assert_eq!(gateway.settled(&customer).await?.balance, 80_000);
    Ok(())
}

fn start(customer: &Customer) -> Request {
    Request::websocket(&format!("/?token={}", customer.key))
}

async fn refused(answer: Response, status: u16, code: &str) -> Result<Refusal> {
    let refusal = Refusal::read(answer).await?;
    assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{refusal}");
    Ok(refusal)
}
