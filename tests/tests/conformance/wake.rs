//! Behaviours 1, 5: who is woken, and how often. Waking is only for speed, so each test also holds what must not
//! wake.

use std::time::Duration;

use laneway_core::{NewMessage, Store, SubscriptionId};
use tokio::time::{Instant, timeout, timeout_at};

use crate::fixture::*;

/// How long a wake-up that must not come is waited for.
const SETTLED: Duration = Duration::from_millis(400);

/// Waits for one wake-up, which must come, and then for another, which must not.
async fn is_woken_once(store: &dyn Store, subscription: SubscriptionId) {
    timeout(PATIENCE, store.woken(subscription)).await.expect("a wake-up");
    assert_eq!(wakes(store, subscription).await, 0, "it came more than once");
}

/// Wake-ups within a while.
async fn wakes(store: &dyn Store, subscription: SubscriptionId) -> u32 {
    let deadline = Instant::now() + SETTLED;
    let mut count = 0;
    while timeout_at(deadline, store.woken(subscription)).await.is_ok() {
        count += 1;
    }
    count
}

conformance! {
    async fn a_commit_wakes_the_node_and_every_other(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let other = fixture.another_node().await;
        for store in [&fixture.store, &other] {
            wakes(&**store, subscription).await;
        }
        fixture.enqueue_ids(&["m"]).await;
        // The second wait comes late: a wake-up is remembered until somebody waits.
        for store in [&fixture.store, &other] {
            is_woken_once(&**store, subscription).await;
        }
    }

    async fn a_plain_insert_wakes(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        wakes(&*fixture.store, subscription).await;
        let mut sql = fixture.sql().await;
        sql.run("insert into @message (topic, payload) values ('t.x', '{}')").await;
        is_woken_once(&*fixture.store, subscription).await;
    }

    async fn a_bulk_insert_wakes_once(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        wakes(&*fixture.store, subscription).await;
        let mut sql = fixture.sql().await;
        sql.run("begin").await;
        for _ in 0..10 {
            let rows = vec!["('t.x', '{}')"; 100].join(", ");
            sql.run(&format!("insert into @message (topic, payload) values {rows}")).await;
        }
        sql.run("commit").await;
        is_woken_once(&*fixture.store, subscription).await;
        let messages: Vec<NewMessage> = (0..500).map(|number| message(&format!("m{number}"))).collect();
        fixture.enqueue(&messages).await;
        is_woken_once(&*fixture.store, subscription).await;
    }

    async fn a_rolled_back_insert_wakes_nobody(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        wakes(&*fixture.store, subscription).await;
        let mut sql = fixture.sql().await;
        sql.run("begin").await;
        sql.run("insert into @message (topic, payload) values ('t.x', '{}')").await;
        sql.run("rollback").await;
        assert_eq!(wakes(&*fixture.store, subscription).await, 0);
        fixture.enqueue_ids(&["committed"]).await;
        is_woken_once(&*fixture.store, subscription).await;
    }

    async fn a_message_due_in_the_future_wakes_nobody_yet(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        wakes(&*fixture.store, subscription).await;
        fixture.enqueue(&[NewMessage { delay: Some(HOUR), ..message("later") }]).await;
        assert_eq!(wakes(&*fixture.store, subscription).await, 0);
        fixture.enqueue_ids(&["now"]).await;
        is_woken_once(&*fixture.store, subscription).await;
    }

    async fn a_message_for_another_subscription_wakes_nobody_else(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "u.>")]).await;
        wakes(&*fixture.store, subscriptions[1]).await;
        fixture.enqueue_ids(&["m"]).await;
        assert_eq!(wakes(&*fixture.store, subscriptions[1]).await, 0);
    }

    async fn an_emitted_message_wakes_its_subscription(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.child")]).await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscriptions[0]).await;
        wakes(&*fixture.store, subscriptions[1]).await;
        let child = NewMessage { topic: laneway_core::Topic::parse("t.child").unwrap(), ..message("child") };
        let mut settlement = complete(&batch, 0);
        settlement.emits.push(child);
        fixture.settle_all(&[settlement]).await;
        is_woken_once(&*fixture.store, subscriptions[1]).await;
    }

    async fn a_release_wakes_or_is_seen_by_the_next_poll(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, laneway_core::Verdict::RELEASE)]).await;
        assert!(fixture.another_node().await.claim(request(subscription)).await.unwrap().is_some());
    }
}
