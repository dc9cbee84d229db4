//! Messages of the outbox, delivered once more.

use jiff::Timestamp;
use laneway_core::{Replay, Replayable, Step, StoreError, Topic, TopicPattern};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::connection::{Connections, Reader, Statement, json, now_ms};
use super::writer::Durability;

/// Messages that one query looks at where they are only counted.
const COUNTED: u32 = 10_000;

/// A stretch of the outbox that was routed to the subscription by one pattern.
struct Routed {
    pattern: TopicPattern,
    from: i64,
    until: Option<i64>,
}

impl Routed {
    fn holds(&self, seq: i64, topic: &Topic) -> bool {
        seq >= self.from && self.until.is_none_or(|until| seq <= until) && self.pattern.matches(topic)
    }

    fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let pattern: String = row.try_get(0)?;
        let pattern = TopicPattern::parse(&pattern).map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok(Self { pattern, from: row.try_get(1)?, until: row.try_get(2)? })
    }
}

/// What a look at a part of the messages found.
#[derive(Default)]
struct Part {
    looked: u32,
    last: Option<i64>,
    chosen: Vec<i64>,
    /// Those of them that were not routed to the subscription when they were written.
    unrouted: Vec<i64>,
    processed: u64,
}

impl Part {
    /// Takes a row of [`look`].
    fn take(&mut self, row: &SqliteRow, replay: &Replay, routed: &[Routed]) -> Result<(), sqlx::Error> {
        let seq: i64 = row.try_get(0)?;
        self.looked += 1;
        self.last = Some(seq);
        if row.try_get::<Option<i64>, _>(2)? != Some(1) {
            return Ok(());
        }
        let topic = Topic::from_stored(row.try_get(1)?);
        if replay.topic.as_ref().is_some_and(|pattern| !pattern.matches(&topic)) {
            return Ok(());
        }
        let is_routed = routed.iter().any(|routed| routed.holds(seq, &topic));
        if !replay.force && (is_routed || row.try_get::<i64, _>(3)? == 1) {
            self.processed += 1;
            return Ok(());
        }
        self.chosen.push(seq);
        if !is_routed {
            self.unrouted.push(seq);
        }
        Ok(())
    }

    fn next(&self, limit: u32) -> Option<i64> {
        self.last.filter(|_| self.looked >= limit)
    }
}

/// What was routed to the subscription.
fn routed(replay: &Replay) -> Statement<'_> {
    let query = "-- maintain.routed
        SELECT r.pattern, r.from_seq, r.until_seq FROM laneway_subscription s
        JOIN laneway_routed r ON r.subscription_id = s.id WHERE s.name = ?";
    sqlx::query(query).bind(replay.subscription.as_str())
}

/// The next messages: each with its topic, whether the replay is about it, and whether it was processed for all that
/// markers and earlier replays say.
fn look(replay: &Replay, from: i64, limit: u32) -> Statement<'_> {
    let query = "-- maintain.look_at_replayed
        SELECT m.seq, m.topic, (s.pattern = m.topic OR (
                m.topic GLOB s.topic_glob
                AND length(m.topic) - length(replace(m.topic, '.', '')) BETWEEN s.dots_min AND s.dots_max
                AND (s.literals IS NULL OR NOT EXISTS (
                    SELECT 1 FROM json_each(s.literals) l WHERE l.value IS NOT
                        json_extract('[\"' || replace(m.topic, '.', '\",\"') || '\"]', '$[' || l.key || ']')))))
            AND m.created_at >= coalesce(?2, 0) AND m.created_at < ?3
            AND NOT EXISTS (SELECT 1 FROM laneway_delivery d WHERE d.id = m.seq * 1048576 + s.id)
            AND NOT EXISTS (SELECT 1 FROM laneway_dead_letter f
                WHERE f.message_seq = m.seq AND f.subscription_id = s.id),
            EXISTS (SELECT 1 FROM laneway_marker k WHERE k.subscription_id = s.id AND k.message_id = m.id)
                OR EXISTS (SELECT 1 FROM laneway_replayed e
                    WHERE e.subscription_id = s.id AND e.message_seq = m.seq)
        FROM laneway_subscription s CROSS JOIN (
            SELECT seq, id, topic, created_at FROM laneway_message WHERE seq > ?4 ORDER BY seq LIMIT ?5 + 0) m
        WHERE s.name = ?1 ORDER BY m.seq";
    sqlx::query(query)
        .bind(replay.subscription.as_str())
        .bind(replay.since.map(Timestamp::as_millisecond))
        .bind(replay.until.as_millisecond())
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
    let mut known = Vec::new();
    transaction.each(routed(replay), |row| Routed::read(row).map(|routed| known.push(routed))).await?;
    let mut part = Part::default();
    transaction.each(look(replay, from, limit), |row| part.take(row, replay, &known)).await?;
    let query = "-- maintain.forget_replayed
        DELETE FROM laneway_replayed WHERE (subscription_id, message_seq) IN (
            SELECT e.subscription_id, e.message_seq FROM laneway_replayed e WHERE e.subscription_id = ?
                AND e.message_seq < (SELECT min(m.seq) FROM laneway_message m)
            ORDER BY e.message_seq LIMIT ? + 0)";
    transaction.execute(sqlx::query(query).bind(id).bind(limit)).await?;
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
        let query = "-- maintain.remember_replayed
            INSERT INTO laneway_replayed (subscription_id, message_seq) SELECT ?, value FROM json_each(?) WHERE true
            ON CONFLICT DO NOTHING";
        transaction.execute(sqlx::query(query).bind(id).bind(json(&part.unrouted)?)).await?;
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
    Ok(Step { changed: part.chosen.len() as u64, next: part.next(limit), ..Step::default() })
}

/// How many messages would be owed in all, and how many left.
pub(super) async fn replayable(connections: &Connections, replay: &Replay) -> Result<Replayable, StoreError> {
    let mut found = Replayable { messages: 0, processed: 0 };
    let mut from = 0;
    loop {
        let mut reader = connections.reader().await?;
        subscription(&mut reader, replay).await?;
        let known = reader.all(routed(replay), Routed::read).await?;
        let mut part = Part::default();
        reader.each(look(replay, from, COUNTED), |row| part.take(row, replay, &known)).await?;
        found.messages += part.chosen.len() as u64;
        found.processed += part.processed;
        match part.next(COUNTED) {
            Some(next) => from = next,
            None => return Ok(found),
        }
    }
}
