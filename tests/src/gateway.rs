//! The gateway, as a process that can be killed and started again.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Pid, Running};
use crate::{Account, Cdp, Customer, Refusal, Request, Response, StandIn, eventually};

const READY_FILE: &str = "ready.json";
const LOG_FILE: &str = "output.log";
/// Where the browsers are looked for, and the commands that they and the gateway run.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Where a gateway listens, as its ready file tells.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Doors {
    http: SocketAddr,
    https: SocketAddr,
    admin: SocketAddr,
}

/// Where customers come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Plain,
    Tls,
}

/// How the next gateway differs from one with real Chromium, one warm browser and two at most.
#[derive(Debug)]
pub struct Builder {
    settings: Vec<(String, String)>,
}

impl Builder {
    /// Any setting, by its name in the environment without `UFB_`.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((format!("UFB_{name}"), value.to_string()));
        self
    }

    /// Any other variable of its environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Takes its browsers from `browser`, `sessions` at a time.
    #[must_use]
    pub fn fixed(self, browser: &StandIn, sessions: u32) -> Self {
        self.set("POOL_PROVIDER", "fixed")
            .set("POOL_FIXED_ENDPOINTS", browser.endpoint())
            .set("POOL_FIXED_SESSIONS_PER_ENDPOINT", sessions)
            .set("POOL_MIN_IDLE", sessions)
            .set("POOL_MAX_IDLE", sessions)
    }

    /// # Errors
    ///
    /// It did not start; its log says why.
    pub async fn start(self) -> Result<Gateway> {
        let directory = tempfile::tempdir()?;
        let (running, doors) = serve(directory.path(), &self.settings).await?;
        Ok(Gateway { settings: self.settings, running, doors, directory })
    }
}

/// A gateway of one's own. All that it keeps is in a directory that is removed at the end.
#[derive(Debug)]
pub struct Gateway {
    settings: Vec<(String, String)>,
    running: Running,
    doors: Doors,
    directory: TempDir,
}

impl Gateway {
    #[must_use]
    pub fn builder() -> Builder {
        Builder { settings: Vec::new() }
            .set("EDGE_LISTEN", "127.0.0.1:0")
            .set("EDGE_TLS_LISTEN", "127.0.0.1:0")
            .set("ADMIN_LISTEN", "127.0.0.1:0")
            .set("LOG_LEVEL", "debug")
            .set("POOL_MIN_IDLE", 1)
            .set("POOL_MAX_IDLE", 2)
    }

    /// A gateway with real Chromium.
    ///
    /// # Errors
    ///
    /// It did not start; its log says why.
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    /// Kills the gateway without a chance to tidy up. What it started is left to itself.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn kill(&mut self) -> Result<()> {
        self.running.kill()
    }

    /// Asks the gateway to stop, as an operator does.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn terminate(&self) -> Result<()> {
        self.running.pid()?.signal(Signal::TERM)
    }

    /// Waits for the end of the gateway; none where a signal ended it.
    ///
    /// # Errors
    ///
    /// It goes on.
    pub async fn exit_code(&mut self) -> Result<Option<i32>> {
        eventually("the gateway has ended", async || self.running.has_ended()).await?;
        self.running.exit_code()
    }

    /// Tries to start a second gateway on the same directory. What it said before it gave up.
    ///
    /// # Errors
    ///
    /// It started.
    pub async fn start_another(&self) -> Result<String> {
        match serve(self.directory.path(), &self.settings).await {
            Ok(_) => bail!("it started"),
            Err(words) => Ok(format!("{words:#}")),
        }
    }

    /// Starts the gateway again after [`Gateway::kill`], in the same directory, on other ports.
    ///
    /// # Errors
    ///
    /// It did not start; its log says why.
    pub async fn start_again(&mut self) -> Result<()> {
        (self.running, self.doors) = serve(self.directory.path(), &self.settings).await?;
        Ok(())
    }

    /// Starts a new gateway that takes the doors over from this one, in the same directory and on the same ports. The
    /// answer is the old one, which drains.
    ///
    /// # Errors
    ///
    /// It did not start; its log says why.
    pub async fn take_over(&mut self) -> Result<Running> {
        let mut command = self.program()?;
        command.args(["serve", "--takeover"]);
        let (running, doors) = start_and_wait(&mut command, self.directory.path()).await?;
        self.doors = doors;
        Ok(std::mem::replace(&mut self.running, running))
    }

    /// Where it keeps everything.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Makes a customer with a subscription on `plan`.
    ///
    /// # Errors
    ///
    /// The command failed.
    pub async fn customer(&self, plan: &str) -> Result<Customer> {
        let arguments = ["customer", "create", "--email", "you@example.com", "--plan", plan];
        Customer::new(&self.command(&arguments).await?)
    }

    /// Makes a customer with the limits of `plan` and a balance of so many micro-dollars, which it spends down.
    ///
    /// # Errors
    ///
    /// The command failed.
    pub async fn prepaid_customer(&self, plan: &str, micros: u64) -> Result<Customer> {
        let micros = micros.to_string();
        let arguments =
            ["customer", "create", "--email", "you@example.com", "--plan", plan, "--prepaid", &micros];
        Customer::new(&self.command(&arguments).await?)
    }

    /// # Errors
    ///
    /// The command failed.
    pub async fn account(&self, customer: &Customer) -> Result<Account> {
        Ok(serde_json::from_value(self.command(&["customer", "show", &customer.id]).await?)?)
    }

    /// Waits until none of `customer`'s sessions runs any more. Also checks that the account's audit log, replayed from
    /// its first entry, comes out at what the account holds.
    ///
    /// # Errors
    ///
    /// They run on, or the log is not intact.
    pub async fn settled(&self, customer: &Customer) -> Result<Account> {
        eventually("all sessions are settled", async || Ok(self.account(customer).await?.running == 0))
            .await?;
        // It exits with a code that is not 0 where the log has a fault.
        self.command(&["audit", &customer.id]).await?;
        self.account(customer).await
    }

    /// Runs one of the program's commands with `--json` on this gateway's store. The answer is what it printed.
    ///
    /// # Errors
    ///
    /// It failed, or did not print JSON.
    pub async fn command(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = tokio::process::Command::from(self.program()?);
        let output = command.args(arguments).arg("--json").output().await?;
        let printed = String::from_utf8(output.stdout)?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {printed}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_str(&printed).with_context(|| format!("{arguments:?}: {printed}"))
    }

    /// The same for one that need not succeed: its exit code and what it printed, as it is without `--json`.
    ///
    /// # Errors
    ///
    /// It could not be run.
    pub async fn run(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let output = tokio::process::Command::from(self.program()?).args(arguments).output().await?;
        let printed = String::from_utf8(output.stdout)? + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code(), printed))
    }

    /// Where it keeps what it keeps, but for what is in a Redis.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn program(&self) -> Result<Command> {
        configured(self.directory.path(), &self.settings)
    }

    /// Starts a session as most clients do.
    ///
    /// # Errors
    ///
    /// A [`crate::Refusal`], or the gateway does not answer.
    pub async fn connect(&self, customer: &Customer) -> Result<Cdp> {
        self.ask(Request::websocket(&format!("/?token={}", customer.key))).await?.into_cdp().await
    }

    /// The door without TLS.
    #[must_use]
    pub fn door(&self) -> SocketAddr {
        self.doors.http
    }

    /// Opens a socket of which only the URL is known, at the door without TLS.
    ///
    /// # Errors
    ///
    /// A [`crate::Refusal`], or the gateway does not answer.
    pub async fn open(&self, url: &str) -> Result<Cdp> {
        self.ask(Request::websocket(target_of(url)?)).await?.into_cdp().await
    }

    /// Asks for a document of discovery with `customer`'s key.
    ///
    /// # Errors
    ///
    /// A [`crate::Refusal`], or the gateway does not answer.
    pub async fn discover(&self, customer: &Customer, document: &str) -> Result<Value> {
        let answer = self.ask(Request::get(document).key(&customer.key)).await?;
        if answer.status != 200 {
            return Err(Refusal::read(answer).await?.into());
        }
        answer.json().await
    }

    /// Sends `request` to the door without TLS.
    ///
    /// # Errors
    ///
    /// The gateway does not answer.
    pub async fn ask(&self, request: Request) -> Result<Response> {
        request.send(self.doors.http).await
    }

    /// Sends `request` to the operator's door.
    ///
    /// # Errors
    ///
    /// The gateway does not answer.
    pub async fn ask_admin(&self, request: Request) -> Result<Response> {
        request.send(self.doors.admin).await
    }

    /// What `/metrics` says of `name` (with its labels, where it has some) at this moment; 0 where nothing was counted
    /// yet.
    ///
    /// # Errors
    ///
    /// The gateway does not answer.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let metrics = self.ask_admin(Request::get("/metrics")).await?.text().await?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map(str::parse).transpose()?.unwrap_or_default())
    }

    #[must_use]
    pub fn port(&self, door: Door) -> u16 {
        match door {
            Door::Plain => self.doors.http.port(),
            Door::Tls => self.doors.https.port(),
        }
    }

    /// What `customer`'s scripts connect to, without TLS.
    #[must_use]
    pub fn ws_url(&self, customer: &Customer) -> String {
        format!("ws://{}/?token={}", self.doors.http, customer.key)
    }

    /// What `customer`'s scripts connect to, with TLS.
    #[must_use]
    pub fn wss_url(&self, customer: &Customer) -> String {
        format!("wss://{}/?token={}", self.doors.https, customer.key)
    }

    /// The certificate that it made for itself.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("data/tls/cert.pem")
    }

    #[must_use]
    pub fn process(&self) -> &Running {
        &self.running
    }

    /// The processes of its browsers.
    ///
    /// # Errors
    ///
    /// `/proc` could not be read.
    pub fn browsers(&self) -> Result<Vec<Pid>> {
        let gateway = self.running.pid()?;
        Ok(Pid::all_of(self.directory.path())?.into_iter().filter(|pid| *pid != gateway).collect())
    }
}

/// Path and query of a URL.
///
/// # Errors
///
/// It is none.
pub fn target_of(url: &str) -> Result<&str> {
    let (_, rest) = url.split_once("://").with_context(|| format!("{url} has no scheme"))?;
    Ok(rest.find('/').map_or("/", |at| &rest[at..]))
}

impl Drop for Gateway {
    /// Leaves no process behind. The gateway's own `Drop` code does not run in a process that is killed, so browsers
    /// are looked for.
    fn drop(&mut self) {
        let _ = self.running.kill();
        Pid::kill_all_of(self.directory.path());
        #[expect(clippy::print_stderr, reason = "the test runner shows it when the test failed")]
        if let Ok(log) = self.running.output() {
            eprintln!("--- the gateway's log\n{log}---");
        }
    }
}

async fn serve(directory: &Path, settings: &[(String, String)]) -> Result<(Running, Doors)> {
    start_and_wait(configured(directory, settings)?.arg("serve"), directory).await
}

/// The settings of whoever runs the tests must not leak in, so the environment is empty but for this.
fn configured(directory: &Path, settings: &[(String, String)]) -> Result<Command> {
    let mut command = program("ufbrowsers")?;
    command
        .current_dir(directory)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", directory)
        .env("TMPDIR", directory);
    command.envs(settings.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

/// One of the workspace's programs, which cargo puts two directories above its test programs.
pub(crate) fn program(name: &str) -> Result<Command> {
    let test = std::env::current_exe()?;
    let directory = test.ancestors().nth(2).context("a test program is in target/PROFILE/deps")?;
    Ok(Command::new(directory.join(name)))
}

/// Starts `command` with a ready file in `directory` and waits until that tells what it does.
pub(crate) async fn start_and_wait<T: DeserializeOwned>(
    command: &mut Command,
    directory: &Path,
) -> Result<(Running, T)> {
    let ready_file = directory.join(READY_FILE);
    // That of an earlier start tells nothing about this one.
    let _ = fs::remove_file(&ready_file);
    let mut running =
        Running::start(command.arg("--ready-file").arg(&ready_file), &directory.join(LOG_FILE))?;
    let mut ready = None;
    eventually("it is ready", async || {
        ensure!(!running.has_ended()?, "it ended at once:\n{}", running.output()?);
        // A file that is only half written is no JSON yet.
        ready = fs::read(&ready_file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(ready.is_some())
    })
    .await
    .with_context(|| running.output().unwrap_or_default())?;
    Ok((running, ready.context("it was ready")?))
}
