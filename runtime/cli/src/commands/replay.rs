//! `laneway replay`: messages of the outbox, delivered once more.

use anyhow::Result;
use jiff::Timestamp;
use laneway_core::{Name, Priority, Replay, Replayable, TopicPattern};
use laneway_engine::Work;
use serde::Serialize;

use super::cleanup::{BatchArgs, sweep};
use crate::Shared;
use crate::{config, output};

#[derive(clap::Args)]
pub struct Args {
    /// To this subscription
    #[arg(long, value_parser = Name::parse)]
    subscription: Name,
    /// Only of topics that this pattern matches, beside the subscription's
    #[arg(long, value_name = "PATTERN", value_parser = TopicPattern::parse)]
    topic: Option<TopicPattern>,
    /// Only those written at this time or later, such as 2026-01-31T00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only those written before this time; default: now
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Their priority: bulk, low, normal, high, critical or a number. They come by the backfill lane all the same
    #[arg(long, default_value = "bulk", allow_hyphen_values = true, value_parser = parse_priority)]
    priority: Priority,
    /// Also those that count as processed: forget that they were
    ///
    /// A message counts as processed if there is a marker of it, if a replay has owed it once already, or if it was
    /// routed to the subscription when it was written, and is neither waiting nor among the dead letters now. So do
    /// those whose dead letter was purged, and, on PostgreSQL, those that were written while others changed the
    /// subscription: they may have been routed. Of a subscription that is older than version 5 of the schema, all that
    /// was written before that counts as processed.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    batch: BatchArgs,
}

fn parse_priority(text: &str) -> Result<Priority, String> {
    let named = [
        ("bulk", Priority::BULK),
        ("low", Priority::LOW),
        ("normal", Priority::NORMAL),
        ("high", Priority::HIGH),
        ("critical", Priority::CRITICAL),
    ];
    match named.iter().find(|(name, _)| *name == text) {
        Some((_, priority)) => Ok(*priority),
        None => text
            .parse()
            .map(Priority)
            .map_err(|_| "use bulk, low, normal, high, critical or a number of 32 bits".to_owned()),
    }
}

/// What was done, or would be.
#[derive(Serialize)]
struct Replayed {
    replay: Replay,
    dry_run: bool,
    messages: u64,
    /// Left, since they count as processed.
    processed: u64,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let Args { subscription, topic, since, until, priority, force, batch } = args;
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let until = match until {
        Some(until) => until,
        None => store.now().await?,
    };
    let replay = Replay { subscription, topic, since, until, priority, force };
    let Replayable { messages, processed } = store.replayable(&replay).await?;
    let count = match batch.dry_run {
        true => messages,
        false => sweep(&*store, Work::Replay(replay.clone()), batch.batch_size, "replayed").await?,
    };
    if shared.json {
        return output::json(&Replayed { replay, dry_run: batch.dry_run, messages: count, processed });
    }
    if processed > 0 {
        eprintln!("{processed} message(s) count as processed and are left; --force delivers them once more.");
    }
    output::line(&match (count, batch.dry_run) {
        (0, _) => "No messages to replay.".to_owned(),
        (_, true) => format!("Would replay {count} message(s)."),
        (_, false) => format!("Replayed {count} message(s)."),
    })
}
