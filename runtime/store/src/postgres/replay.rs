//! Messages of the outbox, delivered once more.

use laneway_core::{Replay, Replayable, Step, StoreError};
use sqlx::Row as _;

use super::connection::{Database, Session, Statement, classify, count};
use super::topology::topic_regex;

/// The condition that a replay is about message `m` and subscription `s`. The replay is bound first.
macro_rules! asked_for {
    () => {
        "m.topic ~ s.topic_regex AND ($2::text IS NULL OR m.topic ~ $2)
            AND m.created_at >= coalesce($3::timestamptz, '-infinity') AND m.created_at < $4::timestamptz
            AND NOT EXISTS (SELECT FROM laneway.delivery d
                WHERE d.message_seq = m.seq AND d.subscription_id = s.id)
            AND NOT EXISTS (SELECT FROM laneway.dead_letter f
                WHERE f.message_seq = m.seq AND f.subscription_id = s.id)
            AND NOT EXISTS (SELECT FROM laneway.lease l
                WHERE l.subscription_id = s.id AND m.seq BETWEEN l.message_seq_min AND l.message_seq_max
                    AND get_bit(l.open, array_position(l.message_seqs, m.seq) - 1) = 1)"
    };
}

/// Whether message `m` was routed to subscription `s` when it was written, or may have been.
macro_rules! routed {
    () => {
        "EXISTS (SELECT FROM laneway.routed r
            WHERE r.subscription_id = s.id AND m.topic ~ r.topic_regex
                AND (m.seq BETWEEN coalesce(r.from_seq, m.seq) AND coalesce(r.until_seq, m.seq)
                    OR (m.seq < r.from_seq
                        AND (m.xmin::text::bigint - r.begun_xid + 4294967296) % 4294967296 < 2147483648)))"
    };
}

/// Whether message `m`, which is not owed to subscription `s`, was processed by it, or given up.
macro_rules! processed {
    () => {
        concat!(
            "(EXISTS (SELECT FROM laneway.marker k WHERE k.subscription_id = s.id AND k.message_id = m.id)
                OR EXISTS (SELECT FROM laneway.replayed e
                    WHERE e.subscription_id = s.id AND e.message_seq = m.seq)
                OR ",
            routed!(),
            ")"
        )
    };
}

fn bind_replay<'q>(statement: Statement<'q>, replay: &'q Replay) -> Statement<'q> {
    statement
        .bind(replay.subscription.as_str())
        .bind(replay.topic.as_ref().map(topic_regex))
        .bind(replay.since.map(|time| time.to_string()))
        .bind(replay.until.to_string())
        .bind(replay.force)
}

fn no_subscription(replay: &Replay) -> StoreError {
    StoreError::Refused(format!("no active subscription is named `{}`", replay.subscription))
}

pub(super) async fn replay(
    database: &Database,
    replay: &Replay,
    from: i64,
    limit: u32,
) -> Result<Step, StoreError> {
    let query = concat!(
        "-- maintain.replay
        WITH part AS MATERIALIZED (
            SELECT m.seq FROM laneway.message m WHERE m.seq > $6 ORDER BY m.seq LIMIT $7
        ), chosen AS MATERIALIZED (
            SELECT m.seq, m.id, s.id AS subscription_id, CASE WHEN s.ordered THEN m.key END AS key, ",
        routed!(),
        " AS is_routed
            FROM laneway.subscription s CROSS JOIN part p JOIN laneway.message m ON m.seq = p.seq
            WHERE s.name = $1 AND s.active AND ($5 OR NOT ",
        processed!(),
        ") AND ",
        asked_for!(),
        "
            FOR KEY SHARE OF m
        ), forgotten AS (
            DELETE FROM laneway.marker k USING chosen c
            WHERE $5 AND k.subscription_id = c.subscription_id AND k.message_id = c.id
        ), routed AS (
            DELETE FROM laneway.unrouted u USING chosen c WHERE u.message_seq = c.seq
        ), owed AS (
            INSERT INTO laneway.delivery (message_seq, available_at, subscription_id, priority, lane, key, parked)
            SELECT c.seq, now(), c.subscription_id, $8, 1, c.key, CASE WHEN c.key IS NOT NULL THEN false END FROM chosen c
            ON CONFLICT (message_seq, subscription_id) DO NOTHING
            RETURNING message_seq
        ), replayed AS (
            INSERT INTO laneway.replayed (subscription_id, message_seq)
            SELECT c.subscription_id, c.seq FROM chosen c WHERE NOT c.is_routed
            ON CONFLICT DO NOTHING
        ), past AS (
            DELETE FROM laneway.replayed e WHERE e.ctid = ANY (ARRAY(
                SELECT o.ctid FROM laneway.subscription s JOIN laneway.replayed o ON o.subscription_id = s.id
                WHERE s.name = $1 AND o.message_seq < (SELECT min(m.seq) FROM laneway.message m)
                ORDER BY o.message_seq LIMIT $7
            ))
        ), noted AS (
            INSERT INTO laneway.audit (action, detail)
            SELECT 'messages.replay', jsonb_build_object('replay', $9::text::jsonb, 'count', count(*),
                'first', min(o.message_seq), 'last', max(o.message_seq))
            FROM owed o HAVING count(*) > 0
        )
        SELECT (SELECT count(*) FROM owed), count(*), max(p.seq),
            (SELECT pg_notify('laneway', max(c.subscription_id)::text) FROM chosen c HAVING count(*) > 0),
            EXISTS (SELECT FROM laneway.subscription s WHERE s.name = $1 AND s.active)
        FROM part p"
    );
    let detail = serde_json::to_string(replay).map_err(|error| StoreError::Other(error.to_string()))?;
    let statement = bind_replay(sqlx::query(query), replay)
        .bind(from)
        .bind(i64::from(limit))
        .bind(replay.priority.0)
        .bind(detail);
    let stepped = async {
        let mut transaction = database.begin().await?;
        // One replay after the other, each with a snapshot of its own: of two at once, the later could owe a message again
        // that the earlier has owed and a claim has taken into work.
        let lock = "-- replay.lock
            SELECT pg_advisory_xact_lock(hashtextextended('laneway.replay', 0))";
        transaction.execute(sqlx::query(lock)).await?;
        let row = transaction.one(statement).await?;
        transaction.commit().await?;
        let more = count(&row, 1)? >= u64::from(limit);
        let step = Step {
            changed: count(&row, 0)?,
            next: row.try_get::<Option<i64>, _>(2)?.filter(|_| more),
            ..Step::default()
        };
        Ok((step, row.try_get::<bool, _>(4)?))
    };
    match stepped.await.map_err(classify)? {
        (step, true) => Ok(step),
        (_, false) => Err(no_subscription(replay)),
    }
}

pub(super) async fn replayable(database: &Database, replay: &Replay) -> Result<Replayable, StoreError> {
    let query = concat!(
        "-- maintain.replayable
        SELECT c.messages, c.processed FROM laneway.subscription s CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE $5 OR NOT a.processed) AS messages,
                count(*) FILTER (WHERE NOT $5 AND a.processed) AS processed
            FROM (SELECT ",
        processed!(),
        " AS processed FROM laneway.message m WHERE ",
        asked_for!(),
        ") a
        ) c WHERE s.name = $1 AND s.active"
    );
    let counted = async {
        let row = database.connection().await?.optional(bind_replay(sqlx::query(query), replay)).await?;
        row.map(|row| Ok(Replayable { messages: count(&row, 0)?, processed: count(&row, 1)? })).transpose()
    };
    counted.await.map_err(classify)?.ok_or_else(|| no_subscription(replay))
}
