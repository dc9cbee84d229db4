//! Messages: what producers write and handlers read. Immutable once written.

use bytes::Bytes;
use serde::Serialize;

use crate::{MessageId, Priority, Topic};

/// Content type of a message whose producer named none.
pub const CONTENT_TYPE_JSON: &str = "application/json";

/// One named value that travels with a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    /// Name, as the producer wrote it.
    pub name: String,
    /// Value.
    pub value: String,
}

/// A message as it was read from the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Identity; reaches handlers, publishers and the outside world unchanged.
    pub id: MessageId,
    /// What it was sent under.
    pub topic: Topic,
    /// Ordering key.
    pub key: Option<String>,
    /// How urgent.
    pub priority: Priority,
    /// The body, opaque to Laneway.
    pub payload: Bytes,
    /// Media type of the payload.
    pub content_type: String,
    /// Further named values.
    pub headers: Vec<Header>,
    /// Tenant that it belongs to.
    pub tenant: Option<String>,
}

/// A message to be written, by a producer or by a handler that emits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    /// Identity; a second message of the same id is a duplicate.
    pub id: MessageId,
    /// What to send it under.
    pub topic: Topic,
    /// Ordering key.
    pub key: Option<String>,
    /// How urgent.
    pub priority: Priority,
    /// The body.
    pub payload: Bytes,
    /// Media type of the payload.
    pub content_type: String,
    /// Further named values; a name stands once.
    pub headers: Vec<Header>,
    /// Tenant that it belongs to.
    pub tenant: Option<String>,
    /// Not before this long after now, by the database's clock. `None` is at once.
    pub delay: Option<std::time::Duration>,
}

impl NewMessage {
    /// A JSON message of normal priority with a fresh id.
    #[must_use]
    pub fn new(topic: Topic, payload: impl Into<Bytes>) -> Self {
        Self {
            id: MessageId::generate(),
            topic,
            key: None,
            priority: Priority::NORMAL,
            payload: payload.into(),
            content_type: CONTENT_TYPE_JSON.to_owned(),
            headers: Vec::new(),
            tenant: None,
            delay: None,
        }
    }
}

/// What became of a message given to the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Enqueued {
    /// The message's id.
    pub id: MessageId,
    /// Whether a message of this id was there already; nothing was written then.
    pub duplicate: bool,
}
