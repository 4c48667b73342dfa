//! `customer create|list|show|credit|suspend`.

use std::io::Write;

use billing::{
    Account, AccountId, AccountType, Actor, Billing, CommandId, Error, Micros, NewCustomer, Secret, Session,
    State,
};
use serde_json::{Value, json};

use crate::config::Config;

use super::output::{Failure, Output, table};
use super::{CustomerAction, Threshold, export, key, store};

/// What a person takes in at a glance.
const SESSIONS_SHOWN: u32 = 20;

pub(super) async fn run(
    action: CustomerAction,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let billing = store::open(config)?;
    match action {
        CustomerAction::Create { email, plan, prepaid, id } => {
            create(&billing, NewCustomer { id, email, plan, prepaid }, config, output).await
        }
        CustomerAction::List => list(&billing, output).await,
        CustomerAction::Show { id } => show(&billing, &id, output).await,
        CustomerAction::Credit { id, amount, command_id } => {
            credit(&billing, &id, amount, command_id.unwrap_or_else(CommandId::random), output).await
        }
        CustomerAction::LowBalance { id, below: Threshold(below) } => {
            let account = billing.set_low_balance(&id, below, Actor::Operator, store::now()).await?;
            let words = match below {
                None => format!("{id} is told when its balance pays for fewer than ten sessions."),
                Some(Micros::ZERO) => format!("{id} is not told of a low balance."),
                Some(below) => format!("{id} is told when its balance is below {below}."),
            };
            Ok(output.print(&summary(&account), words)?)
        }
        CustomerAction::Export { id } => export::run(&billing, &id, output).await,
        CustomerAction::Erase { id, forfeit } => erase(&billing, &id, forfeit, output).await,
        CustomerAction::Suspend { id, lift } => suspend(&billing, &id, !lift, output).await,
    }
}

async fn create(
    billing: &Billing,
    new: NewCustomer,
    config: &Config,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    known_plan(&new.plan, config)?;
    let (account, secret) = billing.create_customer(new, Actor::Operator, store::now()).await?;
    let document = json!({ "customerId": account.id, "apiKey": secret.expose() });
    let Account { id, plan, balance, included, .. } = &account;
    let text = format!(
        "customer  {id}\nplan      {plan}, {}\nhas       {included} included sessions, balance {balance}\n{}\n\n{}",
        kind(&account),
        key::shown_once(&secret),
        how_to_connect(config, &secret)
    );
    Ok(output.print(&document, text)?)
}

fn known_plan(name: &str, config: &Config) -> Result<(), Failure> {
    if config.plans.get(name).is_some() {
        return Ok(());
    }
    let names: Vec<_> = config.plans.iter().map(|plan| plan.name.as_str()).collect();
    Err(Failure::Usage(format!("there is no plan `{name}`; choose one of {}", names.join(", "))))
}

fn how_to_connect(config: &Config, secret: &Secret) -> String {
    let (scheme, place) = match &config.edge.public_url {
        Some(url) => (if url.is_secure() { "wss" } else { "ws" }, url.authority().to_owned()),
        None => ("ws", config.edge.listen.to_string()),
    };
    format!(
        "Once `ufbrowsers serve` runs, Playwright connects with\n  chromium.connectOverCDP('{scheme}://{place}/?token={}')",
        secret.expose()
    )
}

async fn list(billing: &Billing, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let accounts = billing.accounts().await?;
    let document = json!({ "customers": accounts.iter().map(summary).collect::<Vec<_>>() });
    if accounts.is_empty() {
        let next =
            "There are no customers yet: `ufbrowsers customer create --email E --plan starter` makes one.";
        return Ok(output.print(&document, next)?);
    }
    let head = ["CUSTOMER", "EMAIL", "PLAN", "TYPE", "STATUS", "BALANCE", "INCLUDED", "RUNNING"];
    let rows: Vec<_> = accounts.iter().map(row).collect();
    Ok(output.print(&document, table(head, &rows))?)
}

fn row(account: &Account) -> [String; 8] {
    [
        account.id.to_string(),
        account.email.clone(),
        account.plan.clone(),
        kind(account).to_owned(),
        status(account).to_owned(),
        account.balance.to_string(),
        account.included.to_string(),
        account.open.to_string(),
    ]
}

async fn show(billing: &Billing, id: &AccountId, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let account = store::account(billing, id).await?;
    let sessions = billing.sessions(id, None, SESSIONS_SHOWN).await?;
    let mut document = summary(&account);
    document["keys"] = account.keys.iter().map(key::document).collect();
    document["sessions"] = sessions.iter().map(session_document).collect();
    let text =
        format!("{}\n\n{}\n\n{}", facts(&account), key::table_of(&account.keys), session_table(&sessions));
    Ok(output.print(&document, text)?)
}

fn facts(account: &Account) -> String {
    let renews = match &account.period {
        Some(period) if period.end <= store::now() => "with the next session".to_owned(),
        Some(period) => period.end.to_string(),
        None => "never".to_owned(),
    };
    let rows = [
        ("customer", account.id.to_string()),
        ("email", account.email.clone()),
        ("status", status(account).to_owned()),
        ("plan", account.plan.clone()),
        ("type", kind(account).to_owned()),
        ("created", account.created_at.to_string()),
        ("renews", renews),
        ("balance", account.balance.to_string()),
        ("included left", account.included.to_string()),
        ("retry credits", account.retry.to_string()),
        ("overage", account.overage.to_string()),
        ("low balance", account.low_balance.map_or("ten sessions".to_owned(), |below| below.to_string())),
        ("running", account.open.to_string()),
    ];
    rows.map(|(name, value)| format!("{name:14}{value}")).join("\n")
}

fn session_table(sessions: &[Session]) -> String {
    if sessions.is_empty() {
        return "No sessions yet.".to_owned();
    }
    let rows: Vec<_> = sessions
        .iter()
        .map(|session| {
            let seconds =
                duration_ms(session).map(|millis| format!("{}.{:03} s", millis / 1_000, millis % 1_000));
            [
                session.id.to_string(),
                session.held_at.to_string(),
                state(session.state).to_owned(),
                seconds.unwrap_or_default(),
                session.charged.to_string(),
                session.cause.clone().unwrap_or_default(),
                fate(session).to_owned(),
            ]
        })
        .collect();
    table(["SESSION", "STARTED", "STATE", "DURATION", "CHARGED", "CAUSE", ""], &rows)
}

fn fate(session: &Session) -> &'static str {
    match (session.lost, session.refunded) {
        (true, true) => "lost, refunded",
        (true, false) => "lost, past the day's refunds",
        (false, _) => "",
    }
}

async fn credit(
    billing: &Billing,
    id: &AccountId,
    amount: Micros,
    command: CommandId,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let credited = billing.credit(id, amount, command.clone(), Actor::Operator, store::now()).await;
    let account = credited.map_err(|error| match error {
        // Without the id a repeat would be another credit.
        Error::Store(error) => Failure::Failed(format!(
            "{}; whether {amount} was added is not known: repeat this with `--command-id {command}`, which adds it once",
            store::with_causes(&error)
        )),
        error => error.into(),
    })?;
    let mut document = summary(&account);
    document["commandId"] = json!(command);
    let text = format!("{id} has {} now; {amount} were added by the command {command}.", account.balance);
    Ok(output.print(&document, text)?)
}

async fn suspend(
    billing: &Billing,
    id: &AccountId,
    suspended: bool,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let account = billing.suspend(id, suspended, Actor::Operator, store::now()).await?;
    let text = if suspended {
        format!(
            "{id} starts no more sessions; the {} that run are ended within seconds. `ufbrowsers customer suspend {id} --lift` lifts it.",
            account.open
        )
    } else {
        format!("{id} may start sessions.")
    };
    Ok(output.print(&summary(&account), text)?)
}

async fn erase(
    billing: &Billing,
    id: &AccountId,
    forfeit: bool,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let account = billing.erase(id, forfeit, Actor::Operator, store::now()).await?;
    let text = format!(
        "{id} is erased: address, keys, webhooks and session records are gone; its audit log and usage by month stay. \
         Backups that were made before still have them."
    );
    Ok(output.print(&summary(&account), text)?)
}

/// An account without its keys and sessions.
pub(super) fn summary(account: &Account) -> Value {
    json!({
        "customerId": account.id,
        "email": account.email,
        "status": status(account),
        "plan": account.plan,
        "type": kind(account),
        "createdAt": account.created_at.to_string(),
        "periodStart": account.period.as_ref().map(|period| period.start.to_string()),
        "periodEnd": account.period.as_ref().map(|period| period.end.to_string()),
        "balance": account.balance.dollars(),
        "balanceMicros": account.balance,
        "includedLeft": account.included,
        "retryCredits": account.retry,
        "overage": account.overage.dollars(),
        "overageMicros": account.overage,
        "runningSessions": account.open,
        "lowBalanceMicros": account.low_balance,
    })
}

fn session_document(session: &Session) -> Value {
    json!({
        "sessionId": session.id,
        "keyId": session.key,
        "gatewayId": session.gateway,
        "state": state(session.state),
        "heldAt": session.held_at.to_string(),
        "startedAt": session.begun_at.map(|at| at.to_string()),
        "endedAt": session.ended_at.map(|at| at.to_string()),
        "duration": duration_ms(session),
        "minutes": session.minutes,
        "charged": session.charged.dollars(),
        "chargedMicros": session.charged,
        "upBytes": session.up_bytes,
        "downBytes": session.down_bytes,
        "cause": session.cause,
        "lost": session.lost,
        "refunded": session.refunded,
    })
}

/// Up to now where it still runs; none where it never began.
fn duration_ms(session: &Session) -> Option<u64> {
    let end = session.ended_at.unwrap_or_else(store::now);
    session.begun_at.map(|begun| end.as_millis().saturating_sub(begun.as_millis()))
}

fn status(account: &Account) -> &'static str {
    match account {
        Account { erased_at: Some(_), .. } => "erased",
        Account { suspended: true, .. } => "suspended",
        Account { .. } => "active",
    }
}

fn kind(account: &Account) -> &'static str {
    match account.kind {
        AccountType::Subscription => "subscription",
        AccountType::Prepaid => "prepaid",
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Held => "held",
        State::Open => "open",
        State::Posted => "posted",
        State::Voided => "voided",
    }
}
