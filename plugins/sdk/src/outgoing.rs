//! Messages that a handler emits.

use std::time::Duration;

use serde::Serialize;

use crate::{Failure, Outgoing};

impl Outgoing {
    /// A message to a topic, with any body. It has the content type `application/json` and the priority of the
    /// message being handled, unless they are set.
    #[must_use]
    pub fn new(topic: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self {
            topic: topic.into(),
            key: None,
            priority: None,
            content_type: None,
            headers: Vec::new(),
            body: body.into(),
            delay_ms: None,
        }
    }

    /// A message to a topic, with a body in JSON.
    ///
    /// # Errors
    /// [`Failure::Reject`] with code `unencodable` if JSON cannot hold the value, such as a map whose keys are no
    /// text.
    pub fn json<T: Serialize + ?Sized>(topic: impl Into<String>, body: &T) -> Result<Self, Failure> {
        match serde_json::to_vec(body) {
            Ok(body) => Ok(Self::new(topic, body)),
            Err(error) => Err(Failure::reject("unencodable", error)),
        }
    }

    /// Sets the ordering key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets how urgent it is: any integer, or a name of [`priority`](crate::priority).
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Sets the media type of the body.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Holds it back for this long after the commit; whole milliseconds.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay_ms = Some(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority;

    #[test]
    fn what_is_not_set_is_left_to_the_host() {
        let message = Outgoing::json("a.b", &[1]).unwrap();
        assert_eq!((message.topic.as_str(), message.body.as_slice()), ("a.b", b"[1]".as_slice()));
        assert!(message.key.is_none() && message.priority.is_none() && message.content_type.is_none());
        assert!(message.headers.is_empty() && message.delay_ms.is_none());
    }

    #[test]
    fn every_setter_sets() {
        let message = Outgoing::new("a.b", "x")
            .key("k")
            .priority(priority::HIGH)
            .content_type("text/plain")
            .header("n", "v")
            .delay(Duration::from_secs(3));
        assert_eq!(message.key.as_deref(), Some("k"));
        assert_eq!(message.priority, Some(50));
        assert_eq!(message.content_type.as_deref(), Some("text/plain"));
        assert_eq!(message.headers, [("n".to_owned(), "v".to_owned())]);
        assert_eq!(message.delay_ms, Some(3000));
    }
}
