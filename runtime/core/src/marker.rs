//! What a handler notes on a marker.

use std::fmt;

use serde_json::Value;

/// Longest metadata, in bytes of JSON without spaces.
pub const MARKER_METADATA_BYTES_MAX: usize = 4096;

/// JSON that both databases can hold. Integers beyond 64 bits become floating-point numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerMetadata(String);

/// Why a text is no metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMetadata {
    /// It is not JSON.
    #[error("metadata is not JSON: {0}")]
    Syntax(String),
    /// PostgreSQL holds no NUL character in a text, nor in JSON.
    #[error("metadata has a NUL character, which a database cannot hold")]
    Nul,
    /// It is too long.
    #[error("metadata has {0} bytes; at most {MARKER_METADATA_BYTES_MAX} are allowed")]
    TooLong(usize),
}

impl MarkerMetadata {
    /// Reads JSON text.
    ///
    /// # Errors
    /// [`InvalidMetadata`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidMetadata> {
        // Also where it is mostly spaces, so that reading it is bounded.
        if text.len() > MARKER_METADATA_BYTES_MAX * 2 {
            return Err(InvalidMetadata::TooLong(text.len()));
        }
        let value: Value =
            serde_json::from_str(text).map_err(|error| InvalidMetadata::Syntax(error.to_string()))?;
        if has_nul(&value) {
            return Err(InvalidMetadata::Nul);
        }
        let text = value.to_string();
        if text.len() > MARKER_METADATA_BYTES_MAX {
            return Err(InvalidMetadata::TooLong(text.len()));
        }
        Ok(Self(text))
    }

    /// The JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MarkerMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_database_would_refuse_is_refused_before() {
        assert_eq!(MarkerMetadata::parse(" {\"a\": [1, null]} ").unwrap().as_str(), "{\"a\":[1,null]}");
        for text in ["", "{", "{'a': 1}", "NaN", "1e400", "\"\\ud800\"", "[1] x"] {
            assert!(matches!(MarkerMetadata::parse(text), Err(InvalidMetadata::Syntax(_))), "{text}");
        }
        for text in ["\"\\u0000\"", "[{\"a\\u0000\": 1}]"] {
            assert_eq!(MarkerMetadata::parse(text), Err(InvalidMetadata::Nul), "{text}");
        }
        let of_length = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
        assert!(MarkerMetadata::parse(&of_length(MARKER_METADATA_BYTES_MAX)).is_ok());
        for length in [MARKER_METADATA_BYTES_MAX + 1, MARKER_METADATA_BYTES_MAX * 3] {
            assert_eq!(MarkerMetadata::parse(&of_length(length)), Err(InvalidMetadata::TooLong(length)));
        }
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        assert!(matches!(MarkerMetadata::parse(&deep), Err(InvalidMetadata::Syntax(_))));
    }
}
