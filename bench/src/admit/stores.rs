//! The stores that are compared: those that were named, or new ones that are gone afterwards.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use billing::StoreUrl;

use crate::scene::{Stage, free_address};
use crate::target::Mistakes;

/// Looks at whether a replica follows, 20 ms apart.
const FOLLOWS: u32 = 500;

pub(crate) struct Stores {
    /// By name.
    pub(crate) urls: Vec<(String, StoreUrl)>,
    /// What was started and made for them.
    _stage: Stage,
}

impl Stores {
    pub(crate) async fn open(named: &[String], start_redis: bool, replica: bool) -> Result<Self> {
        let mut stage = Stage::new()?;
        let mut urls = parse_all(named)?;
        if urls.is_empty() {
            let file = format!("sqlite:{}", stage.path("ledger.db").display());
            urls.push(("embedded".to_owned(), file.parse()?));
        }
        if start_redis {
            let url = redis(&mut stage).await?;
            urls.push(("redis".to_owned(), url.clone()));
            if replica {
                follow(&mut stage, &url).await?;
                urls.push(("redis, WAIT 1".to_owned(), url.with_replicas(1)?));
            }
        }
        Ok(Self { urls, _stage: stage })
    }

    /// The one that was named, or a Redis that is started.
    pub(crate) async fn open_redis(named: &[String]) -> Result<Self> {
        let mut stage = Stage::new()?;
        let mut urls = parse_all(named)?;
        if urls.is_empty() {
            urls.push(("redis".to_owned(), redis(&mut stage).await?));
        }
        Ok(Self { urls, _stage: stage })
    }
}

fn parse_all(named: &[String]) -> Result<Vec<(String, StoreUrl)>, Mistakes> {
    let (parsed, mistakes): (Vec<_>, Vec<_>) = named.iter().map(|text| parse(text)).partition(Result::is_ok);
    let mistakes: Vec<String> = mistakes.into_iter().filter_map(Result::err).collect();
    if mistakes.is_empty() {
        Ok(parsed.into_iter().filter_map(Result::ok).collect())
    } else {
        Err(Mistakes::of(mistakes))
    }
}

/// The mistake never repeats the URL: it may hold a password.
fn parse(text: &str) -> Result<(String, StoreUrl), String> {
    let expected = "expected NAME=URL, such as redis=redis://127.0.0.1:6379";
    let (name, url) = text.split_once('=').ok_or_else(|| format!("--store: {expected}"))?;
    if name.is_empty() || name.contains([':', '/']) {
        return Err(format!("--store: {expected}"));
    }
    let url = url.parse().map_err(|error| format!("--store {name}: {error}; {expected}"))?;
    if let StoreUrl::Sqlite(file) = &url
        && file.exists()
    {
        // A gateway that runs on it would have its sessions settled.
        return Err(format!("--store {name}: {} exists; name a file that does not", file.display()));
    }
    Ok((name.to_owned(), url))
}

/// Starts a replica, and waits until it follows.
async fn follow(stage: &mut Stage, master: &StoreUrl) -> Result<()> {
    let (own, master) = (free_address()?, master.to_string());
    let port = master.rsplit(':').next().unwrap_or_default();
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &own.port().to_string(), "--save", ""]);
    command.args(["--appendonly", "yes", "--dbfilename", "replica.rdb", "--appenddirname", "replica"]);
    command.args(["--replicaof", "127.0.0.1", port]).current_dir(stage.path(""));
    stage.start("replica", &mut command)?;
    stage.accepts(own).await?;
    for _ in 0..FOLLOWS {
        let port = own.port().to_string();
        let role = Command::new("redis-cli").args(["-p", &port, "ROLE"]).output()?;
        if String::from_utf8_lossy(&role.stdout).contains("connected") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("the replica does not follow")
}

/// As README recommends it.
async fn redis(stage: &mut Stage) -> Result<StoreUrl> {
    let address = free_address()?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "everysec"]).current_dir(stage.path(""));
    stage.start("redis-server", &mut command)?;
    stage.accepts(address).await?;
    Ok(format!("redis://{address}").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_a_name_and_a_mistake_hides_its_password() {
        assert_eq!(parse("one=sqlite:a.db").unwrap().0, "one");
        let exists = parse("one=sqlite:/proc/version").unwrap_err();
        assert!(exists.contains("exists"), "{exists}");
        for wrong in ["redis://:secret@h/", "=redis://:secret@h/", "a=ftp://:secret@h/"] {
            let mistake = parse(wrong).unwrap_err();
            assert!(mistake.contains("--store") && !mistake.contains("secret"), "{mistake}");
        }
    }
}
