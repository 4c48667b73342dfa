//! Who starts sessions as nobody does is held back, counted and told of.

use anyhow::Result;
use tests::{Gateway, Refusal, StandIn};

#[tokio::test]
async fn a_key_that_starts_too_many_sessions_is_told_of_once() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 5).set("EDGE_STARTS_PER_MINUTE", 2).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    let _running = [gateway.connect(&customer).await?, gateway.connect(&customer).await?];

    for _ in 0..3 {
        let Err(refused) = gateway.connect(&customer).await else { anyhow::bail!("a third one started") };
        let refusal: Refusal = refused.downcast()?;
        assert_eq!((refusal.status, refusal.code.as_str()), (429, "too_many_starts"), "{refusal}");
    }

    assert!((gateway.metric("ufb_gateway_unusual_starts_total").await? - 3.0).abs() < f64::EPSILON);
    let events = gateway.command(&["events", &customer.id]).await?;
    let events = events["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let unusual: Vec<_> = events.iter().filter(|event| event["type"] == "customer:unusual-use").collect();
    let [unusual] = unusual[..] else { anyhow::bail!("{unusual:?}") };
    assert_eq!(unusual["key"], gateway.account(&customer).await?.keys[0].key_id);
    assert_eq!(unusual["cause"], "starts of one key");
    Ok(())
}
