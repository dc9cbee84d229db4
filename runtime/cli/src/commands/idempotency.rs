//! `laneway idempotency`: the markers that keep messages from being processed twice.

use anyhow::Result;
use clap::Subcommand;
use laneway_core::Cleanup;

use super::cleanup;
use crate::Shared;

#[derive(Subcommand)]
pub enum Command {
    /// Delete markers whose retention is over
    Cleanup(cleanup::Args),
}

pub async fn run(shared: &Shared, command: Command) -> Result<()> {
    let Command::Cleanup(args) = command;
    cleanup::run(shared, Cleanup::Markers, &args).await
}
