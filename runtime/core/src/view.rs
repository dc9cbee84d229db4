//! What operators are shown.

use jiff::Timestamp;
use serde::Serialize;

use crate::{DeadLetterSelection, Lane, MessageId, Name, Priority, Topic};

/// Status of a message as users know it, derived from its deliveries and dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageStatus {
    /// A delivery waits.
    Pending,
    /// A delivery is leased.
    Processing,
    /// No delivery is left, and none failed.
    Processed,
    /// A delivery ended in the dead letters.
    Failed,
    /// No subscription matched when it was written, or the triggers that route messages did not fire.
    Unrouted,
}

impl MessageStatus {
    /// The status's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Processed => "processed",
            Self::Failed => "failed",
            Self::Unrouted => "unrouted",
        }
    }

    /// The status of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Pending, Self::Processing, Self::Processed, Self::Failed, Self::Unrouted]
            .into_iter()
            .find(|s| s.as_str() == name)
    }
}

/// Which messages to list.
#[derive(Debug, Clone, Default)]
pub struct MessageFilter {
    /// Of this status only.
    pub status: Option<MessageStatus>,
    /// Of this topic only.
    pub topic: Option<Topic>,
    /// At most this many.
    pub limit: u32,
}

/// A message as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MessageView {
    /// Identity.
    pub id: MessageId,
    /// Position in the outbox.
    pub seq: i64,
    /// What it was sent under.
    pub topic: Topic,
    /// Ordering key.
    pub key: Option<String>,
    /// How urgent.
    pub priority: Priority,
    /// Tenant that it belongs to.
    pub tenant: Option<String>,
    /// Media type of the payload.
    pub content_type: String,
    /// Size of the payload.
    pub payload_bytes: u64,
    /// When it was written.
    pub created_at: Timestamp,
    /// Status, derived.
    pub status: MessageStatus,
    /// The payload as text, where a single message is shown; not UTF-8 is shown as `\x` escapes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// Deliveries still owed, where a single message is shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deliveries: Vec<DeliveryView>,
    /// Who has processed it, as far as markers tell, where a single message is shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub markers: Vec<MarkerView>,
}

/// A marker as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MarkerView {
    /// The subscription or consumer.
    pub subscription: Name,
    /// When its effects were committed.
    pub processed_at: Timestamp,
    /// What it noted: JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Value>,
}

/// A delivery as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeliveryView {
    /// Whose.
    pub subscription: Name,
    /// By which lane.
    pub lane: Lane,
    /// When it becomes due, or when its lease ends.
    pub available_at: Timestamp,
    /// Attempts counted so far; while it is leased, the one of the lease too.
    pub attempt: u32,
    /// Leases that ended with it unsettled since an answer was last counted: it may have run in one of them.
    pub lost: u32,
    /// Whether it is leased.
    pub leased: bool,
    /// Whether it waits behind another message of its key.
    pub parked: bool,
    /// Error of the last counted attempt.
    pub last_error: Option<String>,
}

/// Which dead letters to list.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    /// Of these only.
    pub selection: DeadLetterSelection,
    /// At most this many.
    pub limit: u32,
}

/// A dead letter as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeadLetterView {
    /// Number of the dead letter.
    pub id: i64,
    /// The message.
    pub message_id: MessageId,
    /// What it was sent under.
    pub topic: Topic,
    /// Whose delivery failed.
    pub subscription: Name,
    /// By which lane.
    pub lane: Lane,
    /// How urgent.
    pub priority: Priority,
    /// Why, as a code.
    pub reason: String,
    /// Why, in words.
    pub error: String,
    /// Attempts counted.
    pub attempts: u32,
    /// Start of the first attempt.
    pub first_attempt_at: Option<Timestamp>,
    /// When the last attempt failed.
    pub failed_at: Timestamp,
    /// Digest of the component that ran last.
    pub plugin: Option<String>,
}

/// Everything at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Revision of the active topology.
    pub topology_revision: Option<i64>,
    /// Messages in the outbox, settled ones included; an estimate on PostgreSQL.
    pub messages: u64,
    /// Messages that matched no subscription.
    pub unrouted: u64,
    /// Messages that were written while the triggers that route them did not fire.
    pub never_routed: u64,
    /// One entry a subscription.
    pub subscriptions: Vec<SubscriptionStatus>,
    /// Nodes seen, the latest first.
    pub nodes: Vec<NodeStatus>,
}

/// A subscription at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubscriptionStatus {
    /// Its name.
    pub name: Name,
    /// Its pattern.
    pub pattern: String,
    /// `handler` or `publisher`.
    pub kind: String,
    /// Whether new messages are routed to it.
    pub active: bool,
    /// Its lanes.
    pub lanes: Vec<LaneStatus>,
    /// Its dead letters.
    pub dead_letters: u64,
}

/// Deliveries of a lane that are counted for a glance, leased ones aside: a backlog of millions takes no longer to look at.
pub const COUNTED_MAX: u32 = 100_000;

/// A lane at a glance.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LaneStatus {
    /// Which lane.
    pub lane: Lane,
    /// Deliveries that are due and wait.
    pub due: u64,
    /// Deliveries that would be due, but wait behind another one of their key.
    pub parked: u64,
    /// Deliveries that are leased.
    pub leased: u64,
    /// Deliveries that wait for their time.
    pub delayed: u64,
    /// Whether there are more than were counted: counting stops at [`COUNTED_MAX`].
    pub more: bool,
    /// Age of the oldest due delivery, in seconds.
    pub oldest_due_seconds: Option<f64>,
}

/// A node at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeStatus {
    /// What its operator calls it.
    pub name: Name,
    /// The id of its process: its name, if it is of a version that draws none.
    pub id: Name,
    /// Where it runs, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// When it last said that it is alive.
    pub seen_at: Timestamp,
}
