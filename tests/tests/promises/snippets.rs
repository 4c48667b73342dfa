//! README's snippets, one for each client, work as they are printed and in each of the other ways that are listed below
//! them, through both doors.

use anyhow::{Context, Result, ensure};
use tests::{Customer, Domain, Door, Gateway, Interpreter, Snippet};

const NODE: Interpreter = Interpreter::Node(".");
const NODE_WITH_PUPPETEER_25: Interpreter = Interpreter::Node("puppeteer-25");
const PYTHON: Interpreter = Interpreter::Python(".venv");
const PYTHON_WITH_PYPPETEER: Interpreter = Interpreter::Python(".venv-pyppeteer");
const PYTHON_WITH_PYDOLL_2: Interpreter = Interpreter::Python(".venv-pydoll-2");

/// In micro-dollars.
const PRICE: u64 = 10_000;
const BALANCE: u64 = 100 * PRICE;

/// What a snippet prints that opened a page.
const TITLE: &str = "It works\n";
/// What one prints that asks a page for it begins with this.
const USER_AGENT: &str = "Mozilla/5.0 ";
/// What one prints that speaks to the browser by itself begins with this.
const PRODUCT: &str = "HeadlessChrome/";

/// Runs the snippet under a heading through one of the doors, once for each way to write it.
macro_rules! works {
    ($($client:ident: $heading:literal, $interpreter:expr, $prints:expr, [$($door:ident),+];)+) => {$(
        mod $client {
            use super::*;
            $(works!(@ $heading, $interpreter, $prints, $door);)+
        }
    )+};
    (@ $heading:literal, $interpreter:expr, $prints:expr, ws) => {
        #[tokio::test]
        async fn ws() -> Result<()> {
            every_way(Door::Plain, $heading, $interpreter, $prints).await
        }
    };
    (@ $heading:literal, $interpreter:expr, $prints:expr, wss) => {
        #[tokio::test]
        async fn wss() -> Result<()> {
            every_way(Door::Tls, $heading, $interpreter, $prints).await
        }
    };
}

works! {
    playwright: "Playwright", NODE, TITLE, [ws, wss];
    playwright_for_python: "Playwright for Python", PYTHON, TITLE, [ws, wss];
    puppeteer_24: "Puppeteer", NODE, TITLE, [ws, wss];
    puppeteer_25: "Puppeteer", NODE_WITH_PUPPETEER_25, TITLE, [ws, wss];
    puppeteer_25_by_browser_url: "Puppeteer 25", NODE_WITH_PUPPETEER_25, TITLE, [ws, wss];
    chrome_remote_interface: "chrome-remote-interface", NODE, TITLE, [ws, wss];
    pyppeteer: "pyppeteer", PYTHON_WITH_PYPPETEER, TITLE, [ws, wss];
    pydoll: "pydoll", PYTHON, TITLE, [ws, wss];
    // It takes no `wss` URL.
    pydoll_2: "pydoll 2", PYTHON_WITH_PYDOLL_2, TITLE, [ws];
    // It has `http://` built in.
    nodriver: "nodriver", PYTHON, USER_AGENT, [ws];
    nodriver_with_a_header: "nodriver with a header", PYTHON, USER_AGENT, [ws, wss];
    // Chromedriver speaks no TLS.
    selenium: "Selenium", PYTHON, TITLE, [ws];
    plain_websocket_of_node: "ws", NODE, PRODUCT, [ws, wss];
    plain_websocket_of_python: "websockets", PYTHON, PRODUCT, [ws, wss];
}

#[tokio::test]
async fn puppeteer_24_does_not_show_the_key_of_a_browser_url() -> Result<()> {
    let stage = Stage::set().await?;
    for snippet in Snippet::under("Puppeteer 25")? {
        let refused = stage.run(Door::Plain, &snippet, NODE).await;
        let complaint = refused.err().context("it was let in")?.to_string();
        ensure!(complaint.contains("HTTP Unauthorized"), "{complaint}");
    }
    assert_eq!(stage.gateway.account(&stage.customer).await?.balance, BALANCE);
    Ok(())
}

async fn every_way(door: Door, heading: &str, interpreter: Interpreter, prints: &str) -> Result<()> {
    let stage = Stage::set().await?;
    let mut balance = BALANCE;
    for snippet in Snippet::under(heading)? {
        let printed = stage.run(door, &snippet, interpreter).await?;
        ensure!(printed.starts_with(prints), "{}\nprinted {printed}", snippet.code);

        let account = stage.gateway.settled(&stage.customer).await?;
        balance -= PRICE;
        ensure!(account.balance == balance, "charged otherwise than once: {}\n{account:?}", snippet.code);
        ensure!(!account.sessions[0].lost, "{}\n{account:?}", snippet.code);
    }
    stage.key_is_not_in_the_log()
}

/// Where the snippets are run: a gateway behind a name, and a customer with money for many sessions.
struct Stage {
    domain: Domain,
    gateway: Gateway,
    customer: Customer,
}

impl Stage {
    async fn set() -> Result<Self> {
        let domain = Domain::new()?;
        let gateway = domain.served_by(Gateway::builder()).start().await?;
        let customer = gateway.prepaid_customer("starter", BALANCE).await?;
        domain.lead_here(&customer.key_as_host())?;
        Ok(Self { domain, gateway, customer })
    }

    async fn run(&self, door: Door, snippet: &Snippet, interpreter: Interpreter) -> Result<String> {
        let code = match door {
            Door::Plain => snippet.code.clone(),
            // What README says to write for TLS.
            Door::Tls => [("ws://", "wss://"), ("http://", "https://"), ("secure: false", "secure: true")]
                .iter()
                .fold(snippet.code.clone(), |code, (plain, tls)| code.replace(plain, tls)),
        };
        let code = code
            .replace("3000", &self.gateway.port(door).to_string())
            .replace("YOUR_KEY", &self.customer.key)
            .replace("YOUR-KEY", &self.customer.key_as_host());
        let mut surroundings = self.domain.surroundings();
        // Selenium otherwise looks for a driver by itself.
        surroundings.environment.push(("SE_CHROMEDRIVER", "/usr/bin/chromedriver".to_owned()));
        interpreter.run(&code, &surroundings).await
    }

    fn key_is_not_in_the_log(&self) -> Result<()> {
        let log = self.gateway.process().output()?;
        ensure!(!log.contains(&self.customer.key), "the key is in the log");
        ensure!(
            !log.contains(&self.customer.key_as_host()),
            "the key, as it stands in host names, is in the log"
        );
        Ok(())
    }
}
