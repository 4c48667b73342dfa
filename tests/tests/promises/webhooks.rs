//! Customers are told of their sessions by requests that Stripe's own library verifies; what fails is tried again, what
//! fails too often can be sent again, and nobody is held up by anybody else's receiver.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{Builder, Customer, Gateway, Received, Receiver, Redis, StandIn, eventually};

const DEAD: &str = r#"ufb_billing_deliveries_total{group="notices",result="dead"}"#;
const FAILED: &str = r#"ufb_billing_deliveries_total{group="notices",result="failed"}"#;

fn builder(browser: &StandIn) -> Builder {
    Gateway::builder().fixed(browser, 10).set("WEBHOOKS_PRIVATE_TARGETS", true)
}

/// A webhook of theirs at that URL: its id and its secret.
async fn webhook(gateway: &Gateway, customer: &Customer, url: &str) -> Result<(String, String)> {
    let created = gateway.command(&["webhook", "create", &customer.id, "--url", url]).await?;
    let text = |name: &str| created[name].as_str().map(str::to_owned).context("it is a text");
    Ok((text("webhookId")?, text("secret")?))
}

/// A customer whose webhook is at that path, and trusted there.
async fn customer_told_at(gateway: &Gateway, receiver: &Receiver, path: &str) -> Result<Customer> {
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    let (_, secret) = webhook(gateway, &customer, &receiver.url(path)).await?;
    receiver.trust(path, &secret).await?;
    Ok(customer)
}

async fn run_session(gateway: &Gateway, customer: &Customer) -> Result<()> {
    gateway.connect(customer).await?.close().await?;
    Ok(())
}

/// Verified, and about a session of this customer.
fn assert_is_of(received: &Received, customer: &Customer, event: &str) {
    assert_eq!(received.fault, None);
    assert_eq!(
        (received.method.as_str(), received.content_type.as_deref()),
        ("POST", Some("application/json"))
    );
    assert_eq!(received.field("type"), event);
    assert_eq!(received.field("data")["object"]["customer"], customer.id.as_str());
}

#[tokio::test]
async fn customers_are_told_of_their_own_sessions_alone() -> Result<()> {
    tells_of_sessions(|builder| builder).await
}

#[tokio::test]
async fn customers_are_told_of_their_own_sessions_alone_on_redis() -> Result<()> {
    let redis = Redis::start().await?;
    tells_of_sessions(|builder| builder.set("STORE_URL", redis.url())).await
}

async fn tells_of_sessions(stored: impl Fn(Builder) -> Builder) -> Result<()> {
    let (browser, receiver) = (StandIn::start().await?, Receiver::start().await?);
    let gateway = stored(builder(&browser)).start().await?;
    let one = gateway.prepaid_customer("starter", 1_000_000).await?;
    let (id, secret) = webhook(&gateway, &one, &receiver.url("/one")).await?;
    receiver.trust("/one", &secret).await?;
    let other = customer_told_at(&gateway, &receiver, "/other").await?;

    run_session(&gateway, &one).await?;
    let told = receiver.wait_for("/one", 1).await?;
    assert_is_of(&told[0], &one, "session:completed");
    let object = &told[0].field("data")["object"];
    assert_eq!((&object["cost"], &object["costMicros"]), (&json!(0.01), &json!(10_000)));
    assert_eq!(told[0].signatures, 1);
    assert!(!gateway.process().output()?.contains(&secret), "it is not logged");

    // Both secrets are good for a while.
    let rolled = gateway.command(&["webhook", "roll", &one.id, &id]).await?;
    run_session(&gateway, &one).await?;
    let told = receiver.wait_for("/one", 2).await?;
    assert_is_of(&told[1], &one, "session:completed");
    assert_eq!(told[1].signatures, 2);
    receiver.trust("/one", rolled["secret"].as_str().context("a secret")?).await?;
    run_session(&gateway, &one).await?;
    assert_is_of(&receiver.wait_for("/one", 3).await?[2], &one, "session:completed");

    let mut lost = gateway.connect(&other).await?;
    drop(browser);
    lost.ending().await?;
    let told = receiver.wait_for("/other", 1).await?;
    assert_is_of(&told[0], &other, "session:lost");
    assert_eq!(receiver.received("/one").await?.len(), 3);

    let listed = gateway.command(&["webhook", "list", &one.id]).await?;
    assert_eq!(listed["webhooks"][0]["webhookId"], id.as_str());
    assert!(!listed.to_string().contains("whsec_"), "{listed}");
    gateway.command(&["webhook", "remove", &one.id, &id]).await?;
    let listed = gateway.command(&["webhook", "list", &one.id]).await?;
    assert_eq!(listed["webhooks"], json!([]));
    Ok(())
}

#[tokio::test]
async fn a_low_balance_is_told_once_until_enough_was_added() -> Result<()> {
    let (browser, receiver) = (StandIn::start().await?, Receiver::start().await?);
    let gateway = builder(&browser).start().await?;
    let customer = gateway.prepaid_customer("starter", 120_000).await?;
    let create = ["webhook", "create", &customer.id, "--event", "customer:low-balance", "--url"];
    let created = gateway.command(&[&create[..], &[&receiver.url("/hook")]].concat()).await?;
    receiver.trust("/hook", created["secret"].as_str().context("a secret")?).await?;
    gateway.command(&["customer", "low-balance", &customer.id, "95000"]).await?;
    for _ in 0..4 {
        run_session(&gateway, &customer).await?;
    }
    let told = receiver.wait_for("/hook", 1).await?;
    assert_is_of(&told[0], &customer, "customer:low-balance");
    let object = &told[0].field("data")["object"];
    assert_eq!((&object["balanceMicros"], &object["thresholdMicros"]), (&json!(90_000), &json!(95_000)));

    gateway.settled(&customer).await?;
    gateway.command(&["customer", "credit", &customer.id, "20000"]).await?;
    for _ in 0..2 {
        run_session(&gateway, &customer).await?;
    }
    let told = receiver.wait_for("/hook", 2).await?;
    assert_eq!(told[1].field("data")["object"]["balanceMicros"], 90_000);
    assert_eq!(gateway.settled(&customer).await?.balance, 80_000);
    assert_eq!(receiver.received("/hook").await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_receiver_that_failed_is_told_again() -> Result<()> {
    let (browser, receiver) = (StandIn::start().await?, Receiver::start().await?);
    let gateway = builder(&browser).start().await?;
    let customer = customer_told_at(&gateway, &receiver, "/hook").await?;
    receiver.answer("/hook", json!([500, 200])).await?;
    run_session(&gateway, &customer).await?;

    let told = receiver.wait_for("/hook", 2).await?;
    assert_is_of(&told[1], &customer, "session:completed");
    assert_eq!(told[0].field("id"), told[1].field("id"));
    assert_eq!(gateway.metric(FAILED).await?, 1.0);
    assert_eq!(dead_letters(&gateway).await?, Vec::<Value>::new());
    Ok(())
}

async fn dead_letters(gateway: &Gateway) -> Result<Vec<Value>> {
    let answer = gateway.command(&["events", "--dead"]).await?;
    Ok(answer["deadLetters"].as_array().context("a list")?.clone())
}

#[tokio::test]
async fn what_failed_too_often_is_a_dead_letter_and_can_be_sent_again() -> Result<()> {
    can_be_sent_again(|builder| builder).await
}

#[tokio::test]
async fn what_failed_too_often_is_a_dead_letter_and_can_be_sent_again_on_redis() -> Result<()> {
    let redis = Redis::start().await?;
    can_be_sent_again(|builder| builder.set("STORE_URL", redis.url())).await
}

async fn can_be_sent_again(stored: impl Fn(Builder) -> Builder) -> Result<()> {
    let (browser, receiver) = (StandIn::start().await?, Receiver::start().await?);
    let gateway = stored(builder(&browser).set("WEBHOOKS_ATTEMPTS", 1)).start().await?;
    let customer = customer_told_at(&gateway, &receiver, "/hook").await?;
    // A redirect is not followed: it may lead anywhere.
    receiver.answer("/hook", json!([receiver.url("/elsewhere")])).await?;
    run_session(&gateway, &customer).await?;
    eventually("it has failed too often", async || Ok(gateway.metric(DEAD).await? == 1.0)).await?;

    let letters = dead_letters(&gateway).await?;
    let [letter] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((&letter["attempts"], &letter["cause"]), (&json!(1), &json!("it answered 302")));
    assert_eq!(letter["event"]["type"], "session:completed");
    let log = gateway.process().output()?;
    assert!(log.lines().any(|line| line.contains("ERROR") && line.contains("failed too often")), "{log}");
    assert_eq!(receiver.received("/elsewhere").await?, []);

    receiver.answer("/hook", json!([200])).await?;
    let delivery = letter["delivery"].as_str().context("its name")?;
    gateway.command(&["events", "--retry", delivery]).await?;
    let told = receiver.wait_for("/hook", 2).await?;
    assert_is_of(&told[1], &customer, "session:completed");
    assert_eq!(told[0].field("id"), told[1].field("id"));
    assert_eq!(dead_letters(&gateway).await?, Vec::<Value>::new());
    let (code, words) = gateway.run(&["events", "--retry", delivery]).await?;
    assert_eq!(code, Some(1), "{words}");
    Ok(())
}

#[tokio::test]
async fn what_a_killed_gateway_was_sending_is_sent_by_the_next() -> Result<()> {
    let (browser, receiver) = (StandIn::start().await?, Receiver::start().await?);
    let mut gateway = builder(&browser).start().await?;
    let customer = customer_told_at(&gateway, &receiver, "/hook").await?;
    receiver.answer("/hook", json!(["hang", 200])).await?;
    run_session(&gateway, &customer).await?;
    receiver.wait_for("/hook", 1).await?;
    gateway.kill()?;
    gateway.start_again().await?;
    let told = receiver.wait_for("/hook", 2).await?;
    assert_is_of(&told[1], &customer, "session:completed");
    assert_eq!(told[0].field("id"), told[1].field("id"));
    Ok(())
}

#[tokio::test]
async fn what_a_killed_gateway_was_sending_is_sent_by_another() -> Result<()> {
    let (redis, browser, receiver) =
        (Redis::start().await?, StandIn::start().await?, Receiver::start().await?);
    let gateway = || builder(&browser).set("STORE_URL", redis.url()).start();
    let mut one = gateway().await?;
    let customer = customer_told_at(&one, &receiver, "/hook").await?;
    receiver.answer("/hook", json!(["hang", 200])).await?;
    run_session(&one, &customer).await?;
    receiver.wait_for("/hook", 1).await?;
    let other = gateway().await?;
    one.kill()?;
    let told = receiver.wait_for("/hook", 2).await?;
    assert_is_of(&told[1], &customer, "session:completed");
    assert_eq!(told[0].field("id"), told[1].field("id"));
    // And what comes now is told by the one that lives.
    run_session(&other, &customer).await?;
    receiver.wait_for("/hook", 3).await?;
    Ok(())
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_nobody_else_s() -> Result<()> {
    let (browser, receiver) = (StandIn::start().await?, Receiver::start().await?);
    let gateway = builder(&browser).start().await?;
    let slow = customer_told_at(&gateway, &receiver, "/slow").await?;
    let quick = customer_told_at(&gateway, &receiver, "/quick").await?;
    receiver.answer("/slow", json!(["hang"])).await?;
    for _ in 0..6 {
        run_session(&gateway, &slow).await?;
    }
    // As many as one customer's may be at a time.
    receiver.wait_for("/slow", 4).await?;
    for _ in 0..3 {
        run_session(&gateway, &quick).await?;
    }
    for received in receiver.wait_for("/quick", 3).await? {
        assert_is_of(&received, &quick, "session:completed");
    }
    assert_eq!(receiver.received("/slow").await?.len(), 4);
    Ok(())
}

#[tokio::test]
async fn a_webhook_is_reached_by_tls_and_by_no_private_address() -> Result<()> {
    let (browser, receiver) = (StandIn::start().await?, Receiver::start().await?);
    let trusting = |builder: Builder| builder.environment("SSL_CERT_FILE", receiver.certificate().display());
    let gateway = trusting(builder(&browser)).start().await?;
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    let (_, secret) = webhook(&gateway, &customer, &receiver.secure_url("/tls")).await?;
    receiver.trust("/tls", &secret).await?;
    run_session(&gateway, &customer).await?;
    assert_is_of(&receiver.wait_for("/tls", 1).await?[0], &customer, "session:completed");

    // Without the operator's leave.
    let strict = Gateway::builder().fixed(&browser, 10).set("WEBHOOKS_ATTEMPTS", 1);
    let gateway = trusting(strict).start().await?;
    let customer = gateway.prepaid_customer("starter", 1_000_000).await?;
    for url in [receiver.url("/hook"), "https://127.0.0.1/".to_owned(), "https://[::1]/".to_owned()] {
        let (code, words) = gateway.run(&["webhook", "create", &customer.id, "--url", &url]).await?;
        assert_eq!(code, Some(64), "{url}: {words}");
        assert!(words.contains("--url") && words.contains("webhooks.private_targets"), "{words}");
    }
    // What is behind a name shows when it is looked up.
    webhook(&gateway, &customer, &receiver.secure_url("/name")).await?;
    run_session(&gateway, &customer).await?;
    eventually("it has failed", async || Ok(gateway.metric(DEAD).await? == 1.0)).await?;
    assert_eq!(dead_letters(&gateway).await?[0]["cause"], "its host has no public address");
    assert_eq!(receiver.received("/name").await?, []);
    Ok(())
}
