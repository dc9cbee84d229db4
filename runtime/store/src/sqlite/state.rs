//! The handlers' state: reads, and what a settled group does to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use laneway_core::{CounterAdd, KeyChange, Name, StateEntry, StateVersion, StoreError};
use sqlx::Row;

use super::connection::{Reader, json};
use super::native::Native;

/// Reads a key.
pub(super) async fn state(
    reader: &mut Reader,
    namespace: &Name,
    key: &str,
) -> Result<Option<StateEntry>, StoreError> {
    let query = "-- state.get
        SELECT value, version FROM laneway_state WHERE namespace = ? AND key = ?";
    let statement = sqlx::query(query).bind(namespace.as_str()).bind(key);
    reader
        .optional(statement, |row| {
            Ok(StateEntry {
                value: Bytes::from(row.try_get::<Vec<u8>, _>(0)?),
                version: StateVersion(row.try_get(1)?),
            })
        })
        .await
}

/// Reads a counter.
pub(super) async fn counter(reader: &mut Reader, namespace: &Name, key: &str) -> Result<i64, StoreError> {
    let query = "-- state.counter
        SELECT value FROM laneway_counter WHERE namespace = ? AND key = ?";
    let statement = sqlx::query(query).bind(namespace.as_str()).bind(key);
    Ok(reader.optional(statement, |row| row.try_get(0)).await?.unwrap_or_default())
}

/// A change's key and the version that the database must hold now, as a check reads them.
fn expectations(changes: &[&KeyChange]) -> Result<String, StoreError> {
    let rows: Vec<(&str, &str, Option<i64>)> = changes
        .iter()
        .map(|change| (change.namespace.as_str(), &*change.key, change.expected.flatten().map(|version| version.0)))
        .collect();
    json(&rows)
}

/// Whether keys have the versions that were read.
pub(super) fn is_as_read(native: &mut Native<'_>, keys: &[KeyChange]) -> Result<bool, StoreError> {
    let mut version = native.statement(
        "-- state.version
        SELECT version FROM laneway_state WHERE namespace = ? AND key = ?",
    )?;
    for change in keys {
        let Some(expected) = change.expected else { continue };
        let mut found = None;
        let values = [change.namespace.as_str().into(), (&*change.key).into()];
        version.each(&values, |row| found = Some(StateVersion(row.integer(0))))?;
        if found != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Keys that do not have the version that was read.
pub(super) async fn find_stale(
    reader: &mut Reader,
    keys: &[KeyChange],
) -> Result<Vec<(Name, Arc<str>)>, StoreError> {
    let expecting: Vec<&KeyChange> = keys.iter().filter(|change| change.expected.is_some()).collect();
    let query = "-- state.find_stale
        SELECT e.key FROM json_each(?) e
        LEFT JOIN laneway_state s ON s.namespace = e.value ->> 0 AND s.key = e.value ->> 1
        WHERE s.version IS NOT e.value ->> 2";
    let statement = sqlx::query(query).bind(expectations(&expecting)?);
    let positions = reader.all(statement, |row| row.try_get::<i64, _>(0)).await?;
    let stale = positions.into_iter().filter_map(|position| expecting.get(usize::try_from(position).ok()?));
    Ok(stale.map(|change| (change.namespace.clone(), Arc::clone(&change.key))).collect())
}

/// Writes and deletes keys.
pub(super) fn write(native: &mut Native<'_>, keys: &[KeyChange]) -> Result<(), StoreError> {
    for change in keys {
        let (namespace, key) = (change.namespace.as_str().into(), (&*change.key).into());
        match &change.write {
            Some((version, Some(value))) => {
                let put = "-- state.put
                    INSERT INTO laneway_state (namespace, key, value, version) VALUES (?, ?, ?, ?)
                    ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value, version = excluded.version";
                native.run(put, &[namespace, key, (&**value).into(), version.0.into()])?;
            }
            Some((_, None)) => {
                let delete = "-- state.delete
                    DELETE FROM laneway_state WHERE namespace = ? AND key = ?";
                native.run(delete, &[namespace, key])?;
            }
            None => {}
        }
    }
    Ok(())
}

/// What is added to each counter.
pub(super) type Sums = BTreeMap<(Name, Arc<str>), i64>;

pub(super) fn sums<'a>(adds: impl Iterator<Item = &'a CounterAdd>) -> Sums {
    let mut sums = Sums::new();
    for add in adds {
        let sum = sums.entry((add.namespace.clone(), add.key.clone())).or_default();
        *sum = sum.wrapping_add(add.delta);
    }
    sums
}

/// Adds to counters, each once.
pub(super) fn add(native: &mut Native<'_>, sums: &Sums) -> Result<(), StoreError> {
    // A sum that leaves 64 bits turns real in SQLite. Then both have the same sign, and each is moved by half of the
    // range before they are added.
    let mut add = native.statement(
        "-- state.add
        INSERT INTO laneway_counter (namespace, key, value) VALUES (?, ?, ?)
        ON CONFLICT (namespace, key) DO UPDATE SET value = CASE
            WHEN typeof(value + excluded.value) = 'integer' THEN value + excluded.value
            WHEN value < 0 THEN (value + 9223372036854775807 + 1) + (excluded.value + 9223372036854775807 + 1)
            ELSE (value - 9223372036854775807 - 1) + (excluded.value - 9223372036854775807 - 1)
        END",
    )?;
    for ((namespace, key), sum) in sums {
        add.run(&[namespace.as_str().into(), (&**key).into(), (*sum).into()])?;
    }
    Ok(())
}
