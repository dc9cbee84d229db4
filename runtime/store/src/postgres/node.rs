//! The nodes' signs of life.

use std::time::Duration;

use laneway_core::{Name, Node};
use sqlx::Row as _;

use super::connection::{Database, Outcome, Session, count, microseconds, unreadable};

/// Notes that a node is alive. Answers how many were lately, this one included.
pub(super) async fn heartbeat(database: &Database, node: &Name, alive_for: Duration) -> Outcome<u32> {
    let query = "-- node.heartbeat
        WITH beat AS (
            INSERT INTO laneway.node (name, seen_at) VALUES ($1, now())
            ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at
        )
        SELECT count(*) + 1 FROM laneway.node
        WHERE name <> $1 AND seen_at > now() - $2::bigint * interval '1 microsecond'";
    let statement = sqlx::query(query).bind(node.as_str()).bind(microseconds(alive_for));
    let row = database.connection().await?.one(statement).await?;
    Ok(u32::try_from(count(&row, 0)?).unwrap_or(u32::MAX))
}

/// Notes who a node is, forgets the long dead, and answers the living of its name.
pub(super) async fn greet(database: &Database, node: &Node, alive_for: Duration) -> Outcome<Vec<Node>> {
    let query = "-- node.greet
        WITH named AS (
            INSERT INTO laneway.node AS n (name, seen_at, label, place, since) VALUES ($1, now(), $2, $3, now())
            ON CONFLICT (name) DO UPDATE SET label = excluded.label, place = excluded.place,
                since = coalesce(n.since, excluded.since)
            WHERE n.label IS DISTINCT FROM excluded.label OR n.since IS NULL
        ), forgotten AS (
            DELETE FROM laneway.node WHERE name <> $1 AND seen_at < now() - interval '1 day'
        )
        SELECT o.name, coalesce(o.place, '') FROM laneway.node us
        JOIN laneway.node o ON o.name <> us.name AND coalesce(o.label, o.name) = $2
            AND us.since IS NOT NULL AND o.seen_at > greatest(us.since, now() - $4::bigint * interval '1 microsecond')
        WHERE us.name = $1 ORDER BY o.name";
    let statement = sqlx::query(query)
        .bind(node.id.as_str())
        .bind(node.name.as_str())
        .bind(&node.place)
        .bind(microseconds(alive_for));
    let rows = database.connection().await?.all(statement).await?;
    rows.iter()
        .map(|row| {
            let id = Name::parse(row.try_get(0)?).map_err(unreadable)?;
            Ok(Node { id, name: node.name.clone(), place: row.try_get(1)? })
        })
        .collect()
}

/// Forgets a node that has stopped.
pub(super) async fn sign_off(database: &Database, node: &Name) -> Outcome<()> {
    let query = "-- node.sign_off
        DELETE FROM laneway.node WHERE name = $1";
    database.connection().await?.execute(sqlx::query(query).bind(node.as_str())).await
}
