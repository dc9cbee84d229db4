//! Subscriptions: which topics go to which plugin, under which policies.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Name, Priority, RetryPolicy, SubscriptionId, TopicPattern};

/// What a subscription's plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SubscriptionKind {
    /// Processes messages, with transactional effects.
    Handler,
    /// Forwards messages outward.
    Publisher,
}

impl SubscriptionKind {
    /// The kind's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::Publisher => "publisher",
        }
    }
}

/// What comes one at a time and in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// Nothing: messages run side by side.
    #[default]
    None,
    /// Messages of the same key, in the order of the outbox, retries included. A delayed message takes its place when it
    /// becomes due. Messages without a key run side by side.
    Key,
}

/// A named binding of a topic pattern to a plugin, with its policies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Subscription {
    /// Declared name: the stable identity of deliveries and markers.
    pub name: Name,
    /// Which topics it receives.
    pub pattern: TopicPattern,
    /// What its plugin is.
    pub kind: SubscriptionKind,
    /// Messages of a lower priority go to the backfill lane.
    pub lane_threshold: Priority,
    /// What comes one at a time and in order.
    pub ordering: Ordering,
    /// Whether a marker keeps a message from being processed twice.
    pub idempotent: bool,
    /// When a failed attempt is tried again.
    pub retry: RetryPolicy,
    /// Length of a lease; renewed while its deliveries are in hand.
    pub lease: Duration,
    /// Longest time that one attempt may run.
    pub timeout: Duration,
    /// Attempts that one node runs at once.
    pub concurrency: u32,
    /// Deliveries that one claim takes at most.
    pub claim_batch: u32,
    /// Messages that one call of a publisher gets at most.
    pub publish_batch: u32,
    /// Whether an attempt of unknown outcome is dead-lettered for review rather than retried.
    pub review_unknown_outcome: bool,
    /// Part of the messages that the backfill lane gets while the primary one is busy: from 0 to below 1.
    pub backfill_min_share: f64,
    /// Messages that all nodes together begin in a second at most, shared evenly among those that live.
    pub rate_limit: Option<f64>,
    /// Deliveries that all nodes together hold at most.
    pub cluster_concurrency: Option<u32>,
    /// What the messages go to: subscriptions of the same one pause together.
    pub destination: Option<Name>,
    /// When claiming pauses because attempts fail.
    pub breaker: Option<BreakerPolicy>,
    /// Longest pause that a destination can ask for. Absent from the text of a topology where it is the default, so that
    /// the text is that of builds which do not know it.
    #[serde(skip_serializing_if = "is_throttle_max_default")]
    pub throttle_max: Duration,
}

/// Longest pause that a destination can ask for, unless the subscription says otherwise.
pub const THROTTLE_MAX_DEFAULT: Duration = Duration::from_secs(60 * 60);

fn is_throttle_max_default(throttle_max: &Duration) -> bool {
    *throttle_max == THROTTLE_MAX_DEFAULT
}

/// When claiming pauses because attempts fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BreakerPolicy {
    /// Failures in a row that open it.
    pub failures: u32,
    /// For how long nothing is claimed then, and after each message that is tried and fails.
    pub pause: Duration,
}

impl Subscription {
    /// Whether messages of one key come one at a time.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        self.ordering == Ordering::Key
    }

    /// Longest time from a message's first attempt to the end of its last, while all goes as configured: each attempt
    /// takes its timeout, or kills its node and is seen again when its lease has ended.
    #[must_use]
    pub fn redelivery_horizon(&self) -> Duration {
        let attempts = (self.timeout.max(self.lease)).saturating_mul(self.retry.attempts_max());
        match self.retry.max_elapsed {
            Some(max) => max.saturating_add(self.timeout.max(self.lease)),
            None => self.retry.horizon().saturating_add(attempts),
        }
    }
}

/// All subscriptions, as one configuration declares them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Topology {
    /// The subscriptions, in the order in which they are declared; names are unique.
    pub subscriptions: Vec<Subscription>,
    /// Largest payload that the outbox accepts, in bytes.
    pub payload_bytes_max: u32,
}

/// What a database holds after a topology was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedTopology {
    /// Counts up with each change.
    pub revision: i64,
    /// The active subscriptions' numbers.
    pub subscriptions: Vec<(Name, SubscriptionId)>,
    /// The topology as canonical JSON ([`Topology::canonical`]).
    pub canonical: String,
}

impl Topology {
    /// The topology as JSON text; equal topologies give equal texts.
    #[must_use]
    pub fn canonical(&self) -> String {
        // Serialising plain structs of strings and numbers to a string has no way to fail.
        serde_json::to_string(self).expect("a topology is always representable as JSON")
    }
}
