//! Leases in hand, and when the next delivery becomes due.

use std::time::Duration;

use laneway_core::{DeliveryId, Held, LeaseToken, Renewal, StoreError, SubscriptionId};
use sqlx::Row;

use super::connection::{Connections, Reader, millis, now_ms};
use super::writer::Durability;

/// Renews leases. Answers the deliveries whose lease no longer held.
pub(super) async fn renew(
    connections: &Connections,
    renewals: &[Renewal],
) -> Result<Vec<(LeaseToken, DeliveryId)>, StoreError> {
    if renewals.iter().all(|renewal| renewal.deliveries.is_empty()) {
        return Ok(Vec::new());
    }
    let renewals = renewals.to_vec();
    let lost = connections.write(Durability::Buffered, move |native| {
        let now = native.number(concat!("-- lease.now\nSELECT ", now_ms!()), &[])?;
        let mut renew = native.statement(
            "-- lease.renew
            UPDATE laneway_delivery SET available_at = ? WHERE id = ? AND lease_token = ?",
        )?;
        let mut lost = Vec::new();
        for renewal in renewals {
            let until = now.saturating_add(millis(renewal.lease));
            for delivery in renewal.deliveries {
                if renew.run(&[until.into(), delivery.0.into(), renewal.token.0.into()])? == 0 {
                    lost.push((renewal.token, delivery));
                }
            }
        }
        Ok(Some(lost))
    });
    Ok(lost.await?.unwrap_or_default())
}

/// Notes that deliveries begin, all in one transaction. Answers those whose lease no longer held.
pub(super) async fn begin(connections: &Connections, deliveries: &[Held]) -> Result<Vec<Held>, StoreError> {
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    let deliveries = deliveries.to_vec();
    // What may end the machine must be known after a loss of power too.
    let lost = connections.write(Durability::Flushed, move |native| {
        let mut begin = native.statement(
            "-- lease.begin
            UPDATE laneway_delivery SET begun_token = lease_token WHERE id = ? AND lease_token = ?",
        )?;
        let mut lost = Vec::new();
        for held in deliveries {
            if begin.run(&[held.delivery.0.into(), held.token.0.into()])? == 0 {
                lost.push(held);
            }
        }
        Ok(Some(lost))
    });
    Ok(lost.await?.unwrap_or_default())
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
