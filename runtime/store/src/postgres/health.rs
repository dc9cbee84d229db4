//! What failovers, restores and replication leave behind: found, and mended.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use laneway_core::{Finding, Health, Step, StoreError, Trouble};
use sqlx::{AssertSqlSafe, Row as _};

use super::PostgresStore;
use super::connection::{Database, Outcome, Session, classify, count};
use crate::gone;

/// By what a database is known again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    /// The server's identifier and its timeline; none where a server does not tell.
    server: Option<(String, String)>,
    /// The table of messages: another one after a dump was loaded over it.
    table: i64,
    /// The last number that a message got.
    last_number: i64,
}

/// What the last look saw.
#[derive(Default)]
pub(super) struct Memory(Mutex<Option<Identity>>);

impl Memory {
    /// Keeps what is seen now; answers how it differs from what was seen before.
    fn compare(&self, now: Identity) -> Vec<String> {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(now.clone());
        before.map_or_else(Vec::new, |before| before.changes(&now))
    }
}

impl Identity {
    fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        if let (Some((system, timeline)), Some((system_now, timeline_now))) = (&self.server, &now.server) {
            if system != system_now {
                changes
                    .push(format!("the server is another one: its identifier was {system}, and is {system_now}"));
            } else if timeline != timeline_now {
                changes.push(format!(
                    "the server's timeline was {timeline}, and is {timeline_now}: a standby was promoted, or an older \
                     state was restored"
                ));
            }
        }
        if self.table != now.table {
            changes.push("the tables were made anew: a dump was loaded over them".to_owned());
        } else if now.last_number < self.last_number {
            changes.push(format!(
                "the number of the newest message was {}, and is {}: an older state was restored, or the end of the \
                 log was lost in a failover",
                self.last_number, now.last_number
            ));
        }
        changes
    }
}

#[async_trait]
impl Health for PostgresStore {
    async fn look(&self) -> Result<Vec<Finding>, StoreError> {
        let now = identity(self.database()).await.map_err(classify)?;
        let mut findings: Vec<Finding> = self.memory().compare(now).into_iter().map(gone::other_history).collect();
        findings.extend(late_sequences(self.database()).await.map_err(classify)?);
        Ok(findings)
    }

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        let mut findings = disabled_triggers(self.database()).await.map_err(classify)?;
        findings.extend(late_sequences(self.database()).await.map_err(classify)?);
        findings.extend(orphans(self.database()).await.map_err(classify)?);
        findings.extend(never_routed(self.database()).await.map_err(classify)?);
        findings.extend(always_restoring(self.database()).await.map_err(classify)?);
        Ok(findings)
    }

    async fn mend(&self, trouble: Trouble, from: i64, limit: u32) -> Result<Step, StoreError> {
        let mended = match trouble {
            Trouble::OtherHistory | Trouble::AlwaysRestoring => {
                Ok(Step { changed: 0, next: None, ..Step::default() })
            }
            Trouble::LateSequence => set_sequences(self.database()).await,
            Trouble::OrphanDelivery => remove_orphans(self.database(), from, limit).await,
            Trouble::DisabledTrigger => enable_triggers(self.database()).await,
            Trouble::NeverRouted => route(self.database(), from, limit).await,
        };
        mended.map_err(classify)
    }
}

async fn identity(database: &Database) -> Outcome<Identity> {
    let mut session = database.connection().await?;
    let query = "-- health.server
        SELECT (pg_control_system()).system_identifier::text,
            CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END";
    // Some services that speak PostgreSQL's protocol have no such functions, or allow them to nobody.
    let server = match session.one(sqlx::query(query)).await {
        Ok(row) => row.try_get::<Option<_>, _>(0)?.zip(row.try_get::<Option<_>, _>(1)?),
        Err(sqlx::Error::Database(error)) => {
            tracing::debug!(%error, "the server does not tell its timeline");
            None
        }
        Err(error) => return Err(error),
    };
    let query = "-- health.tables
        SELECT 'laneway.message'::regclass::oid::bigint,
            coalesce(pg_sequence_last_value(pg_get_serial_sequence('laneway.message', 'seq')::regclass), 0)";
    let row = session.one(sqlx::query(query)).await?;
    Ok(Identity { server, table: row.try_get(0)?, last_number: row.try_get(1)? })
}

async fn late_sequences(database: &Database) -> Outcome<Vec<Finding>> {
    let query = "-- health.late_sequences
        SELECT sequence, last_number, number_in_use FROM laneway.late_sequences()";
    let rows = database.connection().await?.all(sqlx::query(query)).await?;
    rows.iter().map(|row| Ok(gone::late_sequence(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

/// Sets late sequences behind all numbers in use.
async fn set_sequences(database: &Database) -> Outcome<Step> {
    let mut transaction = database.begin().await?;
    // Nobody draws a number between the look and the setting, which would then set the sequence back.
    transaction.execute(sqlx::query("SET LOCAL lock_timeout = '5s'")).await?;
    let lock = "-- health.lock
        LOCK TABLE laneway.message, laneway.dead_letter, laneway.audit, laneway.topology, laneway.deployment
            IN SHARE ROW EXCLUSIVE MODE";
    transaction.execute(sqlx::query(lock)).await?;
    let query = "-- health.set_sequences
        WITH late AS MATERIALIZED (
            SELECT l.sequence, l.last_number, l.number_in_use, setval(l.sequence::regclass, l.number_in_use) AS set_to
            FROM laneway.late_sequences() l
        )
        SELECT coalesce(array_agg(l.sequence || ' from ' || l.last_number || ' to ' || l.set_to), '{}') FROM late l";
    let set: Vec<String> = transaction.one(sqlx::query(query)).await?.try_get(0)?;
    note(&mut transaction, Trouble::LateSequence, &set).await?;
    transaction.commit().await?;
    Ok(Step { changed: set.len() as u64, next: None, ..Step::default() })
}

async fn orphans(database: &Database) -> Outcome<Option<Finding>> {
    let query = "-- health.orphans
        SELECT count(*) FROM laneway.owed o WHERE NOT EXISTS (SELECT FROM laneway.message m WHERE m.seq = o.message_seq)";
    let orphans = count(&database.connection().await?.one(sqlx::query(query)).await?, 0)?;
    Ok(gone::orphans(orphans))
}

/// Removes deliveries without a message, and lets out who waits behind them. Those in work go when their lease ends.
async fn remove_orphans(database: &Database, from: i64, limit: u32) -> Outcome<Step> {
    let query = "-- health.remove_orphans
        WITH part AS MATERIALIZED (
            SELECT d.message_seq, d.subscription_id FROM laneway.delivery d
            WHERE d.message_seq > $1 ORDER BY d.message_seq FETCH FIRST ($2) ROWS WITH TIES
        ), removed AS (
            DELETE FROM laneway.delivery d USING part p
            WHERE d.message_seq = p.message_seq AND d.subscription_id = p.subscription_id
                AND NOT EXISTS (SELECT FROM laneway.message m WHERE m.seq = p.message_seq)
            RETURNING d.message_seq, d.subscription_id, d.key
        ), freed AS (
            INSERT INTO laneway.freed_key (subscription_id, key)
            SELECT DISTINCT r.subscription_id, r.key FROM removed r WHERE r.key IS NOT NULL
        ), noted AS (
            INSERT INTO laneway.audit (action, detail)
            SELECT 'doctor.orphan_delivery', jsonb_build_object('count', count(*), 'first', min(r.message_seq),
                'last', max(r.message_seq))
            FROM removed r HAVING count(*) > 0
        )
        SELECT (SELECT count(*) FROM removed), count(*), max(p.message_seq) FROM part p";
    let statement = sqlx::query(query).bind(from).bind(i64::from(limit));
    let mut session = database.connection().await?;
    let row = session.one(statement).await?;
    let mut removed = count(&row, 0)?;
    let next =
        row.try_get::<Option<i64>, _>(2)?.filter(|_| count(&row, 1).is_ok_and(|looked| looked >= u64::from(limit)));
    if next.is_none() {
        // Nobody may ever claim for these subscriptions again, which is when ended leases are looked at.
        let query = "-- health.remove_orphaned_leases
            WITH gone AS (
                DELETE FROM laneway.lease l WHERE l.leased_until <= now() AND NOT EXISTS (
                    SELECT FROM unnest(l.message_seqs) WITH ORDINALITY AS u(message_seq, place)
                    JOIN laneway.message m ON m.seq = u.message_seq WHERE get_bit(l.open, u.place::integer - 1) = 1)
                RETURNING bit_count(l.open) AS open
            )
            SELECT coalesce(sum(g.open), 0)::bigint FROM gone g";
        removed += count(&session.one(sqlx::query(query)).await?, 0)?;
    }
    Ok(Step { changed: removed, next, ..Step::default() })
}

async fn never_routed(database: &Database) -> Outcome<Option<Finding>> {
    let query = "-- health.never_routed
        SELECT count(*) FROM laneway.never_routed n JOIN laneway.message m ON m.seq = n.message_seq";
    let messages = count(&database.connection().await?.one(sqlx::query(query)).await?, 0)?;
    let detail = format!(
        "{messages} message(s) were written while session_replication_role was replica, so that triggers did not fire, \
         and are owed to nobody"
    );
    Ok((messages > 0).then_some(Finding { trouble: Trouble::NeverRouted, count: messages, detail }))
}

/// Routes messages as the trigger would have, but for what is known of them by now.
async fn route(database: &Database, from: i64, limit: u32) -> Outcome<Step> {
    let query = "-- health.route
        WITH part AS MATERIALIZED (
            SELECT n.message_seq FROM laneway.never_routed n WHERE n.message_seq > $1
            ORDER BY n.message_seq LIMIT $2 FOR UPDATE SKIP LOCKED
        ), held AS MATERIALIZED (
            SELECT m.seq, m.id, m.topic, m.key, m.priority, m.available_at
            FROM part p JOIN laneway.message m ON m.seq = p.message_seq FOR KEY SHARE OF m
        ), settled AS (
            DELETE FROM laneway.never_routed n USING part p WHERE n.message_seq = p.message_seq
        ), route AS MATERIALIZED (
            SELECT h.*, s.id AS subscription_id, s.lane_threshold, s.ordered
            FROM held h JOIN laneway.subscription s ON s.active AND h.topic ~ s.topic_regex
        ), owed AS (
            INSERT INTO laneway.delivery (subscription_id, lane, priority, message_seq, available_at, key, parked)
            SELECT r.subscription_id, (r.priority < r.lane_threshold)::integer, r.priority, r.seq,
                greatest(r.available_at, now()), CASE WHEN r.ordered THEN r.key END,
                CASE WHEN r.ordered AND r.key IS NOT NULL AND coalesce(r.available_at <= now(), true) THEN false END
            FROM route r
            WHERE NOT EXISTS (SELECT FROM laneway.marker k
                    WHERE k.subscription_id = r.subscription_id AND k.message_id = r.id)
                AND NOT EXISTS (SELECT FROM laneway.dead_letter f
                    WHERE f.message_seq = r.seq AND f.message_id = r.id AND f.subscription_id = r.subscription_id)
                AND NOT EXISTS (SELECT FROM laneway.lease l
                    WHERE l.subscription_id = r.subscription_id
                        AND r.seq BETWEEN l.message_seq_min AND l.message_seq_max
                        AND get_bit(l.open, array_position(l.message_seqs, r.seq) - 1) = 1)
            ON CONFLICT (message_seq, subscription_id) DO NOTHING
            RETURNING subscription_id, available_at
        ), unrouted AS (
            INSERT INTO laneway.unrouted (message_seq)
            SELECT h.seq FROM held h WHERE NOT EXISTS (SELECT FROM route r WHERE r.seq = h.seq)
            ON CONFLICT (message_seq) DO NOTHING
        ), noted AS (
            INSERT INTO laneway.audit (action, detail)
            SELECT 'doctor.never_routed', jsonb_build_object('count', count(*), 'first', min(h.seq), 'last', max(h.seq))
            FROM held h HAVING count(*) > 0
        )
        SELECT (SELECT count(*) FROM held), count(*), max(p.message_seq),
            (SELECT count(pg_notify('laneway', d.subscription_id::text))
                FROM (SELECT DISTINCT o.subscription_id FROM owed o WHERE o.available_at <= now()) d)
        FROM part p";
    let statement = sqlx::query(query).bind(from).bind(i64::from(limit));
    let row = database.connection().await?.one(statement).await?;
    let more = count(&row, 1)? >= u64::from(limit);
    Ok(Step {
        changed: count(&row, 0)?,
        next: row.try_get::<Option<i64>, _>(2)?.filter(|_| more),
        ..Step::default()
    })
}

async fn always_restoring(database: &Database) -> Outcome<Vec<Finding>> {
    let query = "-- health.always_restoring
        SELECT coalesce('role ' || r.rolname, 'every role') || ' in ' || coalesce('database ' || d.datname, 'every database')
        FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
        WHERE (s.setdatabase = 0 OR d.datname = current_database())
            AND EXISTS (SELECT FROM unnest(s.setconfig) c WHERE c ~* '^laneway[.]restoring=(on|true|yes|1)$')
        ORDER BY 1";
    let finding = |row: &sqlx::postgres::PgRow| {
        let whose: String = row.try_get(0)?;
        let detail = format!("laneway.restoring is on for {whose}: new messages of theirs are delivered to nobody");
        Ok(Finding { trouble: Trouble::AlwaysRestoring, count: 1, detail })
    };
    database.connection().await?.all(sqlx::query(query)).await?.iter().map(finding).collect()
}

/// Triggers of ours that do not fire when they should: their tables and names, and what switches them on. One fires only
/// where the others do not.
const DISABLED_TRIGGERS: &str = "-- health.disabled_triggers
    SELECT t.tgrelid::regclass::text, quote_ident(t.tgname),
        format('ALTER TABLE %s ENABLE %s TRIGGER %I', t.tgrelid::regclass,
            CASE WHEN t.tgname = 'note_never_routed' THEN 'REPLICA' ELSE '' END, t.tgname)
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = 'laneway'::regnamespace AND NOT t.tgisinternal
        AND CASE WHEN t.tgname = 'note_never_routed' THEN t.tgenabled <> 'R' ELSE t.tgenabled IN ('D', 'R') END
    ORDER BY 1, 2";

async fn disabled_triggers(database: &Database) -> Outcome<Vec<Finding>> {
    let rows = database.connection().await?.all(sqlx::query(DISABLED_TRIGGERS)).await?;
    let finding = |row: &sqlx::postgres::PgRow| {
        let (table, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let detail = format!(
            "trigger {name} on {table} is not switched on as it should be: while fan_out is off, new messages are \
             delivered to nobody"
        );
        Ok(Finding { trouble: Trouble::DisabledTrigger, count: 1, detail })
    };
    rows.iter().map(finding).collect()
}

async fn enable_triggers(database: &Database) -> Outcome<Step> {
    let mut transaction = database.begin().await?;
    transaction.execute(sqlx::query("SET LOCAL lock_timeout = '5s'")).await?;
    let mut enabled = Vec::new();
    for row in transaction.all(sqlx::query(DISABLED_TRIGGERS)).await? {
        let (table, name, enable): (String, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        transaction.execute(sqlx::query(AssertSqlSafe(enable))).await?;
        enabled.push(format!("{name} on {table}"));
    }
    note(&mut transaction, Trouble::DisabledTrigger, &enabled).await?;
    transaction.commit().await?;
    Ok(Step { changed: enabled.len() as u64, next: None, ..Step::default() })
}

/// Leaves a row about what was mended, if anything was.
async fn note(session: &mut impl Session, trouble: Trouble, mended: &[String]) -> Outcome<()> {
    if mended.is_empty() {
        return Ok(());
    }
    let query = "-- health.note
        INSERT INTO laneway.audit (action, detail) VALUES ('doctor.' || $1::text, to_jsonb($2::text[]))";
    session.execute(sqlx::query(query).bind(trouble.as_str()).bind(mended)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_tells_once_how_the_database_differs_from_the_look_before() {
        let first = Identity { server: Some(("7".to_owned(), "00000001".to_owned())), table: 5, last_number: 40 };
        let memory = Memory::default();
        assert_eq!(memory.compare(first.clone()), [""; 0]);
        assert_eq!(memory.compare(Identity { last_number: 41, ..first.clone() }), [""; 0]);
        let promoted = Identity { server: Some(("7".to_owned(), "00000002".to_owned())), ..first.clone() };
        let told = memory.compare(promoted.clone());
        assert!(told[0].contains("00000001") && told[0].contains("00000002"), "{told:?}");
        assert!(told[1].contains("was 41, and is 40"), "{told:?}");
        assert_eq!(memory.compare(promoted.clone()), [""; 0], "once");
        assert_eq!(memory.compare(Identity { table: 6, last_number: 1, ..promoted.clone() }).len(), 1);
        assert_eq!(memory.compare(Identity { server: None, table: 6, last_number: 1 }), [""; 0], "not known");
    }
}
