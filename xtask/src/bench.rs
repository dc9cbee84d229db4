//! `cargo xtask bench`: measurements are taken with the release build, never with that of the tests.

use std::{ffi::OsString, process::Command};

use anyhow::{Context, Result};

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
    plugins::ensure_built()?;
    cargo::succeed(&mut cargo::cargo(&["build", "--release", "--locked", "--package", "laneway-cli"])?)?;
    let programs = cargo::programs()?;
    let laneway = programs.parent().context("the build directory has no parent")?.join("release").join("laneway");
    cargo::succeed(Command::new(laneway).arg("bench").args(&args.arguments).current_dir(cargo::root()?))
}
