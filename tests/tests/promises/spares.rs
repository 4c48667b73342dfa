//! On a Redis a customer who starts one session after another waits for no round trip: the next one is held before it is asked for.

use anyhow::{Result, bail};
use serde_json::json;
use tests::{Cdp, Customer, Gateway, Redis, Request, StandIn, State, Way, eventually};

/// Micro-dollars.
const PRICE: u64 = 10_000;
/// Far more than there has to be for a session to be held ahead.
const FUNDS: u64 = 1_000 * PRICE;
/// Far more, one right behind the other, than make a customer busy.
const STARTS: usize = 100;
/// A spare is kept for a second, which a machine with much else to do may take between two steps of a test.
const TRIES: usize = 10;

struct Scene {
    redis: Redis,
    way: Way,
    browser: StandIn,
    gateway: Gateway,
    customer: Customer,
    /// Sessions of the customer that were served.
    served: usize,
}

impl Scene {
    /// A gateway whose way to the Redis can be held up, and a customer with so much.
    async fn set(funds: u64) -> Result<Self> {
        let (redis, browser) = (Redis::start().await?, StandIn::start().await?);
        let way = Way::to(&redis)?;
        let gateway = Gateway::builder().set("STORE_URL", way.url()).fixed(&browser, 4).start().await?;
        let customer = gateway.prepaid_customer("enterprise", funds).await?;
        Ok(Self { redis, way, browser, gateway, customer, served: 0 })
    }

    async fn another(&self) -> Result<Gateway> {
        Gateway::builder().set("STORE_URL", self.redis.url()).fixed(&self.browser, 1).start().await
    }

    async fn serve_one(&mut self) -> Result<()> {
        let mut session = self.gateway.connect(&self.customer).await?;
        session.call("Browser.getVersion", json!({})).await?;
        session.close().await?;
        self.served += 1;
        Ok(())
    }

    async fn spares(&self) -> Result<usize> {
        Ok(self.gateway.metric("ufb_gateway_spare_holds").await? as usize)
    }

    /// Starts one session after another, until one is held ahead.
    async fn get_a_spare(&mut self) -> Result<()> {
        for _ in 0..STARTS {
            self.serve_one().await?;
            if self.spares().await? > 0 {
                return Ok(());
            }
        }
        bail!("no session is held ahead")
    }

    /// A session that was held ahead and has its browser, while nothing comes through to the Redis.
    async fn one_by_a_spare(&mut self) -> Result<Cdp> {
        for _ in 0..TRIES {
            self.get_a_spare().await?;
            self.way.hold_up();
            let mut session = self.gateway.connect(&self.customer).await?;
            if session.call("Browser.getVersion", json!({})).await.is_ok() {
                self.served += 1;
                return Ok(session);
            }
            self.way.let_pass();
        }
        bail!("no session was served without a word from the Redis")
    }

    /// What is left, once nothing is set aside any more.
    async fn adds_up(&self) -> Result<()> {
        eventually("nothing is held ahead", async || Ok(self.spares().await? == 0)).await?;
        let account = self.gateway.settled(&self.customer).await?;
        let of_state = |state| account.sessions.iter().filter(|session| session.state == state).count();
        assert_eq!(of_state(State::Posted), self.served, "{account:?}");
        assert_eq!(account.balance, FUNDS - self.served as u64 * PRICE);
        Ok(())
    }
}

#[tokio::test]
async fn a_session_that_was_held_ahead_is_served_without_a_word_from_the_redis() -> Result<()> {
    let mut scene = Scene::set(FUNDS).await?;
    let session = scene.one_by_a_spare().await?;
    scene.way.let_pass();
    session.close().await?;
    scene.adds_up().await
}

#[tokio::test]
async fn one_that_began_with_a_key_that_was_revoked_elsewhere_ends() -> Result<()> {
    let mut scene = Scene::set(FUNDS).await?;
    let mut session = scene.one_by_a_spare().await?;
    let other = scene.another().await?;
    let account = other.account(&scene.customer).await?;
    other.command(&["key", "revoke", &scene.customer.id, &account.keys[0].key_id]).await?;
    scene.way.let_pass();
    assert_eq!(session.ending().await?.code(), Some(1008));
    let refused = scene.gateway.ask(Request::get("/api/account").key(&scene.customer.key)).await?;
    assert_eq!(refused.status, 401);
    scene.adds_up().await
}

#[tokio::test]
async fn an_account_with_little_left_has_nothing_set_aside_that_nobody_asked_for() -> Result<()> {
    let mut scene = Scene::set(20 * PRICE).await?;
    for _ in 0..10 {
        scene.serve_one().await?;
    }
    let account = scene.gateway.settled(&scene.customer).await?;
    let all_are_served = account.sessions.iter().all(|session| session.state == State::Posted);
    assert!(account.sessions.len() == 10 && all_are_served, "{account:?}");
    assert_eq!(account.balance, 10 * PRICE);
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_drains_gives_back_what_it_held_ahead() -> Result<()> {
    let mut scene = Scene::set(FUNDS).await?;
    let other = scene.another().await?;
    scene.get_a_spare().await?;
    scene.gateway.terminate()?;
    assert_eq!(scene.gateway.exit_code().await?, Some(0));
    let account = other.account(&scene.customer).await?;
    assert_eq!((account.running, account.balance), (0, FUNDS - scene.served as u64 * PRICE), "{account:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_killed_gateway_held_ahead_is_given_back_by_another() -> Result<()> {
    let mut scene = Scene::set(FUNDS).await?;
    let other = scene.another().await?;
    scene.get_a_spare().await?;
    scene.gateway.kill()?;
    eventually("the other one has given it back", async || {
        Ok(other.account(&scene.customer).await?.running == 0)
    })
    .await?;
    let account = other.settled(&scene.customer).await?;
    assert_eq!(account.balance, FUNDS - scene.served as u64 * PRICE);
    Ok(())
}
