//! Applying topologies: what changes, what stays.

use laneway_core::{Priority, Topology};

use crate::fixture::*;

conformance! {
    async fn there_is_no_topology_before_the_first(fixture: &Fixture) {
        assert_eq!(fixture.store.topology().await.unwrap(), None);
        assert_eq!(fixture.store.status().await.unwrap().topology_revision, None);
        fixture.enqueue_ids(&["m"]).await;
        assert_eq!(fixture.store.status().await.unwrap().unrouted, 1);
    }

    async fn applying_the_active_topology_again_changes_nothing(fixture: &Fixture) {
        let topology = Topology {
            subscriptions: vec![subscription("a", "t.>"), subscription("b", "t.x")],
            payload_bytes_max: PAYLOAD_BYTES_MAX,
        };
        let first = fixture.store.apply(&topology).await.unwrap();
        assert_eq!(first.canonical, topology.canonical());
        assert_eq!(first.subscriptions.len(), 2);
        assert_eq!(fixture.store.apply(&topology).await.unwrap(), first);
        assert_eq!(fixture.another_node().await.apply(&topology).await.unwrap(), first);
        assert_eq!(fixture.store.topology().await.unwrap(), Some(first));
    }

    async fn a_changed_topology_counts_up_and_keeps_the_numbers_of_names(fixture: &Fixture) {
        let first = fixture.apply(vec![subscription("a", "t.>"), subscription("b", "t.x")]).await;
        let mut changed = subscription("b", "t.y");
        changed.lane_threshold = Priority::HIGH;
        let second = fixture.apply(vec![subscription("c", "t.x"), changed]).await;
        assert!(second.revision > first.revision);
        assert_eq!(number_of(&second, "b"), number_of(&first, "b"));
        assert_eq!(second.subscriptions.len(), 2, "{second:?}");
        assert_eq!(fixture.store.topology().await.unwrap(), Some(second.clone()));
        let third = fixture.apply(vec![subscription("a", "t.>"), subscription("b", "t.x")]).await;
        assert!(third.revision > second.revision, "back to an earlier topology is a change too");
        assert_eq!(number_of(&third, "a"), number_of(&first, "a"));
    }

    async fn a_subscription_that_is_no_longer_named_receives_nothing_and_keeps_its_deliveries(fixture: &Fixture) {
        let first = fixture.apply(vec![subscription("a", "t.>"), subscription("b", "t.>")]).await;
        let (a, b) = (number_of(&first, "a"), number_of(&first, "b"));
        fixture.enqueue_ids(&["before"]).await;
        fixture.apply(vec![subscription("b", "t.>")]).await;
        fixture.enqueue_ids(&["between"]).await;
        assert_eq!(ids(&fixture.claim_some(b).await), ["before", "between"]);
        let status = fixture.store.status().await.unwrap();
        let of =
            |name: &str| status.subscriptions.iter().find(|one| one.name.as_str() == name).map(|one| one.active);
        assert_eq!((of("a"), of("b")), (Some(false), Some(true)));
        fixture.apply(vec![subscription("a", "t.>"), subscription("b", "t.>")]).await;
        fixture.enqueue_ids(&["after"]).await;
        assert_eq!(ids(&fixture.claim_some(a).await), ["before", "after"]);
    }

    async fn a_new_pattern_threshold_and_limit_hold_for_the_next_message(fixture: &Fixture) {
        let first = fixture.apply(vec![subscription("a", "t.x")]).await;
        let a = number_of(&first, "a");
        let mut other = subscription("a", "u.>");
        other.lane_threshold = Priority::HIGH;
        fixture.store.apply(&Topology { subscriptions: vec![other], payload_bytes_max: 4 }).await.unwrap();
        let mut sql = fixture.sql().await;
        sql.run("insert into @message (id, topic, payload) values ('old', 't.x', '{}'), ('new', 'u.x', '{}')")
            .await;
        assert!(fixture.claim(a).await.is_none(), "normal is below the new threshold");
        let backfill = laneway_core::ClaimRequest { lane: laneway_core::Lane::Backfill, ..request(a) };
        assert_eq!(ids(&fixture.store.claim(backfill).await.unwrap().unwrap()), ["new"]);
        sql.refusal("insert into @message (topic, payload) values ('u.x', '12345')").await;
    }

    async fn an_empty_topology_is_one(fixture: &Fixture) {
        let first = fixture.apply(vec![subscription("a", "t.x")]).await;
        let none = fixture.apply(vec![]).await;
        assert!(none.revision > first.revision);
        assert_eq!(none.subscriptions, []);
        fixture.enqueue_ids(&["m"]).await;
        assert_eq!(fixture.store.status().await.unwrap().unrouted, 1);
    }

    async fn nodes_that_apply_at_once_agree(fixture: &Fixture) {
        let nodes = [fixture.store.clone(), fixture.another_node().await];
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let store = nodes[task % 2].clone();
            tasks.spawn(async move {
                let topology = Topology {
                    subscriptions: vec![subscription("a", "t.>"), subscription("b", "t.x")],
                    payload_bytes_max: PAYLOAD_BYTES_MAX,
                };
                store.apply(&topology).await.unwrap()
            });
        }
        let answers = tasks.join_all().await;
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        assert_eq!(fixture.sql().await.count("topology").await, 1);
    }
}
