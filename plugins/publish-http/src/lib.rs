//! Publisher that forwards each message as one HTTP request, its payload as the body.
//!
//! Configuration:
//!
//! | key | value |
//! |---|---|
//! | `url` | where to: `http://` or `https://`; the host must be granted |
//! | `method` | `POST` (the default), `PUT`, `PATCH` or `DELETE` |
//! | `timeout_ms` | longest wait for the head of the response; 30000 if missing, never past the attempt's time |
//! | `headers` | names of further headers, separated by commas |
//! | `header.<Name>` | value of each of them |
//!
//! The request has the message's content type, and the headers `laneway-message-id` (the same in every attempt: the
//! receiver can deduplicate by it), `laneway-topic`, `laneway-attempt`, and `laneway-key` and `laneway-tenant` if
//! the message has them, where `%` and what is not visible ASCII is percent-encoded. The message's own headers are
//! sent as they are, but for those that HTTP itself or the above speak for, and those that no HTTP header can be. A
//! header of the configuration replaces one of the same name. A message with more than 64 KiB of headers is rejected
//! (`headers_too_large`). The status decides what becomes of a message (`answer.rs`; docs/publish-http.md
//! has the table). Of a response that is no success, the beginning of the body is kept for the error's text: what comes
//! within a second.

mod answer;
mod exchange;
mod request;
mod retry_after;
mod settings;

use std::time::Duration;

use laneway_sdk::prelude::*;

use crate::exchange::Stopwatch;
use crate::settings::Settings;

/// Least time that a request is begun with.
const TIME_MIN: Duration = Duration::from_millis(20);
/// Pause before messages whose turn did not come are tried again.
const NO_TIME_PAUSE: Duration = Duration::from_secs(1);

fn publish(batch: &[Item]) -> Result<Vec<Result<Receipt, Failure>>, Failure> {
    let settings =
        Settings::read(config::get).map_err(|errors| Failure::misconfigured("config", errors.join("; ")))?;
    let watch = Stopwatch::start();
    // One after another: the host runs batches side by side. All have the time of the shortest.
    let time = batch.iter().map(|item| item.attempt.deadline_ms).min().map_or(Duration::ZERO, usable);
    Ok(batch
        .iter()
        .map(|item| {
            let left = begin(time.saturating_sub(watch.elapsed()))?;
            exchange::send(&settings, item, left)
        })
        .collect())
}

/// The time that is left for a request, if it is enough to begin one. Else the message was not sent, and its attempt
/// does not count: other messages used up the time.
fn begin(left: Duration) -> Result<Duration, Failure> {
    if left < TIME_MIN {
        let text = "not begun: the time of the batch was used up before this message's turn";
        return Err(Failure::throttled(Some(NO_TIME_PAUSE), text));
    }
    Ok(left)
}

/// The part of an attempt's time that requests may take: the rest is for saying how they ended, since an attempt
/// that runs out of time can say nothing.
fn usable(deadline_ms: u64) -> Duration {
    let all = Duration::from_millis(deadline_ms);
    all.saturating_sub((all / 10).min(Duration::from_millis(500)))
}

fn check() -> Result<(), Vec<String>> {
    Settings::read(config::get).map(drop)
}

laneway_sdk::publisher!(batch = publish, validate = check);

// Where to, and with which headers, the operator says: it takes what it is granted.
laneway_sdk::manifest! {
    http: ["*"],
    secrets: ["*"],
    config: ["url"],
}

#[cfg(test)]
mod tests {
    use laneway_sdk::Throttle;
    use laneway_sdk::mock::MockHost;

    use super::*;

    #[test]
    fn a_bad_configuration_is_refused_at_deploy_and_stops_every_message() {
        let mut host = MockHost::new().with_config("url", "ftp://example.com");
        let errors = host.validate(check).unwrap_err();
        let results = host.publish_batch(publish, [Message::for_test("a.b"), Message::for_test("a.c")]);
        let failure = Failure::misconfigured("config", errors.join("; "));
        assert_eq!(results, [Err(failure.clone()), Err(failure)]);
        assert_eq!(MockHost::new().with_config("url", "https://example.com/in").validate(check), Ok(()));
    }

    #[test]
    fn a_message_whose_turn_does_not_come_waits_uncounted() {
        assert_eq!(begin(TIME_MIN), Ok(TIME_MIN));
        for left in [Duration::ZERO, TIME_MIN - Duration::from_millis(1)] {
            let failure = begin(left).unwrap_err();
            assert!(matches!(&failure, Failure::Throttled(Throttle { after_ms: Some(1000), .. })), "{failure:?}");
        }
    }
}
