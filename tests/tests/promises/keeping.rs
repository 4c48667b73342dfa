//! What is kept: the audit log says all that the totals say, and a program that was written from its description alone
//! comes to the same.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Builder, Customer, Gateway, Redis, StandIn};

const REPLAY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/replay.py");

#[tokio::test]
async fn the_log_alone_comes_to_the_totals() -> Result<()> {
    comes_to_the_totals(Gateway::builder()).await
}

#[tokio::test]
async fn the_log_alone_comes_to_the_totals_on_redis() -> Result<()> {
    let redis = Redis::start().await?;
    comes_to_the_totals(Gateway::builder().set("STORE_URL", redis.url())).await
}

async fn comes_to_the_totals(builder: Builder) -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = builder.fixed(&browser, 5).start().await?;
    let [prepaid, included] =
        [gateway.prepaid_customer("starter", 100_000).await?, gateway.customer("professional").await?];
    for customer in [&prepaid, &included, &prepaid] {
        gateway.connect(customer).await?.close().await?;
    }
    let month = month_of(&gateway, &[&prepaid, &included]).await?;

    let reconciled = gateway.command(&["reconcile", "--month", &month]).await?;
    assert_eq!(reconciled["ok"], true, "{reconciled}");
    let of = |customer: &Customer| {
        let mut customers = reconciled["customers"].as_array().into_iter().flatten();
        customers.find(|one| one["customerId"] == *customer.id).cloned().context("it is listed")
    };
    let figures = |one: &Value| {
        let names = ["sessions", "browserMinutes", "includedSessions", "chargedMicros"];
        names.map(|name| one[name].as_u64())
    };
    assert_eq!(figures(&of(&prepaid)?), [Some(2), Some(2), Some(0), Some(20_000)]);
    assert_eq!(figures(&of(&included)?), [Some(1), Some(1), Some(1), Some(0)]);
    let usage = gateway.command(&["usage", &prepaid.id]).await?;
    assert_eq!(usage["total"]["costMicros"], 20_000, "{usage}");
    let (code, csv) = gateway.run(&["reconcile", "--month", &month, "--csv"]).await?;
    ensure!(code == Some(0) && csv.contains(&format!("{},starter,2,2,0,0,20000,\n", prepaid.id)), "{csv}");

    let file = gateway.directory().join("logs.jsonl");
    let exported = gateway.command(&["audit", "--export", text(&file)?]).await?;
    assert_eq!(exported["customers"], 2);
    let replayed = Command::new("python3").arg(REPLAY).arg(&file).output()?;
    let replayed: Value = serde_json::from_slice(&replayed.stdout)?;
    assert_eq!(replayed[&prepaid.id]["balance"], 80_000, "{replayed}");
    assert_eq!(replayed[&prepaid.id]["months"][&month]["charged"], 20_000, "{replayed}");
    assert_eq!(replayed[&included.id]["included"], 4_999, "{replayed}");
    Ok(())
}

#[tokio::test]
async fn a_total_that_differs_is_named() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 5).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    gateway.connect(&customer).await?.close().await?;
    let month = month_of(&gateway, &[&customer]).await?;

    let database = gateway.directory().join("data/ledger.db");
    let script = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('UPDATE usage SET minutes = 7'); d.commit()";
    let changed = Command::new("python3").args(["-c", script]).arg(database).status()?;
    ensure!(changed.success());

    let (code, words) = gateway.run(&["reconcile", "--month", &month]).await?;
    assert_eq!(code, Some(1), "{words}");
    let difference = format!("{}: minutes: 1 by the log, 7 by the totals", customer.id);
    ensure!(words.contains(&difference), "{words}");
    Ok(())
}

/// By the commands, with a gateway that runs; what is in an archive is shown in `billing`, where the clock can be moved.
#[tokio::test]
async fn nothing_recent_is_sealed() -> Result<()> {
    let browser = StandIn::start().await?;
    let gateway = Gateway::builder().fixed(&browser, 5).start().await?;
    let customer = gateway.prepaid_customer("starter", 100_000).await?;
    gateway.connect(&customer).await?.close().await?;
    let month = month_of(&gateway, &[&customer]).await?;
    let folder = gateway.directory().join("archives");

    let sealed = gateway.command(&["archive", "seal", "--into", text(&folder)?]).await?;
    assert_eq!(sealed["archives"], serde_json::json!([]), "{sealed}");
    let (code, words) =
        gateway.run(&["archive", "seal", "--until", &month, "--into", text(&folder)?]).await?;
    assert_eq!(code, Some(64), "{words}");
    ensure!(words.contains("--until: what was written from"), "{words}");
    let (code, words) = gateway.run(&["archive", "verify", text(&folder.join("none.jsonl"))?]).await?;
    assert_eq!(code, Some(1), "{words}");
    Ok(())
}

/// The month in which all of their sessions ended.
pub(crate) async fn month_of(gateway: &Gateway, customers: &[&Customer]) -> Result<String> {
    let mut months = Vec::new();
    for customer in customers {
        gateway.settled(customer).await?;
        let shown = gateway.command(&["customer", "show", &customer.id]).await?;
        for session in shown["sessions"].as_array().into_iter().flatten() {
            months.push(session["endedAt"].as_str().context("it ended")?[..7].to_owned());
        }
    }
    months.dedup();
    ensure!(months.len() == 1, "the month ended while the test ran: {months:?}");
    months.pop().context("there is one")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of tests is text")
}
