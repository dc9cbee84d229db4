//! Plain SQL beside the store: a producer of any language, and the hand that moves rows through time.

use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// A connection that knows nothing of the store. In its statements `@name` is the table of that name, `@owed`
/// the deliveries that are not settled, leased or not, and `now()` is the database's clock at this moment.
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
                .replace("@owed", "laneway_delivery")
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

    /// Begins a transaction that writes, at once: on SQLite a reader cannot become a writer while others write.
    pub async fn begin_writing(&mut self) {
        let begin = match self {
            Self::Sqlite(_) => "begin immediate",
            Self::Postgres(_) => "begin",
        };
        self.run(begin).await;
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

    /// Lets all leases end now; answers the deliveries that they held.
    pub async fn expire_leases(&mut self) -> u64 {
        self.make_due("lease_token is not null").await
    }

    /// Lets some deliveries be due now; the condition is on the columns of `@owed`.
    pub async fn make_due(&mut self, which: &str) -> u64 {
        let ago = self.span(Duration::from_millis(1));
        // Its order among what is due stays: moved only if it is not due yet.
        let which = format!("available_at > now() and ({which})");
        if let Self::Sqlite(_) = self {
            return self.run(&format!("update @owed set available_at = now() - {ago} where {which}")).await;
        }
        let owed = self.number(&format!("select count(*) from @owed where {which}")).await;
        // Of a lease that holds others too, only these end.
        self.run(&format!(
            "create temp table ending on commit drop as
                 select lease_token, message_seq from @owed where lease_token is not null and {which};
             insert into @delivery (message_seq, subscription_id, lane, priority, available_at, attempt,
                     first_attempt_at, last_error, key, lost)
                 select o.message_seq, o.subscription_id, o.lane, o.priority, now() - {ago}, o.attempt - uncounted.one,
                     case when o.attempt > uncounted.one then o.first_attempt_at end, o.last_error,
                     (select m.key from @message m join @subscription s on s.ordered
                         where s.id = o.subscription_id and m.seq = o.message_seq), o.lost + 1
                 from @owed o join @lease l on l.token = o.lease_token cross join lateral (select 1 - coalesce(
                     get_bit(l.begun, array_position(l.message_seqs, o.message_seq) - 1), 0) as one) uncounted
                 where (o.lease_token, o.message_seq) in (select * from ending)
                     and (select count(*) from ending e where e.lease_token = l.token) < bit_count(l.open);
             update @lease l set leased_until = now() - {ago}
                 where bit_count(open) = (select count(*) from ending where lease_token = token);
             update @lease l set open = open & ~(
                     select bit_or(set_bit(l.open # l.open, array_position(l.message_seqs, e.message_seq) - 1, 1))
                     from ending e where e.lease_token = l.token)
                 where token in (select lease_token from ending) and leased_until > now();
             update @delivery set available_at = now() - {ago}
                 where (message_seq, subscription_id) in
                     (select message_seq, subscription_id from @owed where lease_token is null and {which})"
        ))
        .await;
        owed.cast_unsigned()
    }
}

impl laneway_outbox::Session for Sql {
    fn connection(&mut self) -> laneway_outbox::Connection<'_> {
        match self {
            Self::Sqlite(connection) => laneway_outbox::Connection::Sqlite(connection),
            Self::Postgres(connection) => laneway_outbox::Connection::Postgres(connection),
        }
    }
}
