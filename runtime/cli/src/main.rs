//! The `laneway` command: configuration, wiring, and one file for each command. No logic of its own lives here.

mod commands;
mod compiler;
mod config;
mod exit;
mod loader;
mod logging;
mod output;
mod signals;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Parser, Subcommand};
use laneway_store::Storage;

use crate::commands::{
    apply, bench, config as print_config, dead_letters, dev, doctor, enqueue, idempotency, messages, migrate,
    plugin, replay, run, schedules, status,
};
use crate::logging::LogFormat;

/// Deliver messages from your database to WebAssembly plugins
#[derive(Parser)]
#[command(name = "laneway", version, about, arg_required_else_help = true, after_help = exit::HELP)]
struct Cli {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(clap::Args)]
pub struct Shared {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", env = "LANEWAY_CONFIG", default_value = "laneway.toml")]
    pub config: PathBuf,
    /// Database address, before that of the configuration: sqlite://PATH or postgres://USER@HOST/DATABASE
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "LANEWAY_STORAGE_URL",
        hide_env_values = true,
        value_parser = StorageParser
    )]
    pub storage: Option<Storage>,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log to stderr: a level, or directives such as laneway_engine=debug
    #[arg(long, global = true, value_name = "FILTER", env = "LANEWAY_LOG", default_value = "info")]
    pub log: String,
    /// How to log
    #[arg(long, global = true, value_name = "FORMAT", env = "LANEWAY_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Reads a storage address. An error of clap's own would show the value, which may hold a password.
#[derive(Clone)]
struct StorageParser;

impl TypedValueParser for StorageParser {
    type Value = Storage;

    fn parse_ref(&self, command: &clap::Command, _: Option<&Arg>, value: &OsStr) -> Result<Storage, clap::Error> {
        let invalid = |why: &str| clap::Error::raw(ErrorKind::ValueValidation, format!("--storage: {why}\n"));
        let url = value.to_str().ok_or_else(|| invalid("storage url is not UTF-8").with_cmd(command))?;
        Storage::parse(url).map_err(|error| invalid(&error.to_string()).with_cmd(command))
    }
}

#[derive(Subcommand)]
enum Command {
    /// Deliver messages until stopped
    Run(run::Args),
    /// Deliver messages, and swap each plugin when its file or its sources change
    Dev(dev::Args),
    /// Make the configuration's subscriptions the database's
    Apply,
    /// Bring the database's schema up to date
    Migrate,
    /// Write messages to the outbox
    Enqueue(enqueue::Args),
    /// Show subscriptions, lanes and nodes at a glance
    Status,
    /// Look for what a restore, a failover or replication left behind, and mend it
    Doctor(doctor::Args),
    /// Show and manage messages
    #[command(subcommand)]
    Messages(messages::Command),
    /// Show and manage dead letters
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Manage the markers that keep messages from being processed twice
    #[command(subcommand)]
    Idempotency(idempotency::Command),
    /// Deliver messages of the outbox once more, by the backfill lane
    Replay(replay::Args),
    /// Show and run schedules
    #[command(subcommand)]
    Schedules(schedules::Command),
    /// Make, sign, try out and deploy plugins
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Measure enqueue, drain and latency on an empty database
    Bench(bench::Args),
    /// Print the commented configuration with all keys
    Config,
}

fn main() -> ExitCode {
    // Before any thread is started: it puts itself under limits.
    if let Some(code) = compiler::serve_if_asked() {
        return code;
    }
    let cli = Cli::parse();
    if let Err(error) = logging::start(&cli.shared) {
        eprintln!("laneway: {error:#}");
        return exit::USAGE.into();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("laneway: failed to start: {error}");
            return exit::FAILURE.into();
        }
    };
    let shared = &cli.shared;
    let done = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::run(shared, args).await,
            Command::Dev(args) => dev::run(shared, args).await,
            Command::Apply => apply::run(shared).await,
            Command::Migrate => migrate::run(shared).await,
            Command::Enqueue(args) => enqueue::run(shared, args).await,
            Command::Status => status::run(shared).await,
            Command::Doctor(args) => doctor::run(shared, args).await,
            Command::Messages(command) => messages::run(shared, command).await,
            Command::DeadLetters(command) => dead_letters::run(shared, command).await,
            Command::Idempotency(command) => idempotency::run(shared, command).await,
            Command::Replay(args) => replay::run(shared, args).await,
            Command::Schedules(command) => schedules::run(shared, command).await,
            Command::Plugin(command) => plugin::run(shared, command).await,
            Command::Bench(args) => bench::run(shared, args).await,
            Command::Config => print_config::run(),
        }
    });
    // Blocked threads of a library must not hold up the end of the process.
    runtime.shutdown_background();
    match done {
        Ok(()) => exit::SUCCESS.into(),
        Err(error) => match error.downcast::<clap::Error>() {
            Ok(usage) => usage.exit(),
            Err(error) => {
                eprintln!("laneway: {error:#}");
                exit::of(&error).into()
            }
        },
    }
}
