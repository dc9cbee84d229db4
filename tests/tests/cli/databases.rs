//! Databases that are older, newer, not ours, or gone.

use std::time::Duration;

use laneway_testing::postgres::{Cluster, TestDatabase, test_database};
use laneway_testing::skip;
use sqlx::{ConnectOptions, Connection, Executor};

use crate::run::{Folder, left};

const CONFIG: &str = "[[subscription]]\nname = \"s\"\ntopic = \"a.>\"\nhandler = \"counter.wasm\"\nlease = \"1s\"";

pub async fn sqlite(folder: &Folder, sql: &'static str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("laneway.db"));
    let mut connection = options.connect().await.unwrap();
    connection.execute(sql).await.unwrap();
    connection.close().await.unwrap();
}

pub async fn postgres(url: &str, sql: &'static str) {
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    connection.execute(sql).await.unwrap();
    connection.close().await.unwrap();
}

fn database(test: &str) -> Option<TestDatabase> {
    let database = test_database().unwrap();
    if database.is_none() {
        skip(test, "there is no PostgreSQL on this machine");
    }
    database
}

#[tokio::test]
async fn a_newer_sqlite_schema_is_refused() {
    let folder = Folder::new();
    folder.configure(CONFIG);
    folder.ok(&["apply"]);
    sqlite(
        &folder,
        "INSERT INTO laneway_migration (version, description, success, checksum, execution_time) \
         VALUES (9999, 'future', 1, x'00', 0)",
    )
    .await;
    let error = folder.fails(4, &["status"]);
    assert!(error.contains("9999") && error.contains("newer"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let folder = Folder::new();
    folder.configure(CONFIG);
    folder
        .write("laneway.db", "this is a text, and it is long enough not to be taken for an empty file".repeat(100));
    let error = folder.fails(4, &["status"]);
    assert!(error.contains("not a laneway database"), "{error}");
}

#[tokio::test]
async fn the_applications_own_file_is_shared() {
    let folder = Folder::new();
    folder.configure(CONFIG);
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(folder.path().join("laneway.db"))
        .create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    connection.execute("CREATE TABLE orders (number INTEGER)").await.unwrap();
    connection.close().await.unwrap();
    folder.ok(&["apply"]);
    sqlite(&folder, "BEGIN; INSERT INTO orders VALUES (1); INSERT INTO laneway_message (topic, payload) VALUES ('a.b', '{}'); COMMIT").await;
    assert_eq!(left(&folder.json(&["status"])), Some(1));
}

#[tokio::test]
async fn a_postgres_database_without_the_schema_says_how_to_make_it() {
    let Some(database) = database("a_postgres_database_without_the_schema_says_how_to_make_it") else { return };
    let folder = Folder::new();
    folder.configure(CONFIG);
    let error = folder.fails(4, &["run", "--storage", &database.url]);
    assert!(error.contains("laneway migrate"), "{error}");
    assert!(folder.ok(&["migrate", "--storage", &database.url]).starts_with("Migrated the schema from version 0"));
    assert!(folder.ok(&["migrate", "--storage", &database.url]).contains("up to date"));
}

#[tokio::test]
async fn a_newer_or_foreign_postgres_schema_is_refused() {
    let Some(database) = database("a_newer_or_foreign_postgres_schema_is_refused") else { return };
    let folder = Folder::new();
    postgres(&database.url, "CREATE SCHEMA laneway; CREATE TABLE laneway.race (runner text)").await;
    let error = folder.fails(4, &["status", "--storage", &database.url]);
    assert!(error.contains("not a laneway database"), "{error}");
    postgres(&database.url, "DROP SCHEMA laneway CASCADE").await;
    folder.ok(&["migrate", "--storage", &database.url]);
    postgres(
        &database.url,
        "INSERT INTO laneway.migration (version, description, success, checksum, execution_time) \
         VALUES (9999, 'future', true, '\\x00', 0)",
    )
    .await;
    let error = folder.fails(4, &["status", "--storage", &database.url]);
    assert!(error.contains("9999") && error.contains("newer"), "{error}");
}

#[tokio::test]
async fn a_database_out_of_reach_exits_with_3_and_hides_the_password() {
    let folder = Folder::new();
    let url = "postgres://someone:very-secret@127.0.0.1:1/nothing";
    let error = folder.fails(3, &["status", "--storage", url]);
    assert!(!error.contains("very-secret"), "{error}");
}

#[tokio::test]
async fn a_connection_lost_in_the_middle_recovers_by_itself() {
    let test = "a_connection_lost_in_the_middle_recovers_by_itself";
    // A cluster of its own: ending every connection of a shared one would hit other tests.
    let Some(cluster) = Cluster::start().unwrap() else {
        return skip(test, "there is no PostgreSQL on this machine");
    };
    cluster.create_database("lost").unwrap();
    let url = cluster.url("lost");
    let folder = Folder::new();
    folder.configure(CONFIG);
    folder.ok(&["migrate", "--storage", &url]);
    let storage = ["--storage", url.as_str()];
    let mut running = folder.start(&["run", "--storage", &url]);
    folder.wait_for("the topology", &storage, |status| left(status).is_some());
    let mut total = 0;
    for _ in 0..5 {
        postgres(
            &url,
            "INSERT INTO laneway.message (topic, payload) SELECT 'a.b', convert_to(i::text, 'UTF8') \
             FROM generate_series(1, 2000) i",
        )
        .await;
        total += 2000;
        postgres(
            &url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
             AND application_name = 'laneway'",
        )
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    folder.wait_for("all messages", &storage, |status| left(status) == Some(0));
    assert!(running.is_running(), "{}", folder.log());
    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    let row: (i64, i64) = sqlx::query_as(
        "SELECT (SELECT coalesce(sum(value), 0)::bigint FROM laneway.counter), \
         (SELECT count(*) FROM laneway.dead_letter)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(row, (total, 0), "{}", folder.log());
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}
