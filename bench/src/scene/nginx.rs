//! nginx, one worker, as its documentation has it for WebSockets.

use std::fs;

use anyhow::Result;

use super::browser::Browser;
use super::stage::{Stage, free_address};
use super::{Front, Limits};

pub(super) async fn start(stage: &mut Stage, browser: &Browser, limits: Limits) -> Result<Front> {
    let (plain, tls) = (free_address()?, free_address()?);
    let directory = stage.path("");
    // Chrome demands its own address as Host. Two connections a session.
    let config = format!(
        "daemon off;
master_process {master};
worker_processes 1;
pid {dir}nginx.pid;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    tcp_nodelay on;
    client_body_temp_path {dir}nginx-body;
    proxy_temp_path {dir}nginx-proxy;
    fastcgi_temp_path {dir}nginx-fastcgi;
    uwsgi_temp_path {dir}nginx-uwsgi;
    scgi_temp_path {dir}nginx-scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    server {{
        listen {plain};
        listen {tls} ssl;
        ssl_certificate {dir}cert.pem;
        ssl_certificate_key {dir}key.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {{
            proxy_pass http://{browser};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Host {browser};
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
        }}
    }}
}}
",
        // Who counts its instructions wants one process.
        master = if stage.has_runner() { "off" } else { "on" },
        dir = directory.display(),
        connections = limits.sessions * 2,
        browser = browser.address,
    );
    let file = stage.write("nginx.conf", &config)?;
    let mut command = stage.proxy("nginx");
    command.arg("-p").arg(&directory).arg("-e").arg(stage.path("nginx-error.log")).arg("-c").arg(file);
    let master = stage.start("nginx", &mut command)?;
    // The doors are open before the worker is there.
    let workers = format!("/proc/{master}/task/{master}/children");
    let worker = match stage.has_runner() {
        true => master,
        false => stage.ready(async || fs::read_to_string(&workers).ok()?.trim().parse().ok()).await?,
    };
    stage.accepts(plain).await?;
    let paths = [browser.path.clone(), browser.path.clone()];
    Ok(Front { name: "nginx", plain, tls, paths, pids: vec![worker] })
}
