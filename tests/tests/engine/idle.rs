//! What a node with nothing to do costs, and that it sees what comes all the same.

use std::time::Duration;

use laneway_core::{Effects, Subscription, TopicPattern};
use laneway_engine::EngineOptions;

use crate::rig::{On, Rig, comes, options, play, subscription};

/// Subscriptions of a node, none of which has anything to do at first.
const MANY: usize = 200;

fn many() -> Vec<Subscription> {
    let numbered = |number: usize| Subscription {
        pattern: TopicPattern::parse(&format!("idle.{number}")).unwrap(),
        concurrency: 1,
        ..subscription(&format!("s{number}"))
    };
    (1..MANY).map(numbered).chain([subscription("busy")]).collect()
}

async fn an_idle_node_asks_no_more_for_many_subscriptions_than_for_one(on: On) {
    let rig = Rig::new(on, &many()).await;
    let options = EngineOptions { poll_interval: Duration::from_secs(1), ..options() };
    let before = rig.store.round_trips();
    let running = rig.start_on(&rig.store, &play(|_| async { Ok(Effects::default()) }), options);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let asked = rig.store.round_trips() - before;
    assert!(asked <= 60, "{asked} statements to find out at the start that there is nothing to do");
    let before = rig.store.round_trips();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let asked = rig.store.round_trips() - before;
    assert!(asked <= 40, "{asked} statements in four idle seconds");
    rig.enqueue(10).await;
    running.wait_for("what comes after that", |stats| stats.completed == 10).await;
    running.engine.drain().await;
}

/// A delay that ends tells nobody.
async fn what_becomes_due_without_a_wake_up_is_seen_by_the_next_look(on: On) {
    let rig = Rig::new(on, &many()).await;
    let delayed = laneway_core::NewMessage { delay: Some(Duration::from_secs(2)), ..crate::rig::message(1) };
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    tokio::time::sleep(Duration::from_millis(300)).await;
    rig.store.enqueue(&[delayed]).await.unwrap();
    assert!(comes(async || running.stats().completed == 1).await, "{:?}", running.stats());
    running.engine.drain().await;
}

on_both!(
    an_idle_node_asks_no_more_for_many_subscriptions_than_for_one,
    what_becomes_due_without_a_wake_up_is_seen_by_the_next_look,
);
