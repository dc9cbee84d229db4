//! What a handler's function is given beside the payload.

use serde::Serialize;

use crate::bindings::laneway::plugin::effects::EmitError;
use crate::host::effects;
use crate::{Attempt, Failure, Message, Outgoing, State, config};

/// The message being handled, the attempt, and the effects that commit with it, or not at all.
#[derive(Debug)]
pub struct Context {
    message: Message,
    attempt: Attempt,
}

impl Context {
    pub(crate) fn new(message: Message, attempt: Attempt) -> Self {
        Self { message, attempt }
    }

    /// The message as its producer wrote it.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Facts of this try at the message.
    #[must_use]
    pub fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// The value of a key of the configuration; [`config`] has more.
    #[must_use]
    pub fn config(&self, key: &str) -> Option<String> {
        config::get(key)
    }

    /// The state of the subscription, and its counters.
    #[must_use]
    pub fn state(&self) -> State {
        State::new()
    }

    /// Notes something with the marker that says that this message is processed: JSON of at most 4,096 bytes, to be
    /// seen with `laneway messages show`. The last one holds; a subscription without markers keeps none.
    ///
    /// # Errors
    /// [`Failure::Reject`] with code `metadata_refused` if it is too long, has a NUL character, or JSON cannot hold it.
    pub fn annotate<T: Serialize + ?Sized>(&self, metadata: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(metadata).map_err(|error| Failure::reject("metadata_refused", error))?;
        effects::annotate(&text).map_err(|why| Failure::reject("metadata_refused", why))
    }

    /// Sends a message when this one is committed, and answers its id. The host ends the attempt where a key, a
    /// content type or a header has a NUL character.
    ///
    /// # Errors
    /// [`Failure::Reject`] with code `emit_refused` if the topic is not well formed or the body is too large.
    pub fn emit(&self, message: Outgoing) -> Result<String, Failure> {
        effects::emit(&message).map_err(|error| {
            let topic = &message.topic;
            match error {
                EmitError::BadTopic(why) => Failure::reject("emit_refused", why),
                EmitError::TooLarge(bytes_max) => Failure::reject(
                    "emit_refused",
                    format_args!(
                        "message to `{topic}` has {} bytes; at most {bytes_max} are allowed",
                        message.body.len()
                    ),
                ),
            }
        })
    }
}
