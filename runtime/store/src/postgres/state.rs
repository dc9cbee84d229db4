//! Handlers' state: keys with versions, and counters.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use laneway_core::{CounterAdd, KeyChange, Name, StateEntry, StateVersion};
use sqlx::Row as _;

use super::connection::{Database, Outcome, Session};

/// Reads a key.
pub(super) async fn read(database: &Database, namespace: &Name, key: &str) -> Outcome<Option<StateEntry>> {
    let query = "-- state.read
        SELECT value, version FROM laneway.state WHERE namespace = $1 AND key = $2";
    let statement = sqlx::query(query).bind(namespace.as_str()).bind(key);
    let Some(row) = database.connection().await?.optional(statement).await? else { return Ok(None) };
    let value = Bytes::from(row.try_get::<Vec<u8>, _>(0)?);
    Ok(Some(StateEntry { value, version: StateVersion(row.try_get(1)?) }))
}

/// Reads a counter.
pub(super) async fn counter(database: &Database, namespace: &Name, key: &str) -> Outcome<i64> {
    let query = "-- state.counter
        SELECT value FROM laneway.counter WHERE namespace = $1 AND key = $2";
    let statement = sqlx::query(query).bind(namespace.as_str()).bind(key);
    match database.connection().await?.optional(statement).await? {
        Some(row) => row.try_get(0),
        None => Ok(0),
    }
}

/// A key that is not as it was read.
type Stale = Vec<(Name, Arc<str>)>;

/// Checks and writes a group's keys. If any is stale, they are answered and the transaction must be rolled back.
///
/// Locks that wait are taken in the order of keys: on those to be replaced, then on those to be created, so that
/// two nodes with the same keys do not wait for each other in a circle. Keys that are only checked are looked at
/// last and without waiting: one that another transaction is about to write is as good as stale.
pub(super) async fn write(session: &mut impl Session, changes: &[KeyChange]) -> Outcome<Stale> {
    let mut sorted: Vec<&KeyChange> = changes.iter().collect();
    sorted.sort_by(|a, b| (&a.namespace, &a.key).cmp(&(&b.namespace, &b.key)));
    let select = |choose: fn(&KeyChange) -> bool| sorted.iter().copied().filter(|change| choose(change)).collect();

    // A blind write's key is locked with the others for the order only.
    let replaced: Vec<_> = select(|change| change.write.is_some() && change.expected != Some(None));
    if replaced.iter().any(|change| change.expected.is_some()) {
        let query = "-- state.lock
            SELECT g.place, s.version
            FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS g(namespace, key, place)
            JOIN laneway.state s ON s.namespace = g.namespace AND s.key = g.key
            ORDER BY g.place FOR UPDATE OF s";
        let stale = check(session, query, &replaced).await?;
        if !stale.is_empty() {
            return Ok(stale);
        }
    }
    // Absence cannot be locked, but creating the key claims it.
    let created: Vec<_> = select(|change| change.expected == Some(None));
    if !created.is_empty() {
        let stale = create(session, &created).await?;
        if !stale.is_empty() {
            return Ok(stale);
        }
    }
    let put: Vec<_> = select(|change| matches!(change.write, Some((_, Some(_)))) && change.expected != Some(None));
    if !put.is_empty() {
        let query = "-- state.put
            INSERT INTO laneway.state (namespace, key, version, value)
            SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[])
            ON CONFLICT (namespace, key) DO UPDATE SET version = excluded.version, value = excluded.value";
        let (versions, values) = written(&put);
        let statement = sqlx::query(query).bind(namespaces(&put)).bind(keys(&put)).bind(versions).bind(values);
        session.execute(statement).await?;
    }
    let deleted: Vec<_> = select(|change| match change.write {
        Some((_, None)) => true,
        Some((_, Some(_))) => false,
        None => change.expected == Some(None),
    });
    if !deleted.is_empty() {
        let query = "-- state.delete
            DELETE FROM laneway.state s USING unnest($1::text[], $2::text[]) AS g(namespace, key)
            WHERE s.namespace = g.namespace AND s.key = g.key";
        session.execute(sqlx::query(query).bind(namespaces(&deleted)).bind(keys(&deleted))).await?;
    }
    let checked: Vec<_> = select(|change| change.write.is_none() && matches!(change.expected, Some(Some(_))));
    if checked.is_empty() {
        return Ok(Vec::new());
    }
    let query = "-- state.check
        SELECT g.place, s.version
        FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS g(namespace, key, place)
        JOIN laneway.state s ON s.namespace = g.namespace AND s.key = g.key
        FOR SHARE OF s SKIP LOCKED";
    check(session, query, &checked).await
}

/// Runs a query that locks keys and answers their versions; answers those that are not as expected.
async fn check(session: &mut impl Session, query: &'static str, changes: &[&KeyChange]) -> Outcome<Stale> {
    let statement = sqlx::query(query).bind(namespaces(changes)).bind(keys(changes));
    let mut versions: HashMap<i64, StateVersion> = HashMap::with_capacity(changes.len());
    for row in session.all(statement).await? {
        versions.insert(row.try_get(0)?, StateVersion(row.try_get(1)?));
    }
    Ok((1..)
        .zip(changes)
        .filter(|(place, change)| change.expected.is_some_and(|expected| expected != versions.get(place).copied()))
        .map(|(_, change)| (change.namespace.clone(), change.key.clone()))
        .collect())
}

/// Creates keys that must be absent; those that are only checked or are to be deleted get a value for the moment.
async fn create(session: &mut impl Session, changes: &[&KeyChange]) -> Outcome<Stale> {
    let query = "-- state.create
        WITH created AS (
            INSERT INTO laneway.state (namespace, key, version, value)
            SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[])
            ON CONFLICT (namespace, key) DO NOTHING
            RETURNING namespace, key
        )
        SELECT g.place FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS g(namespace, key, place)
        WHERE (SELECT count(*) FROM created) < cardinality($1)
            AND NOT EXISTS (SELECT FROM created c WHERE c.namespace = g.namespace AND c.key = g.key)";
    let (versions, values) = written(changes);
    let statement = sqlx::query(query).bind(namespaces(changes)).bind(keys(changes)).bind(versions).bind(values);
    let mut stale = Vec::new();
    for row in session.all(statement).await? {
        let place = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or_default();
        if let Some(change) = place.checked_sub(1).and_then(|index| changes.get(index)) {
            stale.push((change.namespace.clone(), change.key.clone()));
        }
    }
    Ok(stale)
}

fn namespaces<'a>(changes: &[&'a KeyChange]) -> Vec<&'a str> {
    changes.iter().map(|change| change.namespace.as_str()).collect()
}

fn keys<'a>(changes: &[&'a KeyChange]) -> Vec<&'a str> {
    changes.iter().map(|change| &*change.key).collect()
}

fn written<'a>(changes: &[&'a KeyChange]) -> (Vec<i64>, Vec<&'a [u8]>) {
    changes
        .iter()
        .map(|change| match &change.write {
            Some((version, value)) => (version.0, value.as_deref().unwrap_or_default()),
            None => (0, &[][..]),
        })
        .unzip()
}

/// Adds to counters, each once, in the order of their keys.
pub(super) async fn add(session: &mut impl Session, adds: impl Iterator<Item = &CounterAdd>) -> Outcome<()> {
    let mut sums: BTreeMap<(&Name, &str), i64> = BTreeMap::new();
    for add in adds {
        let sum = sums.entry((&add.namespace, &add.key)).or_default();
        *sum = sum.wrapping_add(add.delta);
    }
    if sums.is_empty() {
        return Ok(());
    }
    let query = "-- state.add
        INSERT INTO laneway.counter AS c (namespace, key, value)
        SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
        ON CONFLICT (namespace, key) DO UPDATE SET value = laneway.wrapping_add(c.value, excluded.value)";
    let statement = sqlx::query(query)
        .bind(sums.keys().map(|(namespace, _)| namespace.as_str()).collect::<Vec<_>>())
        .bind(sums.keys().map(|(_, key)| *key).collect::<Vec<_>>())
        .bind(sums.values().copied().collect::<Vec<_>>());
    session.execute(statement).await
}
