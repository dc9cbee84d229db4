//! A database that fails: nothing is lost, nothing happens twice.

use std::sync::Arc;
use std::time::Duration;

use laneway_core::{Store, Subscription};
use laneway_testing::faults::{Fault, FaultyStore, Odds, Operation};

use crate::rig::{Rig, count_up, options, subscription};

#[tokio::test]
async fn a_lost_answer_of_a_commit_doubles_nothing() {
    let rig = Rig::new(&[subscription("s")]).await;
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

#[tokio::test]
async fn a_database_that_goes_away_and_comes_back_loses_nothing() {
    let rig = Rig::new(&[subscription("s")]).await;
    rig.enqueue(2000).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    let store: Arc<dyn Store> = faulty.clone();
    let running = rig.start_on(&store, &count_up("n"), options());
    running.wait_for("some progress", |stats| stats.completed > 0).await;
    faulty.cut();
    tokio::time::sleep(Duration::from_millis(300)).await;
    faulty.restore();
    rig.wait_until_empty().await;
    assert_eq!(rig.state("n").await.as_deref(), Some("2000"));
    running.engine.drain().await;
}

#[tokio::test]
async fn random_faults_of_every_call_keep_the_effects_exact() {
    let seed = laneway_testing::seed();
    let short = Subscription {
        lease: Duration::from_millis(400),
        retry: laneway_core::RetryPolicy { max_attempts: 1000, ..subscription("s").retry },
        ..subscription("s")
    };
    let rig = Rig::new(&[short]).await;
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

#[tokio::test]
async fn one_refused_outcome_does_not_hold_up_its_group() {
    let rig = Rig::new(&[subscription("s")]).await;
    rig.enqueue(100).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    for _ in 0..4 {
        faulty.script(Operation::Settle, Fault::Broken);
    }
    let store: Arc<dyn Store> = faulty.clone();
    let running = rig.start_on(&store, &count_up("n"), options());
    rig.wait_until_empty().await;
    assert_eq!(rig.state("n").await.as_deref(), Some("100"));
    running.engine.drain().await;
}
