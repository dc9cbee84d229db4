//! Topologies: which patterns lead to which subscriptions, in a form that the fan-out trigger can match.

use std::collections::BTreeMap;

use laneway_core::{
    AppliedTopology, Name, Segment, StoreError, Subscription, SubscriptionId, TopicPattern, Topology,
};
use sqlx::Row;

use super::connection::{Connections, Reader, Statement, classify, json, now_ms};
use super::writer::{Durability, Transaction};

/// Dots of a topic of the greatest length, and more.
const DOTS_UNBOUNDED: i64 = 255;

/// The text once, and not with each name: a thousand subscriptions have one of most of a megabyte.
pub(super) const ACTIVE: &str = "-- topology.active
    WITH newest AS (SELECT revision, canonical FROM laneway_topology ORDER BY revision DESC LIMIT 1)
    SELECT t.revision, t.canonical, NULL AS name, NULL AS id FROM newest t
    UNION ALL
    SELECT NULL, NULL, s.name, s.id FROM laneway_subscription s WHERE s.active";

/// Collects the rows of [`ACTIVE`].
#[derive(Default)]
struct Active {
    topology: Option<(i64, String)>,
    ids: BTreeMap<String, SubscriptionId>,
}

impl Active {
    fn take(&mut self, row: &sqlx::sqlite::SqliteRow) -> Result<(), sqlx::Error> {
        match row.try_get::<Option<i64>, _>(0)? {
            Some(revision) => self.topology = Some((revision, row.try_get(1)?)),
            None => {
                self.ids.insert(row.try_get(2)?, SubscriptionId(row.try_get(3)?));
            }
        }
        Ok(())
    }

    /// The subscriptions in the order in which they are declared.
    fn applied(self) -> Result<Option<AppliedTopology>, StoreError> {
        /// The part of a canonical topology that is needed here.
        #[derive(serde::Deserialize)]
        struct Declared {
            subscriptions: Vec<DeclaredName>,
        }
        #[derive(serde::Deserialize)]
        struct DeclaredName {
            name: Name,
        }

        let Some((revision, canonical)) = self.topology else { return Ok(None) };
        let declared: Declared = serde_json::from_str(&canonical)
            .map_err(|error| StoreError::Other(format!("stored topology {revision} is not readable: {error}")))?;
        let subscriptions = declared
            .subscriptions
            .into_iter()
            .map(|DeclaredName { name }| match self.ids.get(name.as_str()) {
                Some(&id) => Ok((name, id)),
                None => Err(StoreError::Other(format!("topology {revision} has no subscription `{name}`"))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Some(AppliedTopology { revision, subscriptions, canonical }))
    }
}

/// The active topology.
pub(super) async fn active(reader: &mut Reader) -> Result<Option<AppliedTopology>, StoreError> {
    let mut active = Active::default();
    reader.each(sqlx::query(ACTIVE), |row| active.take(row)).await?;
    active.applied()
}

async fn active_within(transaction: &mut Transaction) -> Result<Option<AppliedTopology>, StoreError> {
    let mut active = Active::default();
    transaction.each(sqlx::query(ACTIVE), |row| active.take(row)).await?;
    active.applied()
}

/// Makes a topology the active one.
pub(super) async fn apply(connections: &Connections, topology: &Topology) -> Result<AppliedTopology, StoreError> {
    let canonical = topology.canonical();
    let mut transaction = connections.begin(Durability::Flushed).await?;
    if let Some(active) = active_within(&mut transaction).await?.filter(|active| active.canonical == canonical) {
        transaction.roll_back().await?;
        return Ok(active);
    }
    let query = "-- topology.deactivate
        UPDATE laneway_subscription SET active = 0 WHERE active";
    transaction.execute(sqlx::query(query)).await?;
    for subscription in &topology.subscriptions {
        reorder(&mut transaction, subscription).await?;
        put(&mut transaction, subscription).await?;
    }
    let query = concat!(
        "-- topology.insert
        INSERT INTO laneway_topology (canonical, applied_at) VALUES (?, ",
        now_ms!(),
        ")"
    );
    transaction.execute(sqlx::query(query).bind(canonical)).await?;
    limit_payloads(&mut transaction, topology.payload_bytes_max).await?;
    let applied = active_within(&mut transaction).await?;
    transaction.commit().await?;
    applied.ok_or_else(|| classify(sqlx::Error::RowNotFound))
}

/// Refuses the name of a consumer, whose markers the subscription would take for its own.
async fn put(transaction: &mut Transaction, subscription: &Subscription) -> Result<(), StoreError> {
    let form = PatternForm::of(&subscription.pattern)?;
    let query = "-- topology.put
        UPDATE laneway_subscription SET pattern = ?2, kind = ?3, topic_glob = ?4, dots_min = ?5, dots_max = ?6,
            literals = ?7, lane_threshold = ?8, active = 1, policies = ?9, ordered = ?10
        WHERE name = ?1 AND kind <> 'consumer'";
    let changed = transaction.execute(bound(query, subscription, &form)?).await?.rows_affected();
    if changed > 0 {
        return Ok(());
    }
    // An insert that turns into an update would use up a number each time.
    let query = "-- topology.add
        INSERT INTO laneway_subscription
            (name, pattern, kind, topic_glob, dots_min, dots_max, literals, lane_threshold, active, policies,
                ordered)
        SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1, ?9, ?10
        WHERE NOT EXISTS (SELECT 1 FROM laneway_subscription s WHERE s.name = ?1)";
    match transaction.execute(bound(query, subscription, &form)?).await?.rows_affected() {
        0 => Err(StoreError::Refused(format!(
            "`{}` is the name of a consumer, which keeps markers here; give the subscription another name",
            subscription.name
        ))),
        _ => Ok(()),
    }
}

/// Where the ordering changes, what is owed already changes with it. What is in work ends as it began.
async fn reorder(transaction: &mut Transaction, subscription: &Subscription) -> Result<(), StoreError> {
    let change = match subscription.is_ordered() {
        true => concat!(
            "-- topology.line_up
            UPDATE laneway_delivery AS d SET key = m.key,
                parked = CASE WHEN d.available_at <= ",
            now_ms!(),
            " THEN 0 END
            FROM laneway_subscription s, laneway_message m
            WHERE s.name = ? AND NOT s.ordered AND d.subscription_id = s.id AND m.seq = d.message_seq
                AND m.key IS NOT NULL"
        ),
        false => {
            "-- topology.let_out
            UPDATE laneway_delivery AS d SET key = NULL, parked = NULL FROM laneway_subscription s
            WHERE s.name = ? AND s.ordered AND d.subscription_id = s.id AND d.key IS NOT NULL"
        }
    };
    transaction.execute(sqlx::query(change).bind(subscription.name.as_str())).await?;
    let query = "-- topology.forget_busy_keys
        DELETE FROM laneway_busy_key WHERE subscription_id IN (
            SELECT s.id FROM laneway_subscription s WHERE s.name = ? AND s.ordered <> ?)";
    let statement = sqlx::query(query).bind(subscription.name.as_str()).bind(subscription.is_ordered());
    transaction.execute(statement).await?;
    Ok(())
}

fn bound<'q>(
    query: &'static str,
    subscription: &'q Subscription,
    form: &'q PatternForm,
) -> Result<Statement<'q>, StoreError> {
    Ok(sqlx::query(query)
        .bind(subscription.name.as_str())
        .bind(subscription.pattern.as_str())
        .bind(subscription.kind.as_str())
        .bind(&form.topic_glob)
        .bind(form.dots_min)
        .bind(form.dots_max)
        .bind(&form.literals)
        .bind(subscription.lane_threshold.0)
        .bind(json(subscription)?)
        .bind(subscription.is_ordered()))
}

/// Puts the limit into a trigger of its own, as a number: a producer's insert looks nothing up.
async fn limit_payloads(transaction: &mut Transaction, bytes_max: u32) -> Result<(), StoreError> {
    let query = "-- topology.setting
        INSERT INTO laneway_setting (name, value) VALUES ('payload_bytes_max', ?)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    transaction.execute(sqlx::query(query).bind(bytes_max.to_string())).await?;
    transaction
        .execute_raw(format!(
            "DROP TRIGGER IF EXISTS laneway_message_payload_limit;
            CREATE TRIGGER laneway_message_payload_limit BEFORE INSERT ON laneway_message
            WHEN length(CAST(NEW.payload AS BLOB)) > {bytes_max}
            BEGIN
                SELECT RAISE(ABORT, 'payload is larger than {bytes_max} bytes, the limit of this outbox');
            END"
        ))
        .await
}

/// A pattern as the columns that the trigger compares.
#[derive(Debug)]
pub(super) struct PatternForm {
    pub(super) topic_glob: Option<String>,
    pub(super) dots_min: i64,
    pub(super) dots_max: i64,
    pub(super) literals: Option<String>,
}

impl PatternForm {
    pub(super) fn of(pattern: &TopicPattern) -> Result<Self, StoreError> {
        let segments = pattern.segments();
        let dots = i64::try_from(segments.len()).unwrap_or(DOTS_UNBOUNDED) - 1;
        let open = segments.last() == Some(&Segment::Rest);
        let wild = segments.iter().any(|segment| !matches!(segment, Segment::Literal(_)));
        // With as many dots as the pattern has, each dot of the topic stands for one of the pattern, and no * of the
        // GLOB holds any. With more dots, only the literals before the first wildcard are sure to be in place.
        let moved = segments
            .iter()
            .enumerate()
            .skip_while(|(_, segment)| matches!(segment, Segment::Literal(_)))
            .filter_map(|(position, segment)| match segment {
                Segment::Literal(literal) => Some((position, literal.as_str())),
                Segment::Any | Segment::Rest => None,
            });
        let literals: BTreeMap<usize, &str> = if open { moved.collect() } else { BTreeMap::new() };
        Ok(Self {
            topic_glob: wild.then(|| pattern.as_str().replace('>', "*")),
            dots_min: dots,
            dots_max: if open { DOTS_UNBOUNDED } else { dots },
            literals: if literals.is_empty() { None } else { Some(json(&literals)?) },
        })
    }
}
