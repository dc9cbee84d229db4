//! Leases in hand, and when the next delivery becomes due.

use std::collections::HashMap;
use std::time::Duration;

use laneway_core::{DeliveryId, Held, LeaseToken, Renewal, SubscriptionId};
use sqlx::Row as _;

use super::connection::{Database, Outcome, Session, is_collision, microseconds, span};

/// Renewals and begins are tried this often when other transactions stand in their way.
const TRIES: u32 = 5;

/// Most deliveries of one lease.
pub(super) const CLAIM_MAX: u32 = 4096;

/// Some deliveries of each of several leases: how a statement is told which deliveries are meant.
///
/// A delivery is known by its place in its lease, from 1.
pub(super) struct Selection {
    tokens: Vec<i64>,
    /// Whose each lease must be.
    subscriptions: Vec<i32>,
    /// For each lease a text of 0 and 1, one for each place up to the last one selected.
    masks: Vec<String>,
    /// For each delivery the position of its lease in `tokens`, from 1.
    leases: Vec<i32>,
    /// For each delivery its place; 0 if it can be none, or is selected already.
    places: Vec<i32>,
}

impl Selection {
    /// Of deliveries sorted by lease: statements lock leases in this order, so that none wait in a circle.
    pub(super) fn new(deliveries: impl IntoIterator<Item = (LeaseToken, SubscriptionId, DeliveryId)>) -> Self {
        let mut selection = Self {
            tokens: Vec::new(),
            subscriptions: Vec::new(),
            masks: Vec::new(),
            leases: Vec::new(),
            places: Vec::new(),
        };
        for (token, subscription, delivery) in deliveries {
            if selection.tokens.last() != Some(&token.0) || selection.subscriptions.last() != Some(&subscription.0)
            {
                selection.tokens.push(token.0);
                selection.subscriptions.push(subscription.0);
                selection.masks.push(String::new());
            }
            selection.leases.push(i32::try_from(selection.tokens.len()).unwrap_or(i32::MAX));
            let place = selection.select(delivery);
            selection.places.push(place.map_or(0, u32::cast_signed));
        }
        selection
    }

    /// Marks a delivery of the last lease. `None` if it is marked already, or can be none.
    fn select(&mut self, delivery: DeliveryId) -> Option<u32> {
        let place = u32::try_from(delivery.0).ok().filter(|place| (1..=CLAIM_MAX).contains(place))?;
        let mask = self.masks.last_mut()?;
        let index = place as usize - 1;
        if mask.len() <= index {
            mask.extend(std::iter::repeat_n('0', index + 1 - mask.len()));
        }
        if mask.as_bytes()[index] == b'1' {
            return None;
        }
        mask.replace_range(index..=index, "1");
        Some(place)
    }

    pub(super) fn tokens(&self) -> &[i64] {
        &self.tokens
    }

    pub(super) fn subscriptions(&self) -> &[i32] {
        &self.subscriptions
    }

    pub(super) fn masks(&self) -> &[String] {
        &self.masks
    }

    pub(super) fn leases(&self) -> &[i32] {
        &self.leases
    }

    pub(super) fn places(&self) -> &[i32] {
        &self.places
    }

    /// Which of the deliveries, by their position in the selection, a statement did not reach. It answers leases by
    /// their position in `tokens`, from 1, and for each a text of 0 and 1 that says which places it reached.
    pub(super) fn missed(&self, leases: &[i32], reached: &[String]) -> Vec<usize> {
        let mut by_lease = vec![""; self.tokens.len()];
        for (lease, reached) in leases.iter().zip(reached) {
            if let Some(slot) = usize::try_from(lease - 1).ok().and_then(|lease| by_lease.get_mut(lease)) {
                *slot = reached;
            }
        }
        let was_reached = |lease: i32, place: i32| {
            let (Ok(lease), Ok(place)) = (usize::try_from(lease - 1), usize::try_from(place - 1)) else {
                return false;
            };
            by_lease.get(lease).and_then(|reached| reached.as_bytes().get(place)) == Some(&b'1')
        };
        let deliveries = self.leases.iter().zip(&self.places).enumerate();
        deliveries
            .filter(|(_, (lease, place))| !was_reached(**lease, **place))
            .map(|(position, _)| position)
            .collect()
    }
}

/// Renews leases, all in one statement. Answers the deliveries that they no longer cover.
pub(super) async fn renew(database: &Database, renewals: &[Renewal]) -> Outcome<Vec<(LeaseToken, DeliveryId)>> {
    let mut renewals: Vec<&Renewal> = renewals.iter().collect();
    renewals.sort_unstable_by_key(|renewal| renewal.token);
    let deliveries: Vec<(LeaseToken, SubscriptionId, DeliveryId)> = renewals
        .iter()
        .flat_map(|renewal| {
            renewal.deliveries.iter().map(|&delivery| (renewal.token, renewal.subscription, delivery))
        })
        .collect();
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    let lengths: HashMap<LeaseToken, i64> =
        renewals.iter().map(|renewal| (renewal.token, microseconds(renewal.lease))).collect();
    let selection = Selection::new(deliveries.iter().copied());
    let lengths: Vec<i64> = selection.tokens().iter().map(|token| lengths[&LeaseToken(*token)]).collect();
    let mut tries = 0;
    loop {
        tries += 1;
        match renew_selected(database, &selection, &lengths).await {
            Err(error) if is_collision(&error) && tries < TRIES => {}
            done => {
                let missed = done?;
                let lost = missed.into_iter().map(|position| (deliveries[position].0, deliveries[position].2));
                return Ok(lost.collect());
            }
        }
    }
}

async fn renew_selected(database: &Database, selection: &Selection, lengths: &[i64]) -> Outcome<Vec<usize>> {
    let query = "-- lease.renew
        WITH renewed AS (
            UPDATE laneway.lease l SET leased_until = now() + g.length * interval '1 microsecond'
            FROM unnest($1::bigint[], $2::integer[], $3::bigint[]) WITH ORDINALITY
                AS g(token, subscription_id, length, lease)
            WHERE l.token = g.token AND l.subscription_id = g.subscription_id
            RETURNING g.lease::integer, l.open::text
        )
        SELECT coalesce(array_agg(lease), '{}'), coalesce(array_agg(open), '{}') FROM renewed";
    let statement = sqlx::query(query).bind(selection.tokens()).bind(selection.subscriptions()).bind(lengths);
    let row = database.connection().await?.one(statement).await?;
    let (leases, open): (Vec<i32>, Vec<String>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(selection.missed(&leases, &open))
}

/// Notes that deliveries begin, all in one statement. Answers those whose lease no longer held.
pub(super) async fn begin(database: &Database, deliveries: &[Held]) -> Outcome<Vec<Held>> {
    let mut deliveries = deliveries.to_vec();
    deliveries.sort_unstable();
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    let selection = Selection::new(deliveries.iter().map(|held| (held.token, held.subscription, held.delivery)));
    let mut tries = 0;
    loop {
        tries += 1;
        match begin_selected(database, &selection).await {
            Err(error) if is_collision(&error) && tries < TRIES => {}
            done => return Ok(done?.into_iter().map(|position| deliveries[position]).collect()),
        }
    }
}

async fn begin_selected(database: &Database, selection: &Selection) -> Outcome<Vec<usize>> {
    // What is settled meanwhile is no longer open, and does not begin.
    let query = "-- lease.begin
        WITH begun AS (
            UPDATE laneway.lease l SET begun = coalesce(l.begun, l.open & ~l.open)
                | (l.open & rpad(a.mask, length(l.open), '0')::bit varying)
            FROM unnest($1::bigint[], $2::integer[], $3::text[]) WITH ORDINALITY
                AS a(token, subscription_id, mask, lease)
            WHERE l.token = a.token AND l.subscription_id = a.subscription_id
            RETURNING a.lease::integer, l.open::text
        )
        SELECT coalesce(array_agg(lease), '{}'), coalesce(array_agg(open), '{}') FROM begun";
    let statement =
        sqlx::query(query).bind(selection.tokens()).bind(selection.subscriptions()).bind(selection.masks());
    let row = database.connection().await?.one(statement).await?;
    let (leases, open): (Vec<i32>, Vec<String>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(selection.missed(&leases, &open))
}

/// Time until the earliest delivery that is not yet due becomes so. One probe for each lane and priority.
pub(super) async fn next_due(database: &Database, subscription: SubscriptionId) -> Outcome<Option<Duration>> {
    let query = "-- delivery.next_due
        WITH RECURSIVE level AS (
            SELECT l.lane, top.priority FROM (VALUES (0::smallint), (1::smallint)) l(lane) CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = l.lane AND d.parked IS NOT TRUE ORDER BY d.priority DESC LIMIT 1
            ) top
            UNION ALL
            SELECT level.lane, below.priority FROM level CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = level.lane AND d.parked IS NOT TRUE
                    AND d.priority < level.priority
                ORDER BY d.priority DESC LIMIT 1
            ) below
        )
        SELECT (extract(epoch FROM min(later.available_at) - now()) * 1000000)::bigint
        FROM (
            SELECT waiting.available_at FROM level CROSS JOIN LATERAL (
                SELECT d.available_at FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = level.lane AND d.priority = level.priority
                    AND d.available_at > now() AND d.parked IS NOT TRUE
                ORDER BY d.available_at LIMIT 1
            ) waiting
            UNION ALL
            (SELECT l.leased_until FROM laneway.lease l WHERE l.subscription_id = $1 AND l.leased_until > now()
                ORDER BY l.leased_until LIMIT 1)
        ) later";
    let row = database.connection().await?.one(sqlx::query(query).bind(subscription.0)).await?;
    Ok(row.try_get::<Option<i64>, _>(0)?.map(span))
}

/// Time until the earliest delivery of each subscription that has any. One probe for each subscription, lane and priority
/// that something waits in; leases are few, as one covers all that a claim took.
pub(super) async fn upcoming(database: &Database) -> Outcome<Vec<(SubscriptionId, Duration)>> {
    let query = "-- delivery.upcoming
        WITH RECURSIVE owed AS (
            (SELECT d.subscription_id FROM laneway.delivery d WHERE d.parked IS NOT TRUE
                ORDER BY d.subscription_id LIMIT 1)
            UNION ALL
            SELECT beyond.subscription_id FROM owed CROSS JOIN LATERAL (
                SELECT d.subscription_id FROM laneway.delivery d
                WHERE d.parked IS NOT TRUE AND d.subscription_id > owed.subscription_id
                ORDER BY d.subscription_id LIMIT 1
            ) beyond
        ), level AS (
            SELECT o.subscription_id, l.lane, top.priority
            FROM owed o CROSS JOIN (VALUES (0::smallint), (1::smallint)) l(lane) CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = o.subscription_id AND d.lane = l.lane AND d.parked IS NOT TRUE
                ORDER BY d.priority DESC LIMIT 1
            ) top
            UNION ALL
            SELECT level.subscription_id, level.lane, below.priority FROM level CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = level.subscription_id AND d.lane = level.lane AND d.parked IS NOT TRUE
                    AND d.priority < level.priority
                ORDER BY d.priority DESC LIMIT 1
            ) below
        ), waiting AS (
            SELECT level.subscription_id, first.available_at AS due FROM level CROSS JOIN LATERAL (
                SELECT d.available_at FROM laneway.delivery d
                WHERE d.subscription_id = level.subscription_id AND d.lane = level.lane
                    AND d.priority = level.priority AND d.parked IS NOT TRUE
                ORDER BY d.available_at LIMIT 1
            ) first
            UNION ALL
            SELECT l.subscription_id, l.leased_until FROM laneway.lease l
            UNION ALL
            -- Word of a freed key: the next claim lets somebody out.
            SELECT s.id, word.look_at FROM laneway.subscription s CROSS JOIN LATERAL (
                SELECT f.look_at FROM laneway.freed_key f WHERE f.subscription_id = s.id ORDER BY f.look_at LIMIT 1
            ) word WHERE s.ordered
        )
        SELECT w.subscription_id, (extract(epoch FROM min(w.due) - now()) * 1000000)::bigint AS due_in
        FROM waiting w GROUP BY w.subscription_id";
    let rows = database.connection().await?.all(sqlx::query(query)).await?;
    rows.iter()
        .map(|row| Ok((SubscriptionId(row.try_get("subscription_id")?), span(row.try_get("due_in")?))))
        .collect()
}
