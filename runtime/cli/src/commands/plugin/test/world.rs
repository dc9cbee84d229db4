//! What a plugin finds outside the sandbox while it is tried out: state in memory, and a network that is none.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use laneway_core::{Effects, StateEntry, StateError, StateVersion, StateView};
use laneway_host::{HttpAnswer, HttpRequest, LogLine, Mock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What goes wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// HTTP requests are answered with status 500
    #[value(name = "http-500")]
    Http500,
    /// HTTP requests are answered with status 429 and `retry-after: 7`
    #[value(name = "http-429")]
    Http429,
    /// HTTP requests get no answer in time
    HttpTimeout,
    /// HTTP connections are refused
    HttpRefused,
    /// What a message read has changed when it is committed: it is run again, as the engine would
    StateConflict,
    /// The state cannot be read
    StateError,
}

impl Fault {
    /// What requests get under it.
    fn answer(self) -> Option<HttpAnswer> {
        let status = |status, headers| Some(HttpAnswer::Response { status, headers, body: Bytes::new() });
        match self {
            Self::Http500 => status(500, Vec::new()),
            Self::Http429 => status(429, vec![("retry-after".to_owned(), "7".to_owned())]),
            Self::HttpTimeout => Some(HttpAnswer::Timeout),
            Self::HttpRefused => Some(HttpAnswer::Refused),
            Self::StateConflict | Self::StateError => None,
        }
    }

    /// Whether it decides what requests get.
    pub fn is_of_http(self) -> bool {
        self.answer().is_some()
    }
}

/// State as it is written down: texts by key, other JSON as its text, `{"base64": "..."}` for other bytes.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenState {
    pub state: BTreeMap<String, Value>,
    pub counters: BTreeMap<String, i64>,
}

/// The outside.
pub struct World {
    answer: HttpAnswer,
    readable: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<String, StateEntry>,
    counters: BTreeMap<String, i64>,
    version: i64,
    seen: Seen,
}

/// What came out of the sandbox.
#[derive(Default)]
pub struct Seen {
    pub log: Vec<LogLine>,
    pub http: Vec<(HttpRequest, HttpAnswer)>,
}

impl World {
    /// # Errors
    /// A value in the state is no base64.
    pub fn new(answer: HttpAnswer, faults: &[Fault], written: WrittenState) -> Result<Self> {
        let mut inner = Inner { counters: written.counters, ..Inner::default() };
        for (key, value) in written.state {
            let bytes = bytes_of(&value).with_context(|| format!("key `{key}` of the state"))?;
            inner.put(key, bytes.into());
        }
        let answer = faults.iter().find_map(|fault| fault.answer()).unwrap_or(answer);
        Ok(Self { answer, readable: !faults.contains(&Fault::StateError), inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came out since the last time that this was asked.
    pub fn take_seen(&self) -> Seen {
        std::mem::take(&mut self.inner().seen)
    }

    /// Writes the keys that were read anew with the values that they have, as if another message had been faster.
    /// Answers whether there were any.
    pub fn overtake(&self, effects: &Effects) -> bool {
        let mut inner = self.inner();
        for (key, version) in &effects.reads {
            let value = match version {
                Some(_) => inner.entries.get(&**key).map(|entry| entry.value.clone()),
                None => None,
            };
            if let Some(value) = value {
                inner.put(key.to_string(), value);
            }
        }
        !effects.reads.is_empty()
    }

    /// Commits what a message wrote.
    pub fn commit(&self, effects: &Effects) {
        let mut inner = self.inner();
        for (key, value) in &effects.writes {
            match value {
                Some(value) => inner.put(key.to_string(), value.clone()),
                None => drop(inner.entries.remove(&**key)),
            }
        }
        for (counter, delta) in &effects.adds {
            let sum = inner.counters.entry(counter.to_string()).or_default();
            *sum = sum.wrapping_add(*delta);
        }
    }

    /// The state as it is now.
    pub fn written(&self) -> WrittenState {
        let inner = self.inner();
        let value = |(key, entry): (&String, &StateEntry)| (key.clone(), value_of(&entry.value));
        WrittenState { state: inner.entries.iter().map(value).collect(), counters: inner.counters.clone() }
    }
}

impl Inner {
    fn put(&mut self, key: String, value: Bytes) {
        self.version += 1;
        self.entries.insert(key, StateEntry { value, version: StateVersion(self.version) });
    }
}

#[async_trait]
impl StateView for World {
    async fn get(&self, key: &str) -> Result<Option<StateEntry>, StateError> {
        self.check()?;
        Ok(self.inner().entries.get(key).cloned())
    }

    async fn counter(&self, key: &str) -> Result<i64, StateError> {
        self.check()?;
        Ok(self.inner().counters.get(key).copied().unwrap_or_default())
    }
}

impl World {
    fn check(&self) -> Result<(), StateError> {
        if self.readable {
            return Ok(());
        }
        Err(StateError { text: "the database is out of reach (--fault state-error)".to_owned(), transient: true })
    }
}

impl Mock for World {
    fn answer(&self, request: HttpRequest) -> HttpAnswer {
        self.inner().seen.http.push((request, self.answer.clone()));
        self.answer.clone()
    }

    fn log(&self, line: LogLine) {
        self.inner().seen.log.push(line);
    }
}

/// Bytes as JSON: text if they are text.
pub fn value_of(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

fn bytes_of(value: &Value) -> Result<Vec<u8>> {
    match value {
        Value::String(text) => Ok(text.clone().into_bytes()),
        Value::Object(fields) if fields.len() == 1 && fields.get("base64").is_some_and(Value::is_string) => {
            let text = fields["base64"].as_str().unwrap_or_default();
            STANDARD.decode(text).context("its `base64` is none")
        }
        other => Ok(other.to_string().into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_written_down_as_it_was_read() {
        let text = r#"{"state":{"a":"text","b":{"base64":"/w=="}},"counters":{"n":7}}"#;
        let world = World::new(HttpAnswer::Timeout, &[], serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(serde_json::to_string(&world.written()).unwrap(), text);
        assert_eq!(bytes_of(&json!({"x": [1]})).unwrap(), b"{\"x\":[1]}");
        assert!(bytes_of(&json!({"base64": "?"})).is_err());
    }

    #[test]
    fn a_key_that_was_overtaken_keeps_its_value_and_has_another_version() {
        let written = WrittenState { state: [("k".to_owned(), json!("v"))].into(), ..WrittenState::default() };
        let world = World::new(HttpAnswer::Timeout, &[], written).unwrap();
        let before = world.inner().entries["k"].clone();
        let read =
            Effects { reads: vec![("k".into(), Some(before.version)), ("no".into(), None)], ..Effects::default() };
        assert!(world.overtake(&read));
        let after = world.inner().entries["k"].clone();
        assert_eq!(after.value, before.value);
        assert_ne!(after.version, before.version);
        assert!(!world.inner().entries.contains_key("no"));
        assert!(!world.overtake(&Effects::default()));
    }
}
