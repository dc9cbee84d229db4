//! Storage in PostgreSQL, version 14 or newer, shared by any number of nodes.
//!
//! Everything lives in the schema `laneway`. Nothing waits inside the database but for row locks of settlements in
//! progress; claims step over them.

mod arrears;
mod claim;
mod cleanup;
mod connection;
mod dead_letters;
mod enqueue;
mod health;
mod lease;
mod maintain;
mod node;
mod notifications;
mod plugins;
mod pool;
mod references;
mod replay;
mod schedule;
mod schema;
mod servers;
mod session;
mod settle;
mod socket;
mod state;
mod topology;
mod vacuum;
mod view;
mod wake;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use laneway_core::{
    AppliedTopology, Batch, ClaimRequest, DeadLetterFilter, DeadLetterView, DeliveryId, Enqueued, Held, LeaseToken,
    MessageFilter, MessageId, MessageView, Name, NewMessage, Node, Renewal, SettleReport, Settlement, StateEntry,
    Status, Store, StoreError, SubscriptionId, Topology,
};
use tokio::task::AbortHandle;

use connection::{Database, classify};
pub use schema::migrate;
use servers::Servers;
pub use view::wal_position;
use wake::Wakes;

/// Where the server is and how to use it.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresOptions {
    /// Address, `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. It may name several hosts, separated by commas, and
    /// `?target_session_attrs=` which of them is wanted. Appears in no error and no log.
    pub url: String,
    /// Most connections for statements; one more listens for wake-ups once somebody waits for them.
    pub connections_max: u32,
    /// Longest wait for a connection, and for a server to answer; with several hosts each has its part of it.
    pub acquire_timeout: Duration,
}

impl PostgresOptions {
    /// The address, with 8 connections and a wait of 10 seconds.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), connections_max: 8, acquire_timeout: Duration::from_secs(10) }
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may carry a password.
        f.debug_struct("PostgresOptions")
            .field("connections_max", &self.connections_max)
            .field("acquire_timeout", &self.acquire_timeout)
            .finish_non_exhaustive()
    }
}

/// A store in a PostgreSQL database. Clones share its connections.
#[derive(Clone)]
pub struct PostgresStore(Arc<Inner>);

struct Inner {
    database: Database,
    wakes: Arc<Wakes>,
    listener: AbortHandle,
    settled: Arc<AtomicU64>,
    memory: health::Memory,
    vacuum: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.listener.abort();
        self.vacuum.abort();
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresStore")
    }
}

impl PostgresStore {
    /// Opens a database that [`migrate`] has brought up to date.
    ///
    /// # Errors
    /// [`StoreError::SchemaOlder`] and [`StoreError::SchemaNewer`] if the schema is not this program's,
    /// [`StoreError::NotOurs`] if something else uses its name, [`StoreError::Unavailable`] if the server cannot be
    /// reached.
    pub async fn open(options: PostgresOptions) -> Result<Self, StoreError> {
        let servers = Arc::new(Servers::of(&options)?);
        schema::check(&servers).await?;
        let database = Database::new(Arc::clone(&servers), &options);
        let wakes = Arc::new(Wakes::default());
        let listener = wake::listen(servers, database.clone(), options.acquire_timeout, Arc::clone(&wakes));
        let settled = Arc::default();
        let vacuum = vacuum::keep(database.clone(), Arc::clone(&settled));
        Ok(Self(Arc::new(Inner { database, wakes, listener, settled, memory: health::Memory::default(), vacuum })))
    }

    fn database(&self) -> &Database {
        &self.0.database
    }

    fn memory(&self) -> &health::Memory {
        &self.0.memory
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn apply(&self, topology: &Topology) -> Result<AppliedTopology, StoreError> {
        topology::apply(self.database(), topology).await.map_err(classify)
    }

    async fn topology(&self) -> Result<Option<AppliedTopology>, StoreError> {
        topology::active(self.database()).await.map_err(classify)
    }

    async fn enqueue(&self, messages: &[NewMessage]) -> Result<Vec<Enqueued>, StoreError> {
        enqueue::enqueue(self.database(), messages).await.map_err(classify)
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Option<Batch>, StoreError> {
        claim::claim(self.database(), request).await
    }

    async fn begin(&self, deliveries: &[Held]) -> Result<Vec<Held>, StoreError> {
        lease::begin(self.database(), deliveries).await.map_err(classify)
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<(LeaseToken, DeliveryId)>, StoreError> {
        lease::renew(self.database(), renewals).await.map_err(classify)
    }

    async fn settle(&self, group: &[Settlement]) -> Result<SettleReport, StoreError> {
        let report = settle::settle(self.database(), group).await.map_err(classify)?;
        self.0.settled.fetch_add(group.len() as u64, Ordering::Relaxed);
        Ok(report)
    }

    async fn next_due(&self, subscription: SubscriptionId) -> Result<Option<Duration>, StoreError> {
        lease::next_due(self.database(), subscription).await.map_err(classify)
    }

    async fn upcoming(&self) -> Result<Vec<(SubscriptionId, Duration)>, StoreError> {
        lease::upcoming(self.database()).await.map_err(classify)
    }

    async fn woken(&self, subscription: SubscriptionId) {
        self.0.wakes.woken(subscription).await;
    }

    async fn state(&self, namespace: &Name, key: &str) -> Result<Option<StateEntry>, StoreError> {
        state::read(self.database(), namespace, key).await.map_err(classify)
    }

    async fn counter(&self, namespace: &Name, key: &str) -> Result<i64, StoreError> {
        state::counter(self.database(), namespace, key).await.map_err(classify)
    }

    async fn status(&self) -> Result<Status, StoreError> {
        view::status(self.database()).await.map_err(classify)
    }

    async fn messages(&self, filter: &MessageFilter) -> Result<Vec<MessageView>, StoreError> {
        view::messages(self.database(), filter).await.map_err(classify)
    }

    async fn message(&self, id: &MessageId) -> Result<Option<MessageView>, StoreError> {
        view::message(self.database(), id).await.map_err(classify)
    }

    async fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetterView>, StoreError> {
        view::dead_letters(self.database(), filter).await.map_err(classify)
    }

    async fn heartbeat(&self, node: &Name, alive_for: Duration) -> Result<u32, StoreError> {
        node::heartbeat(self.database(), node, alive_for).await.map_err(classify)
    }

    async fn greet(&self, node: &Node, alive_for: Duration) -> Result<Vec<Node>, StoreError> {
        node::greet(self.database(), node, alive_for).await.map_err(classify)
    }

    async fn sign_off(&self, node: &Name) -> Result<(), StoreError> {
        node::sign_off(self.database(), node).await.map_err(classify)
    }

    fn round_trips(&self) -> u64 {
        self.database().round_trips()
    }
}
