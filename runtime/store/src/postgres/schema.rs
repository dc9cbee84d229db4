//! Our schema in the database: which version it has, and how it gets there.

use std::sync::LazyLock;

use laneway_core::StoreError;
use sqlx::migrate::MigrateError;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use super::PostgresOptions;
use super::connection::{classify, connect};
use super::servers::Servers;
use crate::Migrated;
use crate::migrations::{Found, Migrations};

// The database may be the application's own, with migrations of its own under the usual name.
static MIGRATIONS: LazyLock<Migrations> = LazyLock::new(|| {
    let all = sqlx::migrate!("../../migrations/postgres");
    Migrations::new(&all, "laneway.migration", "laneway.addition").in_schema("laneway")
});

/// Brings the schema up to date, or up to version `last`.
///
/// # Errors
/// As for [`super::PostgresStore::open`], but for an older schema.
pub async fn migrate(options: PostgresOptions, last: Option<i64>) -> Result<Migrated, StoreError> {
    let mut connection = connect(&Servers::of(&options)?).await?;
    // Looks before it touches: a schema that is not ours stays as it is.
    let found = look(&mut connection).await?;
    let known = MIGRATIONS.newest();
    if found.closing > known {
        return Err(StoreError::SchemaNewer { found: found.closing, known });
    }
    // The driver logs notices, and that a table is there already is no news.
    connection.execute("SET client_min_messages = warning").await.map_err(classify)?;
    MIGRATIONS.run(&mut connection, last.unwrap_or(known)).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => classify(error),
        // Another program brought it further while this one waited.
        MigrateError::VersionMissing(found) => StoreError::SchemaNewer { found, known },
        other => StoreError::NotOurs(other.to_string()),
    })?;
    let to = look(&mut connection).await?.newest();
    connection.close().await.map_err(classify)?;
    Ok(Migrated { from: found.newest(), to })
}

/// Checks that this program can work with the schema.
pub(super) async fn check(servers: &Servers) -> Result<(), StoreError> {
    let mut connection = connect(servers).await?;
    let found = look(&mut connection).await?;
    connection.close().await.map_err(classify)?;
    MIGRATIONS.check(&found)
}

/// Which of our migrations the database has; none if there is nothing of ours. An empty schema of our name is as good as
/// none: an administrator may have made it, for its privileges.
async fn look(connection: &mut PgConnection) -> Result<Found, StoreError> {
    let query = "-- schema.look
        SELECT to_regclass('laneway.migration') IS NOT NULL, to_regclass('laneway.addition') IS NOT NULL,
            (SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = 'laneway' LIMIT 1)";
    let row = sqlx::query(query).fetch_one(&mut *connection).await.map_err(classify)?;
    let (ours, has_additions): (bool, bool) =
        (row.try_get(0).map_err(classify)?, row.try_get(1).map_err(classify)?);
    if !ours {
        return match row.try_get::<Option<String>, _>(2).map_err(classify)? {
            None => Ok(Found::default()),
            Some(found) => {
                Err(StoreError::NotOurs(format!("its schema laneway has {found}, which no migration of ours made")))
            }
        };
    }
    let unreadable = |table: &'static str| {
        move |error| match classify(error) {
            StoreError::Other(text) => {
                StoreError::NotOurs(format!("table laneway.{table} is not as we write it: {text}"))
            }
            other => other,
        }
    };
    let query = "-- schema.version
        SELECT coalesce(max(version), 0) FROM laneway.migration WHERE success";
    let closing = sqlx::query_scalar(query).fetch_one(&mut *connection).await.map_err(unreadable("migration"))?;
    let additions = match has_additions {
        true => {
            let query = "-- schema.additions
                SELECT version FROM laneway.addition WHERE success";
            sqlx::query_scalar(query).fetch_all(connection).await.map_err(unreadable("addition"))?
        }
        false => Vec::new(),
    };
    Ok(Found { closing, additions })
}
