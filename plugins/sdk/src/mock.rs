#![doc = include_str!("../../../docs/testing-plugins.md")]

mod effects;
pub(crate) mod imports;
mod log;
mod message;
mod session;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::imports::{Ended, within};
use self::session::{Meanwhile, Session};
use crate::{Context, Failure, Item, Message, Payload, Receipt, export};

pub use self::log::LogLine;
pub use crate::bindings::laneway::plugin::effects::EmitError;
pub use crate::log::Level;

const CONTENT_TYPE_JSON: &str = "application/json";

/// Largest body of an emitted message, in bytes, unless a test sets another; the runtime's default.
const PAYLOAD_BYTES_MAX: u64 = 1024 * 1024;

/// A host for tests: what it knows, it keeps from one message to the next.
#[derive(Debug)]
pub struct MockHost {
    session: Session,
}

impl Default for MockHost {
    fn default() -> Self {
        Self::new()
    }
}

/// What a plugin finds.
impl MockHost {
    /// A host without configuration and state.
    #[must_use]
    pub fn new() -> Self {
        Self { session: Session::new(PAYLOAD_BYTES_MAX) }
    }

    /// Sets a key of the configuration.
    #[must_use]
    pub fn with_config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.session.config.insert(key.into(), value.into());
        self
    }

    /// Sets a key of the state.
    #[must_use]
    pub fn with_state(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.session.set(key.into(), Some(value.into()));
        self
    }

    /// Sets a key of the state to a value in JSON.
    ///
    /// # Panics
    /// If JSON cannot hold the value.
    #[must_use]
    #[track_caller]
    pub fn with_state_json<T: Serialize + ?Sized>(self, key: impl Into<String>, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(value) => self.with_state(key, value),
            Err(error) => panic!("JSON cannot hold the value of the state: {error}"),
        }
    }

    /// Sets a counter.
    #[must_use]
    pub fn with_counter(mut self, counter: impl Into<String>, value: i64) -> Self {
        self.session.counters.insert(counter.into(), value);
        self
    }

    /// Sets how large the body of an emitted message may be, in bytes; 1 MiB if it is not set.
    #[must_use]
    pub fn with_payload_bytes_max(mut self, bytes: u64) -> Self {
        self.session.payload_bytes_max = bytes;
        self
    }
}

/// What goes wrong.
impl MockHost {
    /// Refuses the next message that a handler emits. Called twice, it refuses the next two.
    pub fn refuse_emit(&mut self, error: EmitError) {
        self.session.refusals.push_back(error);
    }

    /// Has another message write a key, or delete it (`None`), while the next message is handled: if that one reads
    /// the key, it is run again. Called twice, the second write comes during the attempt after the next.
    pub fn write_meanwhile(&mut self, key: impl Into<String>, value: Option<&[u8]>) {
        self.session.meanwhile.push_back(Meanwhile { key: key.into(), value: value.map(<[u8]>::to_vec) });
    }
}

/// Calls of a plugin. A panic of the plugin's is the test's: nothing catches it.
impl MockHost {
    /// Has a handler process a message: a [`Message`], which is then in its first attempt, a message and an attempt,
    /// or an [`Item`]. What the handler reads and writes is committed if it succeeds, and dropped if it fails. If what
    /// it read was changed meanwhile, it runs again.
    ///
    /// A handler that breaks a rule of the contract is ended, as by the real host: the result is a
    /// [`Failure::Retry`] with code `effect_limit` (a long key, a NUL character, too many effects) or `log_limit`.
    pub fn handle<P: Payload>(
        &mut self,
        handle: impl Fn(P, &Context) -> Result<(), Failure>,
        delivery: impl Into<Item>,
    ) -> Handled {
        let Item { message, attempt } = delivery.into();
        self.session.begin_call();
        let mut runs = 0;
        loop {
            runs += 1;
            self.session.begin_attempt(Some(message.clone()));
            let call = || export::run(&handle, message.clone(), attempt);
            let ended = |ended: Ended| Err(Failure::retry(ended.code, ended.message));
            let result = within(&mut self.session, call).unwrap_or_else(ended);
            let Some(effects) = self.session.settle(result.is_ok()) else { continue };
            return Handled {
                result,
                emitted: effects.emits,
                writes: effects.writes.into_iter().map(|(key, written)| (key, written.value)).collect(),
                added: effects.adds,
                annotation: effects.annotation,
                runs,
            };
        }
    }

    /// Has a publisher forward messages, one call of its function for each; see
    /// [`publish_batch`](Self::publish_batch).
    pub fn publish<D: Into<Item>>(
        &mut self,
        publish: impl Fn(&Item) -> Result<Receipt, Failure>,
        batch: impl IntoIterator<Item = D>,
    ) -> Vec<Result<Receipt, Failure>> {
        self.publish_batch(|batch| Ok(batch.iter().map(&publish).collect()), batch)
    }

    /// Has a publisher forward a batch. There is one result for each message, as the host makes them: a failure of
    /// the whole stands for all of them, and so does an unknown outcome with code `wrong_answer` where the publisher
    /// answered for more or fewer messages than it was given.
    pub fn publish_batch<D: Into<Item>>(
        &mut self,
        publish: impl Fn(&[Item]) -> Result<Vec<Result<Receipt, Failure>>, Failure>,
        batch: impl IntoIterator<Item = D>,
    ) -> Vec<Result<Receipt, Failure>> {
        let batch: Vec<Item> = batch.into_iter().map(Into::into).collect();
        if batch.is_empty() {
            return Vec::new();
        }
        self.session.begin_call();
        let failure = match within(&mut self.session, || publish(&batch)) {
            Ok(Ok(results)) if results.len() == batch.len() => return results,
            Ok(Ok(results)) => {
                let text = format!("the publisher answered for {} of {} messages", results.len(), batch.len());
                Failure::unknown_outcome("wrong_answer", text)
            }
            Ok(Err(failure)) => failure,
            // What it was sending may be out already.
            Err(ended) => Failure::unknown_outcome(ended.code, ended.message),
        };
        vec![Err(failure); batch.len()]
    }

    /// Has a plugin check its configuration, as when it is deployed.
    ///
    /// # Errors
    /// Those of the check, and why the host ended it.
    pub fn validate(&mut self, check: impl Fn() -> Result<(), Vec<String>>) -> Result<(), Vec<String>> {
        self.session.begin_call();
        within(&mut self.session, check).unwrap_or_else(|ended| Err(vec![ended.message]))
    }

    /// Runs a part of a plugin that reads the configuration or logs.
    ///
    /// # Panics
    /// If the host ends it.
    #[track_caller]
    pub fn run<T>(&mut self, call: impl FnOnce() -> T) -> T {
        self.session.begin_call();
        match within(&mut self.session, call) {
            Ok(answer) => answer,
            Err(Ended { code, message }) => panic!("the host ended the plugin ({code}): {message}"),
        }
    }
}

/// What was left.
impl MockHost {
    /// The value of a key of the state, or `None`.
    #[must_use]
    pub fn state(&self, key: &str) -> Option<&[u8]> {
        self.session.value(key)
    }

    /// The value of a key of the state that holds JSON, or `None`.
    ///
    /// # Panics
    /// If the value is not a `T`.
    #[must_use]
    #[track_caller]
    pub fn state_json<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.state(key).map(|value| read_json(value, &format!("state key `{key}`")))
    }

    /// A counter; 0 if nothing was added to it.
    #[must_use]
    pub fn counter(&self, counter: &str) -> i64 {
        self.session.counters.get(counter).copied().unwrap_or_default()
    }

    /// The lines that were logged in the last call, also if it failed. Further ones than 100 are dropped, as by the
    /// real host.
    #[must_use]
    pub fn log(&self) -> &[LogLine] {
        &self.session.lines.kept
    }
}

/// How a handler ended, and the effects that were committed: none, if it failed.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a handler may have failed"]
pub struct Handled {
    /// What it answered, or why the host ended it.
    pub result: Result<(), Failure>,
    /// Messages that it emitted, in order.
    pub emitted: Vec<Emitted>,
    /// Keys of the state that it wrote, with their last values; `None` if it deleted them.
    pub writes: BTreeMap<String, Option<Vec<u8>>>,
    /// What it added to counters.
    pub added: BTreeMap<String, i64>,
    /// What it noted with the marker of the message, if anything.
    pub annotation: Option<Value>,
    /// How often it was run: more than once if what it read was changed meanwhile.
    pub runs: u32,
}

/// A message that a handler emitted, as the next handler gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Emitted {
    /// The message. Its id is `emitted-1` and so on.
    pub message: Message,
    /// How long after the commit it is held back.
    pub delay: Option<Duration>,
}

impl Emitted {
    /// The body, which holds JSON.
    ///
    /// # Panics
    /// If it is not a `T`.
    #[must_use]
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        read_json(&self.body, &format!("the message to `{}`", self.topic))
    }
}

impl Deref for Emitted {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

#[track_caller]
fn read_json<T: DeserializeOwned>(text: &[u8], what: &str) -> T {
    match serde_json::from_slice(text) {
        Ok(value) => value,
        Err(error) => panic!("{what} is not what the test reads it as: {error}: {}", text.escape_ascii()),
    }
}

#[cfg(test)]
mod tests;
