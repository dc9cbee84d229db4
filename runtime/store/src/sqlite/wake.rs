//! Wake-ups: of commits of this store at once, of those of other processes by watching the file.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use laneway_core::{StoreError, SubscriptionId};
use sqlx::SqliteConnection;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::connection::{classify, now_ms};

/// Between two looks while others are committing.
const LOOK_BUSY: Duration = Duration::from_millis(1);
/// Between two looks after a while without commits.
const LOOK_QUIET: Duration = Duration::from_millis(5);
/// After this long without a commit it is quiet.
const QUIET_AFTER: Duration = Duration::from_secs(5);
/// After a failed look.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// After more messages than this at once, all are woken: to look whose they are would take longer.
const EACH_MAX: i64 = 2000;

/// Who waits for work.
#[derive(Default)]
pub(super) struct Wakes {
    waiting: Mutex<HashMap<SubscriptionId, Arc<Notify>>>,
    /// Subscriptions for which any commit may free a message that waited behind another one.
    ordered: Mutex<HashSet<SubscriptionId>>,
    /// Told of commits of this very store.
    look: Notify,
    /// Told of changes of deployments.
    deployments: Notify,
}

impl Wakes {
    /// Waits until messages may have come since the last call.
    pub(super) async fn woken(&self, subscription: SubscriptionId) {
        let notify = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(waiting.entry(subscription).or_insert_with(|| {
                let notify = Notify::new();
                // The first wait returns at once: messages may have come before anyone was known to wait.
                notify.notify_one();
                Arc::new(notify)
            }))
        };
        notify.notified().await;
    }

    /// A commit of this store wrote messages: the watch looks at once.
    pub(super) fn committed(&self, newest: Option<i64>) {
        if newest.is_some() {
            self.look.notify_one();
        }
    }

    /// A commit of this store freed keys: the watch looks at once.
    pub(super) fn freed(&self) {
        self.look.notify_one();
    }

    /// Waits until deployments may have changed since the last call.
    pub(super) async fn woken_by_deployments(&self) {
        self.deployments.notified().await;
    }

    /// This store has changed deployments.
    pub(super) fn deployments_changed(&self) {
        self.deployments.notify_one();
    }

    /// From now on, any commit wakes the subscription.
    pub(super) fn keep_in_order(&self, subscription: SubscriptionId) {
        self.ordered.lock().unwrap_or_else(PoisonError::into_inner).insert(subscription);
    }

    fn wake(&self, which: impl Fn(SubscriptionId) -> bool) {
        for (subscription, notify) in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if which(*subscription) {
                // Keeps a permit for one who is about to wait.
                notify.notify_one();
            }
        }
    }
}

/// Watches the file for commits with new messages, of any process, until the handle is aborted. Its looks are no round
/// trips: they come by the clock, not by the message.
pub(super) async fn watch(mut connection: SqliteConnection, wakes: Arc<Wakes>) -> Result<AbortHandle, StoreError> {
    let mut version = file_version(&mut connection).await?;
    // All older messages are covered: there is one writer at a time, so numbers are in the order of commits.
    let (mut seen, mut deployments) = newest(&mut connection).await?;
    let watch = tokio::spawn(async move {
        let mut changed_at = Instant::now();
        let mut pause = LOOK_QUIET;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = wakes.look.notified() => {}
            }
            let look = async {
                let found = file_version(&mut connection).await?;
                if found == version {
                    return Ok(false);
                }
                let ordered = wakes.ordered.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if !ordered.is_empty() {
                    wakes.wake(|subscription| ordered.contains(&subscription));
                }
                let (newest, changes) = newest(&mut connection).await?;
                if changes != deployments {
                    deployments = changes;
                    wakes.deployments_changed();
                }
                if newest > seen + EACH_MAX {
                    wakes.wake(|_| true);
                } else if newest > seen {
                    let due = due_since(&mut connection, seen).await?;
                    wakes.wake(|subscription| due.contains(&subscription.0));
                }
                seen = seen.max(newest);
                version = found;
                Ok::<_, StoreError>(true)
            };
            pause = match look.await {
                Ok(true) => {
                    changed_at = Instant::now();
                    LOOK_BUSY
                }
                Ok(false) if changed_at.elapsed() < QUIET_AFTER => LOOK_BUSY,
                Ok(false) => LOOK_QUIET,
                // The callers' polling goes on meanwhile.
                Err(error) => {
                    tracing::debug!(%error, "failed to look for commits");
                    LOOK_AGAIN
                }
            };
        }
    });
    Ok(watch.abort_handle())
}

/// A number that differs after any other connection's commit.
async fn file_version(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    // wake.file_version
    sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await.map_err(classify)
}

/// The newest message's number, and how often deployments have changed.
async fn newest(connection: &mut SqliteConnection) -> Result<(i64, i64), StoreError> {
    let query = "-- wake.newest
        SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'laneway_message'), 0),
            coalesce((SELECT CAST(value AS INTEGER) FROM laneway_setting WHERE name = 'deployments_changed'), 0)";
    sqlx::query_as(query).fetch_one(connection).await.map_err(classify)
}

pub(super) const DUE_SINCE: &str = concat!(
    "-- wake.due_since
    SELECT DISTINCT subscription_id FROM laneway_delivery NOT INDEXED
    WHERE id >= (? + 1) * 1048576 AND available_at <= ",
    now_ms!()
);

/// The subscriptions that got a due delivery of a message after this one.
async fn due_since(connection: &mut SqliteConnection, seen: i64) -> Result<HashSet<i32>, StoreError> {
    // A delivery's number begins with its message's, so these are the last rows of the table: the planner, left to itself,
    // reads the whole index instead.
    let found: Vec<i32> = sqlx::query_scalar(DUE_SINCE).bind(seen).fetch_all(connection).await.map_err(classify)?;
    Ok(found.into_iter().collect())
}
