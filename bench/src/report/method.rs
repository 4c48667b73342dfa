//! What figures depend on beside the targets.

use std::fmt;

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Method {
    kernel: String,
    cpus: usize,
    /// The load average of the last minute before the run: what else wanted the CPUs.
    load_before: f64,
    bench_version: &'static str,
}

impl Method {
    pub(crate) fn of_this_machine() -> anyhow::Result<Self> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let load = std::fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            kernel: kernel.trim().to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            load_before: load.split(' ').next().unwrap_or_default().parse()?,
            bench_version: env!("CARGO_PKG_VERSION"),
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, cpus, load_before, bench_version } = self;
        write!(
            f,
            "Linux {kernel}, {cpus} CPUs, load {load_before} before the run, ufbrowsers-bench {bench_version}"
        )
    }
}
