//! Wake-ups: the fan-out trigger's notifications, heard on a connection of their own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use laneway_core::{StoreError, SubscriptionId};
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::PostgresOptions;
use super::connection::{classify, connect_options};

/// The trigger's channel.
const CHANNEL: &str = "laneway";
/// What a notification says that is about deployments; others name a subscription.
pub(super) const DEPLOYMENTS: &str = "deployments";
/// Wait after the first failed connection; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait between two attempts to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Who waits for work.
#[derive(Default)]
pub(super) struct Wakes {
    waiting: Mutex<HashMap<SubscriptionId, Arc<Notify>>>,
    /// Told of changes of deployments.
    deployments: Notify,
}

impl Wakes {
    fn of(&self, subscription: SubscriptionId) -> Arc<Notify> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(waiting.entry(subscription).or_default())
    }

    /// Waits until messages may have come since the last call.
    pub(super) async fn woken(&self, subscription: SubscriptionId) {
        self.of(subscription).notified().await;
    }

    /// Waits until deployments may have changed since the last call.
    pub(super) async fn woken_by_deployments(&self) {
        self.deployments.notified().await;
    }

    fn wake(&self, payload: &str) {
        if payload == DEPLOYMENTS {
            self.deployments.notify_one();
            return;
        }
        match payload.parse() {
            // Keeps a permit for one who is about to wait.
            Ok(number) => self.of(SubscriptionId(number)).notify_one(),
            Err(_) => tracing::debug!("a notification on channel {CHANNEL} names no subscription"),
        }
    }

    fn wake_all(&self) {
        self.deployments.notify_one();
        for notify in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).values() {
            notify.notify_one();
        }
    }
}

/// Listens until the handle is aborted, connecting again when the connection is lost.
pub(super) async fn listen(options: &PostgresOptions, wakes: Arc<Wakes>) -> Result<AbortHandle, StoreError> {
    // Not one of the connections for statements: those must not run out because one listens.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(options.acquire_timeout)
        .connect_lazy_with(connect_options(options)?);
    let connect = move || {
        let pool = pool.clone();
        async move {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(CHANNEL).await?;
            Ok::<_, sqlx::Error>(listener)
        }
    };
    // The first time within open, so that no commit after it goes unheard.
    let mut listener = connect().await.map_err(classify)?;
    let task = tokio::spawn(async move {
        let mut backoff = BACKOFF_MIN;
        loop {
            let error = loop {
                match listener.try_recv().await {
                    Ok(Some(notification)) => {
                        backoff = BACKOFF_MIN;
                        wakes.wake(notification.payload());
                    }
                    // Connected again: what was committed meanwhile was not heard.
                    Ok(None) => wakes.wake_all(),
                    Err(error) => break error,
                }
            };
            drop(listener);
            tracing::warn!(error = %classify(error), "lost the connection for wake-ups; polling goes on");
            listener = loop {
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
                match connect().await {
                    Ok(listener) => break listener,
                    Err(error) => tracing::debug!(error = %classify(error), "failed to listen for wake-ups"),
                }
            };
            wakes.wake_all();
        }
    });
    Ok(task.abort_handle())
}
