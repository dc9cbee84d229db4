//! Behaviour 19: no database transaction is open while a plugin runs, neither for writing nor for reading.

use laneway_core::{Subscription, SubscriptionKind};
use sqlx::Executor;

use crate::rig::{Gate, NODE, On, Play, Rig, comes, count_up, has_postgres, play, subscription};

/// A handler and a publisher on the same messages.
fn subscriptions() -> [Subscription; 2] {
    let publisher =
        Subscription { kind: SubscriptionKind::Publisher, idempotent: false, ..subscription("publisher") };
    [subscription("handler"), publisher]
}

/// Plugins that have read state, and then stand at a gate.
fn standing(gate: &Gate) -> Play {
    let (gate, counting) = (gate.clone(), count_up("n"));
    play(move |call| {
        let (gate, counting) = (gate.clone(), counting.clone());
        async move {
            let effects = counting(call).await;
            gate.pass().await;
            effects
        }
    })
}

#[tokio::test]
async fn on_sqlite_no_transaction_is_open_while_a_plugin_runs() {
    let rig = Rig::new(On::Sqlite, &subscriptions()).await;
    rig.enqueue(1).await;
    let gate = Gate::closed();
    let running = rig.start(&standing(&gate));
    let both = comes(async || running.runs.load(std::sync::atomic::Ordering::SeqCst) == 2).await;
    assert!(both, "the plugins do not run");

    // This connection waits for no lock. The node itself looks for work now and then, so each may take a few tries.
    let mut application = rig.sqlite().await;
    let written = comes(async || {
        application
            .execute("BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS orders (number INTEGER); COMMIT")
            .await
            .is_ok()
    });
    assert!(written.await, "something holds the write lock while the plugins stand");
    // Whoever reads a snapshot from before this write keeps the WAL from being emptied.
    let emptied = comes(async || {
        let (busy, _, _): (i64, i64, i64) =
            sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut application).await.unwrap();
        busy == 0
    });
    assert!(emptied.await, "something holds a snapshot while the plugins stand");

    assert_eq!(running.stats().completed, 0, "the plugins did not stand");
    gate.open();
    rig.wait_until_empty().await;
    running.engine.drain().await;
}

#[tokio::test]
async fn on_postgres_no_transaction_is_open_while_a_plugin_runs() {
    let test = "on_postgres_no_transaction_is_open_while_a_plugin_runs";
    if !has_postgres(test) {
        return;
    }
    let rig = Rig::new(On::Postgres, &subscriptions()).await;
    rig.enqueue(1).await;
    let gate = Gate::closed();
    let running = rig.start(&standing(&gate));
    let both = comes(async || running.runs.load(std::sync::atomic::Ordering::SeqCst) == 2).await;
    assert!(both, "the plugins do not run");

    // The node itself looks for work now and then, so it may take a few tries.
    let mut other = rig.postgres().await;
    let mut sessions = 0;
    let idle = comes(async || {
        let (all, open): (i64, i64) = sqlx::query_as(
            "SELECT count(*), count(*) FILTER (WHERE xact_start IS NOT NULL OR backend_xmin IS NOT NULL) \
             FROM pg_stat_activity WHERE application_name = $1",
        )
        .bind(NODE)
        .fetch_one(&mut other)
        .await
        .unwrap();
        sessions = all;
        open == 0
    });
    assert!(idle.await, "a transaction is open while the plugins stand");
    assert!(sessions > 1, "{sessions} sessions of the node are seen");

    assert_eq!(running.stats().completed, 0, "the plugins did not stand");
    gate.open();
    rig.wait_until_empty().await;
    running.engine.drain().await;
}
