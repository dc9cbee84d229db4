//! What operators are shown: status, messages, dead letters.

use std::collections::HashMap;

use jiff::Timestamp;
use laneway_core::{
    COUNTED_MAX, DeadLetterFilter, DeadLetterView, DeliveryView, Lane, LaneStatus, MarkerView, MessageFilter,
    MessageId, MessageStatus, MessageView, Name, NodeStatus, Priority, Status, StoreError, SubscriptionStatus,
    Topic,
};
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, Row as _};

use super::PostgresOptions;
use super::connection::{Database, Instant, Outcome, Session, classify, connect, count, unreadable};
use super::dead_letters::{bind_selection, selected};
use super::servers::Servers;

fn timestamp(row: &PgRow, column: usize) -> Outcome<Timestamp> {
    row.try_get::<Instant, _>(column)?.timestamp()
}

fn name(row: &PgRow, column: usize) -> Outcome<Name> {
    Name::parse(row.try_get(column)?).map_err(unreadable)
}

fn lane(row: &PgRow, column: usize) -> Outcome<Lane> {
    let number = row.try_get(column)?;
    Lane::from_number(number).ok_or_else(|| unreadable(format_args!("lane {number} is unknown")))
}

fn attempts(row: &PgRow, column: usize) -> Outcome<u32> {
    u32::try_from(row.try_get::<i32, _>(column)?).map_err(unreadable)
}

/// Everything at a glance. Each part is consistent in itself; they are read one after the other.
pub(super) async fn status(database: &Database) -> Outcome<Status> {
    let mut session = database.connection().await?;
    // Counting a long outbox takes long. Numbers that were drawn and not used make the estimate too high, which
    // shows only where there are few messages; those are counted.
    let query = "-- view.totals
        SELECT (SELECT max(revision) FROM laneway.topology),
            CASE WHEN EXISTS (SELECT FROM laneway.message ORDER BY seq OFFSET 10000)
                THEN (SELECT max(seq) FROM laneway.message) - (SELECT min(seq) FROM laneway.message) + 1
                ELSE (SELECT count(*) FROM laneway.message) END,
            (SELECT count(*) FROM laneway.unrouted), (SELECT count(*) FROM laneway.never_routed)";
    let totals = session.one(sqlx::query(query)).await?;
    let mut lanes = lanes(&mut session).await?;
    let query = "-- view.subscriptions
        SELECT s.id, s.name, s.pattern, s.kind, s.active,
            (SELECT count(*) FROM laneway.dead_letter f WHERE f.subscription_id = s.id)
        FROM laneway.subscription s WHERE s.kind <> 'consumer' ORDER BY s.name";
    let subscriptions = session
        .all(sqlx::query(query))
        .await?
        .iter()
        .map(|row| {
            let id: i32 = row.try_get(0)?;
            let lanes = Lane::ALL.map(|lane| {
                let none = LaneStatus { lane, ..LaneStatus::default() };
                lanes.remove(&(id, lane)).unwrap_or(none)
            });
            Ok(SubscriptionStatus {
                name: name(row, 1)?,
                pattern: row.try_get(2)?,
                kind: row.try_get(3)?,
                active: row.try_get(4)?,
                lanes: lanes.into(),
                dead_letters: count(row, 5)?,
            })
        })
        .collect::<Outcome<_>>()?;
    let query = "-- view.nodes
        SELECT coalesce(label, name), name, place, seen_at FROM laneway.node ORDER BY seen_at DESC, name";
    let nodes = session
        .all(sqlx::query(query))
        .await?
        .iter()
        .map(|row| {
            let (id, place) = (name(row, 1)?, row.try_get(2)?);
            Ok(NodeStatus { name: name(row, 0)?, id, place, seen_at: timestamp(row, 3)? })
        })
        .collect::<Outcome<_>>()?;
    Ok(Status {
        topology_revision: totals.try_get(0)?,
        messages: count(&totals, 1)?,
        unrouted: count(&totals, 2)?,
        never_routed: count(&totals, 3)?,
        subscriptions,
        nodes,
    })
}

async fn lanes(session: &mut impl Session) -> Outcome<HashMap<(i32, Lane), LaneStatus>> {
    let query = "-- view.lanes
        WITH RECURSIVE slot AS MATERIALIZED (
            SELECT s.id AS subscription_id, l.lane FROM laneway.subscription s
            CROSS JOIN (VALUES (0::smallint), (1::smallint)) l(lane)
            WHERE s.kind <> 'consumer'
        ), level AS (
            SELECT s.subscription_id, s.lane, top.priority FROM slot s CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = s.subscription_id AND d.lane = s.lane AND d.parked IS NOT TRUE
                ORDER BY d.priority DESC LIMIT 1
            ) top
            UNION ALL
            SELECT level.subscription_id, level.lane, below.priority FROM level CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = level.subscription_id AND d.lane = level.lane AND d.parked IS NOT TRUE
                    AND d.priority < level.priority
                ORDER BY d.priority DESC LIMIT 1
            ) below
        ), oldest AS MATERIALIZED (
            SELECT level.subscription_id, level.lane, min(first.available_at) AS at FROM level CROSS JOIN LATERAL (
                SELECT d.available_at FROM laneway.delivery d
                WHERE d.subscription_id = level.subscription_id AND d.lane = level.lane
                    AND d.priority = level.priority AND d.parked IS NOT TRUE AND d.available_at <= now()
                ORDER BY d.available_at LIMIT 1
            ) first GROUP BY level.subscription_id, level.lane
        ), leased AS MATERIALIZED (
            SELECT l.subscription_id, l.lane,
                coalesce(sum(bit_count(l.open)) FILTER (WHERE l.leased_until <= now()), 0) AS ended,
                coalesce(sum(bit_count(l.open)) FILTER (WHERE l.leased_until > now()), 0) AS held,
                min(l.leased_until) FILTER (WHERE l.leased_until <= now()) AS ended_at
            FROM laneway.lease l GROUP BY l.subscription_id, l.lane
        )
        SELECT s.subscription_id, s.lane, (free.due + coalesce(l.ended, 0))::bigint, coalesce(l.held, 0)::bigint,
            free.delayed, line.parked, extract(epoch FROM now() - least(o.at, l.ended_at))::float8,
            free.counted > $1 OR line.counted > $1
        FROM slot s
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE f.available_at <= now()) AS due,
                count(*) FILTER (WHERE f.available_at > now()) AS delayed, count(*) AS counted
            FROM (SELECT d.available_at FROM laneway.delivery d
                WHERE d.subscription_id = s.subscription_id AND d.lane = s.lane AND d.parked IS NOT TRUE
                LIMIT $1 + 1) f
        ) free
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE p.parked AND p.lane = s.lane) AS parked, count(*) AS counted
            FROM (SELECT d.lane, d.parked FROM laneway.delivery d
                WHERE d.subscription_id = s.subscription_id AND d.parked IS NOT NULL
                LIMIT $1 + 1) p
        ) line
        LEFT JOIN oldest o ON o.subscription_id = s.subscription_id AND o.lane = s.lane
        LEFT JOIN leased l ON l.subscription_id = s.subscription_id AND l.lane = s.lane";
    session
        .all(sqlx::query(query).bind(i64::from(COUNTED_MAX)))
        .await?
        .iter()
        .map(|row| {
            let lane = lane(row, 1)?;
            let status = LaneStatus {
                lane,
                due: count(row, 2)?,
                parked: count(row, 5)?,
                leased: count(row, 3)?,
                delayed: count(row, 4)?,
                more: row.try_get(7)?,
                oldest_due_seconds: row.try_get(6)?,
            };
            Ok(((row.try_get(0)?, lane), status))
        })
        .collect()
}

/// The columns of a message in a list.
macro_rules! message_columns {
    () => {
        "m.seq, m.id, m.topic, m.key, m.priority, m.tenant, m.content_type, octet_length(m.payload)::bigint,
        m.created_at, v.status"
    };
}

/// The status is derived for the rows that are looked at, no others.
macro_rules! with_status {
    () => {
        "CROSS JOIN LATERAL (SELECT v.status FROM laneway.message_status v WHERE v.seq = m.seq OFFSET 0) v"
    };
}

/// Messages that leases hold open, newest first.
macro_rules! leased_messages {
    ($which:literal) => {
        concat!(
            "SELECT ",
            message_columns!(),
            "
            FROM (SELECT DISTINCT u.message_seq
                FROM laneway.lease l CROSS JOIN LATERAL unnest(l.message_seqs) WITH ORDINALITY AS u(message_seq, place)
                WHERE get_bit(l.open, u.place::integer - 1) = 1 AND ",
            $which,
            ") o JOIN laneway.message m ON m.seq = o.message_seq ",
            with_status!(),
            "
            WHERE v.status = $1 AND ($2::text IS NULL OR m.topic = $2)
            ORDER BY m.seq DESC LIMIT $3"
        )
    };
}

/// Messages of a table that nobody is owed, newest first.
macro_rules! unrouted_messages {
    ($table:literal) => {
        concat!(
            "SELECT ",
            message_columns!(),
            " FROM ",
            $table,
            " u JOIN laneway.message m ON m.seq = u.message_seq ",
            with_status!(),
            "
            WHERE v.status = $1 AND ($2::text IS NULL OR m.topic = $2)
            ORDER BY u.message_seq DESC LIMIT $3"
        )
    };
}

fn message_view(row: &PgRow) -> Outcome<MessageView> {
    let status: &str = row.try_get(9)?;
    Ok(MessageView {
        seq: row.try_get(0)?,
        id: MessageId::from_stored(row.try_get(1)?),
        topic: Topic::from_stored(row.try_get(2)?),
        key: row.try_get(3)?,
        priority: Priority(row.try_get(4)?),
        tenant: row.try_get(5)?,
        content_type: row.try_get(6)?,
        payload_bytes: count(row, 7)?,
        created_at: timestamp(row, 8)?,
        status: MessageStatus::from_name(status)
            .ok_or_else(|| unreadable(format_args!("status {status} is unknown")))?,
        payload: None,
        deliveries: Vec::new(),
        markers: Vec::new(),
    })
}

/// Lists messages, newest first.
pub(super) async fn messages(database: &Database, filter: &MessageFilter) -> Outcome<Vec<MessageView>> {
    // Each walks what is sure to be short for its status, from the newest on, and stops at the limit.
    let query = match filter.status {
        None | Some(MessageStatus::Processed) => concat!(
            "-- view.messages
            SELECT ",
            message_columns!(),
            "
            FROM laneway.message m ",
            with_status!(),
            "
            WHERE ($1::text IS NULL OR v.status = $1) AND ($2::text IS NULL OR m.topic = $2)
            ORDER BY m.seq DESC LIMIT $3"
        ),
        Some(MessageStatus::Pending) => concat!(
            "-- view.messages_pending
            (SELECT ",
            message_columns!(),
            "
            FROM laneway.delivery d JOIN laneway.message m ON m.seq = d.message_seq ",
            with_status!(),
            "
            WHERE v.status = $1 AND ($2::text IS NULL OR m.topic = $2)
                AND NOT EXISTS (SELECT FROM laneway.delivery e
                    WHERE e.message_seq = d.message_seq AND e.subscription_id > d.subscription_id OFFSET 0)
            ORDER BY d.message_seq DESC LIMIT $3)
            UNION
            (",
            leased_messages!("l.leased_until <= now()"),
            ")
            ORDER BY seq DESC LIMIT $3"
        ),
        Some(MessageStatus::Processing) => {
            concat!("-- view.messages_processing\n", leased_messages!("l.leased_until > now()"))
        }
        Some(MessageStatus::Failed) => concat!(
            "-- view.messages_failed
            SELECT ",
            message_columns!(),
            "
            FROM laneway.dead_letter f JOIN laneway.message m ON m.seq = f.message_seq AND m.id = f.message_id ",
            with_status!(),
            "
            WHERE v.status = $1 AND ($2::text IS NULL OR m.topic = $2)
                AND NOT EXISTS (SELECT FROM laneway.dead_letter e
                    WHERE e.message_seq = f.message_seq AND e.id > f.id OFFSET 0)
            ORDER BY f.message_seq DESC LIMIT $3"
        ),
        Some(MessageStatus::Unrouted) => concat!(
            "-- view.messages_unrouted\n(",
            unrouted_messages!("laneway.unrouted"),
            ") UNION (",
            unrouted_messages!("laneway.never_routed"),
            ") ORDER BY seq DESC LIMIT $3"
        ),
    };
    let statement = sqlx::query(query)
        .bind(filter.status.map(MessageStatus::as_str))
        .bind(filter.topic.as_ref().map(Topic::as_str))
        .bind(i64::from(filter.limit));
    database.connection().await?.all(statement).await?.iter().map(message_view).collect()
}

/// One message with its payload and deliveries.
pub(super) async fn message(database: &Database, id: &MessageId) -> Outcome<Option<MessageView>> {
    let mut session = database.connection().await?;
    let query = concat!(
        "-- view.message
        SELECT ",
        message_columns!(),
        ", m.payload
        FROM laneway.message m ",
        with_status!(),
        " WHERE m.id = $1"
    );
    let Some(row) = session.optional(sqlx::query(query).bind(id.as_str())).await? else { return Ok(None) };
    let mut view = message_view(&row)?;
    view.payload = Some(printable(row.try_get(10)?));
    let query = "-- view.deliveries
        SELECT s.name, o.lane, o.available_at, o.attempt, o.lease_token IS NOT NULL AND o.available_at > now(),
            o.last_error, o.parked, o.lost
        FROM laneway.owed o JOIN laneway.subscription s ON s.id = o.subscription_id
        WHERE o.message_seq = $1 ORDER BY s.name";
    view.deliveries = session
        .all(sqlx::query(query).bind(view.seq))
        .await?
        .iter()
        .map(|row| {
            Ok(DeliveryView {
                subscription: name(row, 0)?,
                lane: lane(row, 1)?,
                available_at: timestamp(row, 2)?,
                attempt: attempts(row, 3)?,
                lost: attempts(row, 7)?,
                leased: row.try_get(4)?,
                parked: row.try_get(6)?,
                last_error: row.try_get(5)?,
            })
        })
        .collect::<Outcome<_>>()?;
    let query = "-- view.markers
        SELECT s.name, k.processed_at, k.metadata::text
        FROM laneway.subscription s JOIN laneway.marker k ON k.subscription_id = s.id AND k.message_id = $1
        ORDER BY s.name";
    view.markers = session
        .all(sqlx::query(query).bind(id.as_str()))
        .await?
        .iter()
        .map(|row| {
            Ok(MarkerView {
                subscription: name(row, 0)?,
                processed_at: timestamp(row, 1)?,
                metadata: row
                    .try_get::<Option<&str>, _>(2)?
                    .map(serde_json::from_str)
                    .transpose()
                    .map_err(unreadable)?,
            })
        })
        .collect::<Outcome<_>>()?;
    Ok(Some(view))
}

/// Bytes as text; what is not UTF-8 as `\x` escapes.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Lists dead letters, newest first.
pub(super) async fn dead_letters(database: &Database, filter: &DeadLetterFilter) -> Outcome<Vec<DeadLetterView>> {
    // A dead letter whose message was deleted can be neither explained nor replayed, and is not listed.
    let query = concat!(
        "-- view.dead_letters
        SELECT f.id, f.message_id, m.topic, s.name, f.lane, f.priority, f.reason, f.error, f.attempts,
            f.first_attempt_at, f.failed_at, f.plugin
        FROM laneway.dead_letter f
        JOIN laneway.subscription s ON s.id = f.subscription_id
        JOIN laneway.message m ON m.seq = f.message_seq AND m.id = f.message_id
        WHERE ",
        selected!(),
        "
        ORDER BY f.id DESC LIMIT $7"
    );
    let statement = bind_selection(sqlx::query(query), &filter.selection).bind(i64::from(filter.limit));
    database
        .connection()
        .await?
        .all(statement)
        .await?
        .iter()
        .map(|row| {
            let first_attempt_at = row.try_get::<Option<Instant>, _>(9)?;
            Ok(DeadLetterView {
                id: row.try_get(0)?,
                message_id: MessageId::from_stored(row.try_get(1)?),
                topic: Topic::from_stored(row.try_get(2)?),
                subscription: name(row, 3)?,
                lane: lane(row, 4)?,
                priority: Priority(row.try_get(5)?),
                reason: row.try_get(6)?,
                error: row.try_get(7)?,
                attempts: attempts(row, 8)?,
                first_attempt_at: first_attempt_at.map(Instant::timestamp).transpose()?,
                failed_at: timestamp(row, 10)?,
                plugin: row.try_get(11)?,
            })
        })
        .collect()
}

/// Position in the server's write-ahead log, in bytes from its beginning. What was written between two readings is
/// that of all who use the server.
///
/// # Errors
/// [`StoreError::Unavailable`] if the server cannot be reached.
pub async fn wal_position(options: &PostgresOptions) -> Result<u64, StoreError> {
    let mut connection = connect(&Servers::of(options)?).await?;
    let query = "-- view.wal_position
        SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
    let row = sqlx::query(query).fetch_one(&mut connection).await.map_err(classify)?;
    let bytes = count(&row, 0).map_err(classify)?;
    connection.close().await.map_err(classify)?;
    Ok(bytes)
}
