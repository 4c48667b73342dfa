//! `ufbrowsers`: settings, then one command.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::Context;
use gateway::cli::{self, Invocation, Serve};
use gateway::config::ProcessEnvironment;
use gateway::serve;
use rustix::fs::Mode;
use rustix::process::umask;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    // The ledger has what tokens and webhooks are signed with, archives and exports have customers' figures, and a browser's
    // profile has what its customer did: all that is written is for this user alone.
    umask(Mode::RWXG | Mode::RWXO);
    let invocation = match cli::parse(std::env::args_os(), &ProcessEnvironment) {
        Ok(invocation) => invocation,
        Err(code) => return code,
    };
    // Everything but the sessions runs here: warming, metering, the operator's port.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a process that cannot make a reactor cannot do anything else");
    match invocation {
        Invocation::Command(command) => runtime.block_on(command.run()),
        Invocation::Serve(serve) => runtime.block_on(run(serve)),
    }
}

async fn run(serve: Serve) -> ExitCode {
    tracing_subscriber::registry()
        .with(fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr))
        .with(serve.config.log.clone())
        .init();
    match start(serve).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(serve: Serve) -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok()
        .context("another crypto provider is installed")?;
    serve::serve(serve).await
}
