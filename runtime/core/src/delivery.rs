//! Deliveries as a node holds them: leased, in batches.

use std::time::Duration;

use crate::{DeliveryId, ErrorText, Lane, LeaseToken, Message, SubscriptionId};

/// What to claim.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRequest {
    /// Whose deliveries.
    pub subscription: SubscriptionId,
    /// From which lane.
    pub lane: Lane,
    /// At most this many.
    pub limit: u32,
    /// For how long.
    pub lease: Duration,
    /// Whether to look for markers, so that [`Delivery::processed`] tells.
    pub check_markers: bool,
    /// Whether the subscription is ordered: of each key only the message that is next is taken, and no other until that
    /// one is settled for good.
    pub ordered: bool,
    /// Deliveries of the subscription that all nodes together may hold, these included; `None` is no limit.
    pub in_work_max: Option<u32>,
}

/// One message owed to one subscription, leased to this node.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The store's reference.
    pub id: DeliveryId,
    /// Which lane it came by.
    pub lane: Lane,
    /// The message.
    pub message: Message,
    /// Number of this attempt, from 1. It counts when it is answered, or if [`crate::Store::begin`] noted it and the lease
    /// ends.
    pub attempt: u32,
    /// Leases that ended with it unsettled since an answer was last counted. Above 0 it may have run in one of them, and
    /// may even be what ended the node: [`crate::Store::begin`] is to be called before it runs.
    pub lost: u32,
    /// Time from the start of the first attempt to this claim.
    pub since_first_attempt: Duration,
    /// A marker says that its effects are committed: settle it without running it.
    pub processed: bool,
    /// Why it cannot be run, if a row of it breaks the rules of the schema: give it up. What cannot be read is left empty.
    pub unreadable: Option<ErrorText>,
}

/// Deliveries of one subscription under one lease, in the order in which they are to be processed.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Whose deliveries.
    pub subscription: SubscriptionId,
    /// The lease that all of them are under.
    pub token: LeaseToken,
    /// The deliveries.
    pub deliveries: Vec<Delivery>,
}

/// A delivery in hand, named by its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// The lease that it is under.
    pub token: LeaseToken,
    /// Whose delivery.
    pub subscription: SubscriptionId,
    /// The delivery.
    pub delivery: DeliveryId,
}

/// A lease to be renewed, for those of its deliveries that are still in hand. A store may renew all of a lease that is
/// not settled.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// Whose deliveries.
    pub subscription: SubscriptionId,
    /// The lease.
    pub token: LeaseToken,
    /// Its new length, from now.
    pub lease: Duration,
    /// The deliveries.
    pub deliveries: Vec<DeliveryId>,
}
