//! The developer's commands, as `cargo xtask COMMAND`. Nothing here is part of the runtime, and nothing here knows a
//! database or WebAssembly beyond what the programs and builds that it starts tell it.

mod bench;
mod cargo;
mod demo;
mod plugins;
mod postgres;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer's commands of Laneway
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the flights example, kill the runtime in the middle, and compare the result with the CSV
    Demo(demo::DemoArgs),
    /// Run all tests, and say which were skipped
    Test(test::TestArgs),
    /// Build the WebAssembly plugins
    Plugins(plugins::PluginsArgs),
    /// Build the release binary and run `laneway bench` with the given arguments
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Plugins(args) => plugins::run(args),
        Command::Bench(args) => bench::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
