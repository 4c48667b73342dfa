//! `store backup`: a copy of a store that is a file, proved by replay.

use std::io::Write;
use std::path::Path;

use billing::BackupError;
use serde_json::json;

use crate::config::Config;

use super::output::{Failure, Output};
use super::store;

pub(super) async fn run(
    file: &Path,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    store::exists(&config.store)?;
    let billing = store::open(config)?;
    let customers = billing.back_up(file).await.map_err(failed)?;
    let document = json!({ "file": file.display().to_string(), "customers": customers });
    let text = format!("{customers} customers are in {}; every log replays there.", file.display());
    Ok(output.print(&document, text)?)
}

fn failed(error: BackupError) -> Failure {
    let next = match error {
        BackupError::Store(error) => return error.into(),
        BackupError::NoFile => "let the Redis make a snapshot: `redis-cli --rdb FILE`",
        BackupError::File { .. } => {
            "nothing was written; name a file that does not exist, in a folder that does"
        }
        BackupError::Fault { .. } => "keep the store as it is and find out who wrote to it",
    };
    Failure::Failed(format!("{}; {next}", store::with_causes(&error)))
}
