//! Behaviours 23 to 25: dead letters, delivered again or removed, in bounded steps.

use std::time::Duration;

use laneway_core::{
    Batch, ClaimRequest, Cleanup, DeadLetterAction, DeadLetterFilter, DeadLetterSelection, ErrorText, Lane,
    NewMessage, Priority, Reason, Replay, Replayable, Settlement, SubscriptionId, Topic, TopicPattern, Verdict,
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

/// Of all messages, to one subscription.
fn replay_to(subscription: &str, force: bool) -> Replay {
    let until = jiff::Timestamp::now() + HOUR;
    Replay { subscription: name(subscription), topic: None, since: None, until, priority: Priority::BULK, force }
}

/// Replays to the end, by steps of two messages; answers how many are owed once more.
async fn replay_all(fixture: &Fixture, replay: &Replay) -> u64 {
    let (mut changed, mut next) = (0, Some(0));
    while let Some(from) = next {
        let step = fixture.store.replay(replay, from, 2).await.unwrap();
        changed += step.changed;
        next = step.next;
    }
    changed
}

/// Replays without force, after it was seen that a dry run says the same. Answers how many are owed once more, and how
/// many are left.
async fn replay_the_rest(fixture: &Fixture, subscription: &str) -> (u64, u64) {
    let replay = replay_to(subscription, false);
    let Replayable { messages, processed } = fixture.store.replayable(&replay).await.unwrap();
    assert_eq!(replay_all(fixture, &replay).await, messages);
    (messages, processed)
}

/// Processes all that is due, as a publisher does: nothing is marked. Answers the ids.
async fn publish(fixture: &Fixture, subscription: SubscriptionId) -> Vec<String> {
    let mut published = Vec::new();
    for lane in [Lane::Primary, Lane::Backfill] {
        while let Some(batch) = fixture.store.claim(ClaimRequest { lane, ..request(subscription) }).await.unwrap() {
            let done = Verdict::Complete { mark: false };
            let group: Vec<_> = (0..batch.deliveries.len()).map(|n| settlement(&batch, n, done.clone())).collect();
            fixture.settle_all(&group).await;
            published.extend(ids(&batch).into_iter().map(str::to_owned));
        }
    }
    published
}

/// Heartbeats of a node, until it is known how far messages were routed to what was stopped.
async fn known_ends(fixture: &Fixture) {
    if fixture.is_sqlite() {
        return; // There it is known at once.
    }
    let mut sql = fixture.sql().await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while sql.number("select count(*) from @routed where stopped_by is not null and until_seq is null").await > 0 {
        assert!(std::time::Instant::now() < deadline, "no end is found");
        fixture.store.heartbeat(&name("node"), HOUR).await.unwrap();
    }
}

conformance! {
    async fn what_was_published_is_sent_again_only_by_force(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b", "c"]).await;
        assert_eq!(publish(fixture, subscription).await, ["a", "b", "c"]);
        assert_eq!(fixture.sql().await.count("marker").await, 0, "nothing says that they were");
        assert_eq!(replay_the_rest(fixture, "handler").await, (0, 3));
        assert_eq!(publish(fixture, subscription).await, [""; 0]);
        assert_eq!(replay_all(fixture, &replay_to("handler", true)).await, 3);
        assert_eq!(replay_the_rest(fixture, "handler").await, (0, 0), "they are owed");
        assert_eq!(publish(fixture, subscription).await, ["a", "b", "c"]);
        assert_eq!(replay_the_rest(fixture, "handler").await, (0, 3));
    }

    async fn a_message_whose_marker_is_cleaned_up_still_counts_as_processed(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&complete_all(&batch)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = fixture.store.now().await.unwrap();
        assert_eq!(fixture.store.clean(Cleanup::Markers, now, 0, 10).await.unwrap().changed, 2);
        assert_eq!(replay_the_rest(fixture, "handler").await, (0, 2));
    }

    async fn a_purged_dead_letter_counts_as_processed(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        buried(fixture, subscription, &["m"], Reason::TRAP).await;
        assert_eq!(replay_the_rest(fixture, "handler").await, (0, 0), "it is among the dead letters");
        assert_eq!(act(fixture, DeadLetterAction::Purge, &all(), 10).await, [1]);
        assert_eq!(replay_the_rest(fixture, "handler").await, (0, 1));
    }

    async fn what_is_older_than_the_subscription_is_replayed_once(fixture: &Fixture) {
        fixture.subscribe_to(&[("other", "t.>")]).await;
        fixture.enqueue_ids(&["a", "b", "c"]).await;
        let subscriptions = fixture.subscribe_to(&[("other", "t.>"), ("late", "t.>")]).await;
        fixture.enqueue_ids(&["d"]).await;
        assert_eq!(publish(fixture, subscriptions[1]).await, ["d"]);
        assert_eq!(replay_the_rest(fixture, "late").await, (3, 1));
        assert_eq!(replay_the_rest(fixture, "late").await, (0, 1), "they are owed");
        assert_eq!(publish(fixture, subscriptions[1]).await, ["a", "b", "c"]);
        assert_eq!(replay_the_rest(fixture, "late").await, (0, 4));
        assert_eq!(replay_all(fixture, &replay_to("late", true)).await, 4);

        // What is noted of messages that are gone goes with the next replay.
        assert_eq!(publish(fixture, subscriptions[1]).await, ["a", "b", "c", "d"]);
        let mut sql = fixture.sql().await;
        assert_eq!(sql.count("replayed").await, 3);
        sql.run("delete from @message where id in ('a', 'b')").await;
        assert_eq!(replay_the_rest(fixture, "late").await, (0, 2));
        assert_eq!(sql.count("replayed").await, 1);
    }

    async fn what_came_while_a_subscription_was_off_or_had_another_pattern_is_replayed(fixture: &Fixture) {
        let to = |id: &str, topic: &str| NewMessage { topic: Topic::parse(topic).unwrap(), ..message(id) };
        let of = async |id: &str, topic: &str| fixture.enqueue(&[to(id, topic)]).await;
        let subscription = fixture.subscribe_to(&[("s", "t.a")]).await[0];
        of("on", "t.a").await;
        of("elsewhere", "t.b").await;
        // Applied once more with another change: it goes on.
        fixture.subscribe_to(&[("s", "t.a"), ("other", "t.>")]).await;
        of("still-on", "t.a").await;
        assert_eq!(publish(fixture, subscription).await, ["on", "still-on"]);
        assert_eq!(fixture.sql().await.number("select count(*) from @routed").await, 2);

        fixture.subscribe_to(&[("other", "t.>")]).await;
        known_ends(fixture).await;
        of("off", "t.a").await;
        fixture.subscribe_to(&[("s", "t.a"), ("other", "t.>")]).await;
        of("on-again", "t.a").await;
        assert_eq!(publish(fixture, subscription).await, ["on-again"]);
        assert_eq!(replay_the_rest(fixture, "s").await, (1, 3));
        assert_eq!(publish(fixture, subscription).await, ["off"]);

        // The pattern is wider now, and what it was before is not forgotten.
        fixture.subscribe_to(&[("s", "t.>"), ("other", "t.>")]).await;
        of("wide", "t.b").await;
        assert_eq!(publish(fixture, subscription).await, ["wide"]);
        assert_eq!(replay_the_rest(fixture, "s").await, (1, 5));
        assert_eq!(publish(fixture, subscription).await, ["elsewhere"]);
    }

    async fn of_a_subscription_that_is_older_than_its_notes_all_counts_as_processed(fixture: &Fixture) {
        let subscription = fixture.subscribe_to(&[("old", "t.>"), ("off", "t.>")]).await[0];
        fixture.enqueue_ids(&["a", "b"]).await;
        fixture.subscribe_to(&[("old", "t.>")]).await;
        assert_eq!(publish(fixture, subscription).await, ["a", "b"]);
        let mut sql = fixture.sql().await;
        let migration = match fixture.is_sqlite() {
            true => {
                sql.run("drop trigger laneway_subscription_begins; drop trigger laneway_subscription_changes").await;
                include_str!("../../../migrations/sqlite/0005_routed.sql")
            }
            false => {
                sql.run(
                    "drop function @note_routed cascade; drop function @bound_routed_now_and_then cascade;
                     drop function @bound_routed",
                )
                .await;
                include_str!("../../../migrations/postgres/0005_routed.sql")
            }
        };
        sql.run("drop table @routed; drop table @replayed").await;
        sql.run(migration).await;
        known_ends(fixture).await;
        fixture.enqueue_ids(&["c"]).await;
        assert_eq!(publish(fixture, subscription).await, ["c"]);
        assert_eq!(replay_the_rest(fixture, "old").await, (0, 3));
        fixture.subscribe_to(&[("old", "t.>"), ("off", "t.>"), ("new", "t.>")]).await;
        assert_eq!(replay_the_rest(fixture, "off").await, (1, 0), "c came while it was off; it is still owed the others");
        assert_eq!(replay_the_rest(fixture, "new").await, (3, 0));
    }

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
        // A node listens from its first wait on, and looks once when it does.
        let _ = tokio::time::timeout(Duration::from_millis(400), node.woken(subscription)).await;
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
        for (replay, messages, processed) in [
            (replay(None, false), 0, 2),
            (replay(None, true), 2, 0),
            (replay(Some("t.y.*"), true), 1, 0),
            (replay(Some("u.>"), true), 0, 0),
        ] {
            assert_eq!(fixture.store.replayable(&replay).await.unwrap(), Replayable { messages, processed }, "{replay:?}");
        }
        assert_eq!(replay_all(fixture, &replay(None, false)).await, 0, "both were processed");
        assert_eq!(replay_all(fixture, &replay(None, true)).await, 2);
        assert_eq!(replay_all(fixture, &replay(None, true)).await, 0, "they are owed already");
        assert_eq!(ids(&fixture.claim_some(subscriptions[0]).await), ["owed"], "the primary lane is not disturbed");
        let backfill = ClaimRequest { lane: Lane::Backfill, check_markers: true, ..request(subscriptions[0]) };
        let batch = fixture.store.claim(backfill).await.unwrap().unwrap();
        assert_eq!(ids(&batch), ["m1", "m2"]);
        assert!(batch.deliveries.iter().all(|delivery| !delivery.processed), "the marker of m2 is gone");
        assert_eq!(replay_all(fixture, &replay(None, true)).await, 0, "they are in work");
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

/// On SQLite nobody writes beside another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_beside_a_change_of_the_subscription_counts_as_processed() {
    let test = "replay::what_is_written_beside_a_change_of_the_subscription_counts_as_processed";
    on_postgres(test, async |fixture: &Fixture| {
        let insert = |id: &str| format!("insert into @message (id, topic, payload) values ('{id}', 't.x', '')");
        fixture.subscribe_to(&[("other", "t.>")]).await;
        fixture.enqueue_ids(&["before"]).await;
        let (mut first, mut second, mut third) = (fixture.sql().await, fixture.sql().await, fixture.sql().await);
        for (sql, id) in [(&mut first, "whole"), (&mut second, "in-part")] {
            sql.run("begin; savepoint part").await;
            sql.run(&insert(id)).await;
        }
        second.run("release savepoint part").await;
        // They may have been routed to it: a statement that began before it may end after it.
        let number = fixture.subscribe_to(&[("other", "t.>"), ("new", "t.>")]).await[1];
        first.run("commit").await;
        second.run("commit").await;
        fixture.enqueue_ids(&["after"]).await;
        assert_eq!(publish(fixture, number).await, ["after"]);
        assert_eq!(replay_the_rest(fixture, "new").await, (1, 3));
        assert_eq!(publish(fixture, number).await, ["before"]);

        // A transaction that sees for ever what it has seen once goes on by that.
        third.run("begin isolation level repeatable read; select 1 from @subscription").await;
        fixture.subscribe_to(&[("other", "t.>")]).await;
        fixture.store.heartbeat(&name("node"), HOUR).await.unwrap();
        fixture.store.heartbeat(&name("node"), HOUR).await.unwrap();
        third.run(&insert("stale")).await;
        third.run("commit").await;
        known_ends(fixture).await;
        fixture.enqueue_ids(&["off"]).await;
        fixture.subscribe_to(&[("other", "t.>"), ("new", "t.>")]).await;
        assert_eq!(publish(fixture, number).await, ["stale"]);
        assert_eq!(replay_the_rest(fixture, "new").await, (1, 5));
        assert_eq!(publish(fixture, number).await, ["off"]);
    })
    .await;
}
