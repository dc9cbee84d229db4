//! Wake-ups: of commits of this store at once, of those of other processes by watching the file.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use laneway_core::{StoreError, SubscriptionId};
use sqlx::SqliteConnection;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::busy;
use super::connection::{classify, now_ms};
use super::native::{Held, Native};

/// Between two looks while messages come.
const LOOK_BUSY: Duration = Duration::from_millis(1);
/// Between two looks after a while without messages.
const LOOK_QUIET: Duration = Duration::from_millis(5);
/// After this long without a message it is quiet.
const QUIET_AFTER: Duration = Duration::from_secs(5);
/// After a failed look.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// After more messages than this at once, all are woken: to look whose they are would take longer.
const EACH_MAX: i64 = 2000;

/// Those who wait, or were woken before anyone was known to wait.
#[derive(Default)]
struct Waiting {
    known: HashMap<SubscriptionId, Arc<Notify>>,
    /// Whether all were woken, those included who are not known yet.
    all_were_woken: bool,
}

impl Waiting {
    fn of(&mut self, subscription: SubscriptionId) -> Arc<Notify> {
        let all_were_woken = self.all_were_woken;
        let notify = self.known.entry(subscription).or_insert_with(|| {
            let notify = Notify::new();
            if all_were_woken {
                notify.notify_one();
            }
            Arc::new(notify)
        });
        Arc::clone(notify)
    }
}

/// Who waits for work.
#[derive(Default)]
pub(super) struct Wakes {
    waiting: Mutex<Waiting>,
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
        let notify = self.lock().of(subscription);
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

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes these, each with a permit for one who is about to wait.
    fn wake(&self, subscriptions: impl IntoIterator<Item = SubscriptionId>) {
        let mut waiting = self.lock();
        for subscription in subscriptions {
            waiting.of(subscription).notify_one();
        }
    }

    fn wake_all(&self) {
        let mut waiting = self.lock();
        waiting.all_were_woken = true;
        for notify in waiting.known.values() {
            notify.notify_one();
        }
    }
}

/// What a look found.
#[derive(Clone, Copy)]
pub(super) struct Found {
    /// A number that differs after any other connection's commit.
    version: i64,
    /// The newest message's number.
    newest: i64,
    /// How often deployments have changed.
    deployments: i64,
}

impl Found {
    /// Whether there is something for anybody since an earlier look. Commits alone are none: nodes with nothing to do say
    /// every few seconds that they are alive.
    pub(super) fn is_news_since(self, seen: Self) -> bool {
        self.newest > seen.newest || self.deployments != seen.deployments
    }
}

/// Watches the file for commits with new messages, of any process, until the handle is aborted. Its looks are no round
/// trips: they come by the clock, not by the message.
pub(super) async fn watch(mut connection: SqliteConnection, wakes: Arc<Wakes>) -> Result<AbortHandle, StoreError> {
    let (begun, beginning) = tokio::sync::oneshot::channel();
    let watch = tokio::spawn(async move {
        // All older messages are covered: there is one writer at a time, so numbers are in the order of commits.
        let first = async {
            let first = look(&mut Held::lock(&mut connection).await?.native(), None)?;
            // The next looks wait for nobody: they keep other tasks of their thread from their work.
            busy::wait_in_small_steps(&mut connection, Duration::ZERO).await?;
            Ok(first)
        };
        let mut seen = match first.await {
            Ok(first) => {
                drop(begun.send(Ok(())));
                first
            }
            Err(error) => return drop(begun.send(Err(error))),
        };
        loop {
            let looked = async {
                let found = wait_for_messages(&mut connection, &wakes, &mut seen).await?;
                if found.newest > seen.newest + EACH_MAX {
                    wakes.wake_all();
                } else {
                    wakes.wake(due_since(&mut connection, seen.newest).await?);
                }
                seen = found;
                Ok::<_, StoreError>(())
            };
            // The callers' polling goes on meanwhile.
            if let Err(error) = looked.await {
                tracing::debug!(%error, "failed to look for commits");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    });
    beginning.await.map_err(|_| StoreError::Other("the watch of commits ended".to_owned()))??;
    Ok(watch.abort_handle())
}

/// Looks until there are messages that were not `seen`. On this very thread: a look takes less time than to ask another
/// one for it, and while a queue is worked off there is a commit at each.
async fn wait_for_messages(
    connection: &mut SqliteConnection,
    wakes: &Wakes,
    seen: &mut Found,
) -> Result<Found, StoreError> {
    let mut held = Held::lock(connection).await?;
    let mut news_at = Instant::now();
    loop {
        let found = look(&mut held.native(), Some(*seen))?;
        if found.version != seen.version {
            if found.is_news_since(*seen) {
                news_at = Instant::now();
            }
            let ordered = wakes.ordered.lock().unwrap_or_else(PoisonError::into_inner).clone();
            wakes.wake(ordered);
            if found.deployments != seen.deployments {
                wakes.deployments_changed();
            }
            if found.newest > seen.newest {
                // What is seen of the messages comes once they are dealt with.
                seen.deployments = found.deployments;
                return Ok(found);
            }
            *seen = Found { newest: seen.newest, ..found };
        }
        let pause = if news_at.elapsed() < QUIET_AFTER { LOOK_BUSY } else { LOOK_QUIET };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wakes.look.notified() => {}
        }
    }
}

pub(super) fn look(native: &mut Native<'_>, seen: Option<Found>) -> Result<Found, StoreError> {
    let version = native.number("-- wake.file_version\nPRAGMA data_version", &[])?;
    if let Some(seen) = seen.filter(|seen| seen.version == version) {
        return Ok(seen);
    }
    let newest = "-- wake.newest
        SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'laneway_message'), 0)";
    let deployments = "-- wake.deployments
        SELECT coalesce((SELECT CAST(value AS INTEGER) FROM laneway_setting WHERE name = 'deployments_changed'), 0)";
    Ok(Found { version, newest: native.number(newest, &[])?, deployments: native.number(deployments, &[])? })
}

pub(super) const DUE_SINCE: &str = concat!(
    "-- wake.due_since
    SELECT DISTINCT subscription_id FROM laneway_delivery NOT INDEXED
    WHERE id >= (? + 1) * 1048576 AND available_at <= ",
    now_ms!()
);

/// The subscriptions that got a due delivery of a message after this one.
async fn due_since(connection: &mut SqliteConnection, seen: i64) -> Result<Vec<SubscriptionId>, StoreError> {
    // A delivery's number begins with its message's, so these are the last rows of the table: the planner, left to itself,
    // reads the whole index instead.
    let found: Vec<i32> = sqlx::query_scalar(DUE_SINCE).bind(seen).fetch_all(connection).await.map_err(classify)?;
    Ok(found.into_iter().map(SubscriptionId).collect())
}
