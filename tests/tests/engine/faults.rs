//! A database that fails: nothing is lost, nothing happens twice.

use std::sync::Arc;
use std::time::Duration;

use laneway_core::{MessageFilter, NewMessage, Store, Subscription, Topic};
use laneway_engine::EngineOptions;
use laneway_testing::faults::{Fault, FaultyStore, Odds, Operation};

use crate::rig::{On, PAYLOAD_BYTES_MAX, Rig, comes, count_up, options, play, subscription};

async fn a_lost_answer_of_a_commit_doubles_nothing(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(300).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    for _ in 0..3 {
        faulty.script(Operation::Settle, Fault::After);
    }
    let store: Arc<dyn Store> = faulty.clone();
    let running = rig.start_on(&store, &count_up("n"), options());
    rig.wait_until_empty().await;
    assert_eq!(rig.state("n").await.as_deref(), Some("300"));
    assert!(faulty.injected() >= 3);
    running.engine.drain().await;
}

async fn a_database_that_goes_away_and_comes_back_loses_nothing(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(2000).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    let store: Arc<dyn Store> = faulty.clone();
    let running = rig.start_on(&store, &count_up("n"), options());
    running.wait_for("some progress", |stats| stats.completed > 0).await;
    let before = faulty.injected();
    faulty.cut();
    // Some calls meet the cut, the backoffs after them included.
    assert!(comes(async || faulty.injected() >= before + 5).await, "nothing noticed that the database was away");
    faulty.restore();
    rig.wait_until_empty().await;
    assert_eq!(rig.state("n").await.as_deref(), Some("2000"));
    running.engine.drain().await;
}

async fn random_faults_of_every_call_keep_the_effects_exact(on: On) {
    let seed = laneway_testing::seed();
    let short = Subscription {
        lease: Duration::from_millis(400),
        retry: laneway_core::RetryPolicy { max_attempts: 1000, ..subscription("s").retry },
        ..subscription("s")
    };
    let rig = Rig::new(on, &[short]).await;
    rig.enqueue(1000).await;
    let odds = Odds { before: 0.1, after: 0.1, delay: 0.2, delay_max: Duration::from_millis(30) };
    let only = [Operation::Claim, Operation::Settle, Operation::Renew, Operation::State, Operation::NextDue];
    let faulty = Arc::new(FaultyStore::random(rig.store.clone(), seed, odds).only(&only));
    let store: Arc<dyn Store> = faulty.clone();
    let running = rig.start_on(&store, &count_up("n"), options());
    rig.wait_until_empty().await;
    assert_eq!(rig.state("n").await.as_deref(), Some("1000"), "{} faults", faulty.injected());
    assert!(rig.dead_letters().await.is_empty());
    faulty.calm();
    running.engine.drain().await;
}

async fn a_group_that_cannot_be_committed_is_committed_in_parts(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(100).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    // A claim that knows nothing of the plugin's pace takes sixteen, so that even the last of these meets several.
    for _ in 0..3 {
        faulty.script(Operation::Settle, Fault::Broken);
    }
    let store: Arc<dyn Store> = faulty.clone();
    let running = rig.start_on(&store, &count_up("n"), grouping());
    rig.wait_until_empty().await;
    assert_eq!(rig.state("n").await.as_deref(), Some("100"));
    assert_eq!((faulty.injected(), running.drained().await.retried), (3, 0), "no outcome was at fault");
}

async fn one_refused_outcome_does_not_hold_up_its_group(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(100).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    let store: Arc<dyn Store> = faulty.clone();
    let counting = count_up("n");
    // The outbox takes no such payload, so the database refuses this one outcome each time.
    let too_large = vec![b'x'; PAYLOAD_BYTES_MAX as usize + 1];
    let play = play(move |call| {
        let (counting, too_large) = (counting.clone(), too_large.clone());
        async move {
            let emits = call.message.payload.as_ref() == b"7";
            let mut effects = counting(call).await?;
            if emits {
                effects.emits.push(NewMessage::new(Topic::parse("other").expect("a valid topic"), too_large));
            }
            Ok(effects)
        }
    });
    let running = rig.start_on(&store, &play, grouping());
    rig.wait_until_empty().await;

    let stats = running.drained().await;
    assert_eq!((stats.completed, stats.retried, stats.dead_lettered), (99, 2, 1), "{stats:?}");
    let refused = faulty.calls(Operation::Settle) - stats.groups;
    assert!(refused > 3, "{refused} commits were refused, so the outcome at fault stood in no group");
    let dead = rig.dead_letters().await;
    assert_eq!((dead.len(), dead[0].attempts, dead[0].reason.as_str()), (1, 3, "host_error"));
    assert!(dead[0].error.contains(&PAYLOAD_BYTES_MAX.to_string()), "{}", dead[0].error);
    let message = rig.store.message(&dead[0].message_id).await.unwrap().expect("its message is kept");
    assert_eq!(message.payload.as_deref(), Some("7"));
    // Nothing that it wrote is there, and all that others built on it was built again.
    assert_eq!(rig.state("n").await.as_deref(), Some("99"));
    assert_eq!(rig.store.messages(&MessageFilter { limit: 1000, ..Default::default() }).await.unwrap().len(), 100);
}

/// Waits long for outcomes to join a group: all that is in hand is committed at once.
fn grouping() -> EngineOptions {
    EngineOptions { settle_linger: Duration::from_secs(60), ..options() }
}

on_both!(
    a_lost_answer_of_a_commit_doubles_nothing,
    a_database_that_goes_away_and_comes_back_loses_nothing,
    random_faults_of_every_call_keep_the_effects_exact,
    a_group_that_cannot_be_committed_is_committed_in_parts,
    one_refused_outcome_does_not_hold_up_its_group,
);
