//! `check`: every mistake in the settings, then every thing that they point at.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use billing::StoreUrl;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process;
use tokio::time::timeout;

use crate::config::{Certificate, Config, Endpoint, Mistake, Mistakes, Provider};

use super::output::{Failure, Output};
use super::{EXIT_USAGE, store};

/// An endpoint that needs longer from this network would make every session slow.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(2);
/// A browser prints its version in 0.1 s, from a cold disk in a few.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn run(
    config: Result<Config, Mistakes>,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let findings = match config {
        Ok(config) => try_all(&config).await,
        Err(mistakes) => mistakes.iter().map(Finding::mistake).collect(),
    };
    let ok = findings.iter().all(|finding| finding.result.is_ok());
    let checks: Vec<_> = findings.iter().map(Finding::document).collect();
    let width = findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or_default();
    let lines: Vec<_> = findings.iter().map(|finding| finding.words(width)).collect();
    output.print(&json!({ "ok": ok, "checks": checks }), lines.join("\n"))?;
    if ok { Ok(()) } else { Err(Failure::Printed(EXIT_USAGE)) }
}

/// One thing that was tried.
struct Finding {
    name: String,
    /// What it is, or what is wrong with it.
    result: Result<String, Trouble>,
}

struct Trouble {
    problem: String,
    remedy: String,
}

impl Trouble {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }
}

impl Finding {
    fn new(name: &str, result: Result<String, Trouble>) -> Self {
        Self { name: name.to_owned(), result }
    }

    fn mistake(mistake: &Mistake) -> Self {
        let problem = format!("{}{}", mistake.problem, mistake.place());
        Self::new(&mistake.setting, Err(Trouble::new(problem, mistake.remedy.clone())))
    }

    fn document(&self) -> Value {
        match &self.result {
            Ok(detail) => json!({ "name": self.name, "ok": true, "detail": detail }),
            Err(Trouble { problem, remedy }) => {
                json!({ "name": self.name, "ok": false, "problem": problem, "remedy": remedy })
            }
        }
    }

    /// With the name in a column of that width.
    fn words(&self, width: usize) -> String {
        let Self { name, result } = self;
        match result {
            Ok(detail) => format!("✓ {name:width$}  {detail}"),
            Err(Trouble { problem, remedy }) => {
                format!("✗ {name:width$}  {problem}\n  {:width$}  → {remedy}", "")
            }
        }
    }
}

async fn try_all(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        Finding::new("settings", Ok("can all be read".to_owned())),
        Finding::new("store.url", open_store(config).await),
    ];
    findings.extend(doors(config));
    if let Some(certificate) = config.edge.tls.as_ref().and_then(|tls| tls.certificate.as_ref()) {
        findings.push(Finding::new("edge.tls_cert", load(certificate)));
    }
    match &config.pool.provider {
        Provider::Process { binary } => {
            findings.push(Finding::new("pool.process.binary", ask_version(binary).await));
        }
        Provider::Fixed { endpoints, .. } => {
            for endpoint in endpoints {
                findings.push(Finding::new("pool.fixed.endpoints", connect(endpoint).await));
            }
        }
    }
    findings
}

/// Opening makes the store where there is none, and refuses one of another schema.
async fn open_store(config: &Config) -> Result<String, Trouble> {
    let opened = match store::open(config) {
        Ok(billing) => billing.probe().await,
        Err(error) => Err(error),
    };
    opened.map(|()| format!("{} opens", config.store)).map_err(|error| {
        let remedy = match config.store {
            StoreUrl::Sqlite(_) => "name a file in a directory that this user may write to",
            StoreUrl::Redis(_) => "start the Redis there (7.0 or newer), or name the one that runs",
        };
        Trouble::new(format!("{} does not open: {}", config.store, store::with_causes(&error)), remedy)
    })
}

/// All listeners stay open until the last is tried, so that two settings with one address are found.
fn doors(config: &Config) -> Vec<Finding> {
    let doors = [
        ("edge.listen", Some(config.edge.listen)),
        ("edge.tls_listen", config.edge.tls.as_ref().map(|tls| tls.listen)),
        ("admin.listen", Some(config.admin.listen)),
    ];
    let mut open = Vec::new();
    let mut findings = Vec::new();
    for (name, address) in doors {
        let Some(address) = address else { continue };
        let result = match TcpListener::bind(address) {
            Ok(listener) => {
                open.push(listener);
                Ok(format!("{address} is free"))
            }
            Err(error) => Err(cannot_listen(address, &error)),
        };
        findings.push(Finding::new(name, result));
    }
    findings
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Trouble {
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => "choose another port, unless it is the running gateway that listens there",
        ErrorKind::AddrNotAvailable => "choose an address of this machine, or 0.0.0.0 for all of them",
        ErrorKind::PermissionDenied => "choose a port above 1023, or give the program CAP_NET_BIND_SERVICE",
        _ => "choose another address",
    };
    Trouble::new(format!("cannot listen on {address}: {error}"), remedy)
}

fn load(certificate: &Certificate) -> Result<String, Trouble> {
    let Certificate { chain, key } = certificate;
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(chain).and_then(Iterator::collect).map_err(|error| {
            Trouble::new(format!("{}: {error}", chain.display()), "name a PEM file of certificates")
        })?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        Trouble::new(format!("{}: {error}", key.display()), "name a PEM file of a private key")
    })?;
    CertifiedKey::from_der(certificates, private, &aws_lc_rs::default_provider())
        .map(|_| format!("{} and {} belong together", chain.display(), key.display()))
        .map_err(|error| Trouble::new(error.to_string(), "name the key that the certificate was made for"))
}

async fn ask_version(binary: &Path) -> Result<String, Trouble> {
    let install = "install `chromium-headless-shell`, or set `pool.process.binary` to a browser";
    let trouble =
        |problem: &dyn std::fmt::Display| Trouble::new(format!("{}: {problem}", binary.display()), install);
    if is_script(binary).map_err(|error| trouble(&error))? {
        return Err(Trouble::new(
            format!("{} is a script: ending it would leave the browser running", binary.display()),
            "set `pool.process.binary` to the program that it starts, like /usr/lib/chromium/chromium",
        ));
    }
    let asked =
        process::Command::new(binary).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let answer = timeout(VERSION_TIMEOUT, asked)
        .await
        .map_err(|_| trouble(&"does not answer `--version`"))?
        .map_err(|error| trouble(&error))?;
    if !answer.status.success() {
        return Err(trouble(&format_args!("`--version` ends with {}", answer.status)));
    }
    Ok(format!("{}: {}", binary.display(), String::from_utf8_lossy(&answer.stdout).trim()))
}

fn is_script(binary: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(fs::canonicalize(binary)?)?.take(2).read_to_end(&mut start)?;
    Ok(start == b"#!")
}

async fn connect(endpoint: &Endpoint) -> Result<String, Trouble> {
    let host = endpoint.host().trim_start_matches('[').trim_end_matches(']');
    let connected = timeout(ENDPOINT_TIMEOUT, TcpStream::connect((host, endpoint.port()))).await;
    let problem = match connected {
        Ok(Ok(_)) => return Ok(format!("{endpoint} answers")),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", ENDPOINT_TIMEOUT.as_secs()),
    };
    Err(Trouble::new(
        format!("{endpoint}: {problem}"),
        "start the browser there, with `--remote-debugging-port`, or take the endpoint out",
    ))
}
