//! Behaviour 16: an attempt counts when a slot begins it. What an ended lease only held comes back uncounted, and still
//! what ends its nodes is counted.

use std::time::Duration;

use jiff::Timestamp;
use laneway_core::{Batch, ClaimRequest, DeadLetterFilter, ErrorText, Held, Reason, SubscriptionId, Verdict};
use laneway_outbox::{Change, cancel, reschedule};

use crate::fixture::*;
use crate::sql::Sql;

fn held(batch: &Batch, position: usize) -> Held {
    Held { token: batch.token, subscription: batch.subscription, delivery: batch.deliveries[position].id }
}

/// The attempts of a batch, and the leases that were lost before.
fn counts(batch: &Batch) -> Vec<(u32, u32)> {
    batch.deliveries.iter().map(|delivery| (delivery.attempt, delivery.lost)).collect()
}

/// Claims on a node that then ends, with its leases.
async fn claim_and_die(fixture: &Fixture, subscription: SubscriptionId, begins: &[usize]) -> Batch {
    let node = fixture.another_node().await;
    let batch = node.claim(request(subscription)).await.unwrap().expect("something is due");
    let begun: Vec<Held> = begins.iter().map(|&position| held(&batch, position)).collect();
    assert_eq!(node.begin(&begun).await.unwrap(), []);
    drop(node);
    fixture.sql().await.expire_leases().await;
    batch
}

/// Claims one delivery as the versions before did: they counted at the claim, and know no lost leases.
async fn claim_as_older_versions_do(sql: &mut Sql) {
    let changed = match sql {
        Sql::Sqlite(_) => {
            sql.run(
                "update @delivery set lease_token = abs(random()), parked = null, available_at = now() + 3600000,
                     attempt = attempt + 1, first_attempt_at = coalesce(first_attempt_at, now())
                 where available_at <= now()",
            )
            .await
        }
        Sql::Postgres(_) => {
            sql.run(
                "insert into @delivery (message_seq, available_at, first_attempt_at, subscription_id, priority, attempt,
                         lane, last_error, key)
                     select u.message_seq, l.leased_until, coalesce(u.first_attempt_at, l.leased_at), l.subscription_id,
                         u.priority, u.attempt, l.lane, u.last_error, null
                     from @lease l cross join lateral unnest(l.message_seqs, l.priorities, l.attempts,
                         l.first_attempts_at, l.last_errors) as u(message_seq, priority, attempt, first_attempt_at,
                         last_error);
                 delete from @lease",
            )
            .await;
            sql.run(
                "with taken as (delete from @delivery d returning d.*, d.attempt + 1 as this)
                 insert into @lease (leased_until, leased_at, message_seq_min, message_seq_max, subscription_id, lane,
                     open, message_seqs, priorities, attempts, first_attempts_at, last_errors)
                 select now() + interval '1 hour', now(), message_seq, message_seq, subscription_id, lane, '1',
                     array[message_seq], array[priority], array[this], array[first_attempt_at], array[last_error]
                 from taken",
            )
            .await
        }
    };
    assert_eq!(changed, 1);
}

conformance! {
    async fn what_no_slot_began_comes_back_uncounted(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b"]).await;
        for lost in 0..4 {
            let batch = claim_and_die(fixture, subscription, &[]).await;
            assert_eq!(counts(&batch), [(1, lost); 2]);
            assert!(batch.deliveries.iter().all(|one| one.since_first_attempt == Duration::ZERO), "there was none yet");
        }
        let view = fixture.store.message(&message("a").id).await.unwrap().unwrap();
        let delivery = &view.deliveries[0];
        assert_eq!((delivery.attempt, delivery.lost, delivery.leased), (0, 4, false));
    }

    async fn what_a_slot_began_comes_back_counted(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b", "c"]).await;
        claim_and_die(fixture, subscription, &[]).await;
        let batch = claim_and_die(fixture, subscription, &[1]).await;
        assert_eq!((ids(&batch), counts(&batch)), (vec!["a", "b", "c"], vec![(1, 1); 3]));
        tokio::time::sleep(Duration::from_millis(20)).await;
        // Each counts for itself, whoever shares its lease.
        let batch = claim_and_die(fixture, subscription, &[1, 2]).await;
        assert_eq!(counts(&batch), [(1, 2), (2, 2), (1, 2)]);
        let since: Vec<bool> =
            batch.deliveries.iter().map(|one| one.since_first_attempt >= Duration::from_millis(19)).collect();
        assert_eq!(since, [false, true, false], "the clock runs from the first attempt that counts");
        assert_eq!(counts(&fixture.claim_some(subscription).await), [(1, 3), (3, 3), (2, 3)]);
    }

    async fn a_begin_under_a_lost_lease_is_answered_and_notes_nothing(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b", "c"]).await;
        let stale = claim_and_die(fixture, subscription, &[]).await;
        let one = ClaimRequest { limit: 1, ..request(subscription) };
        let [first, second] = [fixture.store.claim(one).await.unwrap().unwrap(), fixture.claim_some(subscription).await];
        fixture.settle_all(&[complete(&second, 1)]).await;
        let asked = [held(&stale, 0), held(&second, 0), held(&second, 1), held(&stale, 2)];
        let mut lost = fixture.store.begin(&asked).await.unwrap();
        lost.sort_unstable();
        let mut wanted = vec![held(&stale, 0), held(&second, 1), held(&stale, 2)];
        wanted.sort_unstable();
        assert_eq!(lost, wanted);
        assert_eq!(ids(&first), ["a"]);
        fixture.sql().await.expire_leases().await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!((ids(&batch), counts(&batch)), (vec!["a", "b"], vec![(1, 2), (2, 2)]));
    }

    async fn an_answer_that_counts_settles_what_was_lost(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        claim_and_die(fixture, subscription, &[]).await;
        for _ in 0..2 {
            let batch = fixture.claim_some(subscription).await;
            assert_eq!(counts(&batch), [(1, 1)]);
            assert_eq!(fixture.store.begin(&[held(&batch, 0)]).await.unwrap(), []);
            // Handed back, it may still have run on the node that ended.
            fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
        }
        let batch = fixture.claim_some(subscription).await;
        let failed = Verdict::Retry { delay: Duration::ZERO, counted: true, error: None };
        fixture.settle_all(&[settlement(&batch, 0, failed)]).await;
        assert_eq!(counts(&fixture.claim_some(subscription).await), [(2, 0)]);
    }

    async fn what_was_handed_back_is_not_counted_for_what_began_before(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        claim_and_die(fixture, subscription, &[]).await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(fixture.store.begin(&[held(&batch, 0)]).await.unwrap(), []);
        fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
        let batch = claim_and_die(fixture, subscription, &[]).await;
        assert_eq!(counts(&batch), [(1, 1)]);
        assert_eq!(counts(&fixture.claim_some(subscription).await), [(1, 2)], "begun under a lease before this one");
    }

    async fn what_may_have_run_can_no_longer_be_changed(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m", "other"]).await;
        claim_and_die(fixture, subscription, &[]).await;
        let mut sql = fixture.sql().await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
        assert_eq!(reschedule(&mut sql, "m", Timestamp::now()).await.unwrap(), Change::TooLate);
        assert_eq!(cancel(&mut sql, "m").await.unwrap(), Change::TooLate);
        assert_eq!(fixture.store.cancel(&message("m").id).await.unwrap(), laneway_core::Change::TooLate);
        assert_eq!(counts(&fixture.claim_some(subscription).await), [(1, 1)]);
    }

    async fn a_dead_letter_of_lost_leases_counts_what_began(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        for begins in [&[][..], &[0], &[0]] {
            claim_and_die(fixture, subscription, begins).await;
        }
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(counts(&batch), [(3, 3)]);
        let verdict =
            Verdict::DeadLetter { reason: Reason::LEASE_EXPIRED, error: ErrorText::new("lost"), plugin: None };
        fixture.settle_all(&[settlement(&batch, 0, verdict)]).await;
        let filter = DeadLetterFilter { limit: 10, ..DeadLetterFilter::default() };
        let letters = fixture.store.dead_letters(&filter).await.unwrap();
        assert_eq!((letters.len(), letters[0].attempts), (1, 2));
        assert!(letters[0].first_attempt_at.is_some());
    }

    async fn what_a_node_of_an_older_version_held_comes_back_uncounted(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let mut sql = fixture.sql().await;
        claim_as_older_versions_do(&mut sql).await;
        sql.expire_leases().await;
        assert_eq!(counts(&claim_and_die(fixture, subscription, &[]).await), [(1, 1)]);
        assert_eq!(counts(&claim_and_die(fixture, subscription, &[0]).await), [(1, 2)]);
        // It takes what ours has begun, and forgets what was lost; what ours had counted stays counted.
        claim_as_older_versions_do(&mut sql).await;
        sql.expire_leases().await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(batch.deliveries[0].attempt, 2);
        assert!(batch.deliveries[0].lost > 0);
        fixture.settle_all(&complete_all(&batch)).await;
    }

    async fn a_lost_lease_keeps_the_order_of_its_keys(fixture: &Fixture) {
        let mut ordered = subscription("handler", "t.>");
        ordered.ordering = laneway_core::Ordering::Key;
        let applied = fixture.apply(vec![ordered]).await;
        let subscription = number_of(&applied, "handler");
        let messages = ["a1", "a2", "b1"].map(|id| laneway_core::NewMessage { key: Some(id[..1].into()), ..message(id) });
        fixture.enqueue(&messages).await;
        let request = ClaimRequest { ordered: true, ..request(subscription) };
        let mut sql = fixture.sql().await;
        for lost in 0..3 {
            let batch = fixture.store.claim(request).await.unwrap().unwrap();
            assert_eq!((ids(&batch), counts(&batch)), (vec!["a1", "b1"], vec![(1 + lost / 2, lost), (1, lost)]));
            if lost == 1 {
                assert_eq!(fixture.store.begin(&[held(&batch, 0)]).await.unwrap(), []);
            }
            sql.expire_leases().await;
        }
        let batch = fixture.store.claim(request).await.unwrap().unwrap();
        fixture.settle_all(&complete_all(&batch)).await;
        let batch = fixture.store.claim(request).await.unwrap().unwrap();
        assert_eq!((ids(&batch), counts(&batch)), (vec!["a2"], vec![(1, 0)]));
    }
}
