//! Lanes in the engine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use laneway_core::{Effects, Lane, Priority, Subscription};
use tokio::sync::Semaphore;

use crate::rig::{On, Rig, comes, message, play, subscription};

async fn a_primary_message_waits_for_at_most_one_backfill_message_a_slot(on: On) {
    let rig = Rig::new(on, &[Subscription { concurrency: 1, ..subscription("s") }]).await;
    let bulk: Vec<_> =
        (0..200).map(|number| laneway_core::NewMessage { priority: Priority::BULK, ..message(number) }).collect();
    rig.store.enqueue(&bulk).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let gate = Arc::new(Semaphore::new(0));
    let (log, closed) = (order.clone(), gate.clone());
    let play = play(move |call| {
        log.lock().unwrap().push(call.message.priority);
        let closed = closed.clone();
        async move {
            closed.acquire().await.unwrap().forget();
            Ok(Effects::default())
        }
    });
    let running = rig.start(&play);
    gate.add_permits(3);
    running.wait_for("some backfill", |stats| stats.completed >= 3).await;
    // One runs and stands at the gate; more are in hand behind it.
    while order.lock().unwrap().len() < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.enqueue(1).await;
    // The database knows of a claim before the node has its answer.
    let in_hand = comes(async || {
        let (primary, backfill) = (rig.leased(Lane::Primary).await, rig.leased(Lane::Backfill).await);
        let stats = running.stats();
        primary > 0 && stats.claimed == stats.completed + primary + backfill
    });
    assert!(in_hand.await, "the primary message is not claimed");
    gate.add_permits(1000);
    rig.wait_until_empty().await;
    let order = order.lock().unwrap().clone();
    assert_eq!(order.iter().position(|priority| *priority == Priority::NORMAL), Some(4), "{:?}", &order[..8]);
    running.engine.drain().await;
}

on_both!(a_primary_message_waits_for_at_most_one_backfill_message_a_slot,);
