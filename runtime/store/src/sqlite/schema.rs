//! Our tables in the file: which version they have, and how they get there.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use laneway_core::StoreError;
use sqlx::migrate::MigrateError;
use sqlx::{Connection, Row, SqliteConnection};

use super::SqliteOptions;
use super::connection::{classify, connect_writer, name_file};
use crate::Migrated;
use crate::migrations::{Found, Migrations};

// The file may be the application's own, with migrations of its own under the usual name.
static MIGRATIONS: LazyLock<Migrations> = LazyLock::new(|| {
    let all = sqlx::migrate!("../../migrations/sqlite");
    Migrations::new(&all, "laneway_migration", "laneway_addition")
});

/// Brings the schema in the file up to date, or up to version `last`. The file is created if it is missing and `create` is
/// set.
///
/// # Errors
/// As for [`super::SqliteStore::open`], but for an older schema.
pub async fn migrate(options: SqliteOptions, last: Option<i64>) -> Result<Migrated, StoreError> {
    let mut connection = connect(&options).await?;
    let migrated =
        bring_up_to_date(&mut connection, &options, last).await.map_err(|error| name_file(error, &options.path))?;
    connection.close().await.map_err(classify)?;
    Ok(migrated)
}

/// Opens the file for writing, with a schema that is this program's.
pub(super) async fn open(options: &SqliteOptions) -> Result<SqliteConnection, StoreError> {
    let mut connection = connect(options).await?;
    prepare(&mut connection, options).await.map_err(|error| name_file(error, &options.path))?;
    Ok(connection)
}

async fn connect(options: &SqliteOptions) -> Result<SqliteConnection, StoreError> {
    if !options.create && !options.path.exists() {
        return Err(name_file(StoreError::NotOurs("there is no such file".to_owned()), &options.path));
    }
    connect_writer(options).await
}

async fn prepare(connection: &mut SqliteConnection, options: &SqliteOptions) -> Result<(), StoreError> {
    let found = look(connection).await?;
    if found.newest() == 0 && options.create {
        bring_up_to_date(connection, options, None).await?;
    } else {
        MIGRATIONS.check(&found)?;
    }
    use_wal(connection, options.busy_timeout).await
}

async fn bring_up_to_date(
    connection: &mut SqliteConnection,
    options: &SqliteOptions,
    last: Option<i64>,
) -> Result<Migrated, StoreError> {
    // Looks before it touches: a file that is not ours stays as it is.
    look(connection).await?;
    use_wal(connection, options.busy_timeout).await?;
    // The migrator takes no lock on SQLite. With the write lock held, of two programs that start at once the second
    // finds the work done.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    let found = look(&mut transaction).await?;
    let known = MIGRATIONS.newest();
    if found.closing > known {
        return Err(StoreError::SchemaNewer { found: found.closing, known });
    }
    MIGRATIONS.run(&mut *transaction, last.unwrap_or(known)).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => classify(error),
        other => StoreError::NotOurs(other.to_string()),
    })?;
    let to = look(&mut transaction).await?.newest();
    transaction.commit().await.map_err(classify)?;
    Ok(Migrated { from: found.newest(), to })
}

/// Which of our migrations the file has; none if it has no tables of ours.
async fn look(connection: &mut SqliteConnection) -> Result<Found, StoreError> {
    // schema.tables
    let tables: Vec<String> = sqlx::query_scalar(
        r"SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'laneway\_%' ESCAPE '\'",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(classify)?;
    let has = |name: &str| tables.iter().any(|table| table == name);
    if !has("laneway_migration") {
        return match tables.first() {
            None => Ok(Found::default()),
            Some(table) => {
                Err(StoreError::NotOurs(format!("it has a table {table} that no migration of ours made")))
            }
        };
    }
    let unreadable = |table: &'static str| {
        move |error| StoreError::NotOurs(format!("table {table} is not as we write it: {error}"))
    };
    // schema.version
    let closing = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM laneway_migration WHERE success")
        .fetch_one(&mut *connection)
        .await
        .map_err(unreadable("laneway_migration"))?;
    let additions = match has("laneway_addition") {
        // schema.additions
        true => sqlx::query_scalar("SELECT version FROM laneway_addition WHERE success")
            .fetch_all(connection)
            .await
            .map_err(unreadable("laneway_addition"))?,
        false => Vec::new(),
    };
    Ok(Found { closing, additions })
}

/// Readers and the writer do not wait for each other in WAL mode. The mode is the file's, and lasts.
async fn use_wal(connection: &mut SqliteConnection, patience: Duration) -> Result<(), StoreError> {
    // schema.wal
    let row = sqlx::query(
        "SELECT (SELECT encoding FROM pragma_encoding), (SELECT journal_mode FROM pragma_journal_mode)",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(classify)?;
    let encoding: String = row.try_get(0).map_err(classify)?;
    if encoding != "UTF-8" {
        return Err(StoreError::NotOurs(format!("its text is stored as {encoding}; only UTF-8 is supported")));
    }
    if row.try_get::<String, _>(1).map_err(classify)? == "wal" {
        return Ok(());
    }
    // SQLite does not wait for other connections here, such as one that switches at the same time.
    let deadline = Instant::now() + patience;
    let mode: String = loop {
        match sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(&mut *connection).await.map_err(classify) {
            Err(StoreError::Unavailable(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            done => break done?,
        }
    };
    if mode != "wal" {
        return Err(StoreError::Unavailable(format!("its journal is {mode}, and it could not be switched to WAL")));
    }
    Ok(())
}
