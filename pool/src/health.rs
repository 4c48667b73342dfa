//! When a browser may enter the pool: it answers, and it has a page open.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::cdp::{Cdp, CdpError};
use crate::lease::Endpoint;

/// How long a browser that was just started may take until its first page is listed.
const FIRST_PAGE_LOOKS: u32 = 25;
const FIRST_PAGE_PAUSE: Duration = Duration::from_millis(20);

/// Opens a CDP socket and has it answer a first command, so that whatever Chrome sets up for a new connection is done
/// before a client's first command arrives on it.
pub(crate) async fn warm_up(endpoint: &Endpoint) -> Result<std::net::TcpStream, CdpError> {
    let mut cdp = Cdp::connect(endpoint).await?;
    cdp.call("Browser.getVersion", json!({})).await?;
    if !has_page(&mut cdp).await? {
        // Clients take the first page of the default context for granted.
        cdp.call("Target.createTarget", json!({ "url": "about:blank" })).await?;
    }
    Ok(cdp.into_socket()?)
}

async fn has_page(cdp: &mut Cdp) -> Result<bool, CdpError> {
    for _ in 0..FIRST_PAGE_LOOKS {
        let targets = cdp.call("Target.getTargets", json!({})).await?;
        if lists_page(&targets) {
            return Ok(true);
        }
        sleep(FIRST_PAGE_PAUSE).await;
    }
    Ok(false)
}

fn lists_page(targets: &Value) -> bool {
    targets["targetInfos"].as_array().is_some_and(|infos| infos.iter().any(|info| info["type"] == "page"))
}
