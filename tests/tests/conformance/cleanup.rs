//! Behaviours 44 and 46: what is over its retention goes in bounded steps, and nothing else does.

use std::time::Duration;

use jiff::Timestamp;
use laneway_core::{Cleanup, ErrorText, NewMessage, Reason, Replay, Verdict};

use crate::fixture::*;

/// Runs a cleanup to its end; answers what each step removed.
async fn clean(fixture: &Fixture, what: Cleanup, before: Timestamp, limit: u32) -> Vec<u64> {
    let mut steps = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let step = fixture.store.clean(what, before, from, limit).await.unwrap();
        steps.push(step.changed);
        next = step.next;
        assert!(steps.len() < 1000, "a cleanup has no end");
    }
    steps
}

/// The database's time, after everything that was written until now and before all that is written later.
async fn between(fixture: &Fixture) -> Timestamp {
    tokio::time::sleep(Duration::from_millis(3)).await;
    let now = fixture.store.now().await.unwrap();
    tokio::time::sleep(Duration::from_millis(3)).await;
    now
}

async fn process(fixture: &Fixture, subscription: laneway_core::SubscriptionId) {
    while let Some(batch) = fixture.claim(subscription).await {
        fixture.settle_all(&complete_all(&batch)).await;
    }
}

fn numbered(prefix: &str, count: usize) -> Vec<NewMessage> {
    (0..count).map(|n| message(&format!("{prefix}{n}"))).collect()
}

conformance! {
    async fn the_clock_of_cleanup_is_the_databases(fixture: &Fixture) {
        let mut sql = fixture.sql().await;
        fixture.subscribe().await;
        fixture.enqueue_ids(&["a"]).await;
        let now = fixture.store.now().await.unwrap();
        let age = if fixture.is_sqlite() {
            sql.number(&format!("select {} - created_at from @message", now.as_millisecond())).await
        } else {
            sql.number(&format!("select extract(epoch from '{now}'::timestamptz - created_at) * 1000 from @message")).await
        };
        assert!((0..30_000).contains(&age), "{age}");
    }

    async fn settled_messages_go_and_all_others_stay(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["settled"]).await;
        process(fixture, subscription).await;
        fixture.enqueue_ids(&["leased", "dead", "retried"]).await;
        let batch = fixture.claim_some(subscription).await;
        let dead = Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("x"), plugin: None };
        let retry = Verdict::Retry { delay: HOUR, counted: true, error: None };
        fixture.settle_all(&[settlement(&batch, 1, dead), settlement(&batch, 2, retry)]).await;
        fixture.enqueue_ids(&["pending"]).await;
        fixture.enqueue(&[NewMessage { delay: Some(HOUR), ..message("delayed") }]).await;
        let nobody = laneway_core::Topic::parse("nobody.listens").unwrap();
        fixture.enqueue(&[NewMessage { topic: nobody, ..message("unrouted") }]).await;
        let before = between(fixture).await;
        fixture.enqueue_ids(&["young"]).await;

        assert_eq!(fixture.store.cleanable(Cleanup::Messages, before).await.unwrap(), 2);
        assert_eq!(clean(fixture, Cleanup::Messages, before, 100).await.iter().sum::<u64>(), 2);
        assert_eq!(fixture.store.cleanable(Cleanup::Messages, before).await.unwrap(), 0);
        let mut sql = fixture.sql().await;
        assert_eq!(
            sql.texts("select id from @message order by seq").await,
            ["leased", "dead", "retried", "pending", "delayed", "young"]
        );
        assert_eq!((sql.count("owed").await, sql.count("unrouted").await), (5, 0));
        // What was in hand is settled as ever.
        fixture.settle_all(&[complete(&batch, 0)]).await;
    }

    async fn a_message_that_one_subscription_still_owes_stays(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.>")]).await;
        fixture.enqueue_ids(&["m"]).await;
        process(fixture, subscriptions[0]).await;
        let before = between(fixture).await;
        assert_eq!(clean(fixture, Cleanup::Messages, before, 10).await, [0]);
        process(fixture, subscriptions[1]).await;
        assert_eq!(clean(fixture, Cleanup::Messages, before, 10).await, [1]);
    }

    async fn a_cleanup_goes_in_steps_that_can_be_taken_up_again(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 25)).await;
        // Every third one stays, so that steps meet rows that they must leave.
        let mut sql = fixture.sql().await;
        let which = if fixture.is_sqlite() { "id / 1048576" } else { "message_seq" };
        sql.run(&format!("delete from @delivery where {which} % 3 <> 0")).await;
        let stay = sql.count("delivery").await;
        let before = between(fixture).await;

        let first = fixture.store.clean(Cleanup::Messages, before, 0, 10).await.unwrap();
        assert!(first.changed <= 10 && first.next.is_some(), "{first:?}");
        let steps = clean(fixture, Cleanup::Messages, before, 10).await;
        assert!(steps.iter().all(|changed| *changed <= 10), "{steps:?}");
        assert_eq!(sql.count("message").await, stay);
        process(fixture, subscription).await;
        clean(fixture, Cleanup::Messages, before, 10).await;
        assert_eq!(sql.count("message").await, 0);
    }

    async fn delayed_messages_do_not_hide_settled_ones_behind_them(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let delayed: Vec<NewMessage> =
            numbered("delayed", 30).into_iter().map(|m| NewMessage { delay: Some(HOUR * 1000), ..m }).collect();
        fixture.enqueue(&delayed).await;
        fixture.enqueue(&numbered("settled", 10)).await;
        process(fixture, subscription).await;
        let before = between(fixture).await;
        let steps = clean(fixture, Cleanup::Messages, before, 10).await;
        assert_eq!(steps.iter().sum::<u64>(), 10, "{steps:?}");
    }

    async fn a_cleanup_ends_where_messages_are_young(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 100)).await;
        process(fixture, subscription).await;
        let long_ago = fixture.store.now().await.unwrap() - HOUR * 48;
        assert_eq!(clean(fixture, Cleanup::Messages, long_ago, 10).await, [0], "it looks at one page and no more");
    }

    async fn a_replay_and_a_cleanup_at_the_same_time_lose_nothing(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 200)).await;
        process(fixture, subscription).await;
        let until = between(fixture).await;
        let replay = Replay {
            subscription: name("handler"),
            topic: None,
            since: None,
            until,
            priority: laneway_core::Priority::NORMAL,
            force: true,
        };
        let (replayer, cleaner) = (fixture.another_node().await, fixture.another_node().await);
        let replaying = tokio::spawn(async move {
            let (mut owed, mut next) = (0, Some(0));
            while let Some(from) = next {
                let step = replayer.replay(&replay, from, 5).await.unwrap();
                owed += step.changed;
                next = step.next;
            }
            owed
        });
        let cleaning = tokio::spawn(async move {
            let (mut removed, mut next) = (0, Some(0));
            while let Some(from) = next {
                let step = cleaner.clean(Cleanup::Messages, until, from, 3).await.unwrap();
                removed += step.changed;
                next = step.next;
            }
            removed
        });
        let (owed, removed) = (replaying.await.unwrap(), cleaning.await.unwrap());
        let mut sql = fixture.sql().await;
        assert_eq!(sql.count("owed").await as u64, owed, "a message was owed again and is gone");
        assert_eq!(owed + removed, 200);
    }

    async fn markers_go_by_the_time_that_they_were_written(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("old", 23)).await;
        process(fixture, subscription).await;
        let before = between(fixture).await;
        fixture.enqueue(&numbered("new", 4)).await;
        process(fixture, subscription).await;

        assert_eq!(fixture.store.cleanable(Cleanup::Markers, before).await.unwrap(), 23);
        let mut sql = fixture.sql().await;
        assert_eq!(sql.count("marker").await, 27, "a dry run removes nothing");
        assert_eq!(clean(fixture, Cleanup::Markers, before, 10).await, [10, 10, 3]);
        assert_eq!(sql.number("select count(*) from @marker where message_id like 'new%'").await, 4);
        assert_eq!(sql.count("marker").await, 4);
        assert_eq!(clean(fixture, Cleanup::Markers, before, 10).await, [0]);
    }

    async fn what_is_exactly_as_old_as_the_retention_stays(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 3)).await;
        process(fixture, subscription).await;
        let mut sql = fixture.sql().await;
        let (cutoff, earlier, later) = ("2026-01-01T00:00:00Z", "2025-12-31T23:59:59.999Z", "2026-01-01T00:00:00.001Z");
        for (id, time) in [("m0", earlier), ("m1", cutoff), ("m2", later)] {
            let time = match fixture.is_sqlite() {
                true => time.parse::<Timestamp>().unwrap().as_millisecond().to_string(),
                false => format!("'{time}'"),
            };
            sql.run(&format!("update @marker set processed_at = {time} where message_id = '{id}'")).await;
        }
        assert_eq!(clean(fixture, Cleanup::Markers, cutoff.parse().unwrap(), 10).await, [1]);
        assert_eq!(sql.texts("select message_id from @marker order by message_id").await, ["m1", "m2"]);
    }

    async fn dead_letters_go_only_when_told_to(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let dead = Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("x"), plugin: None };
        fixture.enqueue_ids(&["a"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, dead.clone())]).await;
        let before = between(fixture).await;
        fixture.enqueue_ids(&["b"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, dead)]).await;

        for other in [Cleanup::Messages, Cleanup::Markers, Cleanup::ScheduleRuns] {
            assert_eq!(clean(fixture, other, before, 10).await, [0], "{other:?}");
        }
        assert_eq!(fixture.store.cleanable(Cleanup::DeadLetters, before).await.unwrap(), 1);
        assert_eq!(clean(fixture, Cleanup::DeadLetters, before, 10).await, [1]);
        assert_eq!(clean(fixture, Cleanup::Messages, before, 10).await, [1], "its message is as any other now");
        let mut sql = fixture.sql().await;
        assert_eq!(sql.texts("select message_id from @dead_letter").await, ["b"]);
    }

    async fn a_cleanup_and_deliveries_at_the_same_time_lose_nothing(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let far = "2100-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
        let cleaner = fixture.another_node().await;
        let cleaning = tokio::spawn(async move {
            let mut removed = 0;
            while removed < 400 {
                let mut next = Some(0);
                while let Some(from) = next {
                    let step = cleaner.clean(Cleanup::Messages, far, from, 7).await.unwrap();
                    removed += step.changed;
                    next = step.next;
                    tokio::task::yield_now().await;
                }
            }
            removed
        });
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..40 {
            fixture.enqueue(&numbered(&format!("r{round}-"), 10)).await;
            while seen.len() < (round + 1) * 10 {
                let batch = fixture.claim_soon(subscription).await;
                seen.extend(ids(&batch).into_iter().map(str::to_owned));
                // A part is handed back, so that deliveries move while messages go.
                let group: Vec<_> = (0..batch.deliveries.len())
                    .map(|n| if n % 4 == 3 && round % 2 == 0 { settlement(&batch, n, Verdict::RELEASE) } else { complete(&batch, n) })
                    .collect();
                fixture.settle_all(&group).await;
            }
            process(fixture, subscription).await;
        }
        let removed = tokio::time::timeout(PATIENCE, cleaning).await.unwrap().unwrap();
        assert_eq!((seen.len(), removed), (400, 400));
    }

    async fn how_far_a_cleanup_is_behind_is_told(fixture: &Fixture) {
        fixture.subscribe().await;
        let nothing = fixture.store.arrears(Cleanup::Messages, 0).await.unwrap();
        assert_eq!((nothing.oldest, nothing.per_second), (None, 0.0));
        let mut sql = fixture.sql().await;
        let ago = |sql: &crate::sql::Sql, seconds: u64| format!("now() - {}", sql.span(Duration::from_secs(seconds)));
        for n in 0..50 {
            // Ten of two days ago, and forty that begin an hour ago.
            let written = if n < 10 { 2 * 86_400 } else { 3600 - n };
            let insert = format!(
                "insert into @message (id, topic, payload, created_at) values ('m{n}', 't.x', '{{}}', {})",
                ago(&sql, written)
            );
            sql.run(&insert).await;
        }
        let now = fixture.store.now().await.unwrap();
        let all = fixture.store.arrears(Cleanup::Messages, 0).await.unwrap();
        let age = now.duration_since(all.oldest.unwrap()).as_secs();
        assert!((2 * 86_400 - 60..2 * 86_400 + 60).contains(&age), "{all:?}");
        assert!((0.8..1.2).contains(&(all.per_second / (40.0 / 3590.0))), "{all:?}");
        let first = sql.number("select min(seq) from @message").await;
        let later = fixture.store.arrears(Cleanup::Messages, first + 9).await.unwrap();
        assert!((3500..3700).contains(&now.duration_since(later.oldest.unwrap()).as_secs()), "{later:?}");

        for n in 0..48 {
            // Two in ten seconds of each of the last hours.
            let insert = format!(
                "insert into @marker (subscription_id, message_id, processed_at) values (1, 'k{n}', {})",
                ago(&sql, 5 + n / 2 * 3600)
            );
            sql.run(&insert).await;
        }
        let markers = fixture.store.arrears(Cleanup::Markers, 0).await.unwrap();
        assert!((0.15..=0.2).contains(&markers.per_second), "{markers:?}");
        assert!(markers.oldest.is_some_and(|oldest| now.duration_since(oldest).as_hours() == 23), "{markers:?}");
        for what in [Cleanup::DeadLetters, Cleanup::ScheduleRuns] {
            let none = fixture.store.arrears(what, 0).await.unwrap();
            assert_eq!((none.oldest, none.per_second), (None, 0.0), "{what:?}");
        }
    }

    async fn a_step_tells_what_others_wrote_since_the_one_before(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 30)).await;
        process(fixture, subscription).await;
        let before = between(fixture).await;
        let other = fixture.another_node().await;
        let mut after = None;
        let mut next = 0;
        for round in 0..3 {
            let step = fixture.store.clean(Cleanup::Messages, before, next, 5).await.unwrap();
            next = step.next.unwrap();
            let writes = step.writes.unwrap();
            if let Some(after) = after {
                assert!(writes.before >= after + 10, "{writes:?} in round {round}, which began at {after}");
            }
            after = Some(writes.after);
            for n in 0..10 {
                // By this node's connections, and by those of others.
                let store = if round == 0 { &fixture.store } else { &other };
                store.enqueue(&[message(&format!("new{round}-{n}"))]).await.unwrap();
                if round > 0 && fixture.is_sqlite() {
                    // A commit of another process is seen, not counted.
                    let step = fixture.store.clean(Cleanup::Markers, Timestamp::UNIX_EPOCH, 0, 1).await.unwrap();
                    assert_eq!(step.changed, 0);
                }
            }
        }
        // Our own steps count for nothing: other tests may write to the same server.
        if fixture.is_sqlite() {
            let first = fixture.store.clean(Cleanup::Messages, before, next, 5).await.unwrap();
            let second = fixture.store.clean(Cleanup::Messages, before, first.next.unwrap(), 5).await.unwrap();
            assert_eq!((first.changed, second.changed), (5, 5));
            assert_eq!(second.writes.unwrap().before, first.writes.unwrap().after);
        }
    }

    async fn what_a_foreign_key_of_the_application_holds_stays_and_the_rest_goes(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 40)).await;
        process(fixture, subscription).await;
        let mut sql = fixture.sql().await;
        sql.run("create table invoice (number integer primary key, message_seq bigint constraint to_message references @message (seq))").await;
        sql.run("create table receipt (message_id text references @message (id))").await;
        sql.run("create index invoice_message on invoice (message_seq)").await;
        sql.run("insert into invoice (number, message_seq) select seq, seq from @message where seq % 10 = 3").await;
        sql.run("insert into receipt (message_id) values ('m0'), ('m39')").await;
        let before = between(fixture).await;

        assert_eq!(fixture.store.cleanable(Cleanup::Messages, before).await.unwrap(), 34);
        let (mut gone, mut kept, mut next) = (0, std::collections::BTreeMap::<String, u64>::new(), Some(0));
        while let Some(from) = next {
            let step = fixture.store.clean(Cleanup::Messages, before, from, 7).await.unwrap();
            gone += step.changed;
            next = step.next;
            for of in step.kept {
                *kept.entry(of.by).or_default() += of.rows;
            }
        }
        assert_eq!(gone, 34);
        let held = |table: &str| kept.iter().find(|(by, _)| by.contains(table)).map(|(_, rows)| *rows);
        assert_eq!((held("invoice"), held("receipt"), kept.len()), (Some(4), Some(2), 2), "{kept:?}");
        let dangling = "select count(*) from invoice where message_seq not in (select seq from @message)";
        assert_eq!((sql.count("message").await, sql.number(dangling).await), (6, 0));

        // What is let go goes with the next run, which tells of it no more.
        sql.run("delete from invoice").await;
        sql.run("drop table receipt").await;
        assert_eq!(clean(fixture, Cleanup::Messages, before, 10).await.iter().sum::<u64>(), 6);
    }

    async fn dead_letters_and_markers_that_a_foreign_key_holds_stay(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 10)).await;
        let batch = fixture.claim_some(subscription).await;
        let dead = Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("x"), plugin: None };
        fixture.settle_all(&(0..10).map(|n| settlement(&batch, n, dead.clone())).collect::<Vec<_>>()).await;
        fixture.enqueue(&numbered("k", 10)).await;
        process(fixture, subscription).await;
        let mut sql = fixture.sql().await;
        sql.run("create table ticket (letter bigint references @dead_letter (id))").await;
        sql.run("insert into ticket select max(id) from @dead_letter").await;
        let marker = "create table seen (subscription_id integer, message_id text, \
                      foreign key (subscription_id, message_id) references @marker (subscription_id, message_id))";
        sql.run(marker).await;
        sql.run("insert into seen select subscription_id, message_id from @marker where message_id in ('k2', 'k3')").await;
        let before = between(fixture).await;
        for (what, gone, held) in [(Cleanup::DeadLetters, 9, 1), (Cleanup::Markers, 8, 2)] {
            assert_eq!(fixture.store.cleanable(what, before).await.unwrap(), gone);
            let first = fixture.store.clean(what, before, 0, 100).await.unwrap();
            assert_eq!((first.changed, first.kept.iter().map(|kept| kept.rows).sum::<u64>()), (gone, held), "{what:?}");
            assert_eq!(clean(fixture, what, before, 3).await.iter().sum::<u64>(), 0, "{what:?}");
        }
    }

    async fn what_a_trigger_of_the_application_refuses_stays_and_the_rest_goes(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 40)).await;
        process(fixture, subscription).await;
        let mut sql = fixture.sql().await;
        if fixture.is_sqlite() {
            sql.run("create trigger audited before delete on laneway_message when old.seq % 10 = 3 \
                     begin select raise(abort, 'it is being audited'); end").await;
        } else {
            sql.run("create function audited() returns trigger language plpgsql as $$ begin \
                     if old.seq % 10 = 3 then raise 'it is being audited'; end if; return old; end $$").await;
            sql.run("create trigger audited before delete on laneway.message for each row execute function audited()").await;
        }
        let before = between(fixture).await;
        let step = fixture.store.clean(Cleanup::Messages, before, 0, 100).await.unwrap();
        assert_eq!((step.changed, step.next), (36, None));
        assert!(step.kept.iter().all(|kept| kept.by.contains("it is being audited")), "{step:?}");
        assert_eq!(step.kept.iter().map(|kept| kept.rows).sum::<u64>(), 4, "{step:?}");
        assert_eq!(sql.count("message").await, 4);
    }

    async fn a_foreign_key_that_this_node_may_not_read_holds_no_others(fixture: &Fixture) {
        if fixture.is_sqlite() {
            return;
        }
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&numbered("m", 20)).await;
        process(fixture, subscription).await;
        let mut sql = fixture.sql().await;
        // As deep as a node can get: what goes takes along what nobody lets go.
        sql.run("create table line (id bigint primary key references @message (seq) on delete cascade)").await;
        sql.run("create table parcel (line bigint constraint of_line references line deferrable initially deferred)").await;
        sql.run("insert into line select seq from @message where seq % 5 = 0").await;
        sql.run("insert into parcel select min(id) from line").await;
        let before = between(fixture).await;
        let step = fixture.store.clean(Cleanup::Messages, before, 0, 100).await.unwrap();
        assert_eq!((step.changed, step.kept.len()), (19, 1), "{step:?}");
        assert!(step.kept[0].by.contains("\"of_line\" of table public.parcel"), "{step:?}");
        assert_eq!((sql.count("message").await, sql.number("select count(*) from line").await), (1, 1));
    }
}
