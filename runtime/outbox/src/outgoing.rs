//! A message to be written.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use laneway_core::{CONTENT_TYPE_JSON, Header, MessageId, Priority, Topic};

use crate::OutboxError;

/// When a message becomes due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As soon as its transaction commits.
    Now,
    /// This long after now, by the database's clock; on PostgreSQL, after the start of the transaction.
    After(Duration),
    /// At a moment; one that is past is now.
    At(Timestamp),
}

/// A message to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    pub(crate) id: MessageId,
    pub(crate) topic: Topic,
    pub(crate) payload: Bytes,
    pub(crate) content_type: String,
    pub(crate) key: Option<String>,
    pub(crate) priority: Option<Priority>,
    pub(crate) headers: Vec<Header>,
    pub(crate) tenant: Option<String>,
    pub(crate) position: Option<(String, i64)>,
    pub(crate) when: When,
}

impl Outgoing {
    /// A JSON message, due at once, with a fresh id and the [scope's priority](crate::current_priority).
    ///
    /// # Errors
    /// [`OutboxError::Topic`] if the topic is none.
    pub fn new(topic: &str, payload: impl Into<Bytes>) -> Result<Self, OutboxError> {
        Ok(Self {
            id: MessageId::generate(),
            topic: Topic::parse(topic)?,
            payload: payload.into(),
            content_type: CONTENT_TYPE_JSON.to_owned(),
            key: None,
            priority: None,
            headers: Vec::new(),
            tenant: None,
            position: None,
            when: When::Now,
        })
    }

    /// The message's id.
    #[must_use]
    pub fn message_id(&self) -> &MessageId {
        &self.id
    }

    /// With an id of the application's: a second message of the same id is a duplicate, and not written.
    ///
    /// # Errors
    /// [`OutboxError::Name`] if the id is none: 1 to 200 visible ASCII characters.
    pub fn id(mut self, id: &str) -> Result<Self, OutboxError> {
        self.id = MessageId::parse(id)?;
        Ok(self)
    }

    /// Ordered with all messages of the same key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With a priority of its own, whatever the scope.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// With a named value that travels with it; a name stands once, the last one given.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        self.headers.retain(|header| header.name != name);
        self.headers.push(Header { name, value: value.into() });
        self
    }

    /// Of a tenant.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// With a media type other than JSON.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// At a position of a stream, where a message of another id is refused: [`OutboxError::PositionTaken`].
    #[must_use]
    pub fn position(mut self, stream: impl Into<String>, position: i64) -> Self {
        self.position = Some((stream.into(), position));
        self
    }

    /// Not before.
    #[must_use]
    pub fn due(mut self, when: When) -> Self {
        self.when = when;
        self
    }
}
