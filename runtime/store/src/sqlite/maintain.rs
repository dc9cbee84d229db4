//! What operators and schedules do: one file for each concern, and messages that wait here.

use async_trait::async_trait;
use jiff::Timestamp;
use laneway_core::{
    Arrears, Change, Cleanup, DeadLetterAction, DeadLetterSelection, Maintenance, MessageId, Replay, Replayable,
    Step, StoreError,
};
use laneway_outbox::OutboxError;
use sqlx::Row;

use super::connection::{classify, now_ms};
use super::writer::Durability;
use super::{SqliteStore, arrears, cleanup, dead_letters, replay};

#[async_trait]
impl Maintenance for SqliteStore {
    async fn now(&self) -> Result<Timestamp, StoreError> {
        let query = concat!("-- maintain.now\nSELECT ", now_ms!());
        let millis = self.connections().reader().await?.optional(sqlx::query(query), |row| row.try_get(0)).await?;
        Timestamp::from_millisecond(millis.unwrap_or_default())
            .map_err(|error| StoreError::Other(format!("the database's clock: {error}")))
    }

    async fn cleanable(&self, what: Cleanup, before: Timestamp) -> Result<u64, StoreError> {
        cleanup::cleanable(self.connections(), what, before).await
    }

    async fn clean(&self, what: Cleanup, before: Timestamp, from: i64, limit: u32) -> Result<Step, StoreError> {
        cleanup::clean(self.connections(), what, before, from, limit).await
    }

    async fn arrears(&self, what: Cleanup, from: i64) -> Result<Arrears, StoreError> {
        arrears::arrears(self.connections(), what, from).await
    }

    async fn count_dead_letters(&self, selection: &DeadLetterSelection) -> Result<u64, StoreError> {
        dead_letters::count(self.connections(), selection).await
    }

    async fn newest_dead_letter(&self) -> Result<i64, StoreError> {
        dead_letters::newest(self.connections()).await
    }

    async fn act_on_dead_letters(
        &self,
        action: DeadLetterAction,
        selection: &DeadLetterSelection,
        from: i64,
        newest: i64,
        limit: u32,
    ) -> Result<Step, StoreError> {
        dead_letters::act(self.connections(), action, selection, from, newest, limit).await
    }

    async fn replay(&self, replay: &Replay, from: i64, limit: u32) -> Result<Step, StoreError> {
        replay::replay(self.connections(), replay, from, limit).await
    }

    async fn replayable(&self, replay: &Replay) -> Result<Replayable, StoreError> {
        replay::replayable(self.connections(), replay).await
    }

    async fn cancel(&self, message: &MessageId) -> Result<Change, StoreError> {
        let mut transaction = self.connections().begin(Durability::Flushed).await?;
        let change = laneway_outbox::cancel(transaction.connection()?, message.as_str()).await.map_err(refused)?;
        transaction.commit().await?;
        Ok(change)
    }

    async fn reschedule(&self, message: &MessageId, due: Timestamp) -> Result<Change, StoreError> {
        let mut transaction = self.connections().begin(Durability::Flushed).await?;
        let change =
            laneway_outbox::reschedule(transaction.connection()?, message.as_str(), due).await.map_err(refused)?;
        transaction.commit().await?;
        Ok(change)
    }
}

fn refused(error: OutboxError) -> StoreError {
    match error {
        OutboxError::Database(error) => classify(error),
        other => StoreError::Refused(other.to_string()),
    }
}
