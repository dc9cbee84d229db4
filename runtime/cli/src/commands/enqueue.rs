//! `laneway enqueue`: writes messages to the outbox.

use std::io::{BufRead, Read};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use laneway_core::{
    CONTENT_TYPE_JSON, Enqueued, Header, MessageId, NewMessage, Priority, Store, StoreError, Topic,
};

use crate::Shared;
use crate::{config, exit, output};

/// Messages in one transaction with `--lines`.
const LINES_BATCH: usize = 500;
/// Payloads in one transaction with `--lines`, in bytes; the last one may go over.
const LINES_BATCH_BYTES: usize = 8 << 20;
/// Largest payload that is read, in bytes.
const PAYLOAD_BYTES_MAX: u64 = config::PAYLOAD_BYTES_MAX as u64;

#[derive(clap::Args)]
pub struct Args {
    /// Topic, such as orders.created
    #[arg(value_parser = Topic::parse)]
    topic: Topic,
    /// Payload; `-` reads it from standard input
    #[arg(default_value = "-")]
    payload: String,
    /// Identity; a second message of the same id is a duplicate [default: a fresh UUIDv7]
    #[arg(long, conflicts_with = "lines", value_parser = MessageId::parse)]
    id: Option<MessageId>,
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
    let template = NewMessage {
        id: args.id.unwrap_or_else(MessageId::generate),
        topic: args.topic,
        key: args.key,
        priority: args.priority,
        payload: Bytes::new(),
        content_type: args.content_type,
        headers: args.headers,
        tenant: args.tenant,
        delay: args.delay,
    };
    let storage = || config::storage(shared.storage.as_ref(), &shared.config);
    let input = std::io::stdin().lock();
    let mut results = Results { json: shared.json, written: 0 };
    if args.lines {
        if args.payload != "-" {
            return Err(exit::usage("--lines reads payloads from standard input; leave the payload out"));
        }
        let store = storage()?.open().await?;
        let done = enqueue_lines(&*store, &template, input, &mut results).await;
        let ended = results.end();
        done?;
        return ended;
    }
    let payload = if args.payload == "-" {
        let mut bytes = Vec::new();
        let mut input = input.take(PAYLOAD_BYTES_MAX + 1);
        input.read_to_end(&mut bytes).context("failed to read standard input")?;
        bytes
    } else {
        args.payload.into_bytes()
    };
    check(&template, &payload)?;
    let message = NewMessage { payload: payload.into(), ..template };
    let store = storage()?.open().await?;
    results.print(&store.enqueue(&[message]).await?)?;
    results.end()
}

/// Makes each line of the input one message. Where one fails, those before it are in, and none after.
async fn enqueue_lines(
    store: &dyn Store,
    template: &NewMessage,
    mut input: impl BufRead,
    results: &mut Results,
) -> Result<()> {
    let mut batch = Vec::with_capacity(LINES_BATCH);
    let mut bytes = 0;
    let mut number = 0;
    let read = loop {
        number += 1;
        let line = match read_line(&mut input, template) {
            Ok(Some(line)) => line,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        if is_blank(&line) {
            continue;
        }
        bytes += line.len();
        batch.push((number, NewMessage { id: MessageId::generate(), payload: line.into(), ..template.clone() }));
        if batch.len() >= LINES_BATCH || bytes >= LINES_BATCH_BYTES {
            write(store, &mut batch, results).await?;
            bytes = 0;
        }
    };
    write(store, &mut batch, results).await?;
    read.with_context(|| failed(number, results.written))
}

/// Writes a batch of numbered lines in one transaction. One that is refused is written line by line, to find which.
async fn write(store: &dyn Store, batch: &mut Vec<(u64, NewMessage)>, results: &mut Results) -> Result<()> {
    let (numbers, messages): (Vec<u64>, Vec<NewMessage>) = batch.drain(..).unzip();
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return Ok(()) };
    match store.enqueue(&messages).await {
        Ok(enqueued) => return results.print(&enqueued),
        Err(StoreError::Refused(_)) => {}
        Err(error) => {
            let written = results.written;
            return Err(anyhow::Error::new(error).context(format!(
                "lines {first} to {last} failed, and may be in or not; {written} messages of the lines before are in"
            )));
        }
    }
    for (number, message) in numbers.iter().zip(&messages) {
        let enqueued = store.enqueue(std::slice::from_ref(message)).await;
        results.print(&enqueued.with_context(|| failed(*number, results.written))?)?;
    }
    Ok(())
}

fn failed(number: u64, written: u64) -> String {
    format!("line {number} failed; {written} messages of the lines before are in, and none after")
}

/// The next line, without its end; `Ok(None)` after the last.
fn read_line(input: &mut impl BufRead, template: &NewMessage) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    // With room for the line's end.
    let mut input = input.take(PAYLOAD_BYTES_MAX + 2);
    input.read_until(b'\n', &mut line).context("failed to read standard input")?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop_if(|end| *end == b'\n').is_some() {
        line.pop_if(|end| *end == b'\r');
    }
    if !is_blank(&line) {
        check(template, &line)?;
    }
    Ok(Some(line))
}

fn is_blank(line: &[u8]) -> bool {
    line.trim_ascii().is_empty()
}

/// Checks what can be checked of a payload without the database.
fn check(template: &NewMessage, payload: &[u8]) -> Result<()> {
    ensure!(
        payload.len() as u64 <= PAYLOAD_BYTES_MAX,
        "payload has over {PAYLOAD_BYTES_MAX} bytes, the most that any database can be set to accept"
    );
    if template.content_type == CONTENT_TYPE_JSON
        && let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(payload)
    {
        bail!("payload is no JSON ({error}); give its type with --content-type");
    }
    Ok(())
}

/// Prints what became of messages as soon as they are in, so that a failure later leaves no doubt about them.
struct Results {
    json: bool,
    /// Messages that are in.
    written: u64,
}

impl Results {
    fn print(&mut self, enqueued: &[Enqueued]) -> Result<()> {
        let before = self.written;
        self.written += enqueued.len() as u64;
        for (message, number) in enqueued.iter().zip(before..) {
            if self.json {
                let separator = if number == 0 { "[" } else { "," };
                output::line(&format!("{separator}{}", serde_json::to_string(message)?))
            } else {
                let suffix = if message.duplicate { " (duplicate)" } else { "" };
                output::line(&format!("{}{suffix}", message.id))
            }
            .with_context(|| format!("{} messages are in", self.written))?;
        }
        Ok(())
    }

    /// Closes what was begun, so that the output is whole whatever happened.
    fn end(&self) -> Result<()> {
        match (self.json, self.written) {
            (false, _) => Ok(()),
            (true, 0) => output::line("[]"),
            (true, _) => output::line("]"),
        }
    }
}
