//! The file of messages that a plugin is tried with.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use laneway_core::{CONTENT_TYPE_JSON, Header, Message, MessageId, Priority, Topic};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::config::PAYLOAD_BYTES_MAX;

/// Most bytes of a file that are read, and most messages in it.
const FILE_BYTES_MAX: u64 = PAYLOAD_BYTES_MAX as u64;
const MESSAGES_MAX: usize = 1000;

/// A message as it is written down.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    topic: String,
    id: Option<String>,
    key: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    tenant: Option<String>,
    #[serde(default)]
    priority: Priority,
    content_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    payload: Option<Value>,
    /// A payload to the letter.
    payload_text: Option<String>,
}

/// A `null` that is there is a payload too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Reads a message, or an array of them; `-` is standard input.
pub fn read(path: &Path, payload_bytes_max: u64) -> Result<Vec<Message>> {
    let text = read_text(path)?;
    parse(&text, payload_bytes_max).with_context(|| format!("messages in {}", path.display()))
}

/// Reads a file whole; `-` is standard input.
pub fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    };
    read.with_context(|| format!("failed to read {}", path.display()))?;
    ensure!(text.len() as u64 <= FILE_BYTES_MAX, "{} has over {FILE_BYTES_MAX} bytes", path.display());
    Ok(text)
}

fn parse(text: &str, payload_bytes_max: u64) -> Result<Vec<Message>> {
    let written: Vec<Written> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text)?
    } else {
        vec![serde_json::from_str(text)?]
    };
    ensure!(!written.is_empty(), "there is none");
    ensure!(written.len() <= MESSAGES_MAX, "there are {}; at most {MESSAGES_MAX} are run at once", written.len());
    let message = |(written, number): (Written, u32)| {
        written.check(number, payload_bytes_max).with_context(|| format!("message {number}"))
    };
    written.into_iter().zip(1..).map(message).collect()
}

impl Written {
    fn check(self, number: u32, payload_bytes_max: u64) -> Result<Message> {
        let (payload, content_type) = match (self.payload, self.payload_text) {
            (Some(_), Some(_)) => anyhow::bail!("both `payload` and `payload_text` are given"),
            (Some(json), None) => (json.to_string(), CONTENT_TYPE_JSON),
            (None, Some(text)) => (text, "text/plain"),
            (None, None) => (String::new(), CONTENT_TYPE_JSON),
        };
        ensure!(
            payload.len() as u64 <= payload_bytes_max,
            "the payload has {} bytes; the outbox accepts {payload_bytes_max} (`limits.payload_bytes_max`)",
            payload.len()
        );
        Ok(Message {
            id: match self.id {
                Some(id) => MessageId::parse(&id)?,
                // The same each time, so that what is printed can be compared.
                None => MessageId::parse(&format!("test-{number}"))?,
            },
            topic: Topic::parse(&self.topic)?,
            key: self.key,
            priority: self.priority,
            payload: payload.into(),
            content_type: self.content_type.unwrap_or_else(|| content_type.to_owned()),
            headers: self.headers.into_iter().map(|(name, value)| Header { name, value }).collect(),
            tenant: self.tenant,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_is_written() {
        let messages = parse(
            r#"[
                {"topic": "orders.created", "payload": {"b": 1.50, "a": [1]}},
                {"topic": "t", "id": "m", "key": "k", "headers": {"h": "v"}, "tenant": "a", "priority": 50,
                 "payload_text": "plain"},
                {"topic": "t", "payload": null, "content_type": "x/y"},
                {"topic": "t"}
            ]"#,
            100,
        )
        .unwrap();
        let told = |it: &Message| {
            format!(
                "{} {} {:?} {} {}",
                it.id,
                it.topic,
                it.key,
                it.content_type,
                String::from_utf8_lossy(&it.payload)
            )
        };
        assert_eq!(told(&messages[0]), r#"test-1 orders.created None application/json {"a":[1],"b":1.5}"#);
        assert_eq!(told(&messages[1]), r#"m t Some("k") text/plain plain"#);
        assert_eq!(messages[1].headers, [Header { name: "h".to_owned(), value: "v".to_owned() }]);
        assert_eq!((messages[1].priority, messages[1].tenant.as_deref()), (Priority(50), Some("a")));
        assert_eq!(told(&messages[2]), "test-3 t None x/y null");
        assert_eq!(told(&messages[3]), "test-4 t None application/json ");
        assert_eq!(parse(r#" {"topic": "t"} "#, 100).unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_message_says_why() {
        for (text, wants) in [
            ("", "EOF"),
            ("[]", "there is none"),
            (r#"{"topik": "t"}"#, "unknown field `topik`"),
            (r#"[{"topic": "t"}, {"topic": "a..b"}]"#, "message 2"),
            (r#"{"topic": "t", "payload": 1, "payload_text": ""}"#, "both"),
            (r#"{"topic": "t", "payload_text": "12345"}"#, "has 5 bytes"),
            (r#"{"topic": "t", "id": "a b"}"#, "message 1"),
        ] {
            let error = format!("{:#}", parse(text, 4).unwrap_err());
            assert!(error.contains(wants), "{text}: {error}");
        }
    }
}
