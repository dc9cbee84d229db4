//! Runs of schedules: each time once.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use laneway_core::{
    Declared, Name, NewMessage, RunOutcome, SchedulePosition, ScheduleRunView, ScheduleRuns, StoreError,
};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::connection::{Database, Instant, Outcome, Session, classify, microseconds, unreadable};
use super::{PostgresStore, enqueue};

#[async_trait]
impl ScheduleRuns for PostgresStore {
    async fn declare_schedule(
        &self,
        schedule: &Name,
        rule: &str,
        node: &Name,
        alive_for: Duration,
    ) -> Result<Declared, StoreError> {
        declare(self.database(), schedule, rule, node, alive_for).await.map_err(classify)
    }

    async fn schedule_position(&self, schedule: &Name) -> Result<Option<SchedulePosition>, StoreError> {
        position(self.database(), schedule).await.map_err(classify)
    }

    async fn begin_run(
        &self,
        schedule: &Name,
        rule: Option<&str>,
        fire_at: Timestamp,
        node: &Name,
        message: Option<&NewMessage>,
    ) -> Result<bool, StoreError> {
        begin(self.database(), schedule, rule, fire_at, node, message).await.map_err(classify)
    }

    async fn end_run(
        &self,
        schedule: &Name,
        fire_at: Timestamp,
        outcome: RunOutcome,
        detail: &str,
    ) -> Result<(), StoreError> {
        end(self.database(), schedule, fire_at, outcome, detail).await.map_err(classify)
    }

    async fn schedule_runs(&self, schedule: &Name, limit: u32) -> Result<Vec<ScheduleRunView>, StoreError> {
        runs(self.database(), schedule, limit).await.map_err(classify)
    }
}

/// A rule that no node has had for longer is new when it comes again.
macro_rules! rules_kept {
    () => {
        "interval '7 days'"
    };
}

/// The condition that the node of holder `h` lives. `alive_for` is bound as the parameter that is named.
macro_rules! lives {
    ($alive_for:literal) => {
        concat!(
            "EXISTS (SELECT FROM laneway.node n WHERE n.name = h.node
                AND n.seen_at > now() - ",
            $alive_for,
            "::bigint * interval '1 microsecond')"
        )
    };
}

async fn declare(
    database: &Database,
    schedule: &Name,
    rule: &str,
    node: &Name,
    alive_for: Duration,
) -> Outcome<Declared> {
    let mut transaction = database.begin().await?;
    let query = "-- schedule.first
        INSERT INTO laneway.schedule (name, rule) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    transaction.execute(sqlx::query(query).bind(schedule.as_str()).bind(rule)).await?;
    // Who declares lives, although its first sign of life may be under way.
    let query = "-- schedule.alive
        INSERT INTO laneway.node (name, seen_at) VALUES ($1, now()) ON CONFLICT (name) DO NOTHING";
    transaction.execute(sqlx::query(query).bind(node.as_str())).await?;
    // From here on one node decides after the other.
    let query = "-- schedule.declared
        SELECT s.rule, s.since FROM laneway.schedule s WHERE s.name = $1 FOR UPDATE";
    let row = transaction.one(sqlx::query(query).bind(schedule.as_str())).await?;
    let (holds, since): (String, Instant) = (row.try_get(0)?, row.try_get(1)?);
    let query = concat!(
        "-- schedule.holders
        SELECT EXISTS (SELECT FROM laneway.schedule_holder h WHERE h.schedule = $1 AND h.rule = $2
                AND (h.held_at > now() - ",
        rules_kept!(),
        " OR ",
        lives!("$4"),
        ")),
            EXISTS (SELECT FROM laneway.schedule_holder h WHERE h.schedule = $1 AND h.rule = $3 AND ",
        lives!("$4"),
        ")"
    );
    let statement =
        sqlx::query(query).bind(schedule.as_str()).bind(rule).bind(holds.as_str()).bind(microseconds(alive_for));
    let row = transaction.one(statement).await?;
    let (is_known, is_held): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let query = concat!(
        "-- schedule.hold
        WITH forgotten AS (
            DELETE FROM laneway.schedule_holder h WHERE h.schedule = $1 AND h.node <> $3
                AND h.held_at < now() - ",
        rules_kept!(),
        " AND NOT ",
        lives!("$4"),
        "
        )
        INSERT INTO laneway.schedule_holder AS h (schedule, node, rule) VALUES ($1, $3, $2)
        ON CONFLICT (schedule, node) DO UPDATE SET rule = excluded.rule, held_at = now() WHERE h.rule <> excluded.rule"
    );
    let statement =
        sqlx::query(query).bind(schedule.as_str()).bind(rule).bind(node.as_str()).bind(microseconds(alive_for));
    transaction.execute(statement).await?;
    let declared = if holds == rule {
        Declared::Ours { before: None }
    } else if is_known && is_held {
        Declared::Theirs { rule: holds, since: since.timestamp()? }
    } else {
        let query = "-- schedule.declare
            UPDATE laneway.schedule SET rule = $2, since = now() WHERE name = $1";
        transaction.execute(sqlx::query(query).bind(schedule.as_str()).bind(rule)).await?;
        Declared::Ours { before: Some(holds) }
    };
    transaction.commit().await?;
    Ok(declared)
}

async fn position(database: &Database, schedule: &Name) -> Outcome<Option<SchedulePosition>> {
    let query = "-- schedule.position
        SELECT s.rule, s.since, (SELECT max(r.fire_at) FROM laneway.schedule_run r
            WHERE r.schedule = s.name AND r.fire_at <= now())
        FROM laneway.schedule s WHERE s.name = $1";
    let row = database.connection().await?.optional(sqlx::query(query).bind(schedule.as_str())).await?;
    row.map(|row| {
        let since = row.try_get::<Instant, _>(1)?.timestamp()?;
        Ok(SchedulePosition { rule: row.try_get(0)?, since, last: time(&row, 2)? })
    })
    .transpose()
}

fn time(row: &PgRow, column: usize) -> Outcome<Option<Timestamp>> {
    row.try_get::<Option<Instant>, _>(column)?.map(Instant::timestamp).transpose()
}

async fn begin(
    database: &Database,
    schedule: &Name,
    rule: Option<&str>,
    fire_at: Timestamp,
    node: &Name,
    message: Option<&NewMessage>,
) -> Outcome<bool> {
    // The rule is held, so that no other is declared before this run is there to be seen.
    let query = "-- schedule.begin
        WITH held AS MATERIALIZED (
            SELECT s.name FROM laneway.schedule s WHERE s.name = $1 AND s.rule = $5 FOR SHARE
        )
        INSERT INTO laneway.schedule_run (schedule, fire_at, node, ended_at, outcome, detail)
        SELECT $1, $2::timestamptz, $3, CASE WHEN $4::text IS NOT NULL THEN now() END,
            CASE WHEN $4::text IS NOT NULL THEN 'done' END, 'message ' || $4
        WHERE $5::text IS NULL OR EXISTS (SELECT FROM held)
        ON CONFLICT (schedule, fire_at) DO NOTHING
        RETURNING true";
    let mut transaction = database.begin().await?;
    let statement = sqlx::query(query)
        .bind(schedule.as_str())
        .bind(fire_at.to_string())
        .bind(node.as_str())
        .bind(message.map(|message| message.id.as_str()))
        .bind(rule);
    if transaction.optional(statement).await?.is_none() {
        transaction.roll_back().await?;
        return Ok(false);
    }
    if let Some(message) = message {
        enqueue::insert(&mut transaction, &[message]).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

async fn end(
    database: &Database,
    schedule: &Name,
    fire_at: Timestamp,
    outcome: RunOutcome,
    detail: &str,
) -> Outcome<()> {
    let query = "-- schedule.end
        UPDATE laneway.schedule_run SET ended_at = now(), outcome = $3, detail = $4
        WHERE schedule = $1 AND fire_at = $2::timestamptz";
    let statement =
        sqlx::query(query).bind(schedule.as_str()).bind(fire_at.to_string()).bind(outcome.as_str()).bind(detail);
    database.connection().await?.execute(statement).await
}

async fn runs(database: &Database, schedule: &Name, limit: u32) -> Outcome<Vec<ScheduleRunView>> {
    let query = "-- schedule.runs
        SELECT fire_at, node, started_at, ended_at, outcome, detail FROM laneway.schedule_run
        WHERE schedule = $1 ORDER BY fire_at DESC LIMIT $2";
    let statement = sqlx::query(query).bind(schedule.as_str()).bind(i64::from(limit));
    let rows = database.connection().await?.all(statement).await?;
    rows.iter()
        .map(|row| {
            let needed = |column| time(row, column)?.ok_or_else(|| unreadable("a run has no time"));
            Ok(ScheduleRunView {
                schedule: schedule.clone(),
                fire_at: needed(0)?,
                node: row.try_get(1)?,
                started_at: needed(2)?,
                ended_at: time(row, 3)?,
                outcome: row.try_get(4)?,
                detail: row.try_get(5)?,
            })
        })
        .collect()
}
