//! `cargo xtask bench`: measurements are taken with the release build, never with that of the tests.

use std::{ffi::OsString, process::Command};

use anyhow::Result;

use crate::{cargo, plugins};

/// What to measure; see `cargo xtask bench -- --help`
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Arguments of `laneway bench`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Builds and runs the benchmark.
pub fn run(args: &BenchArgs) -> Result<()> {
    let plugins = plugins::ensure_built()?;
    let programs = cargo::build(&["--release", "--package", "laneway-cli"])?;
    let mut bench = Command::new(programs.path("laneway")?);
    bench.arg("bench").args(&args.arguments).current_dir(cargo::root()?);
    for (option, plugin) in [("--handler", "noop.wasm"), ("--publisher", "noop-publisher.wasm")] {
        if !args.arguments.iter().any(|argument| argument.to_string_lossy().starts_with(option)) {
            bench.arg(option).arg(plugins.join(plugin));
        }
    }
    cargo::succeed(&mut bench)
}
