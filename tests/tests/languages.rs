//! A plugin in each language: the pages in docs/languages are followed, and the examples are tested and built with the
//! language's own tools; a node hands each a message.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use laneway_testing::skip;
use laneway_tests::{laneway, root, xtask};
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for something that should happen. Large components compile for long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

const ORDER: &str = r#"{"number": 42, "total": 99.9}"#;

/// What the reader's commands do here. `laneway dev` goes on, as in a terminal of its own.
const READER: &str = r#"
    laneway() {
        case "$1" in
            dev)
                CARGO=$PWD/../cargo "$LANEWAY" dev </dev/null >/dev/null 2>run.log &
                echo $! >run.pid
                tries=0
                until grep -q 'laneway is running' run.log; do
                    tries=$((tries + 1))
                    [ $tries -lt 6000 ]
                    kill -0 "$(cat run.pid)"
                    sleep 0.1
                done
                ;;
            *) "$LANEWAY" "$@" ;;
        esac
    }
    rustup() { [ "$*" = "target add wasm32-wasip2" ]; }
    cargo() { CARGO_PROGRAM=$CARGO ../cargo "$@"; }
    export CARGO_PROGRAM=$CARGO XTASK
"#;

/// Cargo, for the reader and for `laneway dev`. Guests are built with whichever toolchain is here.
const CARGO: &str = r#"#!/bin/sh
    set -eu
    # The very dependencies of the workspace, which are here already.
    [ -e Cargo.lock ] || cp ../laneway/Cargo.lock .
    case "$*" in
        test) "$CARGO_PROGRAM" test ;;
        "build --target wasm32-wasip2 --release" | "build --target wasm32-wasip2 --profile release")
            folder=$PWD
            out=$folder/target/wasm32-wasip2/release
            mkdir -p "$out"
            (cd ../laneway && CARGO=$CARGO_PROGRAM "$XTASK" plugins --project "$folder" --out "$out")
            # Named as cargo names it.
            mv "$out/count-orders.wasm" "$out/count_orders.wasm"
            ;;
        *) false ;;
    esac
"#;

/// A project in a temporary folder.
struct Project {
    _folder: TempDir,
    path: PathBuf,
}

impl Project {
    /// What `laneway plugin new` writes.
    fn new(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made");
        let mut command = Command::new(laneway());
        command.args(["plugin", "new", "made", "--dir"]).arg(&path).args(arguments);
        assert_success(&command.output().unwrap(), "plugin new");
        Self { _folder: folder, path }
    }

    /// What a reader of a page has at its end.
    fn followed(page: &str) -> Followed {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(root(), folder.path().join("laneway")).unwrap();
        let cargo = folder.path().join("cargo");
        fs::write(&cargo, CARGO).unwrap();
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
        let text = fs::read_to_string(root().join("docs/languages").join(page)).unwrap();
        let commands: Vec<&str> = text.split("```").skip(1).step_by(2).collect();
        let commands: String = commands
            .iter()
            .map(|block| block.strip_prefix("sh\n").unwrap_or_else(|| panic!("nobody follows this: {block}")))
            .collect();
        let path = folder.path().join("count-orders");
        let project = Followed(Self { _folder: folder, path });
        let mut shell = project.0.command("sh");
        shell.current_dir(project.0._folder.path());
        shell.args(["-c", &format!("set -eu\n{READER}\n{commands}")]);
        shell.env("LANEWAY", laneway()).env("CARGO", env!("CARGO")).env("XTASK", xtask().get_program());
        shell.env("CARGO_MANIFEST_DIR", root().join("xtask"));
        shell.env("CARGO_TARGET_DIR", laneway_tests::target());
        assert_success(&shell.output().unwrap(), page);
        project.0.settled(&|| project.0.log());
        project
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path.join("run.log")).unwrap_or_default()
    }

    /// Waits until nothing is owed, and sees that nothing is dead.
    fn settled(&self, log: &dyn Fn() -> String) {
        let started = Instant::now();
        loop {
            let output = self.laneway(&["--json", "status"]).output().unwrap();
            assert_success(&output, "status");
            let status: Value = serde_json::from_slice(&output.stdout).unwrap();
            let owed = |lane: &Value| ["due", "leased", "delayed"].iter().any(|of| lane[*of] != 0);
            let mut lanes = status["subscriptions"].as_array().unwrap().iter().map(|one| &one["lanes"]);
            if !lanes.any(|lanes| lanes.as_array().unwrap().iter().any(owed)) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "waited in vain: {status}\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let dead = self.laneway(&["--json", "dead-letters", "list"]).output().unwrap();
        assert_success(&dead, "dead-letters list");
        let dead = String::from_utf8(dead.stdout).unwrap();
        assert!(!dead.contains("reason"), "{dead}\n{}", log());
    }

    /// A copy of one of the examples.
    fn example(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        copy(&root().join("examples").join(name), &path);
        Self { _folder: folder, path }
    }

    /// Runs one of the project's commands, which must succeed.
    fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.command(program).args(arguments).output().unwrap();
        assert_success(&output, &format!("{program} {arguments:?}"));
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.path).stdin(Stdio::null()).env("NO_COLOR", "1");
        for name in ["LANEWAY_STORAGE_URL", "LANEWAY_CONFIG", "LANEWAY_LOG", "LANEWAY_LOG_FORMAT"] {
            command.env_remove(name);
        }
        // A registry that does not answer for a while is asked again.
        command.env("PIP_RETRIES", "10").env("PIP_DEFAULT_TIMEOUT", "60").env("npm_config_fetch_retries", "6");
        // Compiled code is kept between runs of the tests: compiling these takes most of their time.
        command.env("XDG_CACHE_HOME", laneway_tests::target().join("languages-cache"));
        command
    }

    fn laneway(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(laneway());
        command.args(arguments);
        command
    }

    /// Starts `laneway run`, sends a message, and waits until it is settled. Answers the log.
    fn deliver(&self, topic: &str, payload: &str) -> String {
        let log = fs::File::create(self.path.join("run.log")).unwrap();
        let node = self.laneway(&["run"]).stderr(log).stdout(Stdio::null()).spawn();
        let mut node = Node(node.unwrap());
        let started = Instant::now();
        while !self.log().contains("laneway is running") {
            let ended = node.0.try_wait().unwrap();
            assert!(ended.is_none() && started.elapsed() < PATIENCE, "it does not run ({ended:?}): {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_success(&self.laneway(&["enqueue", topic, payload]).output().unwrap(), "enqueue");
        self.settled(&|| self.log());
        self.log()
    }

    /// The one value that a query of the project's database answers.
    fn sql(&self, sql: &str) -> String {
        use sqlx::{AssertSqlSafe, ConnectOptions, Row, sqlite::SqliteConnectOptions};
        let options = SqliteConnectOptions::new().filename(self.path.join("laneway.db"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection = options.connect().await.unwrap();
            let row = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap();
            row.try_get::<String, _>(0).or_else(|_| row.try_get::<i64, _>(0).map(|n| n.to_string())).unwrap()
        })
    }
}

/// A node, ended with the test.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has found out.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A project whose page was followed: its node runs until the test ends.
struct Followed(Project);

impl Drop for Followed {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(self.0.path.join("run.pid")) {
            // It may have ended by itself, which the test has found out.
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).output();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        // What a developer has built there.
        if ["build", "node_modules", "__pycache__"].iter().any(|built| name == *built) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(name));
        } else {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
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

const PYTHON: &[&[&str]] = &[&["python3", "--version"], &["python3", "-m", "pip", "--version"]];
const NODE: &[&[&str]] = &[&["node", "--version"], &["npm", "--version"]];

fn build_python(project: &Project) {
    project.run("./test.sh", &[]);
    project.run("./build.sh", &[]);
}

fn build_js(project: &Project) {
    project.run("npm", &["test"]);
    project.run("npm", &["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    project.run("npm", &["run", "build"]);
}

fn assert_has_manifest(component: &Path) {
    let bytes = fs::read(component).unwrap();
    let found = bytes.windows(16).any(|window| window == b"laneway-manifest");
    assert!(found, "{} has no manifest", component.display());
}

/// Follows a page to its end: one order was handled, by a node that swaps the component when it changes.
fn handles(page: &str, component: &str, change: impl FnOnce(&Project)) {
    let Followed(project) = &Project::followed(page);
    assert_has_manifest(&project.path.join(component));
    let log = project.log();
    assert!(log.contains("order 42 arrived; the largest is 42"), "{log}");
    assert_eq!(project.sql("SELECT value FROM laneway_counter WHERE key = 'orders'"), "1");
    change(project);
    let started = Instant::now();
    while !project.log().contains("plugin swapped") {
        assert!(started.elapsed() < PATIENCE, "nothing is swapped: {}", project.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_success(&project.laneway(&["enqueue", "orders.created", ORDER]).output().unwrap(), "enqueue");
    project.settled(&|| project.log());
    assert_eq!(project.sql("SELECT value FROM laneway_counter WHERE key = 'orders'"), "2");
}

/// What a build does at its end.
fn made_anew(component: &str) -> impl FnOnce(&Project) {
    move |project| {
        let path = project.path.join(component);
        let bytes = fs::read(&path).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_rust_handler_gets_from_its_page_to_a_message() {
    handles("rust.md", "target/wasm32-wasip2/release/count_orders.wasm", |project| {
        let source = project.path.join("src/lib.rs");
        let text = fs::read_to_string(&source).unwrap();
        assert!(text.contains(" arrived"), "{text}");
        fs::write(&source, text.replace(" arrived", " came in")).unwrap();
    });
}

#[test]
fn a_python_handler_gets_from_its_page_to_a_message() {
    if has("a_python_handler_gets_from_its_page_to_a_message", PYTHON) {
        handles("python.md", "count-orders.wasm", made_anew("count-orders.wasm"));
    }
}

#[test]
fn a_js_handler_gets_from_its_page_to_a_message() {
    if has("a_js_handler_gets_from_its_page_to_a_message", NODE) {
        handles("javascript.md", "count-orders.wasm", made_anew("count-orders.wasm"));
    }
}

fn publishes(project: &Project, component: &str) {
    assert_has_manifest(&project.path.join(component));
    let log = project.deliver("orders.created", ORDER);
    assert!(log.contains(&format!("new orders.created: {ORDER}")), "{log}");
}

#[test]
fn a_rust_publisher_from_the_template_publishes_a_message() {
    let sdk = root().join("plugins/sdk");
    let project = Project::new(&["--kind", "publisher", "--lang", "rust", "--sdk", sdk.to_str().unwrap()]);
    // The very dependencies of this workspace, which are here already.
    fs::copy(root().join("Cargo.lock"), project.path.join("Cargo.lock")).unwrap();
    let mut test = project.command(env!("CARGO"));
    test.env("CARGO_TARGET_DIR", laneway_tests::target());
    assert_success(&test.arg("test").output().unwrap(), "cargo test");
    let out = project.path.join("target/wasm32-wasip2/release");
    let mut build = xtask();
    build.args(["plugins", "--project"]).arg(&project.path).arg("--out").arg(&out);
    assert_success(&build.output().unwrap(), "cargo xtask plugins");
    publishes(&project, "target/wasm32-wasip2/release/made.wasm");
}

#[test]
fn a_python_publisher_from_the_template_publishes_a_message() {
    if has("a_python_publisher_from_the_template_publishes_a_message", PYTHON) {
        let project = Project::new(&["--kind", "publisher", "--lang", "python"]);
        build_python(&project);
        publishes(&project, "made.wasm");
    }
}

#[test]
fn a_js_publisher_from_the_template_publishes_a_message() {
    if has("a_js_publisher_from_the_template_publishes_a_message", NODE) {
        let project = Project::new(&["--kind", "publisher", "--lang", "js"]);
        build_js(&project);
        publishes(&project, "made.wasm");
    }
}

#[test]
fn a_python_handler_adds_amounts_without_rounding() {
    if has("a_python_handler_adds_amounts_without_rounding", PYTHON) {
        let project = Project::example("order-totals-python");
        build_python(&project);
        project.deliver("orders.created", r#"{"customer": "ada", "lines": [[3, "0.10"], [1, "0.20"]]}"#);
        project.deliver("orders.created", r#"{"customer": "ada", "lines": [[1, "0.05"]]}"#);
        assert_eq!(project.sql("SELECT CAST(value AS TEXT) FROM laneway_state WHERE key = 'total/ada'"), "0.55");
    }
}

#[test]
fn a_js_handler_masks_personal_data() {
    if has("a_js_handler_masks_personal_data", NODE) {
        let project = Project::example("mask-contacts-js");
        build_js(&project);
        project.deliver("tickets.created", r#"{"number": 7, "text": "Ask ada@example.com or +49 30 1234567."}"#);
        let masked = project.sql("SELECT CAST(value AS TEXT) FROM laneway_state WHERE key = 'ticket/7'");
        assert_eq!(masked, "Ask [e-mail] or [phone].");
    }
}

/// What the examples have in common with the templates is the same in both.
#[test]
fn the_examples_are_as_the_templates_are() {
    for (example, lang) in [("order-totals-python", "python"), ("mask-contacts-js", "js")] {
        let made = Project::new(&["--kind", "handler", "--lang", lang]);
        let example_path = root().join("examples").join(example);
        let shared: &[&str] = match lang {
            "python" => &["build.sh", "test.sh", "requirements.txt", "src/failures.py", "src/plugin.py"],
            _ => &["build.js", "package.json", "package-lock.json", "src/failures.js", "src/plugin.js"],
        };
        for file in shared.iter().chain(&[".gitignore", "wit/laneway.wit"]) {
            let read = |path: &Path| fs::read_to_string(path.join(file)).unwrap();
            let template = read(&made.path).replace("\"made", &format!("\"{example}"));
            let template = template.replace("made.wasm", &format!("{example}.wasm"));
            assert!(template == read(&example_path), "examples/{example}/{file} differs from the template's");
        }
    }
}
