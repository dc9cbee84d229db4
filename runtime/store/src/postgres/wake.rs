//! Wake-ups: the fan-out trigger's notifications, heard on a connection of their own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use laneway_core::{StoreError, SubscriptionId};
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::connection::{Database, classify};
use super::servers::Servers;
use super::{lease, notifications};

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
    /// Told that somebody waits.
    awaited: Notify,
}

impl Wakes {
    fn of(&self, subscription: SubscriptionId) -> Arc<Notify> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(waiting.entry(subscription).or_default())
    }

    /// Waits until messages may have come since the last call.
    pub(super) async fn woken(&self, subscription: SubscriptionId) {
        self.awaited.notify_one();
        self.of(subscription).notified().await;
    }

    /// Waits until deployments may have changed since the last call.
    pub(super) async fn woken_by_deployments(&self) {
        self.awaited.notify_one();
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
        for notify in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).values() {
            notify.notify_one();
        }
    }

    /// Wakes those who have something to do, as far as was not heard: they are few, however many wait.
    async fn catch_up(&self, database: &Database) {
        self.deployments.notify_one();
        match lease::upcoming(database).await {
            Ok(upcoming) => {
                for (subscription, _) in upcoming.iter().filter(|(_, due)| due.is_zero()) {
                    self.of(*subscription).notify_one();
                }
            }
            Err(error) => {
                tracing::debug!(error = %classify(error), "failed to look for what was not heard");
                self.wake_all();
            }
        }
    }
}

/// Listens from the first wait for a wake-up on, until the handle is aborted, connecting again when the connection is
/// lost. Who only looks, as at a standby, which knows no `LISTEN`, never waits.
pub(super) fn listen(
    servers: Arc<Servers>,
    database: Database,
    patience: Duration,
    wakes: Arc<Wakes>,
) -> AbortHandle {
    let task = tokio::spawn(async move {
        wakes.awaited.notified().await;
        let listening = keep_listening(servers, &database, patience, &wakes);
        tokio::join!(listening, notifications::keep(database.clone()));
    });
    task.abort_handle()
}

async fn keep_listening(servers: Arc<Servers>, database: &Database, patience: Duration, wakes: &Wakes) {
    let mut backoff = BACKOFF_MIN;
    // Said once for each time that it is lost.
    let mut is_said = false;
    loop {
        let error = match connect(&servers, patience).await {
            Ok(mut listener) => {
                is_said = false;
                let hear = async {
                    loop {
                        match listener.try_recv().await {
                            Ok(Some(notification)) => {
                                backoff = BACKOFF_MIN;
                                wakes.wake(notification.payload());
                            }
                            Ok(None) => break StoreError::Unavailable("the connection was closed".to_owned()),
                            Err(error) => break classify(error),
                        }
                    }
                };
                // What was committed before was not heard.
                let (error, ()) = tokio::join!(hear, wakes.catch_up(database));
                drop(listener);
                error
            }
            Err(error) => error,
        };
        if is_said {
            tracing::debug!(%error, "failed to listen for wake-ups");
        } else {
            tracing::warn!(%error, "no connection for wake-ups; polling goes on");
            is_said = true;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Listens on a connection of its own: those for statements must not run out because one listens. It sends nothing
/// else, so that it is never in a transaction, which would hold back the notifications of all.
async fn connect(servers: &Servers, patience: Duration) -> Result<PgListener, StoreError> {
    let server = servers.find().await?;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(patience)
        .test_before_acquire(false)
        .connect_lazy_with(server.listening());
    let listening = async {
        let mut listener = PgListener::connect_with(&pool).await?;
        // Another server may be the right one by then.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok::<_, sqlx::Error>(listener)
    };
    let listener = match timeout(patience, listening).await {
        Ok(listener) => listener.map_err(|error| server.name(error))?,
        Err(_) => return Err(StoreError::Unavailable(format!("{server} did not answer within {patience:?}"))),
    };
    server.tune();
    Ok(listener)
}
