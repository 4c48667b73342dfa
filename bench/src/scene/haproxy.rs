//! HAProxy, one thread, as its manual has it for WebSockets: `timeout tunnel` for the upgraded connection.

use anyhow::Result;

use super::browser::Browser;
use super::stage::{Stage, free_address};
use super::{Front, Limits};

pub(super) async fn start(stage: &mut Stage, browser: &Browser, limits: Limits) -> Result<Front> {
    let (plain, tls) = (free_address()?, free_address()?);
    let (both, maxconn) = (stage.path("both.pem"), limits.sessions);
    // Chrome demands its own address as Host.
    let config = format!(
        "global
    nbthread 1
    maxconn {maxconn}
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    maxconn {maxconn}
    timeout connect 5s
    timeout client 1m
    timeout server 1m
    timeout tunnel 1h
frontend doors
    bind {plain}
    bind {tls} ssl crt {both}
    default_backend browser
backend browser
    http-request set-header Host {browser}
    server browser {browser}
",
        both = both.display(),
        browser = browser.address,
    );
    let file = stage.write("haproxy.cfg", &config)?;
    let mut command = stage.proxy("haproxy");
    let pid = stage.start("haproxy", command.arg("-db").arg("-f").arg(file))?;
    stage.accepts(plain).await?;
    let paths = [browser.path.clone(), browser.path.clone()];
    Ok(Front { name: "haproxy", plain, tls, paths, pids: vec![pid] })
}
