//! §4 of the design: state commits with the settlement, in chains within a group, and conflicts between nodes are
//! found.

use std::sync::Arc;

use laneway_core::{Batch, SettleReport, Settlement, StateVersion};
use tokio::task::JoinSet;

use crate::fixture::*;

async fn one_in_hand(fixture: &Fixture, subscription: laneway_core::SubscriptionId, id: &str) -> Batch {
    fixture.enqueue_ids(&[id]).await;
    let batch = fixture.claim_some(subscription).await;
    assert_eq!(ids(&batch), [id]);
    batch
}

conformance! {
    async fn a_write_is_read_back_with_its_version(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let batch = one_in_hand(fixture, subscription, "m").await;
        let value = vec![0_u8, 255, 39, 10];
        let mut write = write("k ä'", None, i64::MIN);
        write.value = Some(value.clone().into());
        fixture
            .settle_all(&[Settlement {
                reads: vec![read("k ä'", None)],
                writes: vec![write],
                ..complete(&batch, 0)
            }])
            .await;
        let entry = fixture.store.state(&namespace(), "k ä'").await.unwrap().unwrap();
        assert_eq!((&entry.value[..], entry.version), (&value[..], StateVersion(i64::MIN)));
        assert_eq!(fixture.store.state(&name("other"), "k ä'").await.unwrap(), None, "namespaces are apart");
    }

    async fn a_chain_in_one_group_commits_as_one(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b", "c"]).await;
        let batch = fixture.claim_some(subscription).await;
        let link = |position: usize, seen: Option<i64>| Settlement {
            reads: vec![read("k", seen.map(StateVersion))],
            writes: vec![write("k", Some(&position.to_string()), position as i64 + 10)],
            ..complete(&batch, position)
        };
        fixture.settle_all(&[link(0, None), link(1, Some(10)), link(2, Some(11))]).await;
        assert_eq!(
            (fixture.state("k").await.as_deref(), fixture.version("k").await),
            (Some("2"), Some(StateVersion(12)))
        );
    }

    async fn a_chain_that_reads_what_was_replaced_before_it_is_stale(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b"]).await;
        let batch = fixture.claim_some(subscription).await;
        let link = |position: usize| Settlement {
            reads: vec![read("k", None)],
            writes: vec![write("k", Some("x"), position as i64 + 10)],
            ..complete(&batch, position)
        };
        assert_eq!(fixture.settle_stale(&*fixture.store, &[link(0), link(1)]).await, ["k"]);
        assert_eq!(fixture.state("k").await, None);
        assert_eq!(fixture.sql().await.count("owed").await, 2);
    }

    async fn a_conflict_between_two_nodes_is_reported_and_nothing_is_committed(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.x")]).await;
        fixture.enqueue_ids(&["m1", "m2"]).await;
        let other = fixture.another_node().await;
        let (a, b) = (
            fixture.claim_some(subscriptions[0]).await,
            other.claim(request(subscriptions[1])).await.unwrap().unwrap(),
        );
        let on = |batch: &Batch, value: &str, version| Settlement {
            reads: vec![read("k", None)],
            writes: vec![write("k", Some(value), version), write("beside", Some(value), version)],
            adds: vec![add("n", 1)],
            emits: vec![laneway_core::NewMessage {
                topic: laneway_core::Topic::parse("nobody").unwrap(),
                ..message(value)
            }],
            ..complete(batch, 0)
        };
        fixture.settle_all(&[on(&a, "first", 1)]).await;
        let group = [on(&b, "second", 2), complete(&b, 1)];
        assert_eq!(fixture.settle_stale(&*other, &group).await, ["k"]);
        assert_eq!(fixture.state("k").await.as_deref(), Some("first"));
        assert_eq!(fixture.state("beside").await.as_deref(), Some("first"));
        assert_eq!(fixture.counter("n").await, 1);
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("message").await, sql.count("marker").await, sql.count("owed").await), (3, 1, 3));

        let mut again = on(&b, "second", 2);
        again.reads = vec![read("k", Some(StateVersion(1)))];
        assert_eq!(
            other.settle(&[again]).await.unwrap(),
            SettleReport::Committed { lost: vec![], duplicates: vec![] }
        );
        assert_eq!(fixture.state("k").await.as_deref(), Some("second"));
    }

    async fn a_read_without_a_write_is_checked_too(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let batch = one_in_hand(fixture, subscription, "m1").await;
        fixture.settle_all(&[Settlement { writes: vec![write("k", Some("v"), 1)], ..complete(&batch, 0) }]).await;
        let batch = one_in_hand(fixture, subscription, "m2").await;
        let depending = |seen| Settlement {
            reads: vec![read("k", seen)],
            writes: vec![write("derived", Some("x"), 5)],
            ..complete(&batch, 0)
        };
        assert_eq!(fixture.settle_stale(&*fixture.store, &[depending(None)]).await, ["k"]);
        assert_eq!(fixture.settle_stale(&*fixture.store, &[depending(Some(StateVersion(2)))]).await, ["k"]);
        fixture.settle_all(&[depending(Some(StateVersion(1)))]).await;
        assert_eq!(fixture.version("k").await, Some(StateVersion(1)), "a read changes nothing");
    }

    async fn a_delete_removes_and_reads_as_absent(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let batch = one_in_hand(fixture, subscription, "m1").await;
        fixture.settle_all(&[Settlement { writes: vec![write("k", Some("v"), 1)], ..complete(&batch, 0) }]).await;
        let batch = one_in_hand(fixture, subscription, "m2").await;
        let delete = Settlement {
            reads: vec![read("k", Some(StateVersion(1)))],
            writes: vec![write("k", None, 2)],
            ..complete(&batch, 0)
        };
        fixture.settle_all(&[delete]).await;
        assert_eq!(fixture.state("k").await, None);
        assert_eq!(fixture.sql().await.count("state").await, 0);
        let batch = one_in_hand(fixture, subscription, "m3").await;
        let recreate = Settlement {
            reads: vec![read("k", None)],
            writes: vec![write("k", Some("w"), 3)],
            ..complete(&batch, 0)
        };
        fixture.settle_all(&[recreate]).await;
        assert_eq!(fixture.state("k").await.as_deref(), Some("w"));
    }

    async fn a_key_deleted_and_written_again_is_not_the_same(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2", "m3", "reader"]).await;
        let batch = fixture.claim_some(subscription).await;
        let step = |position, value, version| Settlement {
            writes: vec![write("k", value, version)],
            ..complete(&batch, position)
        };
        fixture.settle_all(&[step(0, Some("v"), 1)]).await;
        let seen = fixture.version("k").await;
        fixture.settle_all(&[step(1, None, 2)]).await;
        fixture.settle_all(&[step(2, Some("v"), 3)]).await;
        let reader = Settlement {
            reads: vec![read("k", seen)],
            writes: vec![write("k", Some("lost update"), 4)],
            ..complete(&batch, 3)
        };
        assert_eq!(fixture.settle_stale(&*fixture.store, &[reader]).await, ["k"]);
        assert_eq!(fixture.state("k").await.as_deref(), Some("v"));
    }

    async fn a_blind_write_wins_and_a_blind_delete_of_nothing_is_none(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2", "m3"]).await;
        let batch = fixture.claim_some(subscription).await;
        let blind = |position, value, version| Settlement {
            writes: vec![write("k", value, version)],
            ..complete(&batch, position)
        };
        fixture.settle_all(&[blind(0, None, 1)]).await;
        fixture.settle_all(&[blind(1, Some("v"), 2)]).await;
        fixture.settle_all(&[blind(2, Some("w"), 3)]).await;
        assert_eq!(
            (fixture.state("k").await.as_deref(), fixture.version("k").await),
            (Some("w"), Some(StateVersion(3)))
        );
    }

    async fn state_of_many_keys_in_one_group(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let batch = one_in_hand(fixture, subscription, "m").await;
        let writes =
            (0..300).map(|number| write(&format!("k{number}"), Some(&number.to_string()), number)).collect();
        let reads = (0..300).map(|number| read(&format!("k{number}"), None)).collect();
        fixture.settle_all(&[Settlement { reads, writes, ..complete(&batch, 0) }]).await;
        assert_eq!(fixture.sql().await.count("state").await, 300);
        let batch = one_in_hand(fixture, subscription, "m2").await;
        let reads = (0..300)
            .map(|number| {
                read(&format!("k{number}"), Some(StateVersion(number ^ i64::from(number == 77 || number == 200))))
            })
            .collect();
        let mut stale = fixture.settle_stale(&*fixture.store, &[Settlement { reads, ..complete(&batch, 0) }]).await;
        stale.sort();
        assert_eq!(stale, ["k200", "k77"]);
    }

    async fn an_empty_value_is_a_value(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let batch = one_in_hand(fixture, subscription, "m").await;
        fixture.settle_all(&[Settlement { writes: vec![write("k", Some(""), 1)], ..complete(&batch, 0) }]).await;
        assert_eq!(fixture.state("k").await.as_deref(), Some(""));
    }

    async fn counters_commute_and_wrap(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        assert_eq!(fixture.counter("n").await, 0);
        fixture.enqueue_ids(&["m1", "m2", "m3"]).await;
        let batch = fixture.claim_some(subscription).await;
        let adding = |position, delta| Settlement { adds: vec![add("n", delta)], ..complete(&batch, position) };
        fixture.settle_all(&[adding(0, 5), adding(1, -7)]).await;
        assert_eq!(fixture.counter("n").await, -2);
        fixture.settle_all(&[adding(2, i64::MIN)]).await;
        assert_eq!(fixture.counter("n").await, i64::MAX - 1, "wraps at the bounds of 64 bits");
    }

    async fn a_counter_wraps_within_one_group_too(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2", "m3"]).await;
        let batch = fixture.claim_some(subscription).await;
        let deltas = [i64::MAX, i64::MAX, 3];
        let group: Vec<Settlement> = (0..3)
            .map(|position| Settlement { adds: vec![add("n", deltas[position])], ..complete(&batch, position) })
            .collect();
        fixture.settle_all(&group).await;
        assert_eq!(fixture.counter("n").await, deltas.into_iter().fold(0_i64, i64::wrapping_add));
    }

    async fn concurrent_adds_from_two_nodes_all_count(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.x"), ("c", "t.x"), ("d", "t.x")]).await;
        let messages: Vec<_> = (0..60).map(|number| message(&format!("m{number}"))).collect();
        fixture.enqueue(&messages).await;
        let nodes = [Arc::clone(&fixture.store), fixture.another_node().await];
        let mut workers = JoinSet::new();
        for (worker, subscription) in subscriptions.into_iter().enumerate() {
            let store = Arc::clone(&nodes[worker % 2]);
            workers.spawn(async move {
                while let Some(batch) = store.claim(request(subscription)).await.unwrap() {
                    // Two keys, in a different order on each worker: commits must not deadlock.
                    let mut adds = vec![add("x", 1), add("y", 2)];
                    if worker % 2 == 1 {
                        adds.reverse();
                    }
                    let group: Vec<Settlement> = (0..batch.deliveries.len())
                        .map(|position| Settlement { adds: adds.clone(), ..complete(&batch, position) })
                        .collect();
                    let report = store.settle(&group).await.unwrap();
                    assert_eq!(report, SettleReport::Committed { lost: vec![], duplicates: vec![] });
                }
            });
        }
        workers.join_all().await;
        assert_eq!((fixture.counter("x").await, fixture.counter("y").await), (240, 480));
    }

    async fn two_nodes_on_one_hot_key_lose_no_update(fixture: &Fixture) {
        const EACH: usize = 40;
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.x")]).await;
        let messages: Vec<_> = (0..EACH).map(|number| message(&format!("m{number}"))).collect();
        fixture.enqueue(&messages).await;
        let nodes = [Arc::clone(&fixture.store), fixture.another_node().await];
        let mut workers = JoinSet::new();
        for (worker, subscription) in subscriptions.into_iter().enumerate() {
            let store = Arc::clone(&nodes[worker]);
            workers.spawn(async move {
                let mut version = (worker as i64 + 1) << 32;
                while let Some(batch) = store.claim(request(subscription)).await.unwrap() {
                    for position in 0..batch.deliveries.len() {
                        loop {
                            let seen = store.state(&namespace(), "sum").await.unwrap();
                            let sum: u64 = seen
                                .as_ref()
                                .map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().parse().unwrap());
                            version += 1;
                            let settlement = Settlement {
                                reads: vec![read("sum", seen.map(|entry| entry.version))],
                                writes: vec![write("sum", Some(&(sum + 1).to_string()), version)],
                                ..complete(&batch, position)
                            };
                            match store.settle(&[settlement]).await.unwrap() {
                                SettleReport::Committed { lost, duplicates } => {
                                    assert!(lost.is_empty() && duplicates.is_empty());
                                    break;
                                }
                                SettleReport::Conflict(conflict) => {
                                    assert_eq!(conflict.stale.len(), 1, "{conflict:?}")
                                }
                            }
                        }
                    }
                }
            });
        }
        workers.join_all().await;
        assert_eq!(fixture.state("sum").await, Some((2 * EACH).to_string()));
    }
}
