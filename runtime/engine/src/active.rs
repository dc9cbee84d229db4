//! A subscription that this node is working on: what its relay, its slots and the settler share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use laneway_core::{Invoker, Store, Subscription, SubscriptionId};
use tokio::sync::Notify;

use crate::breaker::Breaker;
use crate::engine::Binding;
use crate::lanes::Lanes;
use crate::overlay::Overlay;
use crate::pace::Pace;
use crate::rate::Rate;

pub(crate) struct Active {
    pub subscription: Subscription,
    pub id: SubscriptionId,
    pub invoker: Arc<dyn Invoker>,
    pub lanes: Lanes,
    pub overlay: Arc<Overlay>,
    pub pace: Pace,
    pub rate: Rate,
    pub breaker: Breaker,
    /// Told when a delivery was put back for a time that the relay does not know of.
    pub rescheduled: Notify,
    paused_until: Mutex<Option<Instant>>,
}

impl Active {
    pub fn new(binding: Binding, store: Arc<dyn Store>) -> Self {
        Self {
            overlay: Arc::new(Overlay::new(binding.subscription.name.clone(), store)),
            lanes: Lanes::new(binding.subscription.backfill_min_share),
            rate: Rate::new(binding.subscription.rate_limit, Instant::now()),
            breaker: Breaker::new(binding.subscription.breaker),
            subscription: binding.subscription,
            id: binding.id,
            invoker: binding.invoker,
            pace: Pace::default(),
            rescheduled: Notify::new(),
            paused_until: Mutex::new(None),
        }
    }

    /// Claims nothing for this long, unless a longer pause is under way.
    pub fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut paused = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        *paused = Some(paused.map_or(until, |other| other.max(until)));
    }

    /// Time left of a pause.
    pub fn paused_for(&self) -> Option<Duration> {
        let until = (*self.paused_until.lock().unwrap_or_else(PoisonError::into_inner))?;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
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
