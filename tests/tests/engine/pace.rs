//! Behaviours 27 and 38, and the limits of a rate: how fast a subscription is let go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use laneway_core::{BreakerPolicy, Effects, Lane, NewMessage, Priority, RetryPolicy, Subscription};

use crate::rig::{Rig, message, options, play, retry, subscription};

fn bulk(from: usize, count: usize) -> Vec<NewMessage> {
    (from..from + count).map(|number| NewMessage { priority: Priority::BULK, ..message(number) }).collect()
}

/// Lanes of the first messages that run while both lanes have more than enough.
async fn lanes_under_load(share: f64) -> Vec<Lane> {
    let rig = Rig::new(&[Subscription { concurrency: 2, backfill_min_share: share, ..subscription("s") }]).await;
    rig.store.enqueue(&bulk(10_000, 1500)).await.unwrap();
    rig.enqueue(3000).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let play = play(move |call| {
        log.lock().unwrap().push(call.attempt.lane);
        async { Ok(Effects::default()) }
    });
    let running = rig.start(&play);
    running.wait_for("the first two thousand", |stats| stats.completed >= 2000).await;
    let seen = seen.lock().unwrap()[..2000].to_vec();
    running.engine.drain().await;
    seen
}

#[tokio::test]
async fn without_a_share_no_backfill_runs_while_primary_messages_wait() {
    let seen = lanes_under_load(0.0).await;
    assert!(seen.iter().all(|lane| *lane == Lane::Primary));
}

#[tokio::test]
async fn with_a_share_of_a_tenth_about_a_tenth_is_backfill() {
    let seen = lanes_under_load(0.1).await;
    let backfill = seen.iter().filter(|lane| **lane == Lane::Backfill).count();
    assert!((120..=240).contains(&backfill), "{backfill} of {}", seen.len());
    // Evenly: no quarter of the run goes without.
    for part in seen.chunks(500) {
        let backfill = part.iter().filter(|lane| **lane == Lane::Backfill).count();
        assert!((20..=90).contains(&backfill), "{backfill} of {}", part.len());
    }
}

#[tokio::test]
async fn a_rate_limit_holds() {
    let rig = Rig::new(&[Subscription { rate_limit: Some(100.0), ..subscription("s") }]).await;
    rig.enqueue(1000).await;
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    let started = Instant::now();
    running.wait_for("two hundred", |stats| stats.completed >= 200).await;
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?} for 200 messages at 100 a second");
    running.engine.drain().await;
}

#[tokio::test]
async fn nodes_share_a_rate_limit() {
    let rig = Rig::new(&[Subscription { rate_limit: Some(100.0), ..subscription("s") }]).await;
    rig.enqueue(1000).await;
    let other = rig.other_store().await;
    let name = laneway_core::Name::parse("another").unwrap();
    other.heartbeat(&name, Duration::from_secs(1)).await.unwrap();
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    let started = Instant::now();
    running.wait_for("a hundred", |stats| stats.completed >= 100).await;
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?} for 100 messages at 50 a second");
    running.engine.drain().await;
}

#[tokio::test]
async fn a_breaker_keeps_messages_while_their_destination_is_down() {
    let pause = Duration::from_millis(300);
    let rig = Rig::new(&[Subscription {
        breaker: Some(BreakerPolicy { failures: 5, pause }),
        concurrency: 2,
        retry: RetryPolicy {
            max_attempts: 4,
            base: Duration::from_millis(1),
            jitter: 0.0,
            ..RetryPolicy::default()
        },
        ..subscription("s")
    }])
    .await;
    rig.enqueue(300).await;
    let down = Arc::new(AtomicBool::new(true));
    let is_down = down.clone();
    let play = play(move |_| {
        let down = is_down.load(Ordering::SeqCst);
        async move { if down { Err(retry("connection refused")) } else { Ok(Effects::default()) } }
    });
    let running = rig.start_on(&rig.store, &play, options());
    tokio::time::sleep(pause * 6).await;
    let tried = running.runs.load(Ordering::SeqCst);
    // Five and what was under way, then one after each pause.
    assert!((6..=16).contains(&tried), "{tried} attempts while the destination was down");
    assert_eq!((rig.left().await, rig.dead_letters().await.len()), (300, 0), "a message was given up");
    down.store(false, Ordering::SeqCst);
    rig.wait_until_empty().await;
    assert!(rig.dead_letters().await.is_empty());
    running.engine.drain().await;
}
