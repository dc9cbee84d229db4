//! Topics and the patterns that subscriptions match them with.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest topic or pattern, in bytes.
const TOPIC_BYTES_MAX: usize = 255;

/// Why a topic is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopic {
    /// The topic is empty.
    #[error("topic is empty; name it like `orders.created`")]
    Empty,
    /// The topic is too long.
    #[error("topic has {0} bytes; at most {TOPIC_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// Two dots in a row, or a dot at either end.
    #[error("topic `{0}` has an empty segment; segments are separated by single dots")]
    EmptySegment(String),
    /// A character that no topic may hold.
    #[error("topic `{topic}` contains {found:?}; segments hold A-Z a-z 0-9 _ -")]
    BadCharacter {
        /// The topic as given.
        topic: String,
        /// The first character refused.
        found: char,
    },
}

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// What would also be wrong with a topic.
    #[error("pattern: {0}")]
    Topic(#[from] InvalidTopic),
    /// `>` before the end.
    #[error("pattern `{0}` has `>` before its end; `>` stands for all remaining segments and must be the last")]
    RestNotLast(String),
    /// A wildcard glued to other characters.
    #[error("pattern `{0}` mixes a wildcard with other characters; `*` and `>` stand for whole segments")]
    PartialWildcard(String),
}

/// Dotted name that messages are sent under, such as `orders.created`: 1 to 255 bytes, segments of `A-Z a-z 0-9 _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks a topic.
    ///
    /// # Errors
    /// [`InvalidTopic`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidTopic> {
        if text.is_empty() {
            return Err(InvalidTopic::Empty);
        }
        if text.len() > TOPIC_BYTES_MAX {
            return Err(InvalidTopic::TooLong(text.len()));
        }
        for segment in text.split('.') {
            check_segment(text, segment)?;
        }
        Ok(Self(text.into()))
    }

    /// A topic that a database already accepted.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text.into())
    }

    /// The topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_segment(topic: &str, segment: &str) -> Result<(), InvalidTopic> {
    if segment.is_empty() {
        return Err(InvalidTopic::EmptySegment(topic.to_owned()));
    }
    match segment.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))) {
        Some(found) => Err(InvalidTopic::BadCharacter { topic: topic.to_owned(), found }),
        None => Ok(()),
    }
}

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// This text exactly.
    Literal(String),
    /// `*`: any one segment.
    Any,
    /// `>`: one or more remaining segments; always the last.
    Rest,
}

/// What a subscription matches topics with: literal segments, `*` for one segment, a final `>` for one or more.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicPattern {
    text: Arc<str>,
    segments: Vec<Segment>,
}

impl TopicPattern {
    /// Checks a pattern.
    ///
    /// # Errors
    /// [`InvalidPattern`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if text.is_empty() {
            return Err(InvalidTopic::Empty.into());
        }
        if text.len() > TOPIC_BYTES_MAX {
            return Err(InvalidTopic::TooLong(text.len()).into());
        }
        let last = text.split('.').count() - 1;
        let mut segments = Vec::with_capacity(last + 1);
        for (i, segment) in text.split('.').enumerate() {
            segments.push(match segment {
                "*" => Segment::Any,
                ">" if i == last => Segment::Rest,
                ">" => return Err(InvalidPattern::RestNotLast(text.to_owned())),
                _ if segment.contains(['*', '>']) => {
                    return Err(InvalidPattern::PartialWildcard(text.to_owned()));
                }
                _ => {
                    check_segment(text, segment)?;
                    Segment::Literal(segment.to_owned())
                }
            });
        }
        Ok(Self { text: text.into(), segments })
    }

    /// The segments, in order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a topic matches. The databases decide by their own form of the pattern; a test holds all forms equal.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        let mut rest = topic.as_str().split('.');
        for segment in &self.segments {
            match (segment, rest.next()) {
                (Segment::Rest, found) => return found.is_some(),
                (Segment::Any, Some(_)) => {}
                (Segment::Literal(wanted), Some(found)) if wanted == found => {}
                _ => return false,
            }
        }
        rest.next().is_none()
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for TopicPattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for TopicPattern {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, topic: &str) -> bool {
        TopicPattern::parse(pattern).unwrap().matches(&Topic::parse(topic).unwrap())
    }

    #[test]
    fn wildcards_stand_for_whole_segments() {
        assert!(matches("orders.created", "orders.created"));
        assert!(!matches("orders.created", "orders.created.eu"));
        assert!(matches("orders.*", "orders.created"));
        assert!(!matches("orders.*", "orders.created.eu"));
        assert!(!matches("orders.*", "orders"));
        assert!(matches("orders.>", "orders.created.eu"));
        assert!(!matches("orders.>", "orders"));
        assert!(matches(">", "anything.at.all"));
        assert!(matches("*.orders.>", "acme.orders.created"));
        assert!(!matches("*.orders.>", "acme.eu.orders.created"));
    }

    #[test]
    fn bad_topics_and_patterns_say_what_is_wrong() {
        for (topic, wants) in
            [("", "empty"), ("a..b", "empty segment"), (".a", "empty segment"), ("a b", "' '"), ("a.*", "'*'")]
        {
            let error = Topic::parse(topic).unwrap_err().to_string();
            assert!(error.contains(wants), "{topic}: {error}");
        }
        assert!(Topic::parse(&"x".repeat(256)).unwrap_err().to_string().contains("256"));
        for (pattern, wants) in [("a.>.b", "last"), ("a.b*", "whole segments"), ("a..b", "empty segment")] {
            let error = TopicPattern::parse(pattern).unwrap_err().to_string();
            assert!(error.contains(wants), "{pattern}: {error}");
        }
    }
}
