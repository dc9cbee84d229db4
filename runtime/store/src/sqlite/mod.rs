//! Storage in a SQLite file: the application's own, or one of its own.
//!
//! One connection writes; in-process writers queue for it in order, so that they never fight over SQLite's lock, and
//! its page cache stays warm. A few connections read, and one watches for commits of other processes.

mod arrears;
mod busy;
mod claim;
mod claimed;
mod cleanup;
mod connection;
mod dead_letters;
mod enqueue;
mod health;
mod identity;
mod lease;
mod maintain;
mod native;
mod node;
mod plugins;
mod references;
mod replay;
mod schedule;
mod schema;
mod settle;
mod state;
#[cfg(test)]
mod tests;
mod topology;
mod view;
mod wake;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use laneway_core::{
    AppliedTopology, Batch, ClaimRequest, DeadLetterFilter, DeadLetterView, DeliveryId, Enqueued, Held, LeaseToken,
    MessageFilter, MessageId, MessageView, Name, NewMessage, Node, Renewal, SettleReport, Settlement, StateEntry,
    Status, Store, StoreError, SubscriptionId, Topology,
};
use tokio::task::AbortHandle;

use connection::Connections;
pub use schema::migrate;
use wake::Wakes;

/// How hard a commit is pressed onto the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// Settlements and messages survive a loss of power.
    #[default]
    Full,
    /// The last commits may be undone by a loss of power, but not by a crash of the process.
    Normal,
}

/// Where the file is and how to open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    /// The file.
    pub path: PathBuf,
    /// Whether to create the file, and our tables in it, where they are missing.
    pub create: bool,
    /// How hard a commit is pressed onto the disk.
    pub synchronous: Synchronous,
    /// Longest wait for another process's write to end.
    pub busy_timeout: Duration,
}

impl SqliteOptions {
    /// The file, created if missing, with commits that survive a loss of power.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create: true,
            synchronous: Synchronous::Full,
            busy_timeout: Duration::from_secs(5),
        }
    }
}

/// A store in a SQLite file. Clones share its connections.
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    connections: Connections,
    wakes: Arc<Wakes>,
    memory: health::Memory,
    watch: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqliteStore")
    }
}

impl SqliteStore {
    /// Opens the file. Where `create` allows it, a missing file is created and a file without our tables gets them.
    ///
    /// # Errors
    /// [`StoreError::SchemaOlder`] and [`StoreError::SchemaNewer`] if the schema is not this program's,
    /// [`StoreError::NotOurs`] if the file is missing, is no database or uses our names for something else,
    /// [`StoreError::Unavailable`] if it cannot be read or stays locked.
    pub async fn open(options: SqliteOptions) -> Result<Self, StoreError> {
        let writer = schema::open(&options).await?;
        let connections = Connections::new(&options, writer).await?;
        let wakes = Arc::new(Wakes::default());
        let watcher = connection::connect_reader(&options).await?;
        let watch = wake::watch(watcher, Arc::clone(&wakes)).await?;
        Ok(Self(Arc::new(Inner { connections, wakes, memory: health::Memory::default(), watch })))
    }

    fn connections(&self) -> &Connections {
        &self.0.connections
    }

    fn memory(&self) -> &health::Memory {
        &self.0.memory
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn apply(&self, topology: &Topology) -> Result<AppliedTopology, StoreError> {
        topology::apply(self.connections(), topology).await
    }

    async fn topology(&self) -> Result<Option<AppliedTopology>, StoreError> {
        topology::active(&mut self.connections().reader().await?).await
    }

    async fn enqueue(&self, messages: &[NewMessage]) -> Result<Vec<Enqueued>, StoreError> {
        let (enqueued, newest) = enqueue::enqueue(self.connections(), messages).await?;
        self.0.wakes.committed(newest);
        Ok(enqueued)
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Option<Batch>, StoreError> {
        if request.ordered {
            self.0.wakes.keep_in_order(request.subscription);
        }
        claim::claim(self.connections(), request).await
    }

    async fn begin(&self, deliveries: &[Held]) -> Result<Vec<Held>, StoreError> {
        lease::begin(self.connections(), deliveries).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<(LeaseToken, DeliveryId)>, StoreError> {
        lease::renew(self.connections(), renewals).await
    }

    async fn settle(&self, group: &[Settlement]) -> Result<SettleReport, StoreError> {
        let (report, newest) = settle::settle(self.connections(), group).await?;
        self.0.wakes.committed(newest);
        if group.iter().any(|settled| settled.freed_key().is_some()) {
            self.0.wakes.freed();
        }
        Ok(report)
    }

    async fn next_due(&self, subscription: SubscriptionId) -> Result<Option<Duration>, StoreError> {
        lease::next_due(&mut self.connections().reader().await?, subscription).await
    }

    async fn upcoming(&self) -> Result<Vec<(SubscriptionId, Duration)>, StoreError> {
        lease::upcoming(&mut self.connections().reader().await?).await
    }

    async fn woken(&self, subscription: SubscriptionId) {
        self.0.wakes.woken(subscription).await;
    }

    async fn state(&self, namespace: &Name, key: &str) -> Result<Option<StateEntry>, StoreError> {
        state::state(&mut self.connections().reader().await?, namespace, key).await
    }

    async fn counter(&self, namespace: &Name, key: &str) -> Result<i64, StoreError> {
        state::counter(&mut self.connections().reader().await?, namespace, key).await
    }

    async fn status(&self) -> Result<Status, StoreError> {
        view::status(&mut self.connections().reader().await?).await
    }

    async fn messages(&self, filter: &MessageFilter) -> Result<Vec<MessageView>, StoreError> {
        view::messages(&mut self.connections().reader().await?, filter).await
    }

    async fn message(&self, id: &MessageId) -> Result<Option<MessageView>, StoreError> {
        view::message(&mut self.connections().reader().await?, id).await
    }

    async fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetterView>, StoreError> {
        view::dead_letters(&mut self.connections().reader().await?, filter).await
    }

    async fn heartbeat(&self, node: &Name, alive_for: Duration) -> Result<u32, StoreError> {
        node::heartbeat(self.connections(), node, alive_for).await
    }

    async fn greet(&self, node: &Node, alive_for: Duration) -> Result<Vec<Node>, StoreError> {
        node::greet(self.connections(), node, alive_for).await
    }

    async fn sign_off(&self, node: &Name) -> Result<(), StoreError> {
        node::sign_off(self.connections(), node).await
    }

    fn round_trips(&self) -> u64 {
        self.connections().round_trips_counter().load(Ordering::Relaxed)
    }
}
