//! What a handler's function is given beside the payload.

use crate::bindings::laneway::plugin::effects::{self, EmitError};
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
