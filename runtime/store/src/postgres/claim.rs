//! Leases on due deliveries.

use std::cmp::Reverse;
use std::time::Duration;

use bytes::Bytes;
use laneway_core::{
    Batch, ClaimRequest, Delivery, DeliveryId, Header, LeaseToken, Message, MessageId, Priority, Topic,
};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::connection::{Database, Instant, Outcome, Session, microseconds, span, unreadable};

/// Leases due deliveries of one lane.
///
/// Due rows are not one range of the index: behind those of each priority come the ones that are delayed or leased.
/// So the claim hops from priority to priority, one probe each, and reads the due rows of each from the front; the
/// outer limit ends the hopping. A plain `ORDER BY ... LIMIT` would read over all that is not due.
///
/// Beside 1,000,000 delayed, 100,000 leased and 1,000,000 backfill rows, finding and locking 512 deliveries reads
/// 556 pages, and 527 without them; the whole claim reads 9,641, and 9,113 beside as many rows of another
/// subscription. What remains is the height of the indexes: each row is entered into two, at one page a level.
///
/// Rows are updated by their physical place, which the locks hold still: a join by key would look each up once
/// more.
pub(super) async fn claim(database: &Database, request: ClaimRequest) -> Outcome<Option<Batch>> {
    let query = "-- delivery.claim
        WITH RECURSIVE level AS (
            (SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = $2 ORDER BY d.priority DESC LIMIT 1)
            UNION ALL
            SELECT below.priority FROM level CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = $2 AND d.priority < level.priority
                ORDER BY d.priority DESC LIMIT 1
            ) below
        ), due AS MATERIALIZED (
            SELECT ready.place, ready.available_at FROM level CROSS JOIN LATERAL (
                SELECT d.ctid AS place, d.available_at FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = $2 AND d.priority = level.priority
                    AND d.available_at <= now()
                ORDER BY d.available_at, d.message_seq LIMIT $3
                FOR UPDATE SKIP LOCKED
            ) ready LIMIT $3
        ), claimed AS (
            UPDATE laneway.delivery d SET
                lease_token = (SELECT nextval('laneway.lease_token')),
                available_at = now() + $4::bigint * interval '1 microsecond',
                attempt = d.attempt + 1,
                first_attempt_at = coalesce(d.first_attempt_at, now())
            FROM due WHERE d.ctid = due.place
            RETURNING d.message_seq, d.lease_token, d.attempt, d.first_attempt_at, due.available_at AS due_at
        )
        SELECT c.message_seq, c.lease_token, c.attempt, c.due_at,
            CASE WHEN c.attempt > 1 THEN (extract(epoch FROM now() - c.first_attempt_at) * 1000000)::bigint END,
            m.id, m.topic, m.key, m.priority, m.payload, m.content_type,
            CASE WHEN m.headers <> '{}' THEN m.headers::text END, m.tenant, k.message_id IS NOT NULL
        FROM claimed c
        JOIN laneway.message m ON m.seq = c.message_seq
        LEFT JOIN laneway.marker k ON $5 AND k.subscription_id = $1 AND k.message_id = m.id";
    let statement = sqlx::query(query)
        .bind(request.subscription.0)
        .bind(request.lane.number())
        .bind(i64::from(request.limit))
        .bind(microseconds(request.lease))
        .bind(request.check_markers);
    let rows = database.connection().await?.all(statement).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let token = LeaseToken(first.try_get(1)?);
    let mut deliveries = rows
        .iter()
        .map(|row| Ok((row.try_get::<Instant, _>(3)?, delivery(row, &request)?)))
        .collect::<Outcome<Vec<_>>>()?;
    // The database need not keep the order from claiming to answering.
    deliveries.sort_by_key(|(due_at, delivery)| (Reverse(delivery.message.priority), *due_at, delivery.id));
    let deliveries = deliveries.into_iter().map(|(_, delivery)| delivery).collect();
    Ok(Some(Batch { subscription: request.subscription, token, deliveries }))
}

fn delivery(row: &PgRow, request: &ClaimRequest) -> Outcome<Delivery> {
    let attempt: i32 = row.try_get(2)?;
    Ok(Delivery {
        id: DeliveryId(row.try_get(0)?),
        lane: request.lane,
        message: message(row)?,
        attempt: u32::try_from(attempt).map_err(unreadable)?,
        since_first_attempt: row.try_get::<Option<i64>, _>(4)?.map_or(Duration::ZERO, span),
        processed: row.try_get(13)?,
    })
}

fn message(row: &PgRow) -> Outcome<Message> {
    Ok(Message {
        id: MessageId::from_stored(row.try_get(5)?),
        topic: Topic::from_stored(row.try_get(6)?),
        key: row.try_get(7)?,
        priority: Priority(row.try_get(8)?),
        payload: Bytes::from(row.try_get::<Vec<u8>, _>(9)?),
        content_type: row.try_get(10)?,
        headers: headers(row.try_get(11)?)?,
        tenant: row.try_get(12)?,
    })
}

fn headers(object: Option<&str>) -> Outcome<Vec<Header>> {
    let Some(object) = object else { return Ok(Vec::new()) };
    let values: serde_json::Map<String, serde_json::Value> = serde_json::from_str(object).map_err(unreadable)?;
    values
        .into_iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(value) => Ok(Header { name, value }),
            _ => Err(unreadable(format_args!("header {name} is no string"))),
        })
        .collect()
}
