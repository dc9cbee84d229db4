//! What this node has done since it started.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of one node, updated as it works.
        #[derive(Debug, Default)]
        pub struct Stats { $($(#[$doc])* pub(crate) $name: AtomicU64,)+ }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        pub struct StatsSnapshot { $($(#[$doc])* pub $name: u64,)+ }

        impl Stats {
            /// The counters now.
            #[must_use]
            pub fn snapshot(&self) -> StatsSnapshot {
                StatsSnapshot { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }

        impl StatsSnapshot {
            /// Adds what another node has done.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }
        }
    };
}

counters! {
    /// Deliveries claimed.
    claimed,
    /// Attempts run.
    attempts,
    /// Deliveries settled as processed, durably.
    completed,
    /// Deliveries put back for a later attempt.
    retried,
    /// Deliveries handed back unstarted or interrupted.
    released,
    /// Deliveries moved to the dead letters.
    dead_lettered,
    /// Outcomes dropped because the lease no longer held.
    lease_lost,
    /// Messages whose marker showed them processed already.
    duplicates,
    /// Attempts run again because the state they read had changed.
    reruns,
    /// Commits of settlement groups.
    groups,
    /// Time in the sandbox, in nanoseconds.
    sandbox_nanos,
}

impl Stats {
    pub(crate) fn add(counter: &AtomicU64, by: usize) {
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }

    pub(crate) fn sandbox(&self, elapsed: Duration) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.sandbox_nanos.fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
