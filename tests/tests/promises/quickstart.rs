//! `deploy/quickstart` prints what works when it is pasted, and goes on with the same customer when it is run again.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tests::{Interpreter, Pid, Surroundings};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[tokio::test]
async fn the_printed_snippets_work() -> Result<()> {
    let data = tempfile::tempdir()?;

    let first = Quickstart::start(data.path()).await?;
    let snippets = first.snippets();
    assert_eq!(snippets.len(), 2, "{}", first.printed);
    for snippet in snippets {
        let printed = Interpreter::Bash.run(&snippet, &Surroundings::default()).await?;
        assert!(printed.contains("Chrome"), "{snippet}\nprinted {printed}");
    }
    let key = first.key()?.to_owned();
    first.interrupt().await?;

    let second = Quickstart::start(data.path()).await?;
    assert_eq!(second.key()?, key);
    second.interrupt().await?;
    assert!(Pid::all_of(data.path())?.is_empty(), "something is left running");
    Ok(())
}

/// The script, running, with what it keeps in `data`.
struct Quickstart<'a> {
    data: &'a Path,
    script: Child,
    printed: String,
}

impl<'a> Quickstart<'a> {
    /// Runs the script until it has printed all.
    async fn start(data: &'a Path) -> Result<Self> {
        let mut command = Command::new(Path::new(ROOT).join("deploy/quickstart"));
        command.arg("--debug").stdout(Stdio::piped()).kill_on_drop(true);
        for door in ["UFB_EDGE_LISTEN", "UFB_EDGE_TLS_LISTEN", "UFB_ADMIN_LISTEN"] {
            command.env(door, "127.0.0.1:0");
        }
        command.env("UFB_STORE_URL", format!("sqlite:{}/ledger.db", data.display()));
        let mut quickstart = Self { data, script: command.spawn()?, printed: String::new() };
        let output = quickstart.script.stdout.take().context("it is piped")?;
        quickstart.printed = until_all_is_printed(&mut BufReader::new(output).lines()).await?;
        Ok(quickstart)
    }

    /// What is to be pasted into a shell: from the line that runs `node` to the end of its input.
    fn snippets(&self) -> Vec<String> {
        let lines: Vec<_> = self.printed.lines().collect();
        lines
            .split_inclusive(|line| *line == "EOF")
            .filter_map(|part| Some(&part[part.iter().position(|line| line.contains("<<'EOF'"))?..]))
            .map(|snippet| snippet.join("\n"))
            .collect()
    }

    fn key(&self) -> Result<&str> {
        let (_, after) = self.printed.split_once("/?token=").context("no URL")?;
        after.lines().next().context("no key")
    }

    /// What Ctrl-C does.
    async fn interrupt(mut self) -> Result<()> {
        let pid = self.script.id().context("it runs")?;
        Pid::new(i64::from(pid))?.signal(Signal::INT)?;
        self.script.wait().await?;
        Ok(())
    }
}

impl Drop for Quickstart<'_> {
    /// What the script started must not outlive a test that failed.
    fn drop(&mut self) {
        Pid::kill_all_of(self.data);
    }
}

async fn until_all_is_printed(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    let mut printed = String::new();
    while let Some(line) = lines.next_line().await? {
        printed += &line;
        printed += "\n";
        if line.contains("Ctrl-C") {
            return Ok(printed);
        }
    }
    anyhow::bail!("it ended: {printed}");
}
