//! A graceful stop.

use std::time::{Duration, Instant};

use laneway_core::{ClaimRequest, Effects, Failure, Lane, Subscription};

use crate::rig::{Rig, play, subscription};

#[tokio::test]
async fn a_drain_hands_back_what_was_not_started_and_counts_no_attempt() {
    let rig = Rig::new(&[Subscription { concurrency: 1, ..subscription("s") }]).await;
    rig.enqueue(50).await;
    let play = play(|_| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(Effects::default())
    });
    let running = rig.start(&play);
    running.wait_for("a first attempt", |stats| stats.claimed >= 2).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stats = running.engine.stats().clone();
    let report = running.engine.drain().await;
    assert!(report.complete && !report.interrupted, "{report:?}");
    let left = rig.left().await;
    assert_eq!(left + stats.snapshot().completed, 50);
    assert!(left > 40, "{left} left");
    let request = ClaimRequest {
        subscription: rig.id(),
        lane: Lane::Primary,
        limit: 100,
        lease: Duration::from_secs(5),
        check_markers: false,
    };
    let batch = rig.store.claim(request).await.unwrap().expect("all that is left is due at once");
    assert_eq!(batch.deliveries.len() as u64, left);
    assert!(batch.deliveries.iter().all(|delivery| delivery.attempt == 1));
}

#[tokio::test]
async fn a_drain_interrupts_what_outlives_the_grace_period() {
    let rig = Rig::new(&[subscription("s")]).await;
    rig.enqueue(1).await;
    let play = play(|call| async move {
        while !call.interrupt.is_set() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(Failure::Interrupted)
    });
    let running = rig.start(&play);
    running.wait_for("the attempt", |stats| stats.claimed == 1).await;
    let started = Instant::now();
    let report = running.engine.drain().await;
    assert!(report.complete && report.interrupted, "{report:?}");
    assert!(started.elapsed() >= Duration::from_millis(500), "the grace period is half a second");
    assert_eq!(rig.left().await, 1);
}
