//! The gateway, one edge thread, its ledger, meter and metrics as ever.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::browser::Browser;
use super::stage::Stage;
use super::{Front, Limits, SceneArgs};

pub(super) async fn start(
    stage: &mut Stage,
    browser: &Browser,
    limits: Limits,
    args: &SceneArgs,
) -> Result<Front> {
    let own = || format!("sqlite:{}", stage.path("ledger.db").display());
    let store = args.store.clone().unwrap_or_else(own);
    let program = args.gateway()?;
    let prepare = |mut command: Command| {
        // Nobody's settings but these; one customer may have as many sessions as there is room for.
        command
            .env_clear()
            .env("NO_COLOR", "1")
            .env("UFB_STORE_URL", &store)
            .env("UFB_PLANS_ENTERPRISE_CONCURRENT_SESSIONS", limits.sessions.to_string())
            .env("UFB_PLANS_ENTERPRISE_INCLUDED_SESSIONS", "1000000000")
            .current_dir(stage.path(""));
        command
    };
    let create = || create_customer(&mut prepare(Command::new(program)));
    let paths = [create()?, create()?].map(|key| format!("/?token={key}"));
    let mut serve = prepare(stage.proxy(program));
    serve
        .args(["serve", "--ready-file", "gateway.json"])
        .env("UFB_EDGE_LISTEN", "127.0.0.1:0")
        .env("UFB_EDGE_TLS_LISTEN", "127.0.0.1:0")
        .env("UFB_EDGE_TLS_CERT", stage.path("cert.pem"))
        .env("UFB_EDGE_TLS_KEY", stage.path("key.pem"))
        .env("UFB_EDGE_THREADS", "1")
        // All clients are here.
        .env("UFB_EDGE_CONNECTIONS_PER_ADDRESS", limits.sessions.to_string())
        .env("UFB_ADMIN_LISTEN", "127.0.0.1:0")
        .env("UFB_POOL_PROVIDER", "fixed")
        .env("UFB_POOL_FIXED_ENDPOINTS", format!("http://{}", browser.address))
        .env("UFB_POOL_FIXED_SESSIONS_PER_ENDPOINT", limits.browser_sockets.to_string());
    if stage.has_runner() {
        // What is executed while nothing comes depends on the time, and is no part of a message.
        serve.env("UFB_EDGE_BUSY_POLL", "false");
    }
    let pid = stage.start("gateway", &mut serve)?;
    let ready: Value = serde_json::from_str(&stage.file("gateway.json").await?)?;
    let door = |name: &str| -> Result<_> {
        let address = ready[name].as_str().with_context(|| format!("gateway.json names no {name}"))?;
        Ok(address.parse()?)
    };
    Ok(Front { name: "gateway", plain: door("http")?, tls: door("https")?, paths, pids: vec![pid] })
}

/// Makes a customer; returns its key.
fn create_customer(command: &mut Command) -> Result<String> {
    command.args(["customer", "create", "--email", "bench@example.com", "--plan", "enterprise", "--json"]);
    let output = command.output()?;
    if !output.status.success() {
        bail!("the gateway made no customer: {}", String::from_utf8_lossy(&output.stderr));
    }
    let customer: Value = serde_json::from_slice(&output.stdout)?;
    Ok(customer["apiKey"].as_str().context("the gateway printed no apiKey")?.to_owned())
}
