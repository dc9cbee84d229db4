//! How far a cleanup is behind, and how fast rows come.

use jiff::Timestamp;
use laneway_core::{Arrears, Cleanup};
use sqlx::Row as _;

use super::connection::{Database, Instant, Outcome, Session};

/// Looks for the first row of the last day by halves: numbers are about in the order of times. Answers the time of the
/// first row above `$1`, how many numbers the last day has, and the seconds since its first one.
macro_rules! by_number {
    ($name:literal, $table:literal, $number:literal, $time:literal) => {
        concat!(
            "-- ",
            $name,
            "
            WITH RECURSIVE search AS (
                SELECT min(",
            $number,
            ") AS low, max(",
            $number,
            ") + 1 AS high FROM ",
            $table,
            "
                UNION ALL
                SELECT CASE WHEN m.old THEN m.number + 1 ELSE s.low END,
                    CASE WHEN m.old THEN s.high ELSE s.low + (s.high - s.low) / 2 END
                FROM search s CROSS JOIN LATERAL (
                    SELECT t.",
            $number,
            " AS number, t.",
            $time,
            " < now() - interval '1 day' AS old
                    FROM ",
            $table,
            " t WHERE t.",
            $number,
            " >= s.low + (s.high - s.low) / 2
                    ORDER BY t.",
            $number,
            " LIMIT 1
                ) m WHERE s.low < s.high
            ), first AS (
                SELECT s.low AS number FROM search s WHERE s.low >= s.high LIMIT 1
            )
            SELECT (SELECT t.",
            $time,
            " FROM ",
            $table,
            " t WHERE t.",
            $number,
            " > $1 ORDER BY t.",
            $number,
            " LIMIT 1),
                ((SELECT max(t.",
            $number,
            ") FROM ",
            $table,
            " t) + 1 - f.number)::float8,
                (SELECT extract(epoch FROM now() - t.",
            $time,
            ") FROM ",
            $table,
            " t WHERE t.",
            $number,
            " >= f.number
                    ORDER BY t.",
            $number,
            " LIMIT 1)::float8
            FROM (SELECT $1::bigint AS begin) b LEFT JOIN first f ON true"
        )
    };
}

/// Counts ten seconds of each hour of the last day by the index of times.
const MARKERS: &str = "-- cleanup.arrears_of_markers
    SELECT (SELECT min(k.processed_at) FROM laneway.marker k WHERE $1::bigint IS NOT NULL), sum(part.markers)::float8, 240::float8
    FROM generate_series(0, 23) hour CROSS JOIN LATERAL (
        SELECT count(*) AS markers FROM laneway.marker k
        WHERE k.processed_at > now() - hour * interval '1 hour' - interval '10 seconds'
            AND k.processed_at <= now() - hour * interval '1 hour'
    ) part";

/// There are few: one for each time of a schedule.
const SCHEDULE_RUNS: &str = "-- cleanup.arrears_of_schedule_runs
    SELECT min(r.fire_at), count(*) FILTER (WHERE r.fire_at > now() - interval '1 day')::float8, 86400::float8
    FROM laneway.schedule_run r WHERE $1::bigint IS NOT NULL";

pub(super) async fn arrears(database: &Database, what: Cleanup, from: i64) -> Outcome<Arrears> {
    let query = match what {
        Cleanup::Messages => by_number!("cleanup.arrears_of_messages", "laneway.message", "seq", "created_at"),
        Cleanup::DeadLetters => {
            by_number!("cleanup.arrears_of_dead_letters", "laneway.dead_letter", "id", "failed_at")
        }
        Cleanup::Markers => MARKERS,
        Cleanup::ScheduleRuns => SCHEDULE_RUNS,
    };
    let row = database.connection().await?.one(sqlx::query(query).bind(from)).await?;
    let oldest: Option<Timestamp> = row.try_get::<Option<Instant>, _>(0)?.map(Instant::timestamp).transpose()?;
    let (rows, seconds): (Option<f64>, Option<f64>) = (row.try_get(1)?, row.try_get(2)?);
    Ok(Arrears { oldest, per_second: rows.unwrap_or_default() / seconds.unwrap_or(1.0).max(1.0) })
}
