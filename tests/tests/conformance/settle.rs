//! Behaviours 12, 20 and 28: settlements are fenced, atomic, and do what their verdict says.

use std::time::Duration;

use laneway_core::{ErrorText, LeaseToken, Reason, SettleReport, Settlement, Topic, Verdict};

use crate::fixture::*;

/// The deliveries with all that a settlement may change.
const ROWS: &str =
    "select message_seq || '/' || available_at || '/' || attempt || '/' || lease_token from @owed order by 1";

fn retry(delay: Duration, counted: bool) -> Verdict {
    Verdict::Retry { delay, counted, error: Some(ErrorText::new("it rained")) }
}

fn dead() -> Verdict {
    Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("it broke"), plugin: None }
}

/// A settlement with every kind of effect but state, which would make the group a conflict.
fn with_effects(settlement: Settlement) -> Settlement {
    let mut child = message(&format!("child-of-{}", settlement.message));
    child.topic = Topic::parse("t.child").unwrap();
    Settlement { adds: vec![add("count", 1)], emits: vec![child], ..settlement }
}

conformance! {
    async fn completing_removes_the_delivery_and_keeps_the_message(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[complete(&batch, 1)]).await;
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("owed").await, sql.count("message").await), (1, 2));
        assert_eq!(sql.texts("select message_id from @marker").await, ["b"]);
        fixture.settle_all(&[settlement(&batch, 0, Verdict::Complete { mark: false })]).await;
        assert_eq!((sql.count("owed").await, sql.count("marker").await), (0, 1));
    }

    async fn a_stale_token_settles_nothing_whatever_its_verdict(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2", "m3", "m4", "m5"]).await;
        let stale = fixture.claim_some(subscription).await;
        let mut sql = fixture.sql().await;
        sql.expire_leases().await;
        let current = fixture.another_node().await.claim(request(subscription)).await.unwrap().unwrap();
        let before = sql.texts(ROWS).await;
        assert_eq!(before.len(), 5);

        let group = [
            with_effects(complete(&stale, 0)),
            settlement(&stale, 1, retry(Duration::ZERO, true)),
            settlement(&stale, 2, dead()),
            settlement(&stale, 3, Verdict::RELEASE),
            settlement(&stale, 4, retry(HOUR, false)),
        ];
        let (mut lost, duplicates) = fixture.settle(&group).await;
        lost.sort_unstable();
        assert_eq!((lost, duplicates), (vec![0, 1, 2, 3, 4], vec![]));
        let after = sql.texts(ROWS).await;
        assert_eq!(after, before, "a row changed");
        for table in ["marker", "counter", "state", "dead_letter"] {
            assert_eq!(sql.count(table).await, 0, "{table}");
        }
        assert_eq!(sql.count("message").await, 5, "a lost lease emitted");
        fixture.settle_all(&complete_all(&current)).await;
    }

    async fn a_stale_token_cannot_complete_what_is_settled_already(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        let settled = with_effects(complete(&batch, 0));
        fixture.settle_all(std::slice::from_ref(&settled)).await;
        // The answer of the first was lost, so the node settles again.
        assert_eq!(fixture.settle(std::slice::from_ref(&settled)).await, (vec![0], vec![]));
        assert_eq!(fixture.counter("count").await, 1);
        assert_eq!(fixture.sql().await.count("message").await, 2);
    }

    async fn a_stale_token_with_state_is_reported_and_nothing_of_the_group_happens(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2"]).await;
        let stale = fixture.claim_some(subscription).await;
        let mut sql = fixture.sql().await;
        assert_eq!(sql.make_due("message_seq = 1").await, 1);
        let current = fixture.claim_some(subscription).await;
        let first = Settlement { writes: vec![write("k", Some("stale"), 1)], ..with_effects(complete(&stale, 0)) };
        let second = Settlement { writes: vec![write("k", Some("built on it"), 2)], ..complete(&stale, 1) };
        match fixture.store.settle(&[first, second.clone()]).await.unwrap() {
            SettleReport::Conflict(conflict) => {
                assert_eq!((conflict.lost, conflict.duplicates, conflict.stale), (vec![0], vec![], vec![]));
            }
            committed => panic!("{committed:?}"),
        }
        assert_eq!(fixture.state("k").await, None);
        assert_eq!(
            (fixture.counter("count").await, sql.count("owed").await, sql.count("marker").await),
            (0, 2, 0)
        );
        // What stood in the way is left out, as the engine does.
        fixture.settle_all(&[second]).await;
        assert_eq!(fixture.state("k").await.as_deref(), Some("built on it"));
        fixture.settle_all(&complete_all(&current)).await;
    }

    async fn a_wrong_token_or_delivery_settles_nothing(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.>")]).await;
        fixture.enqueue_ids(&["m1", "m2"]).await;
        let (a, b) = (fixture.claim_some(subscriptions[0]).await, fixture.claim_some(subscriptions[1]).await);
        let crossed = [
            Settlement { token: b.token, ..with_effects(complete(&a, 0)) },
            Settlement { token: LeaseToken(i64::MAX), ..with_effects(complete(&a, 1)) },
            Settlement { delivery: laneway_core::DeliveryId(i64::MAX), ..with_effects(complete(&b, 0)) },
        ];
        let (mut lost, duplicates) = fixture.settle(&crossed).await;
        lost.sort_unstable();
        assert_eq!((lost, duplicates), (vec![0, 1, 2], vec![]));
        assert_eq!((fixture.counter("count").await, fixture.sql().await.count("owed").await), (0, 4));
    }

    async fn a_stale_and_the_current_lease_of_one_delivery_in_one_group(fixture: &Fixture) {
        // As on a node that was slow, lost its lease, and claimed the delivery again.
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2"]).await;
        let stale = fixture.claim_some(subscription).await;
        fixture.sql().await.expire_leases().await;
        let current = fixture.claim_some(subscription).await;
        let counting = |settlement| Settlement { adds: vec![add("count", 1)], ..settlement };
        let group = [
            counting(complete(&stale, 0)),
            counting(complete(&current, 0)),
            counting(complete(&current, 1)),
            counting(complete(&stale, 1)),
        ];
        let (mut lost, duplicates) = fixture.settle(&group).await;
        lost.sort_unstable();
        assert_eq!((lost, duplicates), (vec![0, 3], vec![]), "the order in the group does not decide who holds");
        assert_eq!((fixture.counter("count").await, fixture.sql().await.count("owed").await), (2, 0));
    }

    async fn one_settlement_twice_in_a_group_happens_once(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2", "m3"]).await;
        let batch = fixture.claim_some(subscription).await;
        let counting = |settlement| Settlement { adds: vec![add("count", 1)], ..settlement };
        let group = [
            counting(complete(&batch, 0)),
            counting(complete(&batch, 0)),
            settlement(&batch, 1, dead()),
            settlement(&batch, 1, dead()),
            settlement(&batch, 2, retry(HOUR, true)),
            counting(complete(&batch, 2)),
        ];
        let (lost, duplicates) = fixture.settle(&group).await;
        assert_eq!(lost.len() + duplicates.len(), 3, "{lost:?} {duplicates:?}");
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("dead_letter").await, sql.count("message").await), (1, 3));
        // Either of the two about the third message may be the one that happens; both may not.
        let completed = i64::from(lost.contains(&4));
        assert_eq!((fixture.counter("count").await, sql.count("owed").await), (1 + completed, 1 - completed));
    }

    async fn a_lost_lease_does_not_keep_its_neighbours_from_settling(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2", "m3", "m4"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[complete(&batch, 1)]).await;
        let group = [
            with_effects(complete(&batch, 0)),
            with_effects(complete(&batch, 1)),
            settlement(&batch, 2, retry(HOUR, true)),
            settlement(&batch, 3, dead()),
        ];
        assert_eq!(fixture.settle(&group).await, (vec![1], vec![]));
        assert_eq!(fixture.counter("count").await, 1);
        let mut sql = fixture.sql().await;
        assert_eq!(
            (sql.count("owed").await, sql.count("dead_letter").await),
            (1 + 1, 1),
            "the retry, and the child"
        );
    }

    async fn an_expired_lease_that_nobody_took_may_settle_once(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.sql().await.expire_leases().await;
        // Either answer is sound, as the token is still the last one; but it must be true.
        let (lost, _) = fixture.settle(&[Settlement { adds: vec![add("count", 1)], ..complete(&batch, 0) }]).await;
        let happened = i64::from(lost.is_empty());
        assert_eq!(fixture.counter("count").await, happened);
        assert_eq!(fixture.claim(subscription).await.is_none(), lost.is_empty());
    }

    async fn a_retry_waits_its_delay_keeps_its_error_and_counts(fixture: &Fixture) {
        let delay = Duration::from_secs(3);
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, retry(delay, true))]).await;
        let view = fixture.store.message(&batch.deliveries[0].message.id).await.unwrap().unwrap();
        assert_eq!((view.deliveries[0].attempt, view.deliveries[0].leased), (1, false));
        assert_eq!(view.deliveries[0].last_error.as_deref(), Some("it rained"));
        assert!(fixture.claim(subscription).await.is_none(), "the first retry waits");
        tokio::time::sleep(delay + Duration::from_millis(50)).await;
        assert_eq!(fixture.claim_some(subscription).await.deliveries[0].attempt, 2);
    }

    async fn a_retry_that_does_not_count_takes_the_attempt_back(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let mut sql = fixture.sql().await;
        for _ in 0..3 {
            let batch = fixture.claim_some(subscription).await;
            assert_eq!(batch.deliveries[0].attempt, 1);
            fixture.settle_all(&[settlement(&batch, 0, retry(HOUR, false))]).await;
            assert!(fixture.claim(subscription).await.is_none());
            assert_eq!(sql.make_due("true").await, 1);
        }
    }

    async fn an_attempt_that_does_not_count_starts_the_clock_if_it_says_why(fixture: &Fixture) {
        let while_later = Duration::from_millis(60);
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        // Handed back unstarted: it leaves no trace.
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
        tokio::time::sleep(while_later).await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(batch.deliveries[0].since_first_attempt, Duration::ZERO);
        fixture.settle_all(&[settlement(&batch, 0, retry(Duration::ZERO, false))]).await;
        let mut since = Duration::ZERO;
        for _ in 0..3 {
            tokio::time::sleep(while_later).await;
            let batch = fixture.claim_some(subscription).await;
            let delivery = &batch.deliveries[0];
            assert_eq!(delivery.attempt, 1);
            assert!(delivery.since_first_attempt > since + while_later / 2, "{:?}", delivery.since_first_attempt);
            since = delivery.since_first_attempt;
            // What is handed back unstarted stops no clock.
            fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
            let view = fixture.store.message(&delivery.message.id).await.unwrap().unwrap();
            assert_eq!(view.deliveries[0].last_error.as_deref(), Some("it rained"));
        }
    }

    async fn a_retry_writes_no_marker_and_no_effects(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, retry(Duration::ZERO, true))]).await;
        let mut sql = fixture.sql().await;
        for table in ["marker", "counter", "state", "dead_letter"] {
            assert_eq!(sql.count(table).await, 0, "{table}");
        }
    }

    async fn a_settled_retry_is_no_longer_its_holders(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, retry(HOUR, true))]).await;
        // The same token again, as after a lost answer: it must not complete what was handed back.
        assert_eq!(fixture.settle(&[with_effects(complete(&batch, 0))]).await, (vec![0], vec![]));
        assert_eq!(fixture.settle(&[settlement(&batch, 0, retry(Duration::ZERO, true))]).await, (vec![0], vec![]));
        assert!(fixture.claim(subscription).await.is_none(), "the delay holds");
    }

    async fn one_group_settles_many_subscriptions_and_leases(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.x"), ("c", "t.x")]).await;
        let all: Vec<String> = (0..150).map(|number| format!("m{number}")).collect();
        fixture.enqueue(&all.iter().map(|id| message(id)).collect::<Vec<_>>()).await;
        let mut group = Vec::new();
        for &subscription in &subscriptions {
            while let Some(batch) = fixture.claim(subscription).await {
                group.extend((0..batch.deliveries.len()).map(|position| Settlement {
                    adds: vec![add(&format!("of-{subscription}"), 1), add("all", 1)],
                    ..complete(&batch, position)
                }));
            }
        }
        assert_eq!(group.len(), 450);
        fixture.settle_all(&group).await;
        assert_eq!(fixture.counter("all").await, 450);
        for subscription in subscriptions {
            assert_eq!(fixture.counter(&format!("of-{subscription}")).await, 150);
        }
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("owed").await, sql.count("marker").await), (0, 450));
    }

    async fn emitted_messages_fan_out_and_keep_what_they_were_given(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("parent", "t.x"), ("child", "t.child"), ("all", "t.>")]).await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscriptions[0]).await;
        let mut child = message("child");
        child.topic = Topic::parse("t.child").unwrap();
        child.priority = laneway_core::Priority::LOW;
        child.key = Some("k".to_owned());
        child.tenant = Some("acme".to_owned());
        child.headers = vec![laneway_core::Header { name: "cause".to_owned(), value: "m".to_owned() }];
        let mut later = message("later");
        later.delay = Some(HOUR);
        let unheard = laneway_core::NewMessage { topic: Topic::parse("nobody").unwrap(), ..message("unheard") };
        let emits = vec![child.clone(), later, unheard, child.clone()];
        fixture.settle_all(&[Settlement { emits, ..complete(&batch, 0) }]).await;

        let backfill =
            laneway_core::ClaimRequest { lane: laneway_core::Lane::Backfill, ..request(subscriptions[1]) };
        let found =
            fixture.store.claim(backfill).await.unwrap().expect("a low priority leads to the backfill lane");
        assert_eq!(found.deliveries.len(), 1, "the second of one id is a duplicate");
        assert!(same(&found.deliveries[0].message, &child), "{:?}", found.deliveries[0].message);
        assert!(fixture.claim(subscriptions[0]).await.is_none(), "the delayed one waits");
        assert_eq!(fixture.store.status().await.unwrap().unrouted, 1);
        assert_eq!(ids(&fixture.claim_some(subscriptions[2]).await), ["m"], "in the primary lane");
    }

    async fn an_emitted_message_that_exists_is_left_out(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m", "child"]).await;
        let batch = fixture.claim_some(subscription).await;
        let settlement = Settlement { emits: vec![message("child")], ..complete(&batch, 0) };
        fixture.settle_all(&[settlement, complete(&batch, 1)]).await;
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("message").await, sql.count("owed").await), (2, 0));
    }

    async fn a_refused_emit_leaves_the_whole_group_undone(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2"]).await;
        let batch = fixture.claim_some(subscription).await;
        let large = laneway_core::NewMessage {
            payload: vec![b'x'; PAYLOAD_BYTES_MAX as usize + 1].into(),
            ..message("large")
        };
        let group = [with_effects(complete(&batch, 0)), Settlement { emits: vec![large], ..complete(&batch, 1) }];
        match fixture.store.settle(&group).await {
            Err(laneway_core::StoreError::Refused(text)) => {
                assert!(text.contains(&PAYLOAD_BYTES_MAX.to_string()), "{text}")
            }
            other => panic!("{other:?}"),
        }
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("owed").await, sql.count("message").await, sql.count("marker").await), (2, 2, 0));
        assert_eq!(fixture.counter("count").await, 0);
        fixture.settle_all(&group[..1]).await;
    }
}
