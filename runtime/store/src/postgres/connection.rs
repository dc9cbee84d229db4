//! Connections: how they are opened, how their round trips are counted, and what their errors mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use laneway_core::StoreError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow, PgTypeInfo, PgValueRef};
use sqlx::query::Query;
use sqlx::{Connection as _, Decode, Executor as _, PgConnection, PgPool, Postgres, Row as _, Type};

use super::PostgresOptions;
use super::socket;

/// What all of this half works with; [`classify`] turns the error into the store's at the edge.
pub(super) type Outcome<T> = Result<T, sqlx::Error>;

/// A statement ready to be sent.
pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// A connection that was quiet for longer is tested before it is used.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(10);

/// Longest span that is sent to the database: a thousand years.
const MICROSECONDS_MAX: i64 = 31_557_600_000_000_000;

/// Plans that do not depend on statistics. A queue's tables are empty in one moment and full in the next, so what
/// the planner last saw of them is always wrong; with these, each statement has only the plan that its indexes
/// give. A generic plan also saves planning each claim and settlement anew.
const SETTINGS: &str = "SET jit = off; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
    SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; \
    SET enable_memoize = off; SET max_parallel_workers_per_gather = 0; \
    SET default_transaction_isolation = 'read committed'; SET idle_in_transaction_session_timeout = '10s'";

/// The pool, and a count of what was sent through it.
#[derive(Clone)]
pub(super) struct Database {
    pool: PgPool,
    round_trips: Arc<AtomicU64>,
}

/// Reads the address. Its text, which may hold a password, is in no error.
pub(super) fn connect_options(options: &PostgresOptions) -> Result<PgConnectOptions, StoreError> {
    let parsed: PgConnectOptions = options.url.parse().map_err(|_: sqlx::Error| {
        StoreError::Other(
            "storage url cannot be read; use `postgres://USER:PASSWORD@HOST:PORT/DATABASE`".to_owned(),
        )
    })?;
    Ok(match parsed.get_application_name() {
        Some(_) => parsed,
        None => parsed.application_name("laneway"),
    })
}

/// Opens a single connection. Unlike the pool, it does not hide why it failed behind a timeout.
pub(super) async fn connect(options: &PostgresOptions) -> Result<PgConnection, StoreError> {
    let connecting = connect_options(options)?;
    match tokio::time::timeout(options.acquire_timeout, PgConnection::connect_with(&connecting)).await {
        Ok(connected) => connected.map_err(classify),
        Err(_) => Err(StoreError::Unavailable(format!(
            "{}:{} did not answer within {:?}",
            connecting.get_host(),
            connecting.get_port(),
            options.acquire_timeout
        ))),
    }
}

impl Database {
    /// Makes a pool; its connections are opened when they are first needed.
    pub(super) fn new(options: &PostgresOptions) -> Result<Self, StoreError> {
        let round_trips = Arc::new(AtomicU64::new(0));
        let connecting = Arc::clone(&round_trips);
        let server = connect_options(options)?;
        let port = server.get_port();
        let pool = PgPoolOptions::new()
            .max_connections(options.connections_max.max(1))
            .acquire_timeout(options.acquire_timeout)
            // A test of each would double the round trips.
            .test_before_acquire(false)
            .before_acquire(|connection, about| {
                Box::pin(async move {
                    if about.idle_for > TEST_AFTER_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .after_connect(move |connection, _| {
                socket::tune(port);
                connecting.fetch_add(1, Ordering::Relaxed);
                Box::pin(async move { connection.execute(SETTINGS).await.map(drop) })
            })
            .connect_lazy_with(server);
        Ok(Self { pool, round_trips })
    }

    pub(super) fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::Relaxed)
    }

    /// A connection on which each statement commits by itself.
    pub(super) async fn connection(&self) -> Outcome<Connection> {
        Ok(Connection { inner: self.pool.acquire().await?, round_trips: Arc::clone(&self.round_trips) })
    }

    /// Begins a transaction; it is rolled back if it is dropped.
    pub(super) async fn begin(&self) -> Outcome<Transaction> {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        Ok(Transaction { inner: self.pool.begin().await?, round_trips: Arc::clone(&self.round_trips) })
    }
}

/// Where a statement can be sent.
pub(super) trait Session: Send {
    /// The connection, with the round trip about to be made counted.
    fn used(&mut self) -> &mut PgConnection;

    /// All rows.
    fn all(&mut self, statement: Statement<'_>) -> impl Future<Output = Outcome<Vec<PgRow>>> + Send {
        async move { statement.fetch_all(self.used()).await }
    }

    /// The first row, if there is any.
    fn optional(&mut self, statement: Statement<'_>) -> impl Future<Output = Outcome<Option<PgRow>>> + Send {
        async move { statement.fetch_optional(self.used()).await }
    }

    /// The only row.
    fn one(&mut self, statement: Statement<'_>) -> impl Future<Output = Outcome<PgRow>> + Send {
        async move { statement.fetch_one(self.used()).await }
    }

    /// No rows.
    fn execute(&mut self, statement: Statement<'_>) -> impl Future<Output = Outcome<()>> + Send {
        async move { statement.execute(self.used()).await.map(drop) }
    }
}

/// A connection outside any transaction.
pub(super) struct Connection {
    inner: PoolConnection<Postgres>,
    round_trips: Arc<AtomicU64>,
}

impl Session for Connection {
    fn used(&mut self) -> &mut PgConnection {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        &mut self.inner
    }
}

/// An open transaction.
pub(super) struct Transaction {
    inner: sqlx::Transaction<'static, Postgres>,
    round_trips: Arc<AtomicU64>,
}

impl Session for Transaction {
    fn used(&mut self) -> &mut PgConnection {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        &mut self.inner
    }
}

impl Transaction {
    pub(super) async fn commit(self) -> Outcome<()> {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        self.inner.commit().await
    }

    pub(super) async fn roll_back(self) -> Outcome<()> {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        self.inner.rollback().await
    }
}

/// Whether the database ended the transaction in favour of another, so that the same one may now succeed.
pub(super) fn is_collision(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("40001" | "40P01"))
}

/// What an error means to the callers of the store.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(error) => {
            let message = error.message().to_owned();
            let code = error.code().unwrap_or_default();
            match &*code {
                // Shutting down, crashed or starting up; too many connections; cancelled, or timed out on a lock
                // or because this node stood still in a transaction;
                // a standby, as after a failover; collisions that outlasted the retries.
                "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" | "53300" | "57014" | "55P03"
                | "25006" | "40001" | "40P01" => StoreError::Unavailable(message),
                // Checks, a trigger's refusal, and text that the database's encoding cannot hold.
                "23514" | "P0001" | "22021" | "22P05" => StoreError::Refused(message),
                _ if code.starts_with("08") => StoreError::Unavailable(message),
                _ => StoreError::Other(format!("{message} (SQLSTATE {code})")),
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::BeginFailed
        | sqlx::Error::WorkerCrashed => StoreError::Unavailable(error.to_string()),
        other => StoreError::Other(other.to_string()),
    }
}

/// A value that the database holds but this program cannot read.
pub(super) fn unreadable(what: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(what.to_string().into())
}

/// A span in whole microseconds, as statements take it.
pub(super) fn microseconds(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(MICROSECONDS_MAX).min(MICROSECONDS_MAX)
}

/// A span read back; a negative one is none.
pub(super) fn span(microseconds: i64) -> Duration {
    Duration::from_micros(u64::try_from(microseconds).unwrap_or_default())
}

/// A `timestamptz`, in microseconds since the year 2000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Instant(i64);

impl Instant {
    /// The same moment as others count it.
    pub(super) fn timestamp(self) -> Outcome<Timestamp> {
        const YEAR_2000_SINCE_EPOCH: i64 = 946_684_800_000_000;
        self.0
            .checked_add(YEAR_2000_SINCE_EPOCH)
            .and_then(|since_epoch| Timestamp::from_microsecond(since_epoch).ok())
            .ok_or_else(|| unreadable("a time is out of range"))
    }
}

impl Type<Postgres> for Instant {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }

    fn compatible(found: &PgTypeInfo) -> bool {
        sqlx::TypeInfo::name(found) == "TIMESTAMPTZ"
    }
}

impl<'r> Decode<'r, Postgres> for Instant {
    fn decode(value: PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        Ok(Self(i64::from_be_bytes(value.as_bytes()?.try_into()?)))
    }
}

/// Reads a column that counts something.
pub(super) fn count(row: &PgRow, column: usize) -> Outcome<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or_default())
}
