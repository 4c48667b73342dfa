//! A file and an environment → settings, or every mistake in them. The input is the file; what follows a line of three
//! hyphens are variables, one a line.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use gateway::config::{Config, Environment};
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("ufbrowsers-fuzz-{}.toml", std::process::id())));

struct Variables(Vec<(String, String)>);

impl Environment for Variables {
    fn vars(&self) -> Vec<(String, String)> {
        self.0.clone()
    }
}

fuzz_target!(|input: &str| {
    let (file, variables) = input.split_once("\n---\n").unwrap_or((input, ""));
    fs::write(&*FILE, file).expect("the directory is there");
    let pairs = variables.lines().filter_map(|line| line.split_once('='));
    let variables = Variables(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
    match Config::load(Some(&FILE), &variables, &[]) {
        Ok(config) => {
            assert!(config.pool.min_idle <= config.pool.max_idle.get());
            assert!(config.edge.threads.get() <= 1_024);
        }
        Err(mistakes) => {
            assert!(!mistakes.to_string().is_empty(), "a refusal without a reason");
            assert!(mistakes.iter().all(|mistake| !mistake.remedy.is_empty()), "{mistakes}");
        }
    }
});
