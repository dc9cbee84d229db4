//! How far a cleanup is behind, and how fast rows come.

use jiff::Timestamp;
use laneway_core::{Arrears, Cleanup, StoreError};
use sqlx::Row;

use super::connection::{Connections, now_ms};

/// Looks for the first row of the last day by halves: numbers are about in the order of times. Answers the time of the
/// first row above `?1`, how many numbers the last day has, and the milliseconds since its first one.
macro_rules! by_number {
    ($name:literal, $table:literal, $number:literal, $time:literal) => {
        concat!(
            "-- ",
            $name,
            "
            WITH RECURSIVE search(low, high) AS (
                SELECT (SELECT min(",
            $number,
            ") FROM ",
            $table,
            "), (SELECT max(",
            $number,
            ") + 1 FROM ",
            $table,
            ")
                UNION ALL
                SELECT iif(t.",
            $time,
            " < ",
            now_ms!(),
            " - 86400000, t.",
            $number,
            " + 1, s.low),
                    iif(t.",
            $time,
            " < ",
            now_ms!(),
            " - 86400000, s.high, s.low + (s.high - s.low) / 2)
                FROM search s CROSS JOIN ",
            $table,
            " t ON t.",
            $number,
            " = (
                    SELECT min(n.",
            $number,
            ") FROM ",
            $table,
            " n WHERE n.",
            $number,
            " >= s.low + (s.high - s.low) / 2)
                WHERE s.low < s.high
            ), first(number) AS (
                SELECT s.low FROM search s WHERE s.low >= s.high LIMIT 1
            )
            SELECT (SELECT t.",
            $time,
            " FROM ",
            $table,
            " t WHERE t.",
            $number,
            " > ?1 ORDER BY t.",
            $number,
            " LIMIT 1),
                (SELECT max(t.",
            $number,
            ") FROM ",
            $table,
            " t) + 1 - (SELECT number FROM first),
                ",
            now_ms!(),
            " - (SELECT t.",
            $time,
            " FROM ",
            $table,
            " t
                    WHERE t.",
            $number,
            " >= (SELECT number FROM first) ORDER BY t.",
            $number,
            " LIMIT 1)"
        )
    };
}

/// Counts ten seconds of each hour of the last day by the index of times.
const MARKERS: &str = concat!(
    "-- cleanup.arrears_of_markers
    WITH RECURSIVE hour(ends_at, number) AS (
        SELECT ",
    now_ms!(),
    ", 0 UNION ALL SELECT h.ends_at - 3600000, h.number + 1 FROM hour h WHERE h.number < 23
    )
    SELECT (SELECT min(k.processed_at) FROM laneway_marker k WHERE ?1 IS NOT NULL), sum((
            SELECT count(*) FROM laneway_marker k WHERE k.processed_at > h.ends_at - 10000 AND k.processed_at <= h.ends_at
        )), 240000
    FROM hour h"
);

/// There are few: one for each time of a schedule.
const SCHEDULE_RUNS: &str = concat!(
    "-- cleanup.arrears_of_schedule_runs
    SELECT min(r.fire_at), count(*) FILTER (WHERE r.fire_at > ",
    now_ms!(),
    " - 86400000), 86400000 FROM laneway_schedule_run r WHERE ?1 IS NOT NULL"
);

pub(super) async fn arrears(connections: &Connections, what: Cleanup, from: i64) -> Result<Arrears, StoreError> {
    let query = match what {
        Cleanup::Messages => by_number!("cleanup.arrears_of_messages", "laneway_message", "seq", "created_at"),
        Cleanup::DeadLetters => {
            by_number!("cleanup.arrears_of_dead_letters", "laneway_dead_letter", "id", "failed_at")
        }
        Cleanup::Markers => MARKERS,
        Cleanup::ScheduleRuns => SCHEDULE_RUNS,
    };
    let mut reader = connections.reader().await?;
    let found = reader
        .optional(sqlx::query(query).bind(from), |row| {
            Ok((row.try_get(0)?, row.try_get::<Option<i64>, _>(1)?, row.try_get::<Option<i64>, _>(2)?))
        })
        .await?;
    let (oldest, rows, millis): (Option<i64>, Option<i64>, Option<i64>) = found.unwrap_or_default();
    let seconds = millis.unwrap_or_default() as f64 / 1000.0;
    Ok(Arrears {
        oldest: oldest.and_then(|millis| Timestamp::from_millisecond(millis).ok()),
        per_second: rows.unwrap_or_default() as f64 / seconds.max(1.0),
    })
}
