//! The connections of a node: lent one after the other, kept while they are good, closed when they are not.
//!
//! Not sqlx's own pool. That one asks each connection whether it lives whenever it comes back, knows one server, hides
//! behind a timeout why it could not connect, and keeps sessions that only a new one heals, such as those that are
//! read-only since a failover.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::connection::Outcome;
use super::servers::{Servers, close};

/// A connection that was quiet for longer is tested before it is used.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(10);
/// Longest wait for the answer to such a test, and for a statement that nobody waits for any more.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A connection that was not needed for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(10 * 60);
/// A connection is closed at this age, so that what was changed for its role comes to hold.
const AGE_MAX: Duration = Duration::from_secs(30 * 60);

/// Connections that are open, and leave to open more.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    servers: Arc<Servers>,
    /// One for each connection that is lent.
    permits: Arc<Semaphore>,
    /// The one used last is on top, so that what is not needed stays unused.
    idle: Mutex<Vec<Kept>>,
    /// Connections of an earlier generation are closed when they come back, or are next.
    generation: AtomicU64,
    /// Longest wait for a connection.
    patience: Duration,
    opened: AtomicU64,
}

struct Kept {
    connection: PgConnection,
    /// The role that connected.
    role: Arc<str>,
    generation: u64,
    opened: Instant,
    used: Instant,
}

/// What an error says of the session that it happened in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// It is closed.
    Doubtful,
    /// It is closed, and so are all that are open: they are sure to be the same.
    Stale,
}

impl Health {
    fn after(error: &sqlx::Error) -> Self {
        let error = match error {
            sqlx::Error::Database(error) => error,
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
                return Self::Stale;
            }
            _ => return Self::Good,
        };
        match error.code().as_deref() {
            // A server that does not take writes any more; prepared statements that are gone, are another's or no longer
            // fit the tables; a server that stops.
            Some("25006" | "26000" | "42P05" | "57P01" | "57P02" | "57P03" | "57P04") => Self::Stale,
            Some("0A000") if error.message().starts_with("cached plan") => Self::Stale,
            Some(code) => match code.get(..2) {
                // Values, rules, collisions, limits, locks, cancelled statements: nothing of it stays in the session.
                Some("21" | "22" | "23" | "40" | "44" | "53" | "54" | "55" | "P0" | "LW") => Self::Good,
                _ if code == "57014" => Self::Good,
                Some("08") => Self::Stale,
                _ => Self::Doubtful,
            },
            None => Self::Doubtful,
        }
    }
}

impl Pool {
    /// No connection is opened yet.
    pub(super) fn new(servers: Arc<Servers>, connections_max: u32, patience: Duration) -> Self {
        Self(Arc::new(Shared {
            servers,
            permits: Arc::new(Semaphore::new(connections_max.max(1) as usize)),
            idle: Mutex::default(),
            generation: AtomicU64::new(0),
            patience,
            opened: AtomicU64::new(0),
        }))
    }

    /// Connections opened so far.
    pub(super) fn opened(&self) -> u64 {
        self.0.opened.load(Ordering::Relaxed)
    }

    /// Lends a connection.
    pub(super) async fn acquire(&self) -> Outcome<Lent> {
        let shared = &self.0;
        let permit = match timeout(shared.patience, shared.permits.clone().acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| sqlx::Error::PoolClosed)?,
            Err(_) => return Err(sqlx::Error::PoolTimedOut),
        };
        while let Some(mut kept) = shared.take() {
            if kept.used.elapsed() > TEST_AFTER_IDLE
                && !matches!(timeout(ANSWER_MAX, kept.connection.ping()).await, Ok(Ok(())))
            {
                continue;
            }
            return Ok(Lent::new(kept, shared, permit));
        }
        // What makes sessions of now stale while this one is opened is not known to have come before it.
        let generation = shared.generation.load(Ordering::Acquire);
        let connected = shared.servers.connect().await;
        let (session, server) = connected.map_err(|error| sqlx::Error::AnyDriverError(Box::new(error)))?;
        shared.opened.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let kept =
            Kept { connection: session.connection, role: server.role().into(), generation, opened: now, used: now };
        Ok(Lent::new(kept, shared, permit))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        // Each critical section leaves the list whole.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_good(&self, kept: &Kept) -> bool {
        kept.generation == self.generation.load(Ordering::Acquire) && kept.opened.elapsed() < AGE_MAX
    }

    /// The connection that was used last, if it can still be used.
    fn take(&self) -> Option<Kept> {
        loop {
            let kept = self.lock().pop()?;
            if self.is_good(&kept) {
                return Some(kept);
            }
            close(kept.connection);
        }
    }

    fn give_back(&self, mut kept: Kept) {
        if !self.is_good(&kept) {
            return close(kept.connection);
        }
        kept.used = Instant::now();
        let mut idle = self.lock();
        idle.push(kept);
        if idle[0].used.elapsed() > IDLE_MAX {
            close(idle.remove(0).connection);
        }
    }
}

/// A connection that comes back when this is dropped.
pub(super) struct Lent {
    /// `None` only once it is closed.
    kept: Option<Kept>,
    /// Whether a statement was sent whose end nobody has seen.
    is_busy: bool,
    is_in_transaction: bool,
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    permit: Option<OwnedSemaphorePermit>,
}

impl Lent {
    fn new(kept: Kept, shared: &Arc<Shared>, permit: OwnedSemaphorePermit) -> Self {
        Self {
            kept: Some(kept),
            is_busy: false,
            is_in_transaction: false,
            shared: shared.clone(),
            permit: Some(permit),
        }
    }

    /// The connection, for a statement.
    pub(super) fn begin_statement(&mut self) -> &mut PgConnection {
        self.is_busy = true;
        // It is closed only by the drop.
        &mut self.kept.as_mut().expect("a connection that is lent is open").connection
    }

    /// Takes note of how a statement ended, and answers the error as the store's callers are to see it.
    pub(super) fn end_statement<T>(&mut self, ended: Outcome<T>) -> Outcome<T> {
        self.is_busy = false;
        ended.map_err(|error| {
            let Some(kept) = &mut self.kept else { return error };
            match Health::after(&error) {
                Health::Good => {}
                Health::Doubtful => kept.generation = u64::MAX,
                Health::Stale => {
                    // Only the first of them: those that were opened since are another matter.
                    let (generation, next) = (kept.generation, kept.generation.wrapping_add(1));
                    let counter = &self.shared.generation;
                    let _ = counter.compare_exchange(generation, next, Ordering::AcqRel, Ordering::Acquire);
                    kept.generation = u64::MAX;
                }
            }
            match super::connection::told(&error, &kept.role) {
                Some(told) => sqlx::Error::AnyDriverError(Box::new(told)),
                None => error,
            }
        })
    }

    /// Opens a transaction.
    pub(super) async fn begin(&mut self) -> Outcome<()> {
        // Before the statement: whatever becomes of that, a rollback too many is no harm.
        self.is_in_transaction = true;
        self.control("BEGIN").await
    }

    pub(super) async fn commit(mut self) -> Outcome<()> {
        self.control("COMMIT").await?;
        self.is_in_transaction = false;
        Ok(())
    }

    pub(super) async fn roll_back(mut self) -> Outcome<()> {
        self.control("ROLLBACK").await?;
        self.is_in_transaction = false;
        Ok(())
    }

    async fn control(&mut self, statement: &'static str) -> Outcome<()> {
        let ended = self.begin_statement().execute(sqlx::raw_sql(statement)).await;
        self.end_statement(ended.map(drop))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (Some(mut kept), permit) = (self.kept.take(), self.permit.take()) else { return };
        if !self.is_busy && !self.is_in_transaction {
            // Back before the permit is, which lets somebody look for it.
            self.shared.give_back(kept);
            return drop(permit);
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (shared, is_in_transaction) = (self.shared.clone(), self.is_in_transaction);
        runtime.spawn(async move {
            let clean = async {
                // Each waits for the end of what the connection is in the middle of.
                match is_in_transaction {
                    true => kept.connection.execute(sqlx::raw_sql("ROLLBACK")).await.map(drop),
                    false => kept.connection.ping().await,
                }
            };
            if let Ok(Ok(())) = timeout(ANSWER_MAX, clean).await {
                shared.give_back(kept);
            }
            drop(permit);
        });
    }
}
