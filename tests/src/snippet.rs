//! What users are told to paste: where it is printed, and how it is run.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Where the client libraries are installed, and so where what is pasted finds them.
const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");
const README: &str = include_str!("../../README.md");

/// Longer than any snippet takes on a machine that does other work too. A client that retries for ever ends here.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program of README.md, in one of the ways in which it may be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snippet {
    pub code: String,
    /// What of it was replaced by something else that README.md lists; empty for the snippet as it is printed.
    pub written: String,
}

impl Snippet {
    /// The snippet under the heading `### heading`: first as it is printed, then with each of the replacements that are
    /// listed below it. They look like this:
    ///
    /// ```text
    /// In place of `old code`:
    ///
    /// - `new code`
    /// - `other code`, and words about it
    /// ```
    ///
    /// # Errors
    ///
    /// There is no such heading or no code below it; or what is to be replaced is not in the code.
    pub fn under(heading: &str) -> Result<Vec<Self>> {
        Self::within(README, heading).with_context(|| format!("README.md, {heading}"))
    }

    fn within(document: &str, heading: &str) -> Result<Vec<Self>> {
        let start = format!("### {heading}");
        let section = document.lines().skip_while(|line| *line != start).skip(1);
        let mut section = section.take_while(|line| !is_heading(line));

        section.find(|line| line.starts_with("```")).context("no code")?;
        let code: Vec<_> = section.by_ref().take_while(|line| *line != "```").collect();
        let printed = Self { code: code.join("\n"), written: String::new() };

        let mut replaced = None;
        let mut all = vec![printed.clone()];
        for line in section {
            if let Some(old) = code_after("In place of ", line) {
                ensure!(printed.code.matches(old).count() == 1, "{old} is to be replaced, once");
                replaced = Some(old);
            } else if let Some(new) = code_after("- ", line) {
                let old = replaced.context("a list that replaces nothing")?;
                all.push(Self { code: printed.code.replace(old, new), written: new.to_owned() });
            }
        }
        Ok(all)
    }
}

fn is_heading(line: &str) -> bool {
    line.starts_with("## ") || line.starts_with("### ")
}

/// The code between the backticks right after `words`.
fn code_after<'a>(words: &str, line: &'a str) -> Option<&'a str> {
    line.strip_prefix(words)?.strip_prefix('`')?.split('`').next()
}

/// What runs a program that is pasted into it.
#[derive(Debug, Clone, Copy)]
pub enum Interpreter {
    Bash,
    /// Node, in this folder below that of the clients.
    Node(&'static str),
    /// Python, in this virtual environment.
    Python(&'static str),
}

/// What a program that is pasted finds around it, beside what the tests do.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Additions to the environment.
    pub environment: Vec<(&'static str, String)>,
    /// Takes the place of `/etc/hosts`.
    pub hosts: Option<PathBuf>,
}

impl Interpreter {
    /// Runs `program`. The answer is what it printed.
    ///
    /// # Errors
    ///
    /// It failed, and what it said then; or it did not end.
    pub async fn run(self, program: &str, surroundings: &Surroundings) -> Result<String> {
        let mut command = match &surroundings.hosts {
            Some(hosts) => with_hosts(hosts, &self.words())?,
            None => command(&self.words())?,
        };
        command.envs(surroundings.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.directory()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.spawn().with_context(|| format!("{command:?}: installed by tests/run?"))?;
        let mut input = running.stdin.take().context("it is piped")?;
        input.write_all(program.as_bytes()).await?;
        drop(input);

        let output = timeout(PATIENCE, running.wait_with_output())
            .await
            .with_context(|| format!("it goes on and on:\n{program}"))??;
        let complaints = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}:\n{program}\n{complaints}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The command that reads a program from its standard input.
    fn words(self) -> Vec<String> {
        match self {
            Self::Bash => vec!["bash".to_owned()],
            Self::Node(_) => ["node", "--input-type=module", "-"].map(str::to_owned).into(),
            Self::Python(environment) => vec![format!("{CLIENTS}/{environment}/bin/python"), "-".to_owned()],
        }
    }

    fn directory(self) -> PathBuf {
        match self {
            Self::Bash | Self::Python(_) => CLIENTS.into(),
            Self::Node(directory) => Path::new(CLIENTS).join(directory),
        }
    }
}

fn command(words: &[String]) -> Result<Command> {
    let (program, arguments) = words.split_first().context("a program")?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// Nobody's `/etc/hosts` is changed: the command sees another file there, in a mount namespace of its own.
fn with_hosts(hosts: &Path, words: &[String]) -> Result<Command> {
    let mut outer = ["unshare", "--map-root-user", "--mount", "bash", "-c"].map(str::to_owned).to_vec();
    outer.push(r#"mount --bind "$0" /etc/hosts && exec "$@""#.to_owned());
    outer.push(hosts.display().to_string());
    outer.extend_from_slice(words);
    command(&outer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
### First

```js
connect('a', 1);
print();
```

In place of `'a', 1`:

- `'b', 2`
- `'c'`, for those who like it

### Second

```py
one()
```
## Other
- `x`
";

    #[test]
    fn as_printed_and_with_each_replacement() {
        let codes = |heading| -> Vec<_> {
            let snippets = Snippet::within(DOCUMENT, heading).unwrap();
            snippets.into_iter().map(|snippet| snippet.code).collect()
        };
        assert_eq!(
            codes("First"),
            ["connect('a', 1);\nprint();", "connect('b', 2);\nprint();", "connect('c');\nprint();"]
        );
        assert_eq!(codes("Second"), ["one()"]);
    }

    #[test]
    fn what_is_not_there() {
        assert!(Snippet::within(DOCUMENT, "Third").is_err());
        let nothing = DOCUMENT.replace("In place of `'a', 1`", "In place of `'z'`");
        assert!(Snippet::within(&nothing, "First").is_err());
    }
}
