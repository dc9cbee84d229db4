//! A graceful stop.

use std::time::{Duration, Instant};

use laneway_core::{ClaimRequest, Effects, Failure, Lane, Subscription};
use laneway_engine::EngineOptions;

use crate::rig::{Gate, On, Rig, options, play, subscription};

async fn a_drain_hands_back_what_was_not_started_and_counts_no_attempt(on: On) {
    let rig = Rig::new(on, &[Subscription { concurrency: 1, ..subscription("s") }]).await;
    rig.enqueue(50).await;
    let (gate, reached) = (Gate::closed(), Gate::closed());
    let standing = {
        let (gate, reached) = (gate.clone(), reached.clone());
        play(move |_| {
            let (gate, reached) = (gate.clone(), reached.clone());
            async move {
                reached.open();
                gate.pass().await;
                Ok(Effects::default())
            }
        })
    };
    let patient = EngineOptions { grace: Duration::from_secs(60), ..options() };
    let running = rig.start_on(&rig.store, &standing, patient);
    reached.pass().await;
    running.wait_for("more in hand than the one that runs", |stats| stats.claimed >= 2).await;
    let stats = running.engine.stats().clone();
    // The drain has taken all that waits before the one that runs can end.
    let (report, ()) = tokio::join!(biased; running.engine.drain(), async { gate.open() });
    assert!(report.complete && !report.interrupted, "{report:?}");
    assert_eq!((stats.snapshot().completed, rig.left().await), (1, 49));
    let request = ClaimRequest {
        subscription: rig.id(),
        lane: Lane::Primary,
        limit: 100,
        lease: Duration::from_secs(5),
        check_markers: false,
        ordered: false,
        in_work_max: None,
    };
    let batch = rig.store.claim(request).await.unwrap().expect("all that is left is due at once");
    assert_eq!(batch.deliveries.len(), 49);
    assert!(batch.deliveries.iter().all(|delivery| delivery.attempt == 1));
}

async fn a_drain_interrupts_what_outlives_the_grace_period(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
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

on_both!(
    a_drain_hands_back_what_was_not_started_and_counts_no_attempt,
    a_drain_interrupts_what_outlives_the_grace_period,
);
