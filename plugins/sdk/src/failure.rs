//! How a plugin says that it failed.

use std::error::Error;
use std::fmt::{Display, Write};
use std::num::{ParseFloatError, ParseIntError};
use std::str::Utf8Error;
use std::string::FromUtf8Error;
use std::time::Duration;

use crate::bindings::laneway::plugin::types;
use crate::{Detail, Throttle};

/// Why a message was not processed or forwarded. The cases are what the host can do about it.
///
/// A code is short and of few values (`http_404`, `bad_payload`): it is kept with the dead letter and counted.
///
/// `?` makes a failure of any [`Error`]. An error of the data (JSON, UTF-8, numbers) becomes a [`Failure::Reject`]
/// with code `bad_data`, since another attempt would read the same bytes. Any other becomes a [`Failure::Retry`]
/// with code `error`: it loses nothing, and after the last attempt the message is in the dead letters all the same.
/// Where that is wrong, name the case: `.map_err(|error| Failure::unknown_outcome("charge", error))?`. For the
/// conversion's sake `Failure` is not itself an [`Error`].
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// Took no effect: back off and try again.
    Retry(Detail),
    /// Pause; the attempt does not count.
    Throttled(Throttle),
    /// Will never succeed: dead-letter now.
    Reject(Detail),
    /// May have taken effect outside: the subscription's policy decides.
    UnknownOutcome(Detail),
    /// Cannot work as configured: pause the subscription and keep its messages.
    Misconfigured(Detail),
}

impl Failure {
    /// Took no effect: back off and try again. The code `forbidden` says that the destination does not let this in: where
    /// that is so of many different messages in a row, the subscription pauses and no attempt counts.
    #[must_use]
    pub fn retry(code: &str, message: impl Display) -> Self {
        Self::Retry(detail(code, message))
    }

    /// The destination asks for a pause, or cannot be reached, and nothing took effect. The pause is of this length, if it
    /// said so; else longer each time, until a message is taken. The attempt does not count.
    #[must_use]
    pub fn throttled(after: Option<Duration>, message: impl Display) -> Self {
        let after_ms = after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        Self::Throttled(Throttle { after_ms, message: message.to_string() })
    }

    /// Will never succeed: dead-letter now.
    #[must_use]
    pub fn reject(code: &str, message: impl Display) -> Self {
        Self::Reject(detail(code, message))
    }

    /// May have taken effect outside: the subscription's policy decides.
    #[must_use]
    pub fn unknown_outcome(code: &str, message: impl Display) -> Self {
        Self::UnknownOutcome(detail(code, message))
    }

    /// Cannot work as configured: pause the subscription and keep its messages.
    #[must_use]
    pub fn misconfigured(code: &str, message: impl Display) -> Self {
        Self::Misconfigured(detail(code, message))
    }
}

fn detail(code: &str, message: impl Display) -> Detail {
    Detail { code: code.to_owned(), message: message.to_string() }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        of_error(&error)
    }
}

fn of_error(error: &(dyn Error + 'static)) -> Failure {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    if is_of_data(error) { Failure::reject("bad_data", text) } else { Failure::retry("error", text) }
}

fn is_of_data(error: &(dyn Error + 'static)) -> bool {
    error.is::<serde_json::Error>()
        || error.is::<Utf8Error>()
        || error.is::<FromUtf8Error>()
        || error.is::<ParseIntError>()
        || error.is::<ParseFloatError>()
}

impl From<Failure> for types::Failure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Retry(detail) => Self::Retry(detail),
            Failure::Throttled(throttle) => Self::Throttled(throttle),
            Failure::Reject(detail) => Self::Reject(detail),
            Failure::UnknownOutcome(detail) => Self::UnknownOutcome(detail),
            Failure::Misconfigured(detail) => Self::Misconfigured(detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(json: &str) -> Result<i64, Failure> {
        let numbers: Vec<String> = serde_json::from_str(json)?;
        let mut sum = 0;
        for number in numbers {
            sum += number.parse::<i64>()?;
        }
        if sum < 0 {
            return Err(std::io::Error::other("no luck").into());
        }
        Ok(sum)
    }

    #[test]
    fn errors_of_the_data_reject_and_others_retry() {
        assert_eq!(sum(r#"["1", "2"]"#), Ok(3));
        assert!(matches!(sum("]"), Err(Failure::Reject(Detail { code, .. })) if code == "bad_data"));
        assert!(matches!(sum(r#"["x"]"#), Err(Failure::Reject(Detail { code, .. })) if code == "bad_data"));
        assert_eq!(sum(r#"["-1"]"#), Err(Failure::retry("error", "no luck")));
    }

    #[test]
    fn the_causes_of_an_error_are_told() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("no answer")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let failure = Failure::from(Outer(std::io::Error::other("line cut")));
        assert_eq!(failure, Failure::retry("error", "no answer: line cut"));
    }

    #[test]
    fn a_pause_is_told_in_milliseconds() {
        let Failure::Throttled(throttle) = Failure::throttled(Some(Duration::from_secs(2)), "busy") else {
            panic!("not throttled");
        };
        assert_eq!(throttle.after_ms, Some(2000));
        let longest = Failure::throttled(Some(Duration::MAX), "");
        assert!(matches!(longest, Failure::Throttled(throttle) if throttle.after_ms == Some(u64::MAX)));
    }
}
