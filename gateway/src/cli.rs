//! The command line: `serve`, `check`, and the operator's work on customers, keys, usage and the audit log.
//!
//! Everything but `serve` works on the store directly, whether a server runs or not. Results go to stdout, with `--json`
//! as one document; errors go to stderr with what to do next. Exit codes: 0 done, 64 the command or a setting is wrong,
//! 1 it failed.

mod archive;
mod audit;
mod backup;
mod check;
mod customer;
mod events;
mod export;
mod key;
mod migrate;
mod output;
mod reconcile;
mod store;
mod usage;
mod webhook;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use billing::{AccountId, CommandId, EMAIL_MAX, KeyId, LABEL_MAX, Micros, WebhookId};
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Environment, Mistakes};

use self::output::{Failure, Output};

/// `EX_USAGE` of sysexits.h.
const EXIT_USAGE: u8 = 64;

/// What the arguments ask for.
#[derive(Debug)]
pub enum Invocation {
    Serve(Serve),
    Command(Command),
}

/// `ufbrowsers serve`, ready to be built.
#[derive(Debug)]
pub struct Serve {
    pub config: Config,
    /// Where the real addresses are written once the server can serve.
    pub ready_file: Option<PathBuf>,
    /// Whether the doors are taken over from the gateway that runs on the same data directory.
    pub takeover: bool,
}

/// Any other command.
#[derive(Debug)]
pub struct Command {
    action: Action,
    json: bool,
    config: Result<Config, Mistakes>,
}

/// Parses the arguments, the first of which is the program's name, and reads the settings.
///
/// # Errors
///
/// The code to exit with, after `--help`, or after what is wrong was written to stderr.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: &impl Environment,
) -> Result<Invocation, ExitCode> {
    let arguments = Arguments::try_parse_from(args).map_err(|error| {
        // Help that nobody reads to its end is no failure.
        let _ = error.print();
        if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
    })?;
    let config = Config::load(arguments.config.as_deref(), env, &arguments.set);
    let (action, json) = match arguments.verb {
        Verb::Serve { ready_file, takeover } => {
            let config = config.map_err(|mistakes| Failure::from(mistakes).report())?;
            return Ok(Invocation::Serve(Serve { config, ready_file, takeover }));
        }
        Verb::Check { format } => (Action::Check, format.json),
        Verb::Customer { action, format } => (Action::Customer(action), format.json),
        Verb::Key { action, format } => (Action::Key(action), format.json),
        Verb::Usage { customer, by, last, format } => (Action::Usage { customer, by, last }, format.json),
        Verb::Audit { customer, events: true, format, .. } => {
            (Action::Events { customer, what: events::What::Told }, format.json)
        }
        Verb::Audit { customer, after, export, events: false, format } => {
            let action = match export {
                Some(file) => Action::Export { customer, file },
                None => Action::Audit { customer: customer.expect("clap wants one or --export"), after },
            };
            (action, format.json)
        }
        Verb::Webhook { action, format } => (Action::Webhook(action), format.json),
        Verb::Events { customer, dead, retry, format } => {
            let what = match retry {
                Some(delivery) => events::What::Retry(delivery),
                None if dead => events::What::Dead,
                None => events::What::Told,
            };
            (Action::Events { customer, what }, format.json)
        }
        Verb::Store { action, format } => (Action::Store(action), format.json),
        Verb::Archive { action, format } => (Action::Archive(action), format.json),
        Verb::Reconcile { month, csv, archives, json } => (Action::Reconcile { month, csv, archives }, json),
    };
    Ok(Invocation::Command(Command { action, json, config }))
}

impl Command {
    /// Does what was asked for and prints the result. A command that is dropped half-way may have changed the ledger
    /// already; only `customer credit` with a `--command-id` may be repeated without looking.
    pub async fn run(self) -> ExitCode {
        let mut output = Output::new(io::stdout().lock(), self.json);
        match self.run_on(&mut output).await.and_then(|()| Ok(output.flush()?)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        }
    }

    async fn run_on(self, output: &mut Output<impl io::Write>) -> Result<(), Failure> {
        match (self.action, self.config) {
            (Action::Check, config) => check::run(config, output).await,
            (_, Err(mistakes)) => Err(mistakes.into()),
            (Action::Customer(action), Ok(config)) => customer::run(action, &config, output).await,
            (Action::Key(action), Ok(config)) => key::run(action, &config, output).await,
            (Action::Audit { customer, after }, Ok(config)) => {
                audit::run(&customer, after, &config, output).await
            }
            (Action::Export { customer, file }, Ok(config)) => {
                audit::export(customer.as_ref(), &file, &config, output).await
            }
            (Action::Usage { customer, by, last }, Ok(config)) => {
                usage::run(&customer, by, last, &config, output).await
            }
            (Action::Webhook(action), Ok(config)) => webhook::run(action, &config, output).await,
            (Action::Events { customer, what }, Ok(config)) => {
                events::run(what, customer.as_ref(), &config, output).await
            }
            (Action::Store(StoreAction::Backup { file }), Ok(config)) => {
                backup::run(&file, &config, output).await
            }
            (Action::Store(StoreAction::Migrate { from, to }), Ok(config)) => {
                migrate::run(&from, &to, &config, output).await
            }
            (Action::Archive(ArchiveAction::Seal { customer, until, into }), Ok(config)) => {
                archive::seal(customer.as_ref(), until, &into, &config, output).await
            }
            (Action::Archive(ArchiveAction::Verify { files }), Ok(config)) => {
                archive::verify(&files, &config, output).await
            }
            (Action::Reconcile { month, csv, archives }, Ok(config)) => {
                reconcile::run(month, csv, &archives, &config, output).await
            }
        }
    }
}

#[derive(Debug)]
enum Action {
    Check,
    Customer(CustomerAction),
    Key(KeyAction),
    Audit { customer: AccountId, after: u64 },
    Export { customer: Option<AccountId>, file: PathBuf },
    Usage { customer: AccountId, by: usage::By, last: u32 },
    Webhook(WebhookAction),
    Events { customer: Option<AccountId>, what: events::What },
    Store(StoreAction),
    Archive(ArchiveAction),
    Reconcile { month: reconcile::Month, csv: bool, archives: Vec<PathBuf> },
}

/// Browsers that are already running, behind one wss:// URL, billed exactly.
#[derive(Debug, Parser)]
#[command(name = "ufbrowsers", version)]
struct Arguments {
    /// The settings' file, in TOML.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting; wins over the environment (UFB_SECTION_KEY) and the file. May be repeated. Everybody on the machine can see
    /// it: a password goes into one of those two.
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the gateway.
    Serve {
        /// Write the real addresses there, as JSON, once the gateway can serve.
        #[arg(long, value_name = "FILE")]
        ready_file: Option<PathBuf>,
        /// Take the doors over from the gateway that runs on the same data directory, if one does; it then drains.
        #[arg(long)]
        takeover: bool,
    },
    /// Read all settings, report every mistake, and try what they point at.
    Check {
        #[command(flatten)]
        format: Format,
    },
    /// Customers and their money.
    Customer {
        #[command(flatten)]
        format: Format,
        #[command(subcommand)]
        action: CustomerAction,
    },
    /// Customers' API keys.
    Key {
        #[command(flatten)]
        format: Format,
        #[command(subcommand)]
        action: KeyAction,
    },
    /// What a customer's sessions came to. Each counts where it ended.
    Usage {
        customer: AccountId,
        /// How the figures are told apart. Hours and days are kept for 62 days, months for ever.
        #[arg(long, value_enum, default_value_t = usage::By::Month)]
        by: usage::By,
        /// How many periods, up to and with the one that is now.
        #[arg(long, value_name = "N", default_value_t = 13, value_parser = clap::value_parser!(u32).range(1..))]
        last: u32,
        #[command(flatten)]
        format: Format,
    },
    /// A customer's audit log, and whether it is intact.
    Audit {
        #[arg(required_unless_present_any = ["export", "events"])]
        customer: Option<AccountId>,
        /// Only the entries after this one.
        #[arg(long, value_name = "SEQ", default_value_t = 0, value_parser = entry, allow_negative_numbers = true)]
        after: u64,
        /// Write the customer's log, or those of all, into a new file, an entry a line.
        #[arg(long, value_name = "FILE", conflicts_with = "after")]
        export: Option<PathBuf>,
        /// The events that were told of the customer, or of all, instead.
        #[arg(long, conflicts_with_all = ["after", "export"])]
        events: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Where customers are told of their events.
    Webhook {
        #[command(flatten)]
        format: Format,
        #[command(subcommand)]
        action: WebhookAction,
    },
    /// The older part of the audit logs, in files.
    Archive {
        #[command(flatten)]
        format: Format,
        #[command(subcommand)]
        action: ArchiveAction,
    },
    /// What was told of all customers, or of one.
    Events {
        customer: Option<AccountId>,
        /// The deliveries that have failed too often, instead.
        #[arg(long)]
        dead: bool,
        /// Try a delivery again that has failed too often; `all` for all of them.
        #[arg(long, value_name = "DELIVERY", conflicts_with = "dead")]
        retry: Option<String>,
        #[command(flatten)]
        format: Format,
    },
    /// Where everything is kept.
    Store {
        #[command(flatten)]
        format: Format,
        #[command(subcommand)]
        action: StoreAction,
    },
    /// Every customer's month by the audit log alone, and where the running totals differ.
    Reconcile {
        /// A calendar month, UTC.
        #[arg(long, value_name = "YYYY-MM")]
        month: reconcile::Month,
        /// Archives of what was sealed of the logs. May be repeated.
        #[arg(long = "archive", value_name = "FILE")]
        archives: Vec<PathBuf>,
        /// Print lines of comma-separated values.
        #[arg(long, conflicts_with = "json")]
        csv: bool,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Format {
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum CustomerAction {
    /// Open an account and print its first API key.
    Create {
        #[arg(long, value_parser = email)]
        email: String,
        /// The name of a plan: starter, professional, enterprise, or one of your own.
        #[arg(long)]
        plan: String,
        /// Make a prepaid account with this balance, in micro-dollars.
        #[arg(long, value_name = "MICROS", value_parser = micros, allow_negative_numbers = true)]
        prepaid: Option<Micros>,
        /// The account's id; random where it is left out.
        #[arg(long)]
        id: Option<AccountId>,
    },
    /// All customers.
    List,
    /// One customer: money, keys, the latest sessions.
    Show { id: AccountId },
    /// Add to a customer's balance.
    Credit {
        id: AccountId,
        /// In micro-dollars: 1000000 is one dollar.
        #[arg(value_name = "MICROS", value_parser = micros, allow_negative_numbers = true)]
        amount: Micros,
        /// Names this credit, so that repeating it changes nothing.
        #[arg(long, value_name = "ID")]
        command_id: Option<CommandId>,
    },
    /// Set below which balance the customer is told that it is low (customer:low-balance).
    LowBalance {
        id: AccountId,
        /// In micro-dollars; 0: never; `default`: the price of ten sessions.
        #[arg(value_name = "MICROS", value_parser = threshold, allow_negative_numbers = true)]
        below: Threshold,
    },
    /// Print all that is kept of a customer, as JSON. Hashes and secrets are left out.
    Export { id: AccountId },
    /// Remove a customer's address, keys, webhooks and session records. Money records stay, under its id.
    Erase {
        id: AccountId,
        /// Also where there is money on its balance, which is given up.
        #[arg(long)]
        forfeit: bool,
    },
    /// Refuse the customer's new sessions and end those that run.
    Suspend {
        id: AccountId,
        /// Let it start sessions again.
        #[arg(long)]
        lift: bool,
    },
}

#[derive(Debug, Subcommand)]
enum StoreAction {
    /// Copy a store that is a file into a new one, while gateways run, and prove the copy by replay.
    Backup { file: PathBuf },
    /// Move everything to an empty store, while no gateway runs, and prove by replay that it arrived.
    Migrate {
        /// `sqlite:PATH` or the URL of a Redis; or `@FILE`, which has it in it: a password among the arguments can be seen by
        /// everybody on the machine.
        from: migrate::Place,
        /// The same, without any customers.
        to: migrate::Place,
    },
}

#[derive(Debug, Subcommand)]
enum ArchiveAction {
    /// Move what was written up to the end of a month into files, and put an opening balance in its place. May be repeated.
    Seal {
        /// One customer; without it all of them.
        customer: Option<AccountId>,
        /// A calendar month, UTC: at the latest the third before the running one, which is the default.
        #[arg(long, value_name = "YYYY-MM")]
        until: Option<reconcile::Month>,
        /// The folder for the files; made where it is missing.
        #[arg(long, value_name = "FOLDER")]
        into: PathBuf,
    },
    /// Prove that archives and the logs behind them are intact, and lead to the accounts.
    Verify {
        /// All archives of one customer, or of several.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum KeyAction {
    /// Make a key and print it.
    Create {
        customer: AccountId,
        /// What the customer calls it.
        #[arg(long, default_value = "unnamed", value_parser = label)]
        label: String,
    },
    /// A customer's keys, without their secrets.
    List { customer: AccountId },
    /// Refuse a key from its next session on.
    Revoke { customer: AccountId, key: KeyId },
}

#[derive(Debug, Subcommand)]
enum WebhookAction {
    /// Make a webhook and print its secret.
    Create {
        customer: AccountId,
        #[arg(long)]
        url: String,
        /// An event that it is told of, like session:lost; may be repeated. All but session:started where it is left out.
        #[arg(long, value_name = "TYPE")]
        event: Vec<String>,
    },
    /// A customer's webhooks, without their secrets.
    List { customer: AccountId },
    /// Give a webhook another secret, used beside the one that it has for a day.
    Roll {
        customer: AccountId,
        webhook: WebhookId,
        /// Use the one that it has no more.
        #[arg(long)]
        at_once: bool,
    },
    /// Tell a webhook of nothing more.
    Remove { customer: AccountId, webhook: WebhookId },
}

fn setting(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("write it as SECTION.KEY=VALUE")?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

/// What no mail could be sent to is a slip. Whether it can be is for whoever sends it to see.
fn email(text: &str) -> Result<String, String> {
    let is_one = |(name, host): (&str, &str)| !name.is_empty() && !host.is_empty();
    let is_plain = !text.contains(|c: char| c.is_whitespace() || c.is_control());
    let fits = text.len() <= EMAIL_MAX && is_plain && text.rsplit_once('@').is_some_and(is_one);
    fits.then(|| text.to_owned())
        .ok_or_else(|| format!("write it like you@example.com, in {EMAIL_MAX} bytes at most"))
}

fn label(text: &str) -> Result<String, String> {
    let fits = (1..=LABEL_MAX).contains(&text.len()) && !text.contains(char::is_control);
    fits.then(|| text.to_owned()).ok_or_else(|| format!("give 1 to {LABEL_MAX} bytes of plain text"))
}

fn entry(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "give the number of an entry, like 100")
}

/// `None`: as it is for everybody.
#[derive(Debug, Clone, Copy)]
struct Threshold(Option<Micros>);

fn threshold(text: &str) -> Result<Threshold, String> {
    if text == "default" { Ok(Threshold(None)) } else { micros(text).map(|below| Threshold(Some(below))) }
}

fn micros(text: &str) -> Result<Micros, String> {
    text.parse()
        .ok()
        .map(Micros::new)
        .filter(|amount| *amount <= Micros::MAX)
        .ok_or_else(|| format!("give a whole number of micro-dollars up to {}", Micros::MAX.get()))
}
