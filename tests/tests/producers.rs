//! The page on producers tells the truth: its examples are run as they stand, each with its own database library, and what
//! comes out of the outbox is what the application put in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use laneway_store::Storage;
use laneway_testing::postgres::{TestDatabase, test_database};
use laneway_testing::skip;
use laneway_tests::{root, target};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row, SqliteConnection};
use tempfile::TempDir;

const PYTHON_PACKAGES: &[&str] = &["psycopg[binary]==3.3.9", "SQLAlchemy==2.1.9"];
const NODE_PACKAGES: &[&str] = &["pg@8.23.1"];
/// Built from source, which takes minutes.
const SLOW_NODE_PACKAGES: &[&str] = &["better-sqlite3@12.11.1"];

const SQL: &[&str] = &["PostgreSQL", "SQLite"];
const PYTHON: &[&str] = &["orders_sqlite.py", "orders_psycopg.py", "orders_sqlalchemy.py"];
const NODE: &[&str] = &["orders_pg.js"];
const OTHERS: &[&str] = &["orders_better_sqlite3.js", "orders_active_record.rb", "orders_pq.go", "OrdersJdbc.java"];

/// Where Debian's packages put their files.
const GO_LIBRARIES: &str = "/usr/share/gocode";
const JDBC_DRIVER: &str = "/usr/share/java/postgresql.jar";

/// A block of code of the page.
struct Example {
    language: String,
    /// As its first line says.
    name: String,
    text: String,
}

fn examples() -> Vec<Example> {
    let page = fs::read_to_string(root().join("docs/producers.md")).unwrap();
    page.split("\n```")
        .skip(1)
        .step_by(2)
        .map(|block| {
            let (language, text) = block.split_once('\n').unwrap();
            let first = text.lines().next().unwrap().trim_start_matches(['#', '/', '-', ' ']);
            let name = first.split([':', ' ']).next().unwrap().to_owned();
            Example { language: language.to_owned(), name, text: format!("{text}\n") }
        })
        .collect()
}

/// The text of the examples of this name.
fn texts(name: &str) -> Vec<String> {
    let found: Vec<_> = examples().into_iter().filter(|example| example.name == name).collect();
    assert!(!found.is_empty(), "the page has no example {name}");
    found.into_iter().map(|example| example.text).collect()
}

/// An application's folder, and its databases: PostgreSQL if there is a server, and the file `orders.db`.
struct Shop {
    folder: TempDir,
    postgres: Option<TestDatabase>,
}

impl Shop {
    async fn new(test: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shop = Self { postgres: test_database().unwrap(), folder };
        let orders = "CREATE TABLE orders (number bigint PRIMARY KEY, note text)";
        Storage::parse(&format!("sqlite://{}", shop.file().display())).unwrap().migrate().await.unwrap();
        shop.sqlite().await.execute(orders).await.unwrap();
        match &shop.postgres {
            Some(database) => {
                Storage::parse(&database.url).unwrap().migrate().await.unwrap();
                shop.connect().await.unwrap().execute(orders).await.unwrap();
            }
            None => skip(test, "no PostgreSQL server on this machine, so that only SQLite is tested"),
        }
        shop
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("orders.db")
    }

    async fn sqlite(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.file()).connect().await.unwrap()
    }

    async fn connect(&self) -> Option<PgConnection> {
        Some(PgConnection::connect(&self.postgres.as_ref()?.url).await.unwrap())
    }

    /// Runs an example by a program that takes its file; nothing happens if it wants a database that is not here.
    fn run(&self, name: &str, program: &str, arguments: &[&str], environment: &[(&str, String)]) {
        let texts = texts(name);
        let [text] = &texts[..] else { panic!("the page has {name} twice") };
        if !text.contains("orders.db") && self.postgres.is_none() {
            return;
        }
        fs::write(self.folder.path().join(name), text).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).arg(name).current_dir(self.folder.path()).stdin(Stdio::null());
        for (key, value) in environment {
            command.env(key, value);
        }
        if let Some(database) = &self.postgres {
            // Go's driver wants encryption unless it is told otherwise, and Java's has addresses of its own.
            let server = database.url.split_once('@').unwrap().1;
            command.env("DATABASE_URL", format!("{}?sslmode=disable", database.url));
            command.env("JDBC_URL", format!("jdbc:postgresql://{server}?user=postgres"));
        }
        assert_success(&command.output().unwrap(), name);
    }

    /// Sees that there is one message for each of these orders, whose payload says what the order's row does.
    async fn holds(&self, on_sqlite: &[i64], on_postgres: &[i64]) {
        let query = "SELECT o.number, o.note, CAST(m.payload AS TEXT) FROM laneway_message m
            JOIN orders o ON o.number = json_extract(CAST(m.payload AS TEXT), '$.number')
            JOIN laneway_unrouted u ON u.message_seq = m.seq ORDER BY m.seq";
        let rows = sqlx::query(query).fetch_all(&mut self.sqlite().await).await.unwrap();
        same(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))), on_sqlite);
        let Some(mut connection) = self.connect().await else { return };
        let query = "SELECT o.number, o.note, convert_from(m.payload, 'UTF8') FROM laneway.message m
            JOIN orders o ON o.number = (convert_from(m.payload, 'UTF8')::json ->> 'number')::bigint
            JOIN laneway.unrouted u ON u.message_seq = m.seq ORDER BY m.seq";
        let rows = sqlx::query(query).fetch_all(&mut connection).await.unwrap();
        same(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))), on_postgres);
    }
}

fn same(rows: impl Iterator<Item = (i64, String, String)>, numbers: &[i64]) {
    let mut found = Vec::new();
    for (number, note, payload) in rows {
        assert!(note.starts_with("C:\\dir \"é\""), "{note}");
        let payload: Value = serde_json::from_str(&payload).unwrap();
        assert_eq!(payload, serde_json::json!({ "number": number, "note": note }));
        found.push(number);
    }
    assert_eq!(found, numbers);
}

fn assert_success(output: &Output, what: &str) {
    let told = [&output.stdout, &output.stderr].map(|told| String::from_utf8_lossy(told));
    assert!(output.status.success(), "{what}: {}\n{}", told[0], told[1]);
}

/// Whether these programs are here; if not, the test is skipped.
fn has(test: &str, programs: &[&[&str]]) -> bool {
    for program in programs {
        let found = Command::new(program[0]).args(&program[1..]).stdin(Stdio::null()).output();
        if !found.is_ok_and(|output| output.status.success()) {
            skip(test, &format!("`{}` does not run", program.join(" ")));
            return false;
        }
    }
    true
}

/// Packages, kept between runs of the tests.
fn installed(name: &str, packages: &[&str], install: impl FnOnce(&Path) -> Command) -> PathBuf {
    let folder = target().join("producers").join(format!("{name}-{}", packages.join("-").replace('/', "_")));
    if !folder.exists() {
        let parts = folder.with_extension("part");
        // What an interrupted run has left.
        let _ = fs::remove_dir_all(&parts);
        fs::create_dir_all(&parts).unwrap();
        let mut command = install(&parts);
        command.args(packages).stdin(Stdio::null());
        // A registry that does not answer for a while is asked again.
        command.env("PIP_RETRIES", "10").env("PIP_DEFAULT_TIMEOUT", "60").env("npm_config_fetch_retries", "6");
        assert_success(&command.output().unwrap(), name);
        fs::rename(&parts, &folder).unwrap();
    }
    folder
}

fn node_packages(packages: &[&str], arguments: &[&str]) -> String {
    let folder = installed("node", packages, |folder| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--no-save"]).args(arguments).arg("--prefix").arg(folder);
        npm
    });
    folder.join("node_modules").display().to_string()
}

#[test]
fn every_example_of_the_page_is_run_by_a_test() {
    for example in examples() {
        let known = match example.language.as_str() {
            "sql" => SQL,
            "python" => PYTHON,
            "js" if NODE.contains(&example.name.as_str()) => NODE,
            _ => OTHERS,
        };
        assert!(known.contains(&example.name.as_str()), "nobody runs {} ({})", example.name, example.language);
    }
    for name in [SQL, PYTHON, NODE, OTHERS].concat() {
        texts(name);
    }
}

#[tokio::test]
async fn a_producer_in_sql_sends_json_with_backslashes() {
    let shop = Shop::new("a_producer_in_sql_sends_json_with_backslashes").await;
    let mut sqlite = shop.sqlite().await;
    for text in texts("SQLite") {
        sqlite.execute(AssertSqlSafe(text)).await.unwrap();
    }
    if let Some(mut postgres) = shop.connect().await {
        // Roles are the server's, which other tests use too.
        let role = format!("shop_{}", std::process::id());
        for text in texts("PostgreSQL") {
            let text = text.replace("ROLE shop", &format!("ROLE {role}")).replace("TO shop", &format!("TO {role}"));
            postgres.execute(AssertSqlSafe(text)).await.unwrap();
        }
        let insert = format!(
            "GRANT INSERT ON orders TO {role}; SET ROLE {role}; INSERT INTO orders (number, note) VALUES (41, E'C:\\\\dir \"é\"');
             INSERT INTO laneway.message (topic, payload_text)
                 VALUES ('orders.created', '{{\"number\": 41, \"note\": \"C:\\\\dir \\\"é\\\"\"}}')
                 ON CONFLICT (id) DO NOTHING RETURNING seq;
             RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}"
        );
        postgres.execute(AssertSqlSafe(insert)).await.unwrap();
    }
    shop.holds(&[40], &[40, 41]).await;
}

#[tokio::test]
async fn producers_in_python_send_json_with_backslashes() {
    let test = "producers_in_python_send_json_with_backslashes";
    if !has(test, &[&["python3", "--version"], &["python3", "-m", "pip", "--version"]]) {
        return;
    }
    let shop = Shop::new(test).await;
    let packages = installed("python", PYTHON_PACKAGES, |folder| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]).arg(folder);
        pip
    });
    for name in PYTHON {
        shop.run(name, "python3", &[], &[("PYTHONPATH", packages.display().to_string())]);
    }
    shop.holds(&[42], &[42, 43]).await;
}

#[tokio::test]
async fn a_producer_in_node_sends_json_with_backslashes() {
    let test = "a_producer_in_node_sends_json_with_backslashes";
    if !has(test, &[&["node", "--version"], &["npm", "--version"]]) {
        return;
    }
    let shop = Shop::new(test).await;
    let packages = node_packages(NODE_PACKAGES, &["--ignore-scripts"]);
    for name in NODE {
        shop.run(name, "node", &[], &[("NODE_PATH", packages.clone())]);
    }
    shop.holds(&[], &[44]).await;
}

/// A long run, since it compiles for minutes: `LANEWAY_TEST_FULL=1 cargo xtask test -p laneway-tests --test producers`, after
/// `apt-get install ruby-pg ruby-activerecord golang-go golang-github-lib-pq-dev default-jdk-headless libpostgresql-jdbc-java`.
#[tokio::test]
async fn producers_in_other_languages_send_json_with_backslashes() {
    if std::env::var("LANEWAY_TEST_FULL").as_deref() != Ok("1") {
        return;
    }
    let test = "producers_in_other_languages_send_json_with_backslashes";
    if !has(
        test,
        &[
            &["node", "--version"],
            &["ruby", "-ractive_record", "-rpg", "-e", ""],
            &["go", "version"],
            &["java", "--version"],
        ],
    ) {
        return;
    }
    for path in [GO_LIBRARIES, JDBC_DRIVER] {
        assert!(Path::new(path).exists(), "{path} is missing; the test says which packages have it");
    }
    let shop = Shop::new(test).await;
    let packages = node_packages(SLOW_NODE_PACKAGES, &[]);
    shop.run("orders_better_sqlite3.js", "node", &[], &[("NODE_PATH", packages)]);
    shop.run("orders_active_record.rb", "ruby", &[], &[]);
    let go = [("GO111MODULE", "off".to_owned()), ("GOPATH", GO_LIBRARIES.to_owned())];
    shop.run("orders_pq.go", "go", &["run"], &go);
    shop.run("OrdersJdbc.java", "java", &["-cp", JDBC_DRIVER], &[]);
    shop.holds(&[44], &[45, 46, 47]).await;
}
