//! Whoever reads slowly slows its own session down: the gateway holds back the sender, not the bytes.

use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use serde_json::json;
use tests::{Cdp, Gateway, Pid, eventually};

/// What the gateway may use more while nobody reads: the buffers of two connections, and what the allocator rounds up.
const SLACK: u64 = 8 << 20;
/// Chromium buffers 256 MB for a connection and cuts one that needs more, so a gigabyte takes five of these.
const REPLY_TENS: usize = 20_000_000;
const REPLIES: usize = 5;
/// The gateway takes messages of up to 99 MB, and a few of them are more than any buffer it might have.
const REQUEST_TENS: usize = 9_000_000;
const REQUESTS: usize = 3;
/// How long nothing moves before everything in between counts as full.
const STALL: Duration = Duration::from_secs(1);

#[tokio::test]
async fn the_client_does_not_read() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.customer("starter").await?;
    let mut session = gateway.connect(&customer).await?;
    let page = session.open_page().await?;

    for round in 0..REPLIES {
        let memory = Memory::of(&gateway)?;
        let expression = format!("'{round}123456789'.repeat({REPLY_TENS})");
        let params = json!({ "expression": expression, "returnByValue": true });
        let command = json!({ "sessionId": page, "method": "Runtime.evaluate", "params": params });
        let id = session.send(command).await?;

        stops_moving(&session).await?;
        memory.has_not_grown()?;

        let reply = session.result(id).await?;
        let expected = format!("{round}123456789").repeat(REPLY_TENS);
        assert!(reply["result"]["value"] == expected.as_str(), "reply {round} did not arrive whole");
        memory.has_not_grown()?;
    }
    Ok(())
}

#[tokio::test]
async fn the_browser_does_not_read() -> Result<()> {
    let gateway = Gateway::start().await?;
    let customer = gateway.customer("starter").await?;
    let mut session = gateway.connect(&customer).await?;
    let browser = session.browser().await?;
    let page = session.open_page().await?;

    for round in 0..REQUESTS {
        let memory = Memory::of(&gateway)?;
        let ten = format!("{:010}", round);
        let text = ten.repeat(REQUEST_TENS);
        let params = json!({ "expression": format!("'{text}' === '{ten}'.repeat({REQUEST_TENS})") });
        let command = json!({ "sessionId": page, "method": "Runtime.evaluate", "params": params });

        browser.signal(Signal::STOP)?;
        let id = {
            let mut sending = pin!(session.send(command));
            let stalled = tokio::time::timeout(STALL, &mut sending).await.is_err();
            assert!(stalled, "90 MB went somewhere although the browser was stopped");
            memory.has_not_grown()?;
            browser.signal(Signal::CONT)?;
            sending.await?
        };

        let reply = session.result(id).await?;
        assert_eq!(reply["result"]["value"], true, "request {round} did not arrive whole");
        memory.has_not_grown()?;
    }
    Ok(())
}

/// Waits until what the kernel holds for the client grows no further.
async fn stops_moving(session: &Cdp) -> Result<()> {
    let (mut waiting, mut since) = (0, tokio::time::Instant::now());
    eventually("the way to the client is full", async || {
        let now = session.waiting_bytes()?;
        if now != waiting {
            (waiting, since) = (now, tokio::time::Instant::now());
        }
        Ok(waiting > 0 && since.elapsed() > STALL)
    })
    .await
}

/// The most that a gateway uses from now on, compared with now.
struct Memory {
    gateway: Pid,
    before: u64,
}

impl Memory {
    fn of(gateway: &Gateway) -> Result<Self> {
        let gateway = gateway.process().pid()?;
        gateway.forget_most_memory()?;
        Ok(Self { gateway, before: gateway.most_memory()? })
    }

    fn has_not_grown(&self) -> Result<()> {
        let grown = self.gateway.most_memory()?.saturating_sub(self.before);
        assert!(grown < SLACK, "the gateway needed {grown} bytes more");
        Ok(())
    }
}
