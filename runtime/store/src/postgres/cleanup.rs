//! Removing what is over its retention.

use jiff::Timestamp;
use laneway_core::{Cleanup, Step};
use sqlx::Row as _;

use super::connection::{Database, Outcome, Session, count};

pub(super) async fn cleanable(database: &Database, what: Cleanup, before: Timestamp) -> Outcome<u64> {
    let query = match what {
        Cleanup::Messages => {
            "-- cleanup.cleanable_messages
            WITH held AS MATERIALIZED (
                SELECT u.message_seq
                FROM laneway.lease l CROSS JOIN LATERAL unnest(l.message_seqs) WITH ORDINALITY AS u(message_seq, place)
                WHERE get_bit(l.open, u.place::integer - 1) = 1
            )
            SELECT count(*) FROM laneway.message m
            WHERE greatest(m.created_at, m.available_at) < $1::timestamptz
                AND NOT EXISTS (SELECT FROM laneway.delivery d WHERE d.message_seq = m.seq)
                AND NOT EXISTS (SELECT FROM laneway.dead_letter f WHERE f.message_seq = m.seq)
                AND NOT EXISTS (SELECT FROM laneway.never_routed n WHERE n.message_seq = m.seq)
                AND m.seq NOT IN (SELECT h.message_seq FROM held h)"
        }
        Cleanup::Markers => {
            "-- cleanup.cleanable_markers
            SELECT count(*) FROM laneway.marker WHERE processed_at < $1::timestamptz"
        }
        Cleanup::DeadLetters => {
            "-- cleanup.cleanable_dead_letters
            SELECT count(*) FROM laneway.dead_letter WHERE failed_at < $1::timestamptz"
        }
        Cleanup::ScheduleRuns => {
            "-- cleanup.cleanable_schedule_runs
            SELECT coalesce(sum(old.runs), 0)::bigint FROM laneway.schedule s CROSS JOIN LATERAL (
                SELECT count(*) AS runs FROM laneway.schedule_run r
                WHERE r.schedule = s.name AND r.fire_at < least($1::timestamptz,
                    (SELECT max(n.fire_at) FROM laneway.schedule_run n WHERE n.schedule = s.name))
            ) old"
        }
    };
    let row = database.connection().await?.one(sqlx::query(query).bind(before.to_string())).await?;
    count(&row, 0)
}

/// Rows are about in the order of their times; none is out of it by more than this.
macro_rules! slack {
    () => {
        "interval '1 day'"
    };
}

pub(super) async fn clean(
    database: &Database,
    what: Cleanup,
    before: Timestamp,
    from: i64,
    limit: u32,
) -> Outcome<Step> {
    // Each answers the rows removed, the rows looked at, where the next step begins, and whether later rows may be old
    // enough. Nobody waits for its commit to be flushed: what a crash brings back is removed by the next run, and with
    // hundreds of flushes a second the commits of others would have to queue.
    let query = match what {
        Cleanup::Messages => return clean_messages(database, before, from, limit).await,
        // The index leads to the oldest. Beginning where the last step ended, it does not step over what is dead and
        // not yet vacuumed.
        Cleanup::Markers => {
            "-- cleanup.clean_markers
            WITH gone AS (
                DELETE FROM laneway.marker k WHERE k.ctid = ANY (ARRAY(
                    SELECT o.ctid FROM laneway.marker o
                    WHERE o.processed_at >= 'epoch'::timestamptz + $2::bigint * interval '1 microsecond'
                        AND o.processed_at < $1::timestamptz
                    ORDER BY o.processed_at LIMIT $3 FOR UPDATE SKIP LOCKED
                )) RETURNING k.processed_at
            )
            SELECT count(*), count(*), (extract(epoch FROM max(processed_at)) * 1000000)::bigint, true,
                set_config('synchronous_commit', 'off', true) FROM gone"
        }
        Cleanup::DeadLetters => concat!(
            "-- cleanup.clean_dead_letters
            WITH part AS MATERIALIZED (
                SELECT f.id, f.failed_at FROM laneway.dead_letter f WHERE f.id > $2 ORDER BY f.id LIMIT $3
            ), gone AS (
                DELETE FROM laneway.dead_letter f USING part p
                WHERE f.id = p.id AND p.failed_at < $1::timestamptz RETURNING f.id
            )
            SELECT (SELECT count(*) FROM gone), count(*), max(p.id), min(p.failed_at) < $1::timestamptz + ",
            slack!(),
            ", set_config('synchronous_commit', 'off', true) FROM part p"
        ),
        Cleanup::ScheduleRuns => {
            "-- cleanup.clean_schedule_runs
            WITH gone AS (
                DELETE FROM laneway.schedule_run g WHERE g.ctid = ANY (ARRAY(
                    SELECT old.ctid FROM laneway.schedule s CROSS JOIN LATERAL (
                        SELECT r.ctid FROM laneway.schedule_run r
                        WHERE r.schedule = s.name AND r.fire_at < least($1::timestamptz,
                            (SELECT max(n.fire_at) FROM laneway.schedule_run n WHERE n.schedule = s.name))
                        ORDER BY r.fire_at LIMIT $3
                    ) old WHERE $2::bigint >= 0 LIMIT $3
                )) RETURNING 1
            )
            SELECT count(*), count(*), 0::bigint, true, set_config('synchronous_commit', 'off', true) FROM gone"
        }
    };
    let statement = sqlx::query(query).bind(before.to_string()).bind(from).bind(i64::from(limit));
    let row = database.connection().await?.one(statement).await?;
    let more = count(&row, 1)? >= u64::from(limit) && row.try_get::<Option<bool>, _>(3)?.unwrap_or_default();
    Ok(Step { changed: count(&row, 0)?, next: row.try_get::<Option<i64>, _>(2)?.filter(|_| more) })
}

/// Removes messages. They are locked first: a replay that owes one of them again has then either committed, and the
/// second statement sees its delivery, or waits, and finds the message gone.
async fn clean_messages(database: &Database, before: Timestamp, from: i64, limit: u32) -> Outcome<Step> {
    let lock = concat!(
        "-- cleanup.lock_old_messages
        WITH part AS MATERIALIZED (
            SELECT m.seq, m.created_at, greatest(m.created_at, m.available_at) < $1::timestamptz AS old
            FROM laneway.message m WHERE m.seq > $2 ORDER BY m.seq LIMIT $3
        ), locked AS MATERIALIZED (
            SELECT m.seq FROM part p JOIN laneway.message m ON m.seq = p.seq
            WHERE p.old
                AND NOT EXISTS (SELECT FROM laneway.delivery d WHERE d.message_seq = p.seq)
                AND NOT EXISTS (SELECT FROM laneway.dead_letter f WHERE f.message_seq = p.seq)
                AND NOT EXISTS (SELECT FROM laneway.never_routed n WHERE n.message_seq = p.seq)
            ORDER BY m.seq FOR UPDATE OF m SKIP LOCKED
        )
        SELECT coalesce((SELECT array_agg(l.seq) FROM locked l), '{}'), count(*), max(p.seq),
            min(p.created_at) < $1::timestamptz + ",
        slack!(),
        ", set_config('synchronous_commit', 'off', true) FROM part p"
    );
    let mut transaction = database.begin().await?;
    let statement = sqlx::query(lock).bind(before.to_string()).bind(from).bind(i64::from(limit));
    let row = transaction.one(statement).await?;
    let locked: Vec<i64> = row.try_get(0)?;
    let remove = "-- cleanup.clean_messages
        WITH held AS MATERIALIZED (
            SELECT u.message_seq
            FROM laneway.lease l CROSS JOIN LATERAL unnest(l.message_seqs) WITH ORDINALITY AS u(message_seq, place)
            WHERE l.message_seq_max >= $2 AND l.message_seq_min <= $3
                AND get_bit(l.open, u.place::integer - 1) = 1
        ), gone AS (
            DELETE FROM laneway.message m USING unnest($1::bigint[]) AS p(seq)
            WHERE m.seq = p.seq
                AND NOT EXISTS (SELECT FROM laneway.delivery d WHERE d.message_seq = p.seq)
                AND NOT EXISTS (SELECT FROM laneway.dead_letter f WHERE f.message_seq = p.seq)
                AND p.seq NOT IN (SELECT h.message_seq FROM held h)
            RETURNING m.seq
        )
        SELECT count(*) FROM gone";
    let changed = match (locked.first(), locked.last()) {
        (Some(first), Some(last)) => {
            let (first, last) = (*first, *last);
            let statement = sqlx::query(remove).bind(locked).bind(first).bind(last);
            count(&transaction.one(statement).await?, 0)?
        }
        _ => 0,
    };
    transaction.commit().await?;
    let more = count(&row, 1)? >= u64::from(limit) && row.try_get::<Option<bool>, _>(3)?.unwrap_or_default();
    Ok(Step { changed, next: row.try_get::<Option<i64>, _>(2)?.filter(|_| more) })
}
