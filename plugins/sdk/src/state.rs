//! The state of a subscription: keys with values, and counters. Writes commit with the message, or not at all.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Failure;
use crate::host::effects;

/// Reads and writes the state; from [`Context::state`](crate::Context::state).
///
/// A read sees the writes of this attempt and of earlier messages. If a key that was read has changed before the
/// commit, the message is run again, and the attempt is not counted. Counters never conflict: where many messages
/// add to one number, use [`add`](Self::add).
///
/// A key has at most 1,024 bytes and no NUL character; the host ends the attempt otherwise.
#[derive(Debug, Clone, Copy)]
pub struct State(());

impl State {
    pub(crate) fn new() -> Self {
        Self(())
    }

    /// The value of a key, or `None`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        effects::get(key).map(|entry| entry.value)
    }

    /// Writes a key.
    pub fn put(&self, key: &str, value: &[u8]) {
        effects::put(key, value);
    }

    /// Deletes a key. It need not be there.
    pub fn delete(&self, key: &str) {
        effects::delete(key);
    }

    /// The value of a key that was written with [`put_json`](Self::put_json), or `None`.
    ///
    /// # Errors
    /// [`Failure::Retry`] with code `bad_state` if the value is not a `T`: not the message is at fault, and another
    /// version of the plugin may mend it.
    pub fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Failure> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match serde_json::from_slice(&value) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(Failure::retry("bad_state", format_args!("state key `{key}`: {error}"))),
        }
    }

    /// Writes a key as JSON.
    ///
    /// # Errors
    /// [`Failure::Reject`] with code `unencodable` if JSON cannot hold the value, such as a map whose keys are no
    /// text.
    pub fn put_json<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), Failure> {
        match serde_json::to_vec(value) {
            Ok(value) => {
                self.put(key, &value);
                Ok(())
            }
            Err(error) => Err(Failure::reject("unencodable", format_args!("state key `{key}`: {error}"))),
        }
    }

    /// Reads a key as JSON (its default if it is absent), changes it, writes it and answers what was written.
    ///
    /// # Errors
    /// Those of [`get_json`](Self::get_json) and [`put_json`](Self::put_json).
    pub fn update_json<T>(&self, key: &str, change: impl FnOnce(&mut T)) -> Result<T, Failure>
    where
        T: Default + DeserializeOwned + Serialize,
    {
        let mut value = self.get_json(key)?.unwrap_or_default();
        change(&mut value);
        self.put_json(key, &value)?;
        Ok(value)
    }

    /// Adds to a counter; it starts at 0 and wraps at the bounds of 64 bits.
    pub fn add(&self, counter: &str, delta: i64) {
        effects::add(counter, delta);
    }

    /// A counter as last committed: what this attempt has added is not in it.
    #[must_use]
    pub fn count(&self, counter: &str) -> i64 {
        effects::count(counter)
    }
}
