//! What this node holds under lease, and its renewal.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use laneway_core::{DeliveryId, LeaseToken, Renewal, Store, SubscriptionId};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::outage::Outage;

/// Part of a lease after which it is renewed: early enough for two more tries.
const RENEW_AFTER: u32 = 3;
/// Wait before a renewal that failed is tried again.
const RENEW_AGAIN: Duration = Duration::from_millis(200);
/// Shortest sleep between two looks at the leases.
const TICK_MIN: Duration = Duration::from_millis(10);

struct Held {
    subscription: SubscriptionId,
    lease: Duration,
    renewed_at: Instant,
    deliveries: HashSet<DeliveryId>,
}

/// The leases of one node.
pub(crate) struct Leases {
    held: Mutex<HashMap<LeaseToken, Held>>,
    /// Told when a lease was added, which may be due for renewal earlier than all others.
    added: Notify,
    /// Whether they cannot be renewed at present.
    outage: Outage,
}

impl Default for Leases {
    fn default() -> Self {
        let outage = Outage::new("leases could not be renewed");
        Self { held: Mutex::default(), added: Notify::new(), outage }
    }
}

impl Leases {
    /// Whether leases could not be renewed. Some may have ended, and a claim would take their deliveries back and run
    /// them again, though this node still has them.
    pub fn are_failing(&self) -> bool {
        self.outage.is_on()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LeaseToken, Held>> {
        // Each critical section leaves the map whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a fresh lease, asked for at `since`: it can not end before `since + lease`.
    pub fn add(
        &self,
        subscription: SubscriptionId,
        token: LeaseToken,
        lease: Duration,
        since: Instant,
        deliveries: impl Iterator<Item = DeliveryId>,
    ) {
        let held = Held { subscription, lease, renewed_at: since, deliveries: deliveries.collect() };
        self.lock().insert(token, held);
        self.added.notify_one();
    }

    /// Whether a delivery is still held, as far as this node knows.
    pub fn holds(&self, token: LeaseToken, delivery: DeliveryId) -> bool {
        self.lock().get(&token).is_some_and(|held| held.deliveries.contains(&delivery))
    }

    /// Forgets deliveries that are settled or lost.
    pub fn remove(&self, deliveries: impl Iterator<Item = (LeaseToken, DeliveryId)>) {
        let mut leases = self.lock();
        for (token, delivery) in deliveries {
            if let Some(held) = leases.get_mut(&token) {
                held.deliveries.remove(&delivery);
                if held.deliveries.is_empty() {
                    leases.remove(&token);
                }
            }
        }
    }

    /// Deliveries held of one subscription.
    pub fn count(&self, subscription: SubscriptionId) -> usize {
        self.lock()
            .values()
            .filter(|held| held.subscription == subscription)
            .map(|held| held.deliveries.len())
            .sum()
    }

    fn due(&self, now: Instant) -> (Vec<Renewal>, Option<Instant>) {
        let leases = self.lock();
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for (&token, held) in leases.iter() {
            let at = held.renewed_at + held.lease / RENEW_AFTER;
            if at <= now {
                due.push(Renewal {
                    subscription: held.subscription,
                    token,
                    lease: held.lease,
                    deliveries: held.deliveries.iter().copied().collect(),
                });
            } else {
                next = Some(next.map_or(at, |n| n.min(at)));
            }
        }
        (due, next)
    }

    fn renewed(&self, renewals: &[Renewal], at: Instant) {
        let mut leases = self.lock();
        for renewal in renewals {
            if let Some(held) = leases.get_mut(&renewal.token) {
                held.renewed_at = at;
            }
        }
    }

    /// Renews leases until the task is dropped.
    pub async fn keep(self: Arc<Self>, store: Arc<dyn Store>) {
        loop {
            let now = Instant::now();
            let (due, next) = self.due(now);
            if !due.is_empty() {
                match store.renew(&due).await {
                    Ok(lost) => {
                        self.outage.over();
                        // Counted from before the call: the database set the new end no earlier than that.
                        self.renewed(&due, now);
                        if !lost.is_empty() {
                            warn!(lost = lost.len(), "leases were lost; their outcomes will be dropped");
                            self.remove(lost.into_iter());
                        }
                        debug!(leases = due.len(), "leases renewed");
                    }
                    Err(error) => {
                        self.outage.failed(&error, due.iter().map(|renewal| renewal.deliveries.len()).sum());
                        // Soon, so that what ended meanwhile is renewed before anybody takes it back.
                        tokio::time::sleep(RENEW_AGAIN).await;
                    }
                }
                continue;
            }
            // Whatever could not be renewed was settled or lost meanwhile: nothing is overdue.
            self.outage.over();
            let sleep =
                next.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(now).max(TICK_MIN));
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                () = self.added.notified() => {}
            }
        }
    }
}
