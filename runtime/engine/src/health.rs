//! Looks now and then whether the database is still the one that this node knows, and says so if not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use laneway_core::{Finding, Name, Store, SubscriptionId, Trouble};
use tracing::{debug, error};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(15);
/// What goes on being wrong is said again after so many looks: every ten minutes.
const SAY_AGAIN: u32 = 40;

/// Looks until it is aborted. `subscriptions` are what this node works for, and under which numbers.
pub(crate) async fn keep(store: Arc<dyn Store>, subscriptions: Vec<(Name, SubscriptionId)>) {
    let mut said: Vec<Finding> = Vec::new();
    let mut looks = 0;
    loop {
        match store.look().await {
            Ok(found) => {
                looks += 1;
                if found != said || looks >= SAY_AGAIN {
                    looks = 0;
                    for Finding { trouble, detail, .. } in &found {
                        error!(trouble = trouble.as_str(), "{detail}; {}", trouble.remedy());
                    }
                }
                // That is told once, and must not make the rest be said again.
                said = found.into_iter().filter(|finding| finding.trouble != Trouble::OtherHistory).collect();
            }
            Err(error) => debug!(%error, "failed to look whether all is well with the database"),
        }
        if let Err(error) = compare(&*store, &subscriptions).await {
            debug!(%error, "failed to look up the numbers of the subscriptions");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A restored database may know a subscription under another number. Its messages then wait: a number is never another
/// subscription's.
async fn compare(
    store: &dyn Store,
    subscriptions: &[(Name, SubscriptionId)],
) -> Result<(), laneway_core::StoreError> {
    let Some(topology) = store.topology().await? else { return Ok(()) };
    let numbers: HashMap<&Name, SubscriptionId> =
        topology.subscriptions.iter().map(|(name, id)| (name, *id)).collect();
    for (name, number) in subscriptions {
        if let Some(other) = numbers.get(name).filter(|other| *other != number) {
            error!(
                subscription = %name,
                "the database has this subscription under number {}, and this node works under {}, as the database was \
                 when it started; restart this node",
                other.0,
                number.0
            );
        }
    }
    Ok(())
}
