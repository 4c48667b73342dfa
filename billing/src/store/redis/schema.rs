//! The version of all keys together.

use redis::cmd;

use super::{Redis, broken, text};
use crate::store::StoreError;
use crate::store::lanes::LinkError;

pub(super) const KEY: &str = "ufb:schema";

/// What this program reads and writes. Since 2 a log may begin with an opening balance, under a key of its own.
const VERSION: i64 = 2;

/// Writes the version down where there is none, or an earlier one: from 1 to 2 there is nothing to be moved. Answers what is
/// there then.
const PREPARE: &str = "
    local found = redis.call('GET', KEYS[1])
    if not found or tonumber(found) and tonumber(found) < tonumber(ARGV[1]) then
        redis.call('SET', KEYS[1], ARGV[1])
        return ARGV[1]
    end
    return found";

impl Redis {
    pub(super) async fn check_schema(&self) -> Result<(), LinkError> {
        let prepare = cmd("EVAL").arg(PREPARE).arg(1).arg(KEY).arg(VERSION).take();
        let found = text(self.connections.ask(&prepare).await?)?;
        let found = found.and_then(|found| found.parse().ok()).unwrap_or_default();
        if found == VERSION {
            return Ok(());
        }
        Err(broken(StoreError::Schema { found, known: VERSION }))
    }
}
