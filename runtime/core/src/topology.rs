//! Subscriptions: which topics go to which plugin, under which policies.

use std::time::Duration;

use serde::Serialize;

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
