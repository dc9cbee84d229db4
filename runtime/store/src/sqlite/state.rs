//! The handlers' state: reads, and what a settled group does to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use laneway_core::{CounterAdd, KeyChange, Name, StateEntry, StateVersion, StoreError};
use sqlx::Row;

use super::connection::{Reader, json, to_hex};
use super::writer::{Script, stop};

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

macro_rules! unexpected {
    () => {
        "FROM json_each(?) e
        LEFT JOIN laneway_state s ON s.namespace = e.value ->> 0 AND s.key = e.value ->> 1
        WHERE s.version IS NOT e.value ->> 2"
    };
}

/// Stops the script unless keys have the versions that were read.
pub(super) fn guard(script: &mut Script, expecting: &[&KeyChange]) -> Result<(), StoreError> {
    if expecting.is_empty() {
        return Ok(());
    }
    script.step(concat!("-- state.guard\nSELECT ", stop!("e.key"), " ", unexpected!()));
    script.bind(expectations(expecting)?)
}

/// Keys that do not have the version that was read.
pub(super) async fn find_stale(
    reader: &mut Reader,
    keys: &[KeyChange],
) -> Result<Vec<(Name, Arc<str>)>, StoreError> {
    let expecting: Vec<&KeyChange> = keys.iter().filter(|change| change.expected.is_some()).collect();
    let query = concat!("-- state.find_stale\nSELECT e.key ", unexpected!());
    let statement = sqlx::query(query).bind(expectations(&expecting)?);
    let positions = reader.all(statement, |row| row.try_get::<i64, _>(0)).await?;
    let stale = positions.into_iter().filter_map(|position| expecting.get(usize::try_from(position).ok()?));
    Ok(stale.map(|change| (change.namespace.clone(), Arc::clone(&change.key))).collect())
}

/// Writes and deletes keys.
pub(super) fn write(script: &mut Script, keys: &[KeyChange]) -> Result<(), StoreError> {
    let mut puts: Vec<(&str, &str, String, i64)> = Vec::new();
    let mut deletes: Vec<(&str, &str)> = Vec::new();
    for change in keys {
        match &change.write {
            Some((version, Some(value))) => {
                puts.push((change.namespace.as_str(), &change.key, to_hex(value), version.0));
            }
            Some((_, None)) => deletes.push((change.namespace.as_str(), &change.key)),
            None => {}
        }
    }
    if !puts.is_empty() {
        // Without WHERE the parser takes ON for the join's.
        script.step(
            "-- state.put
            INSERT INTO laneway_state (namespace, key, value, version)
            SELECT value ->> 0, value ->> 1, unhex(value ->> 2), value ->> 3 FROM json_each(?) WHERE true
            ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value, version = excluded.version",
        );
        script.bind(json(&puts)?)?;
    }
    if !deletes.is_empty() {
        script.step(
            "-- state.delete
            DELETE FROM laneway_state WHERE (namespace, key) IN
                (SELECT e.value ->> 0, e.value ->> 1 FROM json_each(?) e)",
        );
        script.bind(json(&deletes)?)?;
    }
    Ok(())
}

/// Adds to counters, each once.
pub(super) fn add<'a>(script: &mut Script, adds: impl Iterator<Item = &'a CounterAdd>) -> Result<(), StoreError> {
    let mut sums: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for add in adds {
        let sum = sums.entry((add.namespace.as_str(), &add.key)).or_default();
        *sum = sum.wrapping_add(add.delta);
    }
    if sums.is_empty() {
        return Ok(());
    }
    // A sum that leaves 64 bits turns real in SQLite. Then both have the same sign, and each is moved by half of the
    // range before they are added.
    script.step(
        "-- state.add
        INSERT INTO laneway_counter (namespace, key, value)
        SELECT e.value ->> 0, e.value ->> 1, e.value ->> 2 FROM json_each(?) e WHERE true
        ON CONFLICT (namespace, key) DO UPDATE SET value = CASE
            WHEN typeof(value + excluded.value) = 'integer' THEN value + excluded.value
            WHEN value < 0 THEN (value + 9223372036854775807 + 1) + (excluded.value + 9223372036854775807 + 1)
            ELSE (value - 9223372036854775807 - 1) + (excluded.value - 9223372036854775807 - 1)
        END",
    );
    let rows: Vec<(&str, &str, i64)> =
        sums.into_iter().map(|((namespace, key), sum)| (namespace, key, sum)).collect();
    script.bind(json(&rows)?)
}
