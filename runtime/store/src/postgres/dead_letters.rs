//! Dead letters: counted, delivered again, removed. Which ones is said by a selection.

use laneway_core::{DeadLetterAction, DeadLetterSelection, Name, Step};
use sqlx::Row as _;

use super::connection::{self, Database, Outcome, Session, Statement};
use super::topology::topic_regex;

/// The condition that dead letter `f`, of subscription `s` and message `m`, is in a selection, which is bound first. The
/// message's id is compared wherever it is looked for: its number may be another's after a restore.
macro_rules! selected {
    () => {
        "f.id BETWEEN coalesce($1::bigint, 0) AND coalesce($1::bigint, 9223372036854775807)
            AND ($2::text IS NULL OR s.name = $2) AND ($3::text IS NULL OR m.topic ~ $3)
            AND ($4::text IS NULL OR f.reason = $4)
            AND f.failed_at >= coalesce($5::timestamptz, '-infinity')
            AND f.failed_at < coalesce($6::timestamptz, 'infinity')"
    };
}
pub(super) use selected;

/// Binds what [`selected`] names.
pub(super) fn bind_selection<'q>(statement: Statement<'q>, selection: &'q DeadLetterSelection) -> Statement<'q> {
    statement
        .bind(selection.id)
        .bind(selection.subscription.as_ref().map(Name::as_str))
        .bind(selection.topic.as_ref().map(topic_regex))
        .bind(selection.reason.as_deref())
        .bind(selection.since.map(|time| time.to_string()))
        .bind(selection.until.map(|time| time.to_string()))
}

pub(super) async fn count(database: &Database, selection: &DeadLetterSelection) -> Outcome<u64> {
    let query = concat!(
        "-- maintain.count_dead_letters
        SELECT count(*) FROM laneway.dead_letter f
        JOIN laneway.subscription s ON s.id = f.subscription_id
        LEFT JOIN laneway.message m ON m.seq = f.message_seq AND m.id = f.message_id
        WHERE ",
        selected!()
    );
    connection::count(&database.connection().await?.one(bind_selection(sqlx::query(query), selection)).await?, 0)
}

pub(super) async fn newest(database: &Database) -> Outcome<i64> {
    let query = "-- maintain.newest_dead_letter
        SELECT coalesce(max(id), 0) FROM laneway.dead_letter";
    database.connection().await?.one(sqlx::query(query)).await?.try_get(0)
}

/// The letters that a step looks at, and which of them it takes.
macro_rules! part {
    () => {
        concat!(
            "WITH part AS MATERIALIZED (
                SELECT f.id FROM laneway.dead_letter f WHERE f.id > $7 AND f.id <= $8 ORDER BY f.id LIMIT $9
            ), chosen AS MATERIALIZED (
                SELECT f.* FROM part p JOIN laneway.dead_letter f ON f.id = p.id
                JOIN laneway.subscription s ON s.id = f.subscription_id
                LEFT JOIN laneway.message m ON m.seq = f.message_seq AND m.id = f.message_id
                WHERE ",
            selected!(),
            "
                FOR UPDATE OF f SKIP LOCKED
            ),"
        )
    };
}

macro_rules! answer {
    () => {
        "noted AS (
            INSERT INTO laneway.audit (action, detail)
            SELECT $10, jsonb_build_object('selection', $11::text::jsonb, 'count', count(*), 'first', min(g.id),
                'last', max(g.id))
            FROM gone g HAVING count(*) > 0
        )
        SELECT (SELECT count(*) FROM gone), count(*), max(p.id)"
    };
}

pub(super) async fn act(
    database: &Database,
    action: DeadLetterAction,
    selection: &DeadLetterSelection,
    from: i64,
    newest: i64,
    limit: u32,
) -> Outcome<Step> {
    let query = match action {
        DeadLetterAction::Purge => concat!(
            "-- maintain.purge_dead_letters\n",
            part!(),
            "gone AS (DELETE FROM laneway.dead_letter f USING chosen c WHERE f.id = c.id RETURNING f.id),",
            answer!(),
            " FROM part p"
        ),
        // A letter of a subscription that nobody works for would only be hidden. One whose message is in work for the
        // same subscription once more has to wait: two deliveries of one message would run at once. The message is locked, so that no cleanup removes it meanwhile.
        DeadLetterAction::Replay => concat!(
            "-- maintain.replay_dead_letters\n",
            part!(),
            "kept AS MATERIALIZED (
                SELECT c.* FROM chosen c JOIN laneway.message m ON m.seq = c.message_seq AND m.id = c.message_id
                JOIN laneway.subscription s ON s.id = c.subscription_id
                WHERE s.active AND NOT EXISTS (SELECT FROM laneway.lease l
                    WHERE l.subscription_id = c.subscription_id
                        AND c.message_seq BETWEEN l.message_seq_min AND l.message_seq_max
                        AND get_bit(l.open, array_position(l.message_seqs, c.message_seq) - 1) = 1)
                FOR KEY SHARE OF m
            ), gone AS (
                DELETE FROM laneway.dead_letter f USING kept k WHERE f.id = k.id RETURNING f.*
            ), owed AS (
                INSERT INTO laneway.delivery (message_seq, available_at, subscription_id, priority, lane, key, parked)
                SELECT g.message_seq, now(), g.subscription_id, g.priority, g.lane,
                    CASE WHEN s.ordered THEN m.key END, CASE WHEN s.ordered AND m.key IS NOT NULL THEN false END
                FROM gone g JOIN laneway.message m ON m.seq = g.message_seq
                JOIN laneway.subscription s ON s.id = g.subscription_id
                ON CONFLICT (message_seq, subscription_id) DO NOTHING
            ), woken AS (
                SELECT count(pg_notify('laneway', w.subscription_id::text)) AS subscriptions
                FROM (SELECT DISTINCT g.subscription_id FROM gone g) w
            ),",
            answer!(),
            ", (SELECT w.subscriptions FROM woken w) FROM part p"
        ),
    };
    let statement = bind_selection(sqlx::query(query), selection)
        .bind(from)
        .bind(newest)
        .bind(i64::from(limit))
        .bind(action.as_str())
        .bind(serde_json::to_string(selection).map_err(|error| sqlx::Error::Encode(error.into()))?);
    let row = database.connection().await?.one(statement).await?;
    let more = connection::count(&row, 1)? >= u64::from(limit);
    Ok(Step {
        changed: connection::count(&row, 0)?,
        next: row.try_get::<Option<i64>, _>(2)?.filter(|_| more),
        ..Step::default()
    })
}
