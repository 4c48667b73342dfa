//! Sessions in a row leave nothing behind: no memory, descriptor, task or hold.

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tests::{Customer, Gateway, StandIn};

const SESSIONS: u64 = 5_000;
/// So many follow each other before what they left is waited for. A client hears of its session's end before that is settled;
/// how many wait for the disk then, and the memory that this takes at most, would else be for the disk to say.
const ROW: u64 = 100;
/// The first five thousand fill what has a bound, the store's page caches above all, and so may the second. What grows with
/// each session does so in all of them.
const ROUNDS: usize = 4;
/// Bytes, for each session: less than the smallest piece that the allocator gives out, so that one that is kept of each
/// session shows.
const NOISE: u64 = 16;
/// What is freed goes back to the system as soon as it can. By itself glibc keeps some of it for each thread, and more from
/// time to time, so that what the process has says little about what it uses.
const FRUGAL: &str = "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0:glibc.malloc.trim_threshold=0:\
    glibc.malloc.top_pad=0";

#[tokio::test]
async fn five_thousand_sessions_in_a_row() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 4).set("EDGE_STARTS_PER_MINUTE", 1_000_000);
    let gateway = gateway.environment("GLIBC_TUNABLES", FRUGAL).start().await?;
    // Far more at a time than one: a client hears of its end before that is settled, which a busy disk puts off.
    let customer = gateway.prepaid_customer("enterprise", 1_000_000_000).await?;
    let before = gateway.at_rest(&customer).await?;

    let mut memory = vec![gateway.process().pid()?.anonymous_memory()?];
    while !is_flat(&memory) {
        if memory.len() > ROUNDS {
            bail!("memory grows on and on: {memory:?} bytes after {SESSIONS} sessions each");
        }
        for _ in 0..SESSIONS / ROW {
            a_row(&gateway, &customer).await?;
            gateway.nothing_is_left(before).await?;
        }
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

async fn a_row(gateway: &Gateway, customer: &Customer) -> Result<()> {
    for _ in 0..ROW {
        let mut session = gateway.connect(customer).await?;
        session.call("Browser.getVersion", json!({})).await?;
        session.close().await?;
    }
    Ok(())
}
