//! Removing what is over its retention.

use jiff::Timestamp;
use laneway_core::{Cleanup, Step, StoreError};
use sqlx::Row;

use super::connection::Connections;
use super::writer::{Durability, Ran, Script};

pub(super) fn to_count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// The condition that nothing is owed of message `m`, nor kept of it among the dead letters.
macro_rules! settled {
    () => {
        "NOT EXISTS (SELECT 1 FROM laneway_delivery d
                WHERE d.id BETWEEN m.seq * 1048576 AND m.seq * 1048576 + 1048575)
            AND NOT EXISTS (SELECT 1 FROM laneway_dead_letter f WHERE f.message_seq = m.seq)"
    };
}

/// Runs of schedules that are old enough, but for each schedule's last.
macro_rules! old_runs {
    () => {
        "FROM laneway_schedule s CROSS JOIN laneway_schedule_run r ON r.schedule = s.name
            AND r.fire_at < min(?, (SELECT max(n.fire_at) FROM laneway_schedule_run n WHERE n.schedule = s.name))"
    };
}

pub(super) async fn cleanable(
    connections: &Connections,
    what: Cleanup,
    before: Timestamp,
) -> Result<u64, StoreError> {
    let query = match what {
        Cleanup::Messages => concat!(
            "-- cleanup.cleanable_messages
            SELECT count(*) FROM laneway_message m
            WHERE max(m.created_at, coalesce(m.available_at, 0)) < ? AND ",
            settled!()
        ),
        Cleanup::Markers => {
            "-- cleanup.cleanable_markers
            SELECT count(*) FROM laneway_marker WHERE processed_at < ?"
        }
        Cleanup::DeadLetters => {
            "-- cleanup.cleanable_dead_letters
            SELECT count(*) FROM laneway_dead_letter WHERE failed_at < ?"
        }
        Cleanup::ScheduleRuns => concat!(
            "-- cleanup.cleanable_schedule_runs
            SELECT count(*) ",
            old_runs!()
        ),
    };
    let statement = sqlx::query(query).bind(before.as_millisecond());
    let number = connections.reader().await?.optional(statement, |row| row.try_get(0)).await?;
    Ok(to_count(number.unwrap_or_default()))
}

pub(super) async fn clean(
    connections: &Connections,
    what: Cleanup,
    before: Timestamp,
    from: i64,
    limit: u32,
) -> Result<Step, StoreError> {
    let before = before.as_millisecond();
    let mut script = Script::new();
    // How many rows the step looks at, the last of them, and whether later ones may be old enough: rows are about in the
    // order of their times, and none is out of it by more than a day.
    let mut looked = (0, None, false);
    let removal = match what {
        Cleanup::Messages => {
            macro_rules! part {
                () => {
                    "FROM (SELECT seq, created_at, available_at FROM laneway_message WHERE seq > ?
                        ORDER BY seq LIMIT ? + 0) m"
                };
            }
            script.step(concat!(
                "-- cleanup.look_at_messages
                SELECT count(*), max(m.seq), min(m.created_at) < ? + 86400000 ",
                part!()
            ));
            script.bind(before)?;
            script.bind(from)?;
            script.bind(limit)?;
            let removal = script.step(concat!(
                "-- cleanup.clean_messages
                DELETE FROM laneway_message WHERE seq IN (SELECT m.seq ",
                part!(),
                " WHERE max(m.created_at, coalesce(m.available_at, 0)) < ? AND ",
                settled!(),
                ")"
            ));
            script.bind(from)?;
            script.bind(limit)?;
            script.bind(before)?;
            removal
        }
        Cleanup::DeadLetters => {
            macro_rules! part {
                () => {
                    "FROM (SELECT id, failed_at FROM laneway_dead_letter WHERE id > ? ORDER BY id LIMIT ? + 0) f"
                };
            }
            script.step(concat!(
                "-- cleanup.look_at_dead_letters
                SELECT count(*), max(f.id), min(f.failed_at) < ? + 86400000 ",
                part!()
            ));
            script.bind(before)?;
            script.bind(from)?;
            script.bind(limit)?;
            let removal = script.step(concat!(
                "-- cleanup.clean_dead_letters
                DELETE FROM laneway_dead_letter WHERE id IN (SELECT f.id ",
                part!(),
                " WHERE f.failed_at < ?)"
            ));
            script.bind(from)?;
            script.bind(limit)?;
            script.bind(before)?;
            removal
        }
        // The index leads to the oldest: nothing dead is left in it.
        Cleanup::Markers => {
            let removal = script.step(
                "-- cleanup.clean_markers
                DELETE FROM laneway_marker WHERE (subscription_id, message_id) IN (
                    SELECT k.subscription_id, k.message_id FROM laneway_marker k
                    WHERE k.processed_at < ? ORDER BY k.processed_at LIMIT ? + 0)",
            );
            script.bind(before)?;
            script.bind(limit)?;
            removal
        }
        Cleanup::ScheduleRuns => {
            let removal = script.step(concat!(
                "-- cleanup.clean_schedule_runs
                DELETE FROM laneway_schedule_run WHERE (schedule, fire_at) IN (
                    SELECT r.schedule, r.fire_at ",
                old_runs!(),
                " LIMIT ? + 0)"
            ));
            script.bind(before)?;
            script.bind(limit)?;
            removal
        }
    };
    let ran = connections
        .run(Durability::Buffered, script, |row| {
            looked = (row.try_get(0)?, row.try_get(1)?, row.try_get::<Option<i64>, _>(2)? == Some(1));
            Ok(())
        })
        .await?;
    let Ran::Committed(done) = ran else {
        return Err(StoreError::Other("a cleanup was stopped".to_owned()));
    };
    let changed = done.get(removal).map_or(0, |removal| removal.rows_affected());
    let limit = i64::from(limit);
    let next = match what {
        Cleanup::Messages | Cleanup::DeadLetters => looked.1.filter(|_| looked.0 >= limit && looked.2),
        Cleanup::Markers | Cleanup::ScheduleRuns => (changed >= limit.cast_unsigned()).then_some(0),
    };
    Ok(Step { changed, next })
}
