//! Behaviours 17, 35 and the delays: what a claim takes, and in which order.

use std::time::Duration;

use laneway_core::{ClaimRequest, Lane, NewMessage, Ordering, Priority, Subscription, Topic, Verdict};
use laneway_testing::{Random, seed};

use crate::fixture::*;

fn with_priority(id: &str, priority: i32) -> NewMessage {
    NewMessage { priority: Priority(priority), ..message(id) }
}

conformance! {
    async fn claims_come_by_priority_then_due_time_then_sequence(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture
            .enqueue(&[
                with_priority("normal-1", 0),
                with_priority("critical-late", 100),
                with_priority("high", 50),
                with_priority("normal-2", 0),
                with_priority("critical-early", 100),
                with_priority("between", 7),
            ])
            .await;
        let mut sql = fixture.sql().await;
        let ago = sql.span(Duration::from_secs(10));
        sql.run(&format!(
            "update @delivery set available_at = now() - {ago}
             where message_seq = (select seq from @message where id = 'critical-early')"
        ))
        .await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(ids(&batch), ["critical-early", "critical-late", "high", "between", "normal-1", "normal-2"]);
    }

    async fn equal_priorities_are_first_in_first_out_across_claims(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let written: Vec<String> = (0..95).map(|number| format!("m{number:02}")).collect();
        for part in written.chunks(7) {
            fixture.enqueue(&part.iter().map(|id| message(id)).collect::<Vec<_>>()).await;
        }
        let mut claimed = Vec::new();
        while let Some(batch) = fixture.claim(subscription).await {
            claimed.extend(batch.deliveries.iter().map(|delivery| delivery.message.id.to_string()));
        }
        assert_eq!(claimed, written);
    }

    async fn any_mixture_of_priorities_comes_in_order_with_small_limits(fixture: &Fixture) {
        let mut random = Random::new(seed());
        let mut threshold_at_the_bottom = subscription("handler", "t.>");
        threshold_at_the_bottom.lane_threshold = Priority(i32::MIN);
        let subscription = number_of(&fixture.apply(vec![threshold_at_the_bottom]).await, "handler");
        let palette = [i32::MIN, i32::MIN + 1, -100, -50, -1, 0, 1, 50, 100, i32::MAX - 1, i32::MAX];
        let mut written: Vec<(i32, usize)> = (0..120)
            .map(|number| (if random.chance(0.3) { random.next() as i32 } else { *random.pick(&palette) }, number))
            .collect();
        // One transaction: all are due at one moment, so the sequence decides.
        fixture
            .enqueue(
                &written
                    .iter()
                    .map(|(priority, number)| with_priority(&number.to_string(), *priority))
                    .collect::<Vec<_>>(),
            )
            .await;
        written.sort_by_key(|&(priority, number)| (std::cmp::Reverse(priority), number));
        let mut claimed = Vec::new();
        loop {
            let limit = 1 + random.below(9) as u32;
            let Some(batch) = fixture.store.claim(ClaimRequest { limit, ..request(subscription) }).await.unwrap()
            else {
                break;
            };
            claimed.extend(batch.deliveries.iter().map(|delivery| {
                (delivery.message.priority.0, delivery.message.id.as_str().parse::<usize>().unwrap())
            }));
        }
        // Times may differ within the transaction, but only rise: within one priority the sequence decides.
        assert_eq!(claimed, written);
    }

    async fn the_threshold_itself_stays_primary_and_below_it_is_backfill(fixture: &Fixture) {
        for (threshold, priorities) in [
            (0, [-100, -50, -1, 0, 50, 100]),
            (50, [i32::MIN, 0, 49, 50, 51, i32::MAX]),
            (i32::MIN, [i32::MIN, i32::MIN + 1, -100, 0, 100, i32::MAX]),
            (i32::MAX, [i32::MIN, -100, 0, 100, i32::MAX - 1, i32::MAX]),
        ] {
            let mut one = subscription(&format!("at{threshold}"), "t.x");
            one.lane_threshold = Priority(threshold);
            let subscription = number_of(&fixture.apply(vec![one]).await, &format!("at{threshold}"));
            fixture
                .enqueue(&priorities.map(|priority| with_priority(&format!("{threshold}/{priority}"), priority)))
                .await;
            for lane in Lane::ALL {
                let found = fixture.store.claim(ClaimRequest { lane, ..request(subscription) }).await.unwrap();
                let mut found: Vec<i32> = found
                    .iter()
                    .flat_map(|batch| &batch.deliveries)
                    .inspect(|delivery| assert_eq!(delivery.lane, lane))
                    .map(|delivery| delivery.message.priority.0)
                    .collect();
                found.sort_unstable();
                let wanted: Vec<i32> = priorities
                    .into_iter()
                    .filter(|&priority| Lane::of(Priority(priority), Priority(threshold)) == lane)
                    .collect();
                assert_eq!(found, wanted, "{lane:?}, threshold {threshold}");
            }
        }
    }

    async fn a_retried_delivery_keeps_its_lane_and_priority(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&[with_priority("low", -50)]).await;
        let backfill = ClaimRequest { lane: Lane::Backfill, ..request(subscription) };
        for attempt in 1..=2 {
            assert!(fixture.claim(subscription).await.is_none(), "it is not in the primary lane");
            let batch = fixture.store.claim(backfill).await.unwrap().unwrap();
            assert_eq!((batch.deliveries[0].attempt, batch.deliveries[0].lane), (attempt, Lane::Backfill));
            let failed = Verdict::Retry { delay: Duration::ZERO, counted: true, error: None };
            fixture.settle_all(&[settlement(&batch, 0, failed)]).await;
        }
    }

    async fn a_delayed_message_is_not_claimed_early_and_next_due_tells_when(fixture: &Fixture) {
        let soon = Duration::from_secs(3);
        let subscription = fixture.subscribe().await;
        assert_eq!(fixture.store.next_due(subscription).await.unwrap(), None);
        fixture
            .enqueue(&[
                NewMessage { delay: Some(HOUR), ..message("hour") },
                NewMessage { delay: Some(HOUR / 2), priority: Priority::BULK, ..message("half-hour") },
                NewMessage { delay: Some(soon), ..message("soon") },
            ])
            .await;
        assert!(fixture.claim(subscription).await.is_none());
        let due = fixture.store.next_due(subscription).await.unwrap().expect("something is delayed");
        assert!(due <= soon, "{due:?}");
        tokio::time::sleep(due + Duration::from_millis(20)).await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(ids(&batch), ["soon"]);
        fixture.settle_all(&complete_all(&batch)).await;
        let due = fixture.store.next_due(subscription).await.unwrap().expect("something is delayed");
        assert!(
            due > HOUR / 2 - Duration::from_secs(60) && due <= HOUR / 2,
            "the backfill lane counts too: {due:?}"
        );
    }

    async fn one_look_tells_when_each_subscription_has_something_due(fixture: &Fixture) {
        let topics = [("idle", "a.x"), ("now", "b.x"), ("later", "c.x"), ("in-work", "d.x"), ("both", "e.x")];
        let subscriptions = fixture.subscribe_to(&topics).await;
        assert!(fixture.store.upcoming().await.unwrap().is_empty(), "nothing was ever written");
        let on = |id: &str, topic: &str, delay: Option<Duration>| NewMessage {
            topic: Topic::parse(topic).unwrap(),
            delay,
            ..message(id)
        };
        let messages = [
            on("1", "b.x", None),
            on("2", "c.x", Some(HOUR)),
            on("3", "d.x", None),
            on("4", "e.x", Some(HOUR)),
            NewMessage { priority: Priority::BULK, ..on("5", "e.x", None) },
        ];
        fixture.enqueue(&messages).await;
        let leased = ClaimRequest { lease: HOUR / 2, ..request(subscriptions[3]) };
        fixture.store.claim(leased).await.unwrap().unwrap();
        let upcoming = fixture.store.upcoming().await.unwrap();
        let about = |wanted: Duration| move |due: Duration| due <= wanted && due + Duration::from_secs(60) > wanted;
        let due = |place: usize| {
            let found = upcoming.iter().find(|(id, _)| *id == subscriptions[place]);
            found.map(|(_, due)| *due)
        };
        assert_eq!((upcoming.len(), due(0)), (4, None));
        assert_eq!(due(1), Some(Duration::ZERO));
        assert!(due(2).is_some_and(about(HOUR)), "{:?}", due(2));
        assert!(due(3).is_some_and(about(HOUR / 2)), "the end of the lease: {:?}", due(3));
        assert_eq!(due(4), Some(Duration::ZERO), "the backfill lane counts too");
    }

    async fn what_waits_behind_another_of_its_key_is_not_told_as_due(fixture: &Fixture) {
        let applied = fixture.apply(vec![Subscription { ordering: Ordering::Key, ..subscription("s", "t.x") }]).await;
        let subscription = number_of(&applied, "s");
        let keyed = |id: &str| NewMessage { key: Some("k".to_owned()), ..message(id) };
        fixture.enqueue(&[keyed("1"), keyed("2")]).await;
        let claim = ClaimRequest { ordered: true, lease: HOUR, ..request(subscription) };
        let batch = fixture.store.claim(claim).await.unwrap().unwrap();
        assert!(fixture.store.claim(claim).await.unwrap().is_none());
        let upcoming = fixture.store.upcoming().await.unwrap();
        assert!(upcoming.iter().all(|(_, due)| *due > HOUR / 2), "{upcoming:?}");
        fixture.settle_all(&complete_all(&batch)).await;
        assert_eq!(fixture.store.upcoming().await.unwrap(), [(subscription, Duration::ZERO)], "its turn has come");
    }

    async fn the_retry_that_is_due_next_is_told(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        let retry = Verdict::Retry { delay: Duration::from_secs(100), counted: true, error: None };
        fixture.settle_all(&[settlement(&batch, 0, retry)]).await;
        let due = fixture.store.next_due(subscription).await.unwrap().expect("the retry");
        assert!(due > Duration::from_secs(60) && due <= Duration::from_secs(100), "{due:?}");
        assert!(fixture.claim(subscription).await.is_none());
        let mut sql = fixture.sql().await;
        sql.make_due("attempt = 1").await;
        assert_eq!(fixture.claim_some(subscription).await.deliveries[0].attempt, 2);
    }

    async fn one_delays_no_other(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b"]).await;
        let batch = fixture.claim_some(subscription).await;
        let retry = Verdict::Retry { delay: HOUR, counted: true, error: None };
        fixture.settle_all(&[settlement(&batch, 0, retry), settlement(&batch, 1, Verdict::RELEASE)]).await;
        fixture.enqueue_ids(&["c"]).await;
        let claimed = fixture.claim_some(subscription).await;
        let mut claimed = ids(&claimed);
        claimed.sort_unstable();
        assert_eq!(claimed, ["b", "c"]);
    }

    async fn a_claim_takes_at_most_its_limit_and_only_its_subscription(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.>")]).await;
        fixture.enqueue_ids(&["m1", "m2", "m3"]).await;
        let batch =
            fixture.store.claim(ClaimRequest { limit: 2, ..request(subscriptions[0]) }).await.unwrap().unwrap();
        assert_eq!((batch.subscription, ids(&batch)), (subscriptions[0], vec!["m1", "m2"]));
        assert_eq!(ids(&fixture.claim_some(subscriptions[1]).await), ["m1", "m2", "m3"]);
        assert_eq!(ids(&fixture.claim_some(subscriptions[0]).await), ["m3"]);
    }
}
