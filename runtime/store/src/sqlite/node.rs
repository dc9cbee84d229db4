//! The nodes' signs of life.

use std::time::Duration;

use laneway_core::{Name, Node, StoreError};
use sqlx::Row;

use super::connection::{Connections, millis, now_ms};
use super::writer::{Durability, Script};

/// Notes that a node is alive. Answers how many were lately, this one included.
pub(super) async fn heartbeat(
    connections: &Connections,
    node: &Name,
    alive_for: Duration,
) -> Result<u32, StoreError> {
    let mut script = Script::new();
    script.step(concat!(
        "-- node.heartbeat
        INSERT INTO laneway_node (name, seen_at) VALUES (?, ",
        now_ms!(),
        ")
        ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at"
    ));
    script.bind(node.as_str())?;
    script.step(concat!("-- node.alive\nSELECT count(*) FROM laneway_node WHERE seen_at > ", now_ms!(), " - ?"));
    script.bind(millis(alive_for))?;
    let mut alive = 1;
    connections
        .run(Durability::Buffered, script, |row| {
            alive = row.try_get(0)?;
            Ok(())
        })
        .await?;
    Ok(alive)
}

/// Notes who a node is, forgets the long dead, and answers the living of its name.
pub(super) async fn greet(
    connections: &Connections,
    node: &Node,
    alive_for: Duration,
) -> Result<Vec<Node>, StoreError> {
    let mut script = Script::new();
    script.step(concat!(
        "-- node.greet
        INSERT INTO laneway_node AS n (name, label, place, seen_at, since)
        SELECT ?, ?, ?, c.now, c.now FROM (SELECT ",
        now_ms!(),
        " AS now) c WHERE true
        ON CONFLICT (name) DO UPDATE SET label = excluded.label, place = excluded.place,
            since = coalesce(n.since, excluded.since)
            WHERE n.label IS NOT excluded.label OR n.since IS NULL"
    ));
    script.bind(node.id.as_str())?;
    script.bind(node.name.as_str())?;
    script.bind(node.place.as_str())?;
    script.step(concat!(
        "-- node.forget\nDELETE FROM laneway_node WHERE name <> ? AND seen_at < ",
        now_ms!(),
        " - 86400000"
    ));
    script.bind(node.id.as_str())?;
    script.step(concat!(
        "-- node.namesakes
        SELECT o.name, coalesce(o.place, '') FROM laneway_node us
        JOIN laneway_node o ON o.name <> us.name AND coalesce(o.label, o.name) = ?
            AND o.seen_at > max(us.since, ",
        now_ms!(),
        " - ?)
        WHERE us.name = ? ORDER BY o.name"
    ));
    script.bind(node.name.as_str())?;
    script.bind(millis(alive_for))?;
    script.bind(node.id.as_str())?;
    let mut namesakes = Vec::new();
    connections
        .run(Durability::Buffered, script, |row| {
            let id = Name::parse(row.try_get(0)?).map_err(|error| sqlx::Error::Decode(error.into()))?;
            namesakes.push(Node { id, name: node.name.clone(), place: row.try_get(1)? });
            Ok(())
        })
        .await?;
    Ok(namesakes)
}

/// Forgets a node that has stopped.
pub(super) async fn sign_off(connections: &Connections, node: &Name) -> Result<(), StoreError> {
    let mut script = Script::new();
    script.step("-- node.sign_off\nDELETE FROM laneway_node WHERE name = ?");
    script.bind(node.as_str())?;
    connections.run(Durability::Buffered, script, |_| Ok(())).await.map(drop)
}
