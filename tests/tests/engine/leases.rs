//! Leases as the engine keeps and loses them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use laneway_core::{Effects, Subscription};

use crate::rig::{Rig, count_up, options, play, subscription};

#[tokio::test]
async fn leases_of_running_and_waiting_messages_are_renewed() {
    let short = Subscription { lease: Duration::from_millis(300), concurrency: 1, ..subscription("s") };
    let rig = Rig::new(&[short]).await;
    rig.enqueue(4).await;
    let play = play(|_| async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        Ok(Effects::default())
    });
    let running = rig.start(&play);
    let other = rig.other_store().await;
    let rival = rig.start_on(&other, &play, options());
    rig.wait_until_empty().await;
    let runs = running.runs.load(Ordering::SeqCst) + rival.runs.load(Ordering::SeqCst);
    assert_eq!(runs, 4, "a delivery was taken from a living node");
    assert_eq!(running.stats().lease_lost + rival.stats().lease_lost, 0);
    running.engine.drain().await;
    rival.engine.drain().await;
}

#[tokio::test]
async fn a_node_that_vanishes_is_recovered_within_lease_and_poll() {
    let short = Subscription { lease: Duration::from_millis(500), ..subscription("s") };
    let rig = Rig::new(&[short]).await;
    rig.enqueue(100).await;
    // A claim whose node never comes back.
    let request = laneway_core::ClaimRequest {
        subscription: rig.id(),
        lane: laneway_core::Lane::Primary,
        limit: 60,
        lease: Duration::from_millis(500),
        check_markers: true,
    };
    assert_eq!(rig.store.claim(request).await.unwrap().unwrap().deliveries.len(), 60);
    let started = std::time::Instant::now();
    let running = rig.start(&count_up("n"));
    rig.wait_until_empty().await;
    assert!(started.elapsed() < Duration::from_millis(500 + 1000), "took {:?}", started.elapsed());
    assert_eq!(rig.state("n").await.as_deref(), Some("100"));
    running.engine.drain().await;
}

#[tokio::test]
async fn a_message_whose_nodes_all_end_goes_to_the_dead_letters() {
    let rig = Rig::new(&[subscription("s")]).await;
    rig.enqueue(1).await;
    for _ in 0..3 {
        let request = laneway_core::ClaimRequest {
            subscription: rig.id(),
            lane: laneway_core::Lane::Primary,
            limit: 1,
            lease: Duration::from_millis(20),
            check_markers: true,
        };
        assert!(rig.store.claim(request).await.unwrap().is_some());
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    rig.wait_until_empty().await;
    assert_eq!(rig.dead_letters().await[0].reason, "lease_expired");
    assert_eq!(running.runs.load(Ordering::SeqCst), 0);
    running.engine.drain().await;
}
