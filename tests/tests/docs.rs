//! The README tells the truth: it is followed from top to bottom, by a reader who has built what it names.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use laneway_tests::{laneway, plugin, root};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqliteConnection};

/// Longest wait for something that should happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the reader's commands do here. What takes minutes was done before, by `cargo xtask test` or by the build of
/// the tests; of these only what they name is looked at. `laneway run` goes on, as in a terminal of its own.
const READER: &str = r#"
    cargo() {
        case "$1" in
            install) [ "$2" = --path ] && grep -q '^name = "laneway"$' "$3/Cargo.toml" ;;
            xtask) grep -qi "^    $2(" xtask/src/main.rs ;;
            build)
                "$CARGO" metadata --offline --format-version 1 "$5" "$6" >metadata.json || return
                mkdir -p count-orders/target/wasm32-wasip2/release
                cp "$HANDLER" count-orders/target/wasm32-wasip2/release/count_orders.wasm
                ;;
            *) false ;;
        esac
    }
    rustup() { [ "$*" = "target add wasm32-wasip2" ]; }
    laneway() {
        case "$1" in
            run)
                {
                    "$LANEWAY" "$@" &
                    echo $! >run.pid
                    code=0
                    wait $! || code=$?
                    echo $code >run.code.part
                    mv run.code.part run.code
                } </dev/null >/dev/null 2>run.log &
                ;;
            *) "$LANEWAY" "$@" ;;
        esac
    }
"#;

/// Where the README's messages go, and what stands for it here.
const ELSEWHERE: &str = "https://api.example.com";
const CLOSED_PORT: &str = "https://127.0.0.1:1";

/// A block of code: its language, and its text.
#[derive(Debug)]
struct Block {
    language: String,
    text: String,
}

/// The blocks of a Markdown text.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut block: Option<Block> = None;
    for line in text.lines() {
        match (&mut block, line.strip_prefix("```")) {
            (None, Some(info)) => {
                let language = info.split(',').next().unwrap_or_default().to_owned();
                block = Some(Block { language, text: String::new() });
            }
            (Some(_), Some("")) => blocks.extend(block.take()),
            (Some(block), _) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(block.is_none(), "a block does not end");
    blocks
}

fn readme() -> Vec<Block> {
    blocks(&fs::read_to_string(root().join("README.md")).unwrap())
}

/// Who follows the README: a clone as it is after its builds, a folder beside it, and where this reader stands.
struct Reader {
    folder: tempfile::TempDir,
    stands: PathBuf,
}

impl Reader {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clone = folder.path().join("laneway");
        fs::create_dir_all(clone.join("target")).unwrap();
        for entry in root().read_dir().unwrap() {
            let name = entry.unwrap().file_name();
            if name != "target" && name != ".git" {
                symlink(root().join(&name), clone.join(&name)).unwrap();
            }
        }
        // Cargo's target directory may be elsewhere; the README's reader has it in the clone.
        symlink(plugin("publish-http").parent().unwrap(), clone.join("target/plugins")).unwrap();
        Self { folder, stands: clone }
    }

    fn shop(&self) -> PathBuf {
        self.folder.path().join("shop")
    }

    /// A command that is told nothing by the environment of the tests.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("LANEWAY_")) {
                command.env_remove(name);
            }
        }
        command.current_dir(&self.stands).env("XDG_CACHE_HOME", self.folder.path().join("cache"));
        command
    }

    /// Runs a block of commands in a shell; each must succeed.
    fn shell(&mut self, commands: &str) {
        let stands = self.folder.path().join("stands");
        let script = format!("set -eu\n{READER}\n{commands}\npwd >'{}'\n", stands.display());
        let output = self
            .command("sh")
            .args(["-c", &script])
            .env("LANEWAY", laneway())
            .env("HANDLER", plugin("readme"))
            .env("CARGO", env!("CARGO"))
            .output()
            .unwrap();
        assert_success(&output, commands);
        self.stands = fs::read_to_string(stands).unwrap().trim_end().into();
    }

    async fn connect(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.shop().join("laneway.db")).connect().await.unwrap()
    }

    async fn sql(&self, sql: &str) {
        let mut connection = self.connect().await;
        connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }

    async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut self.connect().await).await.unwrap()
    }

    fn status(&self) -> serde_json::Value {
        let output = self.command(laneway()).args(["--json", "status"]).output().unwrap();
        assert_success(&output, "status");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.shop().join("run.log")).unwrap_or_default()
    }

    fn wait_for(&self, what: &str, reached: impl Fn() -> bool) {
        let started = Instant::now();
        while !reached() {
            assert!(started.elapsed() < PATIENCE, "waited in vain for {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal to the node that runs; answers whether there is one.
    fn signal(&self, signal: &str) -> bool {
        let Ok(pid) = fs::read_to_string(self.shop().join("run.pid")) else { return false };
        Command::new("kill").args([signal, pid.trim()]).output().unwrap().status.success()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.signal("-KILL");
    }
}

fn assert_success(output: &Output, what: &str) {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn the_readme_can_be_followed_from_top_to_bottom() {
    let mut reader = Reader::new();
    for Block { language, text } in readme() {
        match language.as_str() {
            "sh" => {
                reader.shell(&text);
                if text.contains("laneway run") {
                    reader.wait_for("the node to run", || reader.log().contains("laneway is running"));
                }
            }
            "toml" if text.starts_with("[package]") => {
                fs::write(reader.shop().join("count-orders/Cargo.toml"), text).unwrap();
            }
            "toml" => {
                assert!(text.contains(ELSEWHERE), "{text}");
                fs::write(reader.shop().join("laneway.toml"), text.replace(ELSEWHERE, CLOSED_PORT)).unwrap();
            }
            "rust" => fs::write(reader.shop().join("count-orders/src/lib.rs"), text).unwrap(),
            "sql" => reader.sql(&text).await,
            other => panic!("nobody follows a block of `{other}`:\n{text}"),
        }
    }

    // One order by SQL and one by `laneway enqueue`, each counted, and each still owed to the server elsewhere.
    let owed = |lane: &serde_json::Value| {
        ["due", "leased", "delayed"].map(|of| lane[of].as_u64().unwrap()).iter().sum::<u64>()
    };
    reader.wait_for("the orders to be counted", || {
        let status = reader.status();
        let of = |name: &str| {
            let mut subscriptions = status["subscriptions"].as_array().unwrap().iter();
            let lanes = &subscriptions.find(|one| one["name"] == name).unwrap()["lanes"];
            lanes.as_array().unwrap().iter().map(owed).sum::<u64>()
        };
        (of("count-orders"), of("forward-orders")) == (0, 2)
    });
    assert_eq!(reader.number("SELECT value FROM laneway_counter WHERE namespace = 'count-orders'").await, 2);
    assert_eq!(reader.number("SELECT count(*) FROM orders").await, 1);
    assert!(reader.signal("-TERM"), "the node has ended: {}", reader.log());
    reader.wait_for("the node to stop", || reader.shop().join("run.code").exists());
    assert_eq!(fs::read_to_string(reader.shop().join("run.code")).unwrap(), "0\n", "{}", reader.log());
}

#[test]
fn the_handler_of_the_readme_is_the_one_that_is_compiled() {
    let handler = readme().into_iter().find(|block| block.language == "rust").expect("the README has a handler");
    let compiled = fs::read_to_string(root().join("tests/guests/examples/readme.rs")).unwrap();
    assert!(compiled.ends_with(&handler.text), "tests/guests/examples/readme.rs differs from the README");
}

/// The blocks below a heading of a page, up to the next one.
fn section(page: &str, heading: &str) -> Vec<Block> {
    let text = fs::read_to_string(root().join("docs").join(page)).unwrap();
    let (_, below) =
        text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading} in {page}"));
    blocks(below.split("\n## ").next().unwrap_or_default())
}

/// A folder with a configuration of one subscription, where an operator works.
struct Operator(tempfile::TempDir);

impl Operator {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(plugin("readme"), folder.path().join("handler.wasm")).unwrap();
        let config = "[[subscription]]\nname = \"handler\"\ntopic = \"orders.>\"\nhandler = \"handler.wasm\"\n";
        fs::write(folder.path().join("laneway.toml"), config).unwrap();
        Self(folder)
    }

    /// Runs commands in a shell, with these variables; each must succeed.
    fn shell(&self, commands: &str, variables: &[(&str, &str)]) {
        let script = format!("set -eu\nlaneway() {{ \"$LANEWAY\" \"$@\"; }}\n{commands}");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(self.0.path()).env("LANEWAY", laneway());
        let output = command.envs(variables.iter().copied()).output().unwrap();
        assert_success(&output, commands);
    }
}

/// Whether a program can be run; if not, the test is skipped aloud.
fn has(test: &str, program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        laneway_testing::skip(test, &format!("there is no {program} on this machine"));
    }
    found
}

/// What every message is to the outbox, and what is owed.
const STANDING: &str = "SELECT coalesce(string_agg(m.id || ' ' || m.status || ' ' || (SELECT count(*) \
     FROM laneway.owed o WHERE o.message_seq = m.seq), ', ' ORDER BY m.seq), '') FROM laneway.message_status m";

async fn standing(url: &str) -> String {
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    let standing: String = sqlx::query_scalar(STANDING).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    standing
}

async fn postgres(url: &str, sql: &str) {
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn the_page_on_backups_can_be_followed_on_postgresql() {
    let test = "the_page_on_backups_can_be_followed_on_postgresql";
    let new = || laneway_testing::postgres::test_database().unwrap();
    let Some(database) = new() else {
        return laneway_testing::skip(test, "there is no PostgreSQL on this machine");
    };
    if !has(test, "pg_dump") {
        return;
    }
    let operator = Operator::new();
    operator.shell("laneway migrate && laneway apply", &[("LANEWAY_STORAGE_URL", database.url.as_str())]);
    // One that is processed, one that is owed, one that is dead, and one that matched nothing; and traces of deployments.
    postgres(
        &database.url,
        "INSERT INTO laneway.message (id, topic, payload) VALUES ('processed', 'orders.a', '1'), \
             ('owed', 'orders.a', '2'), ('dead', 'orders.a', '3'), ('unrouted', 'nobody', '4'); \
         INSERT INTO laneway.dead_letter (message_seq, message_id, subscription_id, lane, priority, reason, error, \
             attempts) SELECT d.message_seq, 'dead', d.subscription_id, 0, 0, 'timeout', 'late', 1 \
             FROM laneway.delivery d WHERE d.message_seq = 3; \
         DELETE FROM laneway.delivery WHERE message_seq IN (1, 3); \
         INSERT INTO laneway.deployment (plugin, version, digest, state) VALUES ('p', '1.0.0', 'd', 'retired')",
    )
    .await;
    let before = standing(&database.url).await;
    assert_eq!(before, "processed processed 0, owed pending 1, dead failed 0, unrouted unrouted 0");

    let check = section("backup.md", "What may happen twice");
    assert!(check.is_empty(), "{check:?}");
    for (heading, applied) in [
        ("PostgreSQL: the whole database, or the schema", false),
        ("PostgreSQL: the rows alone", false),
        ("PostgreSQL: the rows alone", true),
    ] {
        let restored = new().unwrap();
        let variables = [("DATABASE_URL", database.url.as_str()), ("RESTORED_URL", restored.url.as_str())];
        let blocks = section("backup.md", heading);
        if applied {
            operator.shell("laneway migrate && laneway apply", &[("LANEWAY_STORAGE_URL", restored.url.as_str())]);
            let empty = blocks.iter().find(|block| block.language == "sql").expect("what empties the tables");
            postgres(&restored.url, &empty.text).await;
        }
        for block in blocks.iter().filter(|block| block.language == "sh") {
            operator.shell(&block.text, &variables);
        }
        assert_eq!(standing(&restored.url).await, before, "{heading}");
        operator.shell("laneway doctor --storage \"$RESTORED_URL\"", &variables);
        // It is an outbox like any other.
        postgres(&restored.url, "INSERT INTO laneway.message (id, topic, payload) VALUES ('new', 'orders.a', '5')")
            .await;
        assert_eq!(standing(&restored.url).await, format!("{before}, new pending 1"), "{heading}");
    }
}

#[tokio::test]
async fn the_page_on_backups_can_be_followed_on_sqlite() {
    if !has("the_page_on_backups_can_be_followed_on_sqlite", "sqlite3") {
        return;
    }
    let operator = Operator::new();
    operator.shell("laneway apply && laneway enqueue orders.created 1", &[]);
    let blocks = section("backup.md", "SQLite");
    let [backup, restore] = &blocks[..] else { panic!("{blocks:?}") };
    operator.shell(&backup.text, &[]);
    operator.shell("laneway enqueue orders.created 2", &[]);
    operator.shell(&restore.text, &[]);
    operator.shell("laneway doctor --storage sqlite://vacuumed.db", &[]);
    let messages = "test \"$(sqlite3 laneway.db 'SELECT count(*) FROM laneway_message')\" = 1";
    operator.shell(messages, &[]);
    operator.shell(&messages.replace("laneway.db", "vacuumed.db"), &[]);
}

#[tokio::test]
async fn a_transaction_of_two_phases_is_written_as_the_page_says() {
    let test = "a_transaction_of_two_phases_is_written_as_the_page_says";
    let Some(database) = laneway_testing::postgres::test_database().unwrap() else {
        return laneway_testing::skip(test, "there is no PostgreSQL on this machine");
    };
    let operator = Operator::new();
    operator.shell("laneway migrate && laneway apply", &[("LANEWAY_STORAGE_URL", database.url.as_str())]);
    let mut connection = sqlx::PgConnection::connect(&database.url).await.unwrap();
    let most: String =
        sqlx::query_scalar("SHOW max_prepared_transactions").fetch_one(&mut connection).await.unwrap();
    if most == "0" {
        return laneway_testing::skip(test, "the server's max_prepared_transactions is 0");
    }
    let blocks = section("postgresql.md", "Two-phase commit");
    let statements = blocks.first().expect("the page shows one");
    // Each by itself: several in one message are one transaction to the server.
    for statement in statements.text.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    }
    let owed: i64 =
        sqlx::query_scalar("SELECT count(*) FROM laneway.owed").fetch_one(&mut connection).await.unwrap();
    assert_eq!(owed, 1);
}
