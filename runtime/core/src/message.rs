//! Messages: what producers write and handlers read. Immutable once written.

use bytes::Bytes;
use serde::Serialize;

use crate::{MessageId, Priority, Topic};

/// Content type of a message whose producer named none.
pub const CONTENT_TYPE_JSON: &str = "application/json";

/// Longest ordering key of a message, in bytes. These limits are the outbox's: what is beyond them, it refuses.
pub const MESSAGE_KEY_BYTES_MAX: usize = 1024;
/// Longest content type of a message, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// Most that a message's headers may have as JSON, in bytes; see [`Header::json_bytes`].
pub const HEADERS_BYTES_MAX: usize = 65_536;
/// Longest delay of a message; it must become due before the year 10,000.
pub const DELAY_MAX: std::time::Duration = std::time::Duration::from_secs(1_000 * 365 * 86_400);

/// One named value that travels with a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    /// Name, as the producer wrote it.
    pub name: String,
    /// Value.
    pub value: String,
}

impl Header {
    /// Size of headers as the outbox counts them: a JSON object with a space behind each colon and comma.
    ///
    /// ```
    /// use laneway_core::Header;
    ///
    /// let header = |name: &str, value: &str| Header { name: name.to_owned(), value: value.to_owned() };
    /// let headers = [header("a", "say \"ä\""), header("b", "\u{1}\n")];
    /// assert_eq!(Header::json_bytes(&headers), r#"{"a": "say \"ä\"", "b": "\u0001\n"}"#.len());
    /// ```
    #[must_use]
    pub fn json_bytes(headers: &[Self]) -> usize {
        let quoted = |text: &str| 2 + text.chars().map(json_char_bytes).sum::<usize>();
        let entries = headers.iter().map(|it| quoted(&it.name) + quoted(&it.value) + ": ".len());
        "{}".len() + entries.sum::<usize>() + ", ".len() * headers.len().saturating_sub(1)
    }
}

fn json_char_bytes(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => "\\u0000".len(),
        c => c.len_utf8(),
    }
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
