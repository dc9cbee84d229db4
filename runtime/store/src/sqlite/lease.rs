//! Leases in hand, and when the next delivery becomes due.

use std::collections::HashSet;
use std::time::Duration;

use laneway_core::{DeliveryId, Held, LeaseToken, Renewal, StoreError, SubscriptionId};
use sqlx::Row;

use super::connection::{Connections, Reader, json, millis, now_ms};
use super::writer::{Durability, Script};

/// Renews leases. Answers the deliveries whose lease no longer held.
pub(super) async fn renew(
    connections: &Connections,
    renewals: &[Renewal],
) -> Result<Vec<(LeaseToken, DeliveryId)>, StoreError> {
    let mut lost = Vec::new();
    if renewals.iter().all(|renewal| renewal.deliveries.is_empty()) {
        return Ok(lost);
    }
    let mut transaction = connections.begin(Durability::Buffered).await?;
    for renewal in renewals {
        let ids = json(&renewal.deliveries)?;
        let query = concat!(
            "-- lease.renew
            UPDATE laneway_delivery SET available_at = ",
            now_ms!(),
            " + ?1
            WHERE lease_token = ?2 AND id IN (SELECT value FROM json_each(?3))"
        );
        let statement = sqlx::query(query).bind(millis(renewal.lease)).bind(renewal.token.0).bind(ids.as_str());
        let renewed = transaction.execute(statement).await?.rows_affected();
        if usize::try_from(renewed).is_ok_and(|renewed| renewed == renewal.deliveries.len()) {
            continue;
        }
        let query = "-- lease.held
            SELECT id FROM laneway_delivery WHERE lease_token = ? AND id IN (SELECT value FROM json_each(?))";
        let mut held: HashSet<i64> = HashSet::new();
        transaction
            .each(sqlx::query(query).bind(renewal.token.0).bind(ids), |row| {
                held.insert(row.try_get(0)?);
                Ok(())
            })
            .await?;
        let gone = renewal.deliveries.iter().filter(|delivery| !held.contains(&delivery.0));
        lost.extend(gone.map(|&delivery| (renewal.token, delivery)));
    }
    transaction.commit().await?;
    Ok(lost)
}

/// Notes that deliveries begin, all in one transaction. Answers those whose lease no longer held.
pub(super) async fn begin(connections: &Connections, deliveries: &[Held]) -> Result<Vec<Held>, StoreError> {
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    let pairs: Vec<[i64; 2]> = deliveries.iter().map(|held| [held.delivery.0, held.token.0]).collect();
    let mut script = Script::new();
    script.step(
        "-- lease.begin
        UPDATE laneway_delivery AS d SET begun_token = d.lease_token
        FROM (SELECT value ->> 0 AS id, value ->> 1 AS token FROM json_each(?)) b
        WHERE d.id = b.id AND d.lease_token = b.token
        RETURNING id, lease_token",
    );
    script.bind(json(&pairs)?)?;
    // A delivery may be asked for under several tokens, of which one holds at most.
    let mut begun: HashSet<(i64, i64)> = HashSet::new();
    // What may end the machine must be known after a loss of power too.
    connections
        .run(Durability::Flushed, script, |row| {
            begun.insert((row.try_get(0)?, row.try_get(1)?));
            Ok(())
        })
        .await?;
    Ok(deliveries.iter().filter(|held| !begun.contains(&(held.delivery.0, held.token.0))).copied().collect())
}

/// Time until the earliest delivery that is not yet due becomes so.
pub(super) async fn next_due(
    reader: &mut Reader,
    subscription: SubscriptionId,
) -> Result<Option<Duration>, StoreError> {
    // One index probe a lane and priority that has deliveries, and one for its first that is not due.
    let query = concat!(
        "-- lease.next_due
        WITH RECURSIVE hop (lane, priority) AS (
            SELECT l.value, (SELECT max(d.priority) FROM laneway_delivery d
                WHERE d.subscription_id = ?1 AND d.lane = l.value AND d.parked IS NOT 1)
            FROM json_each('[0,1]') l
            UNION ALL
            SELECT hop.lane, (SELECT max(d.priority) FROM laneway_delivery d
                WHERE d.subscription_id = ?1 AND d.lane = hop.lane AND d.parked IS NOT 1 AND d.priority < hop.priority)
            FROM hop WHERE hop.priority IS NOT NULL
        )
        SELECT min((SELECT min(d.available_at) FROM laneway_delivery d
            WHERE d.subscription_id = ?1 AND d.lane = hop.lane AND d.priority = hop.priority
            AND d.parked IS NOT 1 AND d.available_at > ",
        now_ms!(),
        ")) - ",
        now_ms!(),
        "
        FROM hop WHERE hop.priority IS NOT NULL"
    );
    let statement = sqlx::query(query).bind(subscription.0);
    let wait: Option<Option<i64>> = reader.optional(statement, |row| row.try_get(0)).await?;
    Ok(wait.flatten().map(|wait| Duration::from_millis(u64::try_from(wait).unwrap_or_default())))
}

/// Time until the earliest delivery of each subscription that has any. One probe for each subscription, lane and priority
/// that something waits in.
pub(super) async fn upcoming(reader: &mut Reader) -> Result<Vec<(SubscriptionId, Duration)>, StoreError> {
    let query = concat!(
        "-- lease.upcoming
        WITH RECURSIVE owed (subscription_id) AS (
            SELECT min(d.subscription_id) FROM laneway_delivery d WHERE d.parked IS NOT 1
            UNION ALL
            SELECT (SELECT min(d.subscription_id) FROM laneway_delivery d
                WHERE d.parked IS NOT 1 AND d.subscription_id > owed.subscription_id)
            FROM owed WHERE owed.subscription_id IS NOT NULL
        ), hop (subscription_id, lane, priority) AS (
            SELECT o.subscription_id, l.value, (SELECT max(d.priority) FROM laneway_delivery d
                WHERE d.subscription_id = o.subscription_id AND d.lane = l.value AND d.parked IS NOT 1)
            FROM owed o CROSS JOIN json_each('[0,1]') l WHERE o.subscription_id IS NOT NULL
            UNION ALL
            SELECT hop.subscription_id, hop.lane, (SELECT max(d.priority) FROM laneway_delivery d
                WHERE d.subscription_id = hop.subscription_id AND d.lane = hop.lane AND d.parked IS NOT 1
                    AND d.priority < hop.priority)
            FROM hop WHERE hop.priority IS NOT NULL
        )
        SELECT hop.subscription_id, min((SELECT min(d.available_at) FROM laneway_delivery d
            WHERE d.subscription_id = hop.subscription_id AND d.lane = hop.lane AND d.priority = hop.priority
            AND d.parked IS NOT 1)) - ",
        now_ms!(),
        "
        FROM hop WHERE hop.priority IS NOT NULL GROUP BY hop.subscription_id"
    );
    let due = |row: &sqlx::sqlite::SqliteRow| {
        let wait: i64 = row.try_get(1)?;
        Ok((SubscriptionId(row.try_get(0)?), Duration::from_millis(u64::try_from(wait).unwrap_or_default())))
    };
    reader.all(sqlx::query(query), due).await
}
