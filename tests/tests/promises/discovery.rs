//! What DevTools clients ask before they connect is answered without a browser, and costs nothing.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Account, Customer, Gateway, Refusal, Request, StandIn};

const ASKED: usize = 1_000;

#[tokio::test]
async fn version_a_thousand_times() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let made = browsers_made(&gateway).await?;

    let mut url = String::new();
    for _ in 0..ASKED {
        let version = gateway.discover(&customer, "/json/version").await?;
        let fresh = text(&version, "webSocketDebuggerUrl")?;
        ensure!(fresh != url, "each answer has a token of its own");
        url = fresh;
    }

    assert_eq!(browsers_made(&gateway).await?, made, "none was taken, so none was replaced");
    ensure!(!metrics(&gateway).await?.contains("ufb_pool_claims_total{"), "one was taken");
    let Account { balance, sessions, .. } = gateway.account(&customer).await?;
    assert_eq!((balance, sessions.len()), (100_000, 0));
    // All of them together start the one session that is wanted.
    gateway.open(&url).await?.close().await?;
    let account = gateway.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (90_000, 1));
    Ok(())
}

#[tokio::test]
async fn answers_are_those_of_a_browser() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.customer("starter").await?;

    let version = gateway.discover(&customer, "/json/version").await?;
    let mut session = gateway.open(&text(&version, "webSocketDebuggerUrl")?).await?;
    let own = session.call("Browser.getVersion", json!({})).await?;
    assert_eq!(version["Browser"], own["product"]);
    assert_eq!(version["Protocol-Version"], own["protocolVersion"]);
    assert_eq!(version["User-Agent"], own["userAgent"]);
    assert_eq!(version["V8-Version"], own["jsVersion"]);
    session.close().await?;

    let protocol = gateway.discover(&customer, "/json/protocol").await?;
    let domains = protocol["domains"].as_array().context("no domains")?;
    ensure!(domains.iter().any(|domain| domain["domain"] == "Runtime"), "no protocol");

    for path in ["/json", "/json/", "/json/list"] {
        let list = gateway.discover(&customer, path).await?;
        let [page] = &list.as_array().context("no list")?[..] else { panic!("one page: {list}") };
        assert_eq!((&page["type"], &page["url"]), (&json!("page"), &json!("about:blank")), "{path}");
        ensure!(text(page, "devtoolsFrontendUrl")?.contains("inspector.html?ws="), "{page}");
    }
    Ok(())
}

/// The page that is listed is there when somebody connects to it, and its socket is the page's own.
#[tokio::test]
async fn a_session_may_begin_with_a_page() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let list = gateway.discover(&customer, "/json/list").await?;

    let mut page = gateway.open(&text(&list[0], "webSocketDebuggerUrl")?).await?;
    let evaluate = json!({ "expression": "location.href" });
    let answer = page.call("Runtime.evaluate", evaluate).await?;
    assert_eq!(answer["result"]["value"], "about:blank");
    page.close().await?;

    let account = gateway.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (90_000, 1));
    assert!(!account.sessions[0].lost);
    Ok(())
}

#[tokio::test]
async fn asked_as_clients_ask() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let Customer { key, .. } = gateway.customer("starter").await?;

    let requests = [
        // Playwright: a slash at the end, path and query kept.
        Request::get(&format!("/json/version/?token={key}")),
        Request::get(&format!("//json/version/?token={key}")),
        Request::get(&format!("/chromium/json/version/?apiKey={key}&timeout=60000")),
        // nodriver.
        Request::new("get", "/json/version").header("x-api-key", &key),
        // pyppeteer: behind the query.
        Request::get(&format!("/?token={key}/json/version")),
        Request::get("/json/version").header("steel-api-key", &key),
    ];
    for request in requests {
        let answer = gateway.ask(request.clone()).await?;
        assert_eq!(answer.status, 200, "{request:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "there is a token in it");
        let url = text(&answer.json().await?, "webSocketDebuggerUrl")?;
        ensure!(url.starts_with("ws://") && url.contains("/devtools/browser/"), "{request:?}: {url}");
        ensure!(!url.contains(&key), "{request:?} is answered with the key");
        gateway.open(&url).await?.close().await?;
    }
    Ok(())
}

/// Puppeteer 24 keeps nothing but the host. It has resolved that name, and a wildcard certificate holds for no other; so
/// the answer names it again.
#[tokio::test]
async fn asked_by_a_host_name_with_the_key() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.customer("starter").await?;

    for label in [customer.key.clone(), customer.key_as_host()] {
        let ask = || Request::get("/json/list").header("Host", &format!("{label}.browsers.example.com:3000"));
        let list = gateway.ask(ask()).await?.json().await?;
        let url = text(&list[0], "webSocketDebuggerUrl")?;
        let host = format!("ws://{label}.browsers.example.com:3000/");
        ensure!(url.starts_with(&host), "{url}");
        // It leads to somebody else's page.
        ensure!(!text(&list[0], "devtoolsFrontendUrl")?.contains(&label), "{list}");
        gateway.open(&url).await?.close().await?;
    }
    Ok(())
}

/// Chromedriver drops the token from the URL that it is answered, and the port. Others send a header along with it.
#[tokio::test]
async fn an_id_from_discovery_and_a_key_are_enough() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 2).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let other = gateway.prepaid_customer("starter", 100_000).await?;
    let minted = async || -> Result<String> {
        let version = gateway.discover(&customer, "/json/version").await?;
        let url = text(&version, "webSocketDebuggerUrl")?;
        Ok(url.split_once("/devtools").context("no path")?.1.to_owned())
    };
    let socket = |target: &str| Request::websocket(&format!("/devtools{target}"));
    let without_token = |target: &str| socket(target.split('?').next().unwrap_or_default());

    let target = minted().await?;
    let by_host = format!("{}.browsers.example.com", customer.key_as_host());
    gateway.ask(without_token(&target).header("Host", &by_host)).await?.into_cdp().await?.close().await?;
    let target = minted().await?;
    gateway.ask(socket(&target).key(&customer.key)).await?.into_cdp().await?.close().await?;
    let account = gateway.settled(&customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (80_000, 2));

    let target = minted().await?;
    let never_was = "/browser/0123456789abcdef0123456789abcdef01234567";
    let refused = [
        without_token(&target).key(&other.key),
        socket(&target).key(&other.key),
        without_token(never_was).key(&customer.key),
    ];
    for request in refused {
        let refusal = Refusal::read(gateway.ask(request.clone()).await?).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (404, "no_session"), "{request:?}: {refusal}");
    }
    assert_eq!(gateway.account(&customer).await?.balance, 80_000);
    assert_eq!(gateway.account(&other).await?.balance, 100_000);
    Ok(())
}

#[tokio::test]
async fn urls_lead_back_to_where_the_client_came_from() -> Result<()> {
    let browser = StandIn::start().await?;
    let by_host = Gateway::builder().fixed(&browser, 1).start().await?;
    let customer = by_host.customer("starter").await?;
    let ask = Request::get("/json/version").key(&customer.key).header("Host", "browsers.test:8080");
    let url = text(&by_host.ask(ask).await?.json().await?, "webSocketDebuggerUrl")?;
    ensure!(url.starts_with("ws://browsers.test:8080/devtools/browser/"), "{url}");

    let browser = StandIn::start().await?;
    let public = Gateway::builder().fixed(&browser, 1).set("EDGE_PUBLIC_URL", "https://b.example.com");
    let public = public.start().await?;
    let customer = public.customer("starter").await?;
    let ask = Request::get("/json/version").key(&customer.key).header("Host", "10.0.0.7:3000");
    let url = text(&public.ask(ask).await?.json().await?, "webSocketDebuggerUrl")?;
    ensure!(url.starts_with("wss://b.example.com/devtools/browser/"), "{url}");
    Ok(())
}

#[tokio::test]
async fn what_is_refused() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    let customer = gateway.customer("starter").await?;
    let key = &customer.key;

    let requests = [
        (Request::get("/json/version"), 401, "no_credential"),
        (Request::get("/json/version?token=ufb_"), 401, "bad_credential"),
        (Request::get("/json/version?token=ufs_AAAA"), 401, "bad_credential"),
        (Request::post("/json/version").key(key), 405, "method_not_allowed"),
        (Request::get("/json/new").key(key), 404, "not_found"),
        (Request::get("/json/version?colour=blue").key(key), 400, "unknown_parameter"),
        (Request::get("/json/version?keepAlive=1").key(key), 400, "unsupported_parameter"),
        (Request::get("/json/version?timeout=0").key(key), 400, "bad_parameter"),
        (Request::get("/sessions/nobodys/json/list").key(key), 404, "no_session"),
    ];
    for (request, status, code) in requests {
        let refusal = Refusal::read(gateway.ask(request.clone()).await?).await?;
        assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{request:?}: {refusal}");
    }
    Ok(())
}

async fn browsers_made(gateway: &Gateway) -> Result<String> {
    let metrics = metrics(gateway).await?;
    let made = metrics.lines().find(|line| line.starts_with("ufb_pool_browsers_created_total"));
    Ok(made.context("no browsers")?.to_owned())
}

async fn metrics(gateway: &Gateway) -> Result<String> {
    gateway.ask_admin(Request::get("/metrics")).await?.text().await
}

fn text(document: &Value, field: &str) -> Result<String> {
    Ok(document[field].as_str().with_context(|| format!("no {field} in {document}"))?.to_owned())
}
