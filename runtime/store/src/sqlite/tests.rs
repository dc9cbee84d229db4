//! What only SQLite can get wrong; the promises of every store are held by the conformance suite.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use laneway_core::{
    Batch, ClaimRequest, CounterAdd, Header, Lane, LeaseToken, MessageId, Name, NewMessage, Plugins, Priority,
    RetryPolicy, SettleReport, Settlement, Store, StoreError, Subscription, SubscriptionId, SubscriptionKind,
    Topic, TopicPattern, Topology, Verdict,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Row, SqliteConnection};

use super::writer::Durability;
use super::{SqliteOptions, SqliteStore, migrate};

fn subscription(name: &str, pattern: &str) -> Subscription {
    Subscription {
        name: Name::parse(name).unwrap(),
        pattern: TopicPattern::parse(pattern).unwrap(),
        kind: SubscriptionKind::Handler,
        lane_threshold: Priority::NORMAL,
        ordering: laneway_core::Ordering::None,
        idempotent: true,
        retry: RetryPolicy::default(),
        lease: Duration::from_secs(30),
        timeout: Duration::from_secs(10),
        concurrency: 1,
        claim_batch: 100,
        publish_batch: 1,
        review_unknown_outcome: false,
        backfill_min_share: 0.0,
        rate_limit: None,
        cluster_concurrency: None,
        destination: None,
        breaker: None,
        throttle_max: laneway_core::THROTTLE_MAX_DEFAULT,
    }
}

fn message(topic: &str) -> NewMessage {
    NewMessage::new(Topic::parse(topic).unwrap(), "{}")
}

async fn open(directory: &Path) -> SqliteStore {
    SqliteStore::open(SqliteOptions::new(directory.join("test.db"))).await.unwrap()
}

async fn open_with(directory: &Path, patterns: &[&str]) -> (SqliteStore, Vec<SubscriptionId>) {
    let store = open(directory).await;
    let subscriptions = patterns.iter().enumerate().map(|(i, p)| subscription(&format!("s{i}"), p)).collect();
    let applied = store.apply(&Topology { subscriptions, payload_bytes_max: 1 << 20 }).await.unwrap();
    (store, applied.subscriptions.into_iter().map(|(_, id)| id).collect())
}

async fn connect(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
}

async fn claim(store: &SqliteStore, subscription: SubscriptionId) -> Option<Batch> {
    let lease = Duration::from_secs(30);
    let request = ClaimRequest {
        subscription,
        lane: Lane::Primary,
        limit: 100,
        lease,
        check_markers: true,
        ordered: false,
        in_work_max: None,
    };
    store.claim(request).await.unwrap()
}

fn completions(batch: &Batch) -> Vec<Settlement> {
    let of = |delivery: &laneway_core::Delivery| Settlement {
        subscription: batch.subscription,
        delivery: delivery.id,
        token: batch.token,
        message: delivery.message.id.clone(),
        key: None,
        verdict: Verdict::Complete { mark: true },
        reads: vec![],
        writes: vec![],
        adds: vec![],
        emits: vec![],
        metadata: None,
    };
    batch.deliveries.iter().map(of).collect()
}

/// A small generator of numbers, the same ones for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Segments of few different texts, so that much nearly matches.
    fn segments(&mut self, wildcards: bool) -> String {
        let count = 1 + self.below(5);
        let segments: Vec<&str> = (0..count)
            .map(|i| match self.below(if wildcards { 9 } else { 5 }) {
                0 => "a",
                1 => "b",
                2 => "ab",
                3 => "0",
                4 => "A-_",
                8 if i + 1 == count => ">",
                _ => "*",
            })
            .collect();
        segments.join(".")
    }
}

#[tokio::test]
async fn the_trigger_matches_as_patterns_do() {
    let seed = std::env::var("LANEWAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261);
    println!("seed={seed}");
    let mut numbers = Numbers(seed);
    let patterns: BTreeSet<String> = (0..150).map(|_| numbers.segments(true)).collect();
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).chain(["*.b.>", "a.*.ab.>"]).collect();
    let topics: BTreeSet<String> = (0..400).map(|_| numbers.segments(false)).collect();

    let directory = tempfile::tempdir().unwrap();
    let (store, ids) = open_with(directory.path(), &patterns).await;
    store.enqueue(&topics.iter().map(|topic| message(topic)).collect::<Vec<_>>()).await.unwrap();

    let mut connection = connect(&directory.path().join("test.db")).await;
    let query = "SELECT m.topic, d.subscription_id FROM laneway_delivery d
        JOIN laneway_message m ON m.seq = d.message_seq";
    let routed: BTreeSet<(String, i32)> = sqlx::query(query)
        .fetch_all(&mut connection)
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let mut matches = 0;
    for (pattern, id) in patterns.iter().zip(&ids) {
        let parsed = TopicPattern::parse(pattern).unwrap();
        for topic in &topics {
            let expected = parsed.matches(&Topic::parse(topic).unwrap());
            assert_eq!(routed.contains(&(topic.clone(), id.0)), expected, "{pattern} with {topic}");
            matches += usize::from(expected);
        }
    }
    assert!(matches > 500, "{matches} matches show little");
    let unrouted: BTreeSet<&String> = topics.iter().filter(|t| !routed.iter().any(|(r, _)| r == *t)).collect();
    assert_eq!(store.status().await.unwrap().unrouted, unrouted.len() as u64);
}

#[tokio::test]
async fn files_that_are_not_ours_are_refused_and_left_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let refuse = async |name: &str, create: bool, wants: &str| {
        let options = SqliteOptions { create, ..SqliteOptions::new(directory.path().join(name)) };
        for error in
            [SqliteStore::open(options.clone()).await.unwrap_err(), migrate(options, None).await.unwrap_err()]
        {
            assert!(matches!(error, StoreError::NotOurs(_)), "{error:?}");
            assert!(error.to_string().contains(wants) && error.to_string().contains(name), "{error}");
        }
    };

    let text = "This is a letter, of more bytes than the header of a database file has. ".repeat(20);
    std::fs::write(directory.path().join("letter.txt"), &text).unwrap();
    refuse("letter.txt", true, "not a database").await;
    assert_eq!(std::fs::read_to_string(directory.path().join("letter.txt")).unwrap(), text);

    refuse("missing.db", false, "no such file").await;
    assert!(!directory.path().join("missing.db").exists());

    let mut other = connect(&directory.path().join("other.db")).await;
    execute(&mut other, "CREATE TABLE laneway_message (x)").await;
    refuse("other.db", true, "laneway_message").await;

    let mut wide = connect(&directory.path().join("wide.db")).await;
    execute(&mut wide, "PRAGMA encoding = 'UTF-16'; CREATE TABLE t (x)").await;
    refuse("wide.db", true, "UTF-16").await;
}

#[tokio::test]
async fn versions_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(directory.path().join("app.db"));
    let mut application = connect(&options.path).await;
    execute(&mut application, "CREATE TABLE account (name TEXT); INSERT INTO account VALUES ('ann')").await;

    let closed = SqliteOptions { create: false, ..options.clone() };
    let error = SqliteStore::open(closed.clone()).await.unwrap_err();
    let StoreError::SchemaOlder { found: 0, needed } = error else { panic!("{error:?}") };

    let migrated = migrate(closed.clone(), None).await.unwrap();
    assert_eq!((migrated.from, migrated.to), (0, needed));
    let migrated = migrate(closed.clone(), None).await.unwrap();
    assert_eq!((migrated.from, migrated.to), (needed, needed));
    drop(SqliteStore::open(closed.clone()).await.unwrap());
    let accounts: i64 =
        sqlx::query_scalar("SELECT count(*) FROM account").fetch_one(&mut application).await.unwrap();
    assert_eq!(accounts, 1);

    execute(
        &mut application,
        "INSERT INTO laneway_migration SELECT 99, description, installed_on, success, checksum, execution_time
        FROM laneway_migration LIMIT 1",
    )
    .await;
    let error = SqliteStore::open(closed.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaNewer { found: 99, known } if known == needed), "{error:?}");
    let error = migrate(closed, None).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaNewer { found: 99, known } if known == needed), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_opened_by_many_at_once_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(directory.path().join("app.db"));
    let opened: Vec<_> = (0..8).map(|_| tokio::spawn(SqliteStore::open(options.clone()))).collect();
    for store in opened {
        store.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_transaction_dropped_midway_is_rolled_back_and_blocks_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open_with(directory.path(), &[">"]).await;
    let mut transaction = store.connections().begin(Durability::Flushed).await.unwrap();
    let insert = sqlx::query("INSERT INTO laneway_message (topic, payload) VALUES ('a', '')");
    transaction.execute(insert).await.unwrap();
    drop(transaction);
    let other = open(directory.path()).await;
    other.enqueue(&[message("b")]).await.unwrap();
    store.enqueue(&[message("c")]).await.unwrap();
    assert_eq!(store.status().await.unwrap().messages, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_calls_leave_the_store_usable() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ids) = open_with(directory.path(), &[">"]).await;
    for micros in (0..2000).step_by(50) {
        let messages: Vec<NewMessage> = (0..20).map(|_| message("a")).collect();
        let _ = tokio::time::timeout(Duration::from_micros(micros), store.enqueue(&messages)).await;
        let _ = tokio::time::timeout(Duration::from_micros(micros), claim(&store, ids[0])).await;
    }
    // A call that was cancelled may still commit, but all of it, and before this one.
    store.enqueue(&[message("b")]).await.unwrap();
    assert_eq!(store.status().await.unwrap().messages % 20, 1);
}

#[tokio::test]
async fn a_job_that_fails_answers_nothing_or_panics_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open_with(directory.path(), &[">"]).await;
    let note = "INSERT INTO laneway_audit (at, action, detail) VALUES (0, ?, ?)";
    let write = async |end: fn() -> Result<Option<()>, StoreError>| {
        let job = move |native: &mut super::native::Native<'_>| {
            native.run(note, &["a".into(), "b".into()])?;
            end()
        };
        store.connections().write(Durability::Flushed, job).await
    };
    assert_eq!(write(|| Ok(None)).await.unwrap(), None);
    assert!(matches!(write(|| Err(StoreError::NoRoom)).await, Err(StoreError::NoRoom)));
    assert!(matches!(write(|| panic!("on purpose")).await, Err(StoreError::Other(_))));
    let notes = async || {
        let mut connection = connect(&directory.path().join("test.db")).await;
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM laneway_audit").fetch_one(&mut connection).await.unwrap();
        count
    };
    let before = notes().await;
    assert_eq!(write(|| Ok(Some(()))).await.unwrap(), Some(()));
    assert_eq!(notes().await, before + 1);
    // One value too few, and one of a kind that the schema refuses.
    for values in [&["a".into()][..], &["a".into(), super::native::Value::Null]] {
        let values: Vec<super::native::Value<'static>> = values.to_vec();
        let failed =
            store.connections().write(Durability::Flushed, move |native| native.run(note, &values).map(Some));
        assert!(failed.await.is_err());
    }
    // The driver goes on with the same connection.
    store.connections().begin(Durability::Flushed).await.unwrap().commit().await.unwrap();
    assert_eq!(notes().await, before + 1);
}

#[tokio::test]
async fn a_job_whose_caller_has_gone_goes_on_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open_with(directory.path(), &[">"]).await;
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel();
    let job = store.connections().write(Durability::Flushed, move |native| {
        begun.send(()).unwrap();
        goes_on.recv().unwrap();
        let note = "INSERT INTO laneway_audit (at, action, detail) VALUES (0, 'kept', '')";
        native.run(note, &[]).map(Some)
    });
    tokio::select! {
        biased;
        _ = job => panic!("it waits to be told to go on"),
        begins = begins => begins.unwrap(),
    }
    go_on.send(()).unwrap();
    // Waits for it, as every writer does.
    let kept = "SELECT count(*) FROM laneway_audit WHERE action = 'kept'";
    let mut count = 0;
    let mut next = store.connections().begin(Durability::Flushed).await.unwrap();
    next.each(sqlx::query(kept), |row| {
        count = row.try_get(0)?;
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn settlements_are_flushed_and_claims_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ids) = open_with(directory.path(), &[">"]).await;
    // As the last call left the connection: looked at, not begun anew.
    let synchronous = async || {
        let mut writer = store.connections().writer.lock().await;
        let level: i64 = sqlx::query_scalar("SELECT synchronous FROM pragma_synchronous")
            .fetch_one(&mut writer.connection)
            .await
            .unwrap();
        level
    };
    for _ in 0..3 {
        store.enqueue(&[message("a")]).await.unwrap();
        assert_eq!(synchronous().await, 2, "messages are flushed");
        let batch = claim(&store, ids[0]).await.unwrap();
        assert_eq!(synchronous().await, 1, "claims are not");
        store.settle(&completions(&batch)).await.unwrap();
        assert_eq!(synchronous().await, 2, "settlements are flushed");
    }
}

#[tokio::test]
async fn a_group_with_lost_leases_and_duplicates_settles_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ids) = open_with(directory.path(), &[">"]).await;
    store.enqueue(&[message("a"), message("b"), message("c")]).await.unwrap();
    let batch = claim(&store, ids[0]).await.unwrap();
    let mut group = completions(&batch);
    let add = CounterAdd { namespace: Name::parse("n").unwrap(), key: "k".into(), delta: 1 };
    for settlement in &mut group {
        settlement.adds = vec![add.clone()];
        settlement.emits = vec![message("emitted")];
    }
    group[0].token = LeaseToken(group[0].token.0 ^ 1);
    let mut connection = connect(&directory.path().join("test.db")).await;
    sqlx::query("INSERT INTO laneway_marker (subscription_id, message_id, processed_at) VALUES (?, ?, 0)")
        .bind(ids[0].0)
        .bind(group[1].message.as_str())
        .execute(&mut connection)
        .await
        .unwrap();
    let report = store.settle(&group).await.unwrap();
    assert_eq!(report, SettleReport::Committed { lost: vec![0], duplicates: vec![1] });
    assert_eq!(store.counter(&add.namespace, "k").await.unwrap(), 1);
    assert_eq!(claim(&store, ids[0]).await.unwrap().deliveries.len(), 1, "one message was emitted");
}

#[tokio::test]
async fn counters_wrap_where_sqlite_would_round() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ids) = open_with(directory.path(), &[">"]).await;
    let namespace = Name::parse("n").unwrap();
    let mut expected: i64 = 0;
    for delta in [i64::MAX, 1, i64::MIN, -1, i64::MIN, i64::MIN, i64::MAX, i64::MAX, i64::MAX] {
        store.enqueue(&[message("a")]).await.unwrap();
        let mut group = completions(&claim(&store, ids[0]).await.unwrap());
        group[0].adds = vec![CounterAdd { namespace: namespace.clone(), key: "k".into(), delta }];
        store.settle(&group).await.unwrap();
        expected = expected.wrapping_add(delta);
        assert_eq!(store.counter(&namespace, "k").await.unwrap(), expected);
    }
}

#[tokio::test]
async fn messages_come_back_as_they_were_written() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ids) = open_with(directory.path(), &[">"]).await;
    let header = |name: &str, value: &str| Header { name: name.into(), value: value.into() };
    let rich = NewMessage {
        id: MessageId::parse("order/42").unwrap(),
        key: Some("customer 'ä' \0 \"7\"".into()),
        content_type: "application/octet-stream".into(),
        headers: vec![header("z", "1"), header("a", "\"quoted\"\n"), header("m", "")],
        tenant: Some("acme".into()),
        payload: (0..=255).collect::<Vec<u8>>().into(),
        ..message("a.b")
    };
    let empty = NewMessage { payload: Vec::new().into(), ..message("a") };
    let large = NewMessage { payload: vec![0xA5; 300_000].into(), ..message("a") };
    let written = [rich, empty, large];
    store.enqueue(&written).await.unwrap();
    let mut connection = connect(&directory.path().join("test.db")).await;
    // A text for a payload, and a key that is no UTF-8.
    execute(
        &mut connection,
        "INSERT INTO laneway_message (id, topic, key, payload) VALUES ('raw', 'a', CAST(x'61FF' AS TEXT), '{\"n\":1}')",
    )
    .await;
    let batch = claim(&store, ids[0]).await.unwrap();
    for (delivery, wrote) in batch.deliveries.iter().zip(&written) {
        let read = &delivery.message;
        assert_eq!((&read.id, &read.topic, &read.key), (&wrote.id, &wrote.topic, &wrote.key));
        assert_eq!(
            (&read.headers, &read.tenant, &read.content_type),
            (&wrote.headers, &wrote.tenant, &wrote.content_type)
        );
        assert_eq!(read.payload, wrote.payload);
    }
    let raw = &batch.deliveries[3].message;
    assert_eq!(
        (raw.id.as_str(), &raw.payload[..], raw.key.as_deref()),
        ("raw", &b"{\"n\":1}"[..], Some("a\u{fffd}"))
    );
}

#[tokio::test]
async fn a_replaced_message_leaves_no_delivery_that_stops_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ids) = open_with(directory.path(), &[">"]).await;
    let mut connection = connect(&directory.path().join("test.db")).await;
    for _ in 0..2 {
        execute(
            &mut connection,
            "INSERT OR REPLACE INTO laneway_message (id, topic, payload) VALUES ('x', 'a', '')",
        )
        .await;
    }
    assert_eq!(claim(&store, ids[0]).await.unwrap().deliveries.len(), 1);
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM laneway_delivery").fetch_one(&mut connection).await.unwrap();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn what_a_producer_may_not_write_is_refused_with_what_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open_with(directory.path(), &[">"]).await;
    let topology = Topology { subscriptions: vec![], payload_bytes_max: 10 };
    store.apply(&topology).await.unwrap();
    let large = NewMessage { payload: vec![0; 11].into(), ..message("a") };
    let error = store.enqueue(&[message("a"), large]).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Refused(_)) && error.to_string().contains("larger than 10 bytes"),
        "{error}"
    );
    assert_eq!(store.status().await.unwrap().messages, 0);

    let mut connection = connect(&directory.path().join("test.db")).await;
    for (columns, wants) in [
        ("topic, payload) VALUES ('a..b', '')", "dot-separated"),
        ("topic, payload) VALUES ('', '')", "dot-separated"),
        ("topic, payload) VALUES ('a' || char(0), '')", "dot-separated"),
        ("topic, payload, id) VALUES ('a', '', 'a b')", "visible ASCII"),
        ("topic, payload, id) VALUES ('a', '', '')", "visible ASCII"),
        ("topic, payload, headers) VALUES ('a', '', '{\"n\":1}')", "values are strings"),
        ("topic, payload, headers) VALUES ('a', '', '[]')", "JSON object"),
        ("topic, payload, priority) VALUES ('a', '', 2147483648)", "32 bits"),
        ("topic, payload, available_at) VALUES ('a', '', '2026-01-01')", "milliseconds"),
        ("topic, payload) VALUES ('a', 'ääääääääää')", "larger than 10 bytes"),
    ] {
        let insert = format!("INSERT INTO laneway_message ({columns}");
        let error = sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&mut connection).await.unwrap_err();
        assert!(error.to_string().contains(wants), "{columns}: {error}");
    }
}

#[tokio::test]
async fn a_look_for_whom_to_wake_reads_only_what_is_new() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, _) = open_with(directory.path(), &[">"]).await;
    let mut connection = connect(&directory.path().join("test.db")).await;
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", super::wake::DUE_SINCE)))
        .bind(1)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let plan: Vec<String> = rows.iter().map(|row| row.get(3)).collect();
    assert!(plan.iter().any(|step| step.contains("SEARCH laneway_delivery USING INTEGER PRIMARY KEY")), "{plan:?}");
}

#[tokio::test]
async fn applying_again_and_again_uses_up_no_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ids) = open_with(directory.path(), &["a", "b"]).await;
    for _ in 0..5 {
        for patterns in [["a", "c"], ["a", "b"]] {
            drop(open_with(directory.path(), &patterns).await);
        }
    }
    drop(store);
    let (_store, more) = open_with(directory.path(), &["a", "b", "d"]).await;
    assert_eq!(more[2].0, ids[1].0 + 1);
}

/// Else a file in which nothing happens is looked at as often as one in which messages come.
#[tokio::test]
async fn signs_of_life_are_no_news() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open_with(directory.path(), &["t.>"]).await;
    let mut connection = connect(&directory.path().join("test.db")).await;
    let mut held = super::native::Held::lock(&mut connection).await.unwrap();
    let mut seen = super::wake::look(&mut held.native(), None).unwrap();
    let mut has_news = || {
        let found = super::wake::look(&mut held.native(), Some(seen)).unwrap();
        found.is_news_since(std::mem::replace(&mut seen, found))
    };
    let (node, alive_for) = (Name::parse("node").unwrap(), Duration::from_secs(15));
    for _ in 0..3 {
        store.heartbeat(&node, alive_for).await.unwrap();
        store.report(&node, &[], alive_for).await.unwrap();
        assert!(!has_news());
        store.enqueue(&[message("t.x")]).await.unwrap();
        assert!(has_news());
        assert!(!has_news());
    }
}

/// A node that starts with many subscriptions must not look for each of them.
#[tokio::test]
async fn nobody_is_woken_before_there_is_something_for_him() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ids) = open_with(directory.path(), &["a.>", "b.>"]).await;
    let wait = |id| tokio::time::timeout(Duration::from_millis(300), store.woken(id));
    assert!(wait(ids[0]).await.is_err(), "the first wait is no other than the later ones");
    store.enqueue(&[message("a.x"), message("b.x")]).await.unwrap();
    wait(ids[0]).await.expect("it waits");
    wait(ids[1]).await.expect("it was woken before it was known to wait");
    assert!(wait(ids[1]).await.is_err());
}

#[tokio::test]
async fn the_text_of_a_topology_is_not_read_with_each_of_its_subscriptions() {
    let directory = tempfile::tempdir().unwrap();
    let patterns = vec!["t.>"; 100];
    let (store, ids) = open_with(directory.path(), &patterns).await;
    let active = store.topology().await.unwrap().unwrap();
    assert_eq!(active.subscriptions.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), ids);
    let mut connection = connect(&directory.path().join("test.db")).await;
    let rows = sqlx::query(super::topology::ACTIVE).fetch_all(&mut connection).await.unwrap();
    let texts = rows.iter().filter_map(|row| row.get::<Option<String>, _>(1)).count();
    assert_eq!((rows.len(), texts), (101, 1));
}
