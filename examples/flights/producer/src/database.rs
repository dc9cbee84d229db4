//! The application's database, which is also Laneway's: an SQLite file or PostgreSQL, told by the URL.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::{flight::Flight, postgres::Postgres, sqlite::Sqlite};

/// The subscription's name, which is the namespace of its handler's state.
pub const STATE_NAMESPACE: &str = "delay-stats";

/// Begins the handler's keys by carrier; the carrier's code follows.
const CARRIER_PREFIX: &str = "carrier/";

/// What the handler has counted for one airline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CarrierStats {
    /// Code of the airline.
    pub carrier: String,
    /// Flights that left.
    pub departures: i64,
    /// Flights that did not.
    pub cancelled: i64,
    /// Sum of the delays of those that left, in minutes; early departures count as negative.
    pub delay_minutes: i64,
}

impl CarrierStats {
    /// Reads one entry of the handler's state; `None` if it is not one of a carrier.
    ///
    /// # Errors
    /// If the value is not what the handler writes.
    pub fn from_state(key: &str, value: &[u8]) -> Result<Option<Self>> {
        let Some(carrier) = key.strip_prefix(CARRIER_PREFIX) else { return Ok(None) };
        let value: Value = serde_json::from_slice(value)?;
        let number = |name: &str| match value.get(name).and_then(Value::as_i64) {
            Some(number) => Ok(number),
            None => bail!("state key {key:?} has no whole number {name:?} in {value}"),
        };
        Ok(Some(Self {
            carrier: carrier.to_owned(),
            departures: number("departures")?,
            cancelled: number("cancelled")?,
            delay_minutes: number("delay_minutes")?,
        }))
    }
}

/// A connection of the application.
pub enum Database {
    /// To an SQLite file.
    Sqlite(Sqlite),
    /// To PostgreSQL.
    Postgres(Postgres),
}

impl Database {
    /// Connects to `sqlite://FILE` or `postgres://...`.
    ///
    /// # Errors
    /// If the URL is of neither kind, or the database cannot be reached.
    pub async fn connect(url: &str) -> Result<Self> {
        if url.starts_with("sqlite:") {
            Ok(Self::Sqlite(Sqlite::connect(url).await?))
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Ok(Self::Postgres(Postgres::connect(url).await?))
        } else {
            bail!("database {url:?} is neither sqlite://FILE nor postgres://...");
        }
    }

    /// Creates the application's own table if it is missing.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn create_table(&mut self) -> Result<()> {
        match self {
            Self::Sqlite(database) => database.create_table().await,
            Self::Postgres(database) => database.create_table().await,
        }
    }

    /// Inserts flights, and for each new one its message, in one transaction. Answers how many were new.
    ///
    /// # Errors
    /// If the database refuses; nothing is inserted then.
    pub async fn insert(&mut self, flights: &[Flight]) -> Result<u64> {
        match self {
            Self::Sqlite(database) => database.insert(flights).await,
            Self::Postgres(database) => database.insert(flights).await,
        }
    }

    /// What the handler has counted, by carrier.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn carriers(&mut self) -> Result<Vec<CarrierStats>> {
        match self {
            Self::Sqlite(database) => database.carriers().await,
            Self::Postgres(database) => database.carriers().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Connection, SqliteConnection, raw_sql, sqlite::SqliteConnectOptions};

    use super::*;

    /// Laneway's schema, as its migrations make it.
    fn migrations(database: &str) -> String {
        let directory = format!("{}/../../../migrations/{database}", env!("CARGO_MANIFEST_DIR"));
        let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| std::fs::read_to_string(file).unwrap() + ";\n").collect()
    }

    fn flight(flight_id: i64) -> Flight {
        Flight {
            flight_id,
            date: "2013-01-01".to_owned(),
            carrier: "UA".to_owned(),
            flight: 1545,
            origin: "EWR".to_owned(),
            dest: "IAH".to_owned(),
            dep_delay: (flight_id % 2 == 0).then_some(2),
        }
    }

    /// The same on both databases: `count` answers how many rows a table has.
    async fn flight_and_message_stand_or_fall_together(
        database: &mut Database,
        message: &str,
        mut count: impl AsyncFnMut(&str) -> i64,
    ) {
        database.create_table().await.unwrap();
        database.create_table().await.unwrap();
        assert_eq!(database.insert(&[flight(1), flight(2)]).await.unwrap(), 2);
        assert_eq!((count("flight").await, count(message).await), (2, 2));
        assert_eq!(database.insert(&[flight(2), flight(3)]).await.unwrap(), 1, "flight 2 is there already");
        assert_eq!((count("flight").await, count(message).await), (3, 3));

        // Flight 4 has a message that the outbox refuses, so neither it nor flight 5 may stay.
        let refused = Flight { flight_id: 4, dest: "X".repeat(2 << 20), ..flight(4) };
        let error = database.insert(&[flight(5), refused]).await.unwrap_err();
        assert!(format!("{error:#}").contains("payload"), "{error:#}");
        assert_eq!((count("flight").await, count(message).await), (3, 3));
        assert_eq!(database.carriers().await.unwrap(), []);
    }

    #[tokio::test]
    async fn flight_and_message_stand_or_fall_together_on_sqlite() {
        let file = laneway_testing::sqlite::temp_file().unwrap();
        let options = SqliteConnectOptions::new().filename(file.path()).create_if_missing(true);
        let mut laneway = SqliteConnection::connect_with(&options).await.unwrap();
        raw_sql(AssertSqlSafe(migrations("sqlite"))).execute(&mut laneway).await.unwrap();
        // The runtime makes a trigger like this one when it applies a topology.
        raw_sql(
            "CREATE TRIGGER test_limit BEFORE INSERT ON laneway_message WHEN length(NEW.payload) > 1048576
            BEGIN SELECT RAISE(ABORT, 'payload: too large'); END",
        )
        .execute(&mut laneway)
        .await
        .unwrap();

        let url = format!("sqlite://{}", file.path().display());
        let mut database = Database::connect(&url).await.unwrap();
        flight_and_message_stand_or_fall_together(&mut database, "laneway_message", async |table| {
            let query = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            sqlx::query_scalar(query).fetch_one(&mut laneway).await.unwrap()
        })
        .await;
    }

    #[tokio::test]
    async fn flight_and_message_stand_or_fall_together_on_postgresql() {
        let Some(server) = laneway_testing::postgres::test_database().unwrap() else {
            laneway_testing::skip(
                "flight_and_message_stand_or_fall_together_on_postgresql",
                "there is no PostgreSQL server",
            );
            return;
        };
        let mut laneway = sqlx::PgConnection::connect(&server.url).await.unwrap();
        let schema = format!("CREATE SCHEMA IF NOT EXISTS laneway; {}", migrations("postgres"));
        raw_sql(AssertSqlSafe(schema)).execute(&mut laneway).await.unwrap();
        raw_sql("INSERT INTO laneway.setting VALUES ('payload_bytes_max', '1048576') ON CONFLICT DO NOTHING")
            .execute(&mut laneway)
            .await
            .unwrap();

        let mut database = Database::connect(&server.url).await.unwrap();
        flight_and_message_stand_or_fall_together(&mut database, "laneway.message", async |table| {
            let query = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            sqlx::query_scalar(query).fetch_one(&mut laneway).await.unwrap()
        })
        .await;
    }

    #[test]
    fn state_of_a_carrier_is_read_and_other_keys_are_passed_over() {
        let value = br#"{"departures":3,"cancelled":1,"delay_minutes":-7}"#;
        assert_eq!(
            CarrierStats::from_state("carrier/UA", value).unwrap(),
            Some(CarrierStats { carrier: "UA".to_owned(), departures: 3, cancelled: 1, delay_minutes: -7 })
        );
        assert_eq!(CarrierStats::from_state("other", value).unwrap(), None);
        let error = CarrierStats::from_state("carrier/UA", b"{\"departures\":3}").unwrap_err().to_string();
        assert!(error.contains("cancelled"), "{error}");
    }
}
