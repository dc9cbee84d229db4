//! Messages that wait: taken back, or moved in time, until they are claimed.

use jiff::Timestamp;
use laneway_core::{Change, MessageId};
use sqlx::{PgConnection, SqliteConnection};

use crate::{Connection, OutboxError, Session};

/// Takes a message back: it is removed, as if it had never been written. Until the first of its deliveries is claimed;
/// one that no subscription matched can always be. Of a subscription that keeps no markers, such as a publisher's, the
/// outbox forgets what it has sent: where others still wait, such a message is taken back from these.
///
/// # Errors
/// [`OutboxError::Name`] if the id is none, [`OutboxError::Database`] if the database fails.
pub async fn cancel(session: &mut impl Session, id: &str) -> Result<Change, OutboxError> {
    let id = MessageId::parse(id)?;
    match session.connection() {
        Connection::Postgres(connection) => {
            let query = "SELECT laneway.cancel_message($1)";
            let answered: String = sqlx::query_scalar(query).bind(id.as_str()).fetch_one(connection).await?;
            answer(&answered)
        }
        Connection::Sqlite(connection) => cancel_on_sqlite(connection, &id).await,
    }
}

/// Moves a message in time; a moment that is past is now. Until the first of its deliveries is claimed.
/// [`Change::TooLate`] if one was, or there is nothing to move, as nobody was subscribed.
///
/// # Errors
/// As for [`cancel`].
pub async fn reschedule(session: &mut impl Session, id: &str, due: Timestamp) -> Result<Change, OutboxError> {
    // Times of the outbox begin in 1970; all that is past is now.
    let (id, due) = (MessageId::parse(id)?, due.max(Timestamp::UNIX_EPOCH));
    match session.connection() {
        Connection::Postgres(connection) => reschedule_on_postgres(connection, &id, due).await,
        Connection::Sqlite(connection) => reschedule_on_sqlite(connection, &id, due).await,
    }
}

fn answer(text: &str) -> Result<Change, OutboxError> {
    match text {
        "done" => Ok(Change::Done),
        "too late" => Ok(Change::TooLate),
        "unknown" => Ok(Change::Unknown),
        other => Err(sqlx::Error::Decode(format!("the outbox answered {other}").into()).into()),
    }
}

async fn reschedule_on_postgres(
    connection: &mut PgConnection,
    id: &MessageId,
    due: Timestamp,
) -> Result<Change, OutboxError> {
    let query = "SELECT laneway.reschedule_message($1, $2::timestamptz)";
    let answered: String =
        sqlx::query_scalar(query).bind(id.as_str()).bind(due.to_string()).fetch_one(connection).await?;
    answer(&answered)
}

/// The condition that message `m` can still be changed: nothing of it was claimed, and something of it is left. A
/// consumer's markers say nothing of what the runtime did.
///
/// What lost a lease was claimed too. An older file has no such column: there the name means the 0 around it.
///
/// Each change has it whole and comes first: a transaction that has read cannot write once others have written.
macro_rules! open {
    () => {
        "NOT EXISTS (SELECT 1 FROM laneway_dead_letter f WHERE f.message_seq = m.seq)
            AND NOT EXISTS (SELECT 1 FROM (SELECT 0 AS lost) WHERE EXISTS (SELECT 1 FROM laneway_delivery d
                WHERE d.id BETWEEN m.seq * 1048576 AND m.seq * 1048576 + 1048575
                    AND (d.attempt > 0 OR d.lease_token IS NOT NULL OR lost > 0)))
            AND NOT EXISTS (SELECT 1 FROM laneway_subscription s
                CROSS JOIN laneway_marker k ON k.subscription_id = s.id AND k.message_id = m.id
                WHERE s.kind <> 'consumer')
            AND (EXISTS (SELECT 1 FROM laneway_delivery d
                    WHERE d.id BETWEEN m.seq * 1048576 AND m.seq * 1048576 + 1048575)
                OR EXISTS (SELECT 1 FROM laneway_unrouted u WHERE u.message_seq = m.seq))"
    };
}

async fn cancel_on_sqlite(connection: &mut SqliteConnection, id: &MessageId) -> Result<Change, OutboxError> {
    let query = concat!(
        "-- outbox.cancel
        DELETE FROM laneway_message AS m WHERE m.id = ?1 AND ",
        open!()
    );
    let done = sqlx::query(query).bind(id.as_str()).execute(&mut *connection).await?;
    if done.rows_affected() > 0 { Ok(Change::Done) } else { why_not(connection, id).await }
}

async fn reschedule_on_sqlite(
    connection: &mut SqliteConnection,
    id: &MessageId,
    due: Timestamp,
) -> Result<Change, OutboxError> {
    let query = concat!(
        "-- outbox.reschedule
        UPDATE laneway_delivery SET
            parked = iif(key IS NOT NULL
                AND ?2 <= CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER), 0, NULL),
            available_at = max(?2, CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER))
        WHERE id BETWEEN (SELECT m.seq * 1048576 FROM laneway_message m WHERE m.id = ?1)
                AND (SELECT m.seq * 1048576 + 1048575 FROM laneway_message m WHERE m.id = ?1)
            AND EXISTS (SELECT 1 FROM laneway_message m WHERE m.id = ?1 AND ",
        open!(),
        ")"
    );
    let statement = sqlx::query(query).bind(id.as_str()).bind(due.as_millisecond());
    let done = statement.execute(&mut *connection).await?;
    if done.rows_affected() == 0 {
        return why_not(connection, id).await;
    }
    // It left the line of its key until its new time, also if it was claimed once and handed back: whoever stood behind
    // it comes next.
    let query = "-- outbox.free_key
        DELETE FROM laneway_busy_key WHERE (subscription_id, key) IN (
            SELECT d.subscription_id, d.key FROM laneway_message m JOIN laneway_delivery d
                ON d.id BETWEEN m.seq * 1048576 AND m.seq * 1048576 + 1048575
            WHERE m.id = ?1 AND d.key IS NOT NULL)
            AND message_seq = (SELECT m.seq FROM laneway_message m WHERE m.id = ?1)";
    sqlx::query(query).bind(id.as_str()).execute(&mut *connection).await?;
    let query = "-- outbox.let_out
        UPDATE laneway_delivery SET parked = 0 WHERE parked = 1 AND id IN (
            SELECT (SELECT e.id FROM laneway_delivery e
                WHERE e.subscription_id = d.subscription_id AND e.key = d.key AND e.parked IS NOT NULL
                ORDER BY e.message_seq LIMIT 1)
            FROM laneway_message m JOIN laneway_delivery d
                ON d.id BETWEEN m.seq * 1048576 AND m.seq * 1048576 + 1048575
            WHERE m.id = ? AND d.key IS NOT NULL)";
    sqlx::query(query).bind(id.as_str()).execute(&mut *connection).await?;
    Ok(Change::Done)
}

/// What to answer when nothing was changed.
async fn why_not(connection: &mut SqliteConnection, id: &MessageId) -> Result<Change, OutboxError> {
    let query = "-- outbox.known
        SELECT EXISTS (SELECT 1 FROM laneway_message m WHERE m.id = ?)";
    let known: bool = sqlx::query_scalar(query).bind(id.as_str()).fetch_one(connection).await?;
    Ok(if known { Change::TooLate } else { Change::Unknown })
}
