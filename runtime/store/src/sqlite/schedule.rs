//! Runs of schedules: each time once.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use laneway_core::{
    Declared, MessageId, Name, NewMessage, RunOutcome, SchedulePosition, ScheduleRunView, ScheduleRuns, StoreError,
};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::connection::{Connections, classify, millis, now_ms};
use super::writer::Durability;
use super::{SqliteStore, enqueue};

fn timestamp(millis: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_millisecond(millis).map_err(|error| sqlx::Error::Decode(error.into()))
}

fn time(row: &SqliteRow, column: usize) -> Result<Option<Timestamp>, sqlx::Error> {
    row.try_get::<Option<i64>, _>(column)?.map(timestamp).transpose()
}

#[async_trait]
impl ScheduleRuns for SqliteStore {
    async fn declare_schedule(
        &self,
        schedule: &Name,
        rule: &str,
        node: &Name,
        alive_for: Duration,
    ) -> Result<Declared, StoreError> {
        declare(self.connections(), schedule, rule, node, alive_for).await
    }

    async fn schedule_position(&self, schedule: &Name) -> Result<Option<SchedulePosition>, StoreError> {
        let query = concat!(
            "-- schedule.position
            SELECT s.rule, s.since, (SELECT max(r.fire_at) FROM laneway_schedule_run r
                WHERE r.schedule = s.name AND r.fire_at <= ",
            now_ms!(),
            ")
            FROM laneway_schedule s WHERE s.name = ?"
        );
        let statement = sqlx::query(query).bind(schedule.as_str());
        let mut reader = self.connections().reader().await?;
        reader
            .optional(statement, |row| {
                let since = timestamp(row.try_get(1)?)?;
                Ok(SchedulePosition { rule: row.try_get(0)?, since, last: time(row, 2)? })
            })
            .await
    }

    async fn begin_run(
        &self,
        schedule: &Name,
        rule: Option<&str>,
        fire_at: Timestamp,
        node: &Name,
        message: Option<&NewMessage>,
    ) -> Result<bool, StoreError> {
        let begin = concat!(
            "-- schedule.begin
            INSERT INTO laneway_schedule_run (schedule, fire_at, node, started_at, ended_at, outcome, detail)
            SELECT ?1, ?2, ?3, c.now, CASE WHEN m.id IS NOT NULL THEN c.now END,
                CASE WHEN m.id IS NOT NULL THEN 'done' END, 'message ' || m.id
            FROM (SELECT ",
            now_ms!(),
            " AS now) c, (SELECT ?4 AS id) m, (SELECT ?5 AS rule) r
            WHERE r.rule IS NULL OR EXISTS (SELECT 1 FROM laneway_schedule s WHERE s.name = ?1 AND s.rule = r.rule)
            ON CONFLICT (schedule, fire_at) DO NOTHING"
        );
        let (schedule, node, rule) = (schedule.clone(), node.clone(), rule.map(str::to_owned));
        let id = message.map(|message| message.id.clone());
        let rows = message.map(|message| enqueue::rows([message].into_iter())).transpose()?;
        let begun = self.connections().write(Durability::Flushed, move |native| {
            let values = [
                schedule.as_str().into(),
                fire_at.as_millisecond().into(),
                node.as_str().into(),
                id.as_ref().map(MessageId::as_str).into(),
                rule.as_deref().into(),
            ];
            if native.run(begin, &values)? == 0 {
                return Ok(None);
            }
            let newest = rows.map(|rows| enqueue::insert(native, &rows)).transpose()?;
            Ok(Some(newest.and_then(|(_, newest)| newest)))
        });
        let Some(newest) = begun.await? else { return Ok(false) };
        self.0.wakes.committed(newest);
        Ok(true)
    }

    async fn end_run(
        &self,
        schedule: &Name,
        fire_at: Timestamp,
        outcome: RunOutcome,
        detail: &str,
    ) -> Result<(), StoreError> {
        let end = concat!(
            "-- schedule.end
            UPDATE laneway_schedule_run SET ended_at = ",
            now_ms!(),
            ", outcome = ?, detail = ? WHERE schedule = ? AND fire_at = ?"
        );
        let (schedule, detail) = (schedule.clone(), detail.to_owned());
        let ended = self.connections().write(Durability::Flushed, move |native| {
            let values = [
                outcome.as_str().into(),
                detail.as_str().into(),
                schedule.as_str().into(),
                fire_at.as_millisecond().into(),
            ];
            native.run(end, &values).map(Some)
        });
        ended.await.map(drop)
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

/// A rule that no node has had for longer, in milliseconds, is new when it comes again.
const RULES_KEPT: i64 = 7 * 86_400_000;

/// The condition that the node of holder `h` lives. The length of a life is bound.
macro_rules! lives {
    () => {
        concat!("EXISTS (SELECT 1 FROM laneway_node n WHERE n.name = h.node AND n.seen_at > ", now_ms!(), " - ?)")
    };
}

async fn declare(
    connections: &Connections,
    schedule: &Name,
    rule: &str,
    node: &Name,
    alive_for: Duration,
) -> Result<Declared, StoreError> {
    let (name, alive_for) = (schedule.as_str(), millis(alive_for));
    // There is one writer: one node decides after the other.
    let mut transaction = connections.begin(Durability::Flushed).await?;
    let query = concat!(
        "-- schedule.first
        INSERT INTO laneway_schedule (name, rule, since) VALUES (?, ?, ",
        now_ms!(),
        ") ON CONFLICT (name) DO NOTHING"
    );
    transaction.execute(sqlx::query(query).bind(name).bind(rule)).await?;
    // Who declares lives, although its first sign of life may be under way.
    let query = concat!(
        "-- schedule.alive
        INSERT INTO laneway_node (name, seen_at) VALUES (?, ",
        now_ms!(),
        ") ON CONFLICT (name) DO NOTHING"
    );
    transaction.execute(sqlx::query(query).bind(node.as_str())).await?;
    let query = concat!(
        "-- schedule.holders
        SELECT s.rule, s.since,
            EXISTS (SELECT 1 FROM laneway_schedule_holder h WHERE h.schedule = s.name AND h.rule = ?
                AND (h.held_at > ",
        now_ms!(),
        " - ? OR ",
        lives!(),
        ")),
            EXISTS (SELECT 1 FROM laneway_schedule_holder h WHERE h.schedule = s.name AND h.rule = s.rule AND ",
        lives!(),
        ")
        FROM laneway_schedule s WHERE s.name = ?"
    );
    let statement = sqlx::query(query).bind(rule).bind(RULES_KEPT).bind(alive_for).bind(alive_for).bind(name);
    let found: Option<(String, i64, bool, bool)> = transaction
        .optional(statement, |row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)))
        .await?;
    let Some((holds, since, is_known, is_held)) = found else {
        return Err(StoreError::Other(format!("schedule {schedule} was just written and is not there")));
    };
    let query = concat!(
        "-- schedule.forget
        DELETE FROM laneway_schedule_holder AS h WHERE h.schedule = ? AND h.node <> ? AND h.held_at < ",
        now_ms!(),
        " - ? AND NOT ",
        lives!()
    );
    let statement = sqlx::query(query).bind(name).bind(node.as_str()).bind(RULES_KEPT).bind(alive_for);
    transaction.execute(statement).await?;
    let query = concat!(
        "-- schedule.hold
        INSERT INTO laneway_schedule_holder AS h (schedule, node, rule, held_at) VALUES (?, ?, ?, ",
        now_ms!(),
        ") ON CONFLICT (schedule, node) DO UPDATE SET rule = excluded.rule, held_at = excluded.held_at
            WHERE h.rule <> excluded.rule"
    );
    transaction.execute(sqlx::query(query).bind(name).bind(node.as_str()).bind(rule)).await?;
    let declared = if holds == rule {
        Declared::Ours { before: None }
    } else if is_known && is_held {
        let since = timestamp(since).map_err(classify)?;
        Declared::Theirs { rule: holds, since }
    } else {
        let query = concat!(
            "-- schedule.declare\nUPDATE laneway_schedule SET rule = ?, since = ",
            now_ms!(),
            " WHERE name = ?"
        );
        transaction.execute(sqlx::query(query).bind(rule).bind(name)).await?;
        Declared::Ours { before: Some(holds) }
    };
    transaction.commit().await?;
    Ok(declared)
}
