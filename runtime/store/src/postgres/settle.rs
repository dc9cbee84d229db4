//! The end of attempts: one transaction a group, with everything that the attempts wrote.

use std::collections::HashSet;

use laneway_core::{
    ErrorText, MarkerMetadata, NewMessage, PluginDigest, SettleReport, Settlement, StateConflict, Verdict,
    state_changes,
};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::connection::{Database, Outcome, Session, Statement, is_collision, microseconds};
use super::lease::Selection;
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
    let frees_keys = group.iter().any(|settlement| settlement.freed_key().is_some());
    if parts.is_one_statement() && !frees_keys {
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
    if frees_keys {
        free_keys(&mut transaction, group, &fenced.lost).await?;
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

    /// Notes those that a statement did not reach.
    fn lost_of(&mut self, part: &[Placed<'_>], missed: Vec<usize>) {
        self.lost.extend(missed.into_iter().map(|missed| part[missed].0));
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
                (settlement.token, settlement.subscription, settlement.delivery, *position)
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

/// Leaves word that the next messages of keys may come, and wakes who will look.
async fn free_keys(session: &mut impl Session, group: &[Settlement], lost: &[usize]) -> Outcome<()> {
    let query = "-- settle.free_keys
        WITH ended AS MATERIALIZED (
            SELECT * FROM unnest($1::integer[], $2::text[], $3::text[]) AS e(subscription_id, key, message_id)
        ), freed AS (
            -- Its message may be gone, and the key be another's since.
            DELETE FROM laneway.busy_key b USING ended e, laneway.message m
            WHERE b.subscription_id = e.subscription_id AND b.key = e.key AND m.seq = b.message_seq
                AND m.id = e.message_id
        ), word AS (
            INSERT INTO laneway.freed_key (subscription_id, key) SELECT e.subscription_id, e.key FROM ended e
        )
        SELECT count(pg_notify('laneway', e.subscription_id::text))
        FROM (SELECT DISTINCT e.subscription_id FROM ended e) e";
    let ended: Vec<(i32, &str, &str)> = group
        .iter()
        .enumerate()
        .filter(|(position, _)| !lost.contains(position))
        .filter_map(|(_, settled)| Some((settled.subscription.0, settled.freed_key()?, settled.message.as_str())))
        .collect();
    let statement = sqlx::query(query)
        .bind(ended.iter().map(|ended| ended.0).collect::<Vec<_>>())
        .bind(ended.iter().map(|ended| ended.1).collect::<Vec<_>>())
        .bind(ended.iter().map(|ended| ended.2).collect::<Vec<_>>());
    session.execute(statement).await
}

/// A [`Selection`], with the message that was leased at one place of each of its leases.
struct Fence<'a> {
    selection: Selection,
    places: Vec<i32>,
    messages: Vec<&'a str>,
}

fn fence<'a>(part: &[Placed<'a>]) -> Fence<'a> {
    let selection =
        Selection::new(part.iter().map(|(_, settled)| (settled.token, settled.subscription, settled.delivery)));
    let (mut places, mut messages) = (Vec::new(), Vec::new());
    for ((lease, place), (_, settled)) in selection.leases().iter().zip(selection.places()).zip(part) {
        // Deliveries are sorted by lease: this is the first of another one.
        if usize::try_from(*lease).is_ok_and(|lease| lease > places.len()) {
            places.push(*place);
            messages.push(settled.message.as_str());
        }
    }
    Fence { selection, places, messages }
}

/// The fence, at the head of each statement that ends deliveries. `$1`, `$2` and `$3` are the leases of a [`Selection`],
/// whose they are and their masks; `$4` and `$5` are a place of each and the message that was leased there; `$6` is the
/// number of deliveries. More arrays, first the lease and the place of each delivery, tell what becomes of them.
///
/// A token is drawn at random, so that no other lease has it, also after a restore or a failover. Still a lease whose
/// message is another one than was leased is not touched: numbers of messages can come twice. Once for each lease is
/// enough, as all that it holds was claimed together.
///
/// `held` says which of the deliveries asked for each lease still has open, and those are closed. `g` has a row for
/// each of these, `total` what there is to answer.
macro_rules! fence {
    ($arrays:literal as $columns:literal) => {
        concat!(
            "WITH held AS MATERIALIZED (
                SELECT f.*, f.open & ~f.held AS rest FROM (
                    SELECT a.lease::integer, l.token, l.open,
                        l.open & rpad(a.mask, length(l.open), '0')::bit varying AS held
                    FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::integer[], $5::text[]) WITH ORDINALITY
                        AS a(token, subscription_id, mask, place, message_id, lease)
                    JOIN laneway.lease l ON l.token = a.token AND l.subscription_id = a.subscription_id
                    WHERE NOT EXISTS (SELECT FROM laneway.message m
                        WHERE m.seq = l.message_seqs[a.place] AND m.id <> a.message_id)
                    ORDER BY a.lease FOR UPDATE OF l
                ) f
            ), emptied AS (
                DELETE FROM laneway.lease l USING held h WHERE l.token = h.token AND bit_count(h.rest) = 0
            ), kept AS (
                UPDATE laneway.lease l SET open = h.rest FROM held h
                WHERE l.token = h.token AND bit_count(h.rest) > 0 AND bit_count(h.held) > 0
            ), g AS MATERIALIZED (
                SELECT g.*, h.token
                FROM unnest($7::integer[], $8::integer[], ",
            $arrays,
            ") AS g(lease, place, ",
            $columns,
            ") JOIN held h ON h.lease = g.lease
                WHERE g.place BETWEEN 1 AND length(h.held) AND get_bit(h.held, g.place - 1) = 1
            ), total AS (
                SELECT CASE WHEN coalesce(sum(bit_count(held)), 0) < $6
                        THEN coalesce(array_agg(lease), '{}') END AS leases,
                    CASE WHEN coalesce(sum(bit_count(held)), 0) < $6
                        THEN coalesce(array_agg(held::text), '{}') END AS reached
                FROM held
            ), "
        )
    };
}

/// The part that a statement did not reach, from the first columns of its answer.
fn missed(selection: &Selection, row: &PgRow) -> Outcome<Vec<usize>> {
    let reached: Option<(Vec<i32>, Vec<String>)> =
        row.try_get::<Option<_>, _>(0)?.zip(row.try_get::<Option<_>, _>(1)?);
    Ok(reached.map_or_else(Vec::new, |(leases, reached)| selection.missed(&leases, &reached)))
}

/// Begins a statement with the fence's values.
fn fenced<'q>(query: &'static str, fence: &'q Fence<'q>) -> Statement<'q> {
    let selection = &fence.selection;
    let count = i64::try_from(selection.places().len()).unwrap_or(i64::MAX);
    sqlx::query(query)
        .bind(selection.tokens())
        .bind(selection.subscriptions())
        .bind(selection.masks())
        .bind(&fence.places)
        .bind(&fence.messages)
        .bind(count)
}

/// Ends completed deliveries and writes their markers. Only a difference in the counts makes it answer which.
async fn complete(session: &mut impl Session, part: &[Placed<'_>], fenced_out: &mut Fenced) -> Outcome<()> {
    let query = concat!(
        "-- settle.complete\n",
        fence!("$9::integer[], $10::text[], $11::text[]" as "subscription_id, message_id, metadata"),
        "marked AS (
            INSERT INTO laneway.marker (subscription_id, message_id, metadata)
            SELECT g.subscription_id, g.message_id, g.metadata::jsonb FROM g
            ON CONFLICT (subscription_id, message_id) DO NOTHING
            RETURNING subscription_id, message_id
        ), counted AS (
            SELECT (SELECT count(*) FROM g) > (SELECT count(*) FROM marked) AS duplicates
        )
        SELECT t.leases, t.reached,
            CASE WHEN c.duplicates THEN coalesce((SELECT array_agg(subscription_id) FROM marked), '{}') END,
            CASE WHEN c.duplicates THEN coalesce((SELECT array_agg(message_id) FROM marked), '{}') END
        FROM total t CROSS JOIN counted c"
    );
    let fence = fence(part);
    let selection = &fence.selection;
    // Only what is to be marked needs a row of its own.
    let marking = || {
        part.iter()
            .enumerate()
            .filter(|(_, (_, settlement))| matches!(settlement.verdict, Verdict::Complete { mark: true }))
    };
    let statement = fenced(query, &fence)
        .bind(marking().map(|(number, _)| selection.leases()[number]).collect::<Vec<_>>())
        .bind(marking().map(|(number, _)| selection.places()[number]).collect::<Vec<_>>())
        .bind(marking().map(|(_, (_, settlement))| settlement.subscription.0).collect::<Vec<_>>())
        .bind(marking().map(|(_, (_, settlement))| settlement.message.as_str()).collect::<Vec<_>>())
        .bind(
            marking()
                .map(|(_, (_, settlement))| settlement.metadata.as_ref().map(MarkerMetadata::as_str))
                .collect::<Vec<_>>(),
        );
    let row = session.one(statement).await?;
    fenced_out.lost_of(part, missed(selection, &row)?);
    let marked: Option<(Vec<i32>, Vec<String>)> =
        row.try_get::<Option<_>, _>(2)?.zip(row.try_get::<Option<_>, _>(3)?);
    if let Some((subscriptions, messages)) = marked {
        let marked: HashSet<(i32, &str)> =
            subscriptions.into_iter().zip(messages.iter().map(String::as_str)).collect();
        let lost: HashSet<usize> = fenced_out.lost.iter().copied().collect();
        let duplicates = marking().filter(|(_, (position, settlement))| {
            !lost.contains(position) && !marked.contains(&(settlement.subscription.0, settlement.message.as_str()))
        });
        fenced_out.duplicates.extend(duplicates.map(|(_, (position, _))| *position));
    }
    Ok(())
}

/// Hands deliveries back, due after their delay. Answers those whose lease no longer held.
async fn retry(session: &mut impl Session, part: &[Placed<'_>]) -> Outcome<Vec<usize>> {
    // An attempt that does not count leaves no trace, unless it says why it failed: the first that ran starts the clock. An
    // answer that counts settles what leases were lost before. What is due at once may be picked up by another node, which
    // must hear of it. A message that was deleted is owed to nobody.
    let query = concat!(
        "-- settle.retry\n",
        fence!("$9::bigint[], $10::boolean[], $11::text[]" as "delay, counted, error"),
        "due AS (
            INSERT INTO laneway.delivery (message_seq, available_at, first_attempt_at, subscription_id, priority,
                attempt, lane, last_error, key, lost)
            SELECT l.message_seqs[g.place], now() + g.delay * interval '1 microsecond',
                CASE WHEN g.counted OR l.attempts[g.place] > 1 OR g.error IS NOT NULL
                        OR l.last_errors[g.place] IS NOT NULL
                    THEN coalesce(l.first_attempts_at[g.place], l.leased_at) END,
                l.subscription_id, l.priorities[g.place],
                CASE WHEN g.counted THEN l.attempts[g.place] ELSE greatest(l.attempts[g.place] - 1, 0) END,
                l.lane, CASE WHEN g.counted THEN g.error ELSE coalesce(g.error, l.last_errors[g.place]) END,
                CASE WHEN s.ordered THEN m.key END, CASE WHEN NOT g.counted THEN l.losts[g.place] END
            FROM g JOIN laneway.lease l ON l.token = g.token
            JOIN laneway.subscription s ON s.id = l.subscription_id
            JOIN laneway.message m ON m.seq = l.message_seqs[g.place]
            ON CONFLICT (message_seq, subscription_id) DO NOTHING
            RETURNING subscription_id, available_at
        )
        SELECT t.leases, t.reached, (SELECT count(pg_notify('laneway', d.subscription_id::text))
            FROM (SELECT DISTINCT subscription_id FROM due WHERE available_at <= now()) d)
        FROM total t"
    );
    let retries: Vec<(i64, bool, Option<&str>)> = part
        .iter()
        .filter_map(|(_, settlement)| match &settlement.verdict {
            Verdict::Retry { delay, counted, error } => {
                Some((microseconds(*delay), *counted, error.as_ref().map(ErrorText::as_str)))
            }
            Verdict::Complete { .. } | Verdict::DeadLetter { .. } => None,
        })
        .collect();
    let fence = fence(part);
    let selection = &fence.selection;
    let statement = fenced(query, &fence)
        .bind(selection.leases())
        .bind(selection.places())
        .bind(retries.iter().map(|retry| retry.0).collect::<Vec<_>>())
        .bind(retries.iter().map(|retry| retry.1).collect::<Vec<_>>())
        .bind(retries.iter().map(|retry| retry.2).collect::<Vec<_>>());
    missed(selection, &session.one(statement).await?)
}

/// Moves deliveries to the dead letters. Answers those whose lease no longer held.
async fn bury(session: &mut impl Session, part: &[Placed<'_>]) -> Outcome<Vec<usize>> {
    let query = concat!(
        "-- settle.bury\n",
        fence!("$9::text[], $10::text[], $11::text[], $12::text[], $13::integer[]"
            as "message_id, reason, error, plugin, uncounted"),
        "buried AS (
            INSERT INTO laneway.dead_letter (message_seq, message_id, subscription_id, lane, priority, reason,
                error, attempts, first_attempt_at, plugin)
            SELECT l.message_seqs[g.place], g.message_id, l.subscription_id, l.lane, l.priorities[g.place], g.reason,
                g.error, greatest(l.attempts[g.place] - g.uncounted, 0),
                CASE WHEN l.attempts[g.place] > g.uncounted
                    THEN coalesce(l.first_attempts_at[g.place], l.leased_at) ELSE l.first_attempts_at[g.place] END,
                g.plugin
            FROM g JOIN laneway.lease l ON l.token = g.token
        )
        SELECT t.leases, t.reached FROM total t"
    );
    let dead: Vec<(&str, &str, Option<&str>)> = part
        .iter()
        .filter_map(|(_, settlement)| match &settlement.verdict {
            Verdict::DeadLetter { reason, error, plugin } => {
                Some((reason.as_str(), error.as_str(), plugin.as_ref().map(PluginDigest::as_str)))
            }
            Verdict::Complete { .. } | Verdict::Retry { .. } => None,
        })
        .collect();
    let fence = fence(part);
    let selection = &fence.selection;
    let statement = fenced(query, &fence)
        .bind(selection.leases())
        .bind(selection.places())
        .bind(part.iter().map(|(_, settlement)| settlement.message.as_str()).collect::<Vec<_>>())
        .bind(dead.iter().map(|letter| letter.0).collect::<Vec<_>>())
        .bind(dead.iter().map(|letter| letter.1).collect::<Vec<_>>())
        .bind(dead.iter().map(|letter| letter.2).collect::<Vec<_>>())
        .bind(part.iter().map(|(_, settled)| i32::from(!settled.verdict.is_counted())).collect::<Vec<_>>());
    missed(selection, &session.one(statement).await?)
}
