//! The application on SQLite: each transaction begins as a writer, and waits for its turn.

use std::{str::FromStr, time::Duration};

use anyhow::{Context, Result};
use sqlx::{
    Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::{
    database::{CarrierStats, STATE_NAMESPACE},
    flight::Flight,
};

/// How long a transaction waits for another writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to an SQLite file.
pub struct Sqlite(SqliteConnection);

impl Sqlite {
    /// Opens the file, which must exist.
    ///
    /// # Errors
    /// If it does not, or cannot be opened.
    pub async fn connect(url: &str) -> Result<Self> {
        let options = SqliteConnectOptions::from_str(url)?
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let connection = SqliteConnection::connect_with(&options).await.with_context(|| {
            format!("could not open {url}; `laneway run` or `laneway migrate` creates the file")
        })?;
        Ok(Self(connection))
    }

    /// Creates the application's own table if it is missing.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn create_table(&mut self) -> Result<()> {
        sqlx::raw_sql(
            "-- flight.create
            CREATE TABLE IF NOT EXISTS flight (
                flight_id INTEGER PRIMARY KEY,
                date      TEXT NOT NULL,
                carrier   TEXT NOT NULL,
                flight    INTEGER NOT NULL,
                origin    TEXT NOT NULL,
                dest      TEXT NOT NULL,
                dep_delay INTEGER
            ) STRICT",
        )
        .execute(&mut self.0)
        .await
        .context("could not create the table `flight`")?;
        Ok(())
    }

    /// Inserts flights, and for each new one its message, in one transaction. Answers how many were new.
    ///
    /// # Errors
    /// If the database refuses; nothing is inserted then.
    pub async fn insert(&mut self, flights: &[Flight]) -> Result<u64> {
        // IMMEDIATE takes the writer's turn first: a transaction that began as a reader could not wait for it.
        let mut transaction = self.0.begin_with("BEGIN IMMEDIATE").await?;
        let mut inserted = 0;
        for flight in flights {
            let new = sqlx::query(
                "-- flight.insert
                INSERT INTO flight (flight_id, date, carrier, flight, origin, dest, dep_delay)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
            )
            .bind(flight.flight_id)
            .bind(&flight.date)
            .bind(&flight.carrier)
            .bind(flight.flight)
            .bind(&flight.origin)
            .bind(&flight.dest)
            .bind(flight.dep_delay)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            // A flight that was there already was announced in the transaction that inserted it.
            if new == 0 {
                continue;
            }
            sqlx::query(
                "-- message.insert
                INSERT INTO laneway_message (id, topic, payload)
                VALUES (?1, 'flights.departed', ?2) ON CONFLICT DO NOTHING",
            )
            .bind(flight.message_id())
            .bind(flight.payload()?)
            .execute(&mut *transaction)
            .await
            .context("could not insert into the outbox; `laneway run` or `laneway migrate` creates it")?;
            inserted += 1;
        }
        transaction.commit().await?;
        Ok(inserted)
    }

    /// What the handler has counted, by carrier.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn carriers(&mut self) -> Result<Vec<CarrierStats>> {
        let rows = sqlx::query(
            "-- state.carriers
            SELECT key, CAST(value AS BLOB) AS value FROM laneway_state
            WHERE namespace = ?1 ORDER BY key",
        )
        .bind(STATE_NAMESPACE)
        .fetch_all(&mut self.0)
        .await
        .context("could not read the state")?;
        let mut carriers = Vec::with_capacity(rows.len());
        for row in rows {
            carriers.extend(CarrierStats::from_state(row.try_get("key")?, row.try_get("value")?)?);
        }
        Ok(carriers)
    }
}
