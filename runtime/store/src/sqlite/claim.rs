//! Leasing what is due.

use laneway_core::{Batch, ClaimRequest, Delivery, LeaseToken, StoreError};
use sqlx::Row as _;

use super::claimed::{Claimed, complete};
use super::connection::{Connections, Reader, millis, now_ms};
use super::native::Value;
use super::writer::Durability;

/// Due deliveries of an ordered subscription that a claim looks at, if all that it looked at before had to wait: most may
/// be of one key.
const LOOKED_AT_MIN: u32 = 256;

/// Leases due deliveries of one lane.
pub(super) async fn claim(connections: &Connections, request: ClaimRequest) -> Result<Option<Batch>, StoreError> {
    let mut request = request;
    // A look first: with nothing due, nobody's write is held up.
    let mut reader = connections.reader().await?;
    if let Some(max) = request.in_work_max {
        request.limit = request.limit.min(max.saturating_sub(in_work(&mut reader, &request).await?));
    }
    if request.limit == 0 {
        return Err(StoreError::NoRoom);
    }
    let (mut due, are_numbers) = probe(&mut reader, &request).await?;
    drop(reader);
    if !are_numbers {
        number_priorities(connections, &request).await?;
        (due, _) = probe(&mut connections.reader().await?, &request).await?;
    }
    let Some(due) = due else { return Ok(None) };
    let mut deliveries: Vec<Delivery> = Vec::new();
    for &priority in &due.priorities {
        let left = request.limit.saturating_sub(u32::try_from(deliveries.len()).unwrap_or(u32::MAX));
        if left == 0 {
            break;
        }
        match lease_priority(connections, &request, &due, priority, left).await {
            Ok(more) => deliveries.extend(more),
            Err(error) if deliveries.is_empty() => return Err(error),
            Err(StoreError::NoRoom) => break,
            // What is leased already must get to work.
            Err(error) => {
                tracing::warn!(%error, "failed to claim lower priorities");
                break;
            }
        }
    }
    if deliveries.is_empty() {
        return Ok(None);
    }
    Ok(Some(Batch { subscription: request.subscription, token: due.token, deliveries }))
}

/// What a look found.
struct Due {
    /// Priorities that have something due, highest first.
    priorities: Vec<i64>,
    /// A token never used before.
    token: LeaseToken,
    /// The database's time of the look, in milliseconds.
    now: i64,
}

/// Looks for what is due. Answers also whether all priorities are numbers.
async fn probe(reader: &mut Reader, request: &ClaimRequest) -> Result<(Option<Due>, bool), StoreError> {
    // One index probe a priority that has deliveries, and one for its earliest delivery. A process that does not know
    // yet that the subscription is ordered takes nothing.
    let query = concat!(
        "-- claim.probe
        WITH RECURSIVE hop (priority) AS (
            SELECT max(d.priority) FROM laneway_delivery d WHERE d.subscription_id = ?1 AND d.lane = ?2
                AND d.parked IS NOT 1
            UNION ALL
            SELECT (SELECT max(d.priority) FROM laneway_delivery d
                WHERE d.subscription_id = ?1 AND d.lane = ?2 AND d.parked IS NOT 1 AND d.priority < hop.priority)
            FROM hop WHERE hop.priority IS NOT NULL
        )
        SELECT CAST(hop.priority AS INTEGER), random() & 9223372036854775807, ",
        now_ms!(),
        ", typeof(hop.priority) = 'integer' FROM hop
        WHERE hop.priority IS NOT NULL AND EXISTS (SELECT 1 FROM laneway_delivery d
            WHERE d.subscription_id = ?1 AND d.lane = ?2 AND d.priority = hop.priority AND d.parked IS NOT 1
            AND d.available_at <= ",
        now_ms!(),
        ")
        AND (?4 OR NOT EXISTS (SELECT 1 FROM laneway_subscription s WHERE s.id = ?1 AND s.ordered))
        ORDER BY hop.priority DESC LIMIT ?3 + 0"
    );
    let statement = sqlx::query(query)
        .bind(request.subscription.0)
        .bind(request.lane.number())
        .bind(request.limit)
        .bind(request.ordered);
    let mut due = None;
    let mut are_numbers = true;
    reader
        .each(statement, |row| {
            let priority = row.try_get(0)?;
            if !row.try_get::<bool, _>(3)? {
                are_numbers = false;
                return Ok(());
            }
            match &mut due {
                None => {
                    due = Some(Due {
                        priorities: vec![priority],
                        token: LeaseToken(row.try_get(1)?),
                        now: row.try_get(2)?,
                    });
                }
                Some(due) => due.priorities.push(priority),
            }
            Ok(())
        })
        .await?;
    Ok((due, are_numbers))
}

/// With checks switched off a producer may have given a priority that is no number. SQLite puts such ones before all
/// others, and none of them is a priority to claim by: these deliveries get the default one, and their messages tell what
/// is wrong with them.
async fn number_priorities(connections: &Connections, request: &ClaimRequest) -> Result<(), StoreError> {
    let number = "-- claim.number_priorities
        UPDATE laneway_delivery SET priority = 0 WHERE id IN (
            SELECT id FROM laneway_delivery WHERE subscription_id = ? AND lane = ? AND typeof(priority) <> 'integer')";
    let (subscription, lane) = (request.subscription.0, i64::from(request.lane.number()));
    connections
        .write(Durability::Buffered, move |native| {
            native.run(number, &[subscription.into(), lane.into()]).map(Some)
        })
        .await?;
    Ok(())
}

/// Payloads up to this size are read as they are claimed; larger ones after that, so that nobody waits for them to write.
macro_rules! inline_bytes_max {
    () => {
        "16384"
    };
}

/// Leases due deliveries of a priority. Where all that it looks at have to wait for others of their key, it looks on.
async fn lease_priority(
    connections: &Connections,
    request: &ClaimRequest,
    due: &Due,
    priority: i64,
    limit: u32,
) -> Result<Vec<Delivery>, StoreError> {
    let mut looked_at = limit;
    loop {
        let Leased { deliveries, again } = lease(connections, request, due, priority, limit, looked_at).await?;
        if !deliveries.is_empty() || !again {
            return Ok(deliveries);
        }
        looked_at = looked_at.max(LOOKED_AT_MIN);
    }
}

/// Counts leased deliveries of a subscription: among those that are not due yet, as far ahead as a lease reaches. So it
/// reads over what is delayed for less than that, which only subscriptions with such a limit pay for.
macro_rules! in_work {
    () => {
        concat!(
            "SELECT count(*) AS count FROM (
                WITH RECURSIVE hop (subscription_id, lane, priority) AS (
                    SELECT s.value, l.value, (SELECT max(d.priority) FROM laneway_delivery d
                        WHERE d.subscription_id = s.value AND d.lane = l.value AND d.parked IS NOT 1)
                    FROM (SELECT ? AS value) s, json_each('[0,1]') l
                    UNION ALL
                    SELECT hop.subscription_id, hop.lane, (SELECT max(d.priority) FROM laneway_delivery d
                        WHERE d.subscription_id = hop.subscription_id AND d.lane = hop.lane AND d.parked IS NOT 1
                            AND d.priority < hop.priority)
                    FROM hop WHERE hop.priority IS NOT NULL
                )
                SELECT subscription_id, lane, priority FROM hop WHERE priority IS NOT NULL
            ) hop CROSS JOIN laneway_delivery d
            WHERE d.subscription_id = hop.subscription_id AND d.lane = hop.lane AND d.priority = hop.priority
                AND d.parked IS NOT 1 AND d.lease_token IS NOT NULL
                AND d.available_at > ",
            now_ms!(),
            " AND d.available_at <= ",
            now_ms!(),
            " + ?"
        )
    };
}

async fn in_work(reader: &mut Reader, request: &ClaimRequest) -> Result<u32, StoreError> {
    let statement = sqlx::query(IN_WORK).bind(request.subscription.0).bind(millis(request.lease));
    let count: Option<i64> = reader.optional(statement, |row| row.try_get(0)).await?;
    Ok(u32::try_from(count.unwrap_or_default()).unwrap_or(u32::MAX))
}

/// The first deliveries of a priority that are due. The index gives their order, so that the limit ends the scan. Tokens
/// are not looked at: what is due is free. The time is that of the look: under the write lock, and with one time, all
/// statements of a claim find the same rows.
///
/// A bare parameter as the limit would be looked at by the planner, which then plans anew for each value bound.
macro_rules! due {
    () => {
        "FROM laneway_delivery
        WHERE subscription_id = ? AND lane = ? AND priority = ? AND parked IS NOT 1 AND available_at <= ?
        ORDER BY available_at, message_seq LIMIT ? + 0"
    };
}

/// What a claim finds of a due delivery under a lease is what is left of one that has ended. That one has counted an
/// attempt, which stays counted only where a slot is known to have begun it; else this one takes its place.
macro_rules! uncounted {
    () => {
        "(lease_token IS NOT NULL AND begun_token IS NOT lease_token)"
    };
}

/// The condition that due delivery `d` of an ordered subscription has to wait: its key is busy with another one, or there
/// is one before it in the line.
macro_rules! blocked {
    () => {
        "d.key IS NOT NULL AND coalesce(
            (SELECT b.message_seq <> d.message_seq FROM laneway_busy_key b
                WHERE b.subscription_id = d.subscription_id AND b.key = d.key),
            EXISTS (SELECT 1 FROM laneway_delivery e
                WHERE e.subscription_id = d.subscription_id AND e.key = d.key AND e.parked IS NOT NULL
                    AND e.message_seq < d.message_seq))"
    };
}

/// The condition that delivery `d` of an ordered subscription is to be taken.
macro_rules! free {
    () => {
        "d.key IS NULL OR EXISTS (SELECT 1 FROM laneway_busy_key b
            WHERE b.subscription_id = d.subscription_id AND b.key = d.key AND b.message_seq = d.message_seq)"
    };
}

/// What a claim of one priority did.
struct Leased {
    deliveries: Vec<Delivery>,
    /// Whether some that were due have to wait for others of their key, or were nobody's any more: others may come.
    again: bool,
}

const IN_WORK: &str = concat!("-- claim.in_work\n", in_work!());

const LINE_UP: &str = "-- claim.line_up
    UPDATE laneway_delivery SET parked = 0 WHERE id IN (
        SELECT l.id FROM laneway_delivery l
        WHERE l.subscription_id = ? AND l.key IS NOT NULL AND l.parked IS NULL AND l.available_at <= ?
            AND NOT EXISTS (SELECT 1 FROM laneway_busy_key b
                WHERE b.subscription_id = l.subscription_id AND b.key = l.key AND b.message_seq = l.message_seq)
        ORDER BY l.available_at LIMIT 4096)";

const PARK: &str = concat!(
    "-- claim.park
    UPDATE laneway_delivery SET parked = 1 WHERE id IN (SELECT d.id FROM (SELECT * ",
    due!(),
    ") d WHERE ",
    blocked!(),
    ")"
);

const OCCUPY: &str = concat!(
    "-- claim.occupy
    INSERT INTO laneway_busy_key (subscription_id, key, message_seq)
    SELECT d.subscription_id, d.key, d.message_seq FROM (SELECT * ",
    due!(),
    ") d WHERE d.key IS NOT NULL AND NOT (",
    blocked!(),
    ") ORDER BY d.message_seq ON CONFLICT (subscription_id, key) DO NOTHING"
);

/// What is to be leased, in the order of [`Claimed::of`]. With checks switched off a producer may have written bytes where
/// texts belong, or texts where numbers do: each value is read as what it should be, so that one such row stops no other.
macro_rules! select {
    ($processed:expr, $free:expr) => {
        concat!(
            "-- claim.select
            SELECT d.id, d.available_at, d.message_seq, CAST(d.attempt AS INTEGER) + 1 - ",
            uncounted!(),
            ", d.lost + (d.lease_token IS NOT NULL),
                max(0, ? - coalesce(d.waiting_since, CASE WHEN d.attempt > ",
            uncounted!(),
            " THEN d.first_attempt_at END)),
                m.id, m.topic, m.key, m.content_type, nullif(m.headers, '{}'), m.tenant,
                CASE WHEN length(m.payload) <= ",
            inline_bytes_max!(),
            " THEN m.payload END, ",
            $processed,
            ", typeof(m.priority) = 'integer' FROM (SELECT * ",
            due!(),
            ") d LEFT JOIN laneway_message m ON m.seq = d.message_seq WHERE ",
            $free
        )
    };
}

macro_rules! processed {
    () => {
        "EXISTS (SELECT 1 FROM laneway_marker k
            WHERE k.subscription_id = d.subscription_id AND k.message_id = m.id)"
    };
}

/// One by one: a statement for all would keep the numbers of its rows in a table of its own.
const LEASE: &str = concat!(
    "-- claim.lease
    UPDATE laneway_delivery SET lease_token = ?1, parked = NULL, available_at = ?2,
        attempt = max(attempt, 0) + 1 - ",
    uncounted!(),
    ", lost = lost + (lease_token IS NOT NULL),
        first_attempt_at = CASE WHEN attempt > ",
    uncounted!(),
    " THEN first_attempt_at ELSE ?3 END
    WHERE id = ?4"
);

async fn lease(
    connections: &Connections,
    request: &ClaimRequest,
    due: &Due,
    priority: i64,
    limit: u32,
    looked_at: u32,
) -> Result<Leased, StoreError> {
    let (job, token, now) = (*request, due.token, due.now);
    let leased = connections
        .write(Durability::Buffered, move |native| {
            let request = job;
            let due = |limit: u32| -> [Value<'_>; 5] {
                [
                    request.subscription.0.into(),
                    i64::from(request.lane.number()).into(),
                    priority.into(),
                    now.into(),
                    limit.into(),
                ]
            };
            if let Some(max) = request.in_work_max {
                // Another process may have claimed since the look.
                let values = [request.subscription.0.into(), millis(request.lease).into()];
                if native.number(IN_WORK, &values)? > i64::from(max) - i64::from(limit) {
                    return Ok(None);
                }
            }
            let mut parked = 0;
            if request.ordered {
                // What was delayed and is due takes its place in the line.
                native.run(LINE_UP, &[request.subscription.0.into(), now.into()])?;
                parked = native.run(PARK, &due(looked_at))?;
                native.run(OCCUPY, &due(limit))?;
            }
            let clock = native.number(concat!("-- claim.now\nSELECT ", now_ms!()), &[])?;
            let select = match (request.check_markers, request.ordered) {
                (true, false) => select!(processed!(), "true"),
                (false, false) => select!("0", "true"),
                (true, true) => select!(processed!(), free!()),
                (false, true) => select!("0", free!()),
            };
            let mut claimed = Vec::with_capacity(limit.min(4096) as usize);
            let [subscription, lane, priority, now, limit] = due(limit);
            native.statement(select)?.each(&[clock.into(), subscription, lane, priority, now, limit], |row| {
                claimed.push(Claimed::of(row))
            })?;
            let mut lease = native.statement(LEASE)?;
            let until = clock.saturating_add(millis(request.lease));
            for claimed in &claimed {
                lease.run(&[token.0.into(), until.into(), clock.into(), claimed.id.into()])?;
            }
            Ok(Some((claimed, parked)))
        })
        .await?;
    let Some((mut claimed, parked)) = leased else {
        return Err(StoreError::NoRoom);
    };
    claimed.sort_by_key(|claimed| (claimed.due, claimed.seq));
    let claimed_any = !claimed.is_empty();
    let deliveries = complete(connections, request, priority, claimed).await?;
    Ok(Leased { again: parked > 0 || (claimed_any && deliveries.is_empty()), deliveries })
}
