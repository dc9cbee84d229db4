//! What a database must be able to do. Both implementations pass one conformance suite.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    AppliedTopology, Batch, ClaimRequest, DeadLetterFilter, DeadLetterView, DeliveryId, Enqueued, Health, Held,
    LeaseToken, Maintenance, MessageFilter, MessageId, MessageView, Name, NewMessage, Node, Plugins, Renewal,
    ScheduleRuns, SettleReport, Settlement, StateEntry, Status, SubscriptionId, Topology,
};

/// What can go wrong in a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or went away; the same call may succeed later.
    #[error("database is not reachable: {0}")]
    Unavailable(String),
    /// The database does not let this program do its work until somebody changes something there: rights of its role,
    /// a setting of the server. Nothing is wrong with what was to be written.
    #[error("database is not set up for this: {0}")]
    Misconfigured(String),
    /// The database's file was moved, removed or replaced while it was open. Nothing is written to it any more; only a new
    /// start opens what is there now.
    #[error("database file was exchanged: {0}")]
    Exchanged(String),
    /// The schema is older than this program.
    #[error("database is at schema version {found}, this program needs {needed}; run `laneway migrate`")]
    SchemaOlder {
        /// Version found; 0 if there is none.
        found: i64,
        /// Version needed.
        needed: i64,
    },
    /// The schema is newer than this program.
    #[error("database is at schema version {found}, this program knows {known}; use a newer laneway")]
    SchemaNewer {
        /// Version found.
        found: i64,
        /// Newest version known.
        known: i64,
    },
    /// The database holds something else under our names, or is no database.
    #[error("not a laneway database: {0}")]
    NotOurs(String),
    /// The database refused a value, such as a payload over the limit.
    #[error("refused by the database: {0}")]
    Refused(String),
    /// The nodes together hold as many deliveries of the subscription as [`ClaimRequest::in_work_max`] allows. No failure:
    /// each settlement makes room.
    #[error("as many deliveries are in work as may be")]
    NoRoom,
    /// Anything else; a defect or a broken database.
    #[error("database: {0}")]
    Other(String),
}

impl StoreError {
    /// Whether the call is not at fault, so that the same call may succeed later: without anyone's help, or after a new
    /// start where the file was exchanged.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Exchanged(_))
    }

    /// Whether the fault is the database's, and not that of what was to be written: the same call succeeds once the
    /// database is back, or was mended.
    #[must_use]
    pub fn is_of_database(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Misconfigured(_) | Self::Exchanged(_))
    }
}

/// An outbox, its deliveries and their effects, in one database.
///
/// Times are the database's: a lease has expired and a message is due when the database's clock says so.
/// Nothing here keeps a transaction open between two calls.
#[async_trait]
pub trait Store: Maintenance + Plugins + ScheduleRuns + Health {
    /// Makes a topology the active one. Subscriptions that it does not name stop receiving; their deliveries stay.
    /// Applying the active topology again changes nothing, the revision included.
    async fn apply(&self, topology: &Topology) -> Result<AppliedTopology, StoreError>;

    /// The active topology; `Ok(None)` if none was ever applied.
    async fn topology(&self) -> Result<Option<AppliedTopology>, StoreError>;

    /// Writes messages in one transaction. Duplicates are reported, not refused. The answers are in the order given.
    async fn enqueue(&self, messages: &[NewMessage]) -> Result<Vec<Enqueued>, StoreError>;

    /// Leases due deliveries of one lane: highest priority first, then due time, then sequence. `Ok(None)` if nothing is
    /// due, [`StoreError::NoRoom`] if nothing may be taken.
    ///
    /// What a lease still holds when it ends is due again, with [`crate::Delivery::lost`] raised by one. Its attempt counts
    /// only if [`Store::begin`] was called for it.
    async fn claim(&self, request: ClaimRequest) -> Result<Option<Batch>, StoreError>;

    /// Notes durably that attempts begin, so that they count even if their lease ends without an answer. It is called for
    /// deliveries whose [`crate::Delivery::lost`] is above 0, before they run. Answers those whose lease no longer held: they
    /// must not run.
    async fn begin(&self, deliveries: &[Held]) -> Result<Vec<Held>, StoreError>;

    /// Renews leases. Answers the deliveries whose lease no longer held; those are not renewed.
    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<(LeaseToken, DeliveryId)>, StoreError>;

    /// Settles a group in one transaction, durably. Only settlements whose lease holds happen. See [`SettleReport`].
    async fn settle(&self, group: &[Settlement]) -> Result<SettleReport, StoreError>;

    /// Time until the earliest delivery that is not yet due becomes so; `Ok(None)` if there is none.
    async fn next_due(&self, subscription: SubscriptionId) -> Result<Option<Duration>, StoreError>;

    /// Time until the earliest delivery of each subscription that has any is due; zero if one is due now, though a claim
    /// may yet find that it has to wait for another of its key. One statement, whose cost grows with the subscriptions
    /// that have something to deliver, and with nothing else.
    async fn upcoming(&self) -> Result<Vec<(SubscriptionId, Duration)>, StoreError>;

    /// Waits until deliveries of the subscription may have become due by a commit, of any process. May wake without
    /// cause, and remembers a wake-up that came since the last call. Callers poll as well: this is only for speed.
    async fn woken(&self, subscription: SubscriptionId);

    /// Reads a state key; `Ok(None)` if it is absent.
    async fn state(&self, namespace: &Name, key: &str) -> Result<Option<StateEntry>, StoreError>;

    /// Reads a counter; 0 if it is absent.
    async fn counter(&self, namespace: &Name, key: &str) -> Result<i64, StoreError>;

    /// Counts and ages by subscription and lane.
    async fn status(&self) -> Result<Status, StoreError>;

    /// Lists messages, newest first.
    async fn messages(&self, filter: &MessageFilter) -> Result<Vec<MessageView>, StoreError>;

    /// One message with its payload and deliveries; `Ok(None)` if there is none of this id.
    async fn message(&self, id: &MessageId) -> Result<Option<MessageView>, StoreError>;

    /// Lists dead letters, newest first.
    async fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetterView>, StoreError>;

    /// Says that this node is alive. `node` is the [`Node::id`] of this process. Answers how many were within the last
    /// `alive_for`, this one included.
    async fn heartbeat(&self, node: &Name, alive_for: Duration) -> Result<u32, StoreError>;

    /// Says who this node is, and answers those of its name that live beside it: that have said so within the last
    /// `alive_for`, and since this one first did. One that has crashed is none, however lately. Forgets who has not been
    /// seen for a day.
    async fn greet(&self, node: &Node, alive_for: Duration) -> Result<Vec<Node>, StoreError>;

    /// Says that this node has stopped in order: from now on nobody counts it, nor waits for it.
    async fn sign_off(&self, node: &Name) -> Result<(), StoreError>;

    /// Statements and transactions sent to the database since the store was opened, each a round trip. Watching for
    /// wake-ups is not counted.
    fn round_trips(&self) -> u64;
}
