//! The end of attempts: one transaction a group, with everything that the attempts wrote.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use laneway_core::{
    DeliveryId, KeyChange, LeaseToken, MessageId, Name, SettleReport, Settlement, StateChanges, StateConflict,
    StoreError, Verdict, state_changes,
};
use sqlx::Row;

use super::connection::{Connections, Reader, json, millis, now_ms};
use super::native::{Native, Value};
use super::writer::Durability;
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
/// the transaction is rolled back where it finds otherwise. Then nothing has happened; a look tells what to leave out, and
/// the transaction of the rest holds that to be so.
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
        let work = parts.work(changes)?;
        let newest = match work.is_empty() {
            true => Some(None),
            false => connections.write(Durability::Flushed, move |native| work.run(native)).await?,
        };
        match newest {
            Some(newest) => {
                let Obstacles { lost, duplicates, .. } = obstacles;
                return Ok((SettleReport::Committed { lost, duplicates }, newest));
            }
            None => obstacles = look(&mut connections.reader().await?, group).await?,
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

    /// All of it, to be done on another thread.
    fn work(&self, changes: StateChanges) -> Result<Work, StoreError> {
        let ended = self.complete.iter().chain(&self.dead);
        let mut removed: Vec<_> = ended.map(|settlement| (settlement.token, settlement.delivery)).collect();
        // In the order of the rows, so that neighbours are removed together.
        removed.sort_unstable();
        let mut marks: Vec<_> = self.mark.iter().map(|settlement| Mark::of(settlement)).collect();
        marks.sort_unstable();
        let verdict = |settlement: &&Settlement| {
            (settlement.delivery, settlement.token, settlement.message.clone(), settlement.verdict.clone())
        };
        let completed =
            || self.happening.iter().filter(|settled| matches!(settled.verdict, Verdict::Complete { .. }));
        let emits: Vec<_> = completed().flat_map(|settlement| &settlement.emits).collect();
        Ok(Work {
            dead: self.dead.iter().map(verdict).collect(),
            removed,
            retries: self.retry.iter().map(verdict).collect(),
            marks,
            keys: changes.keys,
            sums: state::sums(completed().flat_map(|settlement| &settlement.adds)),
            emits: if emits.is_empty() { None } else { Some(enqueue::rows(emits.into_iter())?) },
        })
    }
}

/// A marker to be written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Mark {
    subscription: i32,
    message: MessageId,
    metadata: Option<String>,
}

impl Mark {
    fn of(settlement: &Settlement) -> Self {
        Self {
            subscription: settlement.subscription.0,
            message: settlement.message.clone(),
            metadata: settlement.metadata.as_ref().map(|metadata| metadata.as_str().to_owned()),
        }
    }
}

type Ruled = (DeliveryId, LeaseToken, MessageId, Verdict);

/// What a transaction does.
struct Work {
    dead: Vec<Ruled>,
    removed: Vec<(LeaseToken, DeliveryId)>,
    retries: Vec<Ruled>,
    marks: Vec<Mark>,
    keys: Vec<KeyChange>,
    sums: state::Sums,
    /// Messages, as the insert reads them.
    emits: Option<String>,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.removed.is_empty()
            && self.retries.is_empty()
            && self.marks.is_empty()
            && self.keys.is_empty()
            && self.sums.is_empty()
            && self.emits.is_none()
    }

    /// Does it all. Answers the newest emitted message's number, if any was written; `None` where something stands in the
    /// way.
    fn run(self, native: &mut Native<'_>) -> Result<Option<Option<i64>>, StoreError> {
        let now = native.number(concat!("-- settle.now\nSELECT ", now_ms!()), &[])?;
        // Token before effects: a stale worker must lose here.
        let held = copy_dead(native, &self.dead, now)?
            && remove(native, &self.removed)?
            && retry(native, &self.retries, now)?
            && mark(native, &self.marks, now)?
            && state::is_as_read(native, &self.keys)?;
        if !held {
            return Ok(None);
        }
        state::write(native, &self.keys)?;
        state::add(native, &self.sums)?;
        let newest = match self.emits {
            Some(rows) => enqueue::insert(native, &rows)?.1,
            None => None,
        };
        Ok(Some(newest))
    }
}

/// Rows that one statement takes. Each run of one that removes deliveries costs as much again as the row itself: as they
/// have a trigger, SQLite gets ready to undo it.
const TOGETHER: usize = 64;

static REMOVE_TOGETHER: LazyLock<String> = LazyLock::new(|| {
    let ids = vec!["?"; TOGETHER].join(", ");
    format!("-- settle.remove_together\nDELETE FROM laneway_delivery WHERE lease_token = ? AND id IN ({ids})")
});

/// Removes deliveries; they are sorted. Answers whether all were held.
fn remove(native: &mut Native<'_>, rows: &[(LeaseToken, DeliveryId)]) -> Result<bool, StoreError> {
    let mut removed = 0;
    for of_token in rows.chunk_by(|(one, _), (other, _)| one == other) {
        let (together, rest) = of_token.as_chunks::<TOGETHER>();
        for rows in together {
            let token = std::iter::once(rows[0].0.0);
            let values: Vec<_> = token.chain(rows.iter().map(|(_, id)| id.0)).map(Value::Integer).collect();
            removed += native.run(&REMOVE_TOGETHER, &values)?;
        }
        for (token, delivery) in rest {
            let remove = "-- settle.remove
                DELETE FROM laneway_delivery WHERE id = ? AND lease_token = ?";
            removed += native.run(remove, &[delivery.0.into(), token.0.into()])?;
        }
    }
    Ok(removed == rows.len() as u64)
}

const MARK: &str = "-- settle.mark
    INSERT INTO laneway_marker (subscription_id, message_id, metadata, processed_at) VALUES (?, ?, ?, ?)
    ON CONFLICT (subscription_id, message_id) DO NOTHING";

/// Writes markers; they are sorted. Answers whether none was there before.
fn mark(native: &mut Native<'_>, rows: &[Mark], now: i64) -> Result<bool, StoreError> {
    let mut mark = native.statement(MARK)?;
    for row in rows {
        let values =
            [row.subscription.into(), row.message.as_str().into(), row.metadata.as_deref().into(), now.into()];
        if mark.run(&values)? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts deliveries back. Answers whether all were held.
fn retry(native: &mut Native<'_>, rows: &[Ruled], now: i64) -> Result<bool, StoreError> {
    // An attempt that does not count leaves no trace, unless it says why it failed: the first that ran starts the clock,
    // which for those that do not count is one of their own. An answer that counts settles what leases were lost before.
    let mut retry = native.statement(
        "-- settle.retry
        UPDATE laneway_delivery SET
            available_at = ?3,
            lease_token = NULL,
            attempt = CASE WHEN ?4 THEN attempt ELSE max(attempt - 1, 0) END,
            first_attempt_at = CASE WHEN ?4 OR attempt > 1 THEN first_attempt_at END,
            waiting_since = CASE WHEN ?4 OR ?5 IS NULL THEN waiting_since
                ELSE coalesce(waiting_since, first_attempt_at) END,
            last_error = CASE WHEN ?4 THEN ?5 ELSE coalesce(?5, last_error) END,
            lost = CASE WHEN ?4 THEN 0 ELSE lost END
        WHERE id = ?1 AND lease_token = ?2",
    )?;
    for (delivery, token, _, verdict) in rows {
        let Verdict::Retry { delay, counted, error } = verdict else { continue };
        let due = now.saturating_add(millis(*delay));
        let error = error.as_ref().map(laneway_core::ErrorText::as_str);
        if retry.run(&[delivery.0.into(), token.0.into(), due.into(), (*counted).into(), error.into()])? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes dead letters. Answers whether all deliveries were held.
fn copy_dead(native: &mut Native<'_>, rows: &[Ruled], now: i64) -> Result<bool, StoreError> {
    let mut copy = native.statement(
        "-- settle.copy_dead
        INSERT INTO laneway_dead_letter (message_seq, message_id, subscription_id, lane, priority, reason, error,
            attempts, first_attempt_at, failed_at, plugin)
        SELECT message_seq, ?3, subscription_id, lane, priority, ?4, ?5, max(attempt - ?7, 0),
            CASE WHEN attempt > ?7 THEN first_attempt_at ELSE waiting_since END, ?8, ?6
        FROM laneway_delivery WHERE id = ?1 AND lease_token = ?2",
    )?;
    for (delivery, token, message, verdict) in rows {
        let Verdict::DeadLetter { reason, error, plugin } = verdict else { continue };
        let values = [
            delivery.0.into(),
            token.0.into(),
            message.as_str().into(),
            reason.as_str().into(),
            error.as_str().into(),
            plugin.as_ref().map(laneway_core::PluginDigest::as_str).into(),
            (!verdict.is_counted()).into(),
            now.into(),
        ];
        if copy.run(&values)? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
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
