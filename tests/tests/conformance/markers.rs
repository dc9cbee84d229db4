//! Behaviours 28, 29, 31: a marker commits with the effects, and keeps them from happening twice.

use std::sync::Arc;

use laneway_core::{ClaimRequest, MarkerMetadata, MessageId, SettleReport, Settlement, Verdict};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::fixture::*;

/// The delivery of a settled message once more, as after a replay.
async fn owe_again(fixture: &Fixture, subscription: laneway_core::SubscriptionId) {
    let mut sql = fixture.sql().await;
    let id = if fixture.is_sqlite() {
        ("id, ", "seq * 1048576 + ".to_owned() + &subscription.to_string() + ", ")
    } else {
        ("", String::new())
    };
    sql.run(&format!(
        "insert into @delivery ({} subscription_id, lane, priority, message_seq, available_at)
         select {} {subscription}, 0, 0, seq, now() from @message where topic = 't.x'",
        id.0, id.1
    ))
    .await;
}

fn counted(settlement: Settlement, key: &str) -> Settlement {
    Settlement { adds: vec![add(key, 1)], ..settlement }
}

conformance! {
    async fn a_claim_tells_what_a_marker_shows_processed(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a"]).await;
        let checking = ClaimRequest { check_markers: true, ..request(subscription) };
        let batch = fixture.store.claim(checking).await.unwrap().unwrap();
        assert!(!batch.deliveries[0].processed);
        fixture.settle_all(&complete_all(&batch)).await;
        owe_again(fixture, subscription).await;
        fixture.enqueue_ids(&["b"]).await;
        let batch = fixture.store.claim(checking).await.unwrap().unwrap();
        let mut processed: Vec<(&str, bool)> =
            batch.deliveries.iter().map(|delivery| (delivery.message.id.as_str(), delivery.processed)).collect();
        processed.sort_unstable();
        assert_eq!(processed, [("a", true), ("b", false)]);
    }

    async fn a_marker_says_what_was_noted(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["plain", "noted"]).await;
        let batch = fixture.claim_some(subscription).await;
        let note = "{\"carrier\":\"U'A \\\"\\ud83d\\ude00\",\"n\":[1,2.5,null]}";
        let metadata = Some(MarkerMetadata::parse(note).unwrap());
        fixture.settle_all(&[complete(&batch, 0), Settlement { metadata, ..complete(&batch, 1) }]).await;
        for (id, wanted) in [("plain", None), ("noted", Some(note))] {
            let message = fixture.store.message(&MessageId::parse(id).unwrap()).await.unwrap().unwrap();
            let [marker] = &message.markers[..] else { panic!("{message:?}") };
            assert_eq!(marker.subscription.as_str(), "handler");
            assert_eq!(marker.metadata, wanted.map(|note| serde_json::from_str(note).unwrap()));
        }
    }

    async fn a_duplicate_is_removed_and_has_no_effect(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[counted(complete(&batch, 0), "n")]).await;
        owe_again(fixture, subscription).await;
        let batch = fixture.claim_some(subscription).await;
        let mut again = counted(complete(&batch, 0), "n");
        again.emits.push(message("child"));
        assert_eq!(fixture.settle(&[again]).await, (vec![], vec![0]));
        let mut sql = fixture.sql().await;
        assert_eq!((fixture.counter("n").await, sql.count("owed").await, sql.count("marker").await), (1, 0, 1));
        assert_eq!(sql.count("message").await, 1);
    }

    async fn a_duplicate_with_state_is_a_conflict_and_nothing_happens(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&complete_all(&batch)).await;
        owe_again(fixture, subscription).await;
        fixture.enqueue_ids(&["other"]).await;
        let batch = fixture.claim_some(subscription).await;
        let group: Vec<Settlement> = (0..2)
            .map(|position| Settlement {
                writes: vec![write("k", Some("v"), position as i64 + 1)],
                ..complete(&batch, position)
            })
            .collect();
        let duplicate = batch.deliveries.iter().position(|delivery| delivery.message.id.as_str() == "m").unwrap();
        match fixture.store.settle(&group).await.unwrap() {
            SettleReport::Conflict(conflict) => {
                assert_eq!((conflict.lost, conflict.duplicates, conflict.stale), (vec![], vec![duplicate], vec![]));
            }
            committed => panic!("{committed:?}"),
        }
        assert_eq!(fixture.state("k").await, None);
        assert_eq!(fixture.sql().await.count("owed").await, 2);
        // Without its state it is settled as the duplicate that it is.
        let bare = settlement(&batch, duplicate, Verdict::Complete { mark: true });
        assert_eq!(fixture.settle(&[bare]).await, (vec![], vec![0]));
    }

    async fn without_marks_nothing_is_deduplicated(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        for _ in 0..2 {
            let batch = fixture.claim_some(subscription).await;
            fixture.settle_all(&[counted(settlement(&batch, 0, Verdict::Complete { mark: false }), "n")]).await;
            owe_again(fixture, subscription).await;
        }
        assert_eq!((fixture.counter("n").await, fixture.sql().await.count("marker").await), (2, 0));
    }

    async fn two_subscriptions_deduplicate_independently(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.x")]).await;
        fixture.enqueue_ids(&["m"]).await;
        let a = fixture.claim_some(subscriptions[0]).await;
        fixture.settle_all(&[counted(complete(&a, 0), "a")]).await;
        let b = fixture
            .store
            .claim(ClaimRequest { check_markers: true, ..request(subscriptions[1]) })
            .await
            .unwrap()
            .unwrap();
        assert!(!b.deliveries[0].processed, "the other one's marker is not ours");
        fixture.settle_all(&[counted(complete(&b, 0), "b")]).await;
        assert_eq!((fixture.counter("a").await, fixture.counter("b").await), (1, 1));
        assert_eq!(fixture.sql().await.count("marker").await, 2);
    }

    async fn a_marker_outlives_a_topology_without_its_subscription(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[counted(complete(&batch, 0), "n")]).await;
        fixture.apply(vec![]).await;
        assert_eq!(fixture.subscribe().await, subscription, "identity is the declared name");
        owe_again(fixture, subscription).await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(fixture.settle(&[counted(complete(&batch, 0), "n")]).await, (vec![], vec![0]));
        assert_eq!(fixture.counter("n").await, 1);
    }

    async fn concurrent_settlements_of_one_lease_have_one_effect(fixture: &Fixture) {
        const ROUNDS: usize = 20;
        const CALLERS: usize = 6;
        let subscription = fixture.subscribe().await;
        let nodes = [Arc::clone(&fixture.store), fixture.another_node().await];
        for round in 0..ROUNDS {
            fixture.enqueue_ids(&[&format!("m{round}-1"), &format!("m{round}-2")]).await;
            let batch = fixture.claim_some(subscription).await;
            let mut group = vec![counted(complete(&batch, 0), "n"), counted(complete(&batch, 1), "n")];
            group[0].emits.push(laneway_core::NewMessage {
                topic: laneway_core::Topic::parse("nobody").unwrap(),
                ..message(&format!("child{round}"))
            });
            let barrier = Arc::new(Barrier::new(CALLERS));
            let mut callers = JoinSet::new();
            for caller in 0..CALLERS {
                let (store, barrier, mut group) =
                    (Arc::clone(&nodes[caller % 2]), Arc::clone(&barrier), group.clone());
                if caller % 3 == 0 {
                    group.reverse();
                }
                callers.spawn(async move {
                    barrier.wait().await;
                    match store.settle(&group).await.unwrap() {
                        SettleReport::Committed { lost, duplicates } => 2 - lost.len() - duplicates.len(),
                        SettleReport::Conflict(conflict) => panic!("{conflict:?}"),
                    }
                });
            }
            assert_eq!(callers.join_all().await.into_iter().sum::<usize>(), 2, "round {round}");
        }
        assert_eq!(fixture.counter("n").await, 2 * ROUNDS as i64);
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("marker").await, sql.count("owed").await), (2 * ROUNDS as i64, 0));
    }

    async fn a_marker_that_another_commits_meanwhile_makes_a_duplicate(fixture: &Fixture) {
        // The marker is not there at the claim, and is at the settlement: the check at the claim is not enough.
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture
            .store
            .claim(ClaimRequest { check_markers: true, ..request(subscription) })
            .await
            .unwrap()
            .unwrap();
        fixture.sql().await.run(&format!(
            "insert into @marker (subscription_id, message_id, processed_at) values ({subscription}, 'm', now())"
        )).await;
        assert_eq!(fixture.settle(&[counted(complete(&batch, 0), "n")]).await, (vec![], vec![0]));
        assert_eq!(fixture.counter("n").await, 0);
    }
}
