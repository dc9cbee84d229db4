//! Removing what is over its retention.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use laneway_core::{Cleanup, Kept, Step, StoreError, Writes};
use sqlx::{AssertSqlSafe, Row};

use super::connection::Connections;
use super::native::Native;
use super::references::{Reference, References, holder};
use super::writer::Durability;

pub(super) fn to_count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// The condition that nothing is owed of message `r`, nor kept of it among the dead letters.
macro_rules! settled {
    () => {
        "NOT EXISTS (SELECT 1 FROM laneway_delivery d
                WHERE d.id BETWEEN r.seq * 1048576 AND r.seq * 1048576 + 1048575)
            AND NOT EXISTS (SELECT 1 FROM laneway_dead_letter f WHERE f.message_seq = r.seq)"
    };
}

/// Runs of schedules that are old enough, but for each schedule's last.
macro_rules! old_runs {
    () => {
        "FROM laneway_schedule s CROSS JOIN laneway_schedule_run r ON r.schedule = s.name
            AND r.fire_at < min(?, (SELECT max(n.fire_at) FROM laneway_schedule_run n WHERE n.schedule = s.name))"
    };
}

/// The table that a cleanup removes rows of.
fn table(what: Cleanup) -> &'static str {
    match what {
        Cleanup::Messages => "laneway_message",
        Cleanup::Markers => "laneway_marker",
        Cleanup::DeadLetters => "laneway_dead_letter",
        Cleanup::ScheduleRuns => "laneway_schedule_run",
    }
}

pub(super) async fn cleanable(
    connections: &Connections,
    what: Cleanup,
    before: Timestamp,
) -> Result<u64, StoreError> {
    let references = connections.read_references().await?;
    let query = match what {
        Cleanup::Messages => concat!(
            "-- cleanup.cleanable_messages
            SELECT count(*) FROM laneway_message r
            WHERE max(r.created_at, coalesce(r.available_at, 0)) < ? AND ",
            settled!()
        ),
        Cleanup::Markers => {
            "-- cleanup.cleanable_markers
            SELECT count(*) FROM laneway_marker r WHERE r.processed_at < ?"
        }
        Cleanup::DeadLetters => {
            "-- cleanup.cleanable_dead_letters
            SELECT count(*) FROM laneway_dead_letter r WHERE r.failed_at < ?"
        }
        Cleanup::ScheduleRuns => concat!(
            "-- cleanup.cleanable_schedule_runs
            SELECT count(*) ",
            old_runs!()
        ),
    };
    let query = match references.to(table(what)) {
        [] => query.to_owned(),
        references => format!("{query} AND {} IS NULL", holder(references)),
    };
    let statement = sqlx::query(AssertSqlSafe(query)).bind(before.as_millisecond());
    let number = connections.reader().await?.optional(statement, |row| row.try_get(0)).await?;
    Ok(to_count(number.unwrap_or_default()))
}

/// Rows that this connection has written until now, and commits of others that it has seen.
const WRITTEN: &str = "-- cleanup.written
    SELECT total_changes() + (SELECT data_version FROM pragma_data_version)";

/// Tries of a step while the application changes the schema.
const TRIES: u32 = 10;

pub(super) async fn clean(
    connections: &Connections,
    what: Cleanup,
    before: Timestamp,
    from: i64,
    limit: u32,
) -> Result<Step, StoreError> {
    match remove(connections, what, before, from, limit).await {
        // A trigger of the application refuses one of them.
        Err(StoreError::Refused(_)) if what == Cleanup::Messages => {
            remove_by_halves(connections, before, from, limit).await
        }
        done => done,
    }
}

/// Removes messages of which the application refuses some: in smaller parts, down to one message, so that what is refused
/// stays, and the others go.
async fn remove_by_halves(
    connections: &Connections,
    before: Timestamp,
    from: i64,
    limit: u32,
) -> Result<Step, StoreError> {
    let mut all = Step { next: Some(from), ..Step::default() };
    let mut left = limit;
    let mut size = limit.div_ceil(2);
    while let Some(from) = all.next.filter(|_| left > 0) {
        match remove(connections, Cleanup::Messages, before, from, size.min(left)).await {
            Ok(step) => {
                left -= size.min(left);
                size = size.saturating_mul(2);
                all.changed += step.changed;
                all.next = step.next;
                all.kept.extend(step.kept);
                let begun = all.writes.or(step.writes);
                all.writes = begun.zip(step.writes).map(|(begun, now)| Writes { after: now.after, ..begun });
            }
            Err(StoreError::Refused(_)) if size.min(left) > 1 => size = size.min(left) / 2,
            Err(StoreError::Refused(why)) => {
                left -= 1;
                all.kept.push(Kept { by: format!("an error of the application's: {why}"), rows: 1 });
                let query = "-- cleanup.refused_message
                    SELECT min(seq) FROM laneway_message WHERE seq > ?";
                let mut reader = connections.reader().await?;
                let found: Option<Option<i64>> =
                    reader.optional(sqlx::query(query).bind(from), |row| row.try_get(0)).await?;
                all.next = found.flatten();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// One step, in one transaction.
async fn remove(
    connections: &Connections,
    what: Cleanup,
    before: Timestamp,
    from: i64,
    limit: u32,
) -> Result<Step, StoreError> {
    let mut references = connections.known_references();
    for _ in 0..TRIES {
        if let Some(step) = try_to_remove(connections, &references, what, before, from, limit).await? {
            return Ok(step);
        }
        references = connections.read_references().await?;
    }
    Err(StoreError::Unavailable("the schema of the database changes all the time".to_owned()))
}

/// What a step did, and what it has read on its way.
#[derive(Default)]
struct Removed {
    changed: u64,
    /// How many rows the step looks at, the last of them, and whether later ones may be old enough: rows are about in
    /// the order of their times, and none is out of it by more than a day.
    rows: (i64, Option<i64>, bool),
    /// How many rows each foreign key holds, by its place.
    held: Vec<(i64, i64)>,
}

impl Removed {
    fn look(&mut self, native: &mut Native<'_>, query: &'static str, part: Part) -> Result<(), StoreError> {
        native.statement(query)?.each(&[part.before.into(), part.from.into(), part.limit.into()], |row| {
            let last = (!row.is_null(1)).then(|| row.integer(1));
            self.rows = (row.integer(0), last, row.integer(2) == 1);
        })?;
        Ok(())
    }
}

/// What a step is asked to remove: rows of before this time, of so many behind this number.
#[derive(Clone, Copy)]
struct Part {
    before: i64,
    from: i64,
    limit: u32,
}

/// One step, in one transaction; `None`, and nothing done, if the schema is not the one that the foreign keys were read
/// from.
async fn try_to_remove(
    connections: &Connections,
    references: &Arc<References>,
    what: Cleanup,
    before: Timestamp,
    from: i64,
    limit: u32,
) -> Result<Option<Step>, StoreError> {
    let part = Part { before: before.as_millisecond(), from, limit };
    let of = Arc::clone(references);
    let removed = connections.write(Durability::Buffered, move |native| {
        let schema = "-- cleanup.schema
            SELECT schema_version FROM pragma_schema_version";
        if native.number(schema, &[])? != of.schema_version {
            return Ok(None);
        }
        let begun = to_count(native.number(WRITTEN, &[])?);
        let references = of.to(table(what));
        let removed = match what {
            Cleanup::Messages => messages(native, references, part)?,
            Cleanup::DeadLetters => dead_letters(native, references, part)?,
            Cleanup::Markers => markers(native, references, part)?,
            Cleanup::ScheduleRuns => schedule_runs(native, part)?,
        };
        let ended = to_count(native.number(WRITTEN, &[])?);
        Ok(Some((removed, Writes { before: begun, after: ended, exclusive: true })))
    });
    let Some((removed, writes)) = removed.await? else { return Ok(None) };
    let (rows, last, more) = removed.rows;
    let next = match what {
        Cleanup::Messages | Cleanup::DeadLetters => last.filter(|_| rows >= i64::from(limit) && more),
        // Any number: the next step looks for the oldest again. It is not the first one.
        Cleanup::Markers => (removed.changed >= u64::from(limit)).then_some(1),
        Cleanup::ScheduleRuns => (removed.changed >= u64::from(limit)).then_some(0),
    };
    let references = references.to(table(what));
    let kept = removed.held.iter().filter_map(|(place, rows)| {
        let reference = references.get(usize::try_from(*place).ok()?)?;
        Some(Kept { by: reference.named.clone(), rows: to_count(*rows) })
    });
    Ok(Some(Step { changed: removed.changed, next, writes: Some(writes), kept: kept.collect() }))
}

/// The next rows by their numbers, of a table and its columns.
macro_rules! part {
    ($table:literal, $number:literal, $columns:literal) => {
        concat!(
            "FROM (SELECT ",
            $columns,
            " FROM ",
            $table,
            " WHERE ",
            $number,
            " > ? ORDER BY ",
            $number,
            " LIMIT ? + 0) r"
        )
    };
}

fn messages(native: &mut Native<'_>, references: &[Reference], part: Part) -> Result<Removed, StoreError> {
    macro_rules! old {
        () => {
            concat!(" WHERE max(r.created_at, coalesce(r.available_at, 0)) < ? AND ", settled!())
        };
    }
    macro_rules! remove {
        ($columns:literal, $end:literal) => {
            concat!(
                "-- cleanup.clean_messages
                DELETE FROM laneway_message WHERE seq IN (SELECT r.seq ",
                part!("laneway_message", "seq", $columns),
                old!(),
                $end
            )
        };
    }
    let look = concat!(
        "-- cleanup.look_at_messages
        SELECT count(*), max(r.seq), min(r.created_at) < ? + 86400000 ",
        part!("laneway_message", "seq", "seq, created_at, available_at")
    );
    let mut removed = Removed::default();
    removed.look(native, look, part)?;
    let values = [part.from.into(), part.limit.into(), part.before.into()];
    let mut remove = Cow::Borrowed(remove!("seq, created_at, available_at", ")"));
    if !references.is_empty() {
        let holder = holder(references);
        let held = format!(
            "-- cleanup.held_messages
            SELECT h.place, count(*) FROM (SELECT {holder} AS place {}{}) h WHERE h.place IS NOT NULL GROUP BY h.place",
            part!("laneway_message", "seq", "*"),
            old!()
        );
        let mut held = native.prepare(held)?;
        held.each(&values, |row| removed.held.push((row.integer(0), row.integer(1))))?;
        remove = Cow::Owned(format!("{} AND {holder} IS NULL)", remove!("*", "")));
    }
    removed.changed = native.prepare(remove)?.run(&values)?;
    Ok(removed)
}

fn dead_letters(native: &mut Native<'_>, references: &[Reference], part: Part) -> Result<Removed, StoreError> {
    macro_rules! old {
        () => {
            concat!(part!("laneway_dead_letter", "id", "*"), " WHERE r.failed_at < ?")
        };
    }
    macro_rules! remove {
        ($end:literal) => {
            concat!(
                "-- cleanup.clean_dead_letters
                DELETE FROM laneway_dead_letter WHERE id IN (SELECT r.id ",
                old!(),
                $end
            )
        };
    }
    let look = concat!(
        "-- cleanup.look_at_dead_letters
        SELECT count(*), max(r.id), min(r.failed_at) < ? + 86400000 ",
        part!("laneway_dead_letter", "id", "id, failed_at")
    );
    let mut removed = Removed::default();
    removed.look(native, look, part)?;
    let values = [part.from.into(), part.limit.into(), part.before.into()];
    let mut remove = Cow::Borrowed(remove!(")"));
    if !references.is_empty() {
        let holder = holder(references);
        let held = format!(
            "-- cleanup.held_dead_letters
            SELECT h.place, count(*) FROM (SELECT {holder} AS place {}) h WHERE h.place IS NOT NULL GROUP BY h.place",
            old!()
        );
        let mut held = native.prepare(held)?;
        held.each(&values, |row| removed.held.push((row.integer(0), row.integer(1))))?;
        remove = Cow::Owned(format!("{} AND {holder} IS NULL)", remove!("")));
    }
    removed.changed = native.prepare(remove)?.run(&values)?;
    Ok(removed)
}

/// The index leads to the oldest: nothing dead is left in it. What foreign keys hold is counted at the first step.
fn markers(native: &mut Native<'_>, references: &[Reference], part: Part) -> Result<Removed, StoreError> {
    macro_rules! remove {
        ($free:literal) => {
            concat!(
                "-- cleanup.clean_markers
                DELETE FROM laneway_marker WHERE (subscription_id, message_id) IN (
                    SELECT r.subscription_id, r.message_id FROM laneway_marker r
                    WHERE r.processed_at < ?",
                $free,
                " ORDER BY r.processed_at LIMIT ? + 0)"
            )
        };
    }
    let mut removed = Removed::default();
    let mut remove = Cow::Borrowed(remove!(""));
    if !references.is_empty() {
        let holder = holder(references);
        if part.from == 0 {
            let held = format!(
                "-- cleanup.held_markers
                SELECT h.place, count(*) FROM (SELECT {holder} AS place FROM laneway_marker r WHERE r.processed_at < ?) h
                WHERE h.place IS NOT NULL GROUP BY h.place"
            );
            let mut held = native.prepare(held)?;
            held.each(&[part.before.into()], |row| removed.held.push((row.integer(0), row.integer(1))))?;
        }
        remove = Cow::Owned(format!(remove!(" AND {} IS NULL"), holder));
    }
    removed.changed = native.prepare(remove)?.run(&[part.before.into(), part.limit.into()])?;
    Ok(removed)
}

fn schedule_runs(native: &mut Native<'_>, part: Part) -> Result<Removed, StoreError> {
    let remove = concat!(
        "-- cleanup.clean_schedule_runs
        DELETE FROM laneway_schedule_run WHERE (schedule, fire_at) IN (
            SELECT r.schedule, r.fire_at ",
        old_runs!(),
        " LIMIT ? + 0)"
    );
    let changed = native.run(remove, &[part.before.into(), part.limit.into()])?;
    Ok(Removed { changed, ..Removed::default() })
}
