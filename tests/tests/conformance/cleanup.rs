//! Behaviours 44 and 46: what is over its retention goes in bounded steps, and nothing else does.

use std::time::Duration;

use jiff::Timestamp;
use laneway_core::{Cleanup, ErrorText, NewMessage, Reason, Replay, Verdict};

use crate::fixture::*;

/// Runs a cleanup to its end; answers what each step removed.
async fn clean(fixture: &Fixture, what: Cleanup, before: Timestamp, limit: u32) -> Vec<u64> {
    let mut steps = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let step = fixture.store.clean(what, before, from, limit).await.unwrap();
        steps.push(step.changed);
        next = step.next;
        assert!(steps.len() < 1000, "a cleanup has no end");
    }
    steps
}

/// The database's time, after everything that was written until now and before all that is written later.
async fn between(fixture: &Fixture) -> Timestamp {
    tokio::time::sleep(Duration::from_millis(3)).await;
    let now = fixture.store.now().await.unwrap();
    tokio::time::sleep(Duration::from_millis(3)).await;
    now
}

async fn process(fixture: &Fixture, subscription: laneway_core::SubscriptionId) {
    while let Some(batch) = fixture.claim(subscription).await {
        fixture.settle_all(&complete_all(&batch)).await;
    }
}

fn numbered(prefix: &str, count: usize) -> Vec<NewMessage> {
    (0..count).map(|n| message(&format!("{prefix}{n}"))).collect()
}

conformance! {
    async fn the_clock_of_cleanup_is_the_databases(fixture: &Fixture) {
        let mut sql = fixture.sql().await;
        fixture.subscribe().await;
        fixture.enqueue_ids(&["a"]).await;
        let now = fixture.store.now().await.unwrap();
        let age = if fixture.is_sqlite() {
            sql.number(&format!("select {} - created_at from @message", now.as_millisecond())).await
        } else {
            sql.number(&format!("select extract(epoch from '{now}'::timestamptz - created_at) * 1000 from @message")).await
        };
        assert!((0..30_000).contains(&age), "{age}");
    }

    async fn settled_messages_go_and_all_others_stay(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["settled"]).await;
        process(fixture, subscription).await;
        fixture.enqueue_ids(&["leased", "dead", "retried"]).await;
        let batch = fixture.claim_some(subscription).await;
        let dead = Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("x"), plugin: None };
        let retry = Verdict::Retry { delay: HOUR, counted: true, error: None };
        fixture.settle_all(&[settlement(&batch, 1, dead), settlement(&batch, 2, retry)]).await;
        fixture.enqueue_ids(&["pending"]).await;
        fixture.enqueue(&[NewMessage { delay: Some(HOUR), ..message("delayed") }]).await;
        let nobody = laneway_core::Topic::parse("nobody.listens").unwrap();
        fixture.enqueue(&[NewMessage { topic: nobody, ..message("unrouted") }]).await;
        let before = between(fixture).await;
        fixture.enqueue_ids(&["young"]).await;

        assert_eq!(fixture.store.cleanable(Cleanup::Messages, before).await.unwrap(), 2);
        assert_eq!(clean(fixture, Cleanup::Messages, before, 100).await.iter().sum::<u64>(), 2);
        assert_eq!(fixture.store.cleanable(Cleanup::Messages, before).await.unwrap(), 0);
        let mut sql = fixture.sql().await;
        assert_eq!(
            sql.texts("select id from @message order by seq").await,
            ["leased", "dead", "retried", "pending", "delayed", "young"]
        );
        assert_eq!((sql.count("owed").await, sql.count("unrouted").await), (5, 0));
        // What was in hand is settled as ever.
        fixture.settle_all(&[complete(&batch, 0)]).await;
    }

    async fn a_message_that_one_subscription_still_owes_stays(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.>")]).await;
        fixture.enqueue_ids(&["m"]).await;
        process(fixture, subscriptions[0]).await;
        let before = between(fixture).await;
        assert_eq!(clean(fixture, Cleanup::Messages, before, 10).await, [0]);
        process(fixture, subscriptions[1]).await;
        assert_eq!(clean(fixture, Cleanup::Messages, before, 10).await, [1]);
    }

    async fn a_cleanup_goes_in_steps_that_can_be_taken_up_again(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 25)).await;
        // Every third one stays, so that steps meet rows that they must leave.
        let mut sql = fixture.sql().await;
        let which = if fixture.is_sqlite() { "id / 1048576" } else { "message_seq" };
        sql.run(&format!("delete from @delivery where {which} % 3 <> 0")).await;
        let stay = sql.count("delivery").await;
        let before = between(fixture).await;

        let first = fixture.store.clean(Cleanup::Messages, before, 0, 10).await.unwrap();
        assert!(first.changed <= 10 && first.next.is_some(), "{first:?}");
        let steps = clean(fixture, Cleanup::Messages, before, 10).await;
        assert!(steps.iter().all(|changed| *changed <= 10), "{steps:?}");
        assert_eq!(sql.count("message").await, stay);
        process(fixture, subscription).await;
        clean(fixture, Cleanup::Messages, before, 10).await;
        assert_eq!(sql.count("message").await, 0);
    }

    async fn delayed_messages_do_not_hide_settled_ones_behind_them(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let delayed: Vec<NewMessage> =
            numbered("delayed", 30).into_iter().map(|m| NewMessage { delay: Some(HOUR * 1000), ..m }).collect();
        fixture.enqueue(&delayed).await;
        fixture.enqueue(&numbered("settled", 10)).await;
        process(fixture, subscription).await;
        let before = between(fixture).await;
        let steps = clean(fixture, Cleanup::Messages, before, 10).await;
        assert_eq!(steps.iter().sum::<u64>(), 10, "{steps:?}");
    }

    async fn a_cleanup_ends_where_messages_are_young(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 100)).await;
        process(fixture, subscription).await;
        let long_ago = fixture.store.now().await.unwrap() - HOUR * 48;
        assert_eq!(clean(fixture, Cleanup::Messages, long_ago, 10).await, [0], "it looks at one page and no more");
    }

    async fn a_replay_and_a_cleanup_at_the_same_time_lose_nothing(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 200)).await;
        process(fixture, subscription).await;
        let until = between(fixture).await;
        let replay = Replay {
            subscription: name("handler"),
            topic: None,
            since: None,
            until,
            priority: laneway_core::Priority::NORMAL,
            force: true,
        };
        let (replayer, cleaner) = (fixture.another_node().await, fixture.another_node().await);
        let replaying = tokio::spawn(async move {
            let (mut owed, mut next) = (0, Some(0));
            while let Some(from) = next {
                let step = replayer.replay(&replay, from, 5).await.unwrap();
                owed += step.changed;
                next = step.next;
            }
            owed
        });
        let cleaning = tokio::spawn(async move {
            let (mut removed, mut next) = (0, Some(0));
            while let Some(from) = next {
                let step = cleaner.clean(Cleanup::Messages, until, from, 3).await.unwrap();
                removed += step.changed;
                next = step.next;
            }
            removed
        });
        let (owed, removed) = (replaying.await.unwrap(), cleaning.await.unwrap());
        let mut sql = fixture.sql().await;
        assert_eq!(sql.count("owed").await as u64, owed, "a message was owed again and is gone");
        assert_eq!(owed + removed, 200);
    }

    async fn markers_go_by_the_time_that_they_were_written(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("old", 23)).await;
        process(fixture, subscription).await;
        let before = between(fixture).await;
        fixture.enqueue(&numbered("new", 4)).await;
        process(fixture, subscription).await;

        assert_eq!(fixture.store.cleanable(Cleanup::Markers, before).await.unwrap(), 23);
        let mut sql = fixture.sql().await;
        assert_eq!(sql.count("marker").await, 27, "a dry run removes nothing");
        assert_eq!(clean(fixture, Cleanup::Markers, before, 10).await, [10, 10, 3]);
        assert_eq!(sql.number("select count(*) from @marker where message_id like 'new%'").await, 4);
        assert_eq!(sql.count("marker").await, 4);
        assert_eq!(clean(fixture, Cleanup::Markers, before, 10).await, [0]);
    }

    async fn what_is_exactly_as_old_as_the_retention_stays(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 3)).await;
        process(fixture, subscription).await;
        let mut sql = fixture.sql().await;
        let (cutoff, earlier, later) = ("2026-01-01T00:00:00Z", "2025-12-31T23:59:59.999Z", "2026-01-01T00:00:00.001Z");
        for (id, time) in [("m0", earlier), ("m1", cutoff), ("m2", later)] {
            let time = match fixture.is_sqlite() {
                true => time.parse::<Timestamp>().unwrap().as_millisecond().to_string(),
                false => format!("'{time}'"),
            };
            sql.run(&format!("update @marker set processed_at = {time} where message_id = '{id}'")).await;
        }
        assert_eq!(clean(fixture, Cleanup::Markers, cutoff.parse().unwrap(), 10).await, [1]);
        assert_eq!(sql.texts("select message_id from @marker order by message_id").await, ["m1", "m2"]);
    }

    async fn dead_letters_go_only_when_told_to(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let dead = Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("x"), plugin: None };
        fixture.enqueue_ids(&["a"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, dead.clone())]).await;
        let before = between(fixture).await;
        fixture.enqueue_ids(&["b"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, dead)]).await;

        for other in [Cleanup::Messages, Cleanup::Markers, Cleanup::ScheduleRuns] {
            assert_eq!(clean(fixture, other, before, 10).await, [0], "{other:?}");
        }
        assert_eq!(fixture.store.cleanable(Cleanup::DeadLetters, before).await.unwrap(), 1);
        assert_eq!(clean(fixture, Cleanup::DeadLetters, before, 10).await, [1]);
        assert_eq!(clean(fixture, Cleanup::Messages, before, 10).await, [1], "its message is as any other now");
        let mut sql = fixture.sql().await;
        assert_eq!(sql.texts("select message_id from @dead_letter").await, ["b"]);
    }

    async fn a_cleanup_and_deliveries_at_the_same_time_lose_nothing(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let far = "2100-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
        let cleaner = fixture.another_node().await;
        let cleaning = tokio::spawn(async move {
            let mut removed = 0;
            while removed < 400 {
                let mut next = Some(0);
                while let Some(from) = next {
                    let step = cleaner.clean(Cleanup::Messages, far, from, 7).await.unwrap();
                    removed += step.changed;
                    next = step.next;
                    tokio::task::yield_now().await;
                }
            }
            removed
        });
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..40 {
            fixture.enqueue(&numbered(&format!("r{round}-"), 10)).await;
            while seen.len() < (round + 1) * 10 {
                let batch = fixture.claim_soon(subscription).await;
                seen.extend(ids(&batch).into_iter().map(str::to_owned));
                // A part is handed back, so that deliveries move while messages go.
                let group: Vec<_> = (0..batch.deliveries.len())
                    .map(|n| if n % 4 == 3 && round % 2 == 0 { settlement(&batch, n, Verdict::RELEASE) } else { complete(&batch, n) })
                    .collect();
                fixture.settle_all(&group).await;
            }
            process(fixture, subscription).await;
        }
        let removed = tokio::time::timeout(PATIENCE, cleaning).await.unwrap().unwrap();
        assert_eq!((seen.len(), removed), (400, 400));
    }
}
