//! Behaviours 26 and 40: messages of one key come one at a time and in order, and nobody else waits for them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::time::Duration;

use jiff::Timestamp;
use laneway_core::{
    Batch, Change, ClaimRequest, DeadLetterAction, DeadLetterSelection, ErrorText, Lane, MessageId, NewMessage,
    Ordering, Priority, Reason, Replay, Settlement, Store, Subscription, SubscriptionId, Topic, Verdict,
};
use laneway_testing::faults::{FaultyStore, Odds, Operation};
use laneway_testing::{Random, seed};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::fixture::*;

fn ordered(name: &str, pattern: &str) -> Subscription {
    Subscription { ordering: Ordering::Key, ..subscription(name, pattern) }
}

async fn subscribe(fixture: &Fixture) -> SubscriptionId {
    number_of(&fixture.apply(vec![ordered("handler", "t.>")]).await, "handler")
}

fn keyed(key: &str, id: &str) -> NewMessage {
    NewMessage { key: Some(key.to_owned()), ..message(id) }
}

fn on(lane: Lane, subscription: SubscriptionId) -> ClaimRequest {
    ClaimRequest { lane, ordered: true, ..request(subscription) }
}

async fn claim(fixture: &Fixture, subscription: SubscriptionId) -> Option<Batch> {
    fixture.store.claim(on(Lane::Primary, subscription)).await.unwrap()
}

/// The ids that a claim takes now; none if nothing is free.
async fn claimed(fixture: &Fixture, subscription: SubscriptionId) -> (Option<Batch>, Vec<String>) {
    let batch = claim(fixture, subscription).await;
    let ids = batch.iter().flat_map(|batch| ids(batch)).map(str::to_owned).collect();
    (batch, ids)
}

/// Claims, and completes, one after the other, until nothing is left; answers the ids.
async fn drain(fixture: &Fixture, subscription: SubscriptionId) -> Vec<String> {
    let mut drained = Vec::new();
    loop {
        let before = drained.len();
        for lane in Lane::ALL {
            while let Some(batch) = fixture.store.claim(on(lane, subscription)).await.unwrap() {
                drained.extend(ids(&batch).into_iter().map(str::to_owned));
                fixture.settle_all(&complete_all(&batch)).await;
            }
        }
        if drained.len() == before {
            return drained;
        }
    }
}

fn retry(delay: Duration) -> Verdict {
    Verdict::Retry { delay, counted: true, error: Some(ErrorText::new("again")) }
}

fn dead() -> Verdict {
    Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("x"), plugin: None }
}

async fn parked(fixture: &Fixture) -> u64 {
    let status = fixture.store.status().await.unwrap();
    status.subscriptions.iter().flat_map(|one| &one.lanes).map(|lane| lane.parked).sum()
}

conformance! {
    async fn messages_of_one_key_come_one_at_a_time_and_in_order(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        fixture
            .enqueue(&[
                keyed("a", "a1"), keyed("a", "a2"), message("free-1"), keyed("b", "b1"), keyed("a", "a3"),
                message("free-2"), keyed("b", "b2"),
            ])
            .await;
        let (first, found) = claimed(fixture, subscription).await;
        let first = first.unwrap();
        assert_eq!(found, ["a1", "free-1", "b1", "free-2"]);
        assert_eq!(claimed(fixture, subscription).await.1, [""; 0], "their keys are busy");
        assert_eq!(parked(fixture).await, 3);

        fixture.settle_all(&[complete(&first, 0)]).await;
        let (second, found) = claimed(fixture, subscription).await;
        assert_eq!(found, ["a2"]);
        fixture.settle_all(&[settlement(&second.unwrap(), 0, dead()), complete(&first, 1)]).await;
        assert_eq!(claimed(fixture, subscription).await.1, ["a3"], "a dead letter holds nobody up");
        fixture.settle_all(&[complete(&first, 2), complete(&first, 3)]).await;
        assert_eq!(claimed(fixture, subscription).await.1, ["b2"]);
        assert_eq!(parked(fixture).await, 0);
    }

    async fn later_messages_of_a_busy_key_wait_as_well(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1")]).await;
        let first = claim(fixture, subscription).await.unwrap();
        fixture.enqueue(&[keyed("a", "a2")]).await;
        fixture.enqueue(&[keyed("a", "a3"), keyed("b", "b1")]).await;
        assert_eq!(claimed(fixture, subscription).await.1, ["b1"]);
        fixture.settle_all(&[complete(&first, 0)]).await;
        fixture.enqueue(&[keyed("a", "a4")]).await;
        assert_eq!(drain(fixture, subscription).await, ["a2", "a3", "a4"]);
    }

    async fn the_order_of_a_key_holds_across_lanes_and_priorities(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        let with = |priority, id| NewMessage { priority, ..keyed("a", id) };
        fixture
            .enqueue(&[
                with(Priority::BULK, "a1"), with(Priority::HIGH, "a2"), with(Priority::CRITICAL, "a3"),
                with(Priority::LOW, "a4"), NewMessage { priority: Priority::HIGH, ..keyed("b", "b1") },
            ])
            .await;
        assert_eq!(claimed(fixture, subscription).await.1, ["b1"], "a1 comes by the other lane");
        assert_eq!(drain(fixture, subscription).await, ["a1", "a2", "a3", "a4"]);
    }

    async fn a_retry_holds_up_its_own_key_and_no_other(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2"), keyed("b", "b1"), keyed("b", "b2")]).await;
        let first = claim(fixture, subscription).await.unwrap();
        assert_eq!(ids(&first), ["a1", "b1"]);
        fixture.settle_all(&[settlement(&first, 0, retry(HOUR)), complete(&first, 1)]).await;
        assert_eq!(drain(fixture, subscription).await, ["b2"], "a1 waits for its next attempt");
        fixture.sql().await.make_due("attempt = 1").await;
        let again = claim(fixture, subscription).await.unwrap();
        assert_eq!((ids(&again), again.deliveries[0].attempt), (vec!["a1"], 2));
        fixture.settle_all(&[settlement(&again, 0, Verdict::RELEASE)]).await;
        assert_eq!(drain(fixture, subscription).await, ["a1", "a2"], "what was handed back comes first again");
    }

    async fn a_lease_that_ended_gives_the_same_message_to_the_next(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2")]).await;
        let stale = claim(fixture, subscription).await.unwrap();
        fixture.sql().await.expire_leases().await;
        let second = claim(fixture, subscription).await.unwrap();
        assert_eq!((ids(&second), second.deliveries[0].lost), (vec!["a1"], 1));
        assert_eq!(fixture.settle(&[complete(&stale, 0)]).await, (vec![0], vec![]));
        assert_eq!(claimed(fixture, subscription).await.1, [""; 0], "who came too late lets nobody go ahead");
        fixture.settle_all(&[complete(&second, 0)]).await;
        assert_eq!(claimed(fixture, subscription).await.1, ["a2"]);
    }

    async fn a_delayed_message_takes_its_place_when_it_is_due(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        let delayed = |id| NewMessage { delay: Some(HOUR), ..keyed("a", id) };
        fixture.enqueue(&[delayed("a1"), delayed("a2"), keyed("a", "a3"), keyed("a", "a4")]).await;
        let first = claim(fixture, subscription).await.unwrap();
        assert_eq!(ids(&first), ["a3"], "nobody waits for what is not due");
        fixture.sql().await.make_due("attempt = 0").await;
        assert_eq!(claimed(fixture, subscription).await.1, [""; 0]);
        fixture.settle_all(&[complete(&first, 0)]).await;
        assert_eq!(drain(fixture, subscription).await, ["a1", "a2", "a4"]);
    }

    async fn several_delayed_messages_of_a_key_come_one_at_a_time(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        let delayed = |id| NewMessage { delay: Some(HOUR), ..keyed("a", id) };
        fixture.enqueue(&[delayed("a1"), delayed("a2"), delayed("a3")]).await;
        fixture.sql().await.make_due("true").await;
        let mut drained = Vec::new();
        while let Some(batch) = claim(fixture, subscription).await {
            assert_eq!(batch.deliveries.len(), 1);
            drained.push(ids(&batch)[0].to_owned());
            fixture.settle_all(&complete_all(&batch)).await;
        }
        assert_eq!(drained, ["a1", "a2", "a3"]);
    }

    async fn a_message_that_is_taken_back_holds_nobody_up(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        let bulk = |id| NewMessage { priority: Priority::BULK, ..keyed("a", id) };
        fixture.enqueue(&[bulk("a1"), bulk("a2"), keyed("a", "a3"), bulk("a4")]).await;
        let id = |text| MessageId::parse(text).unwrap();
        let later = Timestamp::now() + HOUR;
        assert_eq!(claimed(fixture, subscription).await.1, [""; 0], "a1 goes before a3");
        assert_eq!(fixture.store.cancel(&id("a1")).await.unwrap(), Change::Done);
        assert_eq!(claimed(fixture, subscription).await.1, [""; 0], "and so does a2");
        assert_eq!(fixture.store.reschedule(&id("a2"), later).await.unwrap(), Change::Done);
        let third = claim(fixture, subscription).await.unwrap();
        assert_eq!(ids(&third), ["a3"]);
        assert_eq!(fixture.store.claim(on(Lane::Backfill, subscription)).await.unwrap().map(|batch| batch.token), None);
        assert_eq!(fixture.store.cancel(&id("a3")).await.unwrap(), Change::TooLate);
        // While it is in work, its message goes without a word.
        fixture.sql().await.run("delete from @message where id = 'a3'").await;
        assert_eq!(drain(fixture, subscription).await, ["a4"]);
    }

    async fn a_waiting_message_can_be_moved_past_those_behind_it(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2"), keyed("a", "a3")]).await;
        let first = claim(fixture, subscription).await.unwrap();
        assert_eq!(parked(fixture).await, 2);
        let id = MessageId::parse("a2").unwrap();
        assert_eq!(fixture.store.reschedule(&id, Timestamp::now() + HOUR).await.unwrap(), Change::Done);
        fixture.settle_all(&[complete(&first, 0)]).await;
        assert_eq!(drain(fixture, subscription).await, ["a3"]);
        assert_eq!(fixture.store.reschedule(&id, Timestamp::now()).await.unwrap(), Change::Done);
        assert_eq!(drain(fixture, subscription).await, ["a2"]);
    }

    async fn a_change_that_is_under_way_loses_no_follower(fixture: &Fixture) {
        if fixture.is_sqlite() {
            // There, changes come one after the other.
            return;
        }
        let subscription = subscribe(fixture).await;
        for (round, (change, end)) in
            [("cancel", "commit"), ("cancel", "rollback"), ("reschedule", "commit"), ("reschedule", "rollback")]
                .into_iter()
                .enumerate()
        {
            let key = format!("k{round}");
            let [first, second, third] = [1, 2, 3].map(|number| format!("{key}-{number}"));
            let bulk = NewMessage { priority: Priority::BULK, ..keyed(&key, &first) };
            fixture.enqueue(&[bulk, keyed(&key, &second)]).await;
            let mut sql = fixture.sql().await;
            sql.run("begin").await;
            let arguments = if change == "cancel" { format!("'{first}'") } else { format!("'{first}', 'infinity'") };
            sql.texts(&format!("select @{change}_message({arguments})")).await;
            // The claim does not wait for the application, and sees the message as it was.
            let claiming = timeout(Duration::from_secs(5), claimed(fixture, subscription));
            assert_eq!(claiming.await.expect("a claim waits for an application").1, [""; 0]);
            fixture.enqueue(&[keyed(&key, &third)]).await;
            assert_eq!(claimed(fixture, subscription).await.1, [""; 0]);
            sql.run(end).await;
            let left = drain(fixture, subscription).await;
            let wanted = if end == "commit" { vec![second, third] } else { vec![first, second, third] };
            assert_eq!(left, wanted, "{change}, {end}");
        }
    }

    async fn what_was_handed_back_can_be_moved_past_the_others(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2")]).await;
        let first = claim(fixture, subscription).await.unwrap();
        fixture.settle_all(&[settlement(&first, 0, Verdict::RELEASE)]).await;
        let id = MessageId::parse("a1").unwrap();
        assert_eq!(fixture.store.reschedule(&id, Timestamp::now() + HOUR).await.unwrap(), Change::Done);
        assert_eq!(drain(fixture, subscription).await, ["a2"]);
    }

    async fn what_was_delayed_and_is_due_is_not_overtaken_by_another_lane(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        let delayed = NewMessage { delay: Some(HOUR), priority: Priority::BULK, ..keyed("a", "a1") };
        let moved = NewMessage { delay: Some(HOUR), priority: Priority::BULK, ..keyed("b", "b1") };
        fixture.enqueue(&[delayed, moved]).await;
        fixture.sql().await.make_due("message_seq = (select seq from @message where id = 'a1')").await;
        let now = Timestamp::now() - HOUR;
        let id = MessageId::parse("b1").unwrap();
        assert_eq!(fixture.store.reschedule(&id, now).await.unwrap(), Change::Done);
        fixture.enqueue(&[keyed("a", "a2"), keyed("b", "b2")]).await;
        assert_eq!(claimed(fixture, subscription).await.1, [""; 0]);
        let drained = drain(fixture, subscription).await;
        assert_eq!(drained, ["a1", "b1", "a2", "b2"]);
    }

    async fn a_node_that_knows_nothing_of_the_order_takes_nothing(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2")]).await;
        let stale = ClaimRequest { ordered: false, ..on(Lane::Primary, subscription) };
        assert!(fixture.store.claim(stale).await.unwrap().is_none());
        assert_eq!(drain(fixture, subscription).await, ["a1", "a2"]);
    }

    async fn a_message_that_is_deleted_while_it_is_handed_back_holds_nobody_up(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2"), keyed("b", "b1"), keyed("b", "b2")]).await;
        let mut sql = fixture.sql().await;
        // Deleted while it is in work, and then its lease ends, or its node hands it back.
        let first = claim(fixture, subscription).await.unwrap();
        assert_eq!(ids(&first), ["a1", "b1"]);
        sql.run("delete from @message where id in ('a1', 'b1')").await;
        fixture.settle(&[settlement(&first, 0, Verdict::RELEASE)]).await;
        sql.expire_leases().await;
        assert_eq!(drain(fixture, subscription).await, ["a2", "b2"]);
        assert_eq!(sql.count("busy_key").await, 0);
        // A delivery that is left of one that is gone.
        fixture.enqueue(&[keyed("a", "a3"), keyed("a", "a4")]).await;
        if fixture.is_sqlite() {
            sql.run("update laneway_delivery set id = 77 * 1048576 + subscription_id, message_seq = 77
                where message_seq = (select seq from laneway_message where id = 'a3')").await;
        } else {
            sql.run("update laneway.delivery set message_seq = 0
                where message_seq = (select seq from laneway.message where id = 'a3')").await;
        }
        sql.run("delete from @message where id = 'a3'").await;
        sql.run("update @delivery set parked = null where parked is not null and message_seq in (0, 77)").await;
        assert_eq!(drain(fixture, subscription).await, ["a4"]);
    }

    async fn a_message_deleted_under_a_claim_holds_nobody_up(fixture: &Fixture) {
        if fixture.is_sqlite() {
            return;
        }
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2"), keyed("z", "z1")]).await;
        // Stops the claim in its middle, while it takes a1.
        let mut sql = fixture.sql().await;
        sql.run(&format!(
            "begin; insert into @busy_key (subscription_id, key, message_seq) values ({subscription}, 'z', 0)"
        ))
        .await;
        let node = fixture.another_node().await;
        let slow = tokio::spawn(async move { node.claim(on(Lane::Primary, subscription)).await.unwrap() });
        let mut looking = fixture.sql().await;
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'
            and datname = current_database()";
        while looking.number(waiting).await < 1 {
            sleep(Duration::from_millis(5)).await;
        }
        let mut other = fixture.sql().await;
        let deleting = tokio::spawn(async move { other.run("delete from @message where id = 'a1'").await });
        while looking.number(waiting).await < 2 {
            sleep(Duration::from_millis(5)).await;
        }
        sql.run("rollback").await;
        let batch = slow.await.unwrap().unwrap();
        deleting.await.unwrap();
        let place = batch.deliveries.iter().position(|delivery| delivery.message.id.as_str() == "a1").unwrap();
        fixture.settle(&[settlement(&batch, place, Verdict::RELEASE)]).await;
        assert!(drain(fixture, subscription).await.contains(&"a2".to_owned()));
    }

    async fn a_claim_under_way_parks_nobody_for_ever(fixture: &Fixture) {
        if fixture.is_sqlite() {
            // There, claims come one after the other.
            return;
        }
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1")]).await;
        let first = claim(fixture, subscription).await.unwrap();
        fixture.enqueue(&[keyed("a", "a2"), keyed("z", "z1")]).await;
        // Stops the next claim in its middle, when it has seen that a1 is in work.
        let mut sql = fixture.sql().await;
        sql.run(&format!("begin; insert into @busy_key (subscription_id, key, message_seq) values ({subscription}, 'z', 0)")).await;
        let node = fixture.another_node().await;
        let slow = tokio::spawn(async move { node.claim(on(Lane::Primary, subscription)).await.unwrap() });
        let mut looking = fixture.sql().await;
        while looking.number("select count(*) from pg_stat_activity where wait_event_type = 'Lock'
            and query like '%delivery.claim%' and datname = current_database()").await == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        fixture.settle_all(&[complete(&first, 0)]).await;
        let node = fixture.another_node().await;
        let second = tokio::spawn(async move { node.claim(on(Lane::Primary, subscription)).await.unwrap() });
        sleep(Duration::from_millis(300)).await;
        sql.run("rollback").await;
        let mut came: Vec<String> = Vec::new();
        for batch in [slow.await.unwrap(), second.await.unwrap(), claim(fixture, subscription).await] {
            came.extend(batch.iter().flat_map(|batch| ids(batch)).map(str::to_owned));
        }
        came.sort_unstable();
        assert_eq!(came, ["a2", "z1"]);
    }

    async fn a_message_owed_again_goes_by_its_place_in_the_outbox(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2"), keyed("a", "a3")]).await;
        let first = claim(fixture, subscription).await.unwrap();
        fixture.settle_all(&[settlement(&first, 0, dead())]).await;
        let second = claim(fixture, subscription).await.unwrap();
        let selection = DeadLetterSelection::default();
        let newest = fixture.store.newest_dead_letter().await.unwrap();
        let replayed = fixture
            .store
            .act_on_dead_letters(DeadLetterAction::Replay, &selection, 0, newest, 10)
            .await
            .unwrap();
        assert_eq!(replayed.changed, 1);
        assert_eq!(claimed(fixture, subscription).await.1, [""; 0], "a2 is in work");
        fixture.settle_all(&[complete(&second, 0)]).await;
        assert_eq!(drain(fixture, subscription).await, ["a1", "a3"]);

        let replay = Replay {
            subscription: name("handler"),
            topic: None,
            since: None,
            until: Timestamp::now() + HOUR,
            priority: Priority::BULK,
            force: true,
        };
        assert_eq!(fixture.store.replay(&replay, 0, 10).await.unwrap().changed, 3);
        let backfill = fixture.store.claim(on(Lane::Backfill, subscription)).await.unwrap().unwrap();
        assert_eq!(ids(&backfill), ["a1"]);
        fixture.settle_all(&complete_all(&backfill)).await;
        assert_eq!(drain(fixture, subscription).await, ["a2", "a3"]);
    }

    async fn the_ordering_can_be_turned_on_and_off(fixture: &Fixture) {
        let unordered = fixture.subscribe().await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2"), keyed("a", "a3"), keyed("a", "a4")]).await;
        let subscription = subscribe(fixture).await;
        assert_eq!(subscription, unordered);
        let first = claim(fixture, subscription).await.unwrap();
        assert_eq!(ids(&first), ["a1"]);
        assert_eq!(claimed(fixture, subscription).await.1, [""; 0]);
        fixture.subscribe().await;
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["a2", "a3", "a4"]);
        fixture.settle_all(&[complete(&first, 0)]).await;
        assert_eq!(fixture.sql().await.count("busy_key").await, 0);
    }

    async fn two_subscriptions_order_independently(fixture: &Fixture) {
        let applied = fixture.apply(vec![ordered("one", "t.>"), ordered("two", "t.>"), subscription("free", "t.>")]).await;
        fixture.enqueue(&[keyed("a", "a1"), keyed("a", "a2")]).await;
        let one = claim(fixture, number_of(&applied, "one")).await.unwrap();
        let two = claim(fixture, number_of(&applied, "two")).await.unwrap();
        assert_eq!((ids(&one), ids(&two)), (vec!["a1"], vec!["a1"]));
        assert_eq!(ids(&fixture.claim_some(number_of(&applied, "free")).await), ["a1", "a2"]);
        fixture.settle_all(&[complete(&one, 0)]).await;
        assert_eq!(claimed(fixture, number_of(&applied, "one")).await.1, ["a2"]);
        assert_eq!(claimed(fixture, number_of(&applied, "two")).await.1, [""; 0]);
    }

    async fn many_messages_of_one_key_do_not_hide_the_others(fixture: &Fixture) {
        let subscription = subscribe(fixture).await;
        let mut messages: Vec<NewMessage> = (0..1500).map(|number| keyed("hot", &format!("hot-{number}"))).collect();
        messages.extend((0..3).map(|number| keyed(&format!("k{number}"), &format!("k{number}"))));
        fixture.enqueue(&messages).await;
        let one = ClaimRequest { limit: 1, ..on(Lane::Primary, subscription) };
        let first = fixture.store.claim(one).await.unwrap().unwrap();
        assert_eq!(ids(&first), ["hot-0"]);
        let mut others = Vec::new();
        while let Some(batch) = fixture.store.claim(one).await.unwrap() {
            others.extend(ids(&batch).into_iter().map(str::to_owned));
        }
        assert_eq!(others, ["k0", "k1", "k2"]);
        assert_eq!(parked(fixture).await, 1499);
    }

    async fn keys_stay_in_order_through_faults_and_races(fixture: &Fixture) {
        const KEYS: usize = 7;
        const EACH: usize = 30;
        const LEASE: Duration = Duration::from_millis(80);

        async fn work(store: Arc<FaultyStore>, subscription: SubscriptionId, mut random: Random, stop: Arc<AtomicBool>) {
            while !stop.load(Atomic::SeqCst) {
                let lane = *random.pick(&Lane::ALL);
                let limit = 1 + random.below(6) as u32;
                let request = ClaimRequest { limit, lease: LEASE, ..on(lane, subscription) };
                let Ok(Some(batch)) = store.claim(request).await else {
                    sleep(Duration::from_millis(2)).await;
                    continue;
                };
                let keys: HashSet<_> = batch.deliveries.iter().map(|delivery| &delivery.message.key).collect();
                assert_eq!(keys.len(), batch.deliveries.len(), "two of a key in one batch");
                if random.chance(0.1) {
                    sleep(LEASE + Duration::from_millis(random.below(30) as u64)).await;
                    if random.chance(0.5) {
                        continue;
                    }
                }
                let group: Vec<Settlement> = (0..batch.deliveries.len())
                    .map(|position| match random.below(10) {
                        0 => settlement(&batch, position, Verdict::RELEASE),
                        1 => settlement(&batch, position, retry(Duration::from_millis(random.below(20) as u64))),
                        _ => {
                            // What it emits is written in the order of the commits.
                            let settlement = complete(&batch, position);
                            let id = MessageId::parse(&format!("done-{}", settlement.message)).unwrap();
                            let topic = Topic::parse("log.x").unwrap();
                            let done = NewMessage { id, ..NewMessage::new(topic, "{}") };
                            Settlement { emits: vec![done], ..settlement }
                        }
                    })
                    .collect();
                settle_surely(&*store, &group).await;
            }
        }

        let subscription = subscribe(fixture).await;
        let mut random = Random::new(seed());
        let odds = Odds { before: 0.05, after: 0.1, delay: 0.1, delay_max: LEASE };
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = JoinSet::new();
        for store in [Arc::clone(&fixture.store), fixture.another_node().await] {
            let faulty = FaultyStore::random(store, random.next(), odds);
            let faulty = Arc::new(faulty.only(&[Operation::Claim, Operation::Settle]));
            for _ in 0..4 {
                workers.spawn(work(Arc::clone(&faulty), subscription, random.fork(), Arc::clone(&stop)));
            }
        }
        let mut written: HashMap<String, Vec<String>> = HashMap::new();
        let mut left = [EACH; KEYS];
        while left.iter().any(|&left| left > 0) {
            let mut part = Vec::new();
            for _ in 0..12 {
                let key = random.below(KEYS);
                if left[key] > 0 {
                    let id = format!("k{key}-{}", EACH - left[key]);
                    left[key] -= 1;
                    let priority = Priority(*random.pick(&[-100, 0, 100]));
                    part.push(NewMessage { priority, ..keyed(&format!("k{key}"), &id) });
                    written.entry(format!("k{key}")).or_default().push(id);
                }
            }
            fixture.enqueue(&part).await;
            sleep(Duration::from_millis(10)).await;
        }
        let drained = fixture.drained_within(Duration::from_secs(180)).await;
        stop.store(true, Atomic::SeqCst);
        workers.join_all().await;
        let stuck = fixture.sql().await.texts("select m.id from @owed o join @message m on m.seq = o.message_seq").await;
        assert!(drained, "some deliveries are never settled: {stuck:?}");
        let mut sql = fixture.sql().await;
        let done = sql.texts("select id from @message where topic = 'log.x' order by seq").await;
        let mut settled: HashMap<String, Vec<String>> = HashMap::new();
        for id in done.iter().filter_map(|id| id.strip_prefix("done-")) {
            let key = id.split_once('-').unwrap().0.to_owned();
            settled.entry(key).or_default().push(id.to_owned());
        }
        assert_eq!(settled, written);
        assert_eq!(sql.count("busy_key").await, 0);
    }
}
