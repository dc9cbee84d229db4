//! What a mock host knows, and how it answers a plugin.

use std::collections::{BTreeMap, VecDeque};

use super::effects::{Buffer, check_key, check_topic, metadata};
use super::imports::Ended;
use super::log::Lines;
use crate::bindings::laneway::plugin::effects::{EmitError, Entry};
use crate::log::Level;
use crate::{Message, Outgoing};

/// A write by another message while one is handled.
#[derive(Debug)]
pub struct Meanwhile {
    pub key: String,
    pub value: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
pub struct Session {
    pub config: BTreeMap<String, String>,
    /// Values and versions, as committed.
    state: BTreeMap<String, Entry>,
    pub counters: BTreeMap<String, i64>,
    pub payload_bytes_max: u64,
    /// What the next messages that a plugin emits are answered.
    pub refusals: VecDeque<EmitError>,
    /// What happens before the next attempts commit, one for each.
    pub meanwhile: VecDeque<Meanwhile>,
    pub lines: Lines,
    /// The message being handled: none while a publisher or a check of the configuration runs.
    handled: Option<Message>,
    buffer: Buffer,
    versions: u64,
    emitted: u64,
}

impl Session {
    pub fn new(payload_bytes_max: u64) -> Self {
        Self { payload_bytes_max, ..Self::default() }
    }

    pub fn value(&self, key: &str) -> Option<&[u8]> {
        self.state.get(key).map(|entry| entry.value.as_slice())
    }

    /// Writes below all attempts.
    pub fn set(&mut self, key: String, value: Option<Vec<u8>>) {
        let version = self.fresh_version();
        match value {
            Some(value) => self.state.insert(key, Entry { value, version }),
            None => self.state.remove(&key),
        };
    }

    /// A call begins, with no lines and no effects.
    pub fn begin_call(&mut self) {
        self.lines = Lines::default();
        self.begin_attempt(None);
    }

    pub fn begin_attempt(&mut self, handled: Option<Message>) {
        self.lines.begin_attempt();
        self.handled = handled;
        self.buffer = Buffer::default();
    }

    /// What the attempt read and wrote, or `None` if what it read has changed. Committed if it is asked to.
    pub fn settle(&mut self, commit: bool) -> Option<Buffer> {
        if let Some(Meanwhile { key, value }) = self.meanwhile.pop_front() {
            self.set(key, value);
        }
        self.handled = None;
        let buffer = std::mem::take(&mut self.buffer);
        if buffer.reads.iter().any(|(key, version)| *version != self.state.get(key).map(|entry| entry.version)) {
            return None;
        }
        if !commit {
            return Some(Buffer::default());
        }
        for (key, written) in &buffer.writes {
            self.set(key.clone(), written.value.clone());
        }
        for (counter, delta) in &buffer.adds {
            let sum = self.counters.entry(counter.clone()).or_default();
            *sum = sum.wrapping_add(*delta);
        }
        Some(buffer)
    }

    fn fresh_version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    fn handled(&self) -> Result<&Message, Ended> {
        self.handled.as_ref().ok_or_else(|| Ended {
            code: "host_error",
            message: "effects are there for messages only, not for the check of the configuration".to_owned(),
        })
    }
}

/// The functions of the contract.
impl Session {
    pub fn log(&mut self, level: Level, message: &str, fields: &[(String, String)]) -> Result<(), Ended> {
        self.lines.write(level, message, fields)
    }

    pub fn config(&self, key: &str) -> Option<String> {
        self.config.get(key).cloned()
    }

    pub fn get(&mut self, key: &str) -> Result<Option<Entry>, Ended> {
        check_key(key)?;
        if let Some(written) = self.buffer.writes.get(key) {
            return Ok(written.value.clone().map(|value| Entry { value, version: written.version }));
        }
        self.handled()?;
        let found = self.state.get(key);
        self.buffer.read(key, found.map(|entry| entry.version))?;
        Ok(found.cloned())
    }

    /// `None` deletes.
    pub fn write(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), Ended> {
        self.handled()?;
        check_key(key)?;
        let version = self.fresh_version();
        self.buffer.write(key, value, version)
    }

    pub fn add(&mut self, counter: &str, delta: i64) -> Result<(), Ended> {
        self.handled()?;
        check_key(counter)?;
        self.buffer.add(counter, delta)
    }

    pub fn count(&self, counter: &str) -> Result<i64, Ended> {
        check_key(counter)?;
        self.handled()?;
        Ok(self.counters.get(counter).copied().unwrap_or_default())
    }

    pub fn emit(&mut self, outgoing: &Outgoing) -> Result<Result<String, EmitError>, Ended> {
        let handled = self.handled()?.clone();
        if let Some(refusal) = self.refusals.pop_front() {
            return Ok(Err(refusal));
        }
        if let Err(wrong) = check_topic(&outgoing.topic) {
            return Ok(Err(EmitError::BadTopic(wrong)));
        }
        if outgoing.body.len() as u64 > self.payload_bytes_max {
            return Ok(Err(EmitError::TooLarge(self.payload_bytes_max)));
        }
        self.emitted += 1;
        let id = format!("emitted-{}", self.emitted);
        self.buffer.emit(outgoing, id.clone(), &handled)?;
        Ok(Ok(id))
    }

    pub fn annotate(&mut self, text: &str) -> Result<Result<(), String>, Ended> {
        self.handled()?;
        match metadata(text) {
            Ok(metadata) => self.buffer.annotate(metadata).map(Ok),
            Err(wrong) => Ok(Err(wrong)),
        }
    }
}
