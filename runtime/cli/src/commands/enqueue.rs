//! `laneway enqueue`: writes messages to the outbox.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use laneway_core::{CONTENT_TYPE_JSON, Header, MessageId, NewMessage, Priority, Topic};

use crate::Shared;
use crate::{config, output};

/// Messages in one transaction with `--lines`.
const LINES_BATCH: usize = 500;

#[derive(clap::Args)]
pub struct Args {
    /// Topic, such as orders.created
    topic: String,
    /// Payload; `-` reads it from standard input
    #[arg(default_value = "-")]
    payload: String,
    /// Identity; a second message of the same id is a duplicate [default: a fresh UUIDv7]
    #[arg(long, conflicts_with = "lines")]
    id: Option<String>,
    /// Ordering key
    #[arg(long)]
    key: Option<String>,
    /// How urgent: a number, or bulk, low, normal, high, critical
    #[arg(long, default_value = "normal", value_parser = parse_priority, allow_hyphen_values = true)]
    priority: Priority,
    /// Media type of the payload
    #[arg(long, default_value = CONTENT_TYPE_JSON)]
    content_type: String,
    /// Further named value, as NAME=VALUE; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<Header>,
    /// Tenant that it belongs to
    #[arg(long)]
    tenant: Option<String>,
    /// Deliver it not before this long after now, such as 5m
    #[arg(long, value_parser = parse_delay)]
    delay: Option<Duration>,
    /// Make each line of standard input one message
    #[arg(long)]
    lines: bool,
}

fn parse_priority(text: &str) -> Result<Priority, String> {
    Ok(match text {
        "bulk" => Priority::BULK,
        "low" => Priority::LOW,
        "normal" => Priority::NORMAL,
        "high" => Priority::HIGH,
        "critical" => Priority::CRITICAL,
        _ => Priority(text.parse().map_err(|_| "use a number, or bulk, low, normal, high, critical".to_owned())?),
    })
}

fn parse_header(text: &str) -> Result<Header, String> {
    let (name, value) = text.split_once('=').ok_or("use NAME=VALUE")?;
    if name.is_empty() {
        return Err("the name is empty; use NAME=VALUE".to_owned());
    }
    Ok(Header { name: name.to_owned(), value: value.to_owned() })
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text.parse().map_err(|_| "write it like 100ms, 30s or 5m".to_owned())?;
    Duration::try_from(signed).map_err(|_| "a delay is not negative".to_owned())
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let topic = Topic::parse(&args.topic)?;
    let template = NewMessage {
        id: args.id.as_deref().map_or_else(|| Ok(MessageId::generate()), MessageId::parse)?,
        topic,
        key: args.key,
        priority: args.priority,
        payload: Bytes::new(),
        content_type: args.content_type,
        headers: args.headers,
        tenant: args.tenant,
        delay: args.delay,
    };
    let is_json = template.content_type == CONTENT_TYPE_JSON;
    let mut messages = Vec::new();
    if args.lines {
        ensure!(args.payload == "-", "--lines reads payloads from standard input; leave the payload out");
        for (number, line) in std::io::stdin().lines().enumerate() {
            let line = line.context("failed to read standard input")?;
            if line.trim().is_empty() {
                continue;
            }
            if is_json {
                check_json(line.as_bytes()).with_context(|| format!("line {}", number + 1))?;
            }
            messages.push(NewMessage { id: MessageId::generate(), payload: line.into(), ..template.clone() });
        }
    } else {
        let payload = if args.payload == "-" {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("failed to read standard input")?;
            bytes
        } else {
            args.payload.into_bytes()
        };
        if is_json {
            check_json(&payload)?;
        }
        messages.push(NewMessage { payload: payload.into(), ..template });
    }
    let store = config::storage(shared.storage.as_deref(), &shared.config)?.open().await?;
    let mut enqueued = Vec::with_capacity(messages.len());
    for batch in messages.chunks(LINES_BATCH) {
        enqueued.extend(store.enqueue(batch).await?);
    }
    if shared.json {
        return output::json(&enqueued);
    }
    for message in &enqueued {
        let suffix = if message.duplicate { " (duplicate)" } else { "" };
        output::line(&format!("{}{suffix}", message.id))?;
    }
    Ok(())
}

fn check_json(payload: &[u8]) -> Result<()> {
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(payload) {
        bail!("payload is no JSON ({error}); give its type with --content-type");
    }
    Ok(())
}
