//! What failovers, restores, replication and mass deletion leave behind is passed over, found, and mended.

use std::time::Duration;

use laneway_core::{ClaimRequest, Ordering, Subscription, Trouble, Verdict};

use crate::fixture::*;
use crate::sql::Sql;

/// Lets numbers begin anew, as a standby does that missed them, or a dump that was taken before.
async fn begin_numbers_anew(sql: &mut Sql) {
    match sql {
        Sql::Sqlite(_) => sql.run("update sqlite_sequence set seq = 0").await,
        Sql::Postgres(_) => {
            sql.run(
                "select setval(s.oid::regclass, 1, false) from pg_class s
                 where s.relkind = 'S' and s.relnamespace = 'laneway'::regnamespace",
            )
            .await
        }
    };
}

/// Takes all messages and what is owed of them away.
async fn forget_everything(sql: &mut Sql) {
    for table in ["message", "delivery", "unrouted"] {
        sql.run(&format!("delete from @{table}")).await;
    }
    if let Sql::Postgres(_) = sql {
        sql.run("delete from @lease").await;
    }
}

/// Deletes messages from under their deliveries.
async fn delete_in_silence(sql: &mut Sql, which: &str) {
    match sql {
        Sql::Sqlite(_) => {
            sql.run("drop trigger laneway_message_deleted").await;
            sql.run(&format!("delete from @message where {which}")).await;
        }
        Sql::Postgres(_) => {
            sql.run(&format!(
                "set session_replication_role = replica; delete from @message where {which};
                 set session_replication_role = origin"
            ))
            .await;
        }
    }
}

/// What is wrong, by kind.
async fn troubles(fixture: &Fixture) -> Vec<(Trouble, u64)> {
    let findings = fixture.store.examine().await.unwrap();
    findings.iter().map(|finding| (finding.trouble, finding.count)).collect()
}

/// Mends one kind of trouble to the end, in small steps.
async fn mend(fixture: &Fixture, trouble: Trouble) -> u64 {
    let (mut from, mut changed) = (i64::MIN, 0);
    loop {
        let step = fixture.store.mend(trouble, from, 2).await.unwrap();
        changed += step.changed;
        match step.next {
            Some(next) => from = next,
            None => return changed,
        }
    }
}

conformance! {
    async fn an_answer_from_before_a_restore_settles_nothing_after_it(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["old"]).await;
        let old = fixture.claim_some(subscription).await;
        // The state of before is loaded, at the same address; a new message gets the old one's numbers.
        let mut sql = fixture.sql().await;
        forget_everything(&mut sql).await;
        begin_numbers_anew(&mut sql).await;
        fixture.enqueue_ids(&["new"]).await;
        assert_eq!(sql.number("select max(seq) from @message").await, 1);
        let new = fixture.another_node().await.claim(request(subscription)).await.unwrap().unwrap();
        assert_ne!(old.token, new.token);
        assert_eq!(fixture.settle(&[complete(&old, 0)]).await, (vec![0], vec![]), "the lease is lost");
        let failed = Verdict::Retry { delay: HOUR, counted: true, error: None };
        fixture.settle_all(&[settlement(&new, 0, failed)]).await;
        assert_eq!(sql.number("select attempt from @owed").await, 1, "the new message's failure is not dropped");
    }

    async fn numbers_of_subscriptions_do_not_come_twice(fixture: &Fixture) {
        if fixture.is_sqlite() {
            // The row that keeps the last number is restored with the others.
            return;
        }
        let first = fixture.subscribe_to(&[("first", "a.>")]).await[0];
        let mut sql = fixture.sql().await;
        sql.run("delete from @subscription; delete from @topology; delete from @routed").await;
        begin_numbers_anew(&mut sql).await;
        assert_ne!(fixture.subscribe_to(&[("second", "b.>")]).await[0], first);
    }

    async fn a_late_sequence_is_found_and_set_behind_what_is_in_use(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b", "c"]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&complete_all(&batch)).await;
        assert_eq!(troubles(fixture).await, []);
        assert_eq!(fixture.store.look().await.unwrap(), []);
        let mut sql = fixture.sql().await;
        begin_numbers_anew(&mut sql).await;
        let found = fixture.store.look().await.unwrap();
        assert!(found.iter().any(|finding| finding.trouble == Trouble::OtherHistory), "{found:?}");
        let late = found.iter().filter(|finding| finding.trouble == Trouble::LateSequence);
        // On PostgreSQL those of the topology and of what is routed too.
        assert_eq!(late.count(), if fixture.is_sqlite() { 1 } else { 3 }, "{found:?}");
        assert!(mend(fixture, Trouble::LateSequence).await > 0);
        assert_eq!(troubles(fixture).await, []);
        let found = fixture.store.look().await.unwrap();
        assert_eq!(found, [], "what changed is told once");
        fixture.enqueue_ids(&["d"]).await;
        assert_eq!(sql.number("select max(seq) from @message").await, 4);
    }

    async fn a_message_with_the_number_of_one_that_is_gone_has_none_of_its_dead_letters(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["gone"]).await;
        let batch = fixture.claim_some(subscription).await;
        let dead = Verdict::DeadLetter {
            reason: laneway_core::Reason::TIMEOUT,
            error: laneway_core::ErrorText::new("it failed"),
            plugin: None,
        };
        fixture.settle_all(&[settlement(&batch, 0, dead)]).await;
        let mut sql = fixture.sql().await;
        forget_everything(&mut sql).await;
        begin_numbers_anew(&mut sql).await;
        assert!(troubles(fixture).await.iter().any(|(trouble, _)| *trouble == Trouble::LateSequence));
        fixture.enqueue_ids(&["new"]).await;
        assert_eq!(sql.number("select max(seq) from @message").await, 1);
        let filter = laneway_core::DeadLetterFilter { limit: 10, ..Default::default() };
        assert_eq!(fixture.store.dead_letters(&filter).await.unwrap(), []);
        let newest = fixture.store.newest_dead_letter().await.unwrap();
        let all = laneway_core::DeadLetterSelection::default();
        let replay = laneway_core::DeadLetterAction::Replay;
        assert_eq!(fixture.store.act_on_dead_letters(replay, &all, 0, newest, 10).await.unwrap().changed, 0);
    }

    async fn deliveries_without_a_message_hold_up_nothing(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let orphans: Vec<String> = (0..35).map(|number| format!("gone{number}")).collect();
        fixture.enqueue_ids(&orphans.iter().map(String::as_str).collect::<Vec<_>>()).await;
        fixture.enqueue_ids(&["good"]).await;
        let mut sql = fixture.sql().await;
        delete_in_silence(&mut sql, "id like 'gone%'").await;
        assert_eq!(sql.count("owed").await, 36);
        assert_eq!(troubles(fixture).await, [(Trouble::OrphanDelivery, 35)]);
        // A claim takes ten at most.
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(ids(&batch), ["good"]);
        assert_eq!(sql.count("owed").await, 1, "the others are gone at once");
        fixture.settle_all(&complete_all(&batch)).await;
        assert_eq!(sql.count("owed").await, 0);
    }

    async fn deliveries_without_a_message_are_removed_by_the_doctor(fixture: &Fixture) {
        fixture.subscribe_to(&[("one", "t.>"), ("two", "t.*"), ("three", ">")]).await;
        fixture.enqueue_ids(&["a", "b", "c", "d"]).await;
        let mut sql = fixture.sql().await;
        delete_in_silence(&mut sql, "id <> 'c'").await;
        assert_eq!(troubles(fixture).await, [(Trouble::OrphanDelivery, 9)]);
        assert_eq!(mend(fixture, Trouble::OrphanDelivery).await, 9);
        assert_eq!(troubles(fixture).await, []);
        assert_eq!(sql.count("owed").await, 3);
        assert!(sql.number("select count(*) from @audit where action = 'doctor.orphan_delivery'").await > 0);
    }

    async fn truncated_messages_are_owed_to_nobody(fixture: &Fixture) {
        let ordered = Subscription { ordering: Ordering::Key, ..subscription("lines", "t.>") };
        let applied = fixture.apply(vec![subscription("handler", "t.>"), ordered]).await;
        let (handler, lines) = (number_of(&applied, "handler"), number_of(&applied, "lines"));
        let keyed = |id: &str| laneway_core::NewMessage { key: Some("k".to_owned()), ..message(id) };
        fixture.enqueue(&[keyed("a"), keyed("b"), keyed("c")]).await;
        let held = fixture.claim_some(handler).await;
        let by_key = ClaimRequest { ordered: true, ..request(lines) };
        assert_eq!(ids(&fixture.store.claim(by_key).await.unwrap().unwrap()), ["a"]);
        let mut sql = fixture.sql().await;
        sql.run(if fixture.is_sqlite() { "delete from @message" } else { "truncate @message" }).await;
        assert_eq!(sql.count("owed").await, 0);
        assert_eq!(fixture.settle(&complete_all(&held)).await.0, [0, 1, 2], "what is in hand has lost its lease");
        fixture.enqueue(&[keyed("d")]).await;
        assert_eq!(ids(&fixture.claim_some(handler).await), ["d"]);
        assert_eq!(ids(&fixture.store.claim(by_key).await.unwrap().unwrap()), ["d"], "its key is not busy");
    }
}

/// Makes each function a test on PostgreSQL alone.
macro_rules! on_postgres {
    ($(async fn $name:ident($fixture:ident: &Fixture) $body:block)+) => {
        mod postgres_alone {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    async fn body($fixture: &Fixture) $body
                    on_postgres(concat!(module_path!(), "::", stringify!($name)), body).await;
                }
            )+
        }
    };
}

on_postgres! {
    async fn a_lease_of_the_same_token_but_another_message_is_not_settled(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["old"]).await;
        let old = fixture.claim_some(subscription).await;
        let mut sql = fixture.sql().await;
        forget_everything(&mut sql).await;
        begin_numbers_anew(&mut sql).await;
        fixture.enqueue_ids(&["new"]).await;
        fixture.claim_some(subscription).await;
        // Whatever gave it the token of before.
        sql.run(&format!("update @lease set token = {}", old.token.0)).await;
        for verdict in [
            Verdict::Complete { mark: true },
            Verdict::Retry { delay: Duration::ZERO, counted: true, error: None },
            Verdict::DeadLetter {
                reason: laneway_core::Reason::TIMEOUT,
                error: laneway_core::ErrorText::new("it failed"),
                plugin: None,
            },
        ] {
            assert_eq!(fixture.settle(&[settlement(&old, 0, verdict)]).await.0, [0]);
            assert_eq!(sql.number("select count(*) from @owed where lease_token is not null").await, 1);
        }
    }

    async fn what_ended_leases_held_of_messages_that_are_gone_is_removed(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["a", "b"]).await;
        fixture.claim_some(subscription).await;
        let mut sql = fixture.sql().await;
        delete_in_silence(&mut sql, "id = 'a'").await;
        sql.expire_leases().await;
        assert_eq!(ids(&fixture.claim_soon(subscription).await), ["b"]);
        assert_eq!(sql.count("owed").await, 1);
    }

    async fn messages_that_no_trigger_saw_are_found_kept_and_routed(fixture: &Fixture) {
        let [one, two] = fixture.subscribe_to(&[("one", "t.>"), ("two", "t.x")]).await[..] else { panic!("two") };
        let mut sql = fixture.sql().await;
        sql.run(
            "set session_replication_role = replica;
             insert into @message (id, topic, payload, created_at)
             values ('a', 't.x', '1', '2001-01-01'), ('b', 't.y', '2', '2001-01-01'), ('c', 'u', '3', '2001-01-01')",
        )
        .await;
        sql.run("set session_replication_role = origin").await;
        fixture.enqueue_ids(&["seen"]).await;
        assert_eq!(troubles(fixture).await, [(Trouble::NeverRouted, 3)]);
        assert_eq!(fixture.store.status().await.unwrap().never_routed, 3);
        let unrouted = laneway_core::MessageFilter {
            status: Some(laneway_core::MessageStatus::Unrouted),
            topic: None,
            limit: 10,
        };
        assert_eq!(fixture.store.messages(&unrouted).await.unwrap().len(), 3);
        // Nobody has processed them, however old they are.
        let now = fixture.store.now().await.unwrap();
        let cleaned = fixture.store.clean(laneway_core::Cleanup::Messages, now, 0, 100).await.unwrap();
        assert_eq!(cleaned.changed, 0);

        assert_eq!(mend(fixture, Trouble::NeverRouted).await, 3);
        assert_eq!(troubles(fixture).await, []);
        let mut claimed: Vec<String> = ids(&fixture.claim_some(one).await).into_iter().map(str::to_owned).collect();
        claimed.sort();
        assert_eq!(claimed, ["a", "b", "seen"]);
        assert_eq!(ids(&fixture.claim_some(two).await).len(), 2);
        assert_eq!(sql.count("unrouted").await, 1);
        assert_eq!(mend(fixture, Trouble::NeverRouted).await, 0);
    }

    async fn a_message_that_no_trigger_saw_is_forgotten_with_its_deletion(fixture: &Fixture) {
        let mut sql = fixture.sql().await;
        let write = "set session_replication_role = replica; insert into @message (topic, payload) values ('t', '1');
             set session_replication_role = origin";
        sql.run(write).await;
        sql.run("delete from @message").await;
        assert_eq!(sql.count("never_routed").await, 0);
        sql.run(write).await;
        sql.run("truncate @message").await;
        assert_eq!(sql.count("never_routed").await, 0);
    }

    async fn triggers_that_are_switched_off_are_found_and_switched_on(fixture: &Fixture) {
        let mut sql = fixture.sql().await;
        // As the end of a restore with triggers switched off does, which knows only on and off.
        sql.run("alter table @message disable trigger all").await;
        let off = troubles(fixture).await;
        assert!(off.len() >= 5 && off.iter().all(|(trouble, _)| *trouble == Trouble::DisabledTrigger), "{off:?}");
        sql.run("alter table @message enable trigger all").await;
        assert_eq!(troubles(fixture).await, [(Trouble::DisabledTrigger, 1)]);
        assert_eq!(mend(fixture, Trouble::DisabledTrigger).await, 1);
        assert_eq!(troubles(fixture).await, []);
        fixture.subscribe().await;
        fixture.enqueue_ids(&["a"]).await;
        assert_eq!((sql.count("owed").await, sql.count("never_routed").await), (1, 0));
    }

    async fn a_restoring_session_routes_nothing_and_wakes_nobody(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        for role in ["origin", "replica"] {
            sql.run(&format!(
                "begin; set local laneway.restoring = on; set local session_replication_role = {role};
                 insert into @message (topic, payload) values ('t.x', '1'); commit"
            ))
            .await;
        }
        assert_eq!((sql.count("owed").await, sql.count("never_routed").await), (0, 0));
        assert_eq!(troubles(fixture).await, []);
        // The setting ends with its transaction.
        sql.run("insert into @message (id, topic, payload) values ('routed', 't.x', '1')").await;
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["routed"]);
    }

    async fn a_transaction_of_two_phases_carries_messages_without_notifications(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        if sql.number("select current_setting('max_prepared_transactions')").await == 0 {
            return laneway_testing::skip("two phases", "the server's max_prepared_transactions is 0");
        }
        let name = fixture.storage();
        let gid = format!("{name:?}-{}", std::process::id());
        sql.run("begin").await;
        sql.run("insert into @message (id, topic, payload) values ('refused', 't.x', '1')").await;
        assert!(sql.refusal(&format!("prepare transaction '{gid}'")).await.contains("NOTIFY"));
        sql.run("rollback").await;
        for change in [
            "insert into @message (id, topic, payload) values ('a', 't.x', '1'), ('b', 't.x', '2')",
            "delete from @message where id = 'b'",
            "select laneway.reschedule_message('a', now())",
        ] {
            sql.run("begin").await;
            sql.run("set local laneway.notify = off").await;
            sql.run(change).await;
            sql.run(&format!("prepare transaction '{gid}'")).await;
            sql.run(&format!("commit prepared '{gid}'")).await;
        }
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["a"]);
    }

    async fn an_ordered_subscription_goes_on_while_all_tables_are_published(fixture: &Fixture) {
        let mut sql = fixture.sql().await;
        sql.run("create publication everything_here for all tables").await;
        let ordered = Subscription { ordering: Ordering::Key, ..subscription("lines", "t.>") };
        let lines = number_of(&fixture.apply(vec![ordered]).await, "lines");
        let keyed = |id: &str| laneway_core::NewMessage { key: Some("k".to_owned()), ..message(id) };
        fixture.enqueue(&[keyed("a"), keyed("b"), keyed("c")]).await;
        for id in ["a", "b", "c"] {
            let batch = fixture.store.claim(ClaimRequest { ordered: true, ..request(lines) }).await.unwrap().unwrap();
            assert_eq!(ids(&batch), [id]);
            fixture.settle_all(&complete_all(&batch)).await;
        }
        let none = fixture.store.claim(ClaimRequest { ordered: true, ..request(lines) }).await.unwrap();
        assert!(none.is_none());
        assert_eq!(sql.count("freed_key").await, 0);
    }

    async fn every_table_has_a_primary_key(fixture: &Fixture) {
        let without = "select c.relname::text from pg_class c
            where c.relnamespace = 'laneway'::regnamespace and c.relkind in ('r', 'p')
                and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)";
        assert_eq!(fixture.sql().await.texts(without).await, [""; 0]);
    }

    async fn tables_may_be_rewritten_while_messages_flow(fixture: &Fixture) {
        let ordered = Subscription { ordering: Ordering::Key, ..subscription("lines", "t.>") };
        let applied = fixture.apply(vec![subscription("handler", "t.>"), ordered]).await;
        let (handler, lines) = (number_of(&applied, "handler"), number_of(&applied, "lines"));
        let names: Vec<String> = (0..120).map(|number| format!("m{number}")).collect();
        let messages: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(number, id)| laneway_core::NewMessage { key: Some(format!("k{}", number % 7)), ..message(id) })
            .collect();
        fixture.enqueue(&messages).await;
        // Rows move to other places, as pg_repack lets them.
        let mut sql = fixture.sql().await;
        let rewriting = tokio::spawn(async move {
            for _ in 0..6 {
                for table in ["delivery", "lease", "busy_key", "freed_key", "message"] {
                    sql.run(&format!("vacuum full @{table}")).await;
                }
            }
        });
        let mut done = 0;
        let deadline = std::time::Instant::now() + PATIENCE;
        while done < 240 {
            for request in [request(handler), ClaimRequest { ordered: true, ..request(lines) }] {
                if let Some(batch) = fixture.store.claim(request).await.unwrap() {
                    fixture.settle_all(&complete_all(&batch)).await;
                    done += batch.deliveries.len();
                }
            }
            assert!(std::time::Instant::now() < deadline, "{done} are done");
        }
        rewriting.await.unwrap();
        assert_eq!(fixture.sql().await.count("owed").await, 0);
    }
}
