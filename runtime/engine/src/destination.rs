//! Where a subscription's messages go, such as an API: while it cannot take more, nobody claims for it. Subscriptions
//! that name the same one share its pauses and its circuit breaker; every other has one of its own.
//!
//! After failures in a row the breaker opens: nothing is claimed for a while, then one message to try, until one
//! succeeds. A destination that asks for pauses without saying how long, or that cannot be reached, is left alone for
//! longer each time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use laneway_core::BreakerPolicy;

/// First and longest pause of a destination that does not say how long it wants to be left alone.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

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

/// The newest pause whose length nobody has said.
#[derive(Default)]
struct Backoff {
    length: Duration,
    until: Option<Instant>,
}

pub(crate) struct Destination {
    pub pause: Pause,
    policy: Option<BreakerPolicy>,
    state: Mutex<State>,
    backoff: Mutex<Backoff>,
    /// Whether there was such a pause since it last answered.
    is_backing_off: AtomicBool,
}

impl Destination {
    pub fn new(policy: Option<BreakerPolicy>) -> Self {
        Self {
            pause: Pause::default(),
            policy,
            state: Mutex::new(State::Closed(0)),
            backoff: Mutex::default(),
            is_backing_off: AtomicBool::new(false),
        }
    }

    /// It asks for a pause without saying how long, or cannot be reached. Answers for how long to claim nothing: twice as
    /// long as the last time, and not longer than the breaker's pause, if it has one.
    pub fn back_off(&self, now: Instant) -> Duration {
        let mut backoff = self.backoff.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_backing_off.store(true, Ordering::Relaxed);
        match backoff.until {
            // Of the attempts that were under way when the pause began.
            Some(until) if now < until => until - now,
            _ => {
                let longest = self.policy.map_or(BACKOFF.1, |policy| policy.pause.min(BACKOFF.1));
                let length = (backoff.length * 2).max(BACKOFF.0).min(longest);
                *backoff = Backoff { length, until: Some(now + length) };
                length
            }
        }
    }

    /// It took a message, or refused one as such: it can be reached.
    pub fn answered(&self) {
        // Looked at first: nearly always there is nothing to do.
        if self.is_backing_off.load(Ordering::Relaxed) && self.is_backing_off.swap(false, Ordering::Relaxed) {
            *self.backoff.lock().unwrap_or_else(PoisonError::into_inner) = Backoff::default();
        }
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
    fn who_does_not_say_how_long_is_left_alone_for_longer_each_time() {
        let destination = Destination::new(None);
        let mut now = Instant::now();
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let pause = Duration::from_secs(seconds);
            assert_eq!(destination.back_off(now), pause);
            assert_eq!(destination.back_off(now + pause / 2), pause / 2, "it was under way");
            now += pause;
        }
        destination.answered();
        assert_eq!(destination.back_off(now), Duration::from_secs(1));
        let quick = Destination::new(Some(BreakerPolicy { failures: 3, pause: Duration::from_millis(1500) }));
        let now = Instant::now();
        assert_eq!(quick.back_off(now), Duration::from_secs(1));
        assert_eq!(quick.back_off(now + Duration::from_secs(1)), Duration::from_millis(1500));
    }

    #[test]
    fn without_a_policy_it_stays_closed() {
        let breaker = Destination::new(None);
        assert!((0..100).all(|_| breaker.failed(Instant::now()).is_none()));
        assert!(!breaker.is_open() && !breaker.succeeded());
    }
}
