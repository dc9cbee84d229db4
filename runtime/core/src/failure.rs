//! How an attempt can end badly: what a guest says, and what the host finds.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Most bytes of an error's text that are kept.
pub const ERROR_TEXT_BYTES_MAX: usize = 4096;

/// Error text, cut to [`ERROR_TEXT_BYTES_MAX`] at a character's edge, control characters but line breaks taken out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct ErrorText(String);

impl ErrorText {
    /// Takes any text and caps it.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        text.retain(|c| c == '\n' || c == '\t' || !c.is_control());
        if text.len() > ERROR_TEXT_BYTES_MAX {
            let mut end = ERROR_TEXT_BYTES_MAX - '…'.len_utf8();
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push('…');
        }
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ErrorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why an attempt ended, as a code that is kept with dead letters and counted.
///
/// Codes of the host are the constants here; a guest's own code follows `guest:`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Reason(std::borrow::Cow<'static, str>);

impl Reason {
    /// The guest ran past its timeout.
    pub const TIMEOUT: Self = Self::host("timeout");
    /// The guest asked for more memory than it may have.
    pub const MEMORY_LIMIT: Self = Self::host("memory_limit");
    /// The guest asked for more table elements than it may have.
    pub const TABLE_LIMIT: Self = Self::host("table_limit");
    /// The guest's calls went too deep.
    pub const STACK_OVERFLOW: Self = Self::host("stack_overflow");
    /// The guest handed the host more data than one call may carry.
    pub const OUTPUT_LIMIT: Self = Self::host("output_limit");
    /// The guest held more resources than it may.
    pub const RESOURCE_LIMIT: Self = Self::host("resource_limit");
    /// The guest wrote more effects than one message may.
    pub const EFFECT_LIMIT: Self = Self::host("effect_limit");
    /// The guest wrote more log than one message may.
    pub const LOG_LIMIT: Self = Self::host("log_limit");
    /// The guest executed `unreachable`, as a panic or an abort does.
    pub const PANIC: Self = Self::host("guest_panic");
    /// Any other trap: a bad memory access, a division by zero.
    pub const TRAP: Self = Self::host("trap");
    /// A publisher answered for another number of messages than it was given.
    pub const WRONG_ANSWER: Self = Self::host("wrong_answer");
    /// The guest could not be instantiated.
    pub const INSTANTIATION: Self = Self::host("instantiation");
    /// The guest used what is not granted to it.
    pub const DENIED: Self = Self::host("denied");
    /// A host function failed.
    pub const HOST: Self = Self::host("host_error");
    /// The last attempt that is allowed began, and the node that held the lease ended, or lost it, before the answer.
    pub const LEASE_EXPIRED: Self = Self::host("lease_expired");
    /// The attempt was ended because the node is shutting down.
    pub const INTERRUPTED: Self = Self::host("interrupted");
    /// What it writes to could not be reached, or asked for pauses, for longer than the retry policy's patience. Or a
    /// version on trial was asked to wait.
    pub const THROTTLED: Self = Self::host("throttled");
    /// A row of the message or of its delivery breaks the rules of the schema, as one written with checks switched off.
    pub const UNREADABLE: Self = Self::host("unreadable");
    /// A guest's own code, that of a [`Failure::Retry`] that may speak of all messages rather than of one: the destination
    /// does not let this in. Where all that is tried comes to that, the subscription pauses and nothing is counted.
    pub const FORBIDDEN: Self = Self::host("guest:forbidden");

    const fn host(code: &'static str) -> Self {
        Self(std::borrow::Cow::Borrowed(code))
    }

    /// A code of the guest's own, capped and cleaned: at most 64 of `A-Z a-z 0-9 _ - . :`, others become `_`.
    #[must_use]
    pub fn of_guest(code: &str) -> Self {
        let clean: String = code
            .chars()
            .take(64)
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':') { c } else { '_' })
            .collect();
        Self(format!("guest:{clean}").into())
    }

    /// A code read back from a database.
    #[must_use]
    pub fn from_stored(code: String) -> Self {
        Self(code.into())
    }

    /// The code.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the engine can do about a failed attempt. The cases are those of the plugin contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Took no effect: back off and try again.
    Retry {
        /// Why.
        reason: Reason,
        /// In words.
        error: ErrorText,
    },
    /// The destination asks for a pause, or cannot be reached; the attempt does not count.
    Throttled {
        /// How long to wait, if it said. Else it is longer each time, until something succeeds.
        after: Option<Duration>,
        /// In words.
        error: ErrorText,
    },
    /// Will never succeed: dead-letter now.
    Reject {
        /// Why.
        reason: Reason,
        /// In words.
        error: ErrorText,
    },
    /// May have taken effect outside: the subscription's policy decides.
    UnknownOutcome {
        /// Why.
        reason: Reason,
        /// In words.
        error: ErrorText,
    },
    /// The subscription cannot work as it is configured: keep the messages, pause it.
    Misconfigured {
        /// Why.
        reason: Reason,
        /// In words.
        error: ErrorText,
    },
    /// The node is going away: hand the delivery back, uncounted.
    Interrupted,
    /// The state that the attempt read is no longer current: run it again, uncounted.
    Stale,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_is_capped_at_a_character() {
        let text = ErrorText::new("ä".repeat(5000));
        assert!(text.as_str().len() <= ERROR_TEXT_BYTES_MAX);
        assert!(text.as_str().ends_with('…'));
        assert_eq!(ErrorText::new("a\0b\nc").as_str(), "ab\nc");
    }

    #[test]
    fn guest_codes_are_cleaned() {
        assert_eq!(Reason::of_guest("HTTP 404").as_str(), "guest:HTTP_404");
    }
}
