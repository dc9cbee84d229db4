//! Effects of one attempt, held back until it succeeds, and checked as the real host checks them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::imports::Ended;
use super::{CONTENT_TYPE_JSON, Emitted};
use crate::{Header, Message, Outgoing};

/// Longest key of the state and of a counter, in bytes.
const KEY_BYTES_MAX: usize = 1024;
/// Longest ordering key of a message, in bytes.
const MESSAGE_KEY_BYTES_MAX: usize = 1024;
/// Longest content type of a message, in bytes.
const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// Most that a message's headers may have as JSON, in bytes.
const HEADERS_BYTES_MAX: usize = 65_536;
/// What a header counts beside its name and value, in bytes.
const HEADER_BYTES: usize = 80;
/// Longest delay of a message.
const DELAY_MAX: Duration = Duration::from_secs(1_000 * 365 * 86_400);
/// Longest topic, in bytes.
const TOPIC_BYTES_MAX: usize = 255;
/// Longest metadata of a marker, in bytes of JSON without spaces.
const METADATA_BYTES_MAX: usize = 4096;
/// Reads, writes, additions and emitted messages of an attempt, together; the host's default.
const EFFECTS_MAX: usize = 1_000;
/// Bytes of keys, values and bodies of all effects; the host's default.
const EFFECT_BYTES_MAX: usize = 8 << 20;

/// A value that this attempt wrote; `None` is a deletion.
#[derive(Debug)]
pub struct Written {
    pub value: Option<Vec<u8>>,
    pub version: u64,
}

/// What an attempt has read and written so far.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Versions by key; `None` of a key that was not there.
    pub reads: BTreeMap<String, Option<u64>>,
    pub writes: BTreeMap<String, Written>,
    pub adds: BTreeMap<String, i64>,
    pub emits: Vec<Emitted>,
    pub annotation: Option<Value>,
    annotation_bytes: usize,
    count: usize,
    bytes: usize,
}

impl Buffer {
    /// Takes one more effect into account.
    fn spend(&mut self, count: usize, bytes: usize) -> Result<(), Ended> {
        self.count += count;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.count > EFFECTS_MAX {
            return Err(over_limit(format!("the attempt has over {EFFECTS_MAX} effects")));
        }
        if self.bytes > EFFECT_BYTES_MAX {
            return Err(over_limit(format!("the effects have over {EFFECT_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    pub fn read(&mut self, key: &str, version: Option<u64>) -> Result<(), Ended> {
        if self.reads.insert(key.to_owned(), version).is_none() {
            self.spend(1, key.len())?;
        }
        Ok(())
    }

    pub fn write(&mut self, key: &str, value: Option<&[u8]>, version: u64) -> Result<(), Ended> {
        let bytes = value.map_or(0, <[u8]>::len);
        let written = Written { value: value.map(<[u8]>::to_vec), version };
        match self.writes.insert(key.to_owned(), written) {
            Some(old) => {
                self.bytes -= old.value.map_or(0, |value| value.len());
                self.spend(0, bytes)
            }
            None => self.spend(1, key.len() + bytes),
        }
    }

    pub fn add(&mut self, counter: &str, delta: i64) -> Result<(), Ended> {
        if let Some(sum) = self.adds.get_mut(counter) {
            *sum = sum.wrapping_add(delta);
            return Ok(());
        }
        self.adds.insert(counter.to_owned(), delta);
        self.spend(1, counter.len())
    }

    /// Takes a message whose topic and size are right, and which has this id.
    pub fn emit(&mut self, outgoing: &Outgoing, id: String, handled: &Message) -> Result<(), Ended> {
        let key = outgoing.key.as_deref().unwrap_or_default();
        check_text("the key of an emitted message", key)?;
        check_size("the key", key.len(), MESSAGE_KEY_BYTES_MAX)?;
        let content_type = outgoing.content_type.as_deref();
        check_text("the content type of an emitted message", content_type.unwrap_or_default())?;
        check_size("the content type", content_type.map_or(0, str::len), CONTENT_TYPE_BYTES_MAX)?;
        for (name, value) in &outgoing.headers {
            check_text("a header of an emitted message", name)?;
            check_text("a header of an emitted message", value)?;
        }
        let headers = headers(&outgoing.headers);
        check_size("the JSON of the headers", json_bytes(&headers), HEADERS_BYTES_MAX)?;
        let bytes = outgoing.topic.len()
            + outgoing.key.as_ref().map_or(0, String::len)
            + content_type.map_or(0, str::len)
            + headers.iter().map(|header| header.name.len() + header.value.len() + HEADER_BYTES).sum::<usize>()
            + outgoing.body.len();
        self.spend(1, bytes)?;
        let message = Message {
            id,
            topic: outgoing.topic.clone(),
            key: outgoing.key.clone(),
            content_type: content_type.unwrap_or(CONTENT_TYPE_JSON).to_owned(),
            headers,
            tenant: handled.tenant.clone(),
            priority: outgoing.priority.unwrap_or(handled.priority),
            body: outgoing.body.clone(),
        };
        let delay = outgoing.delay_ms.map(|delay| Duration::from_millis(delay).min(DELAY_MAX));
        self.emits.push(Emitted { message, delay });
        Ok(())
    }

    pub fn annotate(&mut self, metadata: Value) -> Result<(), Ended> {
        let bytes = metadata.to_string().len();
        self.bytes -= std::mem::replace(&mut self.annotation_bytes, bytes);
        self.annotation = Some(metadata);
        self.spend(0, bytes)
    }
}

fn over_limit(message: String) -> Ended {
    Ended { code: "effect_limit", message }
}

/// Checks the key of a value or a counter.
pub fn check_key(key: &str) -> Result<(), Ended> {
    if key.len() > KEY_BYTES_MAX {
        let text = format!("a key of the state has {} bytes; at most {KEY_BYTES_MAX} are allowed", key.len());
        return Err(over_limit(text));
    }
    check_text("a key of the state", key)
}

fn check_text(what: &str, text: &str) -> Result<(), Ended> {
    if text.contains('\0') {
        return Err(over_limit(format!("{what} has a NUL character, which a database cannot hold")));
    }
    Ok(())
}

fn check_size(what: &str, bytes: usize, max: usize) -> Result<(), Ended> {
    if bytes > max {
        let text = format!("{what} of an emitted message has {bytes} bytes; at most {max} are allowed");
        return Err(over_limit(text));
    }
    Ok(())
}

/// Size of headers as the outbox counts them: a JSON object with a space behind each colon and comma.
fn json_bytes(headers: &[Header]) -> usize {
    let char_bytes = |c: char| match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => "\\u0000".len(),
        c => c.len_utf8(),
    };
    let quoted = |text: &str| 2 + text.chars().map(char_bytes).sum::<usize>();
    let entries = headers.iter().map(|it| quoted(&it.name) + quoted(&it.value) + ": ".len());
    "{}".len() + entries.sum::<usize>() + ", ".len() * headers.len().saturating_sub(1)
}

/// What is wrong with a topic, if anything.
pub fn check_topic(topic: &str) -> Result<(), String> {
    if topic.is_empty() {
        return Err("topic is empty; name it like `orders.created`".to_owned());
    }
    if topic.len() > TOPIC_BYTES_MAX {
        return Err(format!("topic has {} bytes; at most {TOPIC_BYTES_MAX} are allowed", topic.len()));
    }
    for segment in topic.split('.') {
        if segment.is_empty() {
            return Err(format!("topic `{topic}` has an empty segment; segments are separated by single dots"));
        }
        if let Some(found) = segment.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))) {
            return Err(format!("topic `{topic}` contains {found:?}; segments hold A-Z a-z 0-9 _ -"));
        }
    }
    Ok(())
}

/// Reads the metadata of a marker; the error says what is wrong with it.
pub fn metadata(text: &str) -> Result<Value, String> {
    let too_long = |bytes| format!("metadata has {bytes} bytes; at most {METADATA_BYTES_MAX} are allowed");
    // Also where it is mostly spaces.
    if text.len() > METADATA_BYTES_MAX * 2 {
        return Err(too_long(text.len()));
    }
    let value: Value = serde_json::from_str(text).map_err(|error| format!("metadata is not JSON: {error}"))?;
    if has_nul(&value) {
        return Err("metadata has a NUL character, which a database cannot hold".to_owned());
    }
    match value.to_string().len() {
        0..=METADATA_BYTES_MAX => Ok(value),
        bytes => Err(too_long(bytes)),
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A name stands once in a message; the last value holds.
fn headers(given: &[(String, String)]) -> Vec<Header> {
    let mut headers: Vec<Header> = Vec::with_capacity(given.len());
    for (name, value) in given {
        match headers.iter_mut().find(|header| header.name == *name) {
            Some(header) => header.value.clone_from(value),
            None => headers.push(Header { name: name.clone(), value: value.clone() }),
        }
    }
    headers
}
