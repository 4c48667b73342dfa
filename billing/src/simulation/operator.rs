//! Operators, who outlive everybody, and whose commands come from other processes, several at a time, and again until they are answered.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::book::Book;
use super::gateway::billing_of;
use super::scene::{Business, Errand, SEALED, SEALING};
use super::world::{Life, World, lock};
use crate::audit::Actor;
use crate::books::{Billing, Error};
use crate::money::Micros;
use crate::seal::SealError;
use crate::time::Period;

const PAUSE: Duration = Duration::from_millis(700);

/// Runs all errands, each at its time, by turns in two processes.
pub(super) fn send(world: &Arc<World>, book: &Arc<Mutex<Book>>, errands: &[Errand], skews: [i64; 2]) {
    let lives =
        [("op1", skews[0]), ("op2", skews[1])].map(|(name, skew)| Life::new(world, name, skew, false));
    let billings = lives.each_ref().map(|life| billing_of(world, life));
    for (number, errand) in errands.iter().enumerate() {
        let (life, billing) = (Arc::clone(&lives[number % 2]), billings[number % 2].clone());
        let (world, book, errand) = (Arc::clone(world), Arc::clone(book), errand.clone());
        lock(&book).errands.insert(number);
        lives[number % 2].spawn(async move {
            sleep(Duration::from_millis(errand.at)).await;
            run(&world, &life, &billing, &errand).await;
            if let Business::Credit(command, micros) = errand.what {
                lock(&book).credits.insert((errand.account.clone(), command), Micros::new(micros));
            }
            lock(&book).errands.remove(&number);
        });
    }
}

async fn run(world: &World, life: &Life, billing: &Billing, errand: &Errand) {
    loop {
        match timeout(world.patience(), attempt(world, life, billing, errand)).await {
            Ok(Err(Error::Store(_))) | Err(_) => sleep(PAUSE).await,
            Ok(Ok(())) => return life.note(|| format!("has done {errand:?}")),
            Ok(Err(error)) => return world.find_fault(format!("{errand:?}: {error}")),
        }
    }
}

async fn attempt(world: &World, life: &Life, billing: &Billing, errand: &Errand) -> Result<(), Error> {
    let (account, now) = (&errand.account, life.now());
    match errand.what {
        Business::Credit(number, micros) => {
            let command = format!("c{number}").parse().expect("it is an id");
            billing.credit(account, Micros::new(micros), command, Actor::Operator, now).await.map(drop)
        }
        Business::Suspend(suspended) => {
            billing.suspend(account, suspended, Actor::Operator, now).await.map(drop)
        }
        Business::RevokeSecondKey => {
            let known = billing.account(account).await?.ok_or(Error::NoAccount)?;
            billing.revoke_key(account, &known.keys[1].id, Actor::Operator, now).await.map(drop)
        }
        Business::Seal => {
            let (month, by) = (Period::calendar_month(SEALED), (Actor::Operator, SEALING));
            match billing.seal(account, month, world.archives(), by).await {
                Ok(_) => Ok(()),
                Err(SealError::Store(error)) => Err(error.into()),
                Err(error) => {
                    world.find_fault(format!("{account} cannot be sealed: {error}"));
                    Ok(())
                }
            }
        }
        // In the middle of all that goes on, too.
        Business::Verify => billing.verify(account).await.map(drop),
    }
}
