//! Where a subscription's messages go, such as an API: while it cannot take more, nobody claims for it. Subscriptions
//! that name the same one share its pauses and its circuit breaker; every other has one of its own.
//!
//! After failures in a row the breaker opens: nothing is claimed for a while, then one message to try, until one
//! succeeds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use laneway_core::BreakerPolicy;

/// A time until which nothing is claimed.
#[derive(Default)]
pub(crate) struct Pause(Mutex<Option<Instant>>);

impl Pause {
    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a pause, unless a longer one is under way.
    pub fn begin(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut paused = self.lock();
        *paused = Some(paused.map_or(until, |other| other.max(until)));
    }

    /// Time left of it.
    pub fn left(&self) -> Option<Duration> {
        let left = (*self.lock())?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

enum State {
    /// All goes on; so many failures in a row.
    Closed(u32),
    /// Nothing is claimed for a while, and then one message at a time.
    Open {
        /// The end of the pause.
        until: Instant,
        /// When a message to try was last claimed. One that is never heard of holds others up for a pause only.
        trying_since: Option<Instant>,
    },
}

pub(crate) struct Destination {
    pub pause: Pause,
    policy: Option<BreakerPolicy>,
    state: Mutex<State>,
}

impl Destination {
    pub fn new(policy: Option<BreakerPolicy>) -> Self {
        Self { pause: Pause::default(), policy, state: Mutex::new(State::Closed(0)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt succeeded. Answers whether that closed the breaker.
    pub fn succeeded(&self) -> bool {
        self.policy.is_some()
            && matches!(std::mem::replace(&mut *self.lock(), State::Closed(0)), State::Open { .. })
    }

    /// An attempt failed. Answers for how long to claim nothing, if that opened the breaker.
    pub fn failed(&self, now: Instant) -> Option<Duration> {
        let policy = self.policy?;
        let mut state = self.lock();
        match &mut *state {
            State::Closed(failures) if *failures + 1 < policy.failures => {
                *failures += 1;
                return None;
            }
            // Of the attempts that were under way when it opened.
            State::Open { until, .. } if now < *until => return None,
            State::Closed(_) | State::Open { .. } => {}
        }
        *state = State::Open { until: now + policy.pause, trying_since: None };
        Some(policy.pause)
    }

    /// Whether only one message at a time is to be tried.
    pub fn is_open(&self) -> bool {
        matches!(*self.lock(), State::Open { .. })
    }

    /// Whether it is the caller's turn to try one, while the breaker is open.
    pub fn begin_try(&self, now: Instant) -> bool {
        let Some(policy) = self.policy else { return false };
        match &mut *self.lock() {
            State::Open { trying_since, .. } => {
                let is_free = trying_since.is_none_or(|since| now.saturating_duration_since(since) > policy.pause);
                if is_free {
                    *trying_since = Some(now);
                }
                is_free
            }
            State::Closed(_) => false,
        }
    }

    /// There was nothing to try.
    pub fn end_try(&self) {
        if let State::Open { trying_since, .. } = &mut *self.lock() {
            *trying_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    #[test]
    fn failures_in_a_row_open_it_and_a_success_closes_it() {
        let breaker = Destination::new(Some(BreakerPolicy { failures: 3, pause: PAUSE }));
        let start = Instant::now();
        assert_eq!((breaker.failed(start), breaker.failed(start)), (None, None));
        assert!(!breaker.succeeded());
        assert_eq!((breaker.failed(start), breaker.failed(start)), (None, None), "not in a row");
        assert_eq!(breaker.failed(start), Some(PAUSE));
        assert!(breaker.is_open());
        assert_eq!(breaker.failed(start + PAUSE / 2), None, "it was under way");
        assert_eq!(breaker.failed(start + PAUSE), Some(PAUSE), "the message that was tried failed");
        assert!(breaker.succeeded() && !breaker.is_open());
    }

    #[test]
    fn of_all_who_share_it_one_tries_at_a_time() {
        let breaker = Destination::new(Some(BreakerPolicy { failures: 1, pause: PAUSE }));
        let start = Instant::now();
        assert!(!breaker.begin_try(start), "it is closed");
        breaker.failed(start);
        assert!(breaker.begin_try(start + PAUSE));
        assert!(!breaker.begin_try(start + PAUSE));
        breaker.end_try();
        assert!(breaker.begin_try(start + PAUSE));
        assert!(breaker.begin_try(start + PAUSE * 3), "nothing was heard of the one before");
        breaker.failed(start + PAUSE * 3);
        assert!(breaker.begin_try(start + PAUSE * 4), "that one failed");
    }

    #[test]
    fn without_a_policy_it_stays_closed() {
        let breaker = Destination::new(None);
        assert!((0..100).all(|_| breaker.failed(Instant::now()).is_none()));
        assert!(!breaker.is_open() && !breaker.succeeded());
    }
}
