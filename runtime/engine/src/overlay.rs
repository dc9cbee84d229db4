//! State that messages have written and that is not yet committed, so that the next message can build on it.
//!
//! Without it a hot key could change once a commit. With it, an attempt reads the newest value on this node, whether
//! committed or not, and its own writes join the chain when it ends. Chains keep the order of the settlements, so a
//! group commits as one. When a group cannot commit (another node wrote a key, or a lease in the chain was lost), the
//! overlay starts a new *era*: everything that was read or written in the old one runs again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use laneway_core::{Effects, Name, StateEntry, StateError, StateRead, StateVersion, StateView, StateWrite, Store};

/// Keys kept in memory after they are committed; over this, they are read again when needed.
const CLEAN_KEYS_MAX: usize = 10_000;
/// Bytes of values kept, likewise.
const CLEAN_BYTES_MAX: usize = 32 * 1024 * 1024;

#[derive(Clone)]
struct Entry {
    current: Option<StateEntry>,
    /// Writes that are not yet committed.
    pending: u32,
}

#[derive(Default)]
struct Inner {
    era: u64,
    entries: HashMap<Arc<str>, Entry>,
    /// Of all values in `entries`.
    bytes: usize,
}

fn bytes_of(entry: Option<&StateEntry>) -> usize {
    entry.map_or(0, |entry| entry.value.len())
}

impl Inner {
    /// Forgets what is committed when it is too much to keep.
    fn trim(&mut self) {
        if self.entries.len() > CLEAN_KEYS_MAX || self.bytes > CLEAN_BYTES_MAX {
            self.entries.retain(|_, entry| entry.pending > 0);
            self.bytes = self.entries.values().map(|entry| bytes_of(entry.current.as_ref())).sum();
        }
    }
}

/// The newest state of one namespace on this node.
pub(crate) struct Overlay {
    namespace: Name,
    store: Arc<dyn Store>,
    inner: Mutex<Inner>,
}

/// An attempt's reads and writes as they join the chain.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub reads: Vec<StateRead>,
    pub writes: Vec<StateWrite>,
}

impl Overlay {
    pub fn new(namespace: Name, store: Arc<dyn Store>) -> Self {
        Self { namespace, store, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each critical section leaves the map whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current era. An attempt notes it before it begins.
    pub fn era(&self) -> u64 {
        self.lock().era
    }

    /// Joins an attempt to the chain if nothing that it read has changed since, and calls `queue` while no other
    /// attempt can join, so that the order of the chain is the order of the queue. `None` if it must run again.
    pub fn accept<T>(&self, era: u64, effects: &mut Effects, queue: impl FnOnce(Accepted) -> T) -> Option<T> {
        let mut inner = self.lock();
        if inner.era != era {
            return None;
        }
        for (key, version) in &effects.reads {
            // A key that is not here has no uncommitted write; the database compares the version at the commit.
            if let Some(entry) = inner.entries.get(key)
                && entry.current.as_ref().map(|e| e.version) != *version
            {
                return None;
            }
        }
        let reads = effects
            .reads
            .drain(..)
            .map(|(key, version)| StateRead { namespace: self.namespace.clone(), key, version })
            .collect();
        let mut writes = Vec::with_capacity(effects.writes.len());
        for (key, value) in effects.writes.drain(..) {
            let version = StateVersion(rand::random());
            let current = value.clone().map(|value| StateEntry { value, version });
            let after = bytes_of(current.as_ref());
            let entry = inner.entries.entry(key.clone()).or_insert(Entry { current: None, pending: 0 });
            let before = bytes_of(entry.current.as_ref());
            entry.current = current;
            entry.pending += 1;
            inner.bytes = inner.bytes + after - before;
            writes.push(StateWrite { namespace: self.namespace.clone(), key, value, version });
        }
        Some(queue(Accepted { reads, writes }))
    }

    /// Takes note that writes of an era are committed.
    pub fn committed<'a>(&self, era: u64, writes: impl Iterator<Item = &'a StateWrite>) {
        let mut inner = self.lock();
        if inner.era != era {
            return;
        }
        for write in writes {
            if let Some(entry) = inner.entries.get_mut(&write.key) {
                entry.pending = entry.pending.saturating_sub(1);
            }
        }
        inner.trim();
    }

    /// Starts a new era: the chain cannot be committed.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.era += 1;
        inner.entries.clear();
        inner.bytes = 0;
    }
}

#[async_trait]
impl StateView for Overlay {
    async fn get(&self, key: &str) -> Result<Option<StateEntry>, StateError> {
        let era = {
            let inner = self.lock();
            if let Some(entry) = inner.entries.get(key) {
                return Ok(entry.current.clone());
            }
            inner.era
        };
        let stored = self.store.state(&self.namespace, key).await?;
        let mut inner = self.lock();
        if inner.era != era {
            // What was read may be older than the new era; the attempt will be refused by its era anyway.
            return Ok(stored);
        }
        // Another attempt may have written the key in the meantime; its value is newer.
        if let Some(entry) = inner.entries.get(key) {
            return Ok(entry.current.clone());
        }
        // A handler that only reads commits nothing, so what it reads is trimmed here.
        inner.bytes += bytes_of(stored.as_ref());
        inner.entries.insert(key.into(), Entry { current: stored.clone(), pending: 0 });
        inner.trim();
        Ok(stored)
    }

    async fn counter(&self, key: &str) -> Result<i64, StateError> {
        Ok(self.store.counter(&self.namespace, key).await?)
    }
}
