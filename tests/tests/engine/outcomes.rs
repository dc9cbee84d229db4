//! What follows an attempt.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use laneway_core::{Effects, ErrorText, Failure, NewMessage, RetryPolicy, RetrySchedule, Subscription};

use crate::rig::{On, Rig, message, play, reject, retry, subscription};

async fn every_message_is_processed_once(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(500).await;
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    rig.enqueue(500).await;
    rig.wait_until_empty().await;
    assert_eq!(running.runs.load(Ordering::SeqCst), 1000);
    assert!(running.engine.drain().await.complete);
}

async fn a_retry_comes_again_and_keeps_its_count(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(1).await;
    let play = play(|call| async move {
        if call.attempt.number < 3 { Err(retry("not yet")) } else { Ok(Effects::default()) }
    });
    let running = rig.start(&play);
    rig.wait_until_empty().await;
    assert_eq!(running.runs.load(Ordering::SeqCst), 3);
    assert!(rig.dead_letters().await.is_empty());
    running.engine.drain().await;
}

async fn attempts_run_out_into_the_dead_letters(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(1).await;
    let running = rig.start(&play(|_| async { Err(retry("never")) }));
    rig.wait_until_empty().await;
    let dead = rig.dead_letters().await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].attempts, 3);
    assert_eq!(dead[0].reason, "guest:again");
    assert_eq!(dead[0].error, "never");
    assert_eq!(dead[0].plugin.as_deref(), Some("abc"));
    running.engine.drain().await;
}

async fn a_reject_is_dead_on_the_first_attempt(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(1).await;
    let running = rig.start(&play(|_| async { Err(reject("bad")) }));
    rig.wait_until_empty().await;
    assert_eq!(rig.dead_letters().await[0].attempts, 1);
    assert_eq!(running.runs.load(Ordering::SeqCst), 1);
    running.engine.drain().await;
}

async fn throttling_pauses_the_subscription_and_counts_no_attempt(on: On) {
    let rig = Rig::new(on, &[Subscription { concurrency: 1, ..subscription("s") }]).await;
    rig.enqueue(20).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let play = play(move |call| {
        let first = {
            let mut log = log.lock().unwrap();
            log.push((Instant::now(), call.attempt.number));
            log.len() == 1
        };
        async move {
            if first {
                let after = Some(Duration::from_millis(300));
                Err(Failure::Throttled { after, error: ErrorText::new("slow down") })
            } else {
                Ok(Effects::default())
            }
        }
    });
    let running = rig.start(&play);
    rig.wait_until_empty().await;
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 21);
    assert!(seen[1].0 - seen[0].0 >= Duration::from_millis(290), "the pause was {:?}", seen[1].0 - seen[0].0);
    assert!(seen.iter().all(|(_, attempt)| *attempt == 1), "an attempt was counted");
    running.engine.drain().await;
}

async fn a_panic_in_the_host_ends_only_its_attempt(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(50).await;
    let play = play(|call| async move {
        assert!(call.message.payload.as_ref() != b"7", "a defect in the host");
        Ok(Effects::default())
    });
    let running = rig.start(&play);
    rig.wait_until_empty().await;
    let dead = rig.dead_letters().await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].reason, "host_error");
    assert!(dead[0].error.contains("a defect in the host"), "{}", dead[0].error);
    assert_eq!(running.drained().await.completed, 49);
}

async fn raising_the_attempts_applies_to_deliveries_that_wait(on: On) {
    let patient = RetryPolicy {
        schedule: RetrySchedule::Constant,
        base: Duration::from_millis(300),
        cap: Duration::from_millis(300),
        jitter: 0.0,
        max_attempts: 2,
        ..RetryPolicy::default()
    };
    let rig = Rig::new(on, &[Subscription { retry: patient.clone(), ..subscription("s") }]).await;
    rig.enqueue(1).await;
    let failing = play(|_| async { Err(retry("not yet")) });
    let running = rig.start(&failing);
    running.wait_for("a retry", |stats| stats.retried == 1).await;
    running.engine.drain().await;
    let rig = rig.with_policy(RetryPolicy { max_attempts: 4, ..patient });
    let running = rig.start(&failing);
    rig.wait_until_empty().await;
    assert_eq!(rig.dead_letters().await[0].attempts, 4);
    running.engine.drain().await;
}

async fn the_backoff_of_one_delivery_delays_no_other(on: On) {
    let hour = Duration::from_secs(3600);
    let slow = RetryPolicy { base: hour, cap: hour, ..subscription("s").retry };
    let rig = Rig::new(on, &[Subscription { retry: slow, ..subscription("s") }]).await;
    rig.enqueue(100).await;
    let play = play(|call| async move {
        if call.message.payload.as_ref() == b"0" { Err(retry("later")) } else { Ok(Effects::default()) }
    });
    let running = rig.start(&play);
    running.wait_for("all the others", |stats| stats.completed == 99).await;
    assert_eq!(rig.left().await, 1);
    running.engine.drain().await;
}

async fn a_delayed_message_runs_when_it_is_due_and_not_before(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let ran_at = Arc::new(OnceLock::new());
    let first = ran_at.clone();
    let running = rig.start(&play(move |_| {
        first.get_or_init(Instant::now);
        async { Ok(Effects::default()) }
    }));
    let delay = Duration::from_millis(400);
    let asked_at = Instant::now();
    rig.store.enqueue(&[NewMessage { delay: Some(delay), ..message(1) }]).await.unwrap();
    running.wait_for("the delayed message", |stats| stats.completed == 1).await;
    let waited = ran_at.get().expect("it ran").duration_since(asked_at);
    // The database counts whole milliseconds.
    assert!(waited + Duration::from_millis(2) >= delay, "it ran after {waited:?}");
    running.engine.drain().await;
}

async fn a_row_that_breaks_the_rules_goes_to_the_dead_letters_and_the_others_flow(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(3).await;
    match on {
        On::Sqlite => {
            let mut sql = rig.sqlite().await;
            let off = "PRAGMA ignore_check_constraints = on; DROP TRIGGER laneway_message_headers";
            sqlx::raw_sql(off).execute(&mut sql).await.unwrap();
            let row =
                "INSERT INTO laneway_message (id, topic, payload, headers) VALUES ('bad', 'work.x', '{}', '[1]')";
            sqlx::query(row).execute(&mut sql).await.unwrap();
        }
        On::Postgres => {
            let mut sql = rig.postgres().await;
            let constraint = "headers: a JSON object whose values are strings";
            let off = format!("ALTER TABLE laneway.message DROP CONSTRAINT \"{constraint}\"");
            sqlx::raw_sql(sqlx::AssertSqlSafe(off)).execute(&mut sql).await.unwrap();
            let row =
                "INSERT INTO laneway.message (id, topic, payload, headers) VALUES ('bad', 'work.x', '{}', '[1]')";
            sqlx::query(row).execute(&mut sql).await.unwrap();
        }
    }
    rig.enqueue(3).await;
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    rig.wait_until_empty().await;
    assert_eq!(running.drained().await.completed, 6);
    let dead = rig.dead_letters().await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!((dead[0].message_id.as_str(), dead[0].reason.as_str()), ("bad", "unreadable"));
    assert!(dead[0].error.contains("headers"), "{dead:?}");
}

async fn a_destination_that_asks_for_pauses_for_ever_has_its_messages_given_up(on: On) {
    let retry = RetryPolicy { max_elapsed: Some(Duration::from_millis(700)), ..subscription("s").retry };
    let rig = Rig::new(on, &[Subscription { retry, concurrency: 2, ..subscription("s") }]).await;
    rig.enqueue(6).await;
    let running = rig.start(&play(|_| async {
        let after = Some(Duration::from_millis(100));
        Err(Failure::Throttled { after, error: ErrorText::new("later") })
    }));
    let started = Instant::now();
    rig.wait_until_empty().await;
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
    running.engine.drain().await;
    let dead = rig.dead_letters().await;
    assert_eq!(dead.len(), 6);
    assert!(dead.iter().all(|letter| letter.reason.as_str() == "throttled" && letter.error == "later"), "{dead:?}");
}

on_both!(
    a_row_that_breaks_the_rules_goes_to_the_dead_letters_and_the_others_flow,
    a_destination_that_asks_for_pauses_for_ever_has_its_messages_given_up,
    every_message_is_processed_once,
    a_retry_comes_again_and_keeps_its_count,
    attempts_run_out_into_the_dead_letters,
    a_reject_is_dead_on_the_first_attempt,
    throttling_pauses_the_subscription_and_counts_no_attempt,
    a_panic_in_the_host_ends_only_its_attempt,
    raising_the_attempts_applies_to_deliveries_that_wait,
    the_backoff_of_one_delivery_delays_no_other,
    a_delayed_message_runs_when_it_is_due_and_not_before,
);
