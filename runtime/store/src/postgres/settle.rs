//! The end of attempts: one transaction a group, with everything that the attempts wrote.

use std::collections::HashSet;

use laneway_core::{
    ErrorText, NewMessage, PluginDigest, SettleReport, Settlement, StateConflict, Verdict, state_changes,
};
use sqlx::Row as _;

use super::connection::{Database, Outcome, Session, is_collision, microseconds};
use super::{enqueue, state};

/// A group is tried this often when other transactions stand in its way.
const TRIES: u32 = 5;

/// A settlement and its position in the group.
type Placed<'a> = (usize, &'a Settlement);

/// Settles a group.
pub(super) async fn settle(database: &Database, group: &[Settlement]) -> Outcome<SettleReport> {
    let mut tries = 0;
    loop {
        tries += 1;
        match settle_once(database, group).await {
            Err(error) if is_collision(&error) && tries < TRIES => {
                tracing::debug!(%error, tries, "settling again after a collision");
            }
            done => return done,
        }
    }
}

async fn settle_once(database: &Database, group: &[Settlement]) -> Outcome<SettleReport> {
    let parts = Parts::of(group);
    let mut fenced = Fenced::default();
    if parts.is_one_statement() {
        // It commits by itself: one round trip for the ordinary group.
        parts.fence(&mut database.connection().await?, &mut fenced).await?;
        return Ok(fenced.committed());
    }
    let mut transaction = database.begin().await?;
    // Token before effects: a stale worker must lose here.
    parts.fence(&mut transaction, &mut fenced).await?;
    let left_out: HashSet<usize> = fenced.lost.iter().chain(&fenced.duplicates).copied().collect();
    if left_out.iter().any(|&position| group[position].writes_state()) {
        transaction.roll_back().await?;
        return Ok(fenced.conflict(Vec::new()));
    }
    let happening: Vec<&Settlement> = group
        .iter()
        .enumerate()
        .filter(|(position, _)| !left_out.contains(position))
        .map(|(_, settlement)| settlement)
        .collect();
    let changes = state_changes(happening.iter().copied());
    let stale = match changes.stale.is_empty() {
        true => state::write(&mut transaction, &changes.keys).await?,
        false => changes.stale,
    };
    if !stale.is_empty() {
        transaction.roll_back().await?;
        return Ok(fenced.conflict(stale));
    }
    let completed = || happening.iter().filter(|settled| matches!(settled.verdict, Verdict::Complete { .. }));
    state::add(&mut transaction, completed().flat_map(|settlement| &settlement.adds)).await?;
    let emits: Vec<&NewMessage> = completed().flat_map(|settlement| &settlement.emits).collect();
    if !emits.is_empty() {
        enqueue::insert(&mut transaction, &emits).await?;
    }
    transaction.commit().await?;
    Ok(fenced.committed())
}

/// What the fence kept out. Numbers are positions in the group.
#[derive(Default)]
struct Fenced {
    lost: Vec<usize>,
    duplicates: Vec<usize>,
}

impl Fenced {
    fn committed(mut self) -> SettleReport {
        self.lost.sort_unstable();
        self.duplicates.sort_unstable();
        SettleReport::Committed { lost: self.lost, duplicates: self.duplicates }
    }

    fn conflict(mut self, stale: Vec<(laneway_core::Name, std::sync::Arc<str>)>) -> SettleReport {
        self.lost.sort_unstable();
        self.duplicates.sort_unstable();
        SettleReport::Conflict(StateConflict { lost: self.lost, duplicates: self.duplicates, stale })
    }

    /// Notes those that a statement did not reach. `held` are the places that it did reach, from 1; `None` is all.
    fn lost_of(&mut self, part: &[Placed<'_>], held: Option<Vec<i64>>) {
        let Some(held) = held else { return };
        let held: HashSet<i64> = held.into_iter().collect();
        self.lost.extend((1..).zip(part).filter(|(place, _)| !held.contains(place)).map(|(_, placed)| placed.0));
    }
}

/// A group by verdict, each part in the order in which all transactions lock rows.
struct Parts<'a> {
    complete: Vec<Placed<'a>>,
    retry: Vec<Placed<'a>>,
    dead: Vec<Placed<'a>>,
    effects: bool,
}

impl<'a> Parts<'a> {
    fn of(group: &'a [Settlement]) -> Self {
        let mut parts = Self { complete: Vec::new(), retry: Vec::new(), dead: Vec::new(), effects: false };
        for placed in group.iter().enumerate() {
            let settlement = placed.1;
            match settlement.verdict {
                Verdict::Complete { .. } => parts.complete.push(placed),
                Verdict::Retry { .. } => parts.retry.push(placed),
                Verdict::DeadLetter { .. } => parts.dead.push(placed),
            }
            parts.effects |= !(settlement.reads.is_empty()
                && settlement.writes.is_empty()
                && settlement.adds.is_empty()
                && settlement.emits.is_empty());
        }
        for part in [&mut parts.complete, &mut parts.retry, &mut parts.dead] {
            part.sort_unstable_by_key(|(position, settlement)| {
                (settlement.delivery, settlement.subscription, *position)
            });
        }
        parts
    }

    fn is_one_statement(&self) -> bool {
        let used = [&self.complete, &self.retry, &self.dead].iter().filter(|part| !part.is_empty()).count();
        !self.effects && used <= 1
    }

    /// Ends the deliveries whose lease holds, and notes the others.
    async fn fence(&self, session: &mut impl Session, fenced: &mut Fenced) -> Outcome<()> {
        if !self.complete.is_empty() {
            complete(session, &self.complete, fenced).await?;
        }
        if !self.retry.is_empty() {
            fenced.lost_of(&self.retry, retry(session, &self.retry).await?);
        }
        if !self.dead.is_empty() {
            fenced.lost_of(&self.dead, bury(session, &self.dead).await?);
        }
        Ok(())
    }
}

fn deliveries(part: &[Placed<'_>]) -> Vec<i64> {
    part.iter().map(|(_, settlement)| settlement.delivery.0).collect()
}

fn subscriptions(part: &[Placed<'_>]) -> Vec<i32> {
    part.iter().map(|(_, settlement)| settlement.subscription.0).collect()
}

fn tokens(part: &[Placed<'_>]) -> Vec<i64> {
    part.iter().map(|(_, settlement)| settlement.token.0).collect()
}

fn messages<'a>(part: &[Placed<'a>]) -> Vec<&'a str> {
    part.iter().map(|(_, settlement)| settlement.message.as_str()).collect()
}

/// Removes completed deliveries and writes their markers. Only a difference in the counts makes it answer which.
async fn complete(session: &mut impl Session, part: &[Placed<'_>], fenced: &mut Fenced) -> Outcome<()> {
    let query = "-- settle.complete
        WITH held AS (
            DELETE FROM laneway.delivery d
            USING unnest($1::bigint[], $2::integer[], $3::bigint[], $4::text[], $5::boolean[]) WITH ORDINALITY
                AS g(message_seq, subscription_id, lease_token, message_id, mark, place)
            WHERE d.message_seq = g.message_seq AND d.subscription_id = g.subscription_id
                AND d.lease_token = g.lease_token
            RETURNING g.place, g.subscription_id, g.message_id, g.mark
        ), marked AS (
            INSERT INTO laneway.marker (subscription_id, message_id)
            SELECT h.subscription_id, h.message_id FROM held h WHERE h.mark
            ON CONFLICT (subscription_id, message_id) DO NOTHING
            RETURNING subscription_id, message_id
        ), total AS (
            SELECT count(*) AS held, count(*) FILTER (WHERE mark) AS marking,
                (SELECT count(*) FROM marked) AS marked
            FROM held
        )
        SELECT
            CASE WHEN t.held < cardinality($1)
                THEN coalesce((SELECT array_agg(place) FROM held), '{}') END,
            CASE WHEN t.marked < t.marking
                THEN coalesce((SELECT array_agg(subscription_id) FROM marked), '{}') END,
            CASE WHEN t.marked < t.marking
                THEN coalesce((SELECT array_agg(message_id) FROM marked), '{}') END
        FROM total t";
    let marks = |settlement: &Settlement| matches!(settlement.verdict, Verdict::Complete { mark: true });
    let statement = sqlx::query(query)
        .bind(deliveries(part))
        .bind(subscriptions(part))
        .bind(tokens(part))
        .bind(messages(part))
        .bind(part.iter().map(|(_, settlement)| marks(settlement)).collect::<Vec<_>>());
    let row = session.one(statement).await?;
    fenced.lost_of(part, row.try_get(0)?);
    let marked: Option<(Vec<i32>, Vec<String>)> =
        row.try_get::<Option<_>, _>(1)?.zip(row.try_get::<Option<_>, _>(2)?);
    if let Some((subscriptions, messages)) = marked {
        let marked: HashSet<(i32, &str)> =
            subscriptions.into_iter().zip(messages.iter().map(String::as_str)).collect();
        let lost: HashSet<usize> = fenced.lost.iter().copied().collect();
        let duplicates = part.iter().filter(|(position, settlement)| {
            marks(settlement)
                && !lost.contains(position)
                && !marked.contains(&(settlement.subscription.0, settlement.message.as_str()))
        });
        fenced.duplicates.extend(duplicates.map(|(position, _)| *position));
    }
    Ok(())
}

/// Hands deliveries back, due after their delay. Answers the places whose lease held; `None` is all.
async fn retry(session: &mut impl Session, part: &[Placed<'_>]) -> Outcome<Option<Vec<i64>>> {
    // An attempt that does not count leaves no trace: the first that counts starts the clock. What is due at once
    // may be picked up by another node, which must hear of it.
    let query = "-- settle.retry
        WITH held AS (
            UPDATE laneway.delivery d SET
                available_at = now() + g.delay * interval '1 microsecond',
                lease_token = NULL,
                attempt = CASE WHEN g.counted THEN d.attempt ELSE greatest(d.attempt - 1, 0) END,
                first_attempt_at = CASE WHEN g.counted OR d.attempt > 1 THEN d.first_attempt_at END,
                last_error = CASE WHEN g.counted THEN g.error ELSE d.last_error END
            FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bigint[], $5::boolean[], $6::text[])
                WITH ORDINALITY AS g(message_seq, subscription_id, lease_token, delay, counted, error, place)
            WHERE d.message_seq = g.message_seq AND d.subscription_id = g.subscription_id
                AND d.lease_token = g.lease_token
            RETURNING g.place, d.subscription_id, g.delay
        )
        SELECT
            CASE WHEN (SELECT count(*) FROM held) < cardinality($1)
                THEN coalesce((SELECT array_agg(place) FROM held), '{}') END,
            (SELECT count(pg_notify('laneway', due.subscription_id::text))
                FROM (SELECT DISTINCT subscription_id FROM held WHERE delay = 0) due)";
    let retries: Vec<(i64, bool, Option<&str>)> = part
        .iter()
        .filter_map(|(_, settlement)| match &settlement.verdict {
            Verdict::Retry { delay, counted, error } => {
                Some((microseconds(*delay), *counted, error.as_ref().map(ErrorText::as_str)))
            }
            Verdict::Complete { .. } | Verdict::DeadLetter { .. } => None,
        })
        .collect();
    let statement = sqlx::query(query)
        .bind(deliveries(part))
        .bind(subscriptions(part))
        .bind(tokens(part))
        .bind(retries.iter().map(|retry| retry.0).collect::<Vec<_>>())
        .bind(retries.iter().map(|retry| retry.1).collect::<Vec<_>>())
        .bind(retries.iter().map(|retry| retry.2).collect::<Vec<_>>());
    session.one(statement).await?.try_get(0)
}

/// Moves deliveries to the dead letters. Answers the places whose lease held; `None` is all.
async fn bury(session: &mut impl Session, part: &[Placed<'_>]) -> Outcome<Option<Vec<i64>>> {
    let query = "-- settle.bury
        WITH held AS (
            DELETE FROM laneway.delivery d
            USING unnest($1::bigint[], $2::integer[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])
                WITH ORDINALITY
                AS g(message_seq, subscription_id, lease_token, message_id, reason, error, plugin, place)
            WHERE d.message_seq = g.message_seq AND d.subscription_id = g.subscription_id
                AND d.lease_token = g.lease_token
            RETURNING g.place, d.message_seq, g.message_id, d.subscription_id, d.lane, d.priority, g.reason,
                g.error, d.attempt, d.first_attempt_at, g.plugin
        ), buried AS (
            INSERT INTO laneway.dead_letter (message_seq, message_id, subscription_id, lane, priority, reason,
                error, attempts, first_attempt_at, plugin)
            SELECT message_seq, message_id, subscription_id, lane, priority, reason, error, attempt,
                first_attempt_at, plugin
            FROM held
        )
        SELECT CASE WHEN count(*) < cardinality($1) THEN coalesce(array_agg(place), '{}') END FROM held";
    let dead: Vec<(&str, &str, Option<&str>)> = part
        .iter()
        .filter_map(|(_, settlement)| match &settlement.verdict {
            Verdict::DeadLetter { reason, error, plugin } => {
                Some((reason.as_str(), error.as_str(), plugin.as_ref().map(PluginDigest::as_str)))
            }
            Verdict::Complete { .. } | Verdict::Retry { .. } => None,
        })
        .collect();
    let statement = sqlx::query(query)
        .bind(deliveries(part))
        .bind(subscriptions(part))
        .bind(tokens(part))
        .bind(messages(part))
        .bind(dead.iter().map(|letter| letter.0).collect::<Vec<_>>())
        .bind(dead.iter().map(|letter| letter.1).collect::<Vec<_>>())
        .bind(dead.iter().map(|letter| letter.2).collect::<Vec<_>>());
    session.one(statement).await?.try_get(0)
}
