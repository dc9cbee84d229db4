//! The end of attempts: one transaction a group, with everything that the attempts wrote.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use laneway_core::{
    KeyChange, Name, SettleReport, Settlement, StateChanges, StateConflict, StoreError, Verdict, state_changes,
};
use serde_json::{Value, json};
use sqlx::Row;

use super::connection::{Connections, Reader, json, millis, now_ms};
use super::writer::{Durability, Ran, Script};
use super::{enqueue, state};

/// Times that a group is looked at again: each is a change of another writer just between the look and the commit.
const LOOKS_MAX: usize = 5;

/// What stands in the way of settlements, as a look at the database found it.
#[derive(Default)]
struct Obstacles {
    /// Positions whose lease does not hold.
    lost: Vec<usize>,
    /// Positions whose marker is there already.
    duplicates: Vec<usize>,
    /// Keys that no longer have the version that was read.
    stale: Vec<(Name, Arc<str>)>,
}

/// Settles a group. Answers also the newest emitted message's number, if any was written.
///
/// Nearly always every lease holds, no marker is there and no state has changed, so that is taken for granted, and
/// guards in the script hold it to be so. If one did not, nothing has happened; then a look tells what to leave out,
/// and the script of the rest holds that to be so.
pub(super) async fn settle(
    connections: &Connections,
    group: &[Settlement],
) -> Result<(SettleReport, Option<i64>), StoreError> {
    let mut obstacles = Obstacles::default();
    for _ in 0..=LOOKS_MAX {
        let Obstacles { lost, duplicates, .. } = &obstacles;
        let parts = Parts::of(group, lost, duplicates);
        let changes = state_changes(parts.happening.iter().copied());
        let state_is_written = |&position: &usize| group[position].writes_state();
        let stale: Vec<_> = obstacles.stale.iter().chain(&changes.stale).cloned().collect();
        if !stale.is_empty() || lost.iter().chain(duplicates).any(state_is_written) {
            let Obstacles { lost, duplicates, .. } = obstacles;
            return Ok((SettleReport::Conflict(StateConflict { lost, duplicates, stale }), None));
        }
        let (script, emits) = parts.script(&changes)?;
        if script.is_empty() {
            return Ok((SettleReport::Committed { lost: lost.clone(), duplicates: duplicates.clone() }, None));
        }
        match connections.run(Durability::Flushed, script, |_| Ok(())).await? {
            Ran::Committed(done) => {
                let report = SettleReport::Committed { lost: lost.clone(), duplicates: duplicates.clone() };
                return Ok((report, enqueue::newest(&done, emits)));
            }
            Ran::Stopped => obstacles = look(&mut connections.reader().await?, group).await?,
        }
    }
    Err(StoreError::Unavailable("other writers kept changing what was to be settled".to_owned()))
}

/// Finds what stands in the way.
async fn look(reader: &mut Reader, group: &[Settlement]) -> Result<Obstacles, StoreError> {
    let lost = find_lost(reader, group).await?;
    let duplicates = find_duplicates(reader, group, &lost).await?;
    let StateChanges { keys, .. } = state_changes(Parts::of(group, &lost, &duplicates).happening.into_iter());
    let stale = state::find_stale(reader, &keys).await?;
    Ok(Obstacles { lost, duplicates, stale })
}

/// A group, by what has to be done.
#[derive(Default)]
struct Parts<'a> {
    /// Complete: deliveries to remove.
    complete: Vec<&'a Settlement>,
    /// Complete, and a marker is wanted.
    mark: Vec<&'a Settlement>,
    /// To be tried again.
    retry: Vec<&'a Settlement>,
    /// To be moved to the dead letters.
    dead: Vec<&'a Settlement>,
    /// Everything that happens: held, and no duplicate.
    happening: Vec<&'a Settlement>,
}

impl<'a> Parts<'a> {
    fn of(group: &'a [Settlement], lost: &[usize], duplicates: &[usize]) -> Self {
        let mut parts = Self::default();
        for (position, settlement) in group.iter().enumerate() {
            if lost.contains(&position) {
                continue;
            }
            let duplicate = duplicates.contains(&position);
            match settlement.verdict {
                Verdict::Complete { mark } => {
                    parts.complete.push(settlement);
                    if mark && !duplicate {
                        parts.mark.push(settlement);
                    }
                }
                Verdict::Retry { .. } => parts.retry.push(settlement),
                Verdict::DeadLetter { .. } => parts.dead.push(settlement),
            }
            if !duplicate {
                parts.happening.push(settlement);
            }
        }
        parts
    }

    /// The script of all of it, and the position of the statement that writes emitted messages.
    fn script(&self, changes: &StateChanges) -> Result<(Script, Option<usize>), StoreError> {
        let mut script = Script::new();
        // Token before effects: a stale worker must lose here.
        copy_dead(&mut script, &self.dead)?;
        remove(&mut script, self.complete.iter().chain(&self.dead))?;
        retry(&mut script, &self.retry)?;
        mark(&mut script, &self.mark)?;
        let expecting: Vec<&KeyChange> = changes.keys.iter().filter(|change| change.expected.is_some()).collect();
        state::guard(&mut script, &expecting)?;
        state::write(&mut script, &changes.keys)?;
        let completed =
            || self.happening.iter().filter(|settled| matches!(settled.verdict, Verdict::Complete { .. }));
        state::add(&mut script, completed().flat_map(|settlement| &settlement.adds))?;
        let emits = match completed().any(|settlement| !settlement.emits.is_empty()) {
            true => Some(enqueue::insert(&mut script, completed().flat_map(|settlement| &settlement.emits))?),
            false => None,
        };
        Ok((script, emits))
    }
}

/// Deliveries by the lease that they were run under, as JSON.
fn by_token<'a>(settlements: impl Iterator<Item = &'a &'a Settlement>) -> Result<(String, usize), StoreError> {
    let mut tokens: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    let mut count = 0;
    for settlement in settlements {
        tokens.entry(settlement.token.0).or_default().push(settlement.delivery.0);
        count += 1;
    }
    Ok((json(&tokens)?, count))
}

fn remove<'a>(
    script: &mut Script,
    settlements: impl Iterator<Item = &'a &'a Settlement>,
) -> Result<(), StoreError> {
    let (tokens, count) = by_token(settlements)?;
    if count == 0 {
        return Ok(());
    }
    script.step(
        "-- settle.remove
        DELETE FROM laneway_delivery WHERE id IN (
            SELECT d.id FROM json_each(?) t CROSS JOIN json_each(t.value) i CROSS JOIN laneway_delivery d
            WHERE d.id = i.value AND d.lease_token = CAST(t.key AS INTEGER)
        )",
    );
    script.bind(tokens)?;
    script.guard_count(count)
}

fn mark(script: &mut Script, settlements: &[&Settlement]) -> Result<(), StoreError> {
    if settlements.is_empty() {
        return Ok(());
    }
    /// Most markers say no more than that, and go as their ids alone.
    #[derive(serde::Serialize)]
    #[serde(untagged)]
    enum Mark<'a> {
        Plain(&'a str),
        Annotated(&'a str, &'a str),
    }
    let mut messages: BTreeMap<i32, Vec<Mark<'_>>> = BTreeMap::new();
    for settlement in settlements {
        let message = settlement.message.as_str();
        messages.entry(settlement.subscription.0).or_default().push(match &settlement.metadata {
            None => Mark::Plain(message),
            Some(metadata) => Mark::Annotated(message, metadata.as_str()),
        });
    }
    // Without WHERE the parser takes ON for the join's.
    script.step(concat!(
        "-- settle.mark
        INSERT INTO laneway_marker (subscription_id, message_id, metadata, processed_at)
        SELECT CAST(s.key AS INTEGER), iif(m.type = 'array', m.value ->> 0, m.value),
            iif(m.type = 'array', m.value ->> 1, NULL), ",
        now_ms!(),
        "
        FROM json_each(?) s CROSS JOIN json_each(s.value) m WHERE true
        ON CONFLICT (subscription_id, message_id) DO NOTHING"
    ));
    script.bind(json(&messages)?)?;
    script.guard_count(settlements.len())
}

fn retry(script: &mut Script, settlements: &[&Settlement]) -> Result<(), StoreError> {
    if settlements.is_empty() {
        return Ok(());
    }
    let rows: Vec<Value> = settlements
        .iter()
        .filter_map(|settlement| match &settlement.verdict {
            Verdict::Retry { delay, counted, error } => Some(json!([
                settlement.delivery.0,
                settlement.token.0,
                millis(*delay),
                counted,
                error.as_ref().map(laneway_core::ErrorText::as_str),
            ])),
            Verdict::Complete { .. } | Verdict::DeadLetter { .. } => None,
        })
        .collect();
    // An attempt that does not count leaves no trace, unless it says why it failed: the first that ran starts the clock,
    // which for those that do not count is one of their own. An answer that counts settles what leases were lost before.
    script.step(concat!(
        "-- settle.retry
        UPDATE laneway_delivery AS d SET
            available_at = ",
        now_ms!(),
        " + r.delay,
            lease_token = NULL,
            attempt = CASE WHEN r.counted THEN d.attempt ELSE max(d.attempt - 1, 0) END,
            first_attempt_at = CASE WHEN r.counted OR d.attempt > 1 THEN d.first_attempt_at END,
            waiting_since = CASE WHEN r.counted OR r.error IS NULL THEN d.waiting_since
                ELSE coalesce(d.waiting_since, d.first_attempt_at) END,
            last_error = CASE WHEN r.counted THEN r.error ELSE coalesce(r.error, d.last_error) END,
            lost = CASE WHEN r.counted THEN 0 ELSE d.lost END
        FROM (SELECT value ->> 0 AS id, value ->> 1 AS token, value ->> 2 AS delay, value ->> 3 AS counted,
            value ->> 4 AS error FROM json_each(?)) r
        WHERE d.id = r.id AND d.lease_token = r.token"
    ));
    script.bind(json(&rows)?)?;
    script.guard_count(settlements.len())
}

fn copy_dead(script: &mut Script, settlements: &[&Settlement]) -> Result<(), StoreError> {
    if settlements.is_empty() {
        return Ok(());
    }
    let rows: Vec<Value> = settlements
        .iter()
        .filter_map(|settlement| match &settlement.verdict {
            Verdict::DeadLetter { reason, error, plugin } => Some(json!([
                settlement.delivery.0,
                settlement.token.0,
                reason.as_str(),
                error.as_str(),
                plugin.as_ref().map(laneway_core::PluginDigest::as_str),
                settlement.message.as_str(),
                i32::from(!settlement.verdict.is_counted()),
            ])),
            Verdict::Complete { .. } | Verdict::Retry { .. } => None,
        })
        .collect();
    script.step(concat!(
        "-- settle.copy_dead
        INSERT INTO laneway_dead_letter (message_seq, message_id, subscription_id, lane, priority, reason, error,
            attempts, first_attempt_at, failed_at, plugin)
        SELECT d.message_seq, e.value ->> 5, d.subscription_id, d.lane, d.priority, e.value ->> 2, e.value ->> 3,
            max(d.attempt - (e.value ->> 6), 0),
            CASE WHEN d.attempt > (e.value ->> 6) THEN d.first_attempt_at ELSE d.waiting_since END, ",
        now_ms!(),
        ", e.value ->> 4
        FROM json_each(?) e CROSS JOIN laneway_delivery d
        WHERE d.id = e.value ->> 0 AND d.lease_token = e.value ->> 1"
    ));
    script.bind(json(&rows)?)?;
    script.guard_count(settlements.len())
}

/// Positions whose lease does not hold.
async fn find_lost(reader: &mut Reader, group: &[Settlement]) -> Result<Vec<usize>, StoreError> {
    let pairs: Vec<[i64; 2]> = group.iter().map(|settlement| [settlement.delivery.0, settlement.token.0]).collect();
    let query = "-- settle.find_lost
        SELECT p.key FROM json_each(?) p WHERE NOT EXISTS (
            SELECT 1 FROM laneway_delivery d WHERE d.id = p.value ->> 0 AND d.lease_token = p.value ->> 1
        )";
    let mut lost: Vec<usize> = positions(reader, query, json(&pairs)?).await?;
    // The same delivery twice in a group is settled once, by the first whose lease holds.
    let stale: HashSet<usize> = lost.iter().copied().collect();
    let mut seen = HashSet::new();
    let again = group.iter().enumerate().filter(|(i, s)| !stale.contains(i) && !seen.insert(s.delivery));
    lost.extend(again.map(|(position, _)| position));
    lost.sort_unstable();
    lost.dedup();
    Ok(lost)
}

/// Positions of held settlements whose marker is there already.
async fn find_duplicates(
    reader: &mut Reader,
    group: &[Settlement],
    lost: &[usize],
) -> Result<Vec<usize>, StoreError> {
    let marking: Vec<(usize, &Settlement)> = group
        .iter()
        .enumerate()
        .filter(|(position, settlement)| {
            matches!(settlement.verdict, Verdict::Complete { mark: true }) && !lost.contains(position)
        })
        .collect();
    let pairs: Vec<(i32, &str)> = marking.iter().map(|(_, s)| (s.subscription.0, s.message.as_str())).collect();
    let query = "-- settle.find_duplicates
        SELECT p.key FROM json_each(?) p WHERE EXISTS (
            SELECT 1 FROM laneway_marker k WHERE k.subscription_id = p.value ->> 0 AND k.message_id = p.value ->> 1
        )";
    let marked: HashSet<usize> = positions(reader, query, json(&pairs)?).await?.into_iter().collect();
    // The same message twice in a group has its effects once.
    let mut seen = HashSet::new();
    Ok(marking
        .iter()
        .enumerate()
        .filter(|(i, (_, s))| marked.contains(i) || !seen.insert((s.subscription, s.message.as_str())))
        .map(|(_, &(position, _))| position)
        .collect())
}

/// Runs a query that answers positions in the array that it is given.
async fn positions(reader: &mut Reader, query: &'static str, array: String) -> Result<Vec<usize>, StoreError> {
    let position = |row: &sqlx::sqlite::SqliteRow| row.try_get::<i64, _>(0);
    let positions = reader.all(sqlx::query(query).bind(array), position).await?;
    Ok(positions.into_iter().filter_map(|position| usize::try_from(position).ok()).collect())
}
