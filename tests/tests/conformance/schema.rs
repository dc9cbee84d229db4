//! Opening databases that are older, newer or not ours.

use laneway_core::{StoreError, SubscriptionId};
use laneway_store::Storage;
use laneway_store::sqlite::{SqliteOptions, SqliteStore};
use laneway_testing::postgres::test_database;
use laneway_testing::skip;
use laneway_testing::sqlite::temp_file;

use crate::fixture::*;
use crate::sql::Sql;

/// What opening says, where it must fail.
async fn refusal(storage: &Storage) -> StoreError {
    match storage.open().await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

conformance! {
    async fn migrating_again_changes_nothing(fixture: &Fixture) {
        fixture.enqueue_ids(&["m"]).await;
        let migrated = fixture.storage().migrate().await.unwrap();
        assert_eq!(migrated.from, migrated.to);
        assert!(migrated.to > 0);
        assert_eq!(fixture.sql().await.count("message").await, 1);
    }

    async fn a_newer_schema_is_refused_with_both_versions(fixture: &Fixture) {
        let known = fixture.storage().migrate().await.unwrap().to;
        let mut sql = fixture.sql().await;
        sql.run(
            "insert into @migration (version, description, success, checksum, execution_time)
             select 9999, 'from the future', success, checksum, execution_time from @migration limit 1",
        )
        .await;
        let newer = |error: &StoreError| match error {
            StoreError::SchemaNewer { found, known: ours } => (*found, *ours) == (9999, known),
            _ => false,
        };
        let error = refusal(&fixture.storage()).await;
        assert!(newer(&error), "{error:?}");
        let error = fixture.storage().migrate().await.unwrap_err();
        assert!(newer(&error), "{error:?}");
    }

    async fn an_older_schema_is_refused_with_both_versions(fixture: &Fixture) {
        // One step short of ours, as after an upgrade of the program alone.
        let needed = fixture.storage().migrate().await.unwrap().to;
        let older = Fresh::beside(fixture).await;
        let made = older.storage.migrate_up_to(Some(needed - 1)).await.unwrap().to;
        match refusal(&older.storage).await {
            StoreError::SchemaOlder { found, needed: wanted } => assert_eq!((found, wanted), (made, needed)),
            error => panic!("{error:?}"),
        }
        let migrated = older.storage.migrate().await.unwrap();
        assert_eq!((migrated.from, migrated.to), (made, needed));
        older.storage.open().await.unwrap();
    }

    async fn additions_that_are_not_known_are_no_reason_to_refuse(fixture: &Fixture) {
        let known = fixture.storage().migrate().await.unwrap().to;
        let mut sql = fixture.sql().await;
        // Programs of the first release look only there, and know these two.
        assert_eq!(sql.number("select max(version) from @migration").await, 2);
        sql.run(
            "insert into @addition (version, description, success, checksum, execution_time)
             select 9998, 'from the future', success, checksum, execution_time from @addition limit 1",
        )
        .await;
        fixture.storage().open().await.unwrap();
        assert_eq!(fixture.storage().migrate().await.unwrap().from, 9998);
        assert!(known < 9998);
    }

    async fn what_the_first_release_left_is_delivered_after_the_migration(fixture: &Fixture) {
        let older = Fresh::beside(fixture).await;
        assert_eq!(older.storage.migrate_up_to(Some(2)).await.unwrap().to, 2);
        let mut sql = older.sql().await;
        sql.run(match fixture.is_sqlite() {
            true => {
                "insert into @subscription (name, pattern, kind, dots_min, dots_max, lane_threshold, active, policies)
                 values ('s', 't.x', 'handler', 1, 1, 0, 1, '{}')"
            }
            false => {
                "insert into @subscription (name, pattern, topic_regex, exact_topic, kind, lane_threshold, active, policies)
                 values ('s', 't.x', '^t[.]x$', 't.x', 'handler', 0, true, '{}')"
            }
        })
        .await;
        for id in ["new", "in-work", "left", "retried", "delayed"] {
            sql.run(&format!("insert into @message (id, topic, payload) values ('{id}', 't.x', '{{}}')")).await;
        }
        let hour = sql.span(HOUR);
        let seq = |id: &str| format!("(select seq from @message where id = '{id}')");
        sql.run(&format!("update @delivery set available_at = now() + {hour} where message_seq = {}", seq("delayed")))
            .await;
        sql.run(&format!(
            "update @delivery set attempt = 2, first_attempt_at = now() where message_seq = {}",
            seq("retried")
        ))
        .await;
        // One lease that holds, and one whose node has ended.
        for (id, until) in [("in-work", format!("now() + {hour}")), ("left", "now()".to_owned())] {
            let seq = seq(id);
            match fixture.is_sqlite() {
                true => {
                    sql.run(&format!(
                        "update @delivery set lease_token = message_seq, attempt = 1, first_attempt_at = now(),
                             available_at = {until} where message_seq = {seq}"
                    ))
                    .await
                }
                false => {
                    sql.run(&format!(
                        "with taken as (delete from @delivery where message_seq = {seq} returning *)
                         insert into @lease (leased_until, message_seq_min, message_seq_max, subscription_id, lane, open,
                             message_seqs, priorities, attempts, first_attempts_at, last_errors)
                         select {until}, message_seq, message_seq, subscription_id, lane, '1', array[message_seq],
                             array[priority], array[1], array[null::timestamptz], array[null::text] from taken"
                    ))
                    .await
                }
            };
        }
        older.storage.migrate().await.unwrap();
        let store = older.storage.open().await.unwrap();
        let id = SubscriptionId(i32::try_from(sql.number("select id from @subscription").await).unwrap());
        let mut claimed: Vec<(String, u32, u32)> = Vec::new();
        while claimed.len() < 3 {
            let batch = claim_soon(&*store, id).await;
            let told = batch.deliveries.iter().map(|it| (it.message.id.to_string(), it.attempt, it.lost));
            claimed.extend(told);
        }
        claimed.sort_unstable();
        let wanted = [("left", 1, 1), ("new", 1, 0), ("retried", 3, 0)];
        assert_eq!(claimed, wanted.map(|(id, attempt, lost)| (id.to_owned(), attempt, lost)));
        assert!(store.claim(request(id)).await.unwrap().is_none(), "the others are not due");
    }

    async fn nodes_that_migrate_at_once_both_succeed(fixture: &Fixture) {
        // The tables go, so that there is something to migrate.
        let fresh = Fresh::beside(fixture).await;
        let mut nodes = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let storage = fresh.storage.clone();
            nodes.spawn(async move { storage.migrate().await });
        }
        for result in nodes.join_all().await {
            result.unwrap();
        }
        fresh.storage.open().await.unwrap();
    }
}

/// A second, empty database of the same kind.
struct Fresh {
    storage: Storage,
    /// Path or address, past any pooler.
    place: String,
    _keep: Box<dyn std::any::Any>,
}

impl Fresh {
    async fn beside(fixture: &Fixture) -> Self {
        if fixture.is_sqlite() {
            let file = temp_file().unwrap();
            let place = file.path().display().to_string();
            Self { storage: Storage::parse(&format!("sqlite://{place}")).unwrap(), place, _keep: Box::new(file) }
        } else {
            let database = test_database().unwrap().expect("there was one for the fixture");
            let (storage, place) = (Storage::parse(&database.url).unwrap(), database.direct_url.clone());
            Self { storage, place, _keep: Box::new(database) }
        }
    }

    async fn sql(&self) -> Sql {
        match self.storage.kind() {
            "sqlite" => Sql::sqlite(std::path::Path::new(&self.place)).await,
            _ => Sql::postgres(&self.place).await,
        }
    }
}

#[tokio::test]
async fn an_empty_postgres_database_must_be_migrated_first() {
    let test = "schema::an_empty_postgres_database_must_be_migrated_first";
    let Some(database) = test_database().unwrap() else {
        return skip(test, "no PostgreSQL server on this machine");
    };
    let storage = Storage::parse(&database.url).unwrap();
    match refusal(&storage).await {
        error @ StoreError::SchemaOlder { found: 0, .. } => assert!(error.to_string().contains("laneway migrate")),
        error => panic!("{error:?}"),
    }
    assert_eq!(storage.migrate().await.unwrap().from, 0);
    storage.open().await.unwrap();
}

#[tokio::test]
async fn a_postgres_database_with_another_schema_of_our_name_is_left_alone() {
    let test = "schema::a_postgres_database_with_another_schema_of_our_name_is_left_alone";
    let Some(database) = test_database().unwrap() else {
        return skip(test, "no PostgreSQL server on this machine");
    };
    let mut sql = Sql::postgres(&database.url).await;
    sql.run("create schema laneway; create table @message (text text); insert into @message values ('mine')").await;
    let storage = Storage::parse(&database.url).unwrap();
    assert!(matches!(refusal(&storage).await, StoreError::NotOurs(text) if text.contains("message")));
    assert!(matches!(storage.migrate().await, Err(StoreError::NotOurs(_))));
    assert_eq!(sql.texts("select text from @message").await, ["mine"]);
    assert_eq!(sql.number("select count(*) from pg_tables where schemaname = 'laneway'").await, 1);
}

#[tokio::test]
async fn a_postgres_server_that_is_not_there_is_unavailable() {
    // Port 1 is reserved, and nothing listens there.
    let error = refusal(&Storage::parse("postgres://nobody@127.0.0.1:1/none").unwrap()).await;
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let file = temp_file().unwrap();
    let text = "dear diary, ".repeat(1000);
    std::fs::write(file.path(), &text).unwrap();
    let storage = Storage::parse(&format!("sqlite://{}", file.path().display())).unwrap();
    let error = refusal(&storage).await;
    assert!(matches!(error, StoreError::NotOurs(_)), "{error:?}");
    assert!(matches!(storage.migrate().await, Err(StoreError::NotOurs(_))));
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), text);
}

#[tokio::test]
async fn a_file_with_another_table_of_our_name_is_left_alone() {
    let file = temp_file().unwrap();
    std::fs::write(file.path(), "").unwrap();
    let mut sql = Sql::sqlite(file.path()).await;
    sql.run("create table laneway_message (text text)").await;
    sql.run("insert into laneway_message values ('mine')").await;
    let storage = Storage::parse(&format!("sqlite://{}", file.path().display())).unwrap();
    assert!(matches!(refusal(&storage).await, StoreError::NotOurs(text) if text.contains("laneway_message")));
    assert!(matches!(storage.migrate().await, Err(StoreError::NotOurs(_))));
    assert_eq!(sql.texts("select text from laneway_message").await, ["mine"]);
    assert_eq!(sql.number("select count(*) from sqlite_schema").await, 1);
}

#[tokio::test]
async fn our_tables_live_beside_an_applications_in_one_file() {
    let file = temp_file().unwrap();
    std::fs::write(file.path(), "").unwrap();
    let mut sql = Sql::sqlite(file.path()).await;
    sql.run("create table flight (number text); create table _sqlx_migrations (version integer)").await;
    let storage = Storage::parse(&format!("sqlite://{}", file.path().display())).unwrap();
    storage.migrate().await.unwrap();
    let store = storage.open().await.unwrap();
    store.enqueue(&[message("m")]).await.unwrap();
    assert_eq!(sql.count("message").await, 1);
    let foreign = "select count(*) from sqlite_schema where name not like 'laneway%' and name not like 'sqlite%'";
    assert_eq!(sql.number(foreign).await, 2);
}

#[tokio::test]
async fn a_missing_file_is_made_only_if_asked_for() {
    let file = temp_file().unwrap();
    let mut options = SqliteOptions::new(file.path());
    options.create = false;
    let error = SqliteStore::open(options.clone()).await.expect_err("there is no file");
    assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    assert!(!file.path().exists());
    options.create = true;
    SqliteStore::open(options).await.unwrap();
}
