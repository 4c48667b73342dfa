//! The alert rules that ship with it: Prometheus takes them, they fire when they should, and whatever they watch is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tests::{Gateway, Request, StandIn, eventually};

#[tokio::test]
async fn every_metric_that_a_rule_watches_is_one_of_a_running_gateway() -> Result<()> {
    let rules = fs::read_to_string(deploy("alerts.yml"))?;
    let watched: BTreeSet<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).flat_map(names).collect();
    ensure!(watched.len() >= 9, "{watched:?}");
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 1).start().await?;
    // Some are counted every so often.
    eventually("all of them are exported", async || {
        let exported = gateway.ask_admin(Request::get("/metrics")).await?.text().await?;
        let exported: BTreeSet<_> = exported.lines().flat_map(|line| names(line).take(1)).collect();
        Ok(watched.is_subset(&exported))
    })
    .await
    .with_context(|| format!("{watched:?}"))
}

#[test]
fn the_rules_fire_when_they_should() -> Result<()> {
    promtool(&["check", "rules"], "alerts.yml")?;
    promtool(&["test", "rules"], "alerts_test.yml")
}

fn promtool(words: &[&str], file: &str) -> Result<()> {
    let output = Command::new("promtool")
        .args(words)
        .arg(deploy(file))
        .output()
        .context("promtool is installed (tests/run installs it)")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

/// The names of our metrics in a line.
fn names(line: &str) -> impl Iterator<Item = String> {
    let words = line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("ufb_")).map(str::to_owned).collect::<Vec<_>>().into_iter()
}
