//! What follows an attempt, by the subscription's policies.

use std::time::Duration;

use laneway_core::{ErrorText, Failure, PluginDigest, Reason, RetryDecision, Subscription, Verdict};

/// Pause of a subscription whose destination asked for one without saying how long.
const THROTTLE_DEFAULT: Duration = Duration::from_secs(1);
/// Shortest pause, whatever a destination asks for: without one, claims and hand-backs would go round in a circle.
const THROTTLE_MIN: Duration = Duration::from_millis(100);
/// Pause of a subscription that cannot work as it is configured.
const MISCONFIGURED_PAUSE: Duration = Duration::from_secs(30);

/// A verdict, and how long the subscription rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruling {
    pub verdict: Verdict,
    pub pause: Option<Duration>,
}

impl From<Verdict> for Ruling {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, pause: None }
    }
}

/// Rules on a failed attempt. `None` means: run it again at once. `random` is drawn uniformly from 0 to 1. After an
/// attempt on a version that `is_trial`, the message is not given up for want of time: the active version has its turn.
pub(crate) fn rule(
    subscription: &Subscription,
    failure: Failure,
    attempt: u32,
    elapsed: Duration,
    plugin: &PluginDigest,
    random: f64,
    is_trial: bool,
) -> Option<Ruling> {
    let retry = |reason: Reason, error: ErrorText| -> Ruling {
        match subscription.retry.decide(attempt, elapsed, random) {
            RetryDecision::After(delay) => {
                let error = Some(ErrorText::new(format!("{reason}: {error}")));
                Verdict::Retry { delay, counted: true, error }.into()
            }
            RetryDecision::TimeExhausted if is_trial => {
                let error = Some(ErrorText::new(format!("{reason}: {error}")));
                Verdict::Retry { delay: Duration::ZERO, counted: true, error }.into()
            }
            RetryDecision::AttemptsExhausted | RetryDecision::TimeExhausted => dead(reason, error, plugin),
        }
    };
    Some(match failure {
        Failure::Retry { reason, error } => retry(reason, error),
        Failure::Reject { reason, error } => dead(reason, error, plugin),
        Failure::UnknownOutcome { reason, error } if subscription.review_unknown_outcome => {
            dead(reason, error, plugin)
        }
        // The node stops, which is no fault of the message's: the next attempt is at once, but knows of this one. The last
        // one is not spent on it.
        Failure::UnknownOutcome { reason, error } if reason == Reason::INTERRUPTED => {
            if attempt < subscription.retry.attempts_max() {
                Verdict::Retry { delay: Duration::ZERO, counted: true, error: Some(error) }.into()
            } else {
                Verdict::RELEASE.into()
            }
        }
        Failure::UnknownOutcome { reason, error } => retry(reason, error),
        Failure::Throttled { after, error } => {
            let pause = after.unwrap_or(THROTTLE_DEFAULT).min(subscription.throttle_max).max(THROTTLE_MIN);
            // It does not count, but it does not go on for ever either.
            if elapsed.saturating_add(pause) > subscription.retry.patience() {
                return Some(Ruling { pause: Some(pause), ..dead(Reason::THROTTLED, error, plugin) });
            }
            Ruling {
                verdict: Verdict::Retry { delay: pause, counted: false, error: Some(error) },
                pause: Some(pause),
            }
        }
        Failure::Misconfigured { reason, error } => Ruling {
            verdict: Verdict::Retry {
                delay: MISCONFIGURED_PAUSE,
                counted: false,
                error: Some(ErrorText::new(format!("{reason}: {error}"))),
            },
            pause: Some(MISCONFIGURED_PAUSE),
        },
        Failure::Interrupted => Verdict::RELEASE.into(),
        Failure::Stale => return None,
    })
}

/// What a failure on trial comes to: of a canary's attempt, the message is tried again on the active version, which is
/// asked to wait only if its own attempts are. What may have had an effect outside is still the policy's to decide.
pub(crate) fn on_trial(failure: Failure) -> Failure {
    match failure {
        Failure::Reject { reason, error } | Failure::Misconfigured { reason, error } => {
            Failure::Retry { reason, error }
        }
        Failure::Throttled { error, .. } => Failure::Retry { reason: Reason::THROTTLED, error },
        failure => failure,
    }
}

fn dead(reason: Reason, error: ErrorText, plugin: &PluginDigest) -> Ruling {
    Verdict::DeadLetter { reason, error, plugin: Some(plugin.clone()) }.into()
}

/// Rules on a delivery whose attempts were used up before: `attempt` would be its next. `lost` leases have ended without
/// an answer since one was last counted.
pub(crate) fn rule_unstarted(subscription: &Subscription, attempt: u32, lost: u32) -> Option<Verdict> {
    let max = subscription.retry.attempts_max();
    if attempt <= max {
        return None;
    }
    let counted = attempt - 1;
    let why = match lost {
        0 => "the number allowed was lowered, or a node of an older version ended before its answer".to_owned(),
        1 => "one lease ended without an answer, as its node ended or lost touch with the database".to_owned(),
        _ => format!("{lost} leases ended without an answer, as their nodes ended or lost touch with the database"),
    };
    Some(Verdict::DeadLetter {
        reason: Reason::LEASE_EXPIRED,
        error: ErrorText::new(format!("{counted} of {max} attempts are used up: {why}")),
        plugin: None,
    })
}

#[cfg(test)]
mod tests {
    use laneway_core::{Name, Priority, RetryPolicy, SubscriptionKind, TopicPattern};

    use super::*;

    fn subscription() -> Subscription {
        Subscription {
            name: Name::parse("s").unwrap(),
            pattern: TopicPattern::parse("a").unwrap(),
            kind: SubscriptionKind::Publisher,
            lane_threshold: Priority::NORMAL,
            ordering: laneway_core::Ordering::None,
            idempotent: false,
            retry: RetryPolicy { max_attempts: 2, jitter: 0.0, ..RetryPolicy::default() },
            lease: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            concurrency: 1,
            claim_batch: 1,
            publish_batch: 1,
            review_unknown_outcome: false,
            backfill_min_share: 0.0,
            rate_limit: None,
            cluster_concurrency: None,
            destination: None,
            breaker: None,
            throttle_max: laneway_core::THROTTLE_MAX_DEFAULT,
        }
    }

    fn ruled(subscription: &Subscription, failure: Failure, attempt: u32) -> Ruling {
        rule(subscription, failure, attempt, Duration::ZERO, &PluginDigest::from_hex("d"), 0.5, false).unwrap()
    }

    fn why() -> (Reason, ErrorText) {
        (Reason::of_guest("x"), ErrorText::new("y"))
    }

    #[test]
    fn failures_are_typed() {
        let subscription = subscription();
        let (reason, error) = why();
        let retry = ruled(&subscription, Failure::Retry { reason: reason.clone(), error: error.clone() }, 1);
        assert!(matches!(retry.verdict, Verdict::Retry { counted: true, delay, .. } if delay.as_secs() == 1));
        let last = ruled(&subscription, Failure::Retry { reason: reason.clone(), error: error.clone() }, 2);
        assert!(matches!(last.verdict, Verdict::DeadLetter { .. }));
        let reject = ruled(&subscription, Failure::Reject { reason: reason.clone(), error: error.clone() }, 1);
        assert!(matches!(reject.verdict, Verdict::DeadLetter { .. }));
        let throttled = ruled(&subscription, Failure::Throttled { after: None, error: error.clone() }, 2);
        assert!(matches!(throttled.verdict, Verdict::Retry { counted: false, .. }));
        assert_eq!(throttled.pause, Some(THROTTLE_DEFAULT));
        let config = ruled(&subscription, Failure::Misconfigured { reason, error }, 2);
        assert!(matches!(config.verdict, Verdict::Retry { counted: false, .. }) && config.pause.is_some());
    }

    #[test]
    fn whatever_a_canary_answers_the_active_version_has_its_turn() {
        let patience = Duration::from_secs(30);
        let retry = RetryPolicy { max_elapsed: Some(patience), ..subscription().retry };
        let hasty = Subscription { retry, ..subscription() };
        let (reason, error) = why();
        for failure in [
            Failure::Retry { reason: reason.clone(), error: error.clone() },
            Failure::Reject { reason: reason.clone(), error: error.clone() },
            Failure::Misconfigured { reason: reason.clone(), error: error.clone() },
            Failure::Throttled { after: Some(Duration::from_secs(3600)), error: error.clone() },
            Failure::UnknownOutcome { reason, error },
        ] {
            let digest = PluginDigest::from_hex("d");
            let ruling = rule(&hasty, on_trial(failure), 1, patience, &digest, 0.5, true).unwrap();
            assert!(matches!(ruling.verdict, Verdict::Retry { counted: true, .. }), "{ruling:?}");
            assert_eq!(ruling.pause, None, "its failures stop nobody");
        }
    }

    #[test]
    fn the_policy_decides_on_an_unknown_outcome() {
        let (reason, error) = why();
        let failure = Failure::UnknownOutcome { reason, error };
        let retrying = subscription();
        assert!(matches!(ruled(&retrying, failure.clone(), 1).verdict, Verdict::Retry { counted: true, .. }));
        let reviewing = Subscription { review_unknown_outcome: true, ..retrying };
        assert!(matches!(ruled(&reviewing, failure, 1).verdict, Verdict::DeadLetter { .. }));
    }

    #[test]
    fn an_interrupted_attempt_counts_if_it_may_have_had_an_effect_outside() {
        let subscription = subscription();
        assert_eq!(ruled(&subscription, Failure::Interrupted, 1).verdict, Verdict::RELEASE);
        let sending =
            Failure::UnknownOutcome { reason: Reason::INTERRUPTED, error: ErrorText::new("the node is stopping") };
        assert!(matches!(
            ruled(&subscription, sending.clone(), 1).verdict,
            Verdict::Retry { counted: true, delay: Duration::ZERO, .. }
        ));
        assert_eq!(ruled(&subscription, sending.clone(), 2).verdict, Verdict::RELEASE);
        let reviewing = Subscription { review_unknown_outcome: true, ..subscription };
        assert!(matches!(ruled(&reviewing, sending, 1).verdict, Verdict::DeadLetter { .. }));
    }

    #[test]
    fn a_pause_of_nothing_is_still_a_pause() {
        let asked = Failure::Throttled { after: Some(Duration::ZERO), error: ErrorText::new("now") };
        assert_eq!(ruled(&subscription(), asked, 1).pause, Some(THROTTLE_MIN));
    }

    #[test]
    fn no_pause_is_longer_than_it_may_be() {
        let asked = || Failure::Throttled { after: Some(Duration::MAX), error: ErrorText::new("later") };
        let short = Subscription { throttle_max: Duration::from_secs(7), ..subscription() };
        for (subscription, seconds) in [(subscription(), 3600), (short, 7)] {
            let pause = Duration::from_secs(seconds);
            let ruling = ruled(&subscription, asked(), 1);
            assert_eq!(ruling.pause, Some(pause));
            assert!(matches!(ruling.verdict, Verdict::Retry { delay, counted: false, .. } if delay == pause));
        }
    }

    #[test]
    fn pauses_end_when_the_time_is_up() {
        let retry = RetryPolicy { max_elapsed: Some(Duration::from_secs(100)), ..subscription().retry };
        let hasty = Subscription { retry, ..subscription() };
        let asked = Failure::Throttled { after: Some(Duration::from_secs(10)), error: ErrorText::new("later") };
        let after = |seconds| {
            let elapsed = Duration::from_secs(seconds);
            rule(&hasty, asked.clone(), 1, elapsed, &PluginDigest::from_hex("d"), 0.5, false).unwrap()
        };
        assert!(matches!(after(90).verdict, Verdict::Retry { counted: false, .. }));
        let ended = after(91);
        assert!(matches!(&ended.verdict, Verdict::DeadLetter { reason, .. } if *reason == Reason::THROTTLED));
        assert_eq!(ended.pause, Some(Duration::from_secs(10)), "the others wait all the same");
    }

    #[test]
    fn a_delivery_that_keeps_losing_its_node_is_dead_lettered() {
        assert_eq!(rule_unstarted(&subscription(), 2, 1), None);
        let Some(Verdict::DeadLetter { reason, error, .. }) = rule_unstarted(&subscription(), 3, 3) else {
            panic!("it is not ended");
        };
        assert_eq!(reason, Reason::LEASE_EXPIRED);
        let wanted = "2 of 2 attempts are used up: 3 leases ended without an answer, as their nodes ended or lost touch \
            with the database";
        assert_eq!(error.as_str(), wanted);
    }
}
