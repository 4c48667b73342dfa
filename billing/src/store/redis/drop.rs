//! Records of sessions whose time is over.

use redis::{Value, cmd};

use super::{Redis, Space, surprise, texts};
use crate::id::AccountId;
use crate::store::lanes::LinkError;
use crate::time::Timestamp;

const DROP: &str = include_str!("drop.lua");

impl Redis {
    pub(super) async fn drop_ended(
        &self,
        account: &AccountId,
        before: Timestamp,
        most: u32,
    ) -> Result<u32, LinkError> {
        let (space, id) = (Space::of_account(account), account.as_str());
        let (by_time, before) = (space.of("sessions", id), before.as_millis());
        let range = [format!("({before}"), "LIMIT".to_owned(), "0".to_owned(), most.to_string()];
        let old = texts(self.ask(cmd("ZRANGEBYSCORE").arg(&by_time).arg("-inf").arg(&range)).await?)?;
        if old.is_empty() {
            return Ok(0);
        }
        let records = old.iter().map(|session| space.of("session", &format!("{id}:{session}")));
        let keys: Vec<_> = [by_time, space.of("open", id)].into_iter().chain(records).collect();
        let script = cmd("EVAL").arg(DROP).arg(keys.len()).arg(&keys).arg(before).arg(&old).take();
        match self.ask(&script).await? {
            Value::Int(dropped) => u32::try_from(dropped).map_err(|_| surprise()),
            _ => Err(surprise()),
        }
    }
}
