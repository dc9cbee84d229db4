//! Removing what is over its retention.

use jiff::Timestamp;
use laneway_core::{Cleanup, Kept, Step, Writes};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::connection::{Database, Outcome, Session, Transaction, count, unreadable};
use super::references::{Reference, holder, is_referenced, references};

/// The table that a cleanup removes rows of.
fn table(what: Cleanup) -> &'static str {
    match what {
        Cleanup::Messages => "laneway.message",
        Cleanup::Markers => "laneway.marker",
        Cleanup::DeadLetters => "laneway.dead_letter",
        Cleanup::ScheduleRuns => "laneway.schedule_run",
    }
}

pub(super) async fn cleanable(database: &Database, what: Cleanup, before: Timestamp) -> Outcome<u64> {
    let query = match what {
        Cleanup::Messages => {
            "-- cleanup.cleanable_messages
            WITH held AS MATERIALIZED (
                SELECT u.message_seq
                FROM laneway.lease l CROSS JOIN LATERAL unnest(l.message_seqs) WITH ORDINALITY AS u(message_seq, place)
                WHERE get_bit(l.open, u.place::integer - 1) = 1
            )
            SELECT count(*) FROM laneway.message r
            WHERE greatest(r.created_at, r.available_at) < $1::timestamptz
                AND NOT EXISTS (SELECT FROM laneway.delivery d WHERE d.message_seq = r.seq)
                AND NOT EXISTS (SELECT FROM laneway.dead_letter f WHERE f.message_seq = r.seq)
                AND NOT EXISTS (SELECT FROM laneway.never_routed n WHERE n.message_seq = r.seq)
                AND r.seq NOT IN (SELECT h.message_seq FROM held h)"
        }
        Cleanup::Markers => {
            "-- cleanup.cleanable_markers
            SELECT count(*) FROM laneway.marker r WHERE r.processed_at < $1::timestamptz"
        }
        Cleanup::DeadLetters => {
            "-- cleanup.cleanable_dead_letters
            SELECT count(*) FROM laneway.dead_letter r WHERE r.failed_at < $1::timestamptz"
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
    let mut session = database.connection().await?;
    let holders = match what {
        // Nobody has reason to refer to them.
        Cleanup::ScheduleRuns => Vec::new(),
        _ => references(&mut session, table(what)).await?,
    };
    let mut query = query.to_owned();
    if !holders.is_empty() {
        query.push_str(&format!(" AND ({}) IS NULL", holder(&holders)));
    }
    let row = session.one(sqlx::query(AssertSqlSafe(query)).bind(before.to_string())).await?;
    count(&row, 0)
}

/// Transactions that have written to the server until now, this one not among them: the next number of a transaction.
macro_rules! written {
    () => {
        "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    };
}

/// What a step that took so many numbers of transactions says of all that is written.
fn writes(row: &PgRow, ours: u64) -> Outcome<Option<Writes>> {
    let before = count(row, 5)?;
    Ok(Some(Writes { before, after: before + ours, exclusive: false }))
}

/// Rows are about in the order of their times; none is out of it by more than this.
macro_rules! slack {
    () => {
        "interval '1 day'"
    };
}

/// Stands in a statement for the condition that no foreign key holds row `r`.
const IS_FREE: &str = "/* no foreign key holds it */ true";

pub(super) async fn clean(
    database: &Database,
    what: Cleanup,
    before: Timestamp,
    from: i64,
    limit: u32,
) -> Outcome<Step> {
    // Each answers the rows removed, the rows looked at, where the next step begins, whether later rows may be old
    // enough, and what was written by all. Nobody waits for its commit to be flushed: what a crash brings back is
    // removed by the next run, and with hundreds of flushes a second the commits of others would have to queue.
    let query = match what {
        Cleanup::Messages => return clean_messages(database, before, from, limit).await,
        // The index leads to the oldest. Beginning where the last step ended, it does not step over what is dead and
        // not yet vacuumed.
        Cleanup::Markers => concat!(
            "-- cleanup.clean_markers
            WITH gone AS (
                DELETE FROM laneway.marker k WHERE k.ctid = ANY (ARRAY(
                    SELECT r.ctid FROM laneway.marker r
                    WHERE r.processed_at >= 'epoch'::timestamptz + $2::bigint * interval '1 microsecond'
                        AND r.processed_at < $1::timestamptz AND /* no foreign key holds it */ true
                    ORDER BY r.processed_at LIMIT $3 FOR UPDATE SKIP LOCKED
                )) RETURNING k.processed_at
            )
            SELECT count(*), count(*), (extract(epoch FROM max(processed_at)) * 1000000)::bigint, true,
                set_config('synchronous_commit', 'off', true), ",
            written!(),
            " FROM gone"
        ),
        Cleanup::DeadLetters => concat!(
            "-- cleanup.clean_dead_letters
            WITH part AS MATERIALIZED (
                SELECT f.id, f.failed_at FROM laneway.dead_letter f WHERE f.id > $2 ORDER BY f.id LIMIT $3
            ), gone AS (
                DELETE FROM laneway.dead_letter r USING part p
                WHERE r.id = p.id AND p.failed_at < $1::timestamptz AND /* no foreign key holds it */ true
                RETURNING r.id
            )
            SELECT (SELECT count(*) FROM gone), count(*), max(p.id), min(p.failed_at) < $1::timestamptz + ",
            slack!(),
            ", set_config('synchronous_commit', 'off', true), ",
            written!(),
            " FROM part p"
        ),
        Cleanup::ScheduleRuns => concat!(
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
            SELECT count(*), count(*), 0::bigint, true, set_config('synchronous_commit', 'off', true), ",
            written!(),
            " FROM gone"
        ),
    };
    let mut session = database.connection().await?;
    let mut query = query.to_owned();
    let mut kept = Vec::new();
    if query.contains(IS_FREE) {
        let references = references(&mut session, table(what)).await?;
        if !references.is_empty() {
            query = query.replace(IS_FREE, &format!("({}) IS NULL", holder(&references)));
            if from == 0 {
                kept = held(&mut session, what, before, &references).await?;
            }
        }
    }
    let statement = sqlx::query(AssertSqlSafe(query)).bind(before.to_string()).bind(from).bind(i64::from(limit));
    let row = session.one(statement).await?;
    let more = count(&row, 1)? >= u64::from(limit) && row.try_get::<Option<bool>, _>(3)?.unwrap_or_default();
    let changed = count(&row, 0)?;
    let next = row.try_get::<Option<i64>, _>(2)?.filter(|_| more);
    // A change of nothing takes no number.
    Ok(Step { changed, next, writes: writes(&row, u64::from(changed > 0))?, kept })
}

/// How many rows that are old enough the foreign keys hold. Counted once a run, and only where there are such keys.
async fn held(
    session: &mut impl Session,
    what: Cleanup,
    before: Timestamp,
    references: &[Reference],
) -> Outcome<Vec<Kept>> {
    let time = if what == Cleanup::Markers { "processed_at" } else { "failed_at" };
    let query = format!(
        "-- cleanup.held
        SELECT h.place, count(*) FROM (
            SELECT {} AS place FROM {} r WHERE r.{time} < $1::timestamptz
        ) h WHERE h.place IS NOT NULL GROUP BY h.place ORDER BY h.place",
        holder(references),
        table(what)
    );
    let rows = session.all(sqlx::query(AssertSqlSafe(query)).bind(before.to_string())).await?;
    rows.iter()
        .map(|row| {
            let place = usize::try_from(row.try_get::<i32, _>(0)?).map_err(unreadable)?;
            let by = references.get(place).ok_or_else(|| unreadable("a foreign key is not known"))?.named.clone();
            Ok(Kept { by, rows: count(row, 1)? })
        })
        .collect()
}

/// How messages are removed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removal {
    /// All in one statement: one that may not go stops all.
    Together,
    /// Each by itself, so that one that may not go holds up no other.
    Singly,
}

async fn clean_messages(database: &Database, before: Timestamp, from: i64, limit: u32) -> Outcome<Step> {
    match remove_messages(database, before, from, limit, Removal::Together).await {
        Err(error) if is_refusal(&error) => remove_messages(database, before, from, limit, Removal::Singly).await,
        done => done,
    }
}

/// Whether a message may not go, by the rules of the application: a constraint, or a trigger that raises. All else is
/// no fault of the message's, and fails the cleanup.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| {
        !["08", "25", "28", "3D", "40", "42", "53", "54", "55", "57", "58", "F0", "XX"].iter().any(|class| code.starts_with(class))
            // A trigger or a foreign key's check that lacks a right.
            || code == "42501"
    })
}

/// Removes messages. They are locked first: a replay that owes one of them again has then either committed, and the
/// second statement sees its delivery, or waits, and finds the message gone. An application that refers to one does the
/// same.
async fn remove_messages(
    database: &Database,
    before: Timestamp,
    from: i64,
    limit: u32,
    removal: Removal,
) -> Outcome<Step> {
    let mut transaction = database.begin().await?;
    match remove_within(&mut transaction, before, from, limit, removal).await {
        Ok(step) => {
            transaction.commit().await?;
            Ok(step)
        }
        Err(error) => {
            // At once, not when the connection is used again: until then its locks hide the messages from who tries next.
            if let Err(error) = transaction.roll_back().await {
                tracing::debug!(%error, "failed to roll a cleanup back");
            }
            Err(error)
        }
    }
}

async fn remove_within(
    transaction: &mut Transaction,
    before: Timestamp,
    from: i64,
    limit: u32,
    removal: Removal,
) -> Outcome<Step> {
    let mut references = Vec::new();
    let mut row = transaction.one(bind(lock(None), before, from, limit)).await?;
    if row.try_get::<Option<bool>, _>(6)?.unwrap_or_default() {
        references = super::references::references(transaction, table(Cleanup::Messages)).await?;
        row = transaction.one(bind(lock(Some(&references)), before, from, limit)).await?;
    }
    let locked: Vec<i64> = row.try_get(0)?;
    let mut kept: Vec<Kept> = references
        .iter()
        .zip(row.try_get::<Vec<i64>, _>(7)?)
        .filter(|(_, rows)| *rows > 0)
        .map(|(reference, rows)| Kept { by: reference.named.clone(), rows: rows.cast_unsigned() })
        .collect();
    // A lock takes a number of a transaction, and each message that is removed by itself may take one.
    let mut ours = u64::from(!locked.is_empty());
    let changed = match (removal, locked.first(), locked.last()) {
        (_, None, _) | (_, _, None) => 0,
        (Removal::Together, Some(first), Some(last)) => {
            let (first, last) = (*first, *last);
            let query = remove(&references);
            let statement = sqlx::query(AssertSqlSafe(query)).bind(locked).bind(first).bind(last);
            count(&transaction.one(statement).await?, 0)?
        }
        (Removal::Singly, ..) => {
            ours += locked.len() as u64;
            let (removed, refused) = remove_singly(transaction, locked).await?;
            kept.extend(refused);
            removed
        }
    };
    let more = count(&row, 1)? >= u64::from(limit) && row.try_get::<Option<bool>, _>(3)?.unwrap_or_default();
    let next = row.try_get::<Option<i64>, _>(2)?.filter(|_| more);
    Ok(Step { changed, next, writes: writes(&row, ours)?, kept })
}

fn bind<'q>(query: String, before: Timestamp, from: i64, limit: u32) -> super::connection::Statement<'q> {
    sqlx::query(AssertSqlSafe(query)).bind(before.to_string()).bind(from).bind(i64::from(limit))
}

/// Locks what may go of the next messages. Where foreign keys refer to messages and nobody has looked for them yet, it
/// locks nothing, and says so in its seventh column. What they hold is not locked, only counted, for each of them: as locks are
/// written to the disk, that would be work for each message in each run.
fn lock(references: Option<&[Reference]>) -> String {
    let is_new = if references.is_none() { is_referenced!("laneway.message") } else { "false" };
    let references = references.unwrap_or_default();
    let counts: Vec<String> = (0..references.len())
        .map(|place| format!("(SELECT count(*) FROM settled s WHERE s.holder = {place})"))
        .collect();
    format!(
        concat!(
            "-- cleanup.lock_old_messages
            WITH part AS MATERIALIZED (
                SELECT m.seq, m.created_at, greatest(m.created_at, m.available_at) < $1::timestamptz AS old
                FROM laneway.message m WHERE m.seq > $2 ORDER BY m.seq LIMIT $3
            ), referenced AS MATERIALIZED (
                SELECT {is_new} AS is_new
            ), settled AS MATERIALIZED (
                SELECT p.seq, {holder} AS holder FROM part p {joined}
                WHERE p.old AND NOT (SELECT q.is_new FROM referenced q)
                    AND NOT EXISTS (SELECT FROM laneway.delivery d WHERE d.message_seq = p.seq)
                    AND NOT EXISTS (SELECT FROM laneway.dead_letter f WHERE f.message_seq = p.seq)
                    AND NOT EXISTS (SELECT FROM laneway.never_routed n WHERE n.message_seq = p.seq)
            ), locked AS MATERIALIZED (
                SELECT m.seq FROM settled s JOIN laneway.message m ON m.seq = s.seq WHERE s.holder IS NULL
                ORDER BY m.seq FOR UPDATE OF m SKIP LOCKED
            )
            SELECT coalesce((SELECT array_agg(l.seq) FROM locked l), '{{}}'), count(*), max(p.seq),
                min(p.created_at) < $1::timestamptz + ",
            slack!(),
            ", set_config('synchronous_commit', 'off', true), ",
            written!(),
            ", (SELECT q.is_new FROM referenced q), ARRAY[{counts}]::bigint[]
            FROM part p"
        ),
        is_new = is_new,
        holder = holder(references),
        joined = if references.is_empty() { "" } else { "JOIN laneway.message r ON r.seq = p.seq" },
        counts = counts.join(", "),
    )
}

/// Removes of what is locked that which nobody owes, nor refers to, by now.
fn remove(references: &[Reference]) -> String {
    format!(
        "-- cleanup.clean_messages
        WITH held AS MATERIALIZED (
            SELECT u.message_seq
            FROM laneway.lease l CROSS JOIN LATERAL unnest(l.message_seqs) WITH ORDINALITY AS u(message_seq, place)
            WHERE l.message_seq_max >= $2 AND l.message_seq_min <= $3
                AND get_bit(l.open, u.place::integer - 1) = 1
        ), gone AS (
            DELETE FROM laneway.message r USING unnest($1::bigint[]) AS p(seq)
            WHERE r.seq = p.seq
                AND NOT EXISTS (SELECT FROM laneway.delivery d WHERE d.message_seq = p.seq)
                AND NOT EXISTS (SELECT FROM laneway.dead_letter f WHERE f.message_seq = p.seq)
                AND p.seq NOT IN (SELECT h.message_seq FROM held h)
                AND {} IS NULL
            RETURNING r.seq
        )
        SELECT count(*) FROM gone",
        holder(references)
    )
}

/// Removes what is locked one by one, within the transaction. Answers how many, and what kept the others.
async fn remove_singly(transaction: &mut Transaction, locked: Vec<i64>) -> Outcome<(u64, Vec<Kept>)> {
    let query = "-- cleanup.clean_messages_singly
        SELECT r.removed, r.refused_by, r.refused FROM laneway.remove_messages_singly($1) r";
    let row = transaction.one(sqlx::query(query).bind(locked)).await?;
    let (by, rows): (Vec<String>, Vec<i64>) = (row.try_get(1)?, row.try_get(2)?);
    let kept = by.into_iter().zip(rows).map(|(by, rows)| Kept { by, rows: rows.cast_unsigned() }).collect();
    Ok((count(&row, 0)?, kept))
}
