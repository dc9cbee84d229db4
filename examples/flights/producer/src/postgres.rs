//! The application on PostgreSQL: a transaction is two statements, however many flights it has.

use std::collections::HashSet;

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection, Row};

use crate::{
    database::{CarrierStats, STATE_NAMESPACE},
    flight::Flight,
};

/// A connection to PostgreSQL.
pub struct Postgres(PgConnection);

impl Postgres {
    /// Connects.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn connect(url: &str) -> Result<Self> {
        Ok(Self(PgConnection::connect(url).await.context("could not connect to PostgreSQL")?))
    }

    /// Creates the application's own table if it is missing.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn create_table(&mut self) -> Result<()> {
        sqlx::raw_sql(
            "-- flight.create
            SET client_min_messages = warning;
            CREATE TABLE IF NOT EXISTS flight (
                flight_id bigint PRIMARY KEY,
                date      date NOT NULL,
                carrier   text NOT NULL,
                flight    integer NOT NULL,
                origin    text NOT NULL,
                dest      text NOT NULL,
                dep_delay integer
            )",
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
        let column =
            |of: fn(&Flight) -> &str| flights.iter().map(|flight| of(flight).to_owned()).collect::<Vec<_>>();
        let mut transaction = self.0.begin().await?;
        let new: Vec<i64> = sqlx::query_scalar(
            "-- flight.insert
            INSERT INTO flight (flight_id, date, carrier, flight, origin, dest, dep_delay)
            SELECT flight_id, date::date, carrier, flight, origin, dest, dep_delay
            FROM unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[], $7::integer[])
                AS row (flight_id, date, carrier, flight, origin, dest, dep_delay)
            ON CONFLICT DO NOTHING RETURNING flight_id",
        )
        .bind(flights.iter().map(|flight| flight.flight_id).collect::<Vec<_>>())
        .bind(column(|flight| &flight.date))
        .bind(column(|flight| &flight.carrier))
        .bind(flights.iter().map(|flight| flight.flight).collect::<Vec<_>>())
        .bind(column(|flight| &flight.origin))
        .bind(column(|flight| &flight.dest))
        .bind(flights.iter().map(|flight| flight.dep_delay).collect::<Vec<_>>())
        .fetch_all(&mut *transaction)
        .await?;

        // A flight that was there already was announced in the transaction that inserted it.
        let new: HashSet<i64> = new.into_iter().collect();
        let mut ids = Vec::with_capacity(new.len());
        let mut payloads = Vec::with_capacity(new.len());
        for flight in flights.iter().filter(|flight| new.contains(&flight.flight_id)) {
            ids.push(flight.message_id());
            payloads.push(flight.payload()?.into_bytes());
        }
        sqlx::query(
            "-- message.insert
            INSERT INTO laneway.message (id, topic, payload)
            SELECT id, 'flights.departed', payload FROM unnest($1::text[], $2::bytea[]) AS row (id, payload)
            ON CONFLICT DO NOTHING",
        )
        .bind(ids)
        .bind(payloads)
        .execute(&mut *transaction)
        .await
        .context("could not insert into the outbox; `laneway migrate` creates it")?;
        transaction.commit().await?;
        Ok(new.len() as u64)
    }

    /// What the handler has counted, by carrier.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn carriers(&mut self) -> Result<Vec<CarrierStats>> {
        let rows = sqlx::query(
            "-- state.carriers
            SELECT key, value FROM laneway.state
            WHERE namespace = $1 ORDER BY key COLLATE \"C\"",
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
