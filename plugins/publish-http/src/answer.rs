//! What an answer, or the lack of one, means for the message.

use std::fmt::Display;
use std::time::Duration;

use laneway_sdk::{Failure, Receipt};
use wasip2::http::types::ErrorCode;

/// Shortest pause: one of nothing, or one that is over by their clock, would be no pause at all.
const PAUSE_MIN: Duration = Duration::from_secs(1);
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

/// The outcome of a message whose request was answered.
pub fn of_answer(answer: Answer, origin: &impl Display) -> Result<Receipt, Failure> {
    let status = answer.status;
    let code = format!("http_{status}");
    let text = text(&answer, origin);
    Err(match status {
        200..=299 => {
            let reference = answer.location.filter(|reference| reference.len() <= REFERENCE_BYTES_MAX);
            return Ok(Receipt { reference });
        }
        300..=399 => Failure::reject("http_redirect", text),
        429 | 503 if answer.retry_after.is_some() => Failure::throttled(pause(&answer), text),
        408 | 425 | 429 => Failure::retry(&code, text),
        // The gateway's word: the service behind it may have taken the message.
        502 | 504 => Failure::unknown_outcome(&code, text),
        400..=499 => Failure::reject(&code, text),
        _ => Failure::retry(&code, text),
    })
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

/// How long the destination wants a pause. A date is compared with the response's own, because here is no clock
/// that could be compared with theirs. `None` if it cannot be told.
fn pause(answer: &Answer) -> Option<Duration> {
    let wanted = answer.retry_after.as_deref()?.trim();
    if let Ok(seconds) = wanted.parse() {
        return Some(Duration::from_secs(seconds).max(PAUSE_MIN));
    }
    let until = httpdate::parse_http_date(wanted).ok()?;
    let now = httpdate::parse_http_date(answer.date.as_deref()?.trim()).ok()?;
    Some(until.duration_since(now).unwrap_or_default().max(PAUSE_MIN))
}

/// The outcome of a message whose request failed: did it reach the destination?
pub fn of_error(error: &ErrorCode, origin: &impl Display) -> Failure {
    use ErrorCode as E;
    let failed = |what: &str| format!("request to {origin}: {what}");
    let detailed = || failed(&format!("{error:?}"));
    match error {
        E::DnsTimeout | E::DnsError(_) | E::DestinationNotFound => Failure::retry("dns", detailed()),
        E::ConnectionRefused => Failure::retry("connect_refused", failed("connection refused")),
        E::ConnectionTimeout => Failure::retry("connect_timeout", failed("no connection in time")),
        E::DestinationUnavailable | E::DestinationIpUnroutable => Failure::retry("connect", detailed()),
        E::ConnectionLimitReached => Failure::retry("connection_limit", failed("too many connections")),
        E::TlsProtocolError | E::TlsCertificateError | E::TlsAlertReceived(_) => Failure::retry("tls", detailed()),
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

#[cfg(test)]
mod tests {
    use laneway_sdk::{Detail, Throttle};

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
            assert_eq!(of_answer(answer(status), &ORIGIN), Ok(Receipt { reference: None }));
        }
        let created = Answer { location: Some("/orders/7".to_owned()), ..answer(201) };
        assert_eq!(of_answer(created, &ORIGIN), Ok(Receipt { reference: Some("/orders/7".to_owned()) }));
    }

    #[test]
    fn each_status_has_its_outcome() {
        for (status, wanted) in [
            (301, ("reject", "http_redirect")),
            (304, ("reject", "http_redirect")),
            (400, ("reject", "http_400")),
            (401, ("reject", "http_401")),
            (403, ("reject", "http_403")),
            (404, ("reject", "http_404")),
            (408, ("retry", "http_408")),
            (413, ("reject", "http_413")),
            (422, ("reject", "http_422")),
            (425, ("retry", "http_425")),
            (429, ("retry", "http_429")),
            (500, ("retry", "http_500")),
            (502, ("unknown", "http_502")),
            (503, ("retry", "http_503")),
            (504, ("unknown", "http_504")),
            (599, ("retry", "http_599")),
        ] {
            let failure = of_answer(answer(status), &ORIGIN).unwrap_err();
            assert_eq!(kind(&failure), wanted, "{status}");
        }
    }

    #[test]
    fn retry_after_is_a_pause_in_seconds_or_until_a_date_of_the_senders_clock() {
        let pause = |status, retry_after: &str, date: Option<&str>| {
            let answer = Answer {
                retry_after: Some(retry_after.to_owned()),
                date: date.map(str::to_owned),
                ..answer(status)
            };
            match of_answer(answer, &ORIGIN) {
                Err(Failure::Throttled(Throttle { after_ms, .. })) => after_ms,
                other => panic!("{other:?}"),
            }
        };
        let now = Some("Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(pause(429, "120", None), Some(120_000));
        assert_eq!(pause(503, " 0 ", None), Some(1000));
        assert_eq!(pause(503, "Wed, 21 Oct 2015 07:28:30 GMT", now), Some(30_000));
        assert_eq!(pause(429, "Wednesday, 21-Oct-15 07:29:00 GMT", now), Some(60_000));
        assert_eq!(pause(429, "Wed, 21 Oct 2015 07:00:00 GMT", now), Some(1000));
        assert_eq!(pause(429, "Wed, 21 Oct 2015 07:28:30 GMT", None), None);
        assert_eq!(pause(429, "soon", now), None);
        assert_eq!(pause(429, "18446744073709551615", None), Some(u64::MAX));
    }

    #[test]
    fn retry_after_means_nothing_with_other_answers() {
        let answer = Answer { retry_after: Some("9".to_owned()), ..answer(500) };
        assert_eq!(kind(&of_answer(answer, &ORIGIN).unwrap_err()), ("retry", "http_500"));
    }

    #[test]
    fn the_error_shows_the_body() {
        let answer = Answer { body: " no such order\n".to_owned(), ..answer(404) };
        let wanted = Failure::reject("http_404", "https://example.com answered 404: no such order");
        assert_eq!(of_answer(answer, &ORIGIN), Err(wanted));
    }

    #[test]
    fn what_was_never_sent_is_tried_again_and_what_may_have_been_is_unknown() {
        for (error, wanted) in [
            (ErrorCode::DnsTimeout, ("retry", "dns")),
            (ErrorCode::ConnectionRefused, ("retry", "connect_refused")),
            (ErrorCode::ConnectionTimeout, ("retry", "connect_timeout")),
            (ErrorCode::DestinationUnavailable, ("retry", "connect")),
            (ErrorCode::TlsCertificateError, ("retry", "tls")),
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
