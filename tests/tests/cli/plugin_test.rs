//! `laneway plugin test`: what a plugin does is seen before it does it.

use serde_json::{Value, json};

use crate::run::Folder;

/// A folder with a message and this component.
fn folder(component: &str, message: &Value) -> Folder {
    let folder = Folder::new();
    let name = format!("{component}.wasm");
    std::fs::copy(laneway_tests::plugin(component), folder.path().join(name)).unwrap();
    folder.write("m.json", message.to_string());
    folder
}

/// Runs the component, and answers whether all succeeded and what was printed.
fn try_out(component: &str, message: &Value, more: &[&str]) -> (bool, Value) {
    let folder = folder(component, message);
    let file = format!("{component}.wasm");
    let output = folder.run(&[&["--json", "plugin", "test", &file, "--message", "m.json"], more].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}"));
    assert_eq!(output.status.code(), Some(i32::from(report["success"] == json!(false))), "{error}");
    // It can be followed nowhere, and leaves nothing.
    assert!(!folder.path().join("laneway.db").exists());
    (report["success"].as_bool().unwrap(), report)
}

fn outcome(report: &Value) -> (&str, &str) {
    let message = &report["calls"][0]["messages"][0];
    (message["outcome"].as_str().unwrap(), message["reason"].as_str().unwrap_or_default())
}

#[test]
fn what_a_handler_would_commit_is_shown() {
    let (success, report) = try_out("counter", &json!({"topic": "a.b"}), &[]);
    assert!(success, "{report}");
    assert_eq!(report["kind"], "handler");
    let call = &report["calls"][0];
    assert_eq!(call["messages"][0]["id"], "test-1");
    assert_eq!(call["effects"]["adds"], json!({"messages": 1}));
    assert_eq!(report["state"], json!({"state": {}, "counters": {"messages": 1}}));
    assert!(call["memory_peak_bytes"].as_u64().unwrap() >= 65_536, "{call}");
    assert!(call["sandbox_ms"].as_f64().unwrap() > 0.0, "{call}");

    let message = json!({"topic": "a.b", "key": "k", "headers": {"h": "v"}, "payload": {"x": 1}});
    let (_, report) = try_out("emit", &message, &[]);
    let emitted = &report["calls"][0]["effects"]["emits"][0];
    assert_eq!(emitted["topic"], "copied.a.b");
    assert_eq!((&emitted["key"], &emitted["headers"]), (&json!("k"), &json!({"h": "v"})));
    assert_eq!(emitted["payload"], "{\"x\":1}");

    let (_, report) = try_out("annotate", &json!({"topic": "a", "payload": {"note": "n"}}), &[]);
    assert_eq!(report["calls"][0]["effects"]["annotation"], json!({"note": "n"}));
}

#[test]
fn a_failure_commits_nothing_and_exits_with_1() {
    for (wish, wants) in [
        ("retry", ("retry", "guest:retry")),
        ("reject", ("reject", "guest:reject")),
        ("unknown", ("unknown_outcome", "guest:unknown")),
        ("misconfigured", ("misconfigured", "guest:misconfigured")),
        ("throttled:250", ("throttled", "")),
    ] {
        let (success, report) = try_out("fail", &json!({"topic": "a", "payload_text": wish}), &[]);
        assert!(!success);
        assert_eq!(outcome(&report), wants);
        assert_eq!(report["calls"][0]["effects"]["writes"], json!({}));
        assert_eq!(report["state"], json!({"state": {}, "counters": {}}), "{wish}");
        if wish == "throttled:250" {
            assert_eq!(report["calls"][0]["messages"][0]["after_ms"], 250);
        }
    }
    let message = json!({"topic": "a", "payload_text": "retry:2"});
    assert!(!try_out("fail", &message, &["--attempt", "2"]).0);
    assert!(try_out("fail", &message, &["--attempt", "3"]).0);
}

#[test]
fn messages_of_a_file_run_one_after_the_other_on_the_same_state() {
    let folder = folder("state-chain", &json!([{"topic": "a"}, {"topic": "a"}, {"topic": "a"}]));
    folder.write("s.json", r#"{"state": {"n": 40}}"#);
    let arguments = ["plugin", "test", "state-chain.wasm", "--message", "m.json", "--state", "s.json"];
    let report = folder.json(&arguments);
    assert_eq!(report["calls"].as_array().unwrap().len(), 3);
    assert_eq!(report["state"]["state"], json!({"n": "43"}));
    // What was printed can be given again, and a message comes from standard input too.
    folder.write("s.json", report["state"].to_string());
    let arguments = ["plugin", "test", "state-chain.wasm", "--message", "-", "--state", "s.json"];
    let output = folder.feed(&arguments, br#"{"topic": "a"}"#);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("put       n = 44"), "{text}");
}

#[test]
fn a_message_whose_state_has_changed_runs_again_and_commits_once() {
    let message = json!([{"topic": "a"}, {"topic": "a"}]);
    let (success, report) = try_out("state-chain", &message, &["--fault", "state-conflict"]);
    assert!(success, "{report}");
    assert_eq!(report["calls"][1]["runs"], 2);
    assert_eq!(report["state"]["state"], json!({"n": "2"}));
    // What was not read cannot have changed.
    let (_, report) = try_out("counter", &message, &["--fault", "state-conflict"]);
    assert_eq!(report["calls"][0]["runs"], 1);
    let (_, report) = try_out("state-chain", &message, &["--fault", "state-error"]);
    assert_eq!(outcome(&report).0, "throttled");
}

#[test]
fn what_a_hostile_plugin_does_ends_as_it_would_on_a_node() {
    for (harm, reason) in [("alloc", "memory_limit"), ("panic boo", "guest_panic"), ("recurse", "stack_overflow")] {
        let (_, report) = try_out("hostile", &json!({"topic": "a", "payload_text": harm}), &[]);
        assert_eq!(outcome(&report), ("retry", reason), "{report}");
    }
    let (_, report) = try_out("hostile", &json!({"topic": "a", "payload_text": "flood-log"}), &[]);
    assert_eq!(outcome(&report).1, "log_limit");
    let log = report["calls"][0]["log"].as_array().unwrap();
    assert_eq!((log.len(), &log[0]["level"]), (101, &json!("info")));
}

#[test]
fn requests_of_a_publisher_go_nowhere_and_are_shown() {
    let messages = json!([{"topic": "a", "id": "m-1", "payload": {"x": 1}}, {"topic": "a", "id": "m-2"}]);
    let url = ["--set", "url=https://api.example.com/orders"];
    let (success, report) = try_out("publish-http", &messages, &url);
    assert!(success, "{report}");
    assert_eq!(report["kind"], "publisher");
    let call = &report["calls"][0];
    assert_eq!(call["messages"].as_array().unwrap().len(), 2);
    let http = call["http"].as_array().unwrap();
    assert_eq!(http.len(), 2, "{call}");
    assert_eq!((&http[0]["method"], &http[0]["url"]), (&json!("POST"), &json!("https://api.example.com/orders")));
    assert_eq!((&http[0]["body"], &http[0]["answer"]), (&json!("{\"x\":1}"), &json!(200)));
    assert!(http[0]["headers"].as_array().unwrap().contains(&json!(["laneway-message-id", "m-1"])), "{call}");

    for (more, wants) in [
        (&["--fault", "http-500"][..], "retry"),
        (&["--fault", "http-429"], "throttled"),
        (&["--fault", "http-timeout"], "unknown_outcome"),
        (&["--fault", "http-refused"], "throttled"),
        (&["--http-answer", "400:no"], "reject"),
    ] {
        let (success, report) = try_out("publish-http", &messages, &[&url[..], more].concat());
        assert!(!success);
        assert_eq!(outcome(&report).0, wants, "{more:?}: {report}");
    }
}

#[test]
fn a_subscription_of_the_configuration_can_be_tried() {
    let folder = folder("publish-http", &json!({"topic": "a"}));
    folder.write(
        "laneway.toml",
        "[[subscription]]\nname = \"p\"\ntopic = \"a\"\npublisher = \"publish-http.wasm\"\n\
         config = { url = \"https://configured.example.com/\" }\n\
         grants = { http = [\"https://configured.example.com\"] }",
    );
    let arguments = ["plugin", "test", "publish-http.wasm", "--message", "m.json", "--subscription", "p"];
    let report = folder.json(&arguments);
    assert_eq!(report["calls"][0]["http"][0]["url"], "https://configured.example.com/");
    let error = folder.fails(1, &[&arguments[..6], &["q"]].concat());
    assert!(error.contains("no subscription `q` in laneway.toml"), "{error}");
}

#[test]
fn what_cannot_be_tried_says_why() {
    let folder = folder("publish-http", &json!({"topic": "a"}));
    let fails = |code, more: &[&str]| folder.fails(code, &[&["plugin", "test"], more].concat());
    let error = fails(1, &["publish-http.wasm", "--message", "m.json"]);
    assert!(error.contains("refuses its configuration") && error.contains("--set"), "{error}");
    let error = fails(1, &["m.json", "--message", "m.json"]);
    assert!(error.contains("m.json cannot run") && error.contains("not WebAssembly"), "{error}");
    let error = fails(1, &["publish-http.wasm", "--message", "missing.json"]);
    assert!(error.contains("missing.json"), "{error}");
    folder.write("m.json", "{\"topic\": \"a\", \"body\": 1}");
    let error = fails(1, &["publish-http.wasm", "--message", "m.json"]);
    assert!(error.contains("m.json") && error.contains("unknown field `body`"), "{error}");
    let faults = ["--fault", "http-500", "--fault", "http-timeout"];
    fails(2, &[&["publish-http.wasm", "--message", "m.json"], &faults[..]].concat());
    fails(2, &["publish-http.wasm", "--message", "m.json", "--fault", "http-418"]);
    fails(2, &["publish-http.wasm", "--message", "m.json", "--http-answer", "yes"]);
    fails(2, &["publish-http.wasm", "--message", "m.json", "--attempt", "0"]);
}

#[test]
fn the_page_on_testing_plugins_tells_the_truth() {
    let page = std::fs::read_to_string(laneway_tests::root().join("docs/testing-plugins.md")).unwrap();
    let message = page.split("\n`{").nth(1).and_then(|rest| rest.split('`').next()).unwrap();
    let folder = Folder::new();
    folder.write("message.json", format!("{{{message}"));
    std::fs::copy(laneway_tests::plugin("counter"), folder.path().join("my-plugin.wasm")).unwrap();
    let lines: Vec<&str> = page.split("```sh\n").nth(1).unwrap().split("```").next().unwrap().lines().collect();
    assert_eq!(lines.len(), 2);
    for line in lines {
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("laneway"), "{line}");
        folder.ok(&words.collect::<Vec<_>>());
    }
    let help = folder.ok(&["plugin", "test", "--help"]);
    let faults = page.split("may be repeated:\n").nth(1).unwrap().split(". ").next().unwrap();
    for fault in faults.split(", ").map(|it| it.trim_matches('`')) {
        assert!(help.contains(fault), "{fault}");
    }
}
