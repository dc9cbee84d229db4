//! The circuit breaker of a subscription: after failures in a row nothing is claimed for a while, then one message to
//! try, until one succeeds.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use laneway_core::BreakerPolicy;

enum State {
    /// All goes on; so many failures in a row.
    Closed(u32),
    /// Nothing is claimed until then, and from then on one at a time.
    Open(Instant),
}

pub(crate) struct Breaker {
    policy: Option<BreakerPolicy>,
    state: Mutex<State>,
}

impl Breaker {
    pub fn new(policy: Option<BreakerPolicy>) -> Self {
        Self { policy, state: Mutex::new(State::Closed(0)) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt succeeded. Answers whether that closed the breaker.
    pub fn succeeded(&self) -> bool {
        self.policy.is_some() && matches!(std::mem::replace(&mut *self.lock(), State::Closed(0)), State::Open(_))
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
            State::Open(until) if now < *until => return None,
            State::Closed(_) | State::Open(_) => {}
        }
        *state = State::Open(now + policy.pause);
        Some(policy.pause)
    }

    /// Whether only one message at a time is to be tried.
    pub fn is_open(&self) -> bool {
        matches!(*self.lock(), State::Open(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    #[test]
    fn failures_in_a_row_open_it_and_a_success_closes_it() {
        let breaker = Breaker::new(Some(BreakerPolicy { failures: 3, pause: PAUSE }));
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
    fn without_a_policy_it_stays_closed() {
        let breaker = Breaker::new(None);
        assert!((0..100).all(|_| breaker.failed(Instant::now()).is_none()));
        assert!(!breaker.is_open() && !breaker.succeeded());
    }
}
