//! `laneway messages`: what is in the outbox.

use anyhow::{Result, bail};
use clap::Subcommand;
use jiff::Timestamp;
use laneway_core::{Change, Cleanup, DeliveryView, MessageFilter, MessageId, MessageStatus, Topic};
use serde::Serialize;

use super::cleanup;
use crate::Shared;
use crate::{config, output};

#[derive(Subcommand)]
pub enum Command {
    /// List messages, newest first
    List(ListArgs),
    /// Show one message with its payload and deliveries
    Show {
        /// The message's id
        #[arg(value_parser = MessageId::parse)]
        id: MessageId,
    },
    /// Take a message back of which no delivery was claimed yet
    Cancel {
        /// The message's id
        #[arg(value_parser = MessageId::parse)]
        id: MessageId,
    },
    /// Move a message in time of which no delivery was claimed yet
    Reschedule {
        /// The message's id
        #[arg(value_parser = MessageId::parse)]
        id: MessageId,
        /// When it is due, such as 2026-01-31T08:00Z; one that is past is now
        #[arg(long, value_name = "TIME")]
        at: Timestamp,
    },
    /// Delete messages that are settled and whose retention is over
    Cleanup(cleanup::Args),
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// Only of this status: pending, processing, processed or failed
    #[arg(long, value_parser = parse_status)]
    status: Option<MessageStatus>,
    /// Only of this topic
    #[arg(long, value_parser = Topic::parse)]
    topic: Option<Topic>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

fn parse_status(text: &str) -> Result<MessageStatus, String> {
    MessageStatus::from_name(text)
        .ok_or_else(|| "use pending, processing, processed, failed or unrouted".to_owned())
}

/// The answer to a change.
#[derive(Serialize)]
struct Changed {
    id: MessageId,
    result: Change,
}

/// Says what became of a change. Anything but done ends with an error.
fn answer(shared: &Shared, id: MessageId, result: Change, done: &str) -> Result<()> {
    if shared.json {
        output::json(&Changed { id: id.clone(), result })?;
    }
    match result {
        Change::Done if shared.json => Ok(()),
        Change::Done => output::line(done),
        Change::TooLate => bail!("too late: a delivery of message `{id}` was claimed already; nothing is changed"),
        Change::Unknown => bail!("no message has the id `{id}`"),
    }
}

pub async fn run(shared: &Shared, command: Command) -> Result<()> {
    if let Command::Cleanup(args) = &command {
        return cleanup::run(shared, Cleanup::Messages, args).await;
    }
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    match command {
        Command::Cleanup(_) => Ok(()),
        Command::Cancel { id } => {
            let change = store.cancel(&id).await?;
            answer(shared, id, change, "Cancelled.")
        }
        Command::Reschedule { id, at } => {
            let change = store.reschedule(&id, at).await?;
            answer(shared, id, change, "Rescheduled.")
        }
        Command::List(args) => {
            let filter = MessageFilter { status: args.status, topic: args.topic, limit: args.limit };
            let messages = store.messages(&filter).await?;
            if shared.json {
                return output::json(&messages);
            }
            let rows: Vec<_> = messages
                .iter()
                .map(|message| {
                    [
                        message.id.to_string(),
                        message.topic.to_string(),
                        message.status.as_str().to_owned(),
                        message.priority.0.to_string(),
                        message.payload_bytes.to_string(),
                        message.created_at.to_string(),
                    ]
                })
                .collect();
            output::table(["ID", "TOPIC", "STATUS", "PRIORITY", "BYTES", "CREATED"], &rows)
        }
        Command::Show { id } => {
            let Some(message) = store.message(&id).await? else {
                bail!("no message has the id `{id}`");
            };
            if shared.json {
                return output::json(&message);
            }
            output::line(&format!("id         {}", message.id))?;
            output::line(&format!("topic      {}", message.topic))?;
            output::line(&format!("status     {}", message.status.as_str()))?;
            output::line(&format!("priority   {}", message.priority.0))?;
            if let Some(key) = &message.key {
                output::line(&format!("key        {key}"))?;
            }
            if let Some(tenant) = &message.tenant {
                output::line(&format!("tenant     {tenant}"))?;
            }
            output::line(&format!("created    {}", message.created_at))?;
            output::line(&format!("payload    {} ({} bytes)", message.content_type, message.payload_bytes))?;
            output::line(message.payload.as_deref().unwrap_or_default())?;
            for delivery in &message.deliveries {
                let what = match delivery {
                    DeliveryView { leased: true, .. } => "leased until",
                    DeliveryView { parked: true, .. } => "behind another message of its key, due",
                    _ => "due",
                };
                let lost = match delivery.lost {
                    0 => String::new(),
                    lost => format!(", leases lost: {lost}"),
                };
                output::line(&format!(
                    "delivery   {} ({}), attempt {}{lost}, {what} {}{}",
                    delivery.subscription,
                    delivery.lane.as_str(),
                    delivery.attempt,
                    delivery.available_at,
                    delivery.last_error.as_ref().map_or_else(String::new, |error| format!(": {error}"))
                ))?;
            }
            for marker in &message.markers {
                output::line(&format!(
                    "processed  by {} at {}{}",
                    marker.subscription,
                    marker.processed_at,
                    marker.metadata.as_ref().map_or_else(String::new, |metadata| format!(": {metadata}"))
                ))?;
            }
            Ok(())
        }
    }
}
