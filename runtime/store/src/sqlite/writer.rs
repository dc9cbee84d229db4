//! Write transactions, on the one connection that writes.
//!
//! A job of [`Connections::write`] is a whole transaction on one thread, by SQLite's own interface. [`Transaction`] goes by
//! the driver, for what happens rarely and is long: each call is a hop to its thread and back.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::executor::block_on;
use laneway_core::StoreError;
use sqlx::sqlite::{SqliteQueryResult, SqliteRow};
use sqlx::{Executor, SqliteConnection};
use tokio::sync::OwnedMutexGuard;

use super::Synchronous;
use super::connection::{Connections, Statement, classify, each};
use super::native::{Kept, Native};

/// What must be true of a commit when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// It survives a loss of power, if the options ask for that.
    Flushed,
    /// It survives a crash of this process. A loss of power may undo it, together with all later commits, of which none
    /// was flushed: a flush takes all that was written to the WAL before it along. What claims and renewals write may
    /// be undone like that: the delivery is due again, its attempt uncounted.
    Buffered,
}

/// The connection that writes.
pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    /// What `PRAGMA synchronous` was last set to.
    synchronous: Option<Synchronous>,
    /// Whether a transaction may be open.
    open: bool,
    /// Statements of [`Connections::write`].
    kept: Kept,
}

impl Writer {
    pub(super) fn new(connection: SqliteConnection) -> Self {
        Self { connection, synchronous: None, open: false, kept: Kept::default() }
    }

    /// Runs a job as one transaction, on this thread. Where it fails or answers `None`, nothing has happened.
    fn write<T>(&mut self, synchronous: Synchronous, job: impl Job<T>) -> Result<Option<T>, StoreError> {
        let Self { connection, synchronous: set, open, kept } = self;
        // What others left undone, such as the rows of a call that was cancelled, ends before this answers.
        let mut handle = block_on(connection.lock_handle()).map_err(classify)?;
        let mut native = Native::new(&mut handle, kept);
        if *open {
            native.roll_back()?;
            *open = false;
        }
        if *set != Some(synchronous) {
            *set = None;
            native.execute(pragma(synchronous))?;
            *set = Some(synchronous);
        }
        *open = true;
        let done = (|| {
            native.execute(c"BEGIN IMMEDIATE")?;
            let answer = job(&mut native)?;
            if answer.is_some() {
                native.execute(c"COMMIT")?;
            }
            Ok(answer)
        })();
        if !matches!(done, Ok(Some(_))) {
            native.roll_back()?;
        }
        *open = false;
        done
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.kept.is_empty() {
            return;
        }
        match block_on(self.connection.lock_handle()) {
            Ok(mut handle) => self.kept.finalize(&mut handle),
            Err(error) => tracing::warn!(%error, "failed to close the connection that writes in good order"),
        }
    }
}

/// What happens in a transaction of [`Connections::write`].
pub(super) trait Job<T>: FnOnce(&mut Native<'_>) -> Result<Option<T>, StoreError> {}
impl<T, F: FnOnce(&mut Native<'_>) -> Result<Option<T>, StoreError>> Job<T> for F {}

fn pragma(synchronous: Synchronous) -> &'static CStr {
    match synchronous {
        Synchronous::Full => c"PRAGMA synchronous = FULL",
        Synchronous::Normal => c"PRAGMA synchronous = NORMAL",
    }
}

impl Connections {
    /// Waits for the writers before us in this process.
    async fn lock(&self) -> Result<Transaction, StoreError> {
        let writer = Arc::clone(&self.writer).lock_owned().await;
        self.file.check()?;
        let mut transaction = Transaction { writer: Some(writer), round_trips: self.round_trips_counter() };
        let writer = transaction.writer()?;
        if writer.open {
            roll_back(writer).await?;
        }
        Ok(transaction)
    }

    fn synchronous_for(&self, durability: Durability) -> Synchronous {
        match durability {
            Durability::Flushed => self.synchronous,
            Durability::Buffered => Synchronous::Normal,
        }
    }

    /// Begins a write transaction: waits for the writers before us, in this process and in others.
    pub(super) async fn begin(&self, durability: Durability) -> Result<Transaction, StoreError> {
        let mut transaction = self.lock().await?;
        transaction.set_synchronous(self.synchronous_for(durability)).await?;
        transaction.count();
        let writer = transaction.writer()?;
        writer.open = true;
        writer.connection.execute(sqlx::query("BEGIN IMMEDIATE")).await.map_err(classify)?;
        Ok(transaction)
    }

    /// Runs a job as one transaction, on a thread of its own. `None` of it rolls back. Once it has begun it goes on to its
    /// end, even if this call is cancelled; the next writer waits for that.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        durability: Durability,
        job: impl Job<T> + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        let mut writer = Arc::clone(&self.writer).lock_owned().await;
        self.file.check()?;
        self.round_trips_counter().fetch_add(1, Ordering::Relaxed);
        let synchronous = self.synchronous_for(durability);
        match tokio::task::spawn_blocking(move || writer.write(synchronous, job)).await {
            Ok(done) => done,
            Err(error) if error.is_cancelled() => {
                Err(StoreError::Unavailable("no transaction begins any more".into()))
            }
            Err(error) => Err(StoreError::Other(format!("a transaction ended badly: {error}"))),
        }
    }
}

/// A write transaction. Dropped before its commit, be it by an error or because its future was cancelled, it is rolled
/// back before anyone else gets the connection.
pub(super) struct Transaction {
    /// Always there, until the drop.
    writer: Option<OwnedMutexGuard<Writer>>,
    round_trips: Arc<AtomicU64>,
}

impl Transaction {
    fn writer(&mut self) -> Result<&mut Writer, StoreError> {
        self.writer.as_deref_mut().ok_or_else(|| StoreError::Other("transaction has ended".to_owned()))
    }

    /// The connection, for statements of others.
    pub(super) fn connection(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        self.count();
        Ok(&mut self.writer()?.connection)
    }

    fn count(&self) {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets what the next commits are worth, where it is not set already.
    async fn set_synchronous(&mut self, wanted: Synchronous) -> Result<(), StoreError> {
        let writer = self.writer()?;
        if writer.synchronous == Some(wanted) {
            return Ok(());
        }
        // Not kept: SQLite sets this while it prepares, so a statement that is run once more would do nothing.
        let pragma = pragma(wanted).to_str().unwrap_or_default();
        writer.synchronous = None;
        writer.connection.execute(sqlx::raw_sql(pragma)).await.map_err(classify)?;
        writer.synchronous = Some(wanted);
        self.count();
        Ok(())
    }

    /// Runs a statement that answers no rows.
    pub(super) async fn execute(&mut self, statement: Statement<'_>) -> Result<SqliteQueryResult, StoreError> {
        self.count();
        self.writer()?.connection.execute(statement).await.map_err(classify)
    }

    /// Runs statements without values, one after the other, not prepared.
    pub(super) async fn execute_raw(&mut self, statements: String) -> Result<(), StoreError> {
        self.count();
        let statements = sqlx::raw_sql(sqlx::AssertSqlSafe(statements));
        self.writer()?.connection.execute(statements).await.map_err(classify).map(drop)
    }

    /// Runs a statement and hands over its rows as they come.
    pub(super) async fn each(
        &mut self,
        statement: Statement<'_>,
        take: impl FnMut(&SqliteRow) -> Result<(), sqlx::Error> + Send,
    ) -> Result<(), StoreError> {
        self.count();
        each(&mut self.writer()?.connection, statement, take).await
    }

    /// Runs a statement that has one row or none.
    pub(super) async fn optional<T: Send>(
        &mut self,
        statement: Statement<'_>,
        mut take: impl FnMut(&SqliteRow) -> Result<T, sqlx::Error> + Send,
    ) -> Result<Option<T>, StoreError> {
        let mut found = None;
        self.each(statement, |row| {
            found = Some(take(row)?);
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Commits.
    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        self.count();
        let writer = self.writer()?;
        writer.connection.execute(sqlx::query("COMMIT")).await.map_err(classify)?;
        writer.open = false;
        Ok(())
    }

    /// Rolls back.
    pub(super) async fn roll_back(mut self) -> Result<(), StoreError> {
        self.count();
        roll_back(self.writer()?).await
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some(mut writer) = self.writer.take().filter(|writer| writer.open) else { return };
        // The lock goes along, so the next writer waits. Without a runtime the next writer finds it open, if ever.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = roll_back(&mut writer).await {
                    tracing::warn!(%error, "failed to roll back");
                }
            });
        }
    }
}

async fn roll_back(writer: &mut Writer) -> Result<(), StoreError> {
    match writer.connection.execute(sqlx::query("ROLLBACK")).await {
        Ok(_) => {}
        // It was never begun, or was committed after all, or SQLite rolled it back by itself.
        Err(sqlx::Error::Database(error)) if error.message().contains("no transaction is active") => {}
        Err(error) => return Err(classify(error)),
    }
    writer.open = false;
    Ok(())
}
