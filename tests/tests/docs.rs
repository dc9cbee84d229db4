//! The README tells the truth: its blocks of code are run.

use std::path::Path;
use std::process::Command;

use laneway_tests::{laneway, plugin, root};
use sqlx::{ConnectOptions, Connection, Executor};

/// The blocks of a language in a Markdown text.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        match (&mut block, line.strip_prefix("```")) {
            (None, Some(info)) if info.split(',').next() == Some(language) => block = Some(String::new()),
            (Some(_), Some("")) => blocks.extend(block.take()),
            (Some(block), _) => {
                block.push_str(line);
                block.push('\n');
            }
            _ => {}
        }
    }
    blocks
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// A folder as the README's reader would have it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let plugins = folder.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    std::fs::copy(plugin("counter"), plugins.join("count-orders.wasm")).unwrap();
    std::fs::copy(plugin("publish-http"), plugins.join("publish-http.wasm")).unwrap();
    let toml = blocks(&readme(), "toml");
    assert_eq!(toml.len(), 1, "the README has one configuration");
    std::fs::write(folder.path().join("laneway.toml"), &toml[0]).unwrap();
    folder
}

fn run(folder: &Path, arguments: &[&str]) {
    let output = Command::new(laneway()).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn the_sql_of_the_readme_enqueues() {
    let folder = folder();
    run(folder.path(), &["apply"]);
    let sql = blocks(&readme(), "sql");
    assert_eq!(sql.len(), 1);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("laneway.db"));
    let mut connection = options.connect().await.unwrap();
    connection.execute("CREATE TABLE orders (number INTEGER, total REAL)").await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(sql[0].clone())).await.unwrap();
    let owed: i64 =
        sqlx::query_scalar("SELECT count(*) FROM laneway_delivery").fetch_one(&mut connection).await.unwrap();
    assert_eq!(owed, 2, "both subscriptions match");
    connection.close().await.unwrap();
}

#[test]
fn the_commands_of_the_readme_run() {
    let folder = folder();
    run(folder.path(), &["apply"]);
    let commands: Vec<String> = blocks(&readme(), "sh").concat().lines().map(str::to_owned).collect();
    let mut ran = 0;
    for command in &commands {
        let command = command.split('#').next().unwrap_or_default().trim();
        let Some(arguments) = command.strip_prefix("laneway ") else {
            assert!(command.is_empty() || command.starts_with("cargo xtask "), "{command}");
            continue;
        };
        // `run` does not end by itself; the other tests run it.
        if arguments == "run" {
            continue;
        }
        let shell = format!("'{}' {arguments}", laneway().display());
        let output = Command::new("sh").args(["-c", &shell]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        ran += 1;
    }
    assert!(ran >= 5, "{commands:?}");
}

#[test]
fn the_handler_of_the_readme_is_the_one_that_is_compiled() {
    let handler = blocks(&readme(), "rust").concat();
    let compiled = std::fs::read_to_string(root().join("tests/guests/examples/readme.rs")).unwrap();
    assert!(compiled.ends_with(&handler), "tests/guests/examples/readme.rs differs from the README");
}
