//! The nodes' signs of life.

use std::time::Duration;

use laneway_core::{Name, Node, StoreError};

use super::connection::{Connections, millis, now_ms};
use super::writer::Durability;

/// Notes that a node is alive. Answers how many were lately, this one included.
pub(super) async fn heartbeat(
    connections: &Connections,
    node: &Name,
    alive_for: Duration,
) -> Result<u32, StoreError> {
    let node = node.clone();
    let alive = connections.write(Durability::Buffered, move |native| {
        let heartbeat = concat!(
            "-- node.heartbeat
            INSERT INTO laneway_node (name, seen_at) VALUES (?, ",
            now_ms!(),
            ")
            ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at"
        );
        native.run(heartbeat, &[node.as_str().into()])?;
        let alive = concat!("-- node.alive\nSELECT count(*) FROM laneway_node WHERE seen_at > ", now_ms!(), " - ?");
        native.number(alive, &[millis(alive_for).into()]).map(Some)
    });
    Ok(alive.await?.and_then(|alive| u32::try_from(alive).ok()).unwrap_or(1))
}

/// Notes who a node is, forgets the long dead, and answers the living of its name.
pub(super) async fn greet(
    connections: &Connections,
    node: &Node,
    alive_for: Duration,
) -> Result<Vec<Node>, StoreError> {
    let of = node.clone();
    let namesakes = connections.write(Durability::Buffered, move |native| {
        let (id, name) = (of.id.as_str().into(), of.name.as_str().into());
        let greet = concat!(
            "-- node.greet
            INSERT INTO laneway_node AS n (name, label, place, seen_at, since)
            SELECT ?, ?, ?, c.now, c.now FROM (SELECT ",
            now_ms!(),
            " AS now) c WHERE true
            ON CONFLICT (name) DO UPDATE SET label = excluded.label, place = excluded.place,
                since = coalesce(n.since, excluded.since)
                WHERE n.label IS NOT excluded.label OR n.since IS NULL"
        );
        native.run(greet, &[id, name, of.place.as_str().into()])?;
        let forget = concat!(
            "-- node.forget\nDELETE FROM laneway_node WHERE name <> ? AND seen_at < ",
            now_ms!(),
            " - 86400000"
        );
        native.run(forget, &[id])?;
        let query = concat!(
            "-- node.namesakes
            SELECT o.name, coalesce(o.place, '') FROM laneway_node us
            JOIN laneway_node o ON o.name <> us.name AND coalesce(o.label, o.name) = ?
                AND o.seen_at > max(us.since, ",
            now_ms!(),
            " - ?)
            WHERE us.name = ? ORDER BY o.name"
        );
        let mut namesakes: Vec<(String, String)> = Vec::new();
        native.statement(query)?.each(&[name, millis(alive_for).into(), id], |row| {
            let mut text = |column| row.text(column).unwrap_or_default().into_owned();
            namesakes.push((text(0), text(1)));
        })?;
        Ok(Some(namesakes))
    });
    let namesakes = namesakes.await?.unwrap_or_default();
    let named = |(id, place): (String, String)| {
        let id = Name::parse(&id).map_err(|error| StoreError::Other(format!("a node's id: {error}")))?;
        Ok(Node { id, name: node.name.clone(), place })
    };
    namesakes.into_iter().map(named).collect()
}

/// Forgets a node that has stopped.
pub(super) async fn sign_off(connections: &Connections, node: &Name) -> Result<(), StoreError> {
    let node = node.clone();
    let sign_off = "-- node.sign_off\nDELETE FROM laneway_node WHERE name = ?";
    connections
        .write(Durability::Buffered, move |native| native.run(sign_off, &[node.as_str().into()]).map(Some))
        .await
        .map(drop)
}
