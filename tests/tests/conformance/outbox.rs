//! Behaviours 1, 2, 29, 31, 34, 36, 41 and 42, for applications that use the crate `laneway-outbox`.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use laneway_core::{ClaimRequest, Lane, Priority, StoreError, Topology, Verdict};
use laneway_outbox::{
    Change, OutboxError, Outgoing, When, cancel, enqueue, enqueue_all, markers, reschedule, with_priority,
};
use serde_json::json;

use crate::fixture::*;

fn outgoing(id: &str) -> Outgoing {
    Outgoing::new("t.x", format!("{{\"id\":\"{id}\"}}")).unwrap().id(id).unwrap()
}

fn told(enqueued: &[laneway_core::Enqueued]) -> Vec<(&str, bool)> {
    enqueued.iter().map(|one| (one.id.as_str(), one.duplicate)).collect()
}

/// Waits until a session of this PostgreSQL database waits for a lock.
async fn lock_awaited(fixture: &Fixture) {
    let waiting = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'";
    let mut sql = fixture.sql().await;
    let deadline = Instant::now() + PATIENCE;
    while sql.number(waiting).await == 0 {
        assert!(Instant::now() < deadline, "nothing has waited for a lock in {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

conformance! {
    async fn the_producers_transaction_decides(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        sql.begin_writing().await;
        enqueue(&mut sql, &outgoing("gone")).await.unwrap();
        sql.run("rollback").await;
        assert!(fixture.claim(subscription).await.is_none());
        assert_eq!(sql.count("message").await, 0);

        sql.begin_writing().await;
        let enqueued = enqueue(&mut sql, &outgoing("kept")).await.unwrap();
        assert!(fixture.claim(subscription).await.is_none(), "it is not committed");
        sql.run("commit").await;
        assert_eq!((enqueued.id.as_str(), enqueued.duplicate), ("kept", false));
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["kept"]);
    }

    async fn everything_that_a_message_has_arrives(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let message = outgoing("m")
            .key("customer-7")
            .priority(Priority::HIGH)
            .header("a", "1")
            .header("b", "ä\"")
            .header("a", "2")
            .tenant("acme")
            .content_type("text/plain")
            .position("orders", 42);
        enqueue(&mut sql, &message).await.unwrap();
        let batch = fixture.claim_some(subscription).await;
        let got = &batch.deliveries[0].message;
        assert_eq!((got.key.as_deref(), got.tenant.as_deref()), (Some("customer-7"), Some("acme")));
        assert_eq!((got.priority, got.content_type.as_str()), (Priority::HIGH, "text/plain"));
        assert_eq!(&got.payload[..], b"{\"id\":\"m\"}");
        let mut headers: Vec<(&str, &str)> = got.headers.iter().map(|h| (&h.name[..], &h.value[..])).collect();
        headers.sort_unstable();
        assert_eq!(headers, [("a", "2"), ("b", "ä\"")]);
        assert_eq!(sql.number("select position from @message where stream = 'orders'").await, 42);
    }

    async fn a_position_stands_once_in_its_stream(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        sql.begin_writing().await;
        let first = outgoing("m").position("orders", 1);
        assert!(!enqueue(&mut sql, &first).await.unwrap().duplicate);
        assert!(enqueue(&mut sql, &first).await.unwrap().duplicate);
        let error = enqueue(&mut sql, &outgoing("other").position("orders", 1)).await.unwrap_err();
        assert!(
            matches!(&error, OutboxError::PositionTaken { stream, position: 1 } if stream == "orders"),
            "{error:?}"
        );
        // The transaction goes on.
        let second = outgoing("n").position("orders", 2);
        let many = [outgoing("plain"), first, second.clone(), second, outgoing("last")];
        let enqueued = enqueue_all(&mut sql, &many).await.unwrap();
        assert_eq!(told(&enqueued), [("plain", false), ("m", true), ("n", false), ("n", true), ("last", false)]);
        sql.run("commit").await;
        assert_eq!(sql.texts("select id from @message order by seq").await, ["m", "plain", "n", "last"]);
    }

    async fn a_message_written_twice_at_once_is_a_duplicate_despite_its_position(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut first = fixture.sql().await;
        first.begin_writing().await;
        enqueue(&mut first, &outgoing("m").position("orders", 1)).await.unwrap();
        let mut writers = Vec::new();
        for id in ["m", "other"] {
            let mut sql = fixture.sql().await;
            writers.push(tokio::spawn(async move {
                sql.run("begin").await;
                let answer = enqueue(&mut sql, &outgoing(id).position("orders", 1)).await;
                enqueue(&mut sql, &outgoing(&format!("after-{id}"))).await.unwrap();
                sql.run("commit").await;
                answer
            }));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        first.run("commit").await;
        let mut answers = Vec::new();
        for writer in writers {
            answers.push(writer.await.unwrap());
        }
        assert!(matches!(&answers[0], Ok(one) if one.duplicate), "{answers:?}");
        assert!(matches!(&answers[1], Err(OutboxError::PositionTaken { position: 1, .. })), "{answers:?}");
        let written = first.texts("select id from @message order by id").await;
        assert_eq!(written, ["after-m", "after-other", "m"]);
    }

    async fn of_many_writers_of_one_position_one_writes(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let mut sql = fixture.sql().await;
            writers.spawn(async move {
                let mut written = 0;
                for n in 0..20 {
                    let message = outgoing(&format!("m{n}")).position("orders", n);
                    written += i64::from(!enqueue(&mut sql, &message).await.unwrap().duplicate);
                }
                written
            });
        }
        assert_eq!(writers.join_all().await.into_iter().sum::<i64>(), 20);
        assert_eq!(fixture.sql().await.count("message").await, 20);
    }

    async fn duplicates_are_reported_one_by_one(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        enqueue(&mut sql, &outgoing("m1")).await.unwrap();
        let many: Vec<Outgoing> = ["m0", "m1", "m2", "m2"].iter().map(|id| outgoing(id)).collect();
        let enqueued = enqueue_all(&mut sql, &many).await.unwrap();
        assert_eq!(told(&enqueued), [("m0", false), ("m1", true), ("m2", false), ("m2", true)]);
        assert_eq!(sql.count("message").await, 3);
        assert!(enqueue_all(&mut sql, &[]).await.unwrap().is_empty());
    }

    async fn thousands_of_messages_are_written_in_their_order(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let many: Vec<Outgoing> = (0..2500).map(|n| outgoing(&format!("m{n:04}"))).collect();
        sql.begin_writing().await;
        let enqueued = enqueue_all(&mut sql, &many).await.unwrap();
        sql.run("commit").await;
        assert!(enqueued.iter().all(|one| !one.duplicate));
        let request = ClaimRequest { limit: 4096, ..request(subscription) };
        let mut got = Vec::new();
        while let Some(batch) = fixture.store.claim(request).await.unwrap() {
            got.extend(ids(&batch).into_iter().map(str::to_owned));
        }
        assert_eq!(got.len(), 2500);
        assert!(got.is_sorted());
    }

    async fn the_scopes_priority_is_that_of_messages_without_one(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        enqueue(&mut sql, &outgoing("normal")).await.unwrap();
        with_priority(Priority::LOW, async {
            enqueue(&mut sql, &outgoing("low")).await.unwrap();
            enqueue(&mut sql, &outgoing("explicit").priority(Priority::CRITICAL)).await.unwrap();
            with_priority(Priority::HIGH, async { enqueue(&mut sql, &outgoing("inner")).await.unwrap() }).await;
        })
        .await;
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["explicit", "inner", "normal"]);
        let backfill = ClaimRequest { lane: Lane::Backfill, ..request(subscription) };
        let batch = fixture.store.claim(backfill).await.unwrap().unwrap();
        assert_eq!((ids(&batch), batch.deliveries[0].message.priority), (vec!["low"], Priority::LOW));
    }

    async fn a_message_is_due_when_it_says(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let now = fixture.store.now().await.unwrap();
        let past = now - Duration::from_secs(3600);
        enqueue(&mut sql, &outgoing("hour").due(When::After(HOUR))).await.unwrap();
        enqueue(&mut sql, &outgoing("past").due(When::At(past))).await.unwrap();
        enqueue(&mut sql, &outgoing("future").due(When::At(now + HOUR))).await.unwrap();
        enqueue(&mut sql, &outgoing("soon").due(When::After(Duration::from_secs(3)))).await.unwrap();
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["past"]);
        assert_eq!(ids(&fixture.claim_soon(subscription).await), ["soon"]);
        assert!(fixture.claim(subscription).await.is_none());
        let waits = fixture.store.next_due(subscription).await.unwrap().unwrap();
        assert!(waits > HOUR / 2 && waits <= HOUR, "{waits:?}");
    }

    async fn a_time_before_1970_is_now(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        enqueue(&mut sql, &outgoing("moved").due(When::After(HOUR))).await.unwrap();
        enqueue(&mut sql, &outgoing("hour").due(When::At(Timestamp::UNIX_EPOCH - HOUR))).await.unwrap();
        enqueue(&mut sql, &outgoing("long").due(When::At(Timestamp::MIN))).await.unwrap();
        assert_eq!(reschedule(&mut sql, "moved", Timestamp::MIN).await.unwrap(), Change::Done);
        let batch = fixture.claim_some(subscription).await;
        let mut got = ids(&batch);
        got.sort_unstable();
        assert_eq!(got, ["hour", "long", "moved"]);
    }

    async fn a_message_can_be_taken_back_until_it_is_claimed(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        for id in ["waits", "claimed"] {
            enqueue(&mut sql, &outgoing(id)).await.unwrap();
        }
        assert_eq!(cancel(&mut sql, "waits").await.unwrap(), Change::Done);
        assert_eq!(cancel(&mut sql, "waits").await.unwrap(), Change::Unknown);
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(ids(&batch), ["claimed"]);
        assert_eq!(cancel(&mut sql, "claimed").await.unwrap(), Change::TooLate);
        fixture.settle_all(&complete_all(&batch)).await;
        assert_eq!(cancel(&mut sql, "claimed").await.unwrap(), Change::TooLate, "it is processed");
        assert_eq!(cancel(&mut sql, "never").await.unwrap(), Change::Unknown);
        assert_eq!((sql.count("message").await, sql.count("owed").await), (1, 0));
    }

    async fn a_cancel_that_is_rolled_back_did_not_happen(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        enqueue(&mut sql, &outgoing("m")).await.unwrap();
        sql.begin_writing().await;
        assert_eq!(cancel(&mut sql, "m").await.unwrap(), Change::Done);
        sql.run("rollback").await;
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["m"]);
    }

    async fn a_message_can_be_moved_in_time_until_it_is_claimed(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let now = fixture.store.now().await.unwrap();
        enqueue(&mut sql, &outgoing("later").due(When::After(HOUR))).await.unwrap();
        enqueue(&mut sql, &outgoing("now")).await.unwrap();
        assert_eq!(reschedule(&mut sql, "now", now + HOUR).await.unwrap(), Change::Done);
        assert!(fixture.claim(subscription).await.is_none());
        assert_eq!(fixture.store.reschedule(&laneway_core::MessageId::parse("later").unwrap(), Timestamp::UNIX_EPOCH).await.unwrap(), Change::Done);
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(ids(&batch), ["later"]);
        assert_eq!(reschedule(&mut sql, "later", now).await.unwrap(), Change::TooLate);
        assert_eq!(reschedule(&mut sql, "never", now).await.unwrap(), Change::Unknown);
        assert_eq!(fixture.store.cancel(&laneway_core::MessageId::parse("now").unwrap()).await.unwrap(), Change::Done);
    }

    async fn what_matched_no_subscription_is_taken_back_but_not_moved(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let message = Outgoing::new("elsewhere.x", "{}").unwrap().id("m").unwrap();
        enqueue(&mut sql, &message).await.unwrap();
        assert_eq!(reschedule(&mut sql, "m", Timestamp::UNIX_EPOCH).await.unwrap(), Change::TooLate);
        assert_eq!(cancel(&mut sql, "m").await.unwrap(), Change::Done);
        assert_eq!((sql.count("message").await, sql.count("unrouted").await), (0, 0));
        if !fixture.is_sqlite() {
            let refusal = sql.refusal("select laneway.reschedule_message('m', null)").await;
            assert!(refusal.contains("due is NULL"), "{refusal}");
        }
    }

    async fn a_consumers_marker_does_not_keep_a_message_from_being_changed(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let now = fixture.store.now().await.unwrap();
        enqueue(&mut sql, &outgoing("m")).await.unwrap();
        assert!(markers::mark_processed(&mut sql, "billing", "m", None).await.unwrap());
        assert_eq!(reschedule(&mut sql, "m", now + HOUR).await.unwrap(), Change::Done);
        assert_eq!(cancel(&mut sql, "m").await.unwrap(), Change::Done);
    }

    async fn a_change_in_a_plain_transaction_waits_for_another_to_commit(fixture: &Fixture) {
        fixture.subscribe().await;
        fixture.enqueue_ids(&["gone", "moved"]).await;
        let mut writer = fixture.sql().await;
        writer.begin_writing().await;
        enqueue(&mut writer, &outgoing("other")).await.unwrap();
        let mut sql = fixture.sql().await;
        let cancelling = tokio::spawn(async move {
            sql.run("begin").await;
            let change = cancel(&mut sql, "gone").await.unwrap();
            sql.run("commit").await;
            change
        });
        let mut sql = fixture.sql().await;
        let moving = tokio::spawn(async move {
            sql.run("begin").await;
            let change = reschedule(&mut sql, "moved", Timestamp::UNIX_EPOCH).await.unwrap();
            sql.run("commit").await;
            change
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        writer.run("commit").await;
        assert_eq!((cancelling.await.unwrap(), moving.await.unwrap()), (Change::Done, Change::Done));
        assert_eq!(writer.texts("select id from @message order by id").await, ["moved", "other"]);
    }

    async fn what_is_handed_back_while_a_change_waits_is_held_too(fixture: &Fixture) {
        if fixture.is_sqlite() {
            return; // One transaction writes at a time.
        }
        let mut subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.>")]).await;
        // Deliveries are locked in the order of these numbers, which are random.
        subscriptions.sort_unstable();
        let (a, b) = (subscriptions[0], subscriptions[1]);
        fixture.enqueue_ids(&["m"]).await;
        let mut blocker = fixture.sql().await;
        blocker.run("begin").await;
        blocker.run(&format!("select from @delivery where subscription_id = {a} for update")).await;
        let mut holder = fixture.sql().await;
        let holding = tokio::spawn(async move {
            holder.run("begin").await;
            let answer = holder.texts("select answer from laneway.hold_waiting_message('m')").await;
            (holder, answer)
        });
        lock_awaited(fixture).await;
        let batch = fixture.claim_some(b).await;
        fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
        blocker.run("rollback").await;
        let (mut holder, answer) = holding.await.unwrap();
        assert_eq!(answer, ["open"]);
        assert!(fixture.claim(a).await.is_none(), "it is held");
        assert!(fixture.claim(b).await.is_none(), "it is held, though it came back late");
        holder.run("rollback").await;
        assert_eq!(ids(&fixture.claim_some(a).await), ["m"]);
        assert_eq!(ids(&fixture.claim_some(b).await), ["m"]);
    }

    async fn a_change_that_comes_too_late_holds_nothing(fixture: &Fixture) {
        if fixture.is_sqlite() {
            return; // One transaction writes at a time.
        }
        let mut subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.>")]).await;
        // Deliveries are locked in the order of these numbers, which are random.
        subscriptions.sort_unstable();
        let (a, b) = (subscriptions[0], subscriptions[1]);
        fixture.enqueue_ids(&["before"]).await;
        fixture.claim_some(b).await;
        let mut sql = fixture.sql().await;
        sql.run("begin").await;
        assert_eq!(cancel(&mut sql, "before").await.unwrap(), Change::TooLate);
        assert_eq!(ids(&fixture.claim_some(a).await), ["before"]);
        sql.run("rollback").await;

        fixture.enqueue_ids(&["meanwhile"]).await;
        let mut blocker = fixture.sql().await;
        blocker.run("begin").await;
        blocker.run(&format!("select from @delivery where subscription_id = {a} for update")).await;
        let cancelling = tokio::spawn(async move {
            sql.run("begin").await;
            let change = cancel(&mut sql, "meanwhile").await.unwrap();
            (sql, change)
        });
        lock_awaited(fixture).await;
        assert_eq!(ids(&fixture.claim_some(b).await), ["meanwhile"]);
        blocker.run("rollback").await;
        let (mut sql, change) = cancelling.await.unwrap();
        assert_eq!(change, Change::TooLate);
        assert_eq!(ids(&fixture.claim_some(a).await), ["meanwhile"]);
        sql.run("rollback").await;
    }

    async fn of_a_cancel_and_a_claim_one_wins(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let node = fixture.another_node().await;
        for round in 0..60 {
            let id = format!("m{round}");
            fixture.enqueue_ids(&[&id]).await;
            let canceller = node.clone();
            let message = laneway_core::MessageId::parse(&id).unwrap();
            let cancelling = tokio::spawn(async move { canceller.cancel(&message).await.unwrap() });
            let claimed = fixture.claim(subscription).await;
            let cancelled = cancelling.await.unwrap();
            match claimed {
                Some(batch) => {
                    assert_eq!(cancelled, Change::TooLate, "round {round}: claimed and cancelled");
                    fixture.settle_all(&complete_all(&batch)).await;
                }
                None => {
                    // The claim may have looked before either had happened; then the message is still there.
                    assert_eq!(cancelled, Change::Done, "round {round}");
                }
            }
        }
    }

    async fn a_consumers_marker_tells_first_from_repeated(fixture: &Fixture) {
        let mut sql = fixture.sql().await;
        assert!(!markers::is_processed(&mut sql, "billing", "m").await.unwrap());
        let note = json!({"invoice": 7});
        assert!(markers::mark_processed(&mut sql, "billing", "m", Some(&note)).await.unwrap());
        assert!(!markers::mark_processed(&mut sql, "billing", "m", None).await.unwrap());
        assert!(markers::is_processed(&mut sql, "billing", "m").await.unwrap());
        assert!(!markers::is_processed(&mut sql, "shipping", "m").await.unwrap());
        assert!(markers::mark_processed(&mut sql, "shipping", "m", None).await.unwrap(), "consumers are independent");
        let kept = sql.texts("select cast(metadata as text) from @marker where metadata is not null").await;
        assert_eq!(kept.iter().map(|text| serde_json::from_str(text).unwrap()).collect::<Vec<serde_json::Value>>(), [note]);
        assert!(fixture.store.status().await.unwrap().subscriptions.is_empty(), "a consumer is no subscription");
    }

    async fn a_rolled_back_marker_was_never_there(fixture: &Fixture) {
        let mut sql = fixture.sql().await;
        sql.begin_writing().await;
        assert!(markers::mark_processed(&mut sql, "billing", "m", None).await.unwrap());
        sql.run("rollback").await;
        assert!(!markers::is_processed(&mut sql, "billing", "m").await.unwrap());
        assert!(markers::mark_processed(&mut sql, "billing", "m", None).await.unwrap());
    }

    async fn of_concurrent_duplicates_one_is_the_first(fixture: &Fixture) {
        fixture.sql().await.run("create table effects (id text)").await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let mut sql = fixture.sql().await;
            tasks.spawn(async move {
                for n in 0..10 {
                    let id = format!("m{n}");
                    sql.begin_writing().await;
                    if markers::mark_processed(&mut sql, "billing", &id, None).await.unwrap() {
                        sql.run(&format!("insert into effects values ('{id}')")).await;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    sql.run("commit").await;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let mut sql = fixture.sql().await;
        assert_eq!(sql.number("select count(*) from effects").await, 10);
    }

    async fn a_consumers_markers_are_purged_in_batches(fixture: &Fixture) {
        let mut sql = fixture.sql().await;
        for n in 0..5 {
            markers::mark_processed(&mut sql, "billing", &format!("m{n}"), None).await.unwrap();
        }
        markers::mark_processed(&mut sql, "shipping", "m", None).await.unwrap();
        let far = fixture.store.now().await.unwrap() + HOUR;
        let error = markers::purge_processed_before(&mut sql, None, far, 0).await.unwrap_err();
        assert!(matches!(error, OutboxError::BatchSize(0)));
        let mut purged = Vec::new();
        loop {
            purged.push(markers::purge_processed_before(&mut sql, Some("billing"), far, 2).await.unwrap());
            if purged.last() != Some(&2) {
                break;
            }
        }
        assert_eq!(purged, [2, 2, 1]);
        assert_eq!(sql.count("marker").await, 1);
        assert_eq!(markers::purge_processed_before(&mut sql, None, Timestamp::UNIX_EPOCH, 10).await.unwrap(), 0);
        assert_eq!(markers::purge_processed_before(&mut sql, None, far, 10).await.unwrap(), 1);
    }

    async fn a_purge_leaves_the_markers_of_handlers(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        fixture.settle_all(&complete_all(&fixture.claim_some(subscription).await)).await;
        let mut sql = fixture.sql().await;
        markers::mark_processed(&mut sql, "billing", "m", None).await.unwrap();
        assert_eq!(sql.count("marker").await, 2);
        let far = fixture.store.now().await.unwrap() + HOUR;
        assert_eq!(markers::purge_processed_before(&mut sql, Some("nobody"), far, 10).await.unwrap(), 0);
        assert_eq!(markers::purge_processed_before(&mut sql, None, far, 10).await.unwrap(), 1);
        assert_eq!(sql.number("select subscription_id from @marker").await, i64::from(subscription.0));
    }

    async fn a_consumer_and_a_subscription_never_have_one_name(fixture: &Fixture) {
        let subscription_id = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let far = fixture.store.now().await.unwrap() + HOUR;
        let marked = markers::mark_processed(&mut sql, "handler", "m", None).await.map(drop);
        let processed = markers::is_processed(&mut sql, "handler", "m").await.map(drop);
        let purged = markers::purge_processed_before(&mut sql, Some("handler"), far, 10).await.map(drop);
        for refused in [marked, processed, purged] {
            let error = refused.unwrap_err();
            assert!(matches!(&error, OutboxError::NameTaken(name) if name.as_str() == "handler"), "{error:?}");
            let text = error.to_string();
            assert_eq!(text, "`handler` is the name of a subscription; give the consumer a name of its own");
        }
        assert_eq!(sql.count("marker").await, 0);

        assert!(markers::mark_processed(&mut sql, "billing", "m", None).await.unwrap());
        let subscriptions = vec![subscription("handler", "t.>"), subscription("billing", "t.>")];
        let topology = Topology { subscriptions, payload_bytes_max: PAYLOAD_BYTES_MAX };
        match fixture.store.apply(&topology).await {
            Err(StoreError::Refused(text)) => assert!(text.contains("`billing`"), "{text}"),
            other => panic!("{other:?}"),
        }
        fixture.enqueue_ids(&["m"]).await;
        assert_eq!(ids(&fixture.claim_some(subscription_id).await), ["m"], "the topology before is still active");

        // Its markers stay when a topology drops it, and so does its name.
        fixture.apply(vec![subscription("other", "t.>")]).await;
        let marked = markers::mark_processed(&mut sql, "handler", "m", None).await;
        assert!(matches!(marked, Err(OutboxError::NameTaken(_))), "{marked:?}");
    }

    async fn an_application_on_postgres_needs_the_privileges_that_the_docs_name(fixture: &Fixture) {
        if fixture.is_sqlite() {
            return; // It knows no roles.
        }
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let database = sql.texts("select cast(current_database() as text)").await.remove(0);
        // Rolled back in the end: roles belong to all databases of a server.
        sql.run(&format!(
            "begin;
             create role \"{database}_app\";
             grant usage on schema laneway to \"{database}_app\";
             grant insert, select (id) on laneway.message to \"{database}_app\";
             grant execute on function laneway.cancel_message(text),
                 laneway.reschedule_message(text, timestamptz) to \"{database}_app\";
             grant execute on function laneway.mark_processed(text, text, jsonb), laneway.is_processed(text, text),
                 laneway.purge_processed(text, timestamptz, integer) to \"{database}_app\";
             set local role \"{database}_app\""
        ))
        .await;
        let now = fixture.store.now().await.unwrap();
        let at_position = outgoing("p").position("orders", 1);
        let many = [outgoing("m"), outgoing("m"), at_position.clone(), at_position];
        let enqueued = enqueue_all(&mut sql, &many).await.unwrap();
        assert_eq!(told(&enqueued), [("m", false), ("m", true), ("p", false), ("p", true)]);
        let taken = enqueue(&mut sql, &outgoing("q").position("orders", 1)).await;
        assert!(matches!(taken, Err(OutboxError::PositionTaken { .. })), "{taken:?}");
        assert!(markers::mark_processed(&mut sql, "billing", "m", Some(&json!({"n": 1}))).await.unwrap());
        assert!(!markers::mark_processed(&mut sql, "billing", "m", None).await.unwrap());
        assert!(markers::is_processed(&mut sql, "billing", "m").await.unwrap());
        assert_eq!(markers::purge_processed_before(&mut sql, Some("billing"), now + HOUR, 10).await.unwrap(), 1);
        assert_eq!(reschedule(&mut sql, "m", now + HOUR).await.unwrap(), Change::Done);
        assert_eq!(cancel(&mut sql, "m").await.unwrap(), Change::Done);
        for forbidden in [
            "select payload from @message",
            "delete from @message",
            "insert into @subscription (name) values ('x')",
            "select message_id from @marker",
            "select laneway.hold_waiting_message('p')",
        ] {
            sql.run("savepoint before").await;
            let refusal = sql.refusal(forbidden).await;
            assert!(refusal.contains("permission denied"), "{forbidden}: {refusal}");
            sql.run("rollback to before").await;
        }
        sql.run("rollback").await;
    }

    async fn wrong_names_and_topics_say_what_is_wrong(fixture: &Fixture) {
        let mut sql = fixture.sql().await;
        assert!(matches!(Outgoing::new("a..b", "{}"), Err(OutboxError::Topic(_))));
        assert!(matches!(Outgoing::new("a", "{}").unwrap().id("two words"), Err(OutboxError::Name(_))));
        assert!(matches!(markers::is_processed(&mut sql, "two words", "m").await, Err(OutboxError::Name(_))));
        assert!(matches!(cancel(&mut sql, "").await, Err(OutboxError::Name(_))));
        fixture.subscribe().await;
        let large = Outgoing::new("t.x", vec![b'x'; PAYLOAD_BYTES_MAX as usize + 1]).unwrap();
        let refused = enqueue(&mut sql, &large).await.unwrap_err().to_string();
        assert!(refused.contains(&PAYLOAD_BYTES_MAX.to_string()), "{refused}");
    }
}
