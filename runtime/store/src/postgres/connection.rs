//! Connections: how they are opened, how their round trips are counted, and what their errors mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use laneway_core::StoreError;
use sqlx::postgres::{PgArguments, PgRow, PgTypeInfo, PgValueRef};
use sqlx::query::Query;
use sqlx::{Decode, PgConnection, Postgres, Row as _, Type};

use super::PostgresOptions;
use super::pool::{Lent, Pool};
use super::servers::Servers;

/// What all of this half works with; [`classify`] turns the error into the store's at the edge.
pub(super) type Outcome<T> = Result<T, sqlx::Error>;

/// A statement ready to be sent.
pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Longest span that is sent to the database: a thousand years.
const MICROSECONDS_MAX: i64 = 31_557_600_000_000_000;

/// The pool, and a count of what was sent through it.
#[derive(Clone)]
pub(super) struct Database {
    pool: Pool,
    round_trips: Arc<AtomicU64>,
}

/// Opens a single connection.
pub(super) async fn connect(servers: &Servers) -> Result<PgConnection, StoreError> {
    Ok(servers.connect().await?.0.connection)
}

impl Database {
    /// Makes a pool; its connections are opened when they are first needed.
    pub(super) fn new(servers: Arc<Servers>, options: &PostgresOptions) -> Self {
        let pool = Pool::new(servers, options.connections_max, options.acquire_timeout);
        Self { pool, round_trips: Arc::new(AtomicU64::new(0)) }
    }

    /// What was sent, with one for each connection that was opened.
    pub(super) fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::Relaxed) + self.pool.opened()
    }

    /// A connection on which each statement commits by itself.
    pub(super) async fn connection(&self) -> Outcome<Connection> {
        Ok(Connection { inner: self.pool.acquire().await?, round_trips: Arc::clone(&self.round_trips) })
    }

    /// Begins a transaction; it is rolled back if it is dropped.
    pub(super) async fn begin(&self) -> Outcome<Transaction> {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.pool.acquire().await?;
        inner.begin().await?;
        Ok(Transaction { inner, round_trips: Arc::clone(&self.round_trips) })
    }
}

/// Where a statement can be sent.
pub(super) trait Session: Send {
    /// The connection that is lent for it, with the round trip about to be made counted.
    fn used(&mut self) -> &mut Lent;

    /// All rows.
    fn all(&mut self, statement: Statement<'_>) -> impl Future<Output = Outcome<Vec<PgRow>>> + Send {
        async move {
            let lent = self.used();
            let ended = statement.fetch_all(lent.begin_statement()).await;
            lent.end_statement(ended)
        }
    }

    /// The first row, if there is any.
    fn optional(&mut self, statement: Statement<'_>) -> impl Future<Output = Outcome<Option<PgRow>>> + Send {
        async move {
            let lent = self.used();
            let ended = statement.fetch_optional(lent.begin_statement()).await;
            lent.end_statement(ended)
        }
    }

    /// The only row.
    fn one(&mut self, statement: Statement<'_>) -> impl Future<Output = Outcome<PgRow>> + Send {
        async move {
            let lent = self.used();
            let ended = statement.fetch_one(lent.begin_statement()).await;
            lent.end_statement(ended)
        }
    }

    /// No rows.
    fn execute(&mut self, statement: Statement<'_>) -> impl Future<Output = Outcome<()>> + Send {
        async move {
            let lent = self.used();
            let ended = statement.execute(lent.begin_statement()).await.map(drop);
            lent.end_statement(ended)
        }
    }
}

/// A connection outside any transaction.
pub(super) struct Connection {
    inner: Lent,
    round_trips: Arc<AtomicU64>,
}

impl Session for Connection {
    fn used(&mut self) -> &mut Lent {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        &mut self.inner
    }
}

/// An open transaction.
pub(super) struct Transaction {
    inner: Lent,
    round_trips: Arc<AtomicU64>,
}

impl Session for Transaction {
    fn used(&mut self) -> &mut Lent {
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
        self.inner.roll_back().await
    }
}

/// Whether the database ended the transaction in favour of another, so that the same one may now succeed.
pub(super) fn is_collision(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("40001" | "40P01"))
}

/// What an error of the server says of the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// The same may succeed later, without anybody's help.
    Away,
    /// It succeeds once somebody has changed something in the database; nothing is wrong with the values.
    NotSetUp,
    /// The values are not taken.
    Refused,
    /// Not known.
    Other,
}

impl Meaning {
    fn of(code: &str, message: &str) -> Self {
        match code {
            // Checks, a trigger's refusal, and text that the database's encoding cannot hold.
            "23514" | "P0001" | "22021" | "22P05" => Self::Refused,
            // A lock that did not come in time, or an object that others use.
            "55P03" | "55006" => Self::Away,
            // What a session remembers is no longer so; a new one knows better.
            "26000" | "42P05" => Self::Away,
            "0A000" if message.starts_with("cached plan") => Self::Away,
            // No class is left for a file system that fails otherwise, as by a quota: could not extend file ...
            "XX000" if message.starts_with("could not ") => Self::Away,
            _ => match code.get(..2) {
                // The connection; a session that is read-only, as after a failover, or was left in a transaction;
                // collisions that outlasted the retries; a full disk, no memory, too many connections; shutting down,
                // starting up, cancelled; the file system.
                Some("08" | "25" | "40" | "53" | "57" | "58") => Self::Away,
                // All statements are the program's own, so what is wrong with one of them is wrong with the schema or
                // with the role's rights. Beside them: roles, databases and schemas that are not there, and 55000, such
                // as that a publication wants a replica identity.
                Some("0A" | "0L" | "0P" | "28" | "3D" | "3F" | "42" | "55" | "F0") => Self::NotSetUp,
                _ => Self::Other,
            },
        }
    }
}

/// What the server's word about rights does not say: whose they are, and what to do. `None` for other errors.
pub(super) fn told(error: &sqlx::Error, role: &str) -> Option<StoreError> {
    let error = error.as_database_error().filter(|error| error.code().as_deref() == Some("42501"))?;
    let message = error.message();
    let role = role.replace('"', "\"\"");
    Some(StoreError::Misconfigured(if message.contains("row-level security") {
        format!(
            "{message}; a policy would hide rows from the role \"{role}\", and what is hidden would be lost: a superuser \
             can exempt it with `ALTER ROLE \"{role}\" BYPASSRLS`, see docs/postgresql.md"
        )
    } else {
        format!(
            "{message}; the role \"{role}\" lacks a right: the owner of the schema can grant it, see docs/postgresql.md"
        )
    }))
}

/// As [`classify`], where it is known which role met the error.
pub(super) fn classify_of(error: sqlx::Error, role: &str) -> StoreError {
    told(&error, role).unwrap_or_else(|| classify(error))
}

/// What an error means to the callers of the store.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::AnyDriverError(error) => match error.downcast::<StoreError>() {
            Ok(error) => *error,
            Err(error) => StoreError::Other(error.to_string()),
        },
        sqlx::Error::Database(error) => {
            let message = error.message().to_owned();
            let code = error.code().unwrap_or_default();
            match Meaning::of(&code, &message) {
                Meaning::Away => StoreError::Unavailable(message),
                Meaning::NotSetUp => StoreError::Misconfigured(format!("{message} (SQLSTATE {code})")),
                Meaning::Refused => StoreError::Refused(message),
                Meaning::Other => StoreError::Other(format!("{message} (SQLSTATE {code})")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_server_that_are_nobodys_fault_are_told_from_refusals() {
        let meaning = |code| Meaning::of(code, "x");
        // Full disk, no memory, too many connections, a limit of the configuration, a failed disk, a lost file.
        for code in ["53100", "53200", "53300", "53400", "53000", "58030", "58000", "58P01"] {
            assert_eq!(meaning(code), Meaning::Away, "{code}");
        }
        // A failover, a restart, a cancelled statement, a database that was dropped, collisions, locks.
        for code in
            ["25006", "25P02", "25P03", "57P01", "57P03", "57P04", "57014", "08006", "40001", "40003", "55P03"]
        {
            assert_eq!(meaning(code), Meaning::Away, "{code}");
        }
        // Rights, roles, a schema that is gone, a replica identity that is missing.
        for code in ["42501", "28P01", "28000", "3D000", "42P01", "42883", "55000"] {
            assert_eq!(meaning(code), Meaning::NotSetUp, "{code}");
        }
        for code in ["23514", "P0001"] {
            assert_eq!(meaning(code), Meaning::Refused, "{code}");
        }
        for code in ["XX000", "23505", "22003", ""] {
            assert_eq!(meaning(code), Meaning::Other, "{code}");
        }
        assert_eq!(Meaning::of("XX000", "could not extend file \"base/5/1\": Disk quota exceeded"), Meaning::Away);
        assert_eq!(Meaning::of("0A000", "cached plan must not change result type"), Meaning::Away);
        assert_eq!(meaning("0A000"), Meaning::NotSetUp);
    }
}
