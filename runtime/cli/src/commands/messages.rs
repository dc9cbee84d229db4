//! `laneway messages`: what is in the outbox.

use anyhow::{Result, bail};
use clap::Subcommand;
use laneway_core::{MessageFilter, MessageId, MessageStatus, Topic};

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

pub async fn run(shared: &Shared, command: Command) -> Result<()> {
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    match command {
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
                let what = if delivery.leased { "leased until" } else { "due" };
                output::line(&format!(
                    "delivery   {} ({}), attempt {}, {what} {}{}",
                    delivery.subscription,
                    delivery.lane.as_str(),
                    delivery.attempt,
                    delivery.available_at,
                    delivery.last_error.as_ref().map_or_else(String::new, |error| format!(": {error}"))
                ))?;
            }
            Ok(())
        }
    }
}
