//! What is printed of a run: for people, or as one JSON object.

use anyhow::Result;
use bytes::Bytes;
use laneway_core::{Effects, Failure, Message, NewMessage, PluginDigest, SubscriptionKind};
use laneway_host::{HttpAnswer, HttpRequest};
use serde::Serialize;
use serde_json::{Map, Value};

use super::world::{Seen, WrittenState, value_of};
use crate::output;

/// Longest text of one value for people, in characters; `--json` has it whole.
const SHOWN_CHARS_MAX: usize = 300;

/// All that came of it.
#[derive(Serialize)]
pub struct Report {
    pub plugin: PluginDigest,
    pub kind: SubscriptionKind,
    /// Whether every message succeeded.
    pub success: bool,
    /// One for each message of a handler; a publisher gets all in one.
    pub calls: Vec<CallReport>,
    /// What `--state` may begin with the next time.
    pub state: WrittenState,
}

/// One call into the sandbox.
#[derive(Serialize)]
pub struct CallReport {
    pub messages: Vec<MessageReport>,
    /// How often it was run: what it read had changed the times before.
    pub runs: u32,
    /// What is committed; of a failure, only what was read.
    pub effects: Option<EffectsReport>,
    pub log: Vec<LogReport>,
    pub http: Vec<HttpReport>,
    /// Of the last run: making the instance, the call, and taking it down.
    pub sandbox_ms: f64,
    pub memory_peak_bytes: u64,
}

/// What became of a message.
#[derive(Serialize)]
pub struct MessageReport {
    pub id: String,
    pub topic: String,
    pub outcome: &'static str,
    pub reason: Option<String>,
    pub error: Option<String>,
    /// How long a throttled one is to wait, if it says.
    pub after_ms: Option<u64>,
}

/// What a handler read and wrote.
#[derive(Serialize)]
pub struct EffectsReport {
    reads: Vec<String>,
    /// Keys with their new values; `null` deletes.
    writes: Map<String, Value>,
    adds: Map<String, Value>,
    emits: Vec<EmitReport>,
    annotation: Option<Value>,
}

#[derive(Serialize)]
struct EmitReport {
    topic: String,
    key: Option<String>,
    priority: i32,
    content_type: String,
    headers: Map<String, Value>,
    payload: Value,
    delay_ms: Option<u64>,
}

#[derive(Serialize)]
pub struct LogReport {
    level: &'static str,
    text: String,
    fields: String,
}

#[derive(Serialize)]
pub struct HttpReport {
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: Value,
    body_bytes: u64,
    /// A status, `timeout` or `refused`.
    answer: Value,
}

impl MessageReport {
    pub fn new(message: &Message, result: &Result<(), Failure>) -> Self {
        let (outcome, reason, error, after) = match result {
            Ok(()) => ("success", None, None, None),
            Err(Failure::Retry { reason, error }) => ("retry", Some(reason), Some(error), None),
            Err(Failure::Throttled { after, error }) => ("throttled", None, Some(error), *after),
            Err(Failure::Reject { reason, error }) => ("reject", Some(reason), Some(error), None),
            Err(Failure::UnknownOutcome { reason, error }) => ("unknown_outcome", Some(reason), Some(error), None),
            Err(Failure::Misconfigured { reason, error }) => ("misconfigured", Some(reason), Some(error), None),
            Err(Failure::Interrupted) => ("interrupted", None, None, None),
            Err(Failure::Stale) => ("stale", None, None, None),
        };
        Self {
            id: message.id.to_string(),
            topic: message.topic.to_string(),
            outcome,
            reason: reason.map(ToString::to_string),
            error: error.map(ToString::to_string),
            after_ms: after.map(millis),
        }
    }
}

impl EffectsReport {
    pub fn new(effects: &Effects) -> Self {
        let text = |value: &str| Value::String(value.to_owned());
        Self {
            reads: effects.reads.iter().map(|(key, _)| key.to_string()).collect(),
            writes: effects
                .writes
                .iter()
                .map(|(key, value)| (key.to_string(), value.as_ref().map_or(Value::Null, |value| value_of(value))))
                .collect(),
            adds: effects.adds.iter().map(|(key, delta)| (key.to_string(), (*delta).into())).collect(),
            emits: effects.emits.iter().map(emitted).collect(),
            annotation: effects.metadata.as_ref().map(|metadata| {
                // The host has checked that it is JSON.
                serde_json::from_str(metadata.as_str()).unwrap_or_else(|_| text(metadata.as_str()))
            }),
        }
    }
}

fn emitted(message: &NewMessage) -> EmitReport {
    let header = |header: &laneway_core::Header| (header.name.clone(), Value::String(header.value.clone()));
    EmitReport {
        topic: message.topic.to_string(),
        key: message.key.clone(),
        priority: message.priority.0,
        content_type: message.content_type.clone(),
        headers: message.headers.iter().map(header).collect(),
        payload: value_of(&message.payload),
        delay_ms: message.delay.map(millis),
    }
}

/// What came out of the sandbox, as it is printed.
pub fn seen(seen: Seen) -> (Vec<LogReport>, Vec<HttpReport>) {
    let log =
        seen.log.into_iter().map(|line| LogReport { level: line.level, text: line.text, fields: line.fields });
    let http = seen.http.into_iter().map(|(request, answer)| requested(request, &answer));
    (log.collect(), http.collect())
}

fn requested(request: HttpRequest, answer: &HttpAnswer) -> HttpReport {
    HttpReport {
        method: request.method,
        url: request.url,
        headers: request.headers,
        body: text_or_size(&request.body, request.body_bytes),
        body_bytes: request.body_bytes,
        answer: match answer {
            HttpAnswer::Response { status, .. } => (*status).into(),
            HttpAnswer::Timeout => "timeout".into(),
            HttpAnswer::Refused => "refused".into(),
        },
    }
}

/// A body, unless only its beginning was kept.
fn text_or_size(body: &Bytes, bytes: u64) -> Value {
    if body.len() as u64 == bytes { value_of(body) } else { Value::Null }
}

fn millis(time: std::time::Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

impl Report {
    /// Prints it for people.
    pub fn print(&self) -> Result<()> {
        output::line(&format!("{} {}", self.kind.as_str(), self.plugin))?;
        self.calls.iter().try_for_each(CallReport::print)
    }
}

impl CallReport {
    fn print(&self) -> Result<()> {
        output::line("")?;
        for message in &self.messages {
            let mut line = format!("{} ({}): {}", message.id, message.topic, message.outcome);
            for more in [&message.reason, &message.error].into_iter().flatten() {
                line.push_str(&format!("; {}", shown(more)));
            }
            if let Some(after) = message.after_ms {
                line.push_str(&format!("; in {after} ms"));
            }
            output::line(&line)?;
        }
        if self.runs > 1 {
            row("runs", &format!("{}: what it read had changed", self.runs))?;
        }
        if let Some(effects) = &self.effects {
            effects.print()?;
        }
        for line in &self.log {
            let space = if line.fields.is_empty() { "" } else { "  " };
            row("log", &format!("{} {}{space}{}", line.level, shown(&line.text), shown(&line.fields)))?;
        }
        for it in &self.http {
            let body = if it.body_bytes == 0 { String::new() } else { format!(" {}", shown_value(&it.body)) };
            row("http", &format!("{} {}{body} -> {}", it.method, shown(&it.url), shown_value(&it.answer)))?;
        }
        row(
            "sandbox",
            &format!("{:.2} ms, {} KiB of memory", self.sandbox_ms, self.memory_peak_bytes.div_ceil(1024)),
        )
    }
}

impl EffectsReport {
    fn print(&self) -> Result<()> {
        for key in &self.reads {
            row("read", &shown(key))?;
        }
        for (key, value) in &self.writes {
            match value {
                Value::Null => row("delete", &shown(key))?,
                value => row("put", &format!("{} = {}", shown(key), shown_value(value)))?,
            }
        }
        for (counter, delta) in &self.adds {
            row("add", &format!("{} {}{delta}", shown(counter), if delta.as_i64() < Some(0) { "" } else { "+" }))?;
        }
        for it in &self.emits {
            let key = it.key.as_ref().map_or_else(String::new, |key| format!(" key={}", shown(key)));
            let delay = it.delay_ms.map_or_else(String::new, |delay| format!(" in {delay} ms"));
            row("emit", &format!("{}{key}{delay} {}", it.topic, shown_value(&it.payload)))?;
        }
        match &self.annotation {
            Some(annotation) => row("annotate", &shown(&annotation.to_string())),
            None => Ok(()),
        }
    }
}

fn row(name: &str, text: &str) -> Result<()> {
    output::line(&format!("  {name:<9} {text}"))
}

fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        Value::Null => "(too long to keep)".to_owned(),
        other => shown(&other.to_string()),
    }
}

/// A guest's text on one line, cut, and without what a terminal would obey.
fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let beginning: String = chars.by_ref().take(SHOWN_CHARS_MAX).collect();
    let line = output::escaped(&beginning);
    if chars.next().is_some() { line + "…" } else { line }
}
