//! The process that runs Playwright: one for the whole run, spoken to line by line.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::Args;
use crate::target::{Endpoint, Mistakes};

const SOURCE: &str = include_str!("session.mjs");
/// Connect, page, load and screenshot may each take as long as a step may.
const STEPS: u32 = 5;

pub(super) struct Client {
    /// Killed when dropped.
    _node: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    timeout: Duration,
}

/// One session that went well.
#[derive(Debug, PartialEq)]
pub(super) struct Session {
    pub(super) connect: Duration,
    pub(super) page: Duration,
    pub(super) load: Duration,
    pub(super) screenshot: Duration,
    pub(super) product: String,
}

impl Client {
    pub(super) fn start(args: &Args) -> Result<Self> {
        if let Some(mistake) = missing(&args.playwright) {
            return Err(Mistakes::of(vec![mistake]).into());
        }
        let mut node = command(&args.playwright, args.measure.ca(), args.measure.is_insecure())
            .spawn()
            .context("node cannot be started: apt-get install nodejs")?;
        let input = node.stdin.take().context("its input is a pipe")?;
        let output = BufReader::new(node.stdout.take().context("its output is a pipe")?).lines();
        Ok(Self { _node: node, input, output, timeout: args.measure.timeout })
    }

    /// One session, or why there was none. An error: the process itself failed.
    pub(super) async fn session(&mut self, endpoint: &Endpoint) -> Result<Result<Session, String>> {
        let request = json!({ "url": endpoint.uri.to_string(), "timeout": self.timeout.as_millis() });
        self.input.write_all(format!("{request}\n").as_bytes()).await.context("node ended")?;
        match timeout(self.timeout * STEPS, self.output.next_line()).await {
            Ok(line) => parse(&line?.ok_or_else(|| anyhow!("node ended; its words are above"))?),
            Err(_) => bail!("target {}: Playwright did not come to an end", endpoint.name),
        }
    }
}

/// What is wrong with the directory that --playwright names.
pub(crate) fn missing(playwright: &Path) -> Option<String> {
    let what = "node_modules/playwright-core is not there; run `npm ci` in that directory";
    let there = playwright.join("node_modules/playwright-core").is_dir();
    (!there).then(|| format!("--playwright {}: {what}", playwright.display()))
}

fn command(playwright: &Path, ca: Option<&Path>, insecure: bool) -> Command {
    let mut node = Command::new("node");
    node.args(["--input-type=module", "--no-warnings", "-e", SOURCE, "--"]).arg(playwright);
    node.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    if let Some(ca) = ca {
        node.env("NODE_EXTRA_CA_CERTS", ca);
    }
    if insecure {
        node.env("NODE_TLS_REJECT_UNAUTHORIZED", "0");
    }
    node
}

fn parse(line: &str) -> Result<Result<Session, String>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Line {
        Done { connect: f64, page: f64, load: f64, screenshot: f64, product: String },
        Failed { error: String },
    }
    let milliseconds = |number: f64| Duration::try_from_secs_f64(number / 1e3);
    Ok(match serde_json::from_str(line).with_context(|| format!("node printed {line:?}"))? {
        Line::Failed { error } => Err(error),
        Line::Done { connect, page, load, screenshot, product } => Ok(Session {
            connect: milliseconds(connect)?,
            page: milliseconds(page)?,
            load: milliseconds(load)?,
            screenshot: milliseconds(screenshot)?,
            product,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_session_or_says_why_there_is_none() {
        let line = r#"{"connect":1.5,"page":2,"load":3,"screenshot":4,"product":"1.2"}"#;
        let session = parse(line).unwrap().unwrap();
        assert_eq!((session.connect, session.product.as_str()), (Duration::from_micros(1500), "1.2"));
        assert_eq!(parse(r#"{"error":"no"}"#).unwrap(), Err("no".to_owned()));
        for wrong in ["", "{}", r#"{"connect":-1,"page":2,"load":3,"screenshot":4,"product":""}"#] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
