//! Sessions in a row leave nothing behind: no memory, descriptor, task or hold.

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tests::{Customer, Gateway, StandIn};

const SESSIONS: u64 = 5_000;
/// The first five thousand fill what has a bound, the store's page caches above all, and so may the second. What grows with
/// each session does so in all of them.
const ROUNDS: usize = 4;
/// Bytes, for each session: less than the smallest piece that the allocator gives out, so that one that is kept of each
/// session shows.
const NOISE: u64 = 16;

#[tokio::test]
async fn five_thousand_sessions_in_a_row() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway =
        Gateway::builder().fixed(&browser, 4).set("EDGE_STARTS_PER_MINUTE", 1_000_000).start().await?;
    // Far more at a time than one: a client hears of its end before that is settled, which a busy disk puts off.
    let customer = gateway.prepaid_customer("enterprise", 1_000_000_000).await?;
    let before = gateway.at_rest(&customer).await?;

    let mut memory = vec![gateway.process().pid()?.anonymous_memory()?];
    while !is_flat(&memory) {
        if memory.len() > ROUNDS {
            bail!("memory grows on and on: {memory:?} bytes after {SESSIONS} sessions each");
        }
        sessions(&gateway, &customer).await?;
        gateway.nothing_is_left(before).await?;
        memory.push(gateway.process().pid()?.anonymous_memory()?);
    }

    let account = gateway.settled(&customer).await?;
    ensure!(account.running == 0 && account.sessions.iter().all(|session| session.charged == 10_000));
    Ok(())
}

/// Whether the last five thousand sessions left nothing.
fn is_flat(memory: &[u64]) -> bool {
    matches!(memory, [.., before, after] if *after <= before + SESSIONS * NOISE)
}

async fn sessions(gateway: &Gateway, customer: &Customer) -> Result<()> {
    for _ in 0..SESSIONS {
        let mut session = gateway.connect(customer).await?;
        session.call("Browser.getVersion", json!({})).await?;
        session.close().await?;
    }
    Ok(())
}
