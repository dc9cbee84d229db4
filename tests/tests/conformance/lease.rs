//! Behaviours 9 to 15: leases are exclusive, end by the database's clock, and are renewed and handed back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laneway_core::{Batch, ClaimRequest, MessageId, NewMessage, Renewal, StoreError, Verdict};
use tokio::task::JoinSet;

use crate::fixture::*;

/// A lease that is to end, and yet outlasts what a test does under it on a machine that is busy with other things.
const LEASE: Duration = Duration::from_millis(1500);

fn renewal(batch: &laneway_core::Batch, lease: Duration) -> Renewal {
    Renewal {
        subscription: batch.subscription,
        token: batch.token,
        lease,
        deliveries: batch.deliveries.iter().map(|delivery| delivery.id).collect(),
    }
}

conformance! {
    async fn claims_of_all_nodes_hold_no_more_than_they_may(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let ids: Vec<String> = (0..200).map(|number| format!("m{number}")).collect();
        fixture.enqueue_ids(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let capped = ClaimRequest { in_work_max: Some(7), limit: 3, ..request(subscription) };
        let mut claims = JoinSet::new();
        for number in 0..8 {
            let store = if number % 2 == 0 { Arc::clone(&fixture.store) } else { fixture.another_node().await };
            claims.spawn(async move { store.claim(capped).await.ok().flatten() });
        }
        let held: Vec<Batch> = claims.join_all().await.into_iter().flatten().collect();
        let count = |batches: &[Batch]| batches.iter().map(|batch| batch.deliveries.len()).sum::<usize>();
        assert_eq!(count(&held), 7);
        assert!(matches!(fixture.store.claim(capped).await, Err(StoreError::NoRoom)));
        fixture.settle_all(&complete_all(&held[0])).await;
        let more = fixture.store.claim(capped).await.unwrap().unwrap();
        assert_eq!(more.deliveries.len(), held[0].deliveries.len());
        // What an ended lease held is free again.
        fixture.sql().await.expire_leases().await;
        assert_eq!(fixture.store.claim(capped).await.unwrap().unwrap().deliveries.len(), 3);
    }

    async fn two_claimers_never_hold_one_delivery(fixture: &Fixture) {
        const ROWS: usize = 1000;
        let subscription = fixture.subscribe().await;
        let messages: Vec<NewMessage> = (0..ROWS).map(|number| message(&format!("m{number}"))).collect();
        fixture.enqueue(&messages).await;
        let nodes = [Arc::clone(&fixture.store), fixture.another_node().await];
        let mut claimers = JoinSet::new();
        for claimer in 0..12 {
            let store = Arc::clone(&nodes[claimer % 2]);
            claimers.spawn(async move {
                let mut held = Vec::new();
                let request = ClaimRequest { limit: 1 + claimer as u32 * 3, ..request(subscription) };
                while let Some(batch) = store.claim(request).await.unwrap() {
                    assert!(batch.deliveries.len() <= request.limit as usize);
                    held.extend(batch.deliveries.into_iter().map(|one| (one.message.id, one.attempt)));
                }
                held
            });
        }
        let mut held: Vec<_> = claimers.join_all().await.into_iter().flatten().collect();
        // A claimer may have found nothing only because another was at it.
        while let Some(batch) = fixture.claim(subscription).await {
            held.extend(batch.deliveries.into_iter().map(|one| (one.message.id, one.attempt)));
        }
        let mut holders: HashMap<MessageId, usize> = HashMap::new();
        for (message, attempt) in held {
            *holders.entry(message).or_default() += 1;
            assert_eq!(attempt, 1);
        }
        assert!(holders.values().all(|&holders| holders == 1));
        assert_eq!(holders.len(), ROWS);
        assert_eq!(
            fixture.sql().await.number("select count(*) from @owed where attempt = 1").await,
            ROWS as i64
        );
    }

    async fn a_leased_delivery_is_not_claimed_again(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        fixture.claim_some(subscription).await;
        assert!(fixture.claim(subscription).await.is_none());
        assert!(fixture.another_node().await.claim(request(subscription)).await.unwrap().is_none());
    }

    async fn tokens_are_never_used_twice(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut tokens = std::collections::HashSet::new();
        fixture.enqueue_ids(&["m"]).await;
        for node in 0..3 {
            let store = fixture.another_node().await;
            for _ in 0..3 {
                let batch = store.claim(request(subscription)).await.unwrap().unwrap();
                assert!(tokens.insert(batch.token), "{} comes again on node {node}", batch.token);
                fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
            }
        }
    }

    async fn an_expired_lease_is_claimable_with_no_reaper(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let other = fixture.another_node().await;
        let asked_at = Instant::now();
        let first = fixture.store.claim(ClaimRequest { lease: LEASE, ..request(subscription) }).await.unwrap().unwrap();
        let second = claim_soon(&*other, subscription).await;
        let waited = asked_at.elapsed();
        // The databases count milliseconds.
        assert!(waited + Duration::from_millis(2) >= LEASE, "claimed again after {waited:?}");
        assert_ne!(first.token, second.token);
        assert_eq!((second.deliveries[0].attempt, second.deliveries[0].lost), (1, 1), "nobody has begun it");
    }

    async fn a_shorter_lease_cannot_take_a_delivery_whose_lease_was_longer(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        fixture.claim_some(subscription).await;
        let impatient = ClaimRequest { lease: Duration::from_millis(1), ..request(subscription) };
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(fixture.another_node().await.claim(impatient).await.unwrap().is_none());
        }
    }

    async fn the_lease_is_the_databases_time_and_moving_its_clock_is_what_ends_it(fixture: &Fixture) {
        // No call of the store takes a time of day: all that a node says is how long. So the only way to end a
        // lease of an hour here is to move what the database compares with its own clock.
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        fixture.claim_some(subscription).await;
        let mut sql = fixture.sql().await;
        let (hour, slack) = (sql.span(HOUR), sql.span(Duration::from_secs(30)));
        let within = format!(
            "select count(*) from @owed
             where available_at > now() + {hour} - {slack} and available_at <= now() + {hour}"
        );
        assert_eq!(sql.number(&within).await, 1, "the lease ends an hour from the database's now");
        assert_eq!(sql.expire_leases().await, 1);
        assert!(fixture.claim(subscription).await.is_some());
    }

    async fn a_renewed_lease_keeps_its_deliveries(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b"]).await;
        let batch = fixture.store.claim(ClaimRequest { lease: LEASE, ..request(subscription) }).await.unwrap().unwrap();
        assert_eq!(fixture.store.renew(&[renewal(&batch, HOUR)]).await.unwrap(), []);
        tokio::time::sleep(LEASE + Duration::from_millis(50)).await;
        assert!(fixture.another_node().await.claim(request(subscription)).await.unwrap().is_none());
        assert_eq!(batch.deliveries[0].attempt, 1);
        fixture.settle_all(&complete_all(&batch)).await;
    }

    async fn a_renewal_counts_from_now_and_may_shorten(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(fixture.store.renew(&[renewal(&batch, Duration::from_millis(50))]).await.unwrap(), []);
        assert_eq!(ids(&fixture.claim_soon(subscription).await), ["m"]);
    }

    async fn renewing_a_lost_lease_is_answered_and_renews_nothing(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.>")]).await;
        fixture.enqueue_ids(&["m1", "m2", "m3"]).await;
        let [stale, other] =
            [fixture.claim_some(subscriptions[0]).await, fixture.claim_some(subscriptions[1]).await];
        let mut sql = fixture.sql().await;
        let which = format!("message_seq = 1 and subscription_id = {}", subscriptions[0]);
        assert_eq!(sql.make_due(&which).await, 1);
        let current = fixture
            .another_node()
            .await
            .claim(ClaimRequest { lease: LEASE, ..request(subscriptions[0]) })
            .await
            .unwrap()
            .unwrap();
        assert_eq!(ids(&current), ["m1"]);
        fixture.settle_all(&[complete(&stale, 1)]).await;

        let lost = fixture.store.renew(&[renewal(&stale, HOUR), renewal(&other, HOUR)]).await.unwrap();
        let mut wanted = vec![(stale.token, stale.deliveries[0].id), (stale.token, stale.deliveries[1].id)];
        wanted.sort();
        let mut found = lost.clone();
        found.sort();
        assert_eq!(found, wanted, "the one that another holds, and the one that is settled; no other");
        // The current lease was not prolonged to an hour.
        assert_eq!(ids(&fixture.claim_soon(subscriptions[0]).await), ["m1"]);
    }

    async fn a_lease_is_renewed_for_what_is_left_of_it(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b", "c"]).await;
        let batch = fixture.store.claim(ClaimRequest { lease: LEASE, ..request(subscription) }).await.unwrap().unwrap();
        let again = Verdict::Retry { delay: Duration::ZERO, counted: true, error: None };
        fixture.settle_all(&[complete(&batch, 0), settlement(&batch, 1, again)]).await;
        let mut renewal = renewal(&batch, HOUR);
        renewal.deliveries.drain(..2);
        assert_eq!(fixture.store.renew(&[renewal]).await.unwrap(), []);
        tokio::time::sleep(LEASE + Duration::from_millis(50)).await;
        let next = fixture.claim_some(subscription).await;
        assert_eq!((ids(&next), next.deliveries[0].attempt), (vec!["b"], 2));
        fixture.settle_all(&[complete(&batch, 2)]).await;
    }

    async fn a_release_is_due_at_once_and_does_not_count(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        for _ in 0..3 {
            let batch = fixture.claim_some(subscription).await;
            assert_eq!(batch.deliveries[0].attempt, 1);
            assert_eq!(batch.deliveries[0].since_first_attempt, Duration::ZERO);
            fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
        }
        // Handed back after an attempt that did count.
        let batch = fixture.claim_some(subscription).await;
        let failed = Verdict::Retry { delay: Duration::ZERO, counted: true, error: None };
        fixture.settle_all(&[settlement(&batch, 0, failed)]).await;
        for _ in 0..2 {
            let batch = fixture.claim_some(subscription).await;
            assert_eq!(batch.deliveries[0].attempt, 2);
            fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
        }
    }

    async fn the_time_since_the_first_attempt_is_kept(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(batch.deliveries[0].since_first_attempt, Duration::ZERO);
        let pause = Duration::from_millis(250);
        tokio::time::sleep(pause).await;
        let failed = Verdict::Retry { delay: Duration::ZERO, counted: true, error: None };
        fixture.settle_all(&[settlement(&batch, 0, failed)]).await;
        let since = fixture.claim_some(subscription).await.deliveries[0].since_first_attempt;
        assert!(since >= pause - Duration::from_millis(2) && since < Duration::from_secs(30), "{since:?}");
    }
}
