//! Runs of schedules: each time once.

use async_trait::async_trait;
use jiff::Timestamp;
use laneway_core::{Name, NewMessage, RunOutcome, SchedulePosition, ScheduleRunView, ScheduleRuns, StoreError};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::connection::now_ms;
use super::writer::{Durability, Ran, Script};
use super::{SqliteStore, enqueue};

fn timestamp(millis: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_millisecond(millis).map_err(|error| sqlx::Error::Decode(error.into()))
}

fn time(row: &SqliteRow, column: usize) -> Result<Option<Timestamp>, sqlx::Error> {
    row.try_get::<Option<i64>, _>(column)?.map(timestamp).transpose()
}

#[async_trait]
impl ScheduleRuns for SqliteStore {
    async fn declare_schedule(&self, schedule: &Name, rule: &str) -> Result<Option<String>, StoreError> {
        let mut script = Script::new();
        script.step("-- schedule.rule\nSELECT rule FROM laneway_schedule WHERE name = ? AND rule <> ?");
        script.bind(schedule.as_str())?;
        script.bind(rule)?;
        script.step(concat!(
            "-- schedule.declare
            INSERT INTO laneway_schedule AS s (name, rule, since) VALUES (?, ?, ",
            now_ms!(),
            ")
            ON CONFLICT (name) DO UPDATE SET rule = excluded.rule, since = excluded.since
                WHERE s.rule <> excluded.rule"
        ));
        script.bind(schedule.as_str())?;
        script.bind(rule)?;
        let mut before = None;
        self.connections()
            .run(Durability::Flushed, script, |row| {
                before = row.try_get(0)?;
                Ok(())
            })
            .await?;
        Ok(before)
    }

    async fn schedule_position(&self, schedule: &Name) -> Result<Option<SchedulePosition>, StoreError> {
        let query = concat!(
            "-- schedule.position
            SELECT s.since, (SELECT max(r.fire_at) FROM laneway_schedule_run r
                WHERE r.schedule = s.name AND r.fire_at <= ",
            now_ms!(),
            ")
            FROM laneway_schedule s WHERE s.name = ?"
        );
        let statement = sqlx::query(query).bind(schedule.as_str());
        let mut reader = self.connections().reader().await?;
        reader
            .optional(statement, |row| {
                Ok(SchedulePosition { since: timestamp(row.try_get(0)?)?, last: time(row, 1)? })
            })
            .await
    }

    async fn begin_run(
        &self,
        schedule: &Name,
        fire_at: Timestamp,
        node: &Name,
        message: Option<&NewMessage>,
    ) -> Result<bool, StoreError> {
        let mut script = Script::new();
        script.step(concat!(
            "-- schedule.begin
            INSERT INTO laneway_schedule_run (schedule, fire_at, node, started_at, ended_at, outcome, detail)
            SELECT ?, ?, ?, c.now, CASE WHEN m.id IS NOT NULL THEN c.now END,
                CASE WHEN m.id IS NOT NULL THEN 'done' END, 'message ' || m.id
            FROM (SELECT ",
            now_ms!(),
            " AS now) c, (SELECT ? AS id) m WHERE true
            ON CONFLICT (schedule, fire_at) DO NOTHING"
        ));
        script.bind(schedule.as_str())?;
        script.bind(fire_at.as_millisecond())?;
        script.bind(node.as_str())?;
        script.bind(message.map(|message| message.id.as_str()))?;
        script.guard_count(1)?;
        let position = message.map(|message| enqueue::insert(&mut script, [message].into_iter())).transpose()?;
        match self.connections().run(Durability::Flushed, script, |_| Ok(())).await? {
            Ran::Committed(done) => {
                self.0.wakes.committed(enqueue::newest(&done, position));
                Ok(true)
            }
            Ran::Stopped => Ok(false),
        }
    }

    async fn end_run(
        &self,
        schedule: &Name,
        fire_at: Timestamp,
        outcome: RunOutcome,
        detail: &str,
    ) -> Result<(), StoreError> {
        let mut script = Script::new();
        script.step(concat!(
            "-- schedule.end
            UPDATE laneway_schedule_run SET ended_at = ",
            now_ms!(),
            ", outcome = ?, detail = ? WHERE schedule = ? AND fire_at = ?"
        ));
        script.bind(outcome.as_str())?;
        script.bind(detail)?;
        script.bind(schedule.as_str())?;
        script.bind(fire_at.as_millisecond())?;
        self.connections().run(Durability::Flushed, script, |_| Ok(())).await.map(drop)
    }

    async fn schedule_runs(&self, schedule: &Name, limit: u32) -> Result<Vec<ScheduleRunView>, StoreError> {
        let query = "-- schedule.runs
            SELECT fire_at, node, started_at, ended_at, outcome, detail FROM laneway_schedule_run
            WHERE schedule = ? ORDER BY fire_at DESC LIMIT ? + 0";
        let statement = sqlx::query(query).bind(schedule.as_str()).bind(limit);
        let mut reader = self.connections().reader().await?;
        reader
            .all(statement, |row| {
                Ok(ScheduleRunView {
                    schedule: schedule.clone(),
                    fire_at: timestamp(row.try_get(0)?)?,
                    node: row.try_get(1)?,
                    started_at: timestamp(row.try_get(2)?)?,
                    ended_at: time(row, 3)?,
                    outcome: row.try_get(4)?,
                    detail: row.try_get(5)?,
                })
            })
            .await
    }
}
