//! What restores leave behind: found, and mended.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use laneway_core::{Finding, Health, Step, StoreError, Trouble};
use sqlx::Row;

use super::SqliteStore;
use super::cleanup::to_count;
use super::connection::{Connections, json, now_ms};
use super::writer::Durability;
use crate::gone;

/// The last number that a message got, as the last look saw it.
#[derive(Default)]
pub(super) struct Memory(Mutex<Option<i64>>);

impl Memory {
    fn compare(&self, now: i64) -> Option<Finding> {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(now)?;
        (now < before).then(|| {
            gone::other_history(format!(
                "the number of the newest message was {before}, and is {now}: an older state of the file was restored"
            ))
        })
    }
}

/// The last number that a message got, and the largest that is in use. Other tables take the next one of both; a
/// message's number also stands in tables that outlive it.
const NUMBERS: &str = "-- health.numbers
    SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'laneway_message'), 0),
        max(coalesce((SELECT max(seq) FROM laneway_message), 0),
            coalesce((SELECT max(id) / 1048576 FROM laneway_delivery), 0),
            coalesce((SELECT max(message_seq) FROM laneway_unrouted), 0),
            coalesce((SELECT max(message_seq) FROM laneway_dead_letter), 0))";

#[async_trait]
impl Health for SqliteStore {
    async fn look(&self) -> Result<Vec<Finding>, StoreError> {
        let (last, in_use) = numbers(self.connections()).await?;
        Ok(self.memory().compare(last).into_iter().chain(late_sequence(last, in_use)).collect())
    }

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        let (last, in_use) = numbers(self.connections()).await?;
        Ok(late_sequence(last, in_use).into_iter().chain(orphans(self.connections()).await?).collect())
    }

    async fn mend(&self, trouble: Trouble, from: i64, limit: u32) -> Result<Step, StoreError> {
        match trouble {
            // Triggers cannot be switched off in the file.
            Trouble::OtherHistory | Trouble::DisabledTrigger | Trouble::NeverRouted | Trouble::AlwaysRestoring => {
                Ok(Step { changed: 0, next: None, ..Step::default() })
            }
            Trouble::LateSequence => set_sequence(self.connections()).await,
            Trouble::OrphanDelivery => remove_orphans(self.connections(), from, limit).await,
        }
    }
}

async fn numbers(connections: &Connections) -> Result<(i64, i64), StoreError> {
    let mut reader = connections.reader().await?;
    let numbers = reader.optional(sqlx::query(NUMBERS), |row| Ok((row.try_get(0)?, row.try_get(1)?))).await?;
    Ok(numbers.unwrap_or_default())
}

fn late_sequence(last: i64, in_use: i64) -> Option<Finding> {
    (in_use > last).then(|| gone::late_sequence("of laneway_message".to_owned(), last, in_use))
}

async fn set_sequence(connections: &Connections) -> Result<Step, StoreError> {
    let mut transaction = connections.begin(Durability::Flushed).await?;
    let numbers = transaction.optional(sqlx::query(NUMBERS), |row| Ok((row.try_get(0)?, row.try_get(1)?))).await?;
    let (last, in_use): (i64, i64) = numbers.unwrap_or_default();
    if in_use <= last {
        transaction.roll_back().await?;
        return Ok(Step { changed: 0, next: None, ..Step::default() });
    }
    // A file that no message was ever written to has no row yet.
    for query in [
        "-- health.add_sequence
        INSERT INTO sqlite_sequence (name, seq) SELECT 'laneway_message', ?1
        WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'laneway_message')",
        "-- health.set_sequence
        UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'laneway_message'",
    ] {
        transaction.execute(sqlx::query(query).bind(in_use)).await?;
    }
    let query = concat!(
        "-- health.note
        INSERT INTO laneway_audit (at, action, detail) VALUES (",
        now_ms!(),
        ", 'doctor.late_sequence', json_array('laneway_message from ' || ? || ' to ' || ?))"
    );
    transaction.execute(sqlx::query(query).bind(last).bind(in_use)).await?;
    transaction.commit().await?;
    Ok(Step { changed: 1, next: None, ..Step::default() })
}

async fn orphans(connections: &Connections) -> Result<Option<Finding>, StoreError> {
    let query = "-- health.orphans
        SELECT count(*) FROM laneway_delivery d
        WHERE NOT EXISTS (SELECT 1 FROM laneway_message m WHERE m.seq = d.message_seq)";
    let orphans = connections.reader().await?.optional(sqlx::query(query), |row| row.try_get(0)).await?;
    Ok(gone::orphans(to_count(orphans.unwrap_or_default())))
}

/// Removes deliveries without a message; a trigger lets out who waits behind them.
async fn remove_orphans(connections: &Connections, from: i64, limit: u32) -> Result<Step, StoreError> {
    let mut transaction = connections.begin(Durability::Flushed).await?;
    let query = "-- health.choose_orphans
        SELECT d.id, NOT EXISTS (SELECT 1 FROM laneway_message m WHERE m.seq = d.message_seq)
        FROM laneway_delivery d WHERE d.id > ? ORDER BY d.id LIMIT ? + 0";
    let (mut looked, mut last, mut orphans) = (0, None, Vec::<i64>::new());
    transaction
        .each(sqlx::query(query).bind(from).bind(limit), |row| {
            let id: i64 = row.try_get(0)?;
            looked += 1;
            last = Some(id);
            if row.try_get::<i64, _>(1)? != 0 {
                orphans.push(id);
            }
            Ok(())
        })
        .await?;
    if let (Some(first), Some(newest)) = (orphans.first(), orphans.last()) {
        let query = "-- health.remove_orphans
            DELETE FROM laneway_delivery WHERE id IN (SELECT value FROM json_each(?))";
        transaction.execute(sqlx::query(query).bind(json(&orphans)?)).await?;
        let query = concat!(
            "-- health.note
            INSERT INTO laneway_audit (at, action, detail) VALUES (",
            now_ms!(),
            ", 'doctor.orphan_delivery',
                json_object('count', ?, 'first', ? / 1048576, 'last', ? / 1048576))"
        );
        let count = i64::try_from(orphans.len()).unwrap_or(i64::MAX);
        transaction.execute(sqlx::query(query).bind(count).bind(first).bind(newest)).await?;
    }
    transaction.commit().await?;
    Ok(Step { changed: orphans.len() as u64, next: last.filter(|_| looked >= limit), ..Step::default() })
}
