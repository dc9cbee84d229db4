//! Markers of applications that consume on their own: the same table, in the application's transaction.
//!
//! A consumer is known by its name, as a subscription is; two consumers deduplicate independently. The name is not a
//! subscription's: a topology that declares a consumer's name is refused, as is a consumer that takes a subscription's.
//!
//! **Keep markers for longer than a message may come again.** The runtime's cleanup (`[cleanup.markers]`, 7 days unless
//! configured) removes the markers of consumers too: its retention must be longer than the longest time after which
//! the consumer's source may deliver a message once more.

use jiff::Timestamp;
use laneway_core::{MessageId, Name};
use serde_json::Value;
use sqlx::{PgConnection, SqliteConnection};

use crate::{Connection, OutboxError, Session};

/// SQLSTATE with which the schema's functions refuse the name of a subscription.
const NAME_TAKEN: &str = "LW001";

/// Whether a consumer has processed a message, as far as this transaction sees. To act on it, use [`mark_processed`]:
/// another transaction may be about to commit its marker.
///
/// # Errors
/// [`OutboxError::Name`] if the name or id is none, [`OutboxError::NameTaken`] if the name is a subscription's,
/// [`OutboxError::Database`] if the database fails.
pub async fn is_processed(session: &mut impl Session, consumer: &str, id: &str) -> Result<bool, OutboxError> {
    let (consumer, id) = (Name::parse(consumer)?, MessageId::parse(id)?);
    match session.connection() {
        Connection::Sqlite(connection) => is_processed_on_sqlite(connection, &consumer, &id).await,
        Connection::Postgres(connection) => is_processed_on_postgres(connection, &consumer, &id).await,
    }
}

async fn is_processed_on_sqlite(
    connection: &mut SqliteConnection,
    consumer: &Name,
    id: &MessageId,
) -> Result<bool, OutboxError> {
    refuse_taken_on_sqlite(connection, consumer).await?;
    let query = "-- markers.is_processed
        SELECT EXISTS (SELECT 1 FROM laneway_marker k
            WHERE k.subscription_id = (SELECT s.id FROM laneway_subscription s WHERE s.name = ?)
                AND k.message_id = ?)";
    let processed: bool =
        sqlx::query_scalar(query).bind(consumer.as_str()).bind(id.as_str()).fetch_one(connection).await?;
    Ok(processed)
}

async fn is_processed_on_postgres(
    connection: &mut PgConnection,
    consumer: &Name,
    id: &MessageId,
) -> Result<bool, OutboxError> {
    let query = "-- markers.is_processed
        SELECT laneway.is_processed($1, $2)";
    let processed: Result<bool, sqlx::Error> =
        sqlx::query_scalar(query).bind(consumer.as_str()).bind(id.as_str()).fetch_one(connection).await;
    processed.map_err(|error| refused(error, consumer))
}

/// Marks a message as processed. `true` if this is the first time: the effects belong in the same transaction, which
/// others with the same message wait for. `false` if its effects are committed already.
///
/// On PostgreSQL, a transaction that is REPEATABLE READ or SERIALIZABLE may fail with SQLSTATE 40001 where another has
/// marked the message meanwhile: roll it back and begin once more.
///
/// # Errors
/// As for [`is_processed`].
pub async fn mark_processed(
    session: &mut impl Session,
    consumer: &str,
    id: &str,
    metadata: Option<&Value>,
) -> Result<bool, OutboxError> {
    let (consumer, id) = (Name::parse(consumer)?, MessageId::parse(id)?);
    let metadata = metadata.map(Value::to_string);
    match session.connection() {
        Connection::Sqlite(connection) => mark_on_sqlite(connection, &consumer, &id, metadata).await,
        Connection::Postgres(connection) => mark_on_postgres(connection, &consumer, &id, metadata).await,
    }
}

async fn mark_on_sqlite(
    connection: &mut SqliteConnection,
    consumer: &Name,
    id: &MessageId,
    metadata: Option<String>,
) -> Result<bool, OutboxError> {
    // Writes come first: a transaction that has read cannot write once others have written.
    let query = "-- markers.register
        INSERT INTO laneway_subscription (name, pattern, kind, dots_min, dots_max, lane_threshold, active, policies)
        SELECT ?1, '', 'consumer', 0, 0, 0, 0, '{}'
        WHERE NOT EXISTS (SELECT 1 FROM laneway_subscription s WHERE s.name = ?1)";
    sqlx::query(query).bind(consumer.as_str()).execute(&mut *connection).await?;
    let query = "-- markers.mark
        INSERT INTO laneway_marker (subscription_id, message_id, processed_at, metadata)
        SELECT s.id, ?2, CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER), ?3
        FROM laneway_subscription s WHERE s.name = ?1 AND s.kind = 'consumer'
        ON CONFLICT DO NOTHING";
    let statement = sqlx::query(query).bind(consumer.as_str()).bind(id.as_str()).bind(metadata);
    if statement.execute(&mut *connection).await?.rows_affected() > 0 {
        return Ok(true);
    }
    refuse_taken_on_sqlite(connection, consumer).await?;
    Ok(false)
}

async fn mark_on_postgres(
    connection: &mut PgConnection,
    consumer: &Name,
    id: &MessageId,
    metadata: Option<String>,
) -> Result<bool, OutboxError> {
    let query = "-- markers.mark
        SELECT laneway.mark_processed($1, $2, $3::text::jsonb)";
    let marked: Result<bool, sqlx::Error> = sqlx::query_scalar(query)
        .bind(consumer.as_str())
        .bind(id.as_str())
        .bind(metadata)
        .fetch_one(connection)
        .await;
    marked.map_err(|error| refused(error, consumer))
}

/// Removes at most `batch` markers of messages processed strictly before a moment, in no particular order, of one
/// consumer or of all: never those of handlers and publishers. Answers how many it removed: fewer than `batch` means
/// that none are left.
///
/// It reads the markers of these consumers until it has found that many; no others cost it time.
///
/// # Errors
/// [`OutboxError::BatchSize`] if `batch` is 0, else as for [`is_processed`].
pub async fn purge_processed_before(
    session: &mut impl Session,
    consumer: Option<&str>,
    before: Timestamp,
    batch: u32,
) -> Result<u64, OutboxError> {
    let consumer = consumer.map(Name::parse).transpose()?;
    if batch == 0 {
        return Err(OutboxError::BatchSize(batch));
    }
    // Nothing is older than 1970.
    let before = before.max(Timestamp::UNIX_EPOCH);
    match session.connection() {
        Connection::Sqlite(connection) => purge_on_sqlite(connection, consumer.as_ref(), before, batch).await,
        Connection::Postgres(connection) => purge_on_postgres(connection, consumer.as_ref(), before, batch).await,
    }
}

async fn purge_on_sqlite(
    connection: &mut SqliteConnection,
    consumer: Option<&Name>,
    before: Timestamp,
    batch: u32,
) -> Result<u64, OutboxError> {
    // CROSS JOIN keeps to the order: from each consumer to its markers. With the message first, both columns of the
    // key are looked up; the other way round, SQLite reads all markers of the consumer.
    let query = "-- markers.purge
        DELETE FROM laneway_marker WHERE (message_id, subscription_id) IN (
            SELECT k.message_id, k.subscription_id
            FROM laneway_subscription s CROSS JOIN laneway_marker k ON k.subscription_id = s.id
            WHERE s.kind = 'consumer' AND (?2 IS NULL OR s.name = ?2) AND k.processed_at < ?1
            LIMIT ?3)";
    let statement =
        sqlx::query(query).bind(before.as_millisecond()).bind(consumer.map(Name::as_str)).bind(i64::from(batch));
    let purged = statement.execute(&mut *connection).await?.rows_affected();
    if let Some(consumer) = consumer
        && purged == 0
    {
        refuse_taken_on_sqlite(connection, consumer).await?;
    }
    Ok(purged)
}

async fn purge_on_postgres(
    connection: &mut PgConnection,
    consumer: Option<&Name>,
    before: Timestamp,
    batch: u32,
) -> Result<u64, OutboxError> {
    let query = "-- markers.purge
        SELECT laneway.purge_processed($1, $2::text::timestamptz, $3)";
    let purged: Result<i64, sqlx::Error> = sqlx::query_scalar(query)
        .bind(consumer.map(Name::as_str))
        .bind(before.to_string())
        .bind(i32::try_from(batch).unwrap_or(i32::MAX))
        .fetch_one(connection)
        .await;
    match (purged, consumer) {
        (Ok(purged), _) => Ok(purged.cast_unsigned()),
        (Err(error), Some(consumer)) => Err(refused(error, consumer)),
        (Err(error), None) => Err(error.into()),
    }
}

/// Refuses a name that is a subscription's. After the writes, so that a transaction begins with one.
async fn refuse_taken_on_sqlite(connection: &mut SqliteConnection, consumer: &Name) -> Result<(), OutboxError> {
    let query = "-- markers.taken
        SELECT EXISTS (SELECT 1 FROM laneway_subscription s WHERE s.name = ? AND s.kind <> 'consumer')";
    let taken: bool = sqlx::query_scalar(query).bind(consumer.as_str()).fetch_one(connection).await?;
    if taken { Err(OutboxError::NameTaken(consumer.clone())) } else { Ok(()) }
}

/// What an error of the schema's functions means.
fn refused(error: sqlx::Error, consumer: &Name) -> OutboxError {
    let taken = error.as_database_error().and_then(|error| error.code()).as_deref() == Some(NAME_TAKEN);
    if taken { OutboxError::NameTaken(consumer.clone()) } else { error.into() }
}
