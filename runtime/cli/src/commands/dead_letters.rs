//! `laneway dead-letters`: deliveries that ended badly.

use anyhow::Result;
use clap::Subcommand;
use laneway_core::{DeadLetterFilter, Name, Topic};

use crate::Shared;
use crate::{config, output};

#[derive(Subcommand)]
pub enum Command {
    /// List dead letters, newest first
    List(ListArgs),
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// Only of this subscription
    #[arg(long, value_parser = Name::parse)]
    subscription: Option<Name>,
    /// Only of this topic
    #[arg(long, value_parser = Topic::parse)]
    topic: Option<Topic>,
    /// Only of this reason code
    #[arg(long)]
    reason: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

pub async fn run(shared: &Shared, command: Command) -> Result<()> {
    let Command::List(args) = command;
    let filter = DeadLetterFilter {
        subscription: args.subscription,
        topic: args.topic,
        reason: args.reason,
        limit: args.limit,
    };
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let letters = store.dead_letters(&filter).await?;
    if shared.json {
        return output::json(&letters);
    }
    let rows: Vec<_> = letters
        .iter()
        .map(|letter| {
            [
                letter.id.to_string(),
                letter.subscription.to_string(),
                letter.message_id.to_string(),
                letter.topic.to_string(),
                letter.reason.clone(),
                letter.attempts.to_string(),
                letter.failed_at.to_string(),
                letter.error.lines().next().unwrap_or_default().chars().take(80).collect(),
            ]
        })
        .collect();
    output::table(["NUMBER", "SUBSCRIPTION", "MESSAGE", "TOPIC", "REASON", "ATTEMPTS", "FAILED", "ERROR"], &rows)
}
