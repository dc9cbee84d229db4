//! A subscription that this node is working on: what its relay, its slots and the settler share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use laneway_core::{Store, Subscription, SubscriptionId};
use tokio::sync::Notify;

use crate::destination::{Destination, Pause};
use crate::engine::{Binding, Runs};
use crate::lanes::Lanes;
use crate::overlay::Overlay;
use crate::pace::Pace;
use crate::rate::Rate;
use crate::refusals::Refusals;
use crate::versions::Versions;

pub(crate) struct Active {
    pub subscription: Subscription,
    pub id: SubscriptionId,
    pub versions: Versions,
    pub lanes: Lanes,
    pub overlay: Arc<Overlay>,
    pub pace: Pace,
    pub rate: Rate,
    pub destination: Arc<Destination>,
    /// Of this subscription alone.
    pub pause: Pause,
    /// Told when something is due, by the node's look for all of its subscriptions.
    pub due: Notify,
    /// What its messages were refused for.
    pub refusals: Refusals,
    /// Told when a delivery was put back for a time that the relay does not know of.
    pub rescheduled: Notify,
}

impl Active {
    pub fn new(binding: Binding, destination: Arc<Destination>, store: Arc<dyn Store>) -> Self {
        Self {
            overlay: Arc::new(Overlay::new(binding.subscription.name.clone(), store)),
            lanes: Lanes::new(binding.subscription.backfill_min_share),
            rate: Rate::new(binding.subscription.rate_limit, Instant::now()),
            destination,
            pause: Pause::default(),
            refusals: Refusals::default(),
            subscription: binding.subscription,
            id: binding.id,
            versions: match binding.runs {
                Runs::Fixed(invoker) => Versions::fixed(invoker),
                Runs::Deployed { .. } => Versions::default(),
            },
            pace: Pace::default(),
            due: Notify::new(),
            rescheduled: Notify::new(),
        }
    }

    /// Time left of a pause, of the subscription's own or of its destination's.
    pub fn paused_for(&self) -> Option<Duration> {
        self.pause.left().max(self.destination.pause.left())
    }

    /// A message was taken, or refused for what it is itself.
    pub fn answered(&self) {
        self.destination.answered();
        self.refusals.answered();
    }

    /// Messages that one call of the plugin gets at most.
    pub fn publish_batch(&self) -> usize {
        self.subscription.publish_batch.max(1) as usize
    }

    /// Deliveries that one claim takes at most.
    pub fn claim_batch(&self) -> usize {
        self.subscription.claim_batch.max(1) as usize
    }
}
