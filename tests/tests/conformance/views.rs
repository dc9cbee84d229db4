//! What operators are shown.

use std::time::Duration;

use laneway_core::{
    COUNTED_MAX, ClaimRequest, ErrorText, Lane, LaneStatus, MessageFilter, MessageId, MessageStatus, NewMessage,
    Priority, Reason, SubscriptionStatus, Topic, Verdict,
};

use crate::fixture::*;

fn dead() -> Verdict {
    Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("x"), plugin: None }
}

fn lane(status: &SubscriptionStatus, lane: Lane) -> &LaneStatus {
    status.lanes.iter().find(|one| one.lane == lane).unwrap_or_else(|| panic!("no {lane:?} in {status:?}"))
}

conformance! {
    async fn counting_a_long_backlog_stops(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let rows = i64::from(COUNTED_MAX) + 5_000;
        let series = if fixture.is_sqlite() {
            format!("(with recursive n(n) as (select 1 union all select n + 1 from n where n < {rows}) select n from n)")
        } else {
            format!("generate_series(1, {rows}) n(n)")
        };
        fixture.sql().await.run(&format!("insert into @message (topic, payload) select 't.x', '' from {series}")).await;
        let status = fixture.store.status().await.unwrap();
        let primary = lane(&status.subscriptions[0], Lane::Primary);
        assert_eq!((primary.due, primary.more), (u64::from(COUNTED_MAX) + 1, true));
        assert!(primary.oldest_due_seconds.is_some());
        assert!(!lane(&status.subscriptions[0], Lane::Backfill).more);
        assert!(fixture.claim(subscription).await.is_some());
        let status = fixture.store.status().await.unwrap();
        assert_eq!(lane(&status.subscriptions[0], Lane::Primary).leased, 10);
    }

    async fn the_status_counts_by_subscription_and_lane(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "u.>")]).await;
        fixture
            .enqueue(&[
                message("due"),
                message("dead"),
                message("leased"),
                NewMessage { delay: Some(HOUR), ..message("delayed") },
                NewMessage { priority: Priority::BULK, ..message("bulk-1") },
                NewMessage { priority: Priority::BULK, ..message("bulk-2") },
            ])
            .await;
        let batch = fixture.claim_some(subscriptions[0]).await;
        assert_eq!(ids(&batch), ["due", "dead", "leased"]);
        fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE), settlement(&batch, 1, dead())]).await;
        assert_eq!(fixture.store.heartbeat(&name("node-1"), HOUR).await.unwrap(), 1);
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(fixture.store.heartbeat(&name("node-2"), HOUR).await.unwrap(), 2);
        let lately = fixture.store.heartbeat(&name("node-2"), Duration::from_millis(30)).await.unwrap();
        assert_eq!(lately, 1, "the other has not been seen for longer");

        let status = fixture.store.status().await.unwrap();
        let names: Vec<&str> = status.subscriptions.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let a = &status.subscriptions[0];
        assert_eq!((a.pattern.as_str(), a.kind.as_str(), a.active, a.dead_letters), ("t.>", "handler", true, 1));
        let (primary, backfill) = (lane(a, Lane::Primary), lane(a, Lane::Backfill));
        assert_eq!((primary.due, primary.leased, primary.delayed), (1, 1, 1));
        assert_eq!((backfill.due, backfill.leased, backfill.delayed), (2, 0, 0));
        let age = backfill.oldest_due_seconds.expect("something is due");
        assert!((0.05..60.0).contains(&age), "{age}");
        let b = &status.subscriptions[1];
        for one in Lane::ALL {
            assert_eq!((lane(b, one).due, lane(b, one).leased, lane(b, one).delayed), (0, 0, 0));
            assert_eq!(lane(b, one).oldest_due_seconds, None);
        }
        let nodes: Vec<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(nodes, ["node-2", "node-1"]);
        assert_eq!(
            status.topology_revision,
            fixture.store.topology().await.unwrap().map(|applied| applied.revision)
        );
        if fixture.is_sqlite() {
            assert_eq!(status.messages, 6);
        }
    }

    async fn a_message_is_pending_then_processing_then_processed(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture
            .enqueue(&[NewMessage { key: Some("k".to_owned()), tenant: Some("acme".to_owned()), ..message("m") }])
            .await;
        let id = MessageId::parse("m").unwrap();
        let status = async || fixture.store.message(&id).await.unwrap().unwrap().status;
        assert_eq!(status().await, MessageStatus::Pending);
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(status().await, MessageStatus::Processing);

        let view = fixture.store.message(&id).await.unwrap().unwrap();
        assert_eq!(
            (view.topic.as_str(), view.key.as_deref(), view.tenant.as_deref()),
            ("t.x", Some("k"), Some("acme"))
        );
        assert_eq!((view.payload.as_deref(), view.payload_bytes), (Some("{\"id\":\"m\"}"), 10));
        let [delivery] = &view.deliveries[..] else { panic!("{view:?}") };
        assert_eq!((delivery.subscription.as_str(), delivery.lane), ("handler", Lane::Primary));
        assert_eq!((delivery.attempt, delivery.leased, delivery.last_error.as_deref()), (1, true, None));

        let retry = Verdict::Retry { delay: HOUR, counted: true, error: None };
        fixture.settle_all(&[settlement(&batch, 0, retry)]).await;
        assert_eq!(status().await, MessageStatus::Pending);
        fixture.sql().await.make_due("true").await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&complete_all(&batch)).await;
        assert_eq!(status().await, MessageStatus::Processed);
        assert!(fixture.store.message(&id).await.unwrap().unwrap().deliveries.is_empty());
    }

    async fn a_message_with_several_deliveries_has_the_status_of_the_least_finished(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.x"), ("c", "t.x")]).await;
        fixture.enqueue_ids(&["m"]).await;
        let id = MessageId::parse("m").unwrap();
        let status = async || fixture.store.message(&id).await.unwrap().unwrap().status;
        let a = fixture.claim_some(subscriptions[0]).await;
        fixture.settle_all(&[settlement(&a, 0, dead())]).await;
        assert_eq!(status().await, MessageStatus::Pending);
        let b = fixture.claim_some(subscriptions[1]).await;
        assert_eq!(status().await, MessageStatus::Processing);
        fixture.settle_all(&complete_all(&b)).await;
        let c = fixture.claim_some(subscriptions[2]).await;
        fixture.settle_all(&complete_all(&c)).await;
        assert_eq!(status().await, MessageStatus::Failed);
    }

    async fn an_unknown_message_is_none(fixture: &Fixture) {
        assert_eq!(fixture.store.message(&MessageId::parse("unknown").unwrap()).await.unwrap(), None);
        assert_eq!(
            fixture.store.messages(&MessageFilter { limit: 10, ..MessageFilter::default() }).await.unwrap(),
            []
        );
    }

    async fn a_payload_that_is_no_text_is_shown_escaped(fixture: &Fixture) {
        fixture.enqueue(&[NewMessage { payload: vec![b'a', 0xff, b'b'].into(), ..message("m") }]).await;
        let view = fixture.store.message(&MessageId::parse("m").unwrap()).await.unwrap().unwrap();
        let shown = view.payload.unwrap();
        assert!(
            shown.starts_with('a') && shown.ends_with('b') && shown.to_lowercase().contains("\\xff"),
            "{shown}"
        );
        assert_eq!(view.payload_bytes, 3);
    }

    async fn messages_are_listed_newest_first_and_filtered(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let other = NewMessage { topic: Topic::parse("t.y").unwrap(), ..message("m2") };
        fixture.enqueue(&[message("m1"), other, message("m3"), message("m4")]).await;
        let batch = fixture.store.claim(ClaimRequest { limit: 3, ..request(subscription) }).await.unwrap().unwrap();
        fixture.settle_all(&[complete(&batch, 0), settlement(&batch, 1, dead())]).await;
        let list = async |filter: MessageFilter| -> Vec<String> {
            let messages = fixture.store.messages(&filter).await.unwrap();
            assert!(messages.iter().all(|one| filter.status.is_none_or(|status| one.status == status)));
            messages.iter().map(|one| one.id.to_string()).collect()
        };
        let all = MessageFilter { limit: 10, ..MessageFilter::default() };
        assert_eq!(list(all.clone()).await, ["m4", "m3", "m2", "m1"]);
        assert_eq!(list(MessageFilter { limit: 2, ..all.clone() }).await, ["m4", "m3"]);
        assert_eq!(
            list(MessageFilter { topic: Some(Topic::parse("t.x").unwrap()), ..all.clone() }).await,
            ["m4", "m3", "m1"]
        );
        for (status, wanted) in [
            (MessageStatus::Pending, "m4"),
            (MessageStatus::Processing, "m3"),
            (MessageStatus::Failed, "m2"),
            (MessageStatus::Processed, "m1"),
        ] {
            assert_eq!(list(MessageFilter { status: Some(status), ..all.clone() }).await, [wanted], "{status:?}");
        }
    }

    async fn round_trips_are_counted(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let before = fixture.store.round_trips();
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&complete_all(&batch)).await;
        let spent = fixture.store.round_trips() - before;
        assert!((3..200).contains(&spent), "{spent}");
    }

    async fn two_living_nodes_of_one_name_are_two_and_each_is_told(fixture: &Fixture) {
        let store = &*fixture.store;
        let draw = |place: &str| laneway_core::Node::draw(name("twin"), place.to_owned());
        let (one, other) = (draw("host a"), draw("host b"));
        assert_eq!(store.heartbeat(&one.id, HOUR).await.unwrap(), 1);
        assert_eq!(store.greet(&one, HOUR).await.unwrap(), []);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(store.heartbeat(&other.id, HOUR).await.unwrap(), 2);
        // The first may have crashed a moment ago: only its next sign of life tells.
        assert_eq!(store.greet(&other, HOUR).await.unwrap(), []);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(store.greet(&one, HOUR).await.unwrap(), std::slice::from_ref(&other));
        assert_eq!(store.heartbeat(&one.id, HOUR).await.unwrap(), 2);
        assert_eq!(store.greet(&other, HOUR).await.unwrap(), std::slice::from_ref(&one));

        let status = store.status().await.unwrap();
        let nodes: Vec<_> = status.nodes.iter().map(|node| (node.name.as_str(), node.place.as_deref())).collect();
        assert_eq!(nodes, [("twin", Some("host a")), ("twin", Some("host b"))]);
        // A node of another name, and one that has stopped, are none.
        let third = laneway_core::Node::draw(name("third"), "host c".to_owned());
        store.heartbeat(&third.id, HOUR).await.unwrap();
        assert_eq!(store.greet(&third, HOUR).await.unwrap(), []);
        store.sign_off(&one.id).await.unwrap();
        assert_eq!(store.greet(&other, HOUR).await.unwrap(), []);
    }

    async fn a_node_of_an_earlier_version_is_counted_and_told_beside_one_of_its_name(fixture: &Fixture) {
        let store = &*fixture.store;
        let node = laneway_core::Node::draw(name("twin"), "host a".to_owned());
        store.heartbeat(&node.id, HOUR).await.unwrap();
        store.greet(&node, HOUR).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        // As such a version writes it, again and again.
        let mut sql = fixture.sql().await;
        for _ in 0..2 {
            sql.run("insert into @node (name, seen_at) values ('twin', now()) \
                     on conflict (name) do update set seen_at = excluded.seen_at").await;
        }
        assert_eq!(store.heartbeat(&node.id, HOUR).await.unwrap(), 2);
        let namesakes = store.greet(&node, HOUR).await.unwrap();
        assert_eq!(namesakes.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["twin"]);
        // As it counts.
        let count = sql.number("select count(*) from @node where name <> 'twin'").await;
        assert_eq!(count, 1);
    }

    async fn nodes_that_died_long_ago_are_forgotten(fixture: &Fixture) {
        let store = &*fixture.store;
        let (dead, node) = (name("dead"), laneway_core::Node::draw(name("living"), String::new()));
        store.heartbeat(&dead, HOUR).await.unwrap();
        let mut sql = fixture.sql().await;
        let day = sql.span(HOUR * 25);
        sql.run(&format!("update @node set seen_at = seen_at - {day}")).await;
        store.heartbeat(&node.id, HOUR).await.unwrap();
        store.greet(&node, HOUR).await.unwrap();
        let left: Vec<_> = store.status().await.unwrap().nodes.into_iter().map(|node| node.id).collect();
        assert_eq!(left, [node.id]);
    }
}
