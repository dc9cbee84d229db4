//! Our schema in the database: which version it has, and how it gets there.

use std::sync::LazyLock;

use laneway_core::StoreError;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection as _, PgConnection, Row as _};

use super::PostgresOptions;
use super::connection::{classify, connect};
use crate::Migrated;

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!("../../migrations/postgres");
    // The database may be the application's own, with migrations of its own under the usual name.
    migrator.create_schema("laneway");
    migrator.dangerous_set_table_name("laneway.migration");
    migrator
});

fn newest_known() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Brings the schema up to date.
///
/// # Errors
/// As for [`super::PostgresStore::open`], but for an older schema.
pub async fn migrate(options: PostgresOptions) -> Result<Migrated, StoreError> {
    let mut connection = connect(&options).await?;
    // Looks before it touches: a schema that is not ours stays as it is.
    let from = version(&mut connection).await?;
    let to = newest_known();
    if from > to {
        return Err(StoreError::SchemaNewer { found: from, known: to });
    }
    MIGRATOR.run_direct(None, &mut connection, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => classify(error),
        // Another program brought it further while this one waited.
        MigrateError::VersionMissing(found) => StoreError::SchemaNewer { found, known: to },
        other => StoreError::NotOurs(other.to_string()),
    })?;
    connection.close().await.map_err(classify)?;
    Ok(Migrated { from, to })
}

/// Checks that the schema is this program's.
pub(super) async fn check(options: &PostgresOptions) -> Result<(), StoreError> {
    let mut connection = connect(options).await?;
    let found = version(&mut connection).await?;
    connection.close().await.map_err(classify)?;
    let known = newest_known();
    match found {
        _ if found < known => Err(StoreError::SchemaOlder { found, needed: known }),
        _ if found > known => Err(StoreError::SchemaNewer { found, known }),
        _ => Ok(()),
    }
}

/// Version of our schema in the database; 0 if there is nothing of ours. An empty schema of our name is as good as
/// none: an administrator may have made it, for its privileges.
async fn version(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let query = "-- schema.look
        SELECT to_regclass('laneway.migration') IS NOT NULL,
            (SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = 'laneway' LIMIT 1)";
    let row = sqlx::query(query).fetch_one(&mut *connection).await.map_err(classify)?;
    if row.try_get(0).map_err(classify)? {
        let query = "-- schema.version
            SELECT coalesce(max(version), 0) FROM laneway.migration WHERE success";
        return sqlx::query_scalar(query).fetch_one(connection).await.map_err(|error| match classify(error) {
            StoreError::Other(text) => {
                StoreError::NotOurs(format!("table laneway.migration is not as we write it: {text}"))
            }
            other => other,
        });
    }
    match row.try_get::<Option<String>, _>(1).map_err(classify)? {
        None => Ok(0),
        Some(found) => {
            Err(StoreError::NotOurs(format!("its schema laneway has {found}, which no migration of ours made")))
        }
    }
}
