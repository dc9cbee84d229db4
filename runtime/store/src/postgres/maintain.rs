//! What operators and schedules do: one file for each concern, and messages that wait here.

use async_trait::async_trait;
use jiff::Timestamp;
use laneway_core::{
    Arrears, Change, Cleanup, DeadLetterAction, DeadLetterSelection, Maintenance, MessageId, Replay, Replayable,
    Step, StoreError,
};
use laneway_outbox::OutboxError;
use sqlx::Row as _;

use super::connection::{Database, Instant, Outcome, Session, classify};
use super::{PostgresStore, arrears, cleanup, dead_letters, replay};

#[async_trait]
impl Maintenance for PostgresStore {
    async fn now(&self) -> Result<Timestamp, StoreError> {
        now(self.database()).await.map_err(classify)
    }

    async fn cleanable(&self, what: Cleanup, before: Timestamp) -> Result<u64, StoreError> {
        cleanup::cleanable(self.database(), what, before).await.map_err(classify)
    }

    async fn clean(&self, what: Cleanup, before: Timestamp, from: i64, limit: u32) -> Result<Step, StoreError> {
        cleanup::clean(self.database(), what, before, from, limit).await.map_err(classify)
    }

    async fn arrears(&self, what: Cleanup, from: i64) -> Result<Arrears, StoreError> {
        arrears::arrears(self.database(), what, from).await.map_err(classify)
    }

    async fn count_dead_letters(&self, selection: &DeadLetterSelection) -> Result<u64, StoreError> {
        dead_letters::count(self.database(), selection).await.map_err(classify)
    }

    async fn newest_dead_letter(&self) -> Result<i64, StoreError> {
        dead_letters::newest(self.database()).await.map_err(classify)
    }

    async fn act_on_dead_letters(
        &self,
        action: DeadLetterAction,
        selection: &DeadLetterSelection,
        from: i64,
        newest: i64,
        limit: u32,
    ) -> Result<Step, StoreError> {
        let done = dead_letters::act(self.database(), action, selection, from, newest, limit);
        done.await.map_err(classify)
    }

    async fn replay(&self, replay: &Replay, from: i64, limit: u32) -> Result<Step, StoreError> {
        replay::replay(self.database(), replay, from, limit).await
    }

    async fn replayable(&self, replay: &Replay) -> Result<Replayable, StoreError> {
        replay::replayable(self.database(), replay).await
    }

    async fn cancel(&self, message: &MessageId) -> Result<Change, StoreError> {
        let mut connection = self.database().connection().await.map_err(classify)?;
        laneway_outbox::cancel(connection.used().begin_statement(), message.as_str()).await.map_err(refused)
    }

    async fn reschedule(&self, message: &MessageId, due: Timestamp) -> Result<Change, StoreError> {
        let mut connection = self.database().connection().await.map_err(classify)?;
        laneway_outbox::reschedule(connection.used().begin_statement(), message.as_str(), due)
            .await
            .map_err(refused)
    }
}

fn refused(error: OutboxError) -> StoreError {
    match error {
        OutboxError::Database(error) => classify(error),
        other => StoreError::Refused(other.to_string()),
    }
}

async fn now(database: &Database) -> Outcome<Timestamp> {
    let row = database.connection().await?.one(sqlx::query("SELECT clock_timestamp()")).await?;
    row.try_get::<Instant, _>(0)?.timestamp()
}
