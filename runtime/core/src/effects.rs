//! What a handler writes through the host: state, counters, follow-on messages. Held back until the settlement.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use crate::{MarkerMetadata, Name, NewMessage, StoreError};

/// Identity of one value of one state key. Drawn at random for each write, so that a key deleted and written again
/// never shows an old version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct StateVersion(pub i64);

/// A state key's value and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// The value.
    pub value: Bytes,
    /// Which value this is.
    pub version: StateVersion,
}

/// A read that an attempt depended on: it holds if the key still has this version (`None`: is absent).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRead {
    /// Namespace of the key.
    pub namespace: Name,
    /// The key.
    pub key: Arc<str>,
    /// The version that was read.
    pub version: Option<StateVersion>,
}

/// A write to one state key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateWrite {
    /// Namespace of the key.
    pub namespace: Name,
    /// The key.
    pub key: Arc<str>,
    /// The new value; `None` deletes.
    pub value: Option<Bytes>,
    /// The new value's version.
    pub version: StateVersion,
}

/// An addition to a counter. Commutes, so it never conflicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterAdd {
    /// Namespace of the counter.
    pub namespace: Name,
    /// The counter's key.
    pub key: Arc<str>,
    /// What to add; wraps at the bounds of 64 bits.
    pub delta: i64,
}

/// What one attempt read and wrote, before the engine has given it a namespace and versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// Keys read from the [`StateView`], with the version seen; each key once, the first read.
    pub reads: Vec<(Arc<str>, Option<StateVersion>)>,
    /// Keys written, each once with its last value; `None` deletes.
    pub writes: Vec<(Arc<str>, Option<Bytes>)>,
    /// Counters added to, each once.
    pub adds: Vec<(Arc<str>, i64)>,
    /// Messages emitted, in order.
    pub emits: Vec<NewMessage>,
    /// What the marker is to say beside that the message is processed.
    pub metadata: Option<MarkerMetadata>,
}

impl Effects {
    /// Whether nothing was read or written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty()
            && self.writes.is_empty()
            && self.adds.is_empty()
            && self.emits.is_empty()
            && self.metadata.is_none()
    }
}

/// State could not be read; the attempt cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
#[error("state could not be read: {text}")]
pub struct StateError {
    /// Why.
    pub text: String,
    /// Whether the same read may succeed later without anyone's help: the database's trouble, not the message's.
    pub transient: bool,
}

impl From<StoreError> for StateError {
    fn from(error: StoreError) -> Self {
        Self { transient: error.is_transient(), text: error.to_string() }
    }
}

/// Where an attempt reads state from: the database, below the writes of earlier messages that are not yet settled.
#[async_trait]
pub trait StateView: Send + Sync {
    /// Reads a key. `Ok(None)` if it is absent.
    ///
    /// # Errors
    /// [`StateError`] if the database cannot be read.
    async fn get(&self, key: &str) -> Result<Option<StateEntry>, StateError>;

    /// Reads a counter as last committed; 0 if it is absent. Does not conflict with additions.
    ///
    /// # Errors
    /// [`StateError`] if the database cannot be read.
    async fn counter(&self, key: &str) -> Result<i64, StateError>;
}
