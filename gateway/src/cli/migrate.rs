//! `store migrate`: everything from one store to another, which is empty, proved by replay.

use std::convert::Infallible;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use billing::{Billing, InvalidStoreUrl, Limits, MoveError, StoreError, StoreUrl};
use serde_json::json;

use crate::config::Config;
use crate::serve;

use super::output::{Failure, Output};
use super::store;

/// Two heartbeats of a gateway, and some time.
const WATCH: Duration = Duration::from_secs(11);

/// A store as it was named: by its URL, or by a file that has it in it. Taken as it is, so that no complaint repeats it.
#[derive(Clone)]
pub(super) struct Place(String);

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

/// It may have a password.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place(…)")
    }
}

impl Place {
    /// `argument` is what it is called.
    fn url(&self, argument: &str) -> Result<StoreUrl, Failure> {
        let (text, place) = match self.0.strip_prefix('@') {
            Some(file) => (read(argument, file)?, format!("{argument}: in {file}: ")),
            None => (self.0.clone(), format!("{argument}: ")),
        };
        let wrong =
            |url: InvalidStoreUrl| Failure::Usage(format!("{place}that is no store; write it as {url}"));
        text.trim().parse().map_err(wrong)
    }
}

fn read(argument: &str, file: &str) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|error| {
        Failure::Usage(format!("{argument}: {file}: {error}; name a file that has the store's URL in it"))
    })
}

pub(super) async fn run(
    from: &Place,
    to: &Place,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let (from, to) = (&from.url("FROM")?, &to.url("TO")?);
    if from == to {
        return Err(Failure::Usage("both are the same store; name another one to move to".to_owned()));
    }
    store::exists(from)?;
    let _locks = lock_out_gateways([from, to], config)?;
    let limits = Limits { refunds_per_day: config.session.refunds_per_day };
    let fails = |url: &StoreUrl| {
        let url = url.to_string();
        move |error: StoreError| {
            Failure::Failed(format!("{url}: {}; nothing was moved", store::with_causes(&error)))
        }
    };
    let open = |url| Billing::open(url, config.plans.clone(), limits).map_err(fails(url));
    let (source, target) = (open(from)?, open(to)?);
    for (url, billing) in [(from, &source), (to, &target)] {
        if billing.is_shared() && billing.is_in_use(WATCH).await.map_err(fails(url))? {
            return Err(Failure::Failed(format!(
                "a gateway runs on {url}: stop it first; nothing was moved"
            )));
        }
    }
    let moved = source.move_to(&target).await.map_err(|error| failed(error, to))?;
    let document = json!({
        "from": from.to_string(),
        "to": to.to_string(),
        "customers": moved.accounts,
        "entries": moved.entries,
        "sessions": moved.sessions,
        "events": moved.events,
    });
    let text = format!(
        "{} customers, {} log entries, {} sessions and {} events are in {to}; every log replays there to the same figures. \
         Set `store.url` to it before a gateway starts. {from} is as it was.",
        moved.accounts, moved.entries, moved.sessions, moved.events
    );
    Ok(output.print(&document, text)?)
}

/// As long as these are held, no gateway starts on a store that is a file.
fn lock_out_gateways(urls: [&StoreUrl; 2], config: &Config) -> Result<Vec<File>, Failure> {
    let mut folders: Vec<_> = urls.into_iter().filter_map(|url| folder_of(url, config)).collect();
    folders.dedup();
    let lock = |folder: &PathBuf| serve::lock(folder).map_err(|error| Failure::Failed(format!("{error:#}")));
    folders.iter().map(lock).collect()
}

fn folder_of(url: &StoreUrl, config: &Config) -> Option<PathBuf> {
    match url {
        StoreUrl::Sqlite(_) if *url == config.store => Some(config.data_dir.clone()),
        StoreUrl::Sqlite(file) => {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            Some(folder.unwrap_or(Path::new(".")).to_owned())
        }
        StoreUrl::Redis(_) => None,
    }
}

fn failed(error: MoveError, to: &StoreUrl) -> Failure {
    let next = match error {
        MoveError::Store(error) => return error.into(),
        MoveError::NotEmpty => "nothing was moved; name a store without customers",
        MoveError::InUse | MoveError::Differs { .. } => "empty the target, stop all gateways, and try again",
        MoveError::Fault { .. } => {
            "the source's log is not intact: keep it as it is and find out who wrote to it"
        }
    };
    Failure::Failed(format!("moving to {to}: {error}; {next}"))
}
