//! Identities. Each is its own type, so that none can stand where another belongs.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name or message id, in bytes.
const NAME_BYTES_MAX: usize = 200;

/// A name or id that cannot be accepted where it enters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// What was being named.
        what: &'static str,
    },
    /// The text is over [`NAME_BYTES_MAX`].
    #[error("{what} has {bytes} bytes; at most {max} are allowed")]
    TooLong {
        /// What was being named.
        what: &'static str,
        /// Length found, in bytes.
        bytes: usize,
        /// Length allowed, in bytes.
        max: usize,
    },
    /// A character outside the allowed set.
    #[error("{what} `{text}` contains {found:?}; allowed are {allowed}")]
    BadCharacter {
        /// What was being named.
        what: &'static str,
        /// The text as given.
        text: String,
        /// The first character refused.
        found: char,
        /// The set, in words.
        allowed: &'static str,
    },
}

fn check(
    what: &'static str,
    text: &str,
    allowed: &'static str,
    accepts: impl Fn(char) -> bool,
) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty { what });
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(InvalidName::TooLong { what, bytes: text.len(), max: NAME_BYTES_MAX });
    }
    match text.chars().find(|&c| !accepts(c)) {
        Some(found) => Err(InvalidName::BadCharacter { what, text: text.to_owned(), found, allowed }),
        None => Ok(()),
    }
}

/// Identity of a message: a UUIDv7 unless the producer gave its own. Unique in the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MessageId(Arc<str>);

impl MessageId {
    /// A fresh UUIDv7.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().to_string().into())
    }

    /// Checks a producer's id: 1 to 200 visible ASCII characters, so that it can travel as a header unchanged.
    ///
    /// # Errors
    /// [`InvalidName`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check("message id", text, "visible ASCII characters", |c| c.is_ascii_graphic())?;
        Ok(Self(text.into()))
    }

    /// An id that a database already accepted.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A declared name: of a subscription, a state namespace, a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks a name: 1 to 200 of `A-Z a-z 0-9 _ - .`.
    ///
    /// # Errors
    /// [`InvalidName`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check("name", text, "A-Z a-z 0-9 _ - .", |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))?;
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name made of this one, cut where it is long, and of digits after it.
    pub(crate) fn of_process(&self, digits: &str) -> Self {
        // A name is ASCII, so that it can be cut anywhere.
        let cut = self.0.len().min(NAME_BYTES_MAX - 1 - digits.len());
        Self(format!("{}.{digits}", self.0.get(..cut).unwrap_or(&self.0)).into())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The database's number for a subscription. Stable for as long as its name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SubscriptionId(pub i32);

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The store's own reference to one delivery of one subscription. Opaque to everything but the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct DeliveryId(pub i64);

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of one lease, never used twice: the fence that every settlement names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct LeaseToken(pub i64);

impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// SHA-256 of a component's bytes, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct PluginDigest(Arc<str>);

impl PluginDigest {
    /// Wraps a digest that was just computed.
    #[must_use]
    pub fn from_hex(hex: &str) -> Self {
        Self(hex.into())
    }

    /// The digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PluginDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_enter() {
        assert!(Name::parse("delay-stats.v2").is_ok());
        assert_eq!(Name::parse("").unwrap_err().to_string(), "name is empty");
        assert!(Name::parse("a b").unwrap_err().to_string().contains("contains ' '"));
        assert!(Name::parse(&"x".repeat(201)).unwrap_err().to_string().contains("201 bytes"));
        assert!(MessageId::parse("order/42#1").is_ok());
        assert!(MessageId::parse("line\nbreak").is_err());
    }
}
