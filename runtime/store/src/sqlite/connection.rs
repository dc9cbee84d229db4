//! The connections: how they are made, those that read, and what their errors mean.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use laneway_core::StoreError;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions, Either, Executor, Sqlite, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::busy;
use super::identity::OpenFile;
use super::references::References;
use super::writer::Writer;
use super::{SqliteOptions, Synchronous};

/// The database's clock, in milliseconds since 1970: the schema's expression, so that both round alike. As a query of
/// its own, so that SQLite works it out once a statement rather than once a row.
macro_rules! now_ms {
    () => {
        "(SELECT CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER))"
    };
}
pub(super) use now_ms;

/// Connections that read. State, status and probes for due work take one each, for the length of one query.
const READERS: usize = 3;
/// Rows that a connection's thread may be ahead of us.
const ROWS_AHEAD: usize = 256;

/// One statement with its values.
pub(super) type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// All connections of one store.
pub(super) struct Connections {
    pub(super) writer: Arc<tokio::sync::Mutex<Writer>>,
    readers: Arc<Readers>,
    /// The file that all of them have open.
    pub(super) file: OpenFile,
    pub(super) synchronous: Synchronous,
    /// What the application's foreign keys hold, as it was last read.
    pub(super) references: Mutex<Arc<References>>,
    round_trips: Arc<AtomicU64>,
}

struct Readers {
    idle: Mutex<Vec<SqliteConnection>>,
    permits: Arc<Semaphore>,
}

impl Connections {
    pub(super) async fn new(options: &SqliteOptions, writer: SqliteConnection) -> Result<Self, StoreError> {
        let mut idle = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            idle.push(connect_reader(options).await?);
        }
        // The first look makes the files beside it, where they are missing.
        let look = sqlx::query("-- connection.look\nSELECT count(*) FROM sqlite_schema");
        idle[0].execute(look).await.map_err(classify)?;
        Ok(Self {
            file: OpenFile::of(&options.path),
            writer: Arc::new(tokio::sync::Mutex::new(Writer::new(writer))),
            readers: Arc::new(Readers { idle: Mutex::new(idle), permits: Arc::new(Semaphore::new(READERS)) }),
            synchronous: options.synchronous,
            references: Mutex::default(),
            round_trips: Arc::default(),
        })
    }

    pub(super) fn round_trips_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.round_trips)
    }

    /// Takes a connection for reading, until it is dropped.
    pub(super) async fn reader(&self) -> Result<Reader, StoreError> {
        let permit = Arc::clone(&self.readers.permits)
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Other("store is closed".to_owned()))?;
        let connection = self.readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(Reader {
            connection,
            readers: Arc::clone(&self.readers),
            round_trips: self.round_trips_counter(),
            _permit: permit,
        })
    }
}

/// A connection that only reads, back among the idle ones when dropped.
pub(super) struct Reader {
    connection: Option<SqliteConnection>,
    readers: Arc<Readers>,
    round_trips: Arc<AtomicU64>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// Runs a query and hands over its rows as they come.
    pub(super) async fn each(
        &mut self,
        statement: Statement<'_>,
        take: impl FnMut(&SqliteRow) -> Result<(), sqlx::Error> + Send,
    ) -> Result<(), StoreError> {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        let connection =
            self.connection.as_mut().ok_or_else(|| StoreError::Other("connection for reading is gone".into()))?;
        each(connection, statement, take).await
    }

    /// Runs a query of at most one row.
    pub(super) async fn optional<T: Send>(
        &mut self,
        statement: Statement<'_>,
        mut take: impl FnMut(&SqliteRow) -> Result<T, sqlx::Error> + Send,
    ) -> Result<Option<T>, StoreError> {
        let mut found = None;
        self.each(statement, |row| {
            found = Some(take(row)?);
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Runs a query to the end.
    pub(super) async fn all<T: Send>(
        &mut self,
        statement: Statement<'_>,
        mut take: impl FnMut(&SqliteRow) -> Result<T, sqlx::Error> + Send,
    ) -> Result<Vec<T>, StoreError> {
        let mut found = Vec::new();
        self.each(statement, |row| {
            found.push(take(row)?);
            Ok(())
        })
        .await?;
        Ok(found)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

pub(super) async fn each(
    connection: &mut SqliteConnection,
    statement: Statement<'_>,
    mut take: impl FnMut(&SqliteRow) -> Result<(), sqlx::Error> + Send,
) -> Result<(), StoreError> {
    let mut stream = connection.fetch_many(statement);
    while let Some(step) = stream.try_next().await.map_err(classify)? {
        if let Either::Right(row) = step {
            take(&row).map_err(classify)?;
        }
    }
    Ok(())
}

/// Connects for reading only.
pub(super) async fn connect_reader(options: &SqliteOptions) -> Result<SqliteConnection, StoreError> {
    // Not opened read-only: the first reader after a crash must be able to recover the WAL.
    connect(
        options,
        common(options).create_if_missing(false).pragma("query_only", "ON").pragma("cache_size", "-8192"),
    )
    .await
}

/// Connects for writing.
pub(super) async fn connect_writer(options: &SqliteOptions) -> Result<SqliteConnection, StoreError> {
    // After 1,000 pages a commit copies the WAL back: small stalls, and a WAL that a long drain does not grow.
    // A larger cache costs more than it saves: SQLite walks through all of it whenever it splits a page.
    let writing = common(options)
        .create_if_missing(options.create)
        .pragma("cache_size", "-8192")
        .pragma("wal_autocheckpoint", "1000")
        .pragma("journal_size_limit", "67108864");
    connect(options, writing).await
}

async fn connect(options: &SqliteOptions, with: SqliteConnectOptions) -> Result<SqliteConnection, StoreError> {
    let mut connection = with.connect().await.map_err(|error| name_file(classify(error), &options.path))?;
    busy::wait_in_small_steps(&mut connection, options.busy_timeout).await?;
    Ok(connection)
}

/// Says which file an error is about.
pub(super) fn name_file(error: StoreError, path: &Path) -> StoreError {
    let path = path.display();
    match error {
        StoreError::NotOurs(text) => StoreError::NotOurs(format!("{path}: {text}")),
        StoreError::Unavailable(text) => StoreError::Unavailable(format!("{path}: {text}")),
        other => other,
    }
}

fn common(options: &SqliteOptions) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(&options.path)
        .busy_timeout(options.busy_timeout.max(Duration::from_millis(1)))
        .foreign_keys(false)
        .row_buffer_size(ROWS_AHEAD)
        .pragma("temp_store", "MEMORY")
        .pragma("mmap_size", "268435456")
        .disable_statement_logging()
}

/// Says what an error of SQLite or of its driver means to the caller.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
            classify_code(code, error.message().to_owned())
        }
        sqlx::Error::Io(error) => StoreError::Unavailable(error.to_string()),
        other => StoreError::Other(other.to_string()),
    }
}

/// Says what a result code of SQLite means to the caller.
pub(super) fn classify_code(code: u32, text: String) -> StoreError {
    // The primary result codes of SQLite; the bits above tell more, but not more to us.
    match code & 0xff {
        // BUSY, LOCKED, NOMEM, IOERR, FULL, CANTOPEN, PROTOCOL
        5 | 6 | 7 | 10 | 13 | 14 | 15 => StoreError::Unavailable(text),
        // PERM, READONLY, AUTH
        3 | 8 | 23 => StoreError::Misconfigured(text),
        // TOOBIG, CONSTRAINT (RAISE of a trigger too)
        18 | 19 => StoreError::Refused(text),
        // NOTADB
        26 => StoreError::NotOurs(text),
        _ => StoreError::Other(text),
    }
}

/// A length of time as the database keeps it.
pub(super) fn millis(duration: Duration) -> i64 {
    // Some hundred million years at most, so that adding it to a time stays within an integer.
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(i64::MAX / 2)
}

/// Values as JSON, to hand any number of them to one statement.
pub(super) fn json<T: serde::Serialize + ?Sized>(values: &T) -> Result<String, StoreError> {
    serde_json::to_string(values).map_err(|error| StoreError::Other(error.to_string()))
}

const HEX_DIGITS: &[u8; 16] = b"0123456789ABCDEF";

/// Bytes as they travel in JSON; SQLite's `unhex()` reads them.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for &byte in bytes {
        text.push(char::from(HEX_DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(HEX_DIGITS[usize::from(byte & 15)]));
    }
    text
}
