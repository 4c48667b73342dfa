//! On a Redis a client has its 101 while its price is on its way to be set aside, and not a byte of its browser before that
//! has arrived.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{
    Builder, Cdp, Customer, Gateway, Redis, Refusal, Request, StandIn, State, Way, eventually, target_of,
};

/// Micro-dollars.
const PRICE: u64 = 10_000;
/// Far more than there has to be for the 101 to go ahead.
const FUNDS: u64 = 1_000 * PRICE;
const BROWSERS: usize = 4;
/// What a client may have said while its price is on its way.
const UNPAID: u64 = 64 * 1024;

fn on(url: &str) -> Builder {
    Gateway::builder().set("STORE_URL", url)
}

/// A gateway whose way to the Redis can be held up, and a customer whom it has served a moment ago.
struct Scene {
    redis: Redis,
    way: Way,
    browser: StandIn,
    gateway: Gateway,
    customer: Customer,
}

impl Scene {
    async fn set() -> Result<Self> {
        Self::set_with(|gateway| gateway).await
    }

    async fn set_with(more: impl FnOnce(Builder) -> Builder) -> Result<Self> {
        let (redis, browser) = (Redis::start().await?, StandIn::start().await?);
        let way = Way::to(&redis)?;
        let gateway = more(on(&way.url()).fixed(&browser, BROWSERS as u32)).start().await?;
        let customer = gateway.prepaid_customer("enterprise", PRICE + FUNDS).await?;
        gateway.connect(&customer).await?.close().await?;
        gateway.settled(&customer).await?;
        Ok(Self { redis, way, browser, gateway, customer })
    }

    /// A gateway with a way of its own.
    fn another(&self) -> Builder {
        on(&self.redis.url()).fixed(&self.browser, 1)
    }

    /// The same, for which one session costs all that there is.
    async fn dear(&self) -> Result<Gateway> {
        self.another().set("PLANS_ENTERPRISE_SESSION_PRICE", FUNDS).start().await
    }

    /// A session that has its 101 and has asked its browser something, while its price is held up.
    async fn ahead(&self) -> Result<(Cdp, u64)> {
        self.way.hold_up();
        let mut session = self.gateway.connect(&self.customer).await?;
        let asked = session.send(json!({ "method": "Browser.getVersion" })).await?;
        Ok((session, asked))
    }

    /// What the gateway tells of its only session, which is live a moment after its 101.
    async fn session(&self) -> Result<Value> {
        let mut only = Value::Null;
        eventually("it is live", async || {
            let report = self.gateway.ask_admin(Request::get("/debug/sessions")).await?.json().await?;
            only = report["sessions"].get(0).cloned().unwrap_or_default();
            Ok(only.is_object())
        })
        .await?;
        Ok(only)
    }

    fn create(&self) -> impl Future<Output = Result<tests::Response>> {
        self.gateway.ask(Request::post("/api/sessions/create").key(&self.customer.key).json(&json!({})))
    }

    /// Nothing of the last session is left but its client's close code: no charge, no record, and its browser can be had.
    async fn leaves_nothing(&self, balance: u64, code: &str) -> Result<()> {
        let account = self.gateway.settled(&self.customer).await?;
        assert_eq!((account.balance, account.sessions.len()), (balance, 1), "{account:?}");
        let refused = format!("ufb_gateway_late_refusals_total{{code=\"{code}\"}}");
        assert_eq!(self.gateway.metric(&refused).await? as u64, 1);
        self.all_browsers_are_there().await
    }

    /// The gateway has ended, and its last session's commit lands now: the next start takes it back.
    async fn nothing_is_left_behind(&mut self) -> Result<()> {
        let other = self.another().start().await?;
        self.way.let_pass();
        eventually("the hold has landed", async || Ok(other.account(&self.customer).await?.running == 1))
            .await?;
        self.gateway.start_again().await?;
        let account = self.gateway.settled(&self.customer).await?;
        let of_state = |state| account.sessions.iter().filter(|session| session.state == state).count();
        assert_eq!((account.balance, of_state(State::Posted), of_state(State::Voided)), (FUNDS, 1, 1));
        Ok(())
    }

    async fn all_browsers_are_there(&self) -> Result<()> {
        eventually("all browsers are there", async || {
            Ok(self.gateway.metric("ufb_pool_idle_browsers").await? as usize == BROWSERS)
        })
        .await
    }
}

#[tokio::test]
async fn a_reply_waits_for_the_price_and_comes_with_it() -> Result<()> {
    let scene = Scene::set().await?;
    let other = scene.another().start().await?;
    let (mut session, asked) = scene.ahead().await?;
    assert_eq!(other.account(&scene.customer).await?.running, 0);
    scene.way.let_pass();
    session.result(asked).await?;
    assert_eq!(other.account(&scene.customer).await?.running, 1);
    session.close().await?;
    assert_eq!(scene.gateway.settled(&scene.customer).await?.balance, FUNDS - PRICE);
    Ok(())
}

#[tokio::test]
async fn money_that_is_spent_elsewhere_meanwhile_ends_it_without_a_word() -> Result<()> {
    let scene = Scene::set().await?;
    let dear = scene.dear().await?;
    let (mut session, _) = scene.ahead().await?;
    let taken = dear.connect(&scene.customer).await?;
    scene.way.let_pass();
    assert_eq!(session.ending_without_a_word().await?.code(), Some(4402));
    taken.close().await?;
    let account = scene.gateway.settled(&scene.customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (0, 2), "{account:?}");
    scene.all_browsers_are_there().await
}

#[tokio::test]
async fn a_suspension_meanwhile_ends_it_without_a_word() -> Result<()> {
    let scene = Scene::set().await?;
    let other = scene.another().start().await?;
    let (mut session, _) = scene.ahead().await?;
    other.command(&["customer", "suspend", &scene.customer.id]).await?;
    scene.way.let_pass();
    assert_eq!(session.ending_without_a_word().await?.code(), Some(1008));
    scene.leaves_nothing(FUNDS, "suspended").await
}

#[tokio::test]
async fn a_redis_that_goes_away_meanwhile_ends_it_without_a_word() -> Result<()> {
    let scene = Scene::set().await?;
    let (mut session, _) = scene.ahead().await?;
    scene.way.cut();
    assert_eq!(session.ending_without_a_word().await?.code(), Some(1013));
    scene.way.let_pass();
    scene.way.mend();
    eventually("the ledger is back", async || {
        Ok(scene.gateway.ask_admin(Request::get("/readyz")).await?.status == 200)
    })
    .await?;
    scene.leaves_nothing(FUNDS, "ledger_away").await
}

#[tokio::test]
async fn a_client_that_leaves_meanwhile_is_charged_once() -> Result<()> {
    let scene = Scene::set().await?;
    let (session, _) = scene.ahead().await?;
    session.vanish()?;
    scene.way.let_pass();
    eventually("it is settled", async || {
        Ok(scene.gateway.account(&scene.customer).await?.sessions.len() == 2)
    })
    .await?;
    let account = scene.gateway.settled(&scene.customer).await?;
    assert_eq!(account.balance, FUNDS - PRICE);
    assert!(account.sessions.iter().all(|session| session.state == State::Posted), "{account:?}");
    scene.all_browsers_are_there().await
}

#[tokio::test]
async fn a_gateway_that_is_killed_meanwhile_has_given_and_charged_nothing() -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut session, _) = scene.ahead().await?;
    scene.gateway.kill()?;
    assert_eq!(session.ending_without_a_word().await?.code(), None);
    scene.way.cut();
    scene.way.mend();
    scene.way.let_pass();
    scene.gateway.start_again().await?;
    let account = scene.gateway.settled(&scene.customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (FUNDS, 1), "{account:?}");
    Ok(())
}

#[tokio::test]
async fn a_browser_that_is_closed_meanwhile_says_so_once_it_is_paid() -> Result<()> {
    let redis = Redis::start().await?;
    let way = Way::to(&redis)?;
    let gateway = on(&way.url()).start().await?;
    let customer = gateway.prepaid_customer("enterprise", FUNDS).await?;
    gateway.connect(&customer).await?.close().await?;
    gateway.settled(&customer).await?;
    // Who has to wait for a browser is not answered ahead.
    eventually("a browser is warm", async || Ok(gateway.metric("ufb_pool_idle_browsers").await? >= 1.0))
        .await?;

    way.hold_up();
    let mut session = gateway.connect(&customer).await?;
    let closed = session.send(json!({ "method": "Browser.close" })).await?;
    way.let_pass();
    session.result(closed).await?;
    assert_eq!(session.ending().await?.code(), Some(1000));
    let account = gateway.settled(&customer).await?;
    assert_eq!(account.balance, FUNDS - 2 * PRICE);
    Ok(())
}

/// A commit that nobody heard of any more lands all the same.
#[tokio::test]
async fn an_answer_that_never_comes_ends_it_without_a_word_and_leaves_nothing() -> Result<()> {
    let mut scene = Scene::set().await?;
    let other = scene.another().start().await?;
    let (mut session, _) = scene.ahead().await?;
    assert_eq!(session.ending_without_a_word().await?.code(), Some(1013));
    scene.way.let_pass();
    eventually("the hold has landed", async || Ok(other.account(&scene.customer).await?.running == 1))
        .await?;
    scene.gateway.kill()?;
    scene.gateway.start_again().await?;
    let account = scene.gateway.settled(&scene.customer).await?;
    let of_state = |state| account.sessions.iter().filter(|session| session.state == state).count();
    assert_eq!((account.balance, of_state(State::Posted), of_state(State::Voided)), (FUNDS, 1, 1));
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_drains_meanwhile_gives_and_charges_nothing() -> Result<()> {
    let mut scene = Scene::set_with(|gateway| gateway.set("SESSION_DRAIN_DEADLINE", "1ms")).await?;
    let (mut session, _) = scene.ahead().await?;
    scene.gateway.terminate()?;
    assert_eq!(session.ending_without_a_word().await?.code(), Some(1001));
    assert_eq!(scene.gateway.exit_code().await?, Some(0));
    scene.nothing_is_left_behind().await
}

#[tokio::test]
async fn what_a_client_may_say_meanwhile_has_a_bound() -> Result<()> {
    let scene = Scene::set().await?;
    scene.way.hold_up();
    let mut session = scene.gateway.connect(&scene.customer).await?;
    let much = "x".repeat(3 * UNPAID as usize);
    session.send(json!({ "method": "Browser.getVersion", "params": { "much": much } })).await?;
    let passed = async || scene.session().await?["upBytes"].as_u64().context("no bytes");
    eventually("it has said so much", async || Ok(passed().await? == UNPAID)).await?;
    let asked = session.send(json!({ "method": "Browser.getVersion" })).await?;
    assert_eq!(passed().await?, UNPAID);
    scene.way.let_pass();
    session.result(asked).await?;
    assert!(passed().await? > 3 * UNPAID);
    session.close().await?;
    assert_eq!(scene.gateway.settled(&scene.customer).await?.balance, FUNDS - PRICE);
    Ok(())
}

/// What discovery tells of a session that runs, its browser has said.
#[tokio::test]
async fn its_pages_are_not_told_of_meanwhile() -> Result<()> {
    let scene = Scene::set().await?;
    let other = scene.another().start().await?;
    let (mut session, _) = scene.ahead().await?;
    let id = scene.session().await?["session"].as_str().context("no id")?.to_owned();
    let list = Request::get(&format!("/sessions/{id}/json/list")).key(&scene.customer.key);
    other.command(&["customer", "suspend", &scene.customer.id]).await?;
    let (answer, ()) = tokio::join!(scene.gateway.ask(list), async { scene.way.let_pass() });
    assert_eq!(answer?.status, 404);
    assert_eq!(session.ending_without_a_word().await?.code(), Some(1008));
    scene.leaves_nothing(FUNDS, "suspended").await
}

#[tokio::test]
async fn a_session_without_a_socket_is_answered_when_its_price_is_there() -> Result<()> {
    let scene = Scene::set().await?;
    let other = scene.another().start().await?;
    scene.way.hold_up();
    let (created, ()) = tokio::join!(scene.create(), async {
        assert_eq!(other.account(&scene.customer).await.map(|account| account.running).ok(), Some(0));
        scene.way.let_pass();
    });
    let created = created?;
    assert_eq!((created.status, other.account(&scene.customer).await?.running), (200, 1));
    let created = created.json().await?;
    let target = target_of(created["cdpUrl"].as_str().context("no cdpUrl")?)?;
    let mut session = scene.gateway.ask(Request::websocket(target)).await?.into_cdp().await?;
    session.call("Browser.getVersion", json!({})).await?;
    session.close().await?;
    assert_eq!(scene.gateway.settled(&scene.customer).await?.balance, FUNDS - PRICE);
    Ok(())
}

#[tokio::test]
async fn a_session_without_a_socket_is_refused_where_its_price_was_spent_meanwhile() -> Result<()> {
    let scene = Scene::set().await?;
    let dear = scene.dear().await?;
    scene.way.hold_up();
    let (created, taken) = tokio::join!(scene.create(), async {
        let taken = dear.connect(&scene.customer).await;
        scene.way.let_pass();
        taken
    });
    assert_eq!(Refusal::read(created?).await?.code, "insufficient_balance");
    taken?.close().await?;
    let account = scene.gateway.settled(&scene.customer).await?;
    assert_eq!((account.balance, account.sessions.len()), (0, 2), "{account:?}");
    scene.all_browsers_are_there().await
}
