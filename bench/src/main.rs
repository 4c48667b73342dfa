//! `ufbrowsers-bench`: what a gateway adds to a browser, measured from a client's side.
//!
//! Each measurement is one file and one subcommand. It checks its arguments, opens its targets, takes them in
//! turns so that a change of the machine's load meets all of them alike, and returns a report that prints as
//! tables or, with `--json`, as one document. Everything runs on one thread, so that the client stays cheap
//! beside what it measures.

mod connect;
mod roundtrip;
mod throughput;
mod hold;
mod storm;
mod script;
mod claim;
mod admit;
mod holds;
mod seal;
mod instructions;
mod create;
mod compare;
mod scene;
mod fake;
mod client;
mod frames;
mod target;
mod tls;
mod head;
mod process;
mod duration;
mod size;
mod report;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::{Measurement, Method, Output, Report};
use target::Mistakes;

/// Something was measured, but not all of it succeeded; or nothing could be measured.
const FAILED: u8 = 1;
/// The arguments are wrong; the same status that clap uses.
const USAGE: u8 = 2;

/// Measures what a browser gateway costs, against a direct connection and against other proxies.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Connect(connect::Args),
    Roundtrip(roundtrip::Args),
    Throughput(throughput::Args),
    Hold(hold::Args),
    Storm(storm::Args),
    Script(script::Args),
    Claim(claim::Args),
    Admit(admit::Args),
    Holds(holds::Args),
    Seal(seal::Args),
    Instructions(instructions::Args),
    Create(create::Args),
    Compare(compare::Args),
    Fake(fake::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(status) => status,
        Err(error) => {
            // Nothing is left to tell the error to when stderr is gone.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::from(if error.is::<Mistakes>() { USAGE } else { FAILED })
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let method = Method::of_this_machine()?;
    match command {
        Command::Connect(args) => show(method, &args.measure.output.clone(), connect::run(args).await?),
        Command::Roundtrip(args) => show(method, &args.measure.output.clone(), roundtrip::run(args).await?),
        Command::Throughput(args) => show(method, &args.measure.output.clone(), throughput::run(args).await?),
        Command::Hold(args) => show(method, &args.measure.output.clone(), hold::run(args).await?),
        Command::Storm(args) => show(method, &args.measure.output.clone(), storm::run(args).await?),
        Command::Script(args) => show(method, &args.measure.output.clone(), script::run(args).await?),
        Command::Claim(args) => show(method, &args.output.clone(), claim::run(args).await?),
        Command::Admit(args) => show(method, &args.output.clone(), admit::run(args).await?),
        Command::Holds(args) => show(method, &args.output.clone(), holds::run(args).await?),
        Command::Seal(args) => show(method, &args.output.clone(), seal::run(args).await?),
        Command::Instructions(args) => {
            let output = Output { json: args.json, plot: None };
            show(method, &output, instructions::run(args).await?)
        }
        Command::Compare(args) => {
            let output = Output { json: args.json, plot: None };
            show(method, &output, compare::run(args).await?)
        }
        Command::Create(args) => show(method, &args.output.clone(), create::run(args).await?),
        Command::Fake(args) => {
            fake::run(args).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn show<R: Report>(method: Method, output: &Output, report: R) -> anyhow::Result<ExitCode> {
    let measured = Measurement::new(method, report);
    output.show(&measured)?;
    Ok(if measured.report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
