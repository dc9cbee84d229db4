//! Topologies: which patterns lead to which subscriptions, in a form that the fan-out trigger can match.

use std::collections::HashMap;

use laneway_core::{AppliedTopology, Name, Segment, Subscription, SubscriptionId, TopicPattern, Topology};
use sqlx::Row as _;

use super::connection::{Database, Outcome, Session, unreadable};

/// The active topology.
pub(super) async fn active(database: &Database) -> Outcome<Option<AppliedTopology>> {
    active_within(&mut database.connection().await?).await
}

async fn active_within(session: &mut impl Session) -> Outcome<Option<AppliedTopology>> {
    /// The part of a canonical topology that is needed here.
    #[derive(serde::Deserialize)]
    struct Declared {
        subscriptions: Vec<DeclaredName>,
    }
    #[derive(serde::Deserialize)]
    struct DeclaredName {
        name: Name,
    }

    // The text once, and not with each name: a thousand subscriptions have one of most of a megabyte.
    let query = "-- topology.active
        WITH newest AS (SELECT revision, canonical FROM laneway.topology ORDER BY revision DESC LIMIT 1)
        SELECT t.revision, t.canonical, NULL::text AS name, NULL::integer AS id FROM newest t
        UNION ALL
        SELECT NULL, NULL, s.name, s.id FROM laneway.subscription s WHERE s.active";
    let rows = session.all(sqlx::query(query)).await?;
    let mut topology: Option<(i64, String)> = None;
    let mut ids: HashMap<&str, SubscriptionId> = HashMap::with_capacity(rows.len());
    for row in &rows {
        match row.try_get::<Option<i64>, _>(0)? {
            Some(revision) => topology = Some((revision, row.try_get(1)?)),
            None => {
                ids.insert(row.try_get(2)?, SubscriptionId(row.try_get(3)?));
            }
        }
    }
    let Some((revision, canonical)) = topology else { return Ok(None) };
    let declared: Declared = serde_json::from_str(&canonical)
        .map_err(|error| unreadable(format_args!("topology {revision} is not readable: {error}")))?;
    // In the order in which they are declared.
    let subscriptions = declared
        .subscriptions
        .into_iter()
        .map(|DeclaredName { name }| match ids.get(name.as_str()) {
            Some(&id) => Ok((name, id)),
            None => Err(unreadable(format_args!("topology {revision} has no subscription `{name}`"))),
        })
        .collect::<Outcome<_>>()?;
    Ok(Some(AppliedTopology { revision, subscriptions, canonical }))
}

/// Makes a topology the active one.
pub(super) async fn apply(database: &Database, topology: &Topology) -> Outcome<AppliedTopology> {
    let canonical = topology.canonical();
    let mut transaction = database.begin().await?;
    let query = "-- topology.lock
        LOCK TABLE laneway.topology IN SHARE ROW EXCLUSIVE MODE";
    transaction.execute(sqlx::query(query)).await?;
    if let Some(active) = active_within(&mut transaction).await?.filter(|active| active.canonical == canonical) {
        transaction.roll_back().await?;
        return Ok(active);
    }
    let query = "-- topology.deactivate
        UPDATE laneway.subscription SET active = false WHERE active";
    transaction.execute(sqlx::query(query)).await?;
    let query = "-- topology.orderings
        SELECT name, ordered FROM laneway.subscription";
    let rows = transaction.all(sqlx::query(query)).await?;
    let ordered =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Outcome<HashMap<&str, bool>>>()?;
    for subscription in &topology.subscriptions {
        if ordered.get(subscription.name.as_str()).is_some_and(|ordered| *ordered != subscription.is_ordered()) {
            reorder(&mut transaction, subscription).await?;
        }
    }
    put(&mut transaction, &topology.subscriptions).await?;
    let query = "-- topology.insert
        INSERT INTO laneway.topology (canonical) VALUES ($1)";
    transaction.execute(sqlx::query(query).bind(canonical)).await?;
    let query = "-- topology.setting
        INSERT INTO laneway.setting (name, value) VALUES ('payload_bytes_max', $1)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    transaction.execute(sqlx::query(query).bind(topology.payload_bytes_max.to_string())).await?;
    let applied = active_within(&mut transaction).await?;
    transaction.commit().await?;
    // What was stopped has its end at once, if nobody else is at work; else a node's heartbeat finds it, as it does where
    // this is not reached. Until then a replay leaves too much rather than too little.
    let query = "-- topology.bound_routed
        SELECT laneway.bound_routed()::text";
    let bounded = async { database.connection().await?.execute(sqlx::query(query)).await };
    if let Err(error) = bounded.await {
        tracing::debug!(%error, "the end of what was routed so far is found later");
    }
    applied.ok_or(sqlx::Error::RowNotFound)
}

/// Declares all of them in one statement. A trigger refuses the name of a consumer, whose markers the subscription would
/// take for its own.
async fn put(session: &mut impl Session, subscriptions: &[Subscription]) -> Outcome<()> {
    let query = "-- topology.put
        INSERT INTO laneway.subscription
            (name, pattern, topic_regex, exact_topic, kind, lane_threshold, policies, ordered, active)
        SELECT s.name, s.pattern, s.topic_regex, s.exact_topic, s.kind, s.lane_threshold, s.policies::jsonb, s.ordered,
            true
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::text[], $8::boolean[])
            s (name, pattern, topic_regex, exact_topic, kind, lane_threshold, policies, ordered)
        ON CONFLICT (name) DO UPDATE SET pattern = excluded.pattern, topic_regex = excluded.topic_regex,
            exact_topic = excluded.exact_topic, kind = excluded.kind, lane_threshold = excluded.lane_threshold,
            ordered = excluded.ordered, active = true, policies = excluded.policies";
    let policies: Vec<String> = subscriptions
        .iter()
        .map(|subscription| serde_json::to_string(subscription).map_err(|error| sqlx::Error::Encode(error.into())))
        .collect::<Outcome<_>>()?;
    let patterns = || subscriptions.iter().map(|subscription| &subscription.pattern);
    let statement = sqlx::query(query)
        .bind(subscriptions.iter().map(|subscription| subscription.name.as_str()).collect::<Vec<_>>())
        .bind(patterns().map(TopicPattern::as_str).collect::<Vec<_>>())
        .bind(patterns().map(topic_regex).collect::<Vec<_>>())
        .bind(patterns().map(|pattern| is_exact(pattern).then(|| pattern.as_str())).collect::<Vec<_>>())
        .bind(subscriptions.iter().map(|subscription| subscription.kind.as_str()).collect::<Vec<_>>())
        .bind(subscriptions.iter().map(|subscription| subscription.lane_threshold.0).collect::<Vec<_>>())
        .bind(policies)
        .bind(subscriptions.iter().map(Subscription::is_ordered).collect::<Vec<_>>());
    session.execute(statement).await
}

/// Where the ordering changes, what is owed already changes with it. What is in work ends as it began.
async fn reorder(session: &mut impl Session, subscription: &Subscription) -> Outcome<()> {
    let query = "-- topology.lock_lines
        SELECT s.id, pg_advisory_xact_lock(1818326629, s.id)::text FROM laneway.subscription s
        WHERE s.name = $1 AND s.ordered <> $2";
    let statement = sqlx::query(query).bind(subscription.name.as_str()).bind(subscription.is_ordered());
    let Some(row) = session.optional(statement).await? else { return Ok(()) };
    let id: i32 = row.try_get(0)?;
    // Meanwhile no node claims: an application that holds one of these messages must not hold up all of them.
    session.execute(sqlx::query("SET LOCAL lock_timeout = '5s'")).await?;
    let change = match subscription.is_ordered() {
        true => {
            "-- topology.line_up
            UPDATE laneway.delivery d SET key = m.key, parked = CASE WHEN d.available_at <= now() THEN false END
            FROM laneway.message m
            WHERE d.subscription_id = $1 AND m.seq = d.message_seq AND m.key IS NOT NULL"
        }
        false => {
            "-- topology.let_out
            UPDATE laneway.delivery SET key = NULL, parked = NULL WHERE subscription_id = $1 AND key IS NOT NULL"
        }
    };
    let forget = [
        "-- topology.forget_busy_keys
        DELETE FROM laneway.busy_key WHERE subscription_id = $1",
        "-- topology.forget_freed_keys
        DELETE FROM laneway.freed_key WHERE subscription_id = $1",
    ];
    for query in [change].into_iter().chain(forget) {
        session.execute(sqlx::query(query).bind(id)).await?;
    }
    Ok(())
}

fn is_exact(pattern: &TopicPattern) -> bool {
    pattern.segments().iter().all(|segment| matches!(segment, Segment::Literal(_)))
}

/// The pattern as a regular expression. Literals hold nothing that one would have to escape: A-Z a-z 0-9 _ -.
pub(super) fn topic_regex(pattern: &TopicPattern) -> String {
    let segments: Vec<&str> = pattern
        .segments()
        .iter()
        .map(|segment| match segment {
            Segment::Literal(literal) => literal.as_str(),
            Segment::Any => "[^.]+",
            Segment::Rest => ".+",
        })
        .collect();
    format!("^{}$", segments.join(r"\."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_anchored_expressions() {
        for (pattern, regex, exact) in [
            ("orders.created", r"^orders\.created$", true),
            ("*.orders.>", r"^[^.]+\.orders\..+$", false),
            (">", "^.+$", false),
        ] {
            let pattern = TopicPattern::parse(pattern).unwrap();
            assert_eq!(topic_regex(&pattern), regex);
            assert_eq!(is_exact(&pattern), exact);
        }
    }
}
