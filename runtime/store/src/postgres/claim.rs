//! Leases on due deliveries.

use std::time::Duration;

use bytes::Bytes;
use laneway_core::{
    Batch, ClaimRequest, Delivery, DeliveryId, ErrorText, Header, LeaseToken, Message, MessageId, Priority,
    StoreError, Topic,
};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::connection::{Database, Outcome, Session, classify, microseconds, span, unreadable};
use super::lease::CLAIM_MAX;

/// Due deliveries of an ordered subscription that a claim looks at, if all that it looked at before had to wait.
const LOOKED_AT_MIN: u32 = 256;

/// Leases due deliveries of one lane.
///
/// Due rows are not one range of the index: behind those of each priority come the ones that are delayed. So the
/// claim hops from priority to priority, one probe each, and reads the due rows of each from the front; the outer
/// limit ends the hopping. A plain `ORDER BY ... LIMIT` would read over all that is not due.
///
/// What it takes leaves `delivery` and becomes one row of `lease`. An update in place would enter each row into two
/// indexes again, at one page for each level of trees that grow with what is not due.
///
/// Rows are deleted by their physical place, which the locks hold still: a join by key would look each up once more.
pub(super) async fn claim(database: &Database, request: ClaimRequest) -> Result<Option<Batch>, StoreError> {
    // One more round looks at more: most may be of one key.
    let mut looked_at = request.limit.min(CLAIM_MAX);
    loop {
        let taken = take(database, &request, looked_at).await.map_err(classify)?;
        looked_at = looked_at.max(LOOKED_AT_MIN);
        // What came back is not in the snapshot of the statement that brought it back. Beside a batch it waits for the
        // next claim, and the statement's notification sees to it that one comes. What was parked made room for others.
        if taken.batch.is_some() || !taken.again {
            return if taken.no_room { Err(StoreError::NoRoom) } else { Ok(taken.batch) };
        }
    }
}

/// What one statement did.
struct Taken {
    batch: Option<Batch>,
    /// Whether deliveries of leases that had ended are due again, or some that were due have to wait for others.
    again: bool,
    /// Whether nothing was to be taken.
    no_room: bool,
}

async fn take(database: &Database, request: &ClaimRequest, looked_at: u32) -> Outcome<Taken> {
    // Rows of ordered subscriptions wait in their lines until a claim looks at them. Each has to be the first of its
    // line, and its key must not be busy with another; else it is parked, out of the way of claims. A node that does not
    // know yet that the subscription is ordered takes nothing. The tables are probed once for each key: the key of a long
    // line leaves many dead rows there.
    macro_rules! chosen {
        (ordered) => {
            "due AS MATERIALIZED (
                SELECT ready.* FROM level CROSS JOIN LATERAL (
                    SELECT d.ctid AS place, d.priority, d.available_at, d.message_seq, d.key FROM laneway.delivery d
                    WHERE d.subscription_id = $1 AND d.lane = $2 AND d.priority = level.priority
                        AND d.available_at <= statement_timestamp() AND d.parked IS NOT TRUE
                    ORDER BY d.available_at, d.message_seq LIMIT $6
                    FOR UPDATE SKIP LOCKED
                ) ready LIMIT $6
            ), numbered AS MATERIALIZED (
                SELECT d.*, row_number() OVER (PARTITION BY d.key ORDER BY d.message_seq) AS number FROM due d
            ), probed AS MATERIALIZED (
                SELECT n.*, b.message_seq AS busy FROM numbered n
                LEFT JOIN laneway.busy_key b
                    ON b.subscription_id = $1 AND b.key = CASE WHEN n.number = 1 THEN n.key END
            ), looked AS MATERIALIZED (
                SELECT p.*, p.key IS NULL OR coalesce(max(p.busy) OVER (PARTITION BY p.key) = p.message_seq, false)
                    OR (p.number = 1 AND p.busy IS NULL AND NOT EXISTS (SELECT FROM laneway.delivery e
                        WHERE e.subscription_id = $1 AND e.key = p.key AND e.parked IS NOT NULL
                            AND e.message_seq < p.message_seq)) AS free
                FROM probed p
            ), chosen AS MATERIALIZED (
                SELECT l.place, l.available_at, l.message_seq, l.key FROM looked l WHERE l.free
                ORDER BY l.priority DESC, l.available_at, l.message_seq LIMIT $3
            ), parked AS (
                UPDATE laneway.delivery d SET parked = true FROM looked l WHERE d.ctid = l.place AND NOT l.free
                RETURNING 1
            ), busy AS (
                INSERT INTO laneway.busy_key (subscription_id, key, message_seq)
                SELECT $1, c.key, c.message_seq FROM chosen c WHERE c.key IS NOT NULL
                ON CONFLICT (subscription_id, key) DO NOTHING
            ), orphaned AS (
                -- Its message was deleted while it was handed back: nobody will ever settle it.
                INSERT INTO laneway.freed_key (subscription_id, key)
                SELECT $1, c.key FROM chosen c WHERE c.key IS NOT NULL
                    AND NOT EXISTS (SELECT FROM laneway.message m WHERE m.seq = c.message_seq)
                RETURNING 1
            )"
        };
        (unordered) => {
            "chosen AS MATERIALIZED (
                SELECT ready.place, ready.available_at FROM level CROSS JOIN LATERAL (
                    SELECT d.ctid AS place, d.available_at FROM laneway.delivery d
                    WHERE d.subscription_id = $1 AND d.lane = $2 AND d.priority = level.priority
                        AND d.available_at <= statement_timestamp() AND d.parked IS NOT TRUE
                        AND NOT EXISTS (SELECT FROM laneway.subscription s WHERE s.id = $1 AND s.ordered)
                    ORDER BY d.available_at, d.message_seq LIMIT $3
                    FOR UPDATE SKIP LOCKED
                ) ready LIMIT $3
            )"
        };
    }
    macro_rules! claim {
        ($kind:ident, $parked:literal) => {
            concat!(
                "-- delivery.claim
        WITH RECURSIVE ended AS (
            DELETE FROM laneway.lease l USING (
                SELECT e.token FROM laneway.lease e
                WHERE e.subscription_id = $1 AND e.leased_until <= statement_timestamp()
                ORDER BY e.leased_until LIMIT 8 FOR UPDATE SKIP LOCKED
            ) e WHERE l.token = e.token
            RETURNING l.*
        ), returned AS (
            -- The lease has counted an attempt. It stays counted only where a slot is known to have begun it; else it
            -- leaves no trace but the number of leases lost.
            INSERT INTO laneway.delivery (message_seq, available_at, first_attempt_at, subscription_id, priority,
                attempt, lane, last_error, key, lost)
            SELECT u.message_seq, l.leased_until,
                CASE WHEN u.attempt > uncounted.one THEN coalesce(u.first_attempt_at, l.leased_at)
                    ELSE u.first_attempt_at END,
                l.subscription_id, u.priority, greatest(u.attempt - uncounted.one, 0), l.lane, u.last_error,
                CASE WHEN s.ordered THEN m.key END, coalesce(u.lost, 0) + 1
            FROM ended l
            JOIN laneway.subscription s ON s.id = l.subscription_id
            CROSS JOIN LATERAL unnest(l.message_seqs, l.priorities, l.attempts, l.first_attempts_at, l.last_errors,
                    l.losts)
                WITH ORDINALITY AS u(message_seq, priority, attempt, first_attempt_at, last_error, lost, place)
            CROSS JOIN LATERAL (SELECT 1 - coalesce(get_bit(l.begun, u.place::integer - 1), 0) AS one) uncounted
            JOIN laneway.message m ON m.seq = u.message_seq
            WHERE get_bit(l.open, u.place::integer - 1) = 1
            ON CONFLICT (message_seq, subscription_id) DO NOTHING
        ), level AS (
            (SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = $2 AND d.parked IS NOT TRUE
                ORDER BY d.priority DESC LIMIT 1)
            UNION ALL
            SELECT below.priority FROM level CROSS JOIN LATERAL (
                SELECT d.priority FROM laneway.delivery d
                WHERE d.subscription_id = $1 AND d.lane = $2 AND d.parked IS NOT TRUE AND d.priority < level.priority
                ORDER BY d.priority DESC LIMIT 1
            ) below
        ), ",
                chosen!($kind),
                ", taken AS (
            DELETE FROM laneway.delivery d USING chosen c WHERE d.ctid = c.place
            RETURNING d.message_seq, d.priority, d.attempt + 1 AS attempt, d.first_attempt_at, d.last_error, d.lost,
                c.available_at
        ), leased AS (
            INSERT INTO laneway.lease (leased_until, leased_at, message_seq_min, message_seq_max, subscription_id, lane, open,
                message_seqs, priorities, attempts, first_attempts_at, last_errors, losts)
            SELECT statement_timestamp() + $4::bigint * interval '1 microsecond', statement_timestamp(), min(t.message_seq),
                max(t.message_seq), $1, $2, repeat('1', count(*)::integer)::bit varying, array_agg(t.message_seq),
                array_agg(t.priority), array_agg(t.attempt), array_agg(t.first_attempt_at), array_agg(t.last_error),
                CASE WHEN count(t.lost) > 0 THEN array_agg(t.lost) END
            FROM (SELECT * FROM taken ORDER BY priority DESC, available_at, message_seq) t
            HAVING count(*) > 0
            RETURNING token, message_seqs, attempts, first_attempts_at, losts
        )
        SELECT (SELECT count(pg_notify('laneway', e.subscription_id::text)) FROM ended e) > 0, c.token, c.place,
            c.attempt, c.since_first_attempt, m.id, m.topic, m.key, m.priority, m.payload, m.content_type,
            CASE WHEN m.headers <> '{}' THEN m.headers::text END, m.tenant, k.message_id IS NOT NULL, ",
                $parked,
                ", c.lost,
                (SELECT count(*) FROM ended l
                    CROSS JOIN LATERAL unnest(l.message_seqs) WITH ORDINALITY AS u(message_seq, place)
                    WHERE get_bit(l.open, u.place::integer - 1) = 1
                        AND NOT EXISTS (SELECT FROM laneway.message n WHERE n.seq = u.message_seq))
        FROM (VALUES (1)) always
        LEFT JOIN (
            SELECT l.token, u.place, u.message_seq, u.attempt, u.lost,
                (extract(epoch FROM statement_timestamp() - u.first_attempt_at) * 1000000)::bigint
                    AS since_first_attempt
            FROM leased l CROSS JOIN LATERAL unnest(l.message_seqs, l.attempts, l.first_attempts_at, l.losts)
                WITH ORDINALITY AS u(message_seq, attempt, first_attempt_at, lost, place)
        ) c ON true
        LEFT JOIN laneway.message m ON m.seq = c.message_seq
        LEFT JOIN laneway.marker k ON $5 AND k.subscription_id = $1 AND k.message_id = m.id"
            )
        };
    }
    let query = match request.ordered {
        true => claim!(ordered, "(SELECT count(*) FROM parked) + (SELECT count(*) FROM orphaned) > 0"),
        false => claim!(unordered, "false"),
    };
    let claim = |limit: u32| {
        let statement = sqlx::query(query)
            .bind(request.subscription.0)
            .bind(request.lane.number())
            .bind(i64::from(limit.min(CLAIM_MAX)))
            .bind(microseconds(request.lease))
            .bind(request.check_markers);
        if request.ordered { statement.bind(i64::from(looked_at)) } else { statement }
    };
    let mut no_room = false;
    let rows = match request.ordered || request.in_work_max.is_some() {
        false => database.connection().await?.all(claim(request.limit)).await?,
        true => {
            // A transaction whose first statement holds off other claims: this one must see what they did until then.
            let mut transaction = database.begin().await?;
            let query = "-- delivery.free_keys
                SELECT laneway.free_keys($1)";
            transaction.execute(sqlx::query(query).bind(request.subscription.0)).await?;
            let limit = match request.in_work_max {
                Some(max) => request.limit.min(max.saturating_sub(in_work(&mut transaction, request).await?)),
                None => request.limit,
            };
            // What ended leases held becomes due also without room for it.
            no_room = limit == 0;
            let statement = claim(limit);
            let rows = transaction.all(statement).await?;
            transaction.commit().await?;
            rows
        }
    };
    let Some(first) = rows.first() else { return Err(unreadable("a claim was not answered")) };
    let mut again = first.try_get(0)? || first.try_get(14)?;
    warn_of_orphans(request, first.try_get(16)?);
    let Some(token) = first.try_get(1)? else { return Ok(Taken { batch: None, again, no_room }) };
    let orphans = orphans(&rows)?;
    if !orphans.is_empty() {
        // Others may be due behind them. If they cannot be removed now, they go when the lease ends.
        match remove_orphans(database, token, &orphans).await {
            Ok(()) => {
                warn_of_orphans(request, i64::try_from(orphans.len()).unwrap_or(i64::MAX));
                again = true;
            }
            Err(error) => tracing::debug!(%error, "failed to remove deliveries without a message"),
        }
    }
    let mut deliveries =
        rows.iter().filter_map(|row| delivery(row, request).transpose()).collect::<Outcome<Vec<_>>>()?;
    // The database need not keep the order from leasing to answering.
    deliveries.sort_by_key(|delivery| delivery.id);
    let batch = Batch { subscription: request.subscription, token: LeaseToken(token), deliveries };
    Ok(Taken { batch: (!batch.deliveries.is_empty()).then_some(batch), again, no_room })
}

/// Deliveries of the subscription that are leased, to all nodes.
async fn in_work(session: &mut impl Session, request: &ClaimRequest) -> Outcome<u32> {
    let query = "-- delivery.in_work
        SELECT coalesce(sum(bit_count(l.open)), 0)::bigint FROM laneway.lease l
        WHERE l.subscription_id = $1 AND l.leased_until > statement_timestamp()";
    let row = session.one(sqlx::query(query).bind(request.subscription.0)).await?;
    Ok(u32::try_from(row.try_get::<i64, _>(0)?).unwrap_or(u32::MAX))
}

/// Places in the lease of deliveries that have no message, such as after a restore that was not whole.
fn orphans(rows: &[PgRow]) -> Outcome<Vec<i64>> {
    let is_orphan = |row: &&PgRow| row.try_get::<Option<&str>, _>(5).is_ok_and(|message| message.is_none());
    rows.iter().filter(is_orphan).map(|row| row.try_get(2)).collect()
}

/// Closes deliveries of a lease that can be neither run nor explained.
async fn remove_orphans(database: &Database, token: i64, places: &[i64]) -> Outcome<()> {
    let query = "-- delivery.remove_orphans
        WITH held AS MATERIALIZED (
            SELECT l.token, l.open & ~(SELECT bit_or(set_bit(l.open & ~l.open, p.place::integer - 1, 1))
                FROM unnest($2::bigint[]) AS p(place)) AS rest
            FROM laneway.lease l WHERE l.token = $1 FOR UPDATE
        ), emptied AS (
            DELETE FROM laneway.lease l USING held h WHERE l.token = h.token AND bit_count(h.rest) = 0
        )
        UPDATE laneway.lease l SET open = h.rest FROM held h WHERE l.token = h.token AND bit_count(h.rest) > 0";
    database.connection().await?.execute(sqlx::query(query).bind(token).bind(places)).await
}

fn warn_of_orphans(request: &ClaimRequest, deliveries: i64) {
    if deliveries > 0 {
        tracing::warn!(
            subscription = request.subscription.0,
            deliveries,
            "messages are gone from the outbox; their deliveries are removed"
        );
    }
}

/// `None` if its message was deleted meanwhile.
fn delivery(row: &PgRow, request: &ClaimRequest) -> Outcome<Option<Delivery>> {
    if row.try_get::<Option<&str>, _>(5)?.is_none() {
        return Ok(None);
    }
    let attempt: i32 = row.try_get(3)?;
    // One row that breaks the rules of the schema must not stop the others.
    let (message, unreadable) = match message(row) {
        Ok(message) if attempt > 0 => (message, None),
        Ok(message) => {
            (message, Some(ErrorText::new(format!("delivery: its number of attempts is {}", attempt - 1))))
        }
        Err(error) => (remains(row), Some(ErrorText::new(format!("message: {error}")))),
    };
    Ok(Some(Delivery {
        id: DeliveryId(row.try_get(2)?),
        lane: request.lane,
        message,
        attempt: u32::try_from(attempt).unwrap_or_default(),
        lost: u32::try_from(row.try_get::<Option<i32>, _>(15)?.unwrap_or_default()).unwrap_or_default(),
        since_first_attempt: row.try_get::<Option<i64>, _>(4)?.map_or(Duration::ZERO, span),
        processed: row.try_get(13)?,
        unreadable,
    }))
}

/// What can be read of a message whose row breaks the rules of the schema.
fn remains(row: &PgRow) -> Message {
    fn read<T: Default + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>>(
        row: &PgRow,
        column: usize,
    ) -> T {
        row.try_get::<Option<T>, _>(column).ok().flatten().unwrap_or_default()
    }
    Message {
        id: MessageId::from_stored(read(row, 5)),
        topic: Topic::from_stored(read(row, 6)),
        key: row.try_get(7).unwrap_or_default(),
        priority: Priority(read(row, 8)),
        payload: Bytes::new(),
        content_type: read(row, 10),
        headers: Vec::new(),
        tenant: None,
    }
}

fn message(row: &PgRow) -> Outcome<Message> {
    Ok(Message {
        id: MessageId::from_stored(row.try_get(5)?),
        topic: Topic::from_stored(row.try_get(6)?),
        key: row.try_get(7)?,
        priority: Priority(row.try_get(8)?),
        payload: Bytes::from(row.try_get::<Vec<u8>, _>(9)?),
        content_type: row.try_get(10)?,
        headers: headers(row.try_get(11)?)?,
        tenant: row.try_get(12)?,
    })
}

fn headers(object: Option<&str>) -> Outcome<Vec<Header>> {
    let Some(object) = object else { return Ok(Vec::new()) };
    let values: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(object).map_err(|error| unreadable(format_args!("headers: {error}")))?;
    values
        .into_iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(value) => Ok(Header { name, value }),
            _ => Err(unreadable(format_args!("header {name} is no string"))),
        })
        .collect()
}
