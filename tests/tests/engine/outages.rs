//! A database that can be read and not written to: what has an outcome keeps it, and is not run again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use laneway_core::{RetryPolicy, Subscription, SubscriptionKind};
use laneway_engine::EngineOptions;
use sqlx::{Executor, PgConnection};

use crate::rig::{Gate, On, Play, Rig, comes, has_postgres, options, play, subscription};

/// A publisher whose messages have one attempt each. Its leases end long before the outage does.
fn once() -> Subscription {
    Subscription {
        kind: SubscriptionKind::Publisher,
        idempotent: false,
        lease: Duration::from_millis(600),
        retry: RetryPolicy { max_attempts: 1, ..subscription("s").retry },
        ..subscription("s")
    }
}

/// Sends, which takes as long as the gate is closed.
fn sending(gate: &Gate) -> Play {
    let gate = gate.clone();
    play(move |_| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Ok(laneway_core::Effects::default())
        }
    })
}

/// From now on nothing can change a lease: neither settle it, renew it nor take it back.
async fn fail(sql: &mut PgConnection, code: &str, error: &str) {
    fail_to(sql, "UPDATE OR DELETE", code, error).await;
}

/// From now on these statements fail where they meet a lease.
async fn fail_to(sql: &mut PgConnection, statements: &str, code: &str, error: &str) {
    // What a sequence counts stays, also when a transaction is rolled back.
    let begin = format!(
        "CREATE SEQUENCE public.failures;
         CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM nextval('public.failures');
             RAISE EXCEPTION '{error}' USING ERRCODE = '{code}';
         END $$;
         CREATE TRIGGER fail BEFORE {statements} ON laneway.lease FOR EACH ROW EXECUTE FUNCTION public.fail()"
    );
    sql.execute(sqlx::AssertSqlSafe(begin)).await.unwrap();
}

/// Waits until the node has met the failure.
async fn wait_for_failures(sql: &mut PgConnection) {
    let query = "SELECT last_value FROM public.failures WHERE is_called";
    let met = comes(async || sqlx::query(query).fetch_optional(&mut *sql).await.unwrap().is_some()).await;
    assert!(met, "nothing fails");
    // The error is on its way to the node.
    tokio::time::sleep(Duration::from_millis(300)).await;
}

async fn recover(sql: &mut PgConnection) {
    sql.execute("DROP TRIGGER fail ON laneway.lease; DROP FUNCTION public.fail(); DROP SEQUENCE public.failures")
        .await
        .unwrap();
}

/// Runs messages while the database fails like this for three lengths of a lease.
async fn ride_out(code: &str, error: &str) {
    const MESSAGES: usize = 40;
    let rig = Rig::new(On::Postgres, &[once()]).await;
    rig.enqueue(MESSAGES).await;
    let mut sql = rig.postgres().await;
    let gate = Gate::closed();
    let at_once = EngineOptions { settle_linger: Duration::from_millis(1), ..options() };
    let running = rig.start_on(&rig.store, &sending(&gate), at_once);
    assert!(comes(async || running.runs.load(Ordering::SeqCst) > 0).await, "nothing runs");
    fail(&mut sql, code, error).await;
    gate.open();
    tokio::time::sleep(once().lease * 3).await;
    let sent = running.runs.load(Ordering::SeqCst);
    assert_eq!(running.stats().completed, 0, "{code}: something was committed");
    recover(&mut sql).await;

    rig.wait_until_empty().await;
    running.wait_for("all to be counted", |stats| stats.completed + stats.dead_lettered >= MESSAGES as u64).await;
    let runs = running.runs.load(Ordering::SeqCst);
    let stats = running.drained().await;
    assert_eq!(rig.dead_letters().await.len(), 0, "{code}: what was sent is dead");
    assert_eq!((stats.completed, stats.retried, stats.lease_lost), (MESSAGES as u64, 0, 0), "{code}: {stats:?}");
    assert_eq!(runs, MESSAGES as u64, "{code}: sent twice; {sent} were sent when it came back");
}

#[tokio::test]
async fn a_full_disk_fails_nothing_and_sends_nothing_twice() {
    if has_postgres("outages::a_full_disk_fails_nothing_and_sends_nothing_twice") {
        ride_out("53100", "could not extend file: No space left on device").await;
    }
}

#[tokio::test]
async fn a_failing_disk_fails_nothing_and_sends_nothing_twice() {
    if has_postgres("outages::a_failing_disk_fails_nothing_and_sends_nothing_twice") {
        ride_out("58030", "could not write block 7: Input/output error").await;
    }
}

#[tokio::test]
async fn rights_that_are_missing_for_a_while_fail_nothing_and_send_nothing_twice() {
    if has_postgres("outages::rights_that_are_missing_for_a_while_fail_nothing_and_send_nothing_twice") {
        ride_out("42501", "permission denied for table lease").await;
    }
}

/// The verdict itself cannot be written: the delivery is not left to its lease's end, which would blame the node.
#[tokio::test]
async fn what_the_database_refuses_to_settle_is_kept_and_blames_no_node() {
    if !has_postgres("outages::what_the_database_refuses_to_settle_is_kept_and_blames_no_node") {
        return;
    }
    let rig = Rig::new(On::Postgres, &[once()]).await;
    let mut sql = rig.postgres().await;
    rig.enqueue(1).await;
    let gate = Gate::closed();
    let running = rig.start(&sending(&gate));
    assert!(comes(async || running.runs.load(Ordering::SeqCst) > 0).await, "nothing runs");
    // A class that says nothing of whose fault it is.
    fail(&mut sql, "ZZ001", "not today").await;
    gate.open();
    tokio::time::sleep(once().lease * 3).await;
    recover(&mut sql).await;
    rig.wait_until_empty().await;
    running.engine.drain().await;
    let dead = rig.dead_letters().await;
    assert_eq!(running.runs.load(Ordering::SeqCst), 1, "it was sent twice");
    assert_eq!((dead.len(), dead[0].reason.as_str()), (1, "host_error"));
    assert!(dead[0].error.contains("not today"), "{}", dead[0].error);
}

#[tokio::test]
async fn nothing_is_claimed_while_outcomes_wait_for_the_database() {
    if !has_postgres("outages::nothing_is_claimed_while_outcomes_wait_for_the_database") {
        return;
    }
    // No lease ends, nor is renewed: what is claimed is what is due.
    let rig = Rig::new(On::Postgres, &[Subscription { lease: Duration::from_secs(3600), ..once() }]).await;
    rig.enqueue(4).await;
    let mut sql = rig.postgres().await;
    let gate = Gate::closed();
    let at_once = EngineOptions { settle_linger: Duration::from_millis(1), ..options() };
    let running = rig.start_on(&rig.store, &sending(&gate), at_once);
    assert!(comes(async || running.runs.load(Ordering::SeqCst) == 4).await, "not all run");
    fail(&mut sql, "53100", "could not extend file: No space left on device").await;
    gate.open();
    wait_for_failures(&mut sql).await;
    rig.enqueue(40).await;
    // Ten times as long as a look takes to come.
    tokio::time::sleep(options().poll_interval * 10).await;
    let claimed = running.stats().claimed;
    recover(&mut sql).await;
    assert_eq!(claimed, 4, "more was taken in hand than can be settled");
    rig.wait_until_empty().await;
    assert_eq!(running.drained().await.completed, 44);
}

#[tokio::test]
async fn what_a_node_runs_is_not_claimed_again_while_its_lease_cannot_be_renewed() {
    if !has_postgres("outages::what_a_node_runs_is_not_claimed_again_while_its_lease_cannot_be_renewed") {
        return;
    }
    let rig = Rig::new(On::Postgres, &[once()]).await;
    rig.enqueue(1).await;
    let mut sql = rig.postgres().await;
    let gate = Gate::closed();
    let running = rig.start(&sending(&gate));
    assert!(comes(async || running.runs.load(Ordering::SeqCst) == 1).await, "nothing runs");
    // A claim could still take back what ended leases held, since it deletes them.
    fail_to(&mut sql, "UPDATE", "53100", "could not extend file: No space left on device").await;
    wait_for_failures(&mut sql).await;
    tokio::time::sleep(once().lease * 3).await;
    let claimed = running.stats().claimed;
    recover(&mut sql).await;
    assert_eq!(claimed, 1, "the node took its own message back");
    gate.open();
    rig.wait_until_empty().await;
    let stats = running.drained().await;
    assert_eq!((stats.completed, stats.lease_lost, stats.dead_lettered), (1, 0, 0), "{stats:?}");
}
