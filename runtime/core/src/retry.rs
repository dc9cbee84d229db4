//! When a failed attempt is tried again, and when it is not.

use std::time::Duration;

use serde::Serialize;

/// How the delay grows from one retry to the next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RetrySchedule {
    /// No retry: the first failure is final.
    None,
    /// Always the base delay.
    Constant,
    /// The base delay times the number of the retry.
    Linear,
    /// The base delay times `factor` to the power of the retries before.
    Exponential,
}

/// A subscription's retry policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RetryPolicy {
    /// How delays grow.
    pub schedule: RetrySchedule,
    /// Delay of the first retry.
    pub base: Duration,
    /// Growth of [`RetrySchedule::Exponential`]; at least 1.
    pub factor: f64,
    /// Longest delay, jitter included.
    pub cap: Duration,
    /// Part of the delay that is random, 0 to 1: the delay is drawn from `delay * (1 - jitter) ..= delay * (1 + jitter)`.
    pub jitter: f64,
    /// Attempts in all, the first included; at least 1.
    pub max_attempts: u32,
    /// Longest time from the first attempt to the start of a retry.
    pub max_elapsed: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            schedule: RetrySchedule::Exponential,
            base: Duration::from_secs(1),
            factor: 2.0,
            cap: Duration::from_secs(60 * 60),
            jitter: 0.2,
            max_attempts: 80,
            max_elapsed: None,
        }
    }
}

/// For how long a message waits for a destination that cannot be reached, or that keeps asking for a pause, if
/// `max_elapsed` does not say.
const PATIENCE_MIN: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A retry policy that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRetry {
    /// Zero attempts.
    #[error("max_attempts is 0; the first attempt counts, so it must be at least 1")]
    NoAttempts,
    /// A factor below 1 or not finite.
    #[error("factor must be a finite number of at least 1")]
    Factor,
    /// A jitter outside 0 to 1.
    #[error("jitter must lie between 0 and 1")]
    Jitter,
    /// The cap is below the base.
    #[error("cap is shorter than base; the first retry would already be over it")]
    CapBelowBase,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again after this delay.
    After(Duration),
    /// The attempts are used up.
    AttemptsExhausted,
    /// The next attempt would come too late.
    TimeExhausted,
}

impl RetryPolicy {
    /// Checks that the policy can be followed.
    ///
    /// # Errors
    /// [`InvalidRetry`] names the key that is wrong.
    pub fn validate(&self) -> Result<(), InvalidRetry> {
        if self.max_attempts == 0 {
            return Err(InvalidRetry::NoAttempts);
        }
        if !self.factor.is_finite() || self.factor < 1.0 {
            return Err(InvalidRetry::Factor);
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(InvalidRetry::Jitter);
        }
        if self.cap < self.base {
            return Err(InvalidRetry::CapBelowBase);
        }
        Ok(())
    }

    /// Attempts that this policy allows in all; [`RetrySchedule::None`] allows one.
    #[must_use]
    pub fn attempts_max(&self) -> u32 {
        if self.schedule == RetrySchedule::None { 1 } else { self.max_attempts }
    }

    /// What follows the failure of attempt number `attempt` (from 1), `elapsed` after the first attempt began.
    /// `random` is drawn uniformly from 0 to 1.
    #[must_use]
    pub fn decide(&self, attempt: u32, elapsed: Duration, random: f64) -> RetryDecision {
        if attempt >= self.attempts_max() {
            return RetryDecision::AttemptsExhausted;
        }
        let delay = self.delay(attempt, random);
        match self.max_elapsed {
            Some(max) if elapsed + delay > max => RetryDecision::TimeExhausted,
            _ => RetryDecision::After(delay),
        }
    }

    /// Longest time from the first attempt to one that does not count: such attempts are as many as it takes. It is
    /// `max_elapsed`; without that the time that the retries would take, and a week at least.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.max_elapsed.unwrap_or_else(|| self.horizon().max(PATIENCE_MIN))
    }

    /// Longest time from the first attempt to the start of the last retry, not counting the attempts themselves.
    #[must_use]
    pub fn horizon(&self) -> Duration {
        let mut sum = Duration::ZERO;
        let mut before = Duration::ZERO;
        for attempt in 1..self.attempts_max() {
            let delay = self.delay(attempt, 1.0);
            sum = sum.saturating_add(delay);
            // It is at its cap, or does not grow.
            let steady = delay >= self.cap || delay == std::mem::replace(&mut before, delay);
            if steady {
                sum = sum.saturating_add(delay.saturating_mul(self.attempts_max() - 1 - attempt));
                break;
            }
        }
        self.max_elapsed.map_or(sum, |max| sum.min(max))
    }

    fn delay(&self, attempt: u32, random: f64) -> Duration {
        let growth = match self.schedule {
            RetrySchedule::None | RetrySchedule::Constant => 1.0,
            RetrySchedule::Linear => f64::from(attempt),
            RetrySchedule::Exponential => {
                self.factor.powi(i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX))
            }
        };
        let jitter = 1.0 + self.jitter * (2.0 * random - 1.0);
        // The cap comes last, so that it holds after jitter; an overflow to infinity ends there too.
        let seconds = (self.base.as_secs_f64() * growth * jitter).min(self.cap.as_secs_f64());
        Duration::try_from_secs_f64(seconds).unwrap_or(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Duration = Duration::ZERO;

    fn policy(schedule: RetrySchedule) -> RetryPolicy {
        RetryPolicy { schedule, jitter: 0.0, ..RetryPolicy::default() }
    }

    fn after(seconds: f64) -> RetryDecision {
        RetryDecision::After(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn the_first_retry_waits_the_base_delay() {
        for schedule in [RetrySchedule::Constant, RetrySchedule::Linear, RetrySchedule::Exponential] {
            assert_eq!(policy(schedule).decide(1, ZERO, 0.5), after(1.0), "{schedule:?}");
        }
    }

    #[test]
    fn delays_grow_as_their_schedule_says() {
        assert_eq!(policy(RetrySchedule::Constant).decide(4, ZERO, 0.5), after(1.0));
        assert_eq!(policy(RetrySchedule::Linear).decide(4, ZERO, 0.5), after(4.0));
        assert_eq!(policy(RetrySchedule::Exponential).decide(4, ZERO, 0.5), after(8.0));
        let tripling = RetryPolicy { factor: 3.0, ..policy(RetrySchedule::Exponential) };
        assert_eq!(tripling.decide(3, ZERO, 0.5), after(9.0));
    }

    #[test]
    fn the_cap_holds_after_jitter() {
        let policy = RetryPolicy { jitter: 1.0, cap: Duration::from_secs(3), ..policy(RetrySchedule::Exponential) };
        assert_eq!(policy.decide(3, ZERO, 1.0), after(3.0));
        assert_eq!(policy.decide(9, ZERO, 0.9), after(3.0));
    }

    #[test]
    fn jitter_moves_the_delay_both_ways() {
        let policy = RetryPolicy { jitter: 0.5, ..policy(RetrySchedule::Constant) };
        assert_eq!(policy.decide(1, ZERO, 0.0), after(0.5));
        assert_eq!(policy.decide(1, ZERO, 1.0), after(1.5));
    }

    #[test]
    fn attempts_and_time_run_out() {
        let policy = RetryPolicy {
            max_attempts: 3,
            max_elapsed: Some(Duration::from_secs(10)),
            ..policy(RetrySchedule::Constant)
        };
        assert_eq!(policy.decide(2, ZERO, 0.5), after(1.0));
        assert_eq!(policy.decide(3, ZERO, 0.5), RetryDecision::AttemptsExhausted);
        assert_eq!(policy.decide(2, Duration::from_secs(10), 0.5), RetryDecision::TimeExhausted);
        let none = RetryPolicy { schedule: RetrySchedule::None, ..policy };
        assert_eq!(none.decide(1, ZERO, 0.5), RetryDecision::AttemptsExhausted);
    }

    #[test]
    fn the_horizon_is_the_sum_of_the_longest_delays() {
        let seconds = |policy: &RetryPolicy| policy.horizon().as_secs_f64();
        let four = |schedule| RetryPolicy { max_attempts: 4, ..policy(schedule) };
        assert_eq!(seconds(&four(RetrySchedule::None)), 0.0);
        assert_eq!(seconds(&four(RetrySchedule::Constant)), 3.0);
        assert_eq!(seconds(&four(RetrySchedule::Linear)), 6.0);
        assert_eq!(seconds(&four(RetrySchedule::Exponential)), 7.0);
        assert_eq!(seconds(&RetryPolicy { jitter: 0.5, ..four(RetrySchedule::Constant) }), 4.5);
        let capped =
            RetryPolicy { max_attempts: u32::MAX, cap: Duration::from_secs(2), ..four(RetrySchedule::Linear) };
        assert_eq!(seconds(&capped), 1.0 + 2.0 * f64::from(u32::MAX - 2));
        let steady = RetryPolicy { max_attempts: u32::MAX, factor: 1.0, ..four(RetrySchedule::Exponential) };
        assert_eq!(seconds(&steady), f64::from(u32::MAX - 1));
        let bounded = RetryPolicy { max_elapsed: Some(Duration::from_secs(5)), ..four(RetrySchedule::Exponential) };
        assert_eq!(seconds(&bounded), 5.0);
    }

    #[test]
    fn the_default_goes_on_from_friday_evening_to_monday_morning() {
        let policy = RetryPolicy::default();
        let hours = |hours: u64| Duration::from_secs(hours * 60 * 60);
        for random in [0.0, 0.5, 1.0] {
            let sum: Duration = (1..policy.attempts_max()).map(|attempt| policy.delay(attempt, random)).sum();
            assert!((hours(66)..hours(70)).contains(&sum), "{sum:?} with {random}");
        }
    }

    #[test]
    fn what_counts_as_no_attempt_is_put_up_with_for_a_week_or_as_long_as_is_said() {
        let week = Duration::from_secs(7 * 86_400);
        assert_eq!(RetryPolicy::default().patience(), week);
        assert_eq!(policy(RetrySchedule::None).patience(), week);
        let said = RetryPolicy { max_elapsed: Some(Duration::from_secs(5)), ..policy(RetrySchedule::None) };
        assert_eq!(said.patience(), Duration::from_secs(5));
        let long =
            RetryPolicy { max_attempts: 1000, base: Duration::from_secs(3600), ..policy(RetrySchedule::Constant) };
        assert_eq!(long.patience(), Duration::from_secs(999 * 3600));
    }

    #[test]
    fn policies_that_cannot_be_followed_are_refused() {
        let good = RetryPolicy::default();
        assert_eq!(good.validate(), Ok(()));
        assert_eq!(RetryPolicy { max_attempts: 0, ..good.clone() }.validate(), Err(InvalidRetry::NoAttempts));
        assert_eq!(RetryPolicy { factor: 0.5, ..good.clone() }.validate(), Err(InvalidRetry::Factor));
        assert_eq!(RetryPolicy { jitter: 1.5, ..good.clone() }.validate(), Err(InvalidRetry::Jitter));
        assert_eq!(
            RetryPolicy { cap: Duration::from_millis(1), ..good }.validate(),
            Err(InvalidRetry::CapBelowBase)
        );
    }
}
