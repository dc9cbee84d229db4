//! Effects of one attempt: held back on the host's side until the engine commits them, or not.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use laneway_core::{
    CONTENT_TYPE_BYTES_MAX, CONTENT_TYPE_JSON, DELAY_MAX, Effects, HEADERS_BYTES_MAX, Header,
    MESSAGE_KEY_BYTES_MAX, MarkerMetadata, MessageId, NewMessage, Priority, StateVersion, Topic,
};

use crate::Limits;
use crate::bindings::laneway::plugin::effects::{EmitError, Entry, Host, Outgoing};
use crate::session::{Session, Subject};
use crate::wait::Ended;

/// Longest key of the state and of a counter, in bytes: what PostgreSQL can index.
const KEY_BYTES_MAX: usize = 1024;
/// What a header takes of the host's memory beside its name and value, in bytes.
const HEADER_BYTES: usize = 80;

/// Values by key, in the order in which the keys came.
struct Keyed<V> {
    entries: Vec<(Arc<str>, V)>,
    places: HashMap<Arc<str>, usize>,
}

impl<V> Default for Keyed<V> {
    fn default() -> Self {
        Self { entries: Vec::new(), places: HashMap::new() }
    }
}

impl<V> Keyed<V> {
    fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.places.get(key).map(|&place| &mut self.entries[place].1)
    }

    fn insert(&mut self, key: &str, value: V) {
        let key: Arc<str> = key.into();
        self.places.insert(Arc::clone(&key), self.entries.len());
        self.entries.push((key, value));
    }
}

/// A value that this attempt wrote; `None` is a deletion.
struct Written {
    value: Option<Bytes>,
    /// What the guest sees as its version. The one that is stored is drawn at the commit.
    version: u64,
}

/// What an attempt has read and written so far.
#[derive(Default)]
pub(crate) struct Buffer {
    reads: Keyed<Option<StateVersion>>,
    writes: Keyed<Written>,
    adds: Keyed<i64>,
    emits: Vec<NewMessage>,
    metadata: Option<MarkerMetadata>,
    count: usize,
    bytes: usize,
}

impl Buffer {
    /// Takes one more effect into account.
    fn spend(&mut self, count: usize, bytes: usize, limits: &Limits) -> Result<(), Ended> {
        self.count += count;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.count > limits.effects_max {
            return Err(Ended::EffectLimit(format!("the attempt has over {} effects", limits.effects_max)));
        }
        if self.bytes > limits.effect_bytes_max {
            return Err(Ended::EffectLimit(format!("the effects have over {} bytes", limits.effect_bytes_max)));
        }
        Ok(())
    }

    fn write(&mut self, key: &str, value: Option<Vec<u8>>, limits: &Limits) -> Result<(), Ended> {
        let bytes = value.as_ref().map_or(0, Vec::len);
        let written = Written { value: value.map(Bytes::from), version: fresh_version() };
        if let Some(found) = self.writes.get_mut(key) {
            let old = std::mem::replace(found, written);
            self.bytes -= old.value.map_or(0, |value| value.len());
            self.spend(0, bytes, limits)
        } else {
            self.spend(1, key.len() + bytes, limits)?;
            self.writes.insert(key, written);
            Ok(())
        }
    }

    /// Notes what was read. A key that reads differently within one attempt has been written in between.
    fn read(&mut self, key: &str, version: Option<StateVersion>, limits: &Limits) -> Result<(), Ended> {
        match self.reads.get_mut(key) {
            Some(first) if *first == version => Ok(()),
            Some(_) => Err(Ended::Stale),
            None => {
                self.spend(1, key.len(), limits)?;
                self.reads.insert(key, version);
                Ok(())
            }
        }
    }

    fn add(&mut self, counter: &str, delta: i64, limits: &Limits) -> Result<(), Ended> {
        if let Some(sum) = self.adds.get_mut(counter) {
            *sum = sum.wrapping_add(delta);
            return Ok(());
        }
        self.spend(1, counter.len(), limits)?;
        self.adds.insert(counter, delta);
        Ok(())
    }

    /// What the engine gets: of an attempt that failed, only what it read.
    pub(crate) fn into_effects(self, success: bool) -> Effects {
        if !success {
            return Effects { reads: self.reads.entries, ..Effects::default() };
        }
        Effects {
            reads: self.reads.entries,
            writes: self.writes.entries.into_iter().map(|(key, written)| (key, written.value)).collect(),
            adds: self.adds.entries,
            emits: self.emits,
            metadata: self.metadata,
        }
    }
}

/// Checks the key of a value or a counter. What a database refuses must end the attempt that wrote it: at the commit,
/// it would fail again and again.
fn check_key(key: &str) -> Result<(), Ended> {
    if key.len() > KEY_BYTES_MAX {
        let text = format!("a key of the state has {} bytes; at most {KEY_BYTES_MAX} are allowed", key.len());
        return Err(Ended::EffectLimit(text));
    }
    check_text("a key of the state", key)
}

/// Checks a part of an emitted message.
fn check_size(what: &str, bytes: usize, max: usize) -> Result<(), Ended> {
    if bytes > max {
        let text = format!("{what} of an emitted message has {bytes} bytes; at most {max} are allowed");
        return Err(Ended::EffectLimit(text));
    }
    Ok(())
}

/// Checks a text for what PostgreSQL cannot hold.
fn check_text(what: &str, text: &str) -> Result<(), Ended> {
    if text.contains('\0') {
        return Err(Ended::EffectLimit(format!("{what} has a NUL character, which a database cannot hold")));
    }
    Ok(())
}

/// Differs from all others, as far as 64 random bits do.
fn fresh_version() -> u64 {
    RandomState::new().hash_one(0)
}

impl Session {
    fn subject(&self) -> Result<&Subject, Ended> {
        self.subject.as_ref().ok_or(Ended::NoMessage)
    }
}

impl Host for Session {
    async fn get(&mut self, key: String) -> wasmtime::Result<Option<Entry>> {
        self.facts.allowed.state()?;
        check_key(&key)?;
        if let Some(written) = self.effects.writes.get_mut(&key) {
            let version = written.version;
            return Ok(written.value.as_ref().map(|value| Entry { value: value.to_vec(), version }));
        }
        let state = Arc::clone(&self.subject()?.state);
        let found = self.bounds.wait(state.get(&key)).await?.map_err(Ended::State)?;
        self.effects.read(&key, found.as_ref().map(|entry| entry.version), &self.facts.limits)?;
        // The version is opaque to the guest: the same bits, without a sign.
        Ok(found.map(|entry| Entry { value: entry.value.to_vec(), version: entry.version.0.cast_unsigned() }))
    }

    fn put(&mut self, key: String, value: Vec<u8>) -> wasmtime::Result<()> {
        self.facts.allowed.state()?;
        self.subject()?;
        check_key(&key)?;
        Ok(self.effects.write(&key, Some(value), &self.facts.limits)?)
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<()> {
        self.facts.allowed.state()?;
        self.subject()?;
        check_key(&key)?;
        Ok(self.effects.write(&key, None, &self.facts.limits)?)
    }

    fn add(&mut self, counter: String, delta: i64) -> wasmtime::Result<()> {
        self.facts.allowed.state()?;
        self.subject()?;
        check_key(&counter)?;
        Ok(self.effects.add(&counter, delta, &self.facts.limits)?)
    }

    async fn count(&mut self, counter: String) -> wasmtime::Result<i64> {
        self.facts.allowed.state()?;
        check_key(&counter)?;
        let state = Arc::clone(&self.subject()?.state);
        Ok(self.bounds.wait(state.counter(&counter)).await?.map_err(Ended::State)?)
    }

    fn emit(&mut self, outgoing: Outgoing) -> wasmtime::Result<Result<String, EmitError>> {
        let handled = Arc::clone(&self.subject()?.message);
        let topic = match Topic::parse(&outgoing.topic) {
            Ok(topic) => topic,
            Err(error) => return Ok(Err(EmitError::BadTopic(error.to_string()))),
        };
        self.facts.allowed.emit(&topic)?;
        let payload_bytes_max = self.facts.payload_bytes_max;
        if outgoing.body.len() as u64 > payload_bytes_max {
            return Ok(Err(EmitError::TooLarge(payload_bytes_max)));
        }
        let key = outgoing.key.as_deref().unwrap_or_default();
        check_text("the key of an emitted message", key)?;
        check_size("the key", key.len(), MESSAGE_KEY_BYTES_MAX)?;
        let content_type = outgoing.content_type.as_deref().unwrap_or_default();
        check_text("the content type of an emitted message", content_type)?;
        check_size("the content type", content_type.len(), CONTENT_TYPE_BYTES_MAX)?;
        for (name, value) in &outgoing.headers {
            check_text("a header of an emitted message", name)?;
            check_text("a header of an emitted message", value)?;
        }
        let headers = headers(outgoing.headers);
        check_size("the JSON of the headers", Header::json_bytes(&headers), HEADERS_BYTES_MAX)?;
        let bytes = outgoing.topic.len()
            + outgoing.key.as_ref().map_or(0, String::len)
            + outgoing.content_type.as_ref().map_or(0, String::len)
            + headers.iter().map(|header| header.name.len() + header.value.len() + HEADER_BYTES).sum::<usize>()
            + outgoing.body.len();
        self.effects.spend(1, bytes, &self.facts.limits)?;
        let id = MessageId::generate();
        self.effects.emits.push(NewMessage {
            id: id.clone(),
            topic,
            key: outgoing.key,
            priority: outgoing.priority.map_or(handled.priority, Priority),
            payload: outgoing.body.into(),
            content_type: outgoing.content_type.unwrap_or_else(|| CONTENT_TYPE_JSON.to_owned()),
            headers,
            tenant: handled.tenant.clone(),
            delay: outgoing.delay_ms.map(|delay| Duration::from_millis(delay).min(DELAY_MAX)),
        });
        Ok(Ok(id.as_str().to_owned()))
    }

    fn annotate(&mut self, metadata: String) -> wasmtime::Result<Result<(), String>> {
        self.subject()?;
        match MarkerMetadata::parse(&metadata) {
            Ok(metadata) => {
                let old = self.effects.metadata.replace(metadata.clone());
                self.effects.bytes -= old.map_or(0, |old| old.as_str().len());
                self.effects.spend(0, metadata.as_str().len(), &self.facts.limits)?;
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}

/// A name stands once in a message; the last value holds.
fn headers(given: Vec<(String, String)>) -> Vec<Header> {
    let mut places: HashMap<String, usize> = HashMap::with_capacity(given.len());
    let mut headers: Vec<Header> = Vec::with_capacity(given.len());
    for (name, value) in given {
        if let Some(&place) = places.get(&name) {
            headers[place].value = value;
        } else {
            places.insert(name.clone(), headers.len());
            headers.push(Header { name, value });
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_once_with_their_last_value_and_failure_keeps_reads_only() {
        let limits = Limits::default();
        let fill = || {
            let mut buffer = Buffer::default();
            buffer.read("r", Some(StateVersion(1)), &limits).unwrap();
            buffer.read("r", Some(StateVersion(1)), &limits).unwrap();
            buffer.write("k", Some(vec![1]), &limits).unwrap();
            buffer.write("gone", Some(vec![1]), &limits).unwrap();
            buffer.write("k", Some(vec![2]), &limits).unwrap();
            buffer.write("gone", None, &limits).unwrap();
            buffer.add("c", i64::MAX, &limits).unwrap();
            buffer.add("c", 1, &limits).unwrap();
            buffer
        };
        let effects = fill().into_effects(true);
        assert_eq!(effects.reads, [("r".into(), Some(StateVersion(1)))]);
        assert_eq!(effects.writes, [("k".into(), Some(Bytes::from_static(&[2]))), ("gone".into(), None)]);
        assert_eq!(effects.adds, [("c".into(), i64::MIN)]);
        let effects = fill().into_effects(false);
        assert_eq!(effects.reads.len(), 1);
        assert!(effects.writes.is_empty() && effects.adds.is_empty());
    }

    #[test]
    fn a_key_that_changes_between_two_reads_makes_the_attempt_stale() {
        let limits = Limits::default();
        let mut buffer = Buffer::default();
        buffer.read("k", None, &limits).unwrap();
        assert!(matches!(buffer.read("k", Some(StateVersion(7)), &limits), Err(Ended::Stale)));
    }

    #[test]
    fn effects_are_limited_in_number_and_size_but_not_by_repetition() {
        let limits = Limits { effects_max: 2, effect_bytes_max: 100, ..Limits::default() };
        let mut buffer = Buffer::default();
        for i in 0..1_000 {
            buffer.add("c", i, &limits).unwrap();
            buffer.write("k", Some(vec![0; 90]), &limits).unwrap();
        }
        assert!(matches!(buffer.add("d", 1, &limits), Err(Ended::EffectLimit(_))));
        let mut buffer = Buffer::default();
        assert!(matches!(buffer.write("k", Some(vec![0; 101]), &limits), Err(Ended::EffectLimit(_))));
    }

    #[test]
    fn a_header_stands_once() {
        let given = [("a", "1"), ("b", "2"), ("a", "3")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let made = headers(given.to_vec());
        assert_eq!(
            made.iter().map(|h| (h.name.as_str(), h.value.as_str())).collect::<Vec<_>>(),
            [("a", "3"), ("b", "2")]
        );
    }
}
