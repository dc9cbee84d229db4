//! Leases in hand, and when the next delivery becomes due.

use std::time::Duration;

use laneway_core::{DeliveryId, LeaseToken, Renewal, SubscriptionId};
use sqlx::Row as _;

use super::connection::{Database, Outcome, Session, is_collision, microseconds, span};

/// Renewals are tried this often when other transactions stand in their way.
const TRIES: u32 = 5;

/// Renews leases, all in one statement. Answers those that no longer held.
pub(super) async fn renew(database: &Database, renewals: &[Renewal]) -> Outcome<Vec<(LeaseToken, DeliveryId)>> {
    let mut leases: Vec<(i64, i32, i64, i64)> = renewals
        .iter()
        .flat_map(|renewal| {
            renewal.deliveries.iter().map(move |delivery| {
                (delivery.0, renewal.subscription.0, renewal.token.0, microseconds(renewal.lease))
            })
        })
        .collect();
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    // In the order in which settlements lock rows, so that neither waits for the other in a circle.
    leases.sort_unstable();
    let mut tries = 0;
    loop {
        tries += 1;
        match renew_sorted(database, &leases).await {
            Err(error) if is_collision(&error) && tries < TRIES => {}
            done => return done,
        }
    }
}

async fn renew_sorted(
    database: &Database,
    leases: &[(i64, i32, i64, i64)],
) -> Outcome<Vec<(LeaseToken, DeliveryId)>> {
    let query = "-- delivery.renew
        WITH held AS (
            UPDATE laneway.delivery d SET available_at = now() + g.lease * interval '1 microsecond'
            FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bigint[]) WITH ORDINALITY
                AS g(message_seq, subscription_id, lease_token, lease, place)
            WHERE d.message_seq = g.message_seq AND d.subscription_id = g.subscription_id
                AND d.lease_token = g.lease_token
            RETURNING g.place
        )
        SELECT CASE WHEN count(*) < cardinality($1) THEN coalesce(array_agg(place), '{}') END FROM held";
    let statement = sqlx::query(query)
        .bind(leases.iter().map(|lease| lease.0).collect::<Vec<_>>())
        .bind(leases.iter().map(|lease| lease.1).collect::<Vec<_>>())
        .bind(leases.iter().map(|lease| lease.2).collect::<Vec<_>>())
        .bind(leases.iter().map(|lease| lease.3).collect::<Vec<_>>());
    let held: Option<Vec<i64>> = database.connection().await?.one(statement).await?.try_get(0)?;
    let Some(mut held) = held else { return Ok(Vec::new()) };
    held.sort_unstable();
    Ok((1..)
        .zip(leases)
        .filter(|(place, _)| held.binary_search(place).is_err())
        .map(|(_, lease)| (LeaseToken(lease.2), DeliveryId(lease.0)))
        .collect())
}

/// Time until the earliest delivery that is not yet due becomes so. One probe for each lane and priority.
pub(super) async fn next_due(database: &Database, subscription: SubscriptionId) -> Outcome<Option<Duration>> {
    let query = "-- delivery.next_due
        WITH RECURSIVE level AS (
            SELECT l.lane, top.priority FROM (VALUES (0::smallint), (1::smallint)) l(lane) CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = l.lane ORDER BY d.priority DESC LIMIT 1
            ) top
            UNION ALL
            SELECT level.lane, below.priority FROM level CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = level.lane AND d.priority < level.priority
                ORDER BY d.priority DESC LIMIT 1
            ) below
        )
        SELECT (extract(epoch FROM min(later.available_at) - now()) * 1000000)::bigint
        FROM level CROSS JOIN LATERAL (
            SELECT d.available_at FROM laneway.delivery d
            WHERE d.subscription_id = $1 AND d.lane = level.lane AND d.priority = level.priority
                AND d.available_at > now()
            ORDER BY d.available_at LIMIT 1
        ) later";
    let row = database.connection().await?.one(sqlx::query(query).bind(subscription.0)).await?;
    Ok(row.try_get::<Option<i64>, _>(0)?.map(span))
}
