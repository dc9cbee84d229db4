//! Behaviours 43 and 47: schedules of a cluster whose nodes come and go.

use std::time::{Duration, Instant};

use laneway_testing::postgres::test_database;
use laneway_testing::{Random, seed, skip};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use crate::run::{Folder, Running, left};

const SUBSCRIPTION: &str = "[[subscription]]\nname = \"count\"\ntopic = \"ticks.>\"\nhandler = \"counter.wasm\"\n";

/// Ticks that lie in the past when the nodes start, and that they make up for.
const PAST: i64 = 1000;

fn every_second(missed: &str) -> String {
    format!(
        "[[schedule]]\nname = \"tick\"\ncron = \"* * * * * *\"\nmissed = \"{missed}\"\ntopic = \"ticks.second\"\n\
         payload = \"1\"\n{SUBSCRIPTION}"
    )
}

/// Lets two nodes make up for a thousand ticks while they are killed and started again, until all have fired. `sql`
/// answers one text.
async fn kill_and_restart(folder: &Folder, storage: &[&str], mut sql: impl AsyncFnMut(&str) -> String) {
    let mut random = Random::new(seed());
    let start = |name: &str| folder.start(&[&["run", "--node", name], storage].concat());
    // Compiles the plugin, which then starts at once: no node lives long.
    let mut nodes: Vec<Running> = vec![start("a")];
    folder.wait_for_log("plugin loaded");
    nodes.push(start("b"));
    let started = Instant::now();
    let mut kills = 0;
    let fired = format!("select cast(count(*) >= {PAST} as text) from @schedule_run where schedule = 'tick'");
    while !matches!(sql(&fired).await.as_str(), "1" | "true") || kills < 12 {
        assert!(started.elapsed() < Duration::from_secs(120), "not all ticks fire: {}", folder.log());
        tokio::time::sleep(Duration::from_millis(50 + random.below(400) as u64)).await;
        let which = usize::from(random.unit() < 0.5);
        // Dropping kills it.
        nodes[which] = start(["a", "b"][which]);
        kills += 1;
    }
    drop(nodes);
    // One look at all of it: PostgreSQL may still be at a commit that a killed node asked for.
    let seconds = if storage.is_empty() {
        "(max(fire_at) - min(fire_at)) / 1000"
    } else {
        "extract(epoch from max(fire_at) - min(fire_at))::bigint"
    };
    let counts = sql(&format!(
        "select count(*) || ' ticks in ' || ({seconds} + 1) || ' seconds, ' || (select count(*) from @message) || \
         ' messages with ' || (select count(distinct id) from @message where id like 'tick/%') || ' ids' \
         from @schedule_run where schedule = 'tick'"
    ))
    .await;
    let ticks: i64 = counts.split_once(' ').unwrap().0.parse().unwrap();
    assert_eq!(counts, format!("{ticks} ticks in {ticks} seconds, {ticks} messages with {ticks} ids"));
}

#[tokio::test]
async fn each_of_a_thousand_ticks_fires_once_while_nodes_are_killed_on_sqlite() {
    let folder = Folder::new();
    folder.configure(&every_second("all"));
    folder.ok(&["apply"]);
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(folder.path().join("laneway.db"))
        .busy_timeout(Duration::from_secs(20));
    let mut connection = options.connect().await.unwrap();
    sqlx::query("INSERT INTO laneway_schedule (name, rule, since) VALUES ('tick', '* * * * * * UTC', (unixepoch() - 1000) * 1000)")
        .execute(&mut connection)
        .await
        .unwrap();
    kill_and_restart(&folder, &[], async |sql: &str| {
        sqlx::query_scalar(AssertSqlSafe(sql.replace('@', "laneway_"))).fetch_one(&mut connection).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn each_of_a_thousand_ticks_fires_once_while_nodes_are_killed_on_postgres() {
    let Some(database) = test_database().unwrap() else {
        return skip("schedules on postgres", "there is no PostgreSQL on this machine");
    };
    let folder = Folder::new();
    folder.configure(&every_second("all"));
    let storage = ["--storage", database.url.as_str()];
    folder.ok(&[&["migrate"][..], &storage].concat());
    folder.ok(&[&["apply"][..], &storage].concat());
    let mut connection = sqlx::PgConnection::connect(&database.url).await.unwrap();
    sqlx::query("INSERT INTO laneway.schedule (name, rule, since) VALUES ('tick', '* * * * * * UTC', now() - interval '1000 seconds')")
        .execute(&mut connection)
        .await
        .unwrap();
    kill_and_restart(&folder, &storage, async |sql: &str| {
        sqlx::query_scalar(AssertSqlSafe(sql.replace('@', "laneway."))).fetch_one(&mut connection).await.unwrap()
    })
    .await;
}

#[test]
fn schedules_are_listed_explained_and_run_by_hand() {
    let folder = Folder::new();
    folder.configure(&format!(
        "[[schedule]]\nname = \"report\"\ncron = \"30 2 * * 1-5\"\ntime_zone = \"America/New_York\"\n\
         topic = \"ticks.report\"\n{SUBSCRIPTION}"
    ));
    let listed = folder.json(&["schedules", "list"]);
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cleanup.messages", "cleanup.markers", "cleanup.schedule_runs", "report"]);
    assert_eq!(listed[3]["does"], "enqueue ticks.report");
    let table = folder.ok(&["schedules", "list"]);
    assert!(table.contains("SCHEDULE") && table.contains("30 2 * * 1-5"), "{table}");
    let next = folder.ok(&["schedules", "next", "report", "--count", "3"]);
    assert_eq!(next.lines().filter(|line| line.contains("T02:30:00-0")).count(), 3, "{next}");
    assert!(next.contains("[America/New_York]"), "{next}");
    let explained = folder.json(&["schedules", "explain", "@daily", "--time-zone", "Europe/Berlin"]);
    assert!(!explained["explanation"].as_str().unwrap().is_empty());
    assert_eq!(explained["next"].as_array().unwrap().len(), 5);
    let error = folder.fails(2, &["schedules", "explain", "61 * * * *"]);
    assert!(error.contains("61"), "{error}");
    let error = folder.fails(1, &["schedules", "run", "nothing"]);
    assert!(error.contains("no schedule is named `nothing`") && error.contains("report"), "{error}");

    folder.ok(&["apply"]);
    assert!(folder.ok(&["schedules", "run", "report"]).starts_with("Enqueued message "));
    assert_eq!(left(&folder.json(&["status"])), Some(1));
    assert_eq!(folder.ok(&["schedules", "run", "cleanup.markers"]), "No idempotency markers to clean up.\n");
}

#[test]
fn a_cleanup_runs_at_its_times_and_notes_what_it_did() {
    let folder = Folder::new();
    let config = format!(
        "[cleanup.markers]\nschedule = \"* * * * * *\"\nretention = \"5s\"\n[cleanup.messages]\nretention = \"0s\"\n\
         {SUBSCRIPTION}lease = \"5s\"\ntimeout = \"5s\"\nretry = {{ schedule = \"none\" }}"
    );
    folder.configure(&config);
    let running = folder.start(&["run"]);
    folder.wait_for_log("cleanup.messages is turned off");
    folder.ok(&["enqueue", "ticks.x", "{}"]);
    folder.wait_for_log("1 deleted");
    // A run is noted after it is logged, and the next may be under way: a drain waits for both.
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    let listed = folder.json(&["schedules", "list"]);
    assert_eq!(listed[0]["name"], "cleanup.markers");
    assert_eq!(listed[0]["last"]["outcome"], "done", "{listed}");
}
