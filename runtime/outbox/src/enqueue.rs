//! Messages into the outbox. The fan-out trigger does the rest.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use laneway_core::{Enqueued, Header};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _, SqliteConnection};

use crate::priority::current_priority;
use crate::{Connection, OutboxError, Outgoing, Session, When};

/// Messages of one statement on PostgreSQL at most; more are written in several.
const CHUNK: usize = 1000;

/// Writes a message in the caller's transaction. A message of the same id is left as it is, and reported; while
/// another transaction that has written it is open, this waits for its end.
///
/// # Errors
/// [`OutboxError::PositionTaken`] if another message stands at its position, [`OutboxError::Database`] if the database
/// refuses the message, such as a payload over the configured limit, or cannot be reached.
pub async fn enqueue(session: &mut impl Session, message: &Outgoing) -> Result<Enqueued, OutboxError> {
    let mut enqueued = enqueue_all(session, std::slice::from_ref(message)).await?;
    enqueued.pop().ok_or_else(|| sqlx::Error::RowNotFound.into())
}

/// Writes messages in the caller's transaction. The answers are in the order given; of two with one id, the first is
/// written.
///
/// # Errors
/// As for [`enqueue`]; what was written before is the transaction's to roll back.
pub async fn enqueue_all(session: &mut impl Session, messages: &[Outgoing]) -> Result<Vec<Enqueued>, OutboxError> {
    match session.connection() {
        Connection::Sqlite(connection) => on_sqlite(connection, messages).await,
        Connection::Postgres(connection) => on_postgres(connection, messages).await,
    }
}

/// The insert of a message, and what may conflict without being an error.
macro_rules! insert_on_sqlite {
    ($conflict:literal) => {
        concat!(
            "-- outbox.enqueue
            INSERT INTO laneway_message
                (id, topic, key, priority, content_type, headers, tenant, stream, position, available_at, payload)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9,
                coalesce(?10, ?11 + CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER)), ?12)
            ",
            $conflict,
            " DO NOTHING"
        )
    };
}

async fn on_sqlite(connection: &mut SqliteConnection, messages: &[Outgoing]) -> Result<Vec<Enqueued>, OutboxError> {
    let mut enqueued = Vec::with_capacity(messages.len());
    for message in messages {
        let (stream, position) = parts(message);
        let query = match position {
            None => insert_on_sqlite!("ON CONFLICT (id)"),
            Some(_) => insert_on_sqlite!("ON CONFLICT"),
        };
        let written = sqlx::query(query)
            .bind(message.id.as_str())
            .bind(message.topic.as_str())
            .bind(&message.key)
            .bind(priority(message))
            .bind(&message.content_type)
            .bind(headers(&message.headers))
            .bind(&message.tenant)
            .bind(stream)
            .bind(position)
            .bind(at(message).map(|at| at.as_millisecond()))
            .bind(after(message).map(|after| i64::try_from(after.as_millis()).unwrap_or(i64::MAX / 2)))
            .bind(&*message.payload)
            .execute(&mut *connection)
            .await?;
        let duplicate = written.rows_affected() == 0;
        if duplicate && position.is_some() && !is_known_on_sqlite(connection, message).await? {
            return Err(position_taken(message));
        }
        enqueued.push(Enqueued { id: message.id.clone(), duplicate });
    }
    Ok(enqueued)
}

async fn is_known_on_sqlite(connection: &mut SqliteConnection, message: &Outgoing) -> Result<bool, OutboxError> {
    let query = "-- outbox.known
        SELECT EXISTS (SELECT 1 FROM laneway_message m WHERE m.id = ?)";
    let known: bool = sqlx::query_scalar(query).bind(message.id.as_str()).fetch_one(connection).await?;
    Ok(known)
}

async fn on_postgres(connection: &mut PgConnection, messages: &[Outgoing]) -> Result<Vec<Enqueued>, OutboxError> {
    let mut enqueued = Vec::with_capacity(messages.len());
    let mut rest = messages;
    while let Some(first) = rest.first() {
        let positioned = first.position.is_some();
        let alike = rest.iter().take(CHUNK).take_while(|message| message.position.is_some() == positioned).count();
        let (chunk, after) = rest.split_at(alike);
        let written = chunk_on_postgres(connection, chunk, positioned).await?;
        if positioned {
            refuse_taken_positions(connection, chunk, &written).await?;
        }
        enqueued.extend(written);
        rest = after;
    }
    Ok(enqueued)
}

/// The insert of messages, and what may conflict without being an error.
macro_rules! insert_on_postgres {
    ($conflict:literal) => {
        concat!(
            "-- outbox.enqueue
            INSERT INTO laneway.message
                (id, topic, key, priority, payload, content_type, headers, tenant, stream, position, available_at)
            SELECT g.id, g.topic, g.key, g.priority, g.payload, g.content_type, g.headers::jsonb, g.tenant, g.stream,
                g.position, coalesce(g.at::timestamptz, now() + g.after * interval '1 microsecond')
            FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::bytea[], $6::text[], $7::text[],
                    $8::text[], $9::text[], $10::bigint[], $11::text[], $12::bigint[])
                AS g(id, topic, key, priority, payload, content_type, headers, tenant, stream, position, at, after)
            ",
            $conflict,
            " DO NOTHING RETURNING id"
        )
    };
}

/// Writes messages by one statement. All have a position, or none has: of these, only the id may conflict. With a
/// position, either may, and which of the two is seen first is chance where two transactions write the same message:
/// neither is an error here, which would end the transaction, and what was meant is looked up afterwards.
async fn chunk_on_postgres(
    connection: &mut PgConnection,
    messages: &[Outgoing],
    positioned: bool,
) -> Result<Vec<Enqueued>, OutboxError> {
    fn each<'a, T>(messages: &'a [Outgoing], part: impl Fn(&'a Outgoing) -> T) -> Vec<T> {
        messages.iter().map(part).collect()
    }
    let query = match positioned {
        false => insert_on_postgres!("ON CONFLICT (id)"),
        true => insert_on_postgres!("ON CONFLICT"),
    };
    let rows = sqlx::query(query)
        .bind(each(messages, |message| message.id.as_str()))
        .bind(each(messages, |message| message.topic.as_str()))
        .bind(each(messages, |message| message.key.as_deref()))
        .bind(each(messages, priority))
        .bind(each(messages, |message| &*message.payload))
        .bind(each(messages, |message| message.content_type.as_str()))
        .bind(each(messages, |message| headers(&message.headers)))
        .bind(each(messages, |message| message.tenant.as_deref()))
        .bind(each(messages, |message| parts(message).0))
        .bind(each(messages, |message| parts(message).1))
        .bind(each(messages, |message| at(message).map(|at| at.to_string())))
        .bind(each(messages, |message| {
            after(message).map(|after| i64::try_from(after.as_micros()).unwrap_or(i64::MAX / 2))
        }))
        .fetch_all(connection)
        .await?;
    let mut written = ids(&rows)?;
    Ok(messages
        .iter()
        .map(|message| Enqueued {
            id: message.id.clone(),
            // The first of an id is the one that was written.
            duplicate: !written.remove(message.id.as_str()),
        })
        .collect())
}

/// Tells what was not written for its position from what was not written for its id.
async fn refuse_taken_positions(
    connection: &mut PgConnection,
    messages: &[Outgoing],
    enqueued: &[Enqueued],
) -> Result<(), OutboxError> {
    let missed: Vec<&str> = enqueued.iter().filter(|one| one.duplicate).map(|one| one.id.as_str()).collect();
    if missed.is_empty() {
        return Ok(());
    }
    let query = "-- outbox.known
        SELECT m.id FROM laneway.message m WHERE m.id = ANY ($1)";
    let known = ids(&sqlx::query(query).bind(missed).fetch_all(connection).await?)?;
    for (message, one) in messages.iter().zip(enqueued) {
        if one.duplicate && !known.contains(message.id.as_str()) {
            return Err(position_taken(message));
        }
    }
    Ok(())
}

fn ids(rows: &[PgRow]) -> Result<HashSet<String>, sqlx::Error> {
    rows.iter().map(|row| row.try_get::<String, _>(0)).collect()
}

fn position_taken(message: &Outgoing) -> OutboxError {
    let (stream, position) = message.position.clone().unwrap_or_default();
    OutboxError::PositionTaken { stream, position }
}

fn priority(message: &Outgoing) -> i32 {
    message.priority.unwrap_or_else(current_priority).0
}

fn parts(message: &Outgoing) -> (Option<&str>, Option<i64>) {
    match &message.position {
        Some((stream, position)) => (Some(stream), Some(*position)),
        None => (None, None),
    }
}

/// The outbox on SQLite takes an earlier time for one in seconds by mistake: the year 2000.
const EARLIEST: Timestamp = Timestamp::constant(946_684_800, 0);

/// Not before the earliest that the outbox takes: what is past is now.
fn at(message: &Outgoing) -> Option<Timestamp> {
    if let When::At(at) = message.when { Some(at.max(EARLIEST)) } else { None }
}

fn after(message: &Outgoing) -> Option<Duration> {
    if let When::After(after) = message.when { Some(after) } else { None }
}

fn headers(headers: &[Header]) -> String {
    let object = headers.iter().map(|header| (header.name.clone(), Value::from(header.value.as_str())));
    Value::Object(object.collect()).to_string()
}
