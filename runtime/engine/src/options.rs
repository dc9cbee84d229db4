//! Settings of one node's engine.

use std::time::Duration;

use laneway_core::Name;

/// Settings of one node's engine. All durations are measured by the node's monotonic clock.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// This node's name. What it reports goes by an id of its own, which is drawn at its start.
    pub node: Name,
    /// Where this node runs, in words for its operator.
    pub place: String,
    /// Longest time between two looks for due deliveries: wake-ups are only for speed.
    pub poll_interval: Duration,
    /// Settlements in one commit at most.
    pub settle_group_max: usize,
    /// Settlements that are committed without waiting for more.
    pub settle_group_ready: usize,
    /// Longest wait of an outcome for more to join its commit while other messages are in hand.
    pub settle_linger: Duration,
    /// Longest time that a drain waits for running attempts before it interrupts them.
    pub grace: Duration,
    /// Payload bytes of one subscription that are held in memory before being run, about.
    pub prefetch_bytes: usize,
    /// Work that is claimed ahead of the slots, as time: small enough to leave the rest to other nodes.
    pub prefetch_time: Duration,
}

impl EngineOptions {
    /// The defaults, for a node of this name.
    #[must_use]
    pub fn new(node: Name) -> Self {
        Self {
            node,
            place: format!("process {}", std::process::id()),
            poll_interval: Duration::from_secs(1),
            settle_group_max: 1024,
            settle_group_ready: 512,
            settle_linger: Duration::from_millis(5),
            grace: Duration::from_secs(20),
            prefetch_bytes: 16 * 1024 * 1024,
            prefetch_time: Duration::from_millis(250),
        }
    }
}
