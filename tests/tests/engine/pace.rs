//! Behaviours 27 and 38, and the limits of a rate: how fast a subscription is let go.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use laneway_core::{
    BreakerPolicy, Effects, ErrorText, Failure, Lane, Name, NewMessage, Priority, RetryPolicy, Store, Subscription,
    Topic, TopicPattern,
};
use laneway_engine::{ALIVE_FOR, EngineOptions};
use laneway_testing::faults::{Fault, FaultyStore, Operation};

use crate::rig::{On, Rig, comes, message, options, play, reject, retry, subscription};

fn bulk(from: usize, count: usize) -> Vec<NewMessage> {
    (from..from + count).map(|number| NewMessage { priority: Priority::BULK, ..message(number) }).collect()
}

/// Lanes of the first messages that run while both lanes have more than enough.
async fn lanes_under_load(on: On, share: f64) -> Vec<Lane> {
    let rig =
        Rig::new(on, &[Subscription { concurrency: 2, backfill_min_share: share, ..subscription("s") }]).await;
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

async fn without_a_share_no_backfill_runs_while_primary_messages_wait(on: On) {
    let seen = lanes_under_load(on, 0.0).await;
    assert!(seen.iter().all(|lane| *lane == Lane::Primary));
}

async fn with_a_share_of_a_tenth_about_a_tenth_is_backfill(on: On) {
    let seen = lanes_under_load(on, 0.1).await;
    let backfill = seen.iter().filter(|lane| **lane == Lane::Backfill).count();
    assert!((120..=240).contains(&backfill), "{backfill} of {}", seen.len());
    // Evenly: no quarter of the run goes without.
    for part in seen.chunks(500) {
        let backfill = part.iter().filter(|lane| **lane == Lane::Backfill).count();
        assert!((20..=90).contains(&backfill), "{backfill} of {}", part.len());
    }
}

async fn a_rate_limit_holds(on: On) {
    let rig = Rig::new(on, &[Subscription { rate_limit: Some(100.0), ..subscription("s") }]).await;
    rig.enqueue(1000).await;
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    let started = Instant::now();
    running.wait_for("two hundred", |stats| stats.completed >= 200).await;
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?} for 200 messages at 100 a second");
    running.engine.drain().await;
}

async fn nodes_share_a_rate_limit(on: On) {
    let rig = Rig::new(on, &[Subscription { rate_limit: Some(100.0), ..subscription("s") }]).await;
    let other = rig.other_store().await;
    let name = laneway_core::Name::parse("another").unwrap();
    other.heartbeat(&name, Duration::from_secs(1)).await.unwrap();
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    // Before it has said that it lives, it knows of no other.
    assert!(comes(async || rig.store.nodes_alive(ALIVE_FOR).await.unwrap().len() == 2).await);
    let started = Instant::now();
    rig.enqueue(1000).await;
    running.wait_for("three hundred", |stats| stats.completed >= 300).await;
    let took = started.elapsed();
    // A second's worth may have been saved up until then. Alone, it takes three seconds at most.
    assert!(took > Duration::from_millis(3500), "{took:?} for 300 messages at 50 a second");
    running.engine.drain().await;
}

async fn two_nodes_of_one_name_share_a_rate_limit(on: On) {
    let rig = Rig::new(on, &[Subscription { rate_limit: Some(100.0), ..subscription("s") }]).await;
    let other = rig.other_store().await;
    let play = play(|_| async { Ok(Effects::default()) });
    let (one, two) = (rig.start_on(&rig.store, &play, options()), rig.start_on(&other, &play, options()));
    assert!(comes(async || rig.store.nodes_alive(ALIVE_FOR).await.unwrap().len() == 2).await, "they count as one");
    // The first learns of the second by its next sign of life.
    tokio::time::sleep(Duration::from_millis(5500)).await;
    let started = Instant::now();
    rig.enqueue(1000).await;
    assert!(comes(async || one.stats().completed + two.stats().completed >= 500).await);
    let took = started.elapsed();
    // A second's worth may have been saved up. If each took itself for the only one, it would be over in 2.5 seconds.
    assert!(took > Duration::from_millis(3500), "{took:?} for 500 messages at 100 a second");
    one.engine.drain().await;
    assert_eq!(rig.store.nodes_alive(ALIVE_FOR).await.unwrap().len(), 1, "the end of one is not the other's");
    two.engine.drain().await;
}

async fn a_breaker_keeps_messages_while_their_destination_is_down(on: On) {
    let pause = Duration::from_millis(300);
    let rig = Rig::new(
        on,
        &[Subscription {
            breaker: Some(BreakerPolicy { failures: 5, pause }),
            concurrency: 2,
            retry: RetryPolicy {
                max_attempts: 4,
                base: Duration::from_millis(1),
                jitter: 0.0,
                ..RetryPolicy::default()
            },
            ..subscription("s")
        }],
    )
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
    assert!(comes(async || running.runs.load(Ordering::SeqCst) >= 6).await, "nothing is tried after the pause");
    let tried = running.runs.load(Ordering::SeqCst);
    // Five and what was under way, then one after each pause.
    assert!((6..=16).contains(&tried), "{tried} attempts while the destination was down");
    assert_eq!((rig.left().await, rig.dead_letters().await.len()), (300, 0), "a message was given up");
    down.store(false, Ordering::SeqCst);
    rig.wait_until_empty().await;
    assert!(rig.dead_letters().await.is_empty());
    running.engine.drain().await;
}

async fn subscriptions_of_one_destination_pause_together(on: On) {
    let pause = Duration::from_secs(5);
    let to = |name: &str, topic: &str, destination: &str| Subscription {
        pattern: TopicPattern::parse(topic).unwrap(),
        destination: Some(Name::parse(destination).unwrap()),
        concurrency: 1,
        ..subscription(name)
    };
    let subscriptions = [to("a", "work.a", "crm"), to("b", "work.b", "crm"), to("c", "work.c", "mail")];
    let rig = Rig::new(on, &subscriptions).await;
    let seen: Arc<Mutex<Vec<(String, Duration)>>> = Arc::default();
    let log = seen.clone();
    let started = Instant::now();
    let play = play(move |call| {
        let topic = call.message.topic.to_string();
        let throttles = topic == "work.a" && call.attempt.number == 1 && log.lock().unwrap().is_empty();
        log.lock().unwrap().push((topic, started.elapsed()));
        async move {
            match throttles {
                true => Err(Failure::Throttled { after: Some(pause), error: ErrorText::new("slow down") }),
                false => Ok(Effects::default()),
            }
        }
    });
    let running = rig.start(&play);
    let send = async |topic: &str| {
        let message = NewMessage::new(Topic::parse(topic).unwrap(), "{}");
        rig.store.enqueue(&[message]).await.unwrap();
    };
    send("work.a").await;
    running.wait_for("the first attempt", |stats| stats.released >= 1).await;
    send("work.b").await;
    send("work.c").await;
    rig.wait_until_empty().await;
    running.engine.drain().await;
    let seen = seen.lock().unwrap().clone();
    let throttled = seen[0].1;
    let of = |topic: &str| seen.iter().rfind(|(of, _)| of == topic).unwrap().1 - throttled;
    assert!(of("work.a") >= pause && of("work.b") >= pause, "{seen:?}");
    assert!(of("work.c") < pause, "another destination: {seen:?}");
}

async fn a_cluster_holds_no_more_than_it_may(on: On) {
    let subscriptions = [Subscription { cluster_concurrency: Some(3), concurrency: 4, ..subscription("s") }];
    let rig = Rig::new(on, &subscriptions).await;
    rig.enqueue(60).await;
    let running = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let counts = running.clone();
    let play = play(move |_| {
        let counts = counts.clone();
        async move {
            let now = counts.0.fetch_add(1, Ordering::SeqCst) + 1;
            counts.1.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            counts.0.fetch_sub(1, Ordering::SeqCst);
            Ok(Effects::default())
        }
    });
    // With a poll for each three messages it would take minutes.
    let options = || EngineOptions { poll_interval: Duration::from_secs(10), ..options() };
    let one = rig.start_on(&rig.store, &play, options());
    let store = rig.other_store().await;
    let two = rig.start_on(&store, &play, options());
    let started = Instant::now();
    rig.wait_until_empty().await;
    let took = started.elapsed();
    one.engine.drain().await;
    two.engine.drain().await;
    assert_eq!(running.1.load(Ordering::SeqCst), 3, "the most that ran at once");
    assert!(took < Duration::from_secs(30), "{took:?} for 60 messages of 10 ms, three at a time");
}

async fn a_trial_that_tells_nothing_is_followed_by_another(on: On) {
    let pause = Duration::from_secs(3);
    let breaker = Some(BreakerPolicy { failures: 2, pause });
    let rig = Rig::new(on, &[Subscription { breaker, concurrency: 1, ..subscription("s") }]).await;
    let failed = Arc::new(AtomicUsize::new(0));
    let play = play(move |_| {
        let number = failed.fetch_add(1, Ordering::SeqCst);
        async move {
            match number {
                0 | 1 => Err(retry("connection refused")),
                2..=7 => Err(reject("of no use")),
                _ => Ok(Effects::default()),
            }
        }
    });
    rig.enqueue(12).await;
    let started = Instant::now();
    let running = rig.start(&play);
    rig.wait_until_empty().await;
    let took = started.elapsed();
    running.engine.drain().await;
    assert_eq!(rig.dead_letters().await.len(), 6);
    assert!(took < pause * 4, "{took:?}: each rejected message cost a pause");
}

/// A backfill message that is committed while the relay looks does not wait for the next poll.
async fn backfill_messages_wait_for_no_poll(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    // What a claim has seen is old when it answers.
    let slow = Arc::new(FaultyStore::new(rig.store.clone()));
    (0..1000).for_each(|_| slow.script(Operation::Claim, Fault::Late(Duration::from_millis(10))));
    let slow: Arc<dyn Store> = slow;
    let options = EngineOptions { poll_interval: Duration::from_secs(3600), ..options() };
    let running = rig.start_on(&slow, &play(|_| async { Ok(Effects::default()) }), options);
    let producer = rig.other_store().await;
    for number in 0..40 {
        producer.enqueue(&bulk(number, 1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(number as u64 * 7 % 50)).await;
        producer.enqueue(&bulk(number, 1)).await.unwrap();
        // Nobody else wakes the relay.
        rig.wait_until_empty().await;
    }
    running.engine.drain().await;
}

on_both!(
    a_trial_that_tells_nothing_is_followed_by_another,
    backfill_messages_wait_for_no_poll,
    subscriptions_of_one_destination_pause_together,
    a_cluster_holds_no_more_than_it_may,
    without_a_share_no_backfill_runs_while_primary_messages_wait,
    with_a_share_of_a_tenth_about_a_tenth_is_backfill,
    a_rate_limit_holds,
    nodes_share_a_rate_limit,
    two_nodes_of_one_name_share_a_rate_limit,
    a_breaker_keeps_messages_while_their_destination_is_down,
);
