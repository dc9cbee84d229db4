//! Behaviours 23 to 25: dead letters, delivered again or removed, in bounded steps.

use std::time::Duration;

use laneway_core::{
    Batch, ClaimRequest, DeadLetterAction, DeadLetterFilter, DeadLetterSelection, ErrorText, Lane, NewMessage,
    Priority, Reason, Replay, Settlement, SubscriptionId, Topic, TopicPattern, Verdict,
};

use crate::fixture::*;

fn dead(reason: Reason) -> Verdict {
    Verdict::DeadLetter { reason, error: ErrorText::new("broken"), plugin: None }
}

fn bury(batch: &Batch, reason: &Reason) -> Vec<Settlement> {
    (0..batch.deliveries.len()).map(|position| settlement(batch, position, dead(reason.clone()))).collect()
}

/// Acts to the end; answers what each step changed.
async fn act(fixture: &Fixture, action: DeadLetterAction, selection: &DeadLetterSelection, limit: u32) -> Vec<u64> {
    let newest = fixture.store.newest_dead_letter().await.unwrap();
    let mut steps = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let step = fixture.store.act_on_dead_letters(action, selection, from, newest, limit).await.unwrap();
        steps.push(step.changed);
        next = step.next;
    }
    steps
}

fn all() -> DeadLetterSelection {
    DeadLetterSelection::default()
}

async fn buried(fixture: &Fixture, subscription: SubscriptionId, ids: &[&str], reason: Reason) {
    fixture.enqueue_ids(ids).await;
    let batch = fixture.claim_some(subscription).await;
    fixture.settle_all(&bury(&batch, &reason)).await;
}

conformance! {
    async fn a_replayed_letter_is_as_new_and_due_at_once(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let backfill = ClaimRequest { lane: Lane::Backfill, ..request(subscription) };
        fixture.enqueue(&[NewMessage { priority: Priority(-70), ..message("m") }]).await;
        for _ in 0..2 {
            let batch = fixture.store.claim(backfill).await.unwrap().unwrap();
            let again = Verdict::Retry { delay: Duration::ZERO, counted: true, error: None };
            fixture.settle_all(&[settlement(&batch, 0, again)]).await;
        }
        let batch = fixture.store.claim(backfill).await.unwrap().unwrap();
        assert_eq!(batch.deliveries[0].attempt, 3);
        fixture.settle_all(&bury(&batch, &Reason::TRAP)).await;

        assert_eq!(act(fixture, DeadLetterAction::Replay, &all(), 10).await, [1]);
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("dead_letter").await, sql.count("owed").await), (0, 1));
        assert!(fixture.claim(subscription).await.is_none(), "it has left its lane");
        let batch = fixture.store.claim(backfill).await.unwrap().expect("due at once");
        let delivery = &batch.deliveries[0];
        assert_eq!((delivery.attempt, delivery.message.priority), (1, Priority(-70)), "attempts begin anew");
        assert_eq!(delivery.since_first_attempt, Duration::ZERO);
        fixture.settle_all(&complete_all(&batch)).await;
        assert_eq!(sql.number("select count(*) from @message_status where status = 'processed'").await, 1);
    }

    async fn a_replay_is_for_the_subscription_that_failed(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.>")]).await;
        fixture.enqueue_ids(&["m"]).await;
        let b = fixture.claim_some(subscriptions[1]).await;
        fixture.settle_all(&complete_all(&b)).await;
        let a = fixture.claim_some(subscriptions[0]).await;
        fixture.settle_all(&bury(&a, &Reason::TRAP)).await;
        assert_eq!(act(fixture, DeadLetterAction::Replay, &all(), 10).await, [1]);
        assert!(fixture.claim(subscriptions[1]).await.is_none());
        assert_eq!(ids(&fixture.claim_some(subscriptions[0]).await), ["m"]);
    }

    async fn a_replay_wakes_who_waits(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        buried(fixture, subscription, &["m"], Reason::TRAP).await;
        if fixture.is_sqlite() {
            return; // There the poll finds it.
        }
        let node = fixture.another_node().await;
        assert!(tokio::time::timeout(Duration::from_millis(400), node.woken(subscription)).await.is_err());
        let waiting = tokio::spawn(async move { node.woken(subscription).await });
        assert_eq!(act(fixture, DeadLetterAction::Replay, &all(), 10).await, [1]);
        tokio::time::timeout(PATIENCE, waiting).await.expect("woken").unwrap();
    }

    async fn letters_of_a_subscription_that_is_off_are_left(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        buried(fixture, subscription, &["m"], Reason::TRAP).await;
        fixture.subscribe_to(&[("other", "t.>")]).await;
        assert_eq!(act(fixture, DeadLetterAction::Replay, &all(), 10).await, [0], "nobody would deliver it");
        fixture.subscribe().await;
        assert_eq!(act(fixture, DeadLetterAction::Replay, &all(), 10).await, [1]);
    }

    async fn many_letters_are_worked_off_in_steps(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        for round in 0..3 {
            let names: Vec<String> = (0..10).map(|n| format!("m{round}-{n}")).collect();
            buried(fixture, subscription, &names.iter().map(String::as_str).collect::<Vec<_>>(), Reason::TRAP).await;
        }
        assert_eq!(fixture.store.count_dead_letters(&all()).await.unwrap(), 30);
        let steps = act(fixture, DeadLetterAction::Replay, &all(), 7).await;
        assert_eq!(steps, [7, 7, 7, 7, 2]);
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("dead_letter").await, sql.count("owed").await), (0, 30));
        let noted = sql.texts("select cast(detail as text) from @audit where action = 'dead_letters.replay'").await;
        assert_eq!(noted.len(), 5, "each step is noted: {noted:?}");
    }

    async fn what_dies_again_during_a_replay_is_left(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        buried(fixture, subscription, &["a", "b", "c"], Reason::TRAP).await;
        let newest = fixture.store.newest_dead_letter().await.unwrap();
        let step = fixture.store.act_on_dead_letters(DeadLetterAction::Replay, &all(), 0, newest, 2).await.unwrap();
        assert_eq!(step.changed, 2);
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&bury(&batch, &Reason::TRAP)).await;
        let from = step.next.expect("one is left");
        let step = fixture.store.act_on_dead_letters(DeadLetterAction::Replay, &all(), from, newest, 2).await.unwrap();
        assert_eq!((step.changed, step.next), (1, None));
        assert_eq!(fixture.store.count_dead_letters(&all()).await.unwrap(), 2);
    }

    async fn filters_choose_what_is_acted_on(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.y.>")]).await;
        let to = |id: &str, topic: &str| NewMessage { topic: Topic::parse(topic).unwrap(), ..message(id) };
        fixture.enqueue(&[to("m1", "t.x"), to("m2", "t.y.z"), to("m3", "t.y.z.u")]).await;
        let a = fixture.claim_some(subscriptions[0]).await;
        for (position, reason) in [Reason::TRAP, Reason::TIMEOUT, Reason::TRAP].into_iter().enumerate() {
            fixture.settle_all(&[settlement(&a, position, dead(reason))]).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let later = fixture.store.now().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let b = fixture.claim_some(subscriptions[1]).await;
        fixture.settle_all(&bury(&b, &Reason::TRAP)).await;

        let pattern = |text: &str| Some(TopicPattern::parse(text).unwrap());
        let letters = fixture.store.dead_letters(&DeadLetterFilter { selection: all(), limit: 10 }).await.unwrap();
        let number = |subscription: &str, id: &str| {
            letters.iter().find(|l| l.subscription.as_str() == subscription && l.message_id.as_str() == id).unwrap().id
        };
        for (selection, wanted) in [
            (all(), vec!["a/m1", "a/m2", "a/m3", "b/m2", "b/m3"]),
            (DeadLetterSelection { id: Some(number("b", "m2")), ..all() }, vec!["b/m2"]),
            (DeadLetterSelection { subscription: Some(name("a")), ..all() }, vec!["a/m1", "a/m2", "a/m3"]),
            (DeadLetterSelection { subscription: Some(name("nobody")), ..all() }, vec![]),
            (DeadLetterSelection { topic: pattern("t.x"), ..all() }, vec!["a/m1"]),
            (DeadLetterSelection { topic: pattern("*.y.*"), ..all() }, vec!["a/m2", "b/m2"]),
            (DeadLetterSelection { topic: pattern("*.y.>"), ..all() }, vec!["a/m2", "a/m3", "b/m2", "b/m3"]),
            (DeadLetterSelection { reason: Some("timeout".to_owned()), ..all() }, vec!["a/m2"]),
            (DeadLetterSelection { since: Some(later), ..all() }, vec!["b/m2", "b/m3"]),
            (DeadLetterSelection { until: Some(later), ..all() }, vec!["a/m1", "a/m2", "a/m3"]),
            (
                DeadLetterSelection { subscription: Some(name("a")), topic: pattern("t.y.>"), reason: Some("trap".to_owned()), ..all() },
                vec!["a/m3"],
            ),
        ] {
            assert_eq!(fixture.store.count_dead_letters(&selection).await.unwrap(), wanted.len() as u64, "{selection:?}");
            let listed = DeadLetterFilter { selection: selection.clone(), limit: 10 };
            let mut found: Vec<String> = fixture
                .store
                .dead_letters(&listed)
                .await
                .unwrap()
                .iter()
                .map(|letter| format!("{}/{}", letter.subscription, letter.message_id))
                .collect();
            found.sort_unstable();
            assert_eq!(found, wanted, "{selection:?}");
        }
        let purged = DeadLetterSelection { topic: pattern("t.y.>"), ..all() };
        assert_eq!(act(fixture, DeadLetterAction::Purge, &purged, 2).await.iter().sum::<u64>(), 4);
        let left = fixture.store.dead_letters(&DeadLetterFilter { selection: all(), limit: 10 }).await.unwrap();
        assert_eq!(left.len(), 1);
        let mut sql = fixture.sql().await;
        assert_eq!(sql.count("owed").await, 0, "purged, not replayed");
    }

    async fn messages_of_the_outbox_are_delivered_once_more_by_the_backfill_lane(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.>")]).await;
        let to = |id: &str, topic: &str| NewMessage { topic: Topic::parse(topic).unwrap(), ..message(id) };
        fixture.enqueue(&[to("early", "t.x")]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let since = fixture.store.now().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        fixture.enqueue(&[to("m1", "t.x"), to("m2", "t.y.z"), to("dead", "t.y.z"), to("owed", "t.y.z"), to("u", "u.x")]).await;
        for subscription in &subscriptions {
            let batch = fixture.claim_some(*subscription).await;
            let group: Vec<Settlement> = batch
                .deliveries
                .iter()
                .enumerate()
                .map(|(n, delivery)| match delivery.message.id.as_str() {
                    "dead" => settlement(&batch, n, dead(Reason::TRAP)),
                    "owed" => settlement(&batch, n, Verdict::RELEASE),
                    // Without a marker, as of a publisher.
                    "m1" => settlement(&batch, n, Verdict::Complete { mark: false }),
                    _ => complete(&batch, n),
                })
                .collect();
            fixture.settle_all(&group).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let until = fixture.store.now().await.unwrap();
        let replay = |topic: Option<&str>, force: bool| Replay {
            subscription: name("a"),
            topic: topic.map(|topic| TopicPattern::parse(topic).unwrap()),
            since: Some(since),
            until,
            priority: Priority::BULK,
            force,
        };
        for (replay, wanted) in [(replay(None, false), 1), (replay(None, true), 2), (replay(Some("t.y.*"), true), 1), (replay(Some("u.>"), true), 0)] {
            assert_eq!(fixture.store.replayable(&replay).await.unwrap(), wanted, "{replay:?}");
        }
        let steps = async |replay: Replay| -> Vec<u64> {
            let (mut steps, mut next) = (Vec::new(), Some(0));
            while let Some(from) = next {
                let step = fixture.store.replay(&replay, from, 2).await.unwrap();
                steps.push(step.changed);
                next = step.next;
            }
            steps
        };
        assert_eq!(steps(replay(None, false)).await.iter().sum::<u64>(), 1, "markers are respected");
        assert_eq!(steps(replay(None, true)).await.iter().sum::<u64>(), 1, "m1 is owed already");
        assert_eq!(steps(replay(None, true)).await.iter().sum::<u64>(), 0);
        assert_eq!(ids(&fixture.claim_some(subscriptions[0]).await), ["owed"], "the primary lane is not disturbed");
        let backfill = ClaimRequest { lane: Lane::Backfill, check_markers: true, ..request(subscriptions[0]) };
        let batch = fixture.store.claim(backfill).await.unwrap().unwrap();
        assert_eq!(ids(&batch), ["m1", "m2"]);
        assert!(batch.deliveries.iter().all(|delivery| !delivery.processed), "the marker of m2 is gone");
        assert_eq!(steps(replay(None, true)).await.iter().sum::<u64>(), 0, "they are in work");
        fixture.settle_all(&complete_all(&batch)).await;
        assert!(fixture.store.claim(ClaimRequest { subscription: subscriptions[1], ..backfill }).await.unwrap().is_none());
        let nobody = Replay { subscription: name("nobody"), ..replay(None, false) };
        let refused = fixture.store.replay(&nobody, 0, 10).await.unwrap_err().to_string();
        assert!(refused.contains("no active subscription is named `nobody`"), "{refused}");
    }

    async fn a_letter_of_a_message_that_is_in_work_again_does_not_run_beside_it(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        buried(fixture, subscription, &["m"], Reason::TRAP).await;
        let mut sql = fixture.sql().await;
        let id = if fixture.is_sqlite() { ("id, ", format!("seq * 1048576 + {subscription}, ")) } else { ("", String::new()) };
        sql.run(&format!(
            "insert into @delivery ({} subscription_id, lane, priority, message_seq, available_at)
             select {} {subscription}, 0, 0, seq, now() from @message",
            id.0, id.1
        ))
        .await;
        let batch = fixture.claim_some(subscription).await;
        act(fixture, DeadLetterAction::Replay, &all(), 10).await;
        assert!(fixture.claim(subscription).await.is_none(), "a second delivery of one message");
        fixture.settle_all(&complete_all(&batch)).await;
    }
}
