//! The node's look for due deliveries: one statement at a time for all of its subscriptions, however many they are.
//!
//! Wake-ups are for speed, and may be missed; this is what a delivery can rely on. A relay that has nothing to do sends
//! nothing to the database itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use laneway_core::{Store, SubscriptionId};
use tokio::time::Instant;
use tracing::warn;

use crate::active::Active;

/// Looks once an interval, and wakes the relays that something is due for, at the time when it is.
pub(crate) async fn run(store: Arc<dyn Store>, active: Vec<Arc<Active>>, interval: Duration) {
    let by_id: HashMap<SubscriptionId, Arc<Active>> = active.into_iter().map(|work| (work.id, work)).collect();
    loop {
        let next_look = Instant::now() + interval;
        match store.upcoming().await {
            Ok(mut upcoming) => {
                // What is due later is seen again by a later look.
                upcoming.retain(|(id, due)| *due < interval && by_id.contains_key(id));
                upcoming.sort_unstable_by_key(|(_, due)| *due);
                let seen_at = Instant::now();
                for (id, due) in upcoming {
                    if !due.is_zero() {
                        // The database's clock may tick coarser than ours: a moment after the due time, not just before.
                        let moment = seen_at + due + Duration::from_millis(1);
                        tokio::time::sleep_until(moment.min(next_look)).await;
                    }
                    if let Some(work) = by_id.get(&id) {
                        work.due.notify_one();
                    }
                }
            }
            Err(error) => warn!(%error, "failed to look for due deliveries; trying again"),
        }
        tokio::time::sleep_until(next_look).await;
    }
}
