//! Messages of the outbox, delivered once more.

use jiff::Timestamp;
use laneway_core::{Replay, Step, StoreError, Topic};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::connection::{Connections, Reader, Statement, json, now_ms};
use super::writer::Durability;

/// Messages that one query looks at where they are only counted.
const COUNTED: u32 = 10_000;

/// What a look at a part of the messages found.
#[derive(Default)]
struct Part {
    looked: u32,
    last: Option<i64>,
    chosen: Vec<i64>,
}

impl Part {
    /// Takes a row of [`look`].
    fn take(&mut self, row: &SqliteRow, replay: &Replay) -> Result<(), sqlx::Error> {
        let seq: i64 = row.try_get(0)?;
        self.looked += 1;
        self.last = Some(seq);
        let fits = row.try_get::<Option<i64>, _>(2)? == Some(1);
        if fits
            && replay
                .topic
                .as_ref()
                .is_none_or(|pattern| row.try_get(1).is_ok_and(|topic| pattern.matches(&Topic::from_stored(topic))))
        {
            self.chosen.push(seq);
        }
        Ok(())
    }

    fn next(&self, limit: u32) -> Option<i64> {
        self.last.filter(|_| self.looked >= limit)
    }
}

/// The next messages, each with its topic and whether it is to be delivered once more to the subscription.
fn look(replay: &Replay, from: i64, limit: u32) -> Statement<'_> {
    let query = "-- maintain.look_at_replayed
        SELECT m.seq, m.topic, (s.pattern = m.topic OR (
                m.topic GLOB s.topic_glob
                AND length(m.topic) - length(replace(m.topic, '.', '')) BETWEEN s.dots_min AND s.dots_max
                AND (s.literals IS NULL OR NOT EXISTS (
                    SELECT 1 FROM json_each(s.literals) l WHERE l.value IS NOT
                        json_extract('[\"' || replace(m.topic, '.', '\",\"') || '\"]', '$[' || l.key || ']')))))
            AND m.created_at >= coalesce(?2, 0) AND m.created_at < ?3
            AND (?4 OR NOT EXISTS (SELECT 1 FROM laneway_marker k
                WHERE k.subscription_id = s.id AND k.message_id = m.id))
            AND NOT EXISTS (SELECT 1 FROM laneway_delivery d WHERE d.id = m.seq * 1048576 + s.id)
            AND NOT EXISTS (SELECT 1 FROM laneway_dead_letter f
                WHERE f.message_seq = m.seq AND f.subscription_id = s.id)
        FROM laneway_subscription s CROSS JOIN (
            SELECT seq, id, topic, created_at FROM laneway_message WHERE seq > ?5 ORDER BY seq LIMIT ?6 + 0) m
        WHERE s.name = ?1 ORDER BY m.seq";
    sqlx::query(query)
        .bind(replay.subscription.as_str())
        .bind(replay.since.map(Timestamp::as_millisecond))
        .bind(replay.until.as_millisecond())
        .bind(replay.force)
        .bind(from)
        .bind(limit)
}

/// The number of the subscription that a replay names.
async fn subscription(reader: &mut Reader, replay: &Replay) -> Result<i64, StoreError> {
    let query = "-- maintain.subscription
        SELECT id FROM laneway_subscription WHERE name = ? AND active";
    let statement = sqlx::query(query).bind(replay.subscription.as_str());
    let found = reader.optional(statement, |row| row.try_get(0)).await?;
    found.ok_or_else(|| StoreError::Refused(format!("no active subscription is named `{}`", replay.subscription)))
}

/// Owes messages once more.
pub(super) async fn replay(
    connections: &Connections,
    replay: &Replay,
    from: i64,
    limit: u32,
) -> Result<Step, StoreError> {
    let id = subscription(&mut connections.reader().await?, replay).await?;
    let mut transaction = connections.begin(Durability::Flushed).await?;
    let mut part = Part::default();
    transaction.each(look(replay, from, limit), |row| part.take(row, replay)).await?;
    if let (Some(first), Some(last)) = (part.chosen.first(), part.chosen.last()) {
        let seqs = json(&part.chosen)?;
        if replay.force {
            let query = "-- maintain.forget_markers
                DELETE FROM laneway_marker WHERE subscription_id = ? AND message_id IN (
                    SELECT m.id FROM laneway_message m WHERE m.seq IN (SELECT value FROM json_each(?)))";
            transaction.execute(sqlx::query(query).bind(id).bind(seqs.as_str())).await?;
        }
        let query = "-- maintain.route
            DELETE FROM laneway_unrouted WHERE message_seq IN (SELECT value FROM json_each(?))";
        transaction.execute(sqlx::query(query).bind(seqs.as_str())).await?;
        let query = concat!(
            "-- maintain.owe_messages
            INSERT INTO laneway_delivery (id, subscription_id, lane, priority, message_seq, available_at, key, parked)
            SELECT r.value * 1048576 + s.id, s.id, 1, ?2, r.value, ",
            now_ms!(),
            ", iif(s.ordered, m.key, NULL), iif(s.ordered AND m.key IS NOT NULL, 0, NULL)
            FROM json_each(?3) r CROSS JOIN laneway_message m ON m.seq = r.value
            CROSS JOIN laneway_subscription s ON s.id = ?1"
        );
        transaction.execute(sqlx::query(query).bind(id).bind(replay.priority.0).bind(seqs)).await?;
        let query = concat!(
            "-- maintain.note_replay
            INSERT INTO laneway_audit (at, action, detail) VALUES (",
            now_ms!(),
            ", 'messages.replay', json_object('replay', json(?), 'count', ?, 'first', ?, 'last', ?))"
        );
        let count = i64::try_from(part.chosen.len()).unwrap_or(i64::MAX);
        let statement = sqlx::query(query).bind(json(replay)?).bind(count).bind(first).bind(last);
        transaction.execute(statement).await?;
    }
    transaction.commit().await?;
    Ok(Step { changed: part.chosen.len() as u64, next: part.next(limit) })
}

/// How many messages would be owed in all.
pub(super) async fn replayable(connections: &Connections, replay: &Replay) -> Result<u64, StoreError> {
    let mut count = 0;
    let mut from = 0;
    loop {
        let mut reader = connections.reader().await?;
        subscription(&mut reader, replay).await?;
        let mut part = Part::default();
        reader.each(look(replay, from, COUNTED), |row| part.take(row, replay)).await?;
        count += part.chosen.len() as u64;
        match part.next(COUNTED) {
            Some(next) => from = next,
            None => return Ok(count),
        }
    }
}
