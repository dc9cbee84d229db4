//! What operators are shown: status, messages, dead letters.

use jiff::Timestamp;
use laneway_core::{
    COUNTED_MAX, DeadLetterFilter, DeadLetterView, DeliveryView, Lane, LaneStatus, MarkerView, MessageFilter,
    MessageId, MessageStatus, MessageView, Name, NodeStatus, Priority, Status, StoreError, SubscriptionStatus,
    Topic,
};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::connection::{Reader, now_ms};
use super::dead_letters::{bind_selection, selected};

type Decoded<T> = Result<T, sqlx::Error>;

fn timestamp(millis: i64) -> Decoded<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|error| sqlx::Error::Decode(error.into()))
}

fn name(text: &str) -> Decoded<Name> {
    Name::parse(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

fn lane(number: i16) -> Decoded<Lane> {
    Lane::from_number(number).ok_or_else(|| sqlx::Error::Decode(format!("lane {number} is unknown").into()))
}

/// A text that a producer may have written as no UTF-8: one such must not hide the others.
fn text(row: &SqliteRow, column: usize) -> Decoded<Option<String>> {
    let bytes: Option<&[u8]> = row.try_get_unchecked(column)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
}

fn count(row: &SqliteRow, column: usize) -> Decoded<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or_default())
}

/// Everything at a glance. Each part is consistent in itself; they are read one after the other.
pub(super) async fn status(reader: &mut Reader) -> Result<Status, StoreError> {
    // Counting a long outbox takes long. Numbers that were drawn and not used make the estimate too high, which shows
    // only where there are few messages; those are counted.
    let query = "-- view.totals
        SELECT (SELECT max(revision) FROM laneway_topology),
            iif(EXISTS (SELECT 1 FROM laneway_message LIMIT 1 OFFSET 10000),
                (SELECT max(seq) FROM laneway_message) - (SELECT min(seq) FROM laneway_message) + 1,
                (SELECT count(*) FROM laneway_message)),
            (SELECT count(*) FROM laneway_unrouted)";
    let totals =
        reader.optional(sqlx::query(query), |row| Ok((row.try_get(0)?, count(row, 1)?, count(row, 2)?))).await?;
    let (topology_revision, messages, unrouted) = totals.unwrap_or_default();
    let query = "-- view.subscriptions
        SELECT s.id, s.name, s.pattern, s.kind, s.active,
            (SELECT count(*) FROM laneway_dead_letter f WHERE f.subscription_id = s.id)
        FROM laneway_subscription s WHERE s.kind <> 'consumer' ORDER BY s.name";
    let found = reader.all(sqlx::query(query), |row| {
        let status = SubscriptionStatus {
            name: name(row.try_get(1)?)?,
            pattern: row.try_get(2)?,
            kind: row.try_get(3)?,
            active: row.try_get::<i64, _>(4)? != 0,
            lanes: Vec::new(),
            dead_letters: count(row, 5)?,
        };
        Ok((row.try_get::<i64, _>(0)?, status))
    });
    let mut subscriptions = Vec::new();
    for (id, status) in found.await? {
        subscriptions.push(SubscriptionStatus { lanes: lanes(reader, id).await?, ..status });
    }
    let query = "-- view.nodes
        SELECT coalesce(label, name), name, place, seen_at FROM laneway_node ORDER BY seen_at DESC, name";
    let nodes = reader
        .all(sqlx::query(query), |row| {
            let (id, place) = (name(row.try_get(1)?)?, row.try_get(2)?);
            Ok(NodeStatus { name: name(row.try_get(0)?)?, id, place, seen_at: timestamp(row.try_get(3)?)? })
        })
        .await?;
    // Triggers fire for every writer of the file.
    Ok(Status { topology_revision, messages, unrouted, never_routed: 0, subscriptions, nodes })
}

/// Counts by lane, from the indexes alone, and of no more than [`COUNTED_MAX`] deliveries.
async fn lanes(reader: &mut Reader, subscription: i64) -> Result<Vec<LaneStatus>, StoreError> {
    let free = concat!(
        "-- view.lane
        WITH RECURSIVE hop (priority) AS (
            SELECT max(d.priority) FROM laneway_delivery d
            WHERE d.subscription_id = ?1 AND d.lane = ?2 AND d.parked IS NOT 1
            UNION ALL
            SELECT (SELECT max(d.priority) FROM laneway_delivery d
                WHERE d.subscription_id = ?1 AND d.lane = ?2 AND d.parked IS NOT 1 AND d.priority < hop.priority)
            FROM hop WHERE hop.priority IS NOT NULL
        )
        SELECT due.count, coalesce(later.leased, 0), later.count - coalesce(later.leased, 0),
            max(due.count, later.count),
            (c.now - (SELECT min((SELECT min(e.available_at) FROM laneway_delivery e
                WHERE e.subscription_id = ?1 AND e.lane = ?2 AND e.parked IS NOT 1 AND e.priority = hop.priority
                    AND e.available_at <= c.now)) FROM hop WHERE hop.priority IS NOT NULL)) / 1000.0
        FROM (SELECT ",
        now_ms!(),
        " AS now) c, (
            SELECT count(*) AS count FROM (
                SELECT 1 FROM hop CROSS JOIN laneway_delivery e INDEXED BY laneway_delivery_due
                WHERE e.subscription_id = ?1 AND e.lane = ?2 AND e.parked IS NOT 1 AND e.priority = hop.priority
                    AND e.available_at <= ",
        now_ms!(),
        " LIMIT ?3 + 1)
        ) due, (
            SELECT count(*) AS count, sum(e.lease_token IS NOT NULL) AS leased FROM (
                SELECT e.lease_token FROM hop CROSS JOIN laneway_delivery e INDEXED BY laneway_delivery_due
                WHERE e.subscription_id = ?1 AND e.lane = ?2 AND e.parked IS NOT 1 AND e.priority = hop.priority
                    AND e.available_at > ",
        now_ms!(),
        " LIMIT ?3 + 1) e
        ) later"
    );
    let query = "-- view.parked
        SELECT coalesce(sum(p.parked AND p.lane = 0), 0), coalesce(sum(p.parked AND p.lane = 1), 0), count(*) FROM (
            SELECT d.lane, d.parked FROM laneway_delivery d INDEXED BY laneway_delivery_line
            WHERE d.subscription_id = ? AND d.parked IS NOT NULL LIMIT ? + 1) p";
    let statement = sqlx::query(query).bind(subscription).bind(COUNTED_MAX);
    let parked = reader.optional(statement, |row| Ok([count(row, 0)?, count(row, 1)?, count(row, 2)?])).await?;
    let parked = parked.unwrap_or_default();
    let mut lanes = Vec::with_capacity(Lane::ALL.len());
    for lane in Lane::ALL {
        let statement = sqlx::query(free).bind(subscription).bind(lane.number()).bind(COUNTED_MAX);
        let status = reader.optional(statement, |row| {
            Ok(LaneStatus {
                lane,
                due: count(row, 0)?,
                leased: count(row, 1)?,
                delayed: count(row, 2)?,
                more: count(row, 3)? > u64::from(COUNTED_MAX) || parked[2] > u64::from(COUNTED_MAX),
                oldest_due_seconds: row.try_get(4)?,
                parked: parked[lane as usize],
            })
        });
        lanes.push(status.await?.unwrap_or(LaneStatus { lane, ..LaneStatus::default() }));
    }
    Ok(lanes)
}

/// The columns of a message in a list. The status is derived for the rows that are looked at, no others.
macro_rules! message_columns {
    () => {
        "m.seq, m.id, m.topic, m.key, CAST(m.priority AS INTEGER), m.tenant, m.content_type,
        length(CAST(m.payload AS BLOB)), m.created_at, v.status"
    };
}

fn message_view(row: &SqliteRow) -> Decoded<MessageView> {
    let status: &str = row.try_get(9)?;
    Ok(MessageView {
        seq: row.try_get(0)?,
        id: MessageId::from_stored(row.try_get(1)?),
        topic: Topic::from_stored(row.try_get(2)?),
        key: text(row, 3)?,
        priority: Priority(row.try_get(4)?),
        tenant: text(row, 5)?,
        content_type: text(row, 6)?.unwrap_or_default(),
        payload_bytes: count(row, 7)?,
        created_at: timestamp(row.try_get(8)?)?,
        status: MessageStatus::from_name(status)
            .ok_or_else(|| sqlx::Error::Decode(format!("status {status} is unknown").into()))?,
        payload: None,
        deliveries: Vec::new(),
        markers: Vec::new(),
    })
}

/// Lists messages, newest first.
pub(super) async fn messages(reader: &mut Reader, filter: &MessageFilter) -> Result<Vec<MessageView>, StoreError> {
    // Each walks what is sure to be short for its status, from the newest on, and stops at the limit.
    let query = match filter.status {
        None | Some(MessageStatus::Processed) => concat!(
            "-- view.messages
            SELECT ",
            message_columns!(),
            "
            FROM laneway_message m CROSS JOIN laneway_message_status v ON v.seq = m.seq
            WHERE (?1 IS NULL OR v.status = ?1) AND (?2 IS NULL OR m.topic = ?2)
            ORDER BY m.seq DESC LIMIT ?3 + 0"
        ),
        Some(MessageStatus::Pending | MessageStatus::Processing) => concat!(
            "-- view.messages_owed
            SELECT ",
            message_columns!(),
            "
            FROM laneway_delivery d CROSS JOIN laneway_message m ON m.seq = d.message_seq
            CROSS JOIN laneway_message_status v ON v.seq = m.seq
            WHERE v.status = ?1 AND (?2 IS NULL OR m.topic = ?2)
            AND NOT EXISTS (SELECT 1 FROM laneway_delivery e
                WHERE e.id > d.id AND e.id <= d.message_seq * 1048576 + 1048575)
            ORDER BY d.id DESC LIMIT ?3 + 0"
        ),
        Some(MessageStatus::Failed) => concat!(
            "-- view.messages_failed
            SELECT ",
            message_columns!(),
            "
            FROM (SELECT DISTINCT message_seq FROM laneway_dead_letter) f
            CROSS JOIN laneway_message m ON m.seq = f.message_seq
            CROSS JOIN laneway_message_status v ON v.seq = m.seq
            WHERE v.status = ?1 AND (?2 IS NULL OR m.topic = ?2)
            ORDER BY f.message_seq DESC LIMIT ?3 + 0"
        ),
        Some(MessageStatus::Unrouted) => concat!(
            "-- view.messages_unrouted
            SELECT ",
            message_columns!(),
            "
            FROM laneway_unrouted u CROSS JOIN laneway_message m ON m.seq = u.message_seq
            CROSS JOIN laneway_message_status v ON v.seq = m.seq
            WHERE v.status = ?1 AND (?2 IS NULL OR m.topic = ?2)
            ORDER BY u.message_seq DESC LIMIT ?3 + 0"
        ),
    };
    let statement = sqlx::query(query)
        .bind(filter.status.map(MessageStatus::as_str))
        .bind(filter.topic.as_ref().map(Topic::as_str))
        .bind(filter.limit);
    reader.all(statement, message_view).await
}

/// One message with its payload and deliveries.
pub(super) async fn message(reader: &mut Reader, id: &MessageId) -> Result<Option<MessageView>, StoreError> {
    let query = concat!(
        "-- view.message
        SELECT ",
        message_columns!(),
        ", CAST(m.payload AS BLOB)
        FROM laneway_message m CROSS JOIN laneway_message_status v ON v.seq = m.seq WHERE m.id = ?"
    );
    let found = reader
        .optional(sqlx::query(query).bind(id.as_str()), |row| {
            let mut view = message_view(row)?;
            view.payload = Some(printable(row.try_get(10)?));
            Ok(view)
        })
        .await?;
    let Some(mut view) = found else { return Ok(None) };
    let query = concat!(
        "-- view.deliveries
        SELECT s.name, d.lane, d.available_at,
            d.attempt - (d.ended AND d.begun_token IS NOT d.lease_token), d.lease_token IS NOT NULL AND NOT d.ended,
            d.last_error, d.parked = 1, d.lost + d.ended
        FROM (SELECT o.*, o.lease_token IS NOT NULL AND o.available_at <= ",
        now_ms!(),
        " AS ended FROM laneway_delivery o) d JOIN laneway_subscription s ON s.id = d.subscription_id
        WHERE d.id BETWEEN ?1 * 1048576 AND ?1 * 1048576 + 1048575 ORDER BY s.name"
    );
    view.deliveries = reader
        .all(sqlx::query(query).bind(view.seq), |row| {
            Ok(DeliveryView {
                subscription: name(row.try_get(0)?)?,
                lane: lane(row.try_get(1)?)?,
                available_at: timestamp(row.try_get(2)?)?,
                attempt: row.try_get(3)?,
                lost: row.try_get(7)?,
                leased: row.try_get::<i64, _>(4)? != 0,
                parked: row.try_get::<Option<i64>, _>(6)? == Some(1),
                last_error: row.try_get(5)?,
            })
        })
        .await?;
    let query = "-- view.markers
        SELECT s.name, k.processed_at, k.metadata
        FROM laneway_subscription s CROSS JOIN laneway_marker k ON k.subscription_id = s.id AND k.message_id = ?
        ORDER BY s.name";
    view.markers = reader
        .all(sqlx::query(query).bind(id.as_str()), |row| {
            let metadata = row.try_get::<Option<&str>, _>(2)?.map(serde_json::from_str).transpose();
            Ok(MarkerView {
                subscription: name(row.try_get(0)?)?,
                processed_at: timestamp(row.try_get(1)?)?,
                metadata: metadata.map_err(|error| sqlx::Error::Decode(error.into()))?,
            })
        })
        .await?;
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
pub(super) async fn dead_letters(
    reader: &mut Reader,
    filter: &DeadLetterFilter,
) -> Result<Vec<DeadLetterView>, StoreError> {
    // A dead letter whose message was deleted can be neither explained nor replayed, and is not listed.
    let query = concat!(
        "-- view.dead_letters
        SELECT f.id, f.message_id, m.topic, s.name, f.lane, f.priority, f.reason, f.error, f.attempts,
            f.first_attempt_at, f.failed_at, f.plugin
        FROM laneway_dead_letter f
        JOIN laneway_subscription s ON s.id = f.subscription_id
        JOIN laneway_message m ON m.seq = f.message_seq AND m.id = f.message_id
        WHERE ",
        selected!(),
        "
        ORDER BY f.id DESC LIMIT ?11 + 0"
    );
    let statement = bind_selection(sqlx::query(query), &filter.selection)?.bind(filter.limit);
    reader
        .all(statement, |row| {
            Ok(DeadLetterView {
                id: row.try_get(0)?,
                message_id: MessageId::from_stored(row.try_get(1)?),
                topic: Topic::from_stored(row.try_get(2)?),
                subscription: name(row.try_get(3)?)?,
                lane: lane(row.try_get(4)?)?,
                priority: Priority(row.try_get(5)?),
                reason: row.try_get(6)?,
                error: row.try_get(7)?,
                attempts: row.try_get(8)?,
                first_attempt_at: row.try_get::<Option<i64>, _>(9)?.map(timestamp).transpose()?,
                failed_at: timestamp(row.try_get(10)?)?,
                plugin: row.try_get(11)?,
            })
        })
        .await
}
