//! Sockets that belong together are one session: one charge, one end.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Cdp, Customer, Gateway, Refusal, Request, Session};

const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

#[tokio::test]
async fn two_pages_and_a_browser_are_one_charge_and_end_together() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let Sockets { mut browser, mut first, mut second } = Sockets::open(&gateway, &customer).await?;
    assert_eq!(gateway.account(&customer).await?.balance, 90_000, "one charge for all three");

    browser.send(json!({ "method": "Browser.close" })).await?;

    for socket in [&mut browser, &mut first, &mut second] {
        assert_eq!(socket.ending().await?.code(), Some(1000));
    }
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, 90_000);
    assert!(matches!(account.sessions[..], [Session { lost: false, charged: 10_000, .. }]), "{account:?}");
    Ok(())
}

#[tokio::test]
async fn a_limit_ends_them_all() -> Result<()> {
    let gateway = Gateway::builder().set("SESSION_IDLE_TIMEOUT", "1s").start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let Sockets { mut browser, mut first, mut second } = Sockets::open(&gateway, &customer).await?;
    for socket in [&mut browser, &mut first, &mut second] {
        assert_eq!(socket.ending().await?.code(), Some(4408));
    }
    let account = gateway.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (90_000, 1));
    Ok(())
}

#[tokio::test]
async fn a_lost_browser_ends_them_all_and_is_given_back() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let Sockets { mut browser, mut first, mut second } = Sockets::open(&gateway, &customer).await?;
    browser.browser().await?.kill()?;
    for socket in [&mut browser, &mut first, &mut second] {
        assert_eq!(socket.ending().await?.code(), Some(1011));
    }
    let account = gateway.settled(&customer).await?;
    assert_eq!((account.balance, account.retry_credits), (100_000, 1));
    assert!(matches!(account.sessions[..], [Session { lost: true, charged: 0, .. }]), "{account:?}");
    Ok(())
}

#[tokio::test]
async fn the_last_one_to_leave_ends_the_session() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let Sockets { browser, mut first, mut second } = Sockets::open(&gateway, &customer).await?;

    browser.close().await?;
    assert_eq!(location(&mut first).await?, "about:blank", "the browser lives");
    first.vanish()?;
    assert_eq!(location(&mut second).await?, "about:blank");
    assert_eq!(gateway.account(&customer).await?.running, 1);
    second.close().await?;

    let account = gateway.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (90_000, 1));
    assert_eq!(account.sessions[0].cause.as_deref(), Some("client closed"));
    Ok(())
}

#[tokio::test]
async fn a_page_that_is_closed_ends_its_own_socket() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let Sockets { mut browser, mut first, mut second } = Sockets::open(&gateway, &customer).await?;

    second.send(json!({ "method": "Page.close" })).await?;

    assert_eq!(second.ending().await?.code(), Some(1000));
    browser.call("Browser.getVersion", json!({})).await?;
    assert_eq!(location(&mut first).await?, "about:blank");
    assert_eq!(gateway.account(&customer).await?.running, 1);
    Ok(())
}

/// A client that opens two sockets by one answer of discovery, neither of which is the first.
#[tokio::test]
async fn two_at_once_start_one_session() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    for _ in 0..5 {
        let version = gateway.discover(&customer, "/json/version").await?;
        let url = text(&version, "webSocketDebuggerUrl")?;
        let (one, other) = tokio::join!(gateway.open(&url), gateway.open(&url));
        let (mut one, mut other) = (one?, other?);
        assert_eq!(one.browser().await?, other.browser().await?);
        one.close().await?;
        other.close().await?;
        gateway.settled(&customer).await?;
    }
    let account = gateway.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (50_000, 5));
    Ok(())
}

/// As a client does that was given a URL with a key, and opens pages by their ids without repeating it.
#[tokio::test]
async fn a_page_without_a_credential_from_the_same_address() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let mut browser = gateway.connect(&customer).await?;
    let target = new_page(&mut browser).await?;

    let mut page = gateway.open(&format!("ws://gateway/devtools/page/{target}")).await?;
    assert_eq!(location(&mut page).await?, "about:blank");

    // Neither for others, nor for what is no page of a session; both are told the same.
    let bare = Request::websocket(&format!("/devtools/page/{target}"));
    let stranger = Refusal::read(gateway.ask(bare.clone().from(ELSEWHERE)).await?).await?;
    let nobodys = Request::websocket("/devtools/page/00000000000000000000000000000000");
    let nobodys = Refusal::read(gateway.ask(nobodys).await?).await?;
    assert_eq!((stranger.status, stranger.code.as_str()), (401, "no_credential"), "{stranger}");
    assert_eq!(stranger.problem, nobodys.problem);
    let page_of_none = Request::websocket(&format!("/devtools/page/{target}?token=ufb_"));
    let bad_key = Refusal::read(gateway.ask(page_of_none).await?).await?;
    assert_eq!(bad_key.code, "bad_credential", "a credential that is shown has to be good");

    page.close().await?;
    browser.close().await?;
    let account = gateway.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (90_000, 1));
    let over = Refusal::read(gateway.ask(bare).await?).await?;
    assert_eq!(over.problem, nobodys.problem, "the session is over");
    Ok(())
}

#[tokio::test]
async fn a_page_of_whichever_session_of_the_key() -> Result<()> {
    let gateway = Gateway::start().await?;
    let (customer, other) = (gateway.customer("starter").await?, gateway.customer("starter").await?);
    let (mut one, mut two) = (gateway.connect(&customer).await?, gateway.connect(&customer).await?);
    for session in [&mut one, &mut two] {
        let target = new_page(session).await?;
        let bare = format!("ws://gateway/devtools/page/{target}");
        let mut page = gateway.open(&format!("{bare}?token={}", customer.key)).await?;
        assert_eq!(location(&mut page).await?, "about:blank");
        let stranger = gateway.open(&format!("{bare}?token={}", other.key)).await;
        ensure!(stranger.is_err(), "it is somebody else's");
    }
    Ok(())
}

/// The first one takes the place that a session made over REST keeps for it, by whichever path it comes.
#[tokio::test]
async fn a_session_that_was_made_without_a_socket() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    for path in ["/sessions", "/devtools/browser", "/devtools/page", "discovery"] {
        let create = Request::post("/api/sessions/create").key(&customer.key).json(&json!({}));
        let created = gateway.ask(create).await?.json().await?;
        let (id, url) = (text(&created, "sessionId")?, text(&created, "cdpUrl")?);
        let (_, token) = url.split_once('?').context("no token")?;
        let mut first = match path {
            "/sessions" => gateway.open(&url).await?,
            "discovery" => {
                let ask = Request::get(&format!("/sessions/{id}/json/version/?{token}"));
                let version = gateway.ask(ask).await?.json().await?;
                gateway.open(&text(&version, "webSocketDebuggerUrl")?).await?
            }
            path => gateway.open(&format!("ws://gateway{path}/{id}?{token}")).await?,
        };
        if path == "/devtools/page" {
            assert_eq!(location(&mut first).await?, "about:blank");
        } else {
            first.browser().await?;
        }

        let again = Request::websocket(&format!("/sessions/{id}?{token}"));
        let refusal = Refusal::read(gateway.ask(again).await?).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (409, "already_connected"), "{path}");
        let mut second = gateway.open(&format!("ws://gateway/devtools/browser/{id}?{token}")).await?;
        second.call("Browser.getVersion", json!({})).await?;
        first.close().await?;
        second.call("Browser.getVersion", json!({})).await?;
        second.close().await?;
        gateway.settled(&customer).await?;
    }
    let account = gateway.account(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (60_000, 4), "one charge each");
    Ok(())
}

#[tokio::test]
async fn its_owner_ends_all_of_a_session() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let Sockets { mut browser, mut first, mut second } = Sockets::open(&gateway, &customer).await?;
    let running = gateway.ask(Request::get("/api/sessions").key(&customer.key)).await?.json().await?;
    let id = text(&running["sessions"][0], "sessionId")?;

    let end = Request::post(&format!("/api/sessions/{id}/end")).key(&customer.key);
    let ended = gateway.ask(end).await?.json().await?;

    assert_eq!(ended["actualCostMicros"], 10_000);
    for socket in [&mut browser, &mut first, &mut second] {
        assert_eq!(socket.ending().await?.code(), Some(4410));
    }
    Ok(())
}

/// A session's browser and two of its pages.
struct Sockets {
    browser: Cdp,
    first: Cdp,
    second: Cdp,
}

impl Sockets {
    async fn open(gateway: &Gateway, customer: &Customer) -> Result<Self> {
        let version = gateway.discover(customer, "/json/version").await?;
        let url = text(&version, "webSocketDebuggerUrl")?;
        let mut browser = gateway.open(&url).await?;
        new_page(&mut browser).await?;
        let (_, query) = url.split_once('?').context("no token")?;
        let listed = gateway.ask(Request::get(&format!("/json/list?{query}"))).await?.json().await?;
        let [one, other] = &listed.as_array().context("no list")?[..] else { panic!("two pages: {listed}") };
        let mut first = gateway.open(&text(one, "webSocketDebuggerUrl")?).await?;
        let mut second = gateway.open(&text(other, "webSocketDebuggerUrl")?).await?;
        for page in [&mut first, &mut second] {
            assert_eq!(location(page).await?, "about:blank");
        }
        Ok(Self { browser, first, second })
    }
}

async fn new_page(browser: &mut Cdp) -> Result<String> {
    let made = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await?;
    text(&made, "targetId")
}

async fn location(page: &mut Cdp) -> Result<String> {
    let answer = page.call("Runtime.evaluate", json!({ "expression": "location.href" })).await?;
    text(&answer["result"], "value")
}

fn text(document: &Value, field: &str) -> Result<String> {
    Ok(document[field].as_str().with_context(|| format!("no {field} in {document}"))?.to_owned())
}
