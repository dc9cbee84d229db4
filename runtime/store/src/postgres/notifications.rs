//! The queue of notifications, which all databases of a server share.
//!
//! A session that listens and does not read, or that stays in a transaction, holds back all of it. Once it is full, no
//! transaction that notifies can commit, and so no message be enqueued. And it stays full: what was read is freed only
//! by those who find a whole segment read, or who ask how full it is. So nodes ask, and say when it fills.

use std::time::Duration;

use sqlx::Row as _;

use super::connection::{Database, Outcome, Session, classify};

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Before the first.
const ASK_FIRST: Duration = Duration::from_secs(1);
/// Part of the queue above which it is said.
const WARN_ABOVE: f64 = 0.5;
/// It is said at each so-many-th question.
const WARN_EVERY: u32 = 6;

/// Asks for as long as it is awaited.
pub(super) async fn keep(database: Database) {
    let mut filling = 0;
    tokio::time::sleep(ASK_FIRST).await;
    loop {
        match usage(&database).await {
            Ok(usage) => {
                if is_to_be_said(usage, &mut filling) {
                    let holder = match holder(&database).await {
                        Ok(Some(pid)) => format!("the oldest transaction is that of process {pid}"),
                        _ => "pg_stat_activity shows the oldest transaction".to_owned(),
                    };
                    tracing::warn!(
                        percent = (usage * 100.0).round(),
                        "the server's queue of notifications fills, and once it is full nothing can be enqueued: some \
                         session listens and does not read, or is in a transaction for long; {holder}"
                    );
                }
            }
            Err(error) => tracing::debug!(error = %classify(error), "failed to ask for the queue of notifications"),
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Whether to speak of this use of the queue, after so many questions that found it filling.
fn is_to_be_said(usage: f64, filling: &mut u32) -> bool {
    if usage <= WARN_ABOVE {
        *filling = 0;
        return false;
    }
    *filling += 1;
    *filling % WARN_EVERY == 1
}

async fn usage(database: &Database) -> Outcome<f64> {
    let query = "-- notifications.usage
        SELECT pg_notification_queue_usage()";
    database.connection().await?.one(sqlx::query(query)).await?.try_get(0)
}

/// The process whose transaction is open for longest, among those that this role may see.
async fn holder(database: &Database) -> Outcome<Option<i32>> {
    let query = "-- notifications.holder
        SELECT pid FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()
        ORDER BY xact_start LIMIT 1";
    database.connection().await?.optional(sqlx::query(query)).await?.map(|row| row.try_get(0)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_fills_is_said_at_once_and_then_each_minute() {
        let mut filling = 0;
        assert!(!is_to_be_said(0.5, &mut filling));
        let said: Vec<usize> = (0..13).filter(|_| is_to_be_said(0.51, &mut filling)).collect();
        assert_eq!(said, [0, 6, 12]);
        assert!(!is_to_be_said(0.1, &mut filling));
        assert!(is_to_be_said(0.9, &mut filling), "filling again is news");
    }
}
