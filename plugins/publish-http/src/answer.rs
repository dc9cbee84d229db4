//! What an answer, or the lack of one, means for the message.

use std::fmt::Display;
use std::time::Duration;

use laneway_sdk::{Failure, Receipt};
use wasip2::http::types::ErrorCode;

use crate::request::Credentials;
use crate::retry_after::RetryAfter;

/// Code of a failure that speaks of who may send rather than of the message. The host pauses the subscription when all
/// that it tries comes to that.
const FORBIDDEN: &str = "forbidden";
/// Pause after a request that the host had no room for.
const LIMIT_PAUSE: Duration = Duration::from_secs(1);
/// Longest reference that is kept, in bytes.
const REFERENCE_BYTES_MAX: usize = 1024;

/// What is looked at in a response.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub retry_after: Option<String>,
    pub date: Option<String>,
    /// Beginning of the body, for the error's text; empty for a success.
    pub body: String,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// The outcome of a message whose request was answered. The table in docs/publish-http.md says the same.
pub fn of_answer(answer: Answer, credentials: Credentials, origin: &impl Display) -> Result<Receipt, Failure> {
    let status = answer.status;
    let code = format!("http_{status}");
    let mut text = text(&answer, origin);
    let retry_after = RetryAfter::of(answer.retry_after.as_deref(), answer.date.as_deref());
    if let (RetryAfter::Unreadable, Some(wanted)) = (retry_after, &answer.retry_after) {
        text.push_str(&format!(" (its Retry-After cannot be read: {})", shown(wanted)));
    }
    Err(match status {
        200..=299 => {
            let reference = answer.location.filter(|reference| reference.len() <= REFERENCE_BYTES_MAX);
            return Ok(Receipt { reference });
        }
        300..=399 => Failure::reject("http_redirect", text),
        // Those that every message would get: the messages are kept until the credentials are right again.
        401 if credentials == Credentials::Ours => Failure::misconfigured(&code, text),
        407 | 426 => Failure::misconfigured(&code, text),
        // One message may be forbidden, or all may be. An account that is not paid for is the same.
        401..=403 => Failure::retry(FORBIDDEN, text),
        429 | 503 => match retry_after {
            RetryAfter::Pause(pause) => Failure::throttled(pause, text),
            RetryAfter::Absent | RetryAfter::Unreadable => Failure::retry(&code, text),
        },
        408 | 421 | 423 | 425 => Failure::retry(&code, text),
        // Too large for now only.
        413 if matches!(retry_after, RetryAfter::Pause(_)) => Failure::retry(&code, text),
        // The gateway's word: the service behind it may have taken the message.
        502 | 504 | 520 | 522 | 524 => Failure::unknown_outcome(&code, text),
        400..=499 => Failure::reject(&code, text),
        _ => Failure::retry(&code, text),
    })
}

/// The beginning of what a header says.
fn shown(text: &str) -> String {
    format!("`{}`", text.chars().take(40).collect::<String>())
}

fn text(answer: &Answer, origin: &impl Display) -> String {
    let status = answer.status;
    let mut text = format!("{origin} answered {status}");
    if let (300..=399, Some(location)) = (status, &answer.location) {
        text.push_str(&format!(" to {location}; redirects are not followed: set `url` to where it leads"));
    }
    if !answer.body.trim().is_empty() {
        text.push_str(": ");
        text.push_str(answer.body.trim());
    }
    text
}

/// The outcome of a message whose request failed: did it reach the destination?
///
/// A destination that cannot be reached is none of the message's fault, and none of its attempts: the host waits until
/// it is back.
pub fn of_error(error: &ErrorCode, origin: &impl Display) -> Failure {
    use ErrorCode as E;
    let failed = |what: &str| format!("request to {origin}: {what}");
    let detailed = || failed(&format!("{error:?}"));
    match error {
        E::DnsTimeout | E::DnsError(_) | E::DestinationNotFound => {
            unreachable(failed(&format!("its name was not resolved: {error:?}")))
        }
        E::ConnectionRefused => unreachable(failed("connection refused")),
        E::ConnectionTimeout => unreachable(failed("no connection in time")),
        E::DestinationUnavailable | E::DestinationIpUnroutable => unreachable(detailed()),
        E::TlsCertificateError => unreachable(detailed()),
        // They may come after the request too.
        E::TlsProtocolError | E::TlsAlertReceived(_) => Failure::retry("tls", detailed()),
        // The host's own limit.
        E::ConnectionLimitReached => Failure::throttled(Some(LIMIT_PAUSE), failed("too many requests under way")),
        E::LoopDetected => Failure::retry("loop_detected", detailed()),

        E::HttpRequestDenied => {
            Failure::misconfigured("not_granted", failed(&format!("not granted; add a grant for {origin}")))
        }
        E::DestinationIpProhibited => Failure::misconfigured(
            "not_granted",
            failed("its address is not a public one; grant that address, or allow private addresses in the grant"),
        ),
        E::HttpRequestMethodInvalid
        | E::HttpRequestUriInvalid
        | E::HttpRequestUriTooLong
        | E::ConfigurationError => Failure::misconfigured("bad_request", detailed()),

        E::HttpRequestLengthRequired
        | E::HttpRequestBodySize(_)
        | E::HttpRequestHeaderSectionSize(_)
        | E::HttpRequestHeaderSize(_)
        | E::HttpRequestTrailerSectionSize(_)
        | E::HttpRequestTrailerSize(_) => Failure::reject("request_refused", detailed()),

        E::ConnectionReadTimeout | E::HttpResponseTimeout => {
            Failure::unknown_outcome("response_timeout", failed("sent, but not answered in time"))
        }
        E::ConnectionTerminated
        | E::ConnectionWriteTimeout
        | E::HttpResponseIncomplete
        | E::HttpResponseHeaderSectionSize(_)
        | E::HttpResponseHeaderSize(_)
        | E::HttpResponseBodySize(_)
        | E::HttpResponseTrailerSectionSize(_)
        | E::HttpResponseTrailerSize(_)
        | E::HttpResponseTransferCoding(_)
        | E::HttpResponseContentCoding(_)
        | E::HttpUpgradeFailed
        | E::HttpProtocolError
        | E::InternalError(_) => Failure::unknown_outcome("connection_broken", detailed()),
    }
}

/// Nothing was sent. For how long to wait, the host knows best: longer each time.
fn unreachable(text: String) -> Failure {
    Failure::throttled(None, text)
}

#[cfg(test)]
mod tests {
    use laneway_sdk::Detail;

    use super::*;

    const ORIGIN: &str = "https://example.com";

    fn kind(failure: &Failure) -> (&'static str, &str) {
        match failure {
            Failure::Retry(Detail { code, .. }) => ("retry", code),
            Failure::Throttled(_) => ("throttled", ""),
            Failure::Reject(Detail { code, .. }) => ("reject", code),
            Failure::UnknownOutcome(Detail { code, .. }) => ("unknown", code),
            Failure::Misconfigured(Detail { code, .. }) => ("misconfigured", code),
        }
    }

    fn answer(status: u16) -> Answer {
        Answer { status, ..Answer::default() }
    }

    #[test]
    fn success_is_a_receipt_with_the_location() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(of_answer(answer(status), Credentials::Ours, &ORIGIN), Ok(Receipt { reference: None }));
        }
        let created = Answer { location: Some("/orders/7".to_owned()), ..answer(201) };
        assert_eq!(
            of_answer(created, Credentials::Ours, &ORIGIN),
            Ok(Receipt { reference: Some("/orders/7".to_owned()) })
        );
    }

    #[test]
    fn each_status_has_its_outcome() {
        for (status, wanted) in [
            (301, ("reject", "http_redirect")),
            (304, ("reject", "http_redirect")),
            (400, ("reject", "http_400")),
            (401, ("misconfigured", "http_401")),
            (402, ("retry", "forbidden")),
            (403, ("retry", "forbidden")),
            (404, ("reject", "http_404")),
            (407, ("misconfigured", "http_407")),
            (408, ("retry", "http_408")),
            (409, ("reject", "http_409")),
            (410, ("reject", "http_410")),
            (413, ("reject", "http_413")),
            (421, ("retry", "http_421")),
            (422, ("reject", "http_422")),
            (423, ("retry", "http_423")),
            (425, ("retry", "http_425")),
            (426, ("misconfigured", "http_426")),
            (429, ("retry", "http_429")),
            (431, ("reject", "http_431")),
            (451, ("reject", "http_451")),
            (500, ("retry", "http_500")),
            (502, ("unknown", "http_502")),
            (503, ("retry", "http_503")),
            (504, ("unknown", "http_504")),
            (520, ("unknown", "http_520")),
            (521, ("retry", "http_521")),
            (599, ("retry", "http_599")),
        ] {
            let failure = of_answer(answer(status), Credentials::Ours, &ORIGIN).unwrap_err();
            assert_eq!(kind(&failure), wanted, "{status}");
        }
    }

    fn asking(status: u16, retry_after: &str) -> Failure {
        let answer = Answer { retry_after: Some(retry_after.to_owned()), ..answer(status) };
        of_answer(answer, Credentials::Ours, &ORIGIN).unwrap_err()
    }

    #[test]
    fn who_says_when_to_come_again_is_left_alone_until_then() {
        for status in [429, 503] {
            let wanted = |text, after_ms| match asking(status, text) {
                Failure::Throttled(throttle) => assert_eq!(throttle.after_ms, after_ms, "{status} {text}"),
                other => panic!("{status} {text}: {other:?}"),
            };
            wanted("120", Some(120_000));
            wanted("4.5", Some(5000));
            wanted("0", None);
        }
        assert_eq!(kind(&asking(413, "9")), ("retry", "http_413"));
    }

    #[test]
    fn a_retry_after_that_cannot_be_read_leaves_it_to_the_retry_policy() {
        for text in ["soon", "+0000", "Wed, 21 Oct 2015 07:28:30 GMT"] {
            let failure = asking(429, text);
            assert_eq!(kind(&failure), ("retry", "http_429"), "{text}");
            assert!(matches!(&failure, Failure::Retry(detail) if detail.message.contains(text)), "{failure:?}");
        }
    }

    #[test]
    fn retry_after_means_nothing_with_other_answers() {
        assert_eq!(kind(&asking(500, "9")), ("retry", "http_500"));
    }

    #[test]
    fn credentials_that_a_message_brings_are_its_own_matter() {
        let failure = of_answer(answer(401), Credentials::OfMessage, &ORIGIN).unwrap_err();
        assert_eq!(kind(&failure), ("retry", "forbidden"));
    }

    #[test]
    fn the_error_shows_the_body() {
        let answer = Answer { body: " no such order\n".to_owned(), ..answer(404) };
        let wanted = Failure::reject("http_404", "https://example.com answered 404: no such order");
        assert_eq!(of_answer(answer, Credentials::Ours, &ORIGIN), Err(wanted));
    }

    #[test]
    fn what_was_never_sent_counts_as_no_attempt_and_what_may_have_been_is_unknown() {
        for (error, wanted) in [
            (ErrorCode::DnsTimeout, ("throttled", "")),
            (ErrorCode::ConnectionRefused, ("throttled", "")),
            (ErrorCode::ConnectionTimeout, ("throttled", "")),
            (ErrorCode::DestinationUnavailable, ("throttled", "")),
            (ErrorCode::TlsCertificateError, ("throttled", "")),
            (ErrorCode::ConnectionLimitReached, ("throttled", "")),
            (ErrorCode::HttpRequestDenied, ("misconfigured", "not_granted")),
            (ErrorCode::DestinationIpProhibited, ("misconfigured", "not_granted")),
            (ErrorCode::HttpRequestBodySize(Some(1)), ("reject", "request_refused")),
            (ErrorCode::ConnectionTerminated, ("unknown", "connection_broken")),
            (ErrorCode::HttpResponseIncomplete, ("unknown", "connection_broken")),
            (ErrorCode::HttpResponseTimeout, ("unknown", "response_timeout")),
            (ErrorCode::ConnectionReadTimeout, ("unknown", "response_timeout")),
            (ErrorCode::InternalError(None), ("unknown", "connection_broken")),
        ] {
            assert_eq!(kind(&of_error(&error, &ORIGIN)), wanted, "{error:?}");
        }
    }
}
