//! A database that cannot be written to for a while: said when it begins, now and again, and when it is over.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use laneway_core::StoreError;
use tracing::{info, warn};

/// Between two words about one outage.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Whether one kind of calls fails at present.
pub(crate) struct Outage {
    /// What could not be done, such as `outcomes could not be committed`.
    what: &'static str,
    since: Mutex<Option<Since>>,
}

struct Since {
    began: Instant,
    said: Instant,
}

impl Outage {
    pub fn new(what: &'static str) -> Self {
        Self { what, since: Mutex::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Since>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a call failed; so many deliveries wait for it.
    pub fn failed(&self, error: &StoreError, waiting: usize) {
        if self.is_to_be_said(Instant::now()) {
            let what = self.what;
            warn!(%error, waiting, "{what}; nothing of it is given up, and it is tried again until the database takes it");
        }
    }

    /// Notes that a call failed; answers whether that is to be said.
    pub fn is_to_be_said(&self, now: Instant) -> bool {
        let mut since = self.lock();
        match &mut *since {
            Some(since) if now.duration_since(since.said) < SAY_EVERY => false,
            Some(since) => {
                since.said = now;
                true
            }
            none => {
                *none = Some(Since { began: now, said: now });
                true
            }
        }
    }

    /// Notes that a call succeeded.
    pub fn over(&self) {
        if let Some(since) = self.lock().take() {
            info!(seconds = since.began.elapsed().as_secs_f32(), "no longer so: {}", self.what);
        }
    }

    /// Whether the last call failed.
    pub fn is_on(&self) -> bool {
        self.lock().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_said_at_once_and_then_seldom() {
        let outage = Outage::new("outcomes could not be committed");
        let begin = Instant::now();
        let said = |after: u64| outage.is_to_be_said(begin + Duration::from_secs(after));
        assert!(said(0));
        assert!(outage.is_on());
        assert_eq!((1..=25).filter(|&after| said(after)).collect::<Vec<_>>(), [10, 20]);
        outage.over();
        assert!(!outage.is_on());
        assert!(said(26), "the next outage is news");
    }
}
