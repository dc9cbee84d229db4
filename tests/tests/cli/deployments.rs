//! A plugin's life in the database, by the command line: pushed, deployed, tried, rolled back, drained, removed.

use std::time::{Duration, Instant};

use crate::run::{Folder, PATIENCE, left};

const WORK: &str = r#"
    [[subscription]]
    name = "work"
    topic = "work.>"
    handler = "worker"
    retry = { base = "100ms", jitter = 0.0 }
"#;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.configure(WORK);
    folder
}

/// Sends a message, and waits until nothing is left. Answers its status.
fn sent(folder: &Folder, payload: &str) -> String {
    let id = folder.ok(&["enqueue", "work.x", payload, "--content-type", "text/plain"]);
    folder.wait_for("the message", &[], |status| left(status) == Some(0));
    folder.json(&["messages", "show", id.trim()])["status"].as_str().unwrap().to_owned()
}

/// Runs a command that changes which versions are at work, and waits until the node has swapped them. Answers what the
/// command says.
fn swaps(folder: &Folder, arguments: &[&str]) -> String {
    const SWAPPED: &str = "versions swapped";
    let before = folder.times_in_log(SWAPPED);
    let said = folder.ok(arguments);
    folder.wait_for_times_in_log(SWAPPED, before + 1);
    said
}

/// The states of the plugin's versions, the latest deployment first.
fn states(folder: &Folder) -> Vec<(String, String)> {
    let status = folder.json(&["plugin", "status"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    status.as_array().unwrap().iter().map(|row| (text(&row["version"]), text(&row["state"]))).collect()
}

fn wait_for_states(folder: &Folder, wanted: &[(&str, &str)]) {
    let began = Instant::now();
    loop {
        let found = states(folder);
        let same = found.len() == wanted.len()
            && found
                .iter()
                .zip(wanted)
                .all(|((version, state), wants)| (version.as_str(), state.as_str()) == *wants);
        if same {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {wanted:?}: {found:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_plugin_is_pushed_deployed_rolled_back_drained_and_removed_while_its_node_runs() {
    let folder = folder();
    let running = folder.start(&["run"]);
    folder.wait_for_log("laneway is running");
    // Nothing is deployed: messages wait.
    let first = folder.ok(&["enqueue", "work.x", "ok", "--content-type", "text/plain"]);
    let pushed = folder.json(&["plugin", "push", "noop.wasm", "--as", "worker@1"]);
    assert_eq!((pushed["version"].as_str(), pushed["new"].as_bool()), (Some("1"), Some(true)));
    assert!(folder.ok(&["plugin", "push", "noop.wasm", "--as", "worker@1"]).contains("stored already"));
    let refused = folder.fails(1, &["plugin", "push", "fail.wasm", "--as", "worker@1"]);
    assert!(refused.contains("worker@1 is there already") && refused.contains("give a new one"), "{refused}");
    assert_eq!(left(&folder.json(&["status"])), Some(1));

    let deployed = folder.json(&["plugin", "deploy", "worker"]);
    assert_eq!((deployed["state"].as_str(), deployed["late"].as_array().unwrap().len()), (Some("active"), 0));
    folder.wait_for("the first message", &[], |status| left(status) == Some(0));
    assert_eq!(folder.json(&["messages", "show", first.trim()])["status"], "processed");
    assert_eq!(sent(&folder, "reject"), "processed", "the first version does nothing");

    folder.ok(&["plugin", "push", "fail.wasm", "--as", "worker@2"]);
    let listed = folder.ok(&["plugin", "list"]);
    assert!(listed.contains("worker  2") && listed.contains("worker  1"), "{listed}");
    swaps(&folder, &["plugin", "deploy", "worker@2"]);
    assert_eq!(sent(&folder, "reject"), "failed");
    let dead = folder.json(&["dead-letters", "list"])[0].clone();
    let stored = folder.json(&["plugin", "list"])[0].clone();
    assert_eq!(dead["plugin"], stored["digest"], "a dead letter says what ran");

    assert_eq!(swaps(&folder, &["plugin", "rollback", "worker"]), "worker@2 is out; worker@1 is active.\n");
    assert_eq!(sent(&folder, "reject"), "processed");
    let refused = folder.fails(1, &["plugin", "rollback", "worker"]);
    assert!(refused.contains("no other version of `worker` was active before worker@1"), "{refused}");
    wait_for_states(&folder, &[("1", "active"), ("2", "retired"), ("1", "retired")]);
    let refused = folder.fails(1, &["plugin", "remove", "worker@1"]);
    assert!(refused.contains("worker@1 is active"), "{refused}");
    folder.ok(&["plugin", "remove", "worker@2"]);
    let refused = folder.fails(1, &["plugin", "deploy", "worker@2"]);
    assert!(refused.contains("worker@2 is not stored"), "{refused}");

    folder.ok(&["plugin", "drain", "worker"]);
    folder.wait_for_log("no version is deployed; messages wait");
    folder.ok(&["enqueue", "work.x", "ok", "--content-type", "text/plain"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(left(&folder.json(&["status"])), Some(1));
    folder.ok(&["plugin", "deploy", "worker@1"]);
    folder.wait_for("the message", &[], |status| left(status) == Some(0));
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}

#[test]
fn a_version_that_does_not_validate_never_gets_a_message() {
    let folder = Folder::new();
    folder.configure(&format!(
        "{WORK}[[subscription]]\nname = \"log\"\ntopic = \"log.>\"\nhandler = \"publish-log\""
    ));
    let _running = folder.start(&["run"]);
    folder.wait_for_log("laneway is running");
    folder.ok(&["plugin", "push", "noop.wasm", "--as", "worker@1"]);
    folder.ok(&["plugin", "deploy", "worker"]);
    // A publisher is no handler.
    folder.ok(&["plugin", "push", "publish-log.wasm"]);
    let error = folder.fails(1, &["plugin", "deploy", "publish-log"]);
    assert!(error.contains("publish-log@0.1.0 is not deployed") && error.contains("no handler"), "{error}");
    assert_eq!(states(&folder)[0], ("0.1.0".to_owned(), "failed".to_owned()));
    let status = folder.ok(&["plugin", "status", "publish-log"]);
    assert!(status.contains("subscription `log`: the component is no handler"), "{status}");
    assert_eq!(sent(&folder, "ok"), "processed");
    let error = folder.fails(1, &["plugin", "deploy", "other@1"]);
    assert!(error.contains("other@1 is not stored"), "{error}");
    folder.ok(&["plugin", "push", "noop.wasm", "--as", "other@1"]);
    let error = folder.fails(1, &["plugin", "deploy", "other"]);
    assert!(error.contains("no subscription of the configuration runs it"), "{error}");
}

#[test]
fn a_canary_that_fails_is_rolled_back_by_itself() {
    let folder = folder();
    let _running = folder.start(&["run"]);
    folder.wait_for_log("laneway is running");
    folder.ok(&["plugin", "push", "noop.wasm", "--as", "worker@1"]);
    folder.ok(&["plugin", "push", "fail.wasm", "--as", "worker@2"]);
    swaps(&folder, &["plugin", "deploy", "worker@1"]);
    let deployed = swaps(&folder, &["plugin", "deploy", "worker@2", "--canary", "25", "--min-attempts", "10"]);
    assert!(deployed.contains("on trial with 25 % of the messages"), "{deployed}");
    let input = "retry\n".repeat(200);
    let lines = ["enqueue", "work.x", "--lines", "--content-type", "text/plain"];
    assert!(folder.feed(&lines, input.as_bytes()).status.success());
    wait_for_states(&folder, &[("2", "retired"), ("1", "active")]);
    folder.wait_for("the messages", &[], |status| left(status) == Some(0));
    let failed = folder.json(&["messages", "list", "--status", "failed"]);
    assert_eq!(failed.as_array().unwrap().len(), 0, "their last word is the old version's");
    let canary = folder.json(&["plugin", "status"])[0].clone();
    let reason = canary["reason"].as_str().unwrap();
    assert!(reason.contains("rolled back") && reason.contains("guest:retry"), "{reason}");
    assert!(canary["figures"]["failed"].as_u64().unwrap() >= 10, "{canary}");
    assert!(canary["nodes"][0]["alive"].as_bool().unwrap(), "{canary}");
}

#[test]
fn what_a_component_is_can_be_seen_without_running_it() {
    let folder = folder();
    folder.ok(&["plugin", "push", "noop.wasm", "--as", "worker@1"]);
    let of_file = folder.json(&["plugin", "inspect", "noop.wasm"]);
    let stored = folder.json(&["plugin", "inspect", "worker"]);
    assert_eq!(of_file["digest"], stored["digest"]);
    assert_eq!((stored["kind"].as_str(), stored["contract"].as_str()), (Some("handler"), Some("0.1.0")));
    assert!(stored["imports"].to_string().contains("laneway:plugin/"), "{stored}");
    // It has no manifest: what it is granted is found by the name that it is stored under.
    assert_eq!(stored["granted"][0]["subscription"], "work", "{stored}");
    std::fs::create_dir(folder.path().join("worker")).unwrap();
    assert_eq!(folder.json(&["plugin", "inspect", "worker"]), stored, "a folder is no plugin");
    // Where a custom section may stand, so may an import, whatever its name does to a terminal.
    let mut component = std::fs::read(folder.path().join("noop.wasm")).unwrap();
    let name = b"\x1b[1Ax";
    let import = [&[1, 0, name.len() as u8][..], name, &[5, 0]].concat();
    component.extend([&[10, import.len() as u8][..], &import].concat());
    folder.write("escapes.wasm", component);
    let shown = folder.ok(&["plugin", "inspect", "escapes.wasm"]);
    assert!(shown.contains("\\u{1b}[1Ax") && !shown.contains('\x1b'), "{shown}");
    let publisher = folder.ok(&["plugin", "inspect", "publish-log.wasm"]);
    assert!(publisher.contains("kind      publisher, contract 0.1.0"), "{publisher}");
    folder.write("text.wasm", "no component");
    let error = folder.fails(1, &["plugin", "push", "text.wasm", "--as", "worker@3"]);
    assert!(error.contains("text.wasm") && error.contains("not WebAssembly"), "{error}");
    let error = folder.fails(2, &["plugin", "push", "noop.wasm"]);
    assert!(error.contains("has no manifest") && error.contains("--as NAME@VERSION"), "{error}");
}

#[test]
fn dev_swaps_a_plugin_when_its_file_changes_and_keeps_the_old_one_when_the_new_one_is_broken() {
    let folder = Folder::new();
    folder.configure("[[subscription]]\nname = \"work\"\ntopic = \"work.>\"\nhandler = \"work.wasm\"");
    let copy = |from: &str| std::fs::copy(folder.path().join(from), folder.path().join("work.wasm")).unwrap();
    copy("noop.wasm");
    let running = folder.start(&["dev"]);
    folder.wait_for_log("laneway is running");
    assert_eq!(sent(&folder, "reject"), "processed");
    copy("fail.wasm");
    folder.wait_for_log("plugin swapped");
    assert_eq!(sent(&folder, "reject"), "failed");
    folder.write("work.wasm", "no component");
    folder.wait_for_log("the one before goes on");
    assert_eq!(sent(&folder, "ok"), "processed");
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}

#[test]
fn the_page_on_deploying_plugins_tells_the_truth() {
    let page = std::fs::read_to_string(laneway_tests::root().join("docs/deploying-plugins.md")).unwrap();
    let folder = Folder::new();
    let blocks = |language: &str| -> Vec<String> {
        let begin = format!("```{language}\n");
        page.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    };
    folder.configure(&blocks("toml").concat());
    for (from, to) in [("noop", "notify"), ("counter", "notify-next")] {
        std::fs::copy(laneway_tests::plugin(from), folder.path().join(format!("{to}.wasm"))).unwrap();
    }
    let _running = folder.start(&["run"]);
    folder.wait_for_log("laneway is running");
    let lines: Vec<String> = blocks("sh").iter().flat_map(|block| block.lines().map(str::to_owned)).collect();
    assert!(lines.len() > 8, "{lines:?}");
    for line in lines {
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("laneway"), "{line}");
        folder.ok(&words.collect::<Vec<_>>());
    }
}
