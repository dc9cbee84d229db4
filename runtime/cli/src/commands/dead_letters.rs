//! `laneway dead-letters`: deliveries that ended badly.

use anyhow::{Result, bail};
use clap::Subcommand;
use jiff::Timestamp;
use laneway_core::{DeadLetterAction, DeadLetterFilter, DeadLetterSelection, DeadLetterView, Name, TopicPattern};
use laneway_engine::Work;
use serde::Serialize;

use super::cleanup::{BatchArgs, sweep};
use crate::Shared;
use crate::{config, exit, output};

#[derive(Subcommand)]
pub enum Command {
    /// List dead letters, newest first
    List(ListArgs),
    /// Show one dead letter
    Show {
        /// Its number
        id: i64,
    },
    /// Deliver dead letters again, each to the subscription that it failed for
    Replay(ActArgs),
    /// Remove dead letters
    Purge(ActArgs),
}

/// Which ones.
#[derive(clap::Args)]
pub struct SelectArgs {
    /// Only of this subscription
    #[arg(long, value_parser = Name::parse)]
    subscription: Option<Name>,
    /// Only of topics that this pattern matches
    #[arg(long, value_name = "PATTERN", value_parser = TopicPattern::parse)]
    topic: Option<TopicPattern>,
    /// Only of this reason code
    #[arg(long)]
    reason: Option<String>,
    /// Only those that failed at this time or later, such as 2026-01-31T00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only those that failed before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
}

impl SelectArgs {
    fn selection(self, id: Option<i64>) -> DeadLetterSelection {
        let Self { subscription, topic, reason, since, until } = self;
        DeadLetterSelection { id, subscription, topic, reason, since, until }
    }
}

#[derive(clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

#[derive(clap::Args)]
pub struct ActArgs {
    /// Only this one
    id: Option<i64>,
    /// All of them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    batch: BatchArgs,
}

/// What was done, or would be.
#[derive(Serialize)]
struct Acted {
    selection: DeadLetterSelection,
    dry_run: bool,
    dead_letters: u64,
}

pub async fn run(shared: &Shared, command: Command) -> Result<()> {
    match command {
        Command::List(args) => list(shared, args).await,
        Command::Show { id } => show(shared, id).await,
        Command::Replay(args) => act(shared, args, DeadLetterAction::Replay).await,
        Command::Purge(args) => act(shared, args, DeadLetterAction::Purge).await,
    }
}

async fn list(shared: &Shared, args: ListArgs) -> Result<()> {
    let filter = DeadLetterFilter { selection: args.select.selection(None), limit: args.limit };
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

async fn show(shared: &Shared, id: i64) -> Result<()> {
    let selection = DeadLetterSelection { id: Some(id), ..DeadLetterSelection::default() };
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let Some(letter) = store.dead_letters(&DeadLetterFilter { selection, limit: 1 }).await?.pop() else {
        bail!("no dead letter has the number {id}");
    };
    if shared.json {
        return output::json(&letter);
    }
    let DeadLetterView { message_id, topic, subscription, lane, priority, reason, error, attempts, .. } = &letter;
    output::line(&format!("number        {id}"))?;
    output::line(&format!("message       {message_id}"))?;
    output::line(&format!("topic         {topic}"))?;
    output::line(&format!("subscription  {subscription}"))?;
    output::line(&format!("lane          {}, priority {}", lane.as_str(), priority.0))?;
    output::line(&format!("attempts      {attempts}"))?;
    if let Some(first) = letter.first_attempt_at {
        output::line(&format!("first attempt {first}"))?;
    }
    output::line(&format!("failed        {}", letter.failed_at))?;
    if let Some(plugin) = &letter.plugin {
        output::line(&format!("plugin        {plugin}"))?;
    }
    output::line(&format!("reason        {reason}"))?;
    output::line(error)
}

async fn act(shared: &Shared, args: ActArgs, action: DeadLetterAction) -> Result<()> {
    let ActArgs { id, all, select, batch } = args;
    let selection = select.selection(id);
    // Nobody should act on all of them by leaving something out.
    if all != (selection == DeadLetterSelection::default()) {
        return Err(exit::usage("say which dead letters: by their number, by filters, or --all without these"));
    }
    let (did, would) = match action {
        DeadLetterAction::Replay => ("Replayed", "replay"),
        DeadLetterAction::Purge => ("Purged", "purge"),
    };
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let count = if batch.dry_run {
        store.count_dead_letters(&selection).await?
    } else {
        let newest = store.newest_dead_letter().await?;
        let work = Work::DeadLetters { action, selection: selection.clone(), newest };
        sweep(&*store, work, batch.batch_size, &did.to_lowercase()).await?
    };
    if count == 0
        && let Some(id) = id
    {
        bail!("dead letter {id} is not there, or waits: its subscription is not active, or its message is in work");
    }
    if shared.json {
        return output::json(&Acted { selection, dry_run: batch.dry_run, dead_letters: count });
    }
    output::line(&match (count, batch.dry_run) {
        (0, _) => format!("No dead letters to {would}."),
        (_, true) => format!("Would {would} {count} dead letter(s)."),
        (_, false) => format!("{did} {count} dead letter(s)."),
    })
}
