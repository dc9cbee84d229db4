//! Logs go to stderr; data goes to stdout.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::Shared;

/// How log lines look.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Starts logging.
pub fn start(shared: &Shared) -> Result<()> {
    let filter = EnvFilter::try_new(&shared.log).with_context(|| format!("--log `{}`", shared.log))?;
    // It would tell of a line that cannot be written by one more to the same place, and that ends the thread: a node whose
    // terminal was closed is to drain.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match shared.log_format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).init();
        }
    }
    Ok(())
}
