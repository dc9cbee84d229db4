//! Lanes in the engine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use laneway_core::{Effects, Priority, Subscription};

use crate::rig::{Rig, message, play, subscription};

#[tokio::test]
async fn a_primary_message_waits_for_at_most_one_backfill_message_a_slot() {
    let rig = Rig::new(&[Subscription { concurrency: 1, ..subscription("s") }]).await;
    let bulk: Vec<_> =
        (0..200).map(|number| laneway_core::NewMessage { priority: Priority::BULK, ..message(number) }).collect();
    rig.store.enqueue(&bulk).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let log = order.clone();
    let play = play(move |call| {
        log.lock().unwrap().push(call.message.priority);
        async {
            // Long beside the time that a commit takes to be seen, on a busy machine too.
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok(Effects::default())
        }
    });
    let running = rig.start(&play);
    running.wait_for("some backfill", |stats| stats.completed >= 3).await;
    let before = order.lock().unwrap().len();
    rig.enqueue(1).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let order = order.lock().unwrap().clone();
    let position =
        order.iter().position(|priority| *priority == Priority::NORMAL).expect("the primary message ran");
    // One that runs, and one that may have begun between the count and the commit.
    assert!(position <= before + 2, "{} backfill messages went first", position - before);
    running.engine.drain().await;
}
