//! Plain SQL beside the store: a producer of any language, and the hand that moves rows through time.

use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// A connection that knows nothing of the store. In its statements `@name` is the table of that name, and `now()`
/// is the database's clock at this moment.
pub enum Sql {
    Sqlite(Box<SqliteConnection>),
    Postgres(Box<PgConnection>),
}

impl Sql {
    pub async fn sqlite(path: &std::path::Path) -> Self {
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(20));
        Self::Sqlite(Box::new(SqliteConnection::connect_with(&options).await.unwrap()))
    }

    pub async fn postgres(url: &str) -> Self {
        Self::Postgres(Box::new(PgConnection::connect(url).await.unwrap()))
    }

    fn written(&self, sql: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(match self {
            Self::Sqlite(_) => sql
                .replace('@', "laneway_")
                .replace("now()", "CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER)"),
            Self::Postgres(_) => sql.replace('@', "laneway.").replace("now()", "clock_timestamp()"),
        })
    }

    /// A length of time, to be added to a time.
    pub fn span(&self, span: Duration) -> String {
        match self {
            Self::Sqlite(_) => span.as_millis().to_string(),
            Self::Postgres(_) => format!("interval '{} milliseconds'", span.as_millis()),
        }
    }

    /// Runs a statement; answers the rows that it changed.
    pub async fn try_run(&mut self, sql: &str) -> Result<u64, sqlx::Error> {
        let written = self.written(sql);
        Ok(match self {
            Self::Sqlite(connection) => sqlx::raw_sql(written).execute(&mut **connection).await?.rows_affected(),
            Self::Postgres(connection) => sqlx::raw_sql(written).execute(&mut **connection).await?.rows_affected(),
        })
    }

    pub async fn run(&mut self, sql: &str) -> u64 {
        self.try_run(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// What the database says against a statement.
    pub async fn refusal(&mut self, sql: &str) -> String {
        match self.try_run(sql).await {
            Ok(rows) => panic!("{sql} was accepted ({rows} rows)"),
            Err(sqlx::Error::Database(error)) => error.message().to_owned(),
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// The first column of all rows, as text; NULL is left out.
    pub async fn texts(&mut self, sql: &str) -> Vec<String> {
        let written = self.written(sql);
        let rows: Result<Vec<Option<String>>, _> = match self {
            Self::Sqlite(connection) => sqlx::query_scalar(written).fetch_all(&mut **connection).await,
            Self::Postgres(connection) => sqlx::query_scalar(written).fetch_all(&mut **connection).await,
        };
        rows.unwrap_or_else(|error| panic!("{sql}: {error}")).into_iter().flatten().collect()
    }

    /// The one number that a query answers.
    pub async fn number(&mut self, sql: &str) -> i64 {
        let written = self.written(&format!("select cast(({sql}) as bigint)"));
        match self {
            Self::Sqlite(connection) => sqlx::query_scalar(written).fetch_one(&mut **connection).await,
            Self::Postgres(connection) => sqlx::query_scalar(written).fetch_one(&mut **connection).await,
        }
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Rows of a table.
    pub async fn count(&mut self, table: &str) -> i64 {
        self.number(&format!("select count(*) from @{table}")).await
    }

    /// Lets all leases end now.
    pub async fn expire_leases(&mut self) -> u64 {
        self.make_due("lease_token is not null").await
    }

    /// Lets some deliveries be due now.
    pub async fn make_due(&mut self, which: &str) -> u64 {
        let ago = self.span(Duration::from_millis(1));
        // Its order among what is due stays: moved only if it is not due yet.
        self.run(&format!(
            "update @delivery set available_at = now() - {ago} where available_at > now() and ({which})"
        ))
        .await
    }
}
