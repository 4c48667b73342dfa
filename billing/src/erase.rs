//! A customer's data is erased. What is money stays under the account's id: the audit log, its archives, usage by month.
//! None of it has a personal field, so that nothing has to be taken out of a chain of hashes.

use crate::account::Account;
use crate::audit::Actor;
use crate::books::{Billing, Error};
use crate::id::AccountId;
use crate::ledger;
use crate::time::Timestamp;
use crate::webhook::WebhookError;

/// Later than any session.
const END_OF_TIME: Timestamp = Timestamp::from_millis(u64::MAX >> 11);

impl Billing {
    /// Erases the address, keys, webhooks and session records of an account, which starts no session any more. A repeat
    /// goes on with what is left. Waits for the disk.
    ///
    /// # Errors
    /// [`Refused::SessionsOpen`](crate::Refused::SessionsOpen); [`Refused::BalanceLeft`](crate::Refused::BalanceLeft) unless
    /// the balance is to be given up; [`Error::NoAccount`], or the store's.
    pub async fn erase(
        &self,
        id: &AccountId,
        forfeit: bool,
        actor: Actor,
        now: Timestamp,
    ) -> Result<Account, Error> {
        let before = self.account(id).await?.ok_or(Error::NoAccount)?;
        let erased = self
            .change_account(id, now, |account, given| ledger::erase(account, forfeit, &actor, given))
            .await?;
        self.drop_keys(&before, &erased).await?;
        for webhook in self.webhooks(id).await? {
            match self.drop_webhook(id, &webhook.id).await {
                // Another command may erase the same.
                Ok(()) | Err(WebhookError::NoWebhook) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.drop_records(id, END_OF_TIME).await?;
        Ok(erased)
    }
}
