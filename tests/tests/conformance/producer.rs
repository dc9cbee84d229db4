//! Behaviours 1, 6, 7, 8: the outbox as a plain SQL client meets it.

use laneway_core::{Lane, Priority};

use crate::fixture::*;
use crate::sql::Sql;

conformance! {
    async fn a_plain_insert_is_a_full_enqueue(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        sql.run("insert into @message (topic, payload) values ('t.x', '{}')").await;
        sql.run(
            "insert into @message (id, topic, key, priority, payload, content_type, headers, tenant)
             values ('given', 't.y', 'k', 50, 'text', 'text/plain', '{\"a\": \"b\"}', 'acme')",
        )
        .await;
        let batch = fixture.claim_some(subscription).await;
        let [urgent, plain] = &batch.deliveries[..] else { panic!("{batch:?}") };
        assert_eq!((urgent.message.id.as_str(), urgent.message.topic.as_str()), ("given", "t.y"));
        assert_eq!(urgent.message.key.as_deref(), Some("k"));
        assert_eq!(urgent.message.priority, Priority::HIGH);
        assert_eq!(&urgent.message.payload[..], b"text");
        assert_eq!(urgent.message.content_type, "text/plain");
        assert_eq!((&urgent.message.headers[0].name[..], &urgent.message.headers[0].value[..]), ("a", "b"));
        assert_eq!(urgent.message.tenant.as_deref(), Some("acme"));

        assert_eq!(&plain.message.payload[..], b"{}");
        assert_eq!(
            (plain.message.content_type.as_str(), plain.message.priority),
            ("application/json", Priority::NORMAL)
        );
        let id = plain.message.id.as_str();
        assert_eq!((id.len(), &id[14..15]), (36, "7"), "{id} is no UUIDv7");
        assert!(id[19..20].contains(['8', '9', 'a', 'b']), "{id} has another variant");
    }

    async fn a_payload_given_as_text_is_delivered_byte_for_byte(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        // As `payload`, PostgreSQL would read each of them in the notation of bytea.
        let column = if fixture.is_sqlite() { "payload" } else { "payload_text" };
        let texts = [
            r#"{"path": "C:\\dir", "line": "a\nb"}"#,
            r#"{"said": "\"yes\"", "name": "\u00e9"}"#,
            r"\x4142",
            r"\101",
            r"\",
            "",
            "{ \"a\" : 1e400,\t\"a\": 00 }\n",
            "grüße, 飛行 \u{1f6eb}",
        ];
        for (n, text) in texts.iter().enumerate() {
            sql.run(&format!(
                "insert into @message (id, topic, {column}, content_type) values ('{n}', 't.x', '{text}', 'text/plain')"
            ))
            .await;
        }
        let batch = fixture.claim_some(subscription).await;
        let came: Vec<_> = batch.deliveries.iter().map(|d| std::str::from_utf8(&d.message.payload).unwrap()).collect();
        assert_eq!(came, texts);
        if !fixture.is_sqlite() {
            assert_eq!(sql.number("select count(*) from @message where payload_text is not null").await, 0);
        }
    }

    async fn a_message_without_a_payload_is_refused_and_the_error_names_the_payload(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let mut inserts = vec![
            "insert into @message (topic) values ('t.x')",
            "insert into @message (topic, payload) values ('t.x', null)",
        ];
        if !fixture.is_sqlite() {
            inserts.push("insert into @message (topic, payload_text) values ('t.x', null)");
        }
        for insert in inserts {
            let refusal = sql.refusal(insert).await;
            assert!(refusal.contains("payload"), "{insert}: {refusal}");
            assert!(fixture.is_sqlite() || refusal.contains("give payload_text"), "{insert}: {refusal}");
        }
    }

    async fn a_time_in_seconds_is_refused_and_the_error_says_what_is_wanted(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        for column in ["available_at", "created_at"] {
            for time in ["1767225600", "'1767225600'", "946684799999", "-1", "0"] {
                let insert = format!("insert into @message (topic, payload, {column}) values ('t.x', '{{}}', {time})");
                let refusal = sql.refusal(&insert).await;
                if fixture.is_sqlite() {
                    let words = ["created_at and available_at", "milliseconds since 1970", "seconds"];
                    assert!(words.iter().all(|word| refusal.contains(word)), "{insert}: {refusal}");
                } else {
                    // There a number is no time.
                    let words = ["is of type timestamp", "time zone", "out of range"];
                    assert!(words.iter().any(|word| refusal.contains(word)), "{insert}: {refusal}");
                }
            }
        }
        let time = if fixture.is_sqlite() { "946684800000" } else { "'2000-01-01T00:00Z'" };
        let insert = format!(
            "insert into @message (id, topic, payload, created_at, available_at) values ('m', 't.x', '', {time}, {time})"
        );
        sql.run(&insert).await;
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["m"]);
    }

    async fn ids_that_the_database_makes_sort_by_time(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        for _ in 0..5 {
            sql.run("insert into @message (topic, payload) values ('t.x', '{}')").await;
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        }
        let batch = fixture.claim_some(subscription).await;
        assert!(ids(&batch).is_sorted(), "{:?}", ids(&batch));
    }

    async fn a_rolled_back_transaction_leaves_nothing(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        sql.run("begin").await;
        sql.run("insert into @message (id, topic, payload) values ('a', 't.x', '{}'), ('b', 'nobody', '{}')").await;
        sql.run("rollback").await;
        for table in ["message", "delivery", "unrouted"] {
            assert_eq!(sql.count(table).await, 0, "{table}");
        }
        assert!(fixture.claim(subscription).await.is_none());
        fixture.enqueue_ids(&["a"]).await;
    }

    async fn an_uncommitted_message_is_not_delivered(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        sql.run("begin").await;
        sql.run("insert into @message (id, topic, payload) values ('a', 't.x', '{}')").await;
        if !fixture.is_sqlite() {
            // On SQLite other writers would wait here.
            assert!(fixture.claim(subscription).await.is_none());
            fixture.enqueue_ids(&["behind"]).await;
            let batch = fixture.claim_some(subscription).await;
            assert_eq!(ids(&batch), ["behind"]);
        }
        sql.run("commit").await;
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["a"], "a late commit is not stepped over");
    }

    async fn a_bad_topic_is_refused_and_the_error_names_the_topic(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let long = "x".repeat(256);
        for topic in ["", "a..b", ".a", "a.", "a b", "a.*", "a.>", "ä", "a\n", "a.b\nc", long.as_str()] {
            let refusal =
                sql.refusal(&format!("insert into @message (topic, payload) values ('{topic}', '{{}}')")).await;
            assert!(refusal.contains("topic"), "{topic:?}: {refusal}");
            assert!(
                refusal.contains("255") && refusal.contains("A-Z"),
                "{topic:?}: {refusal} does not say what is allowed"
            );
        }
        let longest = "x".repeat(255);
        sql.run(&format!(
            "insert into @message (topic, payload) values ('{longest}', '{{}}'), ('A-z_0.9', '{{}}')"
        ))
        .await;
    }

    async fn a_bad_id_is_refused_and_the_error_names_the_id(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let long = "x".repeat(201);
        for id in ["", "a b", "a\nb", "a\n", "ä", long.as_str()] {
            let refusal = sql
                .refusal(&format!("insert into @message (id, topic, payload) values ('{id}', 't.x', '{{}}')"))
                .await;
            assert!(refusal.contains("id: ") && refusal.contains("200"), "{id:?}: {refusal}");
        }
    }

    async fn bad_headers_are_refused_and_the_error_names_them(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        for headers in
            ["[]", "1", "{\"a\": 1}", "{\"a\": {\"b\": \"c\"}}", "{\"a\": \"b\", \"c\": null}", "\"x\"", "null"]
        {
            let insert =
                format!("insert into @message (topic, payload, headers) values ('t.x', '{{}}', '{headers}')");
            let refusal = sql.refusal(&insert).await;
            assert!(refusal.contains("headers"), "{headers}: {refusal}");
        }
    }

    async fn a_payload_over_the_limit_is_refused_by_plain_sql_too(fixture: &Fixture) {
        fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let insert = |bytes: u32| {
            format!("insert into @message (topic, payload) values ('t.x', '{}')", "x".repeat(bytes as usize))
        };
        sql.run(&insert(PAYLOAD_BYTES_MAX)).await;
        let refusal = sql.refusal(&insert(PAYLOAD_BYTES_MAX + 1)).await;
        assert!(refusal.contains(&PAYLOAD_BYTES_MAX.to_string()), "{refusal}");
        // The limit is of bytes, not of characters.
        let wide = "ä".repeat(PAYLOAD_BYTES_MAX as usize / 2 + 1);
        let insert = if fixture.is_sqlite() {
            format!("insert into @message (topic, payload) values ('t.x', '{wide}')")
        } else {
            format!("insert into @message (topic, payload) values ('t.x', convert_to('{wide}', 'UTF8'))")
        };
        sql.refusal(&insert).await;
    }

    async fn a_second_plain_insert_of_an_id_is_refused_and_on_conflict_ignores_it(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let insert = "insert into @message (id, topic, payload) values ('m', 't.x', '{}')";
        assert_eq!(sql.run(insert).await, 1);
        let refusal = sql.refusal(insert).await;
        assert!(refusal.contains("id"), "{refusal}");
        assert_eq!(sql.run(&format!("{insert} on conflict do nothing")).await, 0);
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["m"]);
    }

    async fn messages_are_immutable(fixture: &Fixture) {
        fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let refusal = fixture.sql().await.refusal("update @message set payload = 'other'").await;
        assert!(refusal.contains("immutable"), "{refusal}");
    }

    async fn a_plain_insert_sets_the_lane_by_each_subscriptions_threshold(fixture: &Fixture) {
        let mut bulk = subscription("bulk", "t.x");
        bulk.lane_threshold = Priority(i32::MIN);
        let mut strict = subscription("strict", "t.x");
        strict.lane_threshold = Priority(i32::MAX);
        let applied = fixture.apply(vec![bulk, strict, subscription("normal", "t.x")]).await;
        let mut sql = fixture.sql().await;
        for priority in [i32::MIN, -1, 0, 1, i32::MAX] {
            sql.run(&format!(
                "insert into @message (id, topic, payload, priority)
                 values ('p{priority}', 't.x', '{{}}', {priority})"
            ))
            .await;
        }
        for (name, backfill) in [("bulk", 0), ("strict", 4), ("normal", 2)] {
            let subscription = number_of(&applied, name);
            let request = laneway_core::ClaimRequest { lane: Lane::Backfill, ..request(subscription) };
            let found = fixture.store.claim(request).await.unwrap().map_or(0, |batch| batch.deliveries.len());
            assert_eq!(found, backfill, "{name}");
            assert_eq!(
                fixture.claim(subscription).await.map_or(0, |batch| batch.deliveries.len()),
                5 - backfill,
                "{name}"
            );
        }
    }
}

/// What an application's role needs on PostgreSQL; SQLite knows no roles.
#[tokio::test]
async fn a_role_that_may_only_insert_is_a_full_producer() {
    let test = "producer::a_role_that_may_only_insert_is_a_full_producer";
    on_postgres(test, async |fixture: &Fixture| {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let role = format!("laneway_producer_{}", std::process::id());
        sql.run(&format!("create role {role}")).await;
        sql.run(&format!("grant usage on schema laneway to {role}; grant insert on @message to {role}")).await;
        sql.run(&format!("set role {role}")).await;
        sql.run("insert into @message (id, topic, payload) values ('m', 't.x', '{}')").await;
        sql.run("insert into @message (topic, payload) values ('nobody', '{}')").await;
        sql.run("insert into @message (topic, payload_text) values ('nobody', '{}')").await;
        assert_eq!(
            sql.run("insert into @message (id, topic, payload) values ('m', 't.x', '') on conflict do nothing")
                .await,
            0
        );
        for forbidden in ["select 1 from @message", "delete from @delivery", "insert into @unrouted values (7)"] {
            let refusal = sql.refusal(forbidden).await;
            assert!(refusal.contains("permission denied"), "{forbidden}: {refusal}");
        }
        // What the trigger does by its owner's rights must not be steered by the caller's search path.
        sql.run("create temp table delivery (x int); set search_path = pg_temp, public").await;
        sql.run("insert into @message (id, topic, payload) values ('n', 't.x', '{}')").await;
        sql.run("reset role").await;
        sql.run(&format!("drop owned by {role}; drop role {role}")).await;
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["m", "n"]);
    })
    .await;
}

/// On SQLite `payload` takes text as it is.
#[tokio::test]
async fn payload_text_takes_what_drivers_send_as_text_or_json() {
    let test = "producer::payload_text_takes_what_drivers_send_as_text_or_json";
    on_postgres(test, async |fixture: &Fixture| {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        let json = r#"{"b": "\\d", "a": 1}"#;
        for kind in ["text", "varchar", "json", "jsonb"] {
            // Drivers say of what type a parameter is, or leave it open.
            sql.run(&format!(
                "prepare p_{kind}({kind}) as insert into @message (topic, payload_text) values ('t.x', $1);
                 execute p_{kind}('{json}')"
            ))
            .await;
        }
        sql.run(&format!(
            "prepare p as insert into @message (topic, payload_text) values ('t.x', $1); execute p('{json}')"
        ))
        .await;
        let batch = fixture.claim_some(subscription).await;
        let came: Vec<_> =
            batch.deliveries.iter().map(|d| std::str::from_utf8(&d.message.payload).unwrap()).collect();
        let reordered = r#"{"a": 1, "b": "\\d"}"#;
        assert_eq!(came, [json, json, json, reordered, json], "jsonb has an order of its own");

        for (insert, words) in [
            ("(topic, payload_text, payload) values ('t.x', '{}', '')", "two payloads"),
            ("(topic, payload_text, payload) values ('t.x', '', '{}')", "two payloads"),
            // A driver's bytes, which PostgreSQL turns into text.
            ("(topic, payload_text) values ('t.x', '{}'::bytea)", "give bytes as payload"),
        ] {
            let refusal = sql.refusal(&format!("insert into @message {insert}")).await;
            assert!(refusal.contains(words), "{insert}: {refusal}");
        }
        let large =
            format!("insert into @message (topic, payload_text) values ('t.x', repeat('ä', {PAYLOAD_BYTES_MAX}))");
        let refusal = sql.refusal(&large).await;
        assert!(refusal.contains(&PAYLOAD_BYTES_MAX.to_string()), "{refusal}");
    })
    .await;
}

/// Bytes of text that no C string holds are kept too.
#[tokio::test]
async fn text_with_a_nul_is_delivered_whole_on_sqlite() {
    on_sqlite(async |fixture: &Fixture| {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        sql.run("insert into @message (topic, payload) values ('t.x', cast(x'610062' as text))").await;
        assert_eq!(&fixture.claim_some(subscription).await.deliveries[0].message.payload[..], b"a\0b");
    })
    .await;
}

/// Writers of one database file wait for each other; an application that holds a transaction must not lose
/// anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_waits_for_the_transaction_of_a_sqlite_producer() {
    on_sqlite(async |fixture: &Fixture| {
        let subscription = fixture.subscribe().await;
        let mut sql = Sql::sqlite(&fixture.path().unwrap()).await;
        sql.run("begin immediate").await;
        sql.run("insert into @message (id, topic, payload) values ('a', 't.x', '{}')").await;
        let store = std::sync::Arc::clone(&fixture.store);
        let enqueue = tokio::spawn(async move { store.enqueue(&[message("b")]).await });
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert!(!enqueue.is_finished(), "two write at once");
        sql.run("commit").await;
        enqueue.await.unwrap().unwrap();
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["a", "b"]);
    })
    .await;
}
