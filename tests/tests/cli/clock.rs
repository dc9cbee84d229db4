//! Behaviour 13: the database's clock decides. Here the clocks of two nodes are an hour off, one to each side.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use laneway_testing::postgres::test_database;
use laneway_testing::skip;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::run::Folder;

/// Longest wait for something that should happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node's name, and how far its clock is off.
const AHEAD: (&str, &str) = ("ahead", "+1h");
const BEHIND: (&str, &str) = ("behind", "-1h");

/// The guest `hostile` runs until it is ended.
const CONFIG: &str = r#"
    [node]
    poll_interval = "200ms"

    # Runs until its node is killed, or stopped.
    [[subscription]]
    name = "held"
    topic = "held.>"
    handler = "hostile.wasm"
    lease = "10s"
    timeout = "10m"
    retry = { schedule = "none" }

    # Each node runs one and has another in hand.
    [[subscription]]
    name = "slow"
    topic = "slow.>"
    handler = "hostile.wasm"
    concurrency = 1
    claim_batch = 1
    timeout = "2s"
    retry = { schedule = "none" }

    [[subscription]]
    name = "delayed"
    topic = "delayed.>"
    handler = "counter.wasm"

    [[subscription]]
    name = "retried"
    topic = "retried.>"
    handler = "fail.wasm"
    retry = { schedule = "constant", base = "1s", cap = "1s", jitter = 0.0 }

    [[subscription]]
    name = "quick"
    topic = "quick.>"
    handler = "counter.wasm"
"#;

/// The library that shifts a program's clock.
fn libfaketime() -> Option<PathBuf> {
    let folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(Path::new);
    let below = folders.iter().filter_map(|folder| folder.read_dir().ok()).flatten().flatten();
    let folders = folders.iter().map(|folder| folder.to_path_buf()).chain(below.map(|entry| entry.path()));
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.is_file())
}

/// Nodes with clocks of their own on one database.
struct Cluster {
    folder: Folder,
    shifter: PathBuf,
    url: String,
}

/// A running node; killed when dropped.
struct Node {
    name: &'static str,
    child: Child,
}

impl Cluster {
    /// A command that takes `shift` for the time of day. Its timers go on as they are.
    fn command(&self, shift: &str, arguments: &[&str]) -> Command {
        let mut command = self.folder.command(&[&["--storage", self.url.as_str()], arguments].concat());
        command.env("LD_PRELOAD", &self.shifter).env("FAKETIME", shift).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    }

    fn start(&self, name: &'static str, shift: &str) -> Node {
        let file = |ending: &str| File::create(self.folder.path().join(format!("{name}.{ending}"))).unwrap();
        let mut command = self.command(shift, &["--json", "--log-format", "json", "run", "--node", name]);
        let child = command.stdout(file("json")).stderr(file("log")).spawn().unwrap();
        self.wait_for("a node to run", || self.text(name, "log").contains("laneway is running"));
        Node { name, child }
    }

    fn text(&self, name: &str, ending: &str) -> String {
        fs::read_to_string(self.folder.path().join(format!("{name}.{ending}"))).unwrap()
    }

    fn wait_for(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let started = Instant::now();
        while !reached() {
            let log = |name| fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default();
            let logs = || [AHEAD, BEHIND].map(|(name, _)| log(name)).concat();
            assert!(started.elapsed() < PATIENCE, "waited in vain for {what}:\n{}", logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many seconds the time in a node's log is ahead of the database's.
    async fn ahead(&self, name: &str, sql: &mut PgConnection) -> i64 {
        let log = self.text(name, "log");
        let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        let query = "SELECT extract(epoch FROM $1::timestamptz - clock_timestamp())::bigint";
        sqlx::query_scalar(query).bind(line["timestamp"].as_str().unwrap()).fetch_one(sql).await.unwrap()
    }
}

impl Node {
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it and answers its counters.
    fn stop(mut self, cluster: &Cluster) -> Value {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        cluster.wait_for("a node to stop", || self.child.try_wait().unwrap().is_some());
        assert!(self.child.wait().unwrap().success(), "{}", cluster.text(self.name, "log"));
        serde_json::from_str(&cluster.text(self.name, "json")).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn number(sql: &mut PgConnection, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT ({query})::bigint"))).fetch_one(sql).await.unwrap()
}

/// Waits until a query answers this number.
async fn wait_for_number(sql: &mut PgConnection, query: &str, wanted: i64) {
    let started = Instant::now();
    loop {
        let found = number(sql, query).await;
        if found == wanted {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{query}: {found}, not {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nodes_whose_clocks_are_an_hour_off_change_nothing() {
    let test = "nodes_whose_clocks_are_an_hour_off_change_nothing";
    let Some(library) = libfaketime() else {
        return skip(test, "no libfaketime on this machine");
    };
    let Some(database) = test_database().unwrap() else {
        return skip(test, "no PostgreSQL server on this machine");
    };
    let cluster = Cluster { folder: Folder::new(), shifter: library, url: database.url.clone() };
    cluster.folder.configure(CONFIG);
    fs::copy(laneway_tests::plugin("hostile"), cluster.folder.path().join("hostile.wasm")).unwrap();
    cluster.folder.ok(&["--storage", &cluster.url, "migrate"]);
    let mut sql = PgConnection::connect(&cluster.url).await.unwrap();
    let sql = &mut sql;

    let ahead = cluster.start(AHEAD.0, AHEAD.1);
    insert(sql, "('held.x', 'loop', NULL)").await;
    wait_for_number(sql, "SELECT count(*) FROM laneway.owed WHERE lease_token IS NOT NULL", 1).await;
    let behind = cluster.start(BEHIND.0, BEHIND.1);
    assert!((3500..3700).contains(&cluster.ahead(AHEAD.0, sql).await), "its clock was not shifted");
    assert!((-3700..-3500).contains(&cluster.ahead(BEHIND.0, sql).await), "its clock was not shifted");

    // Delays of the database's, and of programs that believe in another time.
    insert(sql, "('delayed.x', '1', now() + interval '2 seconds')").await;
    for shift in [AHEAD.1, BEHIND.1] {
        let delayed = ["enqueue", "delayed.x", "1", "--delay", "2s"];
        assert!(cluster.command(shift, &delayed).output().unwrap().status.success());
    }
    for (count, message) in [(4, "('slow.x', 'loop', NULL)"), (10, "('retried.x', 'retry:1', NULL)")] {
        insert(sql, &vec![message; count].join(", ")).await;
    }
    insert(sql, &vec!["('quick.x', '1', NULL)"; 2000].join(", ")).await;
    wait_for_number(sql, "SELECT count(*) FROM laneway.owed", 1).await;

    // Nothing was taken from a node at work, whichever of them looked at it.
    let ended = "SELECT count(*) FROM laneway.dead_letter WHERE reason = 'timeout' AND attempts = 1";
    assert_eq!(number(sql, ended).await, 4);
    assert_eq!(number(sql, "SELECT count(*) FROM laneway.dead_letter").await, 4);
    assert_eq!(number(sql, "SELECT attempt FROM laneway.owed").await, 1, "the held message was taken");
    // Nothing came early, nor an hour late, and everything once.
    let early = "SELECT count(*) FROM laneway.marker k JOIN laneway.message m ON m.id = k.message_id
        WHERE k.processed_at < coalesce(m.available_at, m.created_at)
            + CASE m.topic WHEN 'retried.x' THEN interval '1 second' ELSE interval '0' END";
    assert_eq!(number(sql, early).await, 0);
    assert_eq!(number(sql, "SELECT count(*) FROM laneway.message WHERE available_at > created_at").await, 3);
    assert_eq!(number(sql, "SELECT count(*) FROM laneway.marker").await, 3 + 10 + 2000);
    let once = "SELECT sum(value) FROM laneway.counter WHERE key IN ('messages', 'retry')";
    assert_eq!(number(sql, once).await, 3 + 10 + 2000);

    // What a killed node held is taken over when its lease ends, neither at once nor in an hour.
    ahead.kill();
    let lease_end = "SELECT extract(epoch FROM available_at) * 1000000 FROM laneway.owed";
    let lease_end = number(sql, lease_end).await;
    wait_for_number(sql, "SELECT count(*) FROM laneway.lease WHERE losts IS NOT NULL", 1).await;
    let taken = "SELECT extract(epoch FROM leased_at) * 1000000 FROM laneway.lease WHERE losts IS NOT NULL";
    let early = lease_end - number(sql, taken).await;
    assert!(early <= 0, "it was taken {early} microseconds before the lease's end");

    let stats = behind.stop(&cluster);
    assert_eq!(stats["lease_lost"], 0, "{stats}");
    assert!(stats["claimed"].as_u64() > Some(1), "the node behind took no part: {stats}");
}

/// Inserts rows of topic, payload and due time.
async fn insert(sql: &mut PgConnection, rows: &str) {
    let insert = format!(
        "INSERT INTO laneway.message (topic, payload, available_at)
         SELECT topic, convert_to(payload, 'UTF8'), available_at::timestamptz
         FROM (VALUES {rows}) AS v(topic, payload, available_at)"
    );
    sqlx::query(AssertSqlSafe(insert)).execute(sql).await.unwrap();
}
