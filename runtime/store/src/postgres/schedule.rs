//! Runs of schedules: each time once.

use async_trait::async_trait;
use jiff::Timestamp;
use laneway_core::{Name, NewMessage, RunOutcome, SchedulePosition, ScheduleRunView, ScheduleRuns, StoreError};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::connection::{Database, Instant, Outcome, Session, classify, unreadable};
use super::{PostgresStore, enqueue};

#[async_trait]
impl ScheduleRuns for PostgresStore {
    async fn declare_schedule(&self, schedule: &Name, rule: &str) -> Result<Option<String>, StoreError> {
        declare(self.database(), schedule, rule).await.map_err(classify)
    }

    async fn schedule_position(&self, schedule: &Name) -> Result<Option<SchedulePosition>, StoreError> {
        position(self.database(), schedule).await.map_err(classify)
    }

    async fn begin_run(
        &self,
        schedule: &Name,
        fire_at: Timestamp,
        node: &Name,
        message: Option<&NewMessage>,
    ) -> Result<bool, StoreError> {
        begin(self.database(), schedule, fire_at, node, message).await.map_err(classify)
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

async fn declare(database: &Database, schedule: &Name, rule: &str) -> Outcome<Option<String>> {
    let query = "-- schedule.declare
        WITH before AS MATERIALIZED (SELECT s.rule FROM laneway.schedule s WHERE s.name = $1),
        declared AS (
            INSERT INTO laneway.schedule AS s (name, rule) VALUES ($1, $2)
            ON CONFLICT (name) DO UPDATE SET rule = excluded.rule, since = now() WHERE s.rule <> excluded.rule
            RETURNING 1
        )
        SELECT b.rule FROM before b CROSS JOIN declared";
    let statement = sqlx::query(query).bind(schedule.as_str()).bind(rule);
    database.connection().await?.optional(statement).await?.map(|row| row.try_get(0)).transpose()
}

async fn position(database: &Database, schedule: &Name) -> Outcome<Option<SchedulePosition>> {
    let query = "-- schedule.position
        SELECT s.since, (SELECT max(r.fire_at) FROM laneway.schedule_run r
            WHERE r.schedule = s.name AND r.fire_at <= now())
        FROM laneway.schedule s WHERE s.name = $1";
    let row = database.connection().await?.optional(sqlx::query(query).bind(schedule.as_str())).await?;
    row.map(|row| Ok(SchedulePosition { since: row.try_get::<Instant, _>(0)?.timestamp()?, last: time(&row, 1)? }))
        .transpose()
}

fn time(row: &PgRow, column: usize) -> Outcome<Option<Timestamp>> {
    row.try_get::<Option<Instant>, _>(column)?.map(Instant::timestamp).transpose()
}

async fn begin(
    database: &Database,
    schedule: &Name,
    fire_at: Timestamp,
    node: &Name,
    message: Option<&NewMessage>,
) -> Outcome<bool> {
    let query = "-- schedule.begin
        INSERT INTO laneway.schedule_run (schedule, fire_at, node, ended_at, outcome, detail)
        VALUES ($1, $2::timestamptz, $3, CASE WHEN $4::text IS NOT NULL THEN now() END,
            CASE WHEN $4::text IS NOT NULL THEN 'done' END, 'message ' || $4)
        ON CONFLICT (schedule, fire_at) DO NOTHING
        RETURNING true";
    let mut transaction = database.begin().await?;
    let statement = sqlx::query(query)
        .bind(schedule.as_str())
        .bind(fire_at.to_string())
        .bind(node.as_str())
        .bind(message.map(|message| message.id.as_str()));
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
