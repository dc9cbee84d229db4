//! Messages and attempts that a test makes up.

use std::time::Duration;

use serde::Serialize;

use crate::{Attempt, Header, Item, Lane, Message};

/// Only where [`mock`](crate::mock) is.
impl Message {
    /// A message for a test: without body, key, headers and tenant, of priority 0, with the id `test-message` and the
    /// content type `application/json`.
    #[must_use]
    pub fn for_test(topic: impl Into<String>) -> Self {
        Self {
            id: "test-message".to_owned(),
            topic: topic.into(),
            key: None,
            content_type: super::CONTENT_TYPE_JSON.to_owned(),
            headers: Vec::new(),
            tenant: None,
            priority: 0,
            body: Vec::new(),
        }
    }

    /// Sets the id.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Sets the ordering key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the media type of the body.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push(Header { name: name.into(), value: value.into() });
        self
    }

    /// Sets the tenant.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Sets how urgent it is.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the body to a value in JSON.
    ///
    /// # Panics
    /// If JSON cannot hold the value.
    #[must_use]
    #[track_caller]
    pub fn json<T: Serialize + ?Sized>(self, body: &T) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => self.body(body),
            Err(error) => panic!("JSON cannot hold the body of the message: {error}"),
        }
    }
}

/// Only where [`mock`](crate::mock) is.
impl Attempt {
    /// The first of ten attempts, on the primary lane, with 30 seconds of time.
    #[must_use]
    pub fn for_test() -> Self {
        Self { number: 1, max: 10, lane: Lane::Primary, deadline_ms: 30_000, maybe_duplicate: false }
    }

    /// Sets its number, from 1.
    #[must_use]
    pub fn number(mut self, number: u32) -> Self {
        self.number = number;
        self
    }

    /// Sets how many attempts are allowed in all.
    #[must_use]
    pub fn max(mut self, max: u32) -> Self {
        self.max = max;
        self
    }

    /// Sets which lane it came by.
    #[must_use]
    pub fn lane(mut self, lane: Lane) -> Self {
        self.lane = lane;
        self
    }

    /// Sets the time that is left; whole milliseconds.
    #[must_use]
    pub fn deadline(mut self, left: Duration) -> Self {
        self.deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Says that an earlier attempt began, so effects outside may have happened already.
    #[must_use]
    pub fn maybe_duplicate(mut self) -> Self {
        self.maybe_duplicate = true;
        self
    }
}

/// A message in its first attempt, as [`Attempt::for_test`] makes it; only where [`mock`](crate::mock) is.
impl From<Message> for Item {
    fn from(message: Message) -> Self {
        Self { message, attempt: Attempt::for_test() }
    }
}

/// Only where [`mock`](crate::mock) is.
impl From<(Message, Attempt)> for Item {
    fn from((message, attempt): (Message, Attempt)) -> Self {
        Self { message, attempt }
    }
}
