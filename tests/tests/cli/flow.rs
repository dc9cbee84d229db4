//! From `run` on an empty folder to messages processed, shown and failed.

use crate::run::{Folder, left};

const COUNTER: &str = r#"
    [[subscription]]
    name = "count"
    topic = "orders.>"
    handler = "counter.wasm"
"#;

#[test]
fn run_on_a_fresh_folder_makes_the_database_and_delivers() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    let running = folder.start(&["run"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    let id = folder.ok(&["enqueue", "orders.created", r#"{"number": 1}"#]);
    folder.wait_for("the message", &[], |status| left(status) == Some(0));
    let message = folder.json(&["messages", "show", id.trim()]);
    assert_eq!(message["status"], "processed");
    assert_eq!(message["payload"], r#"{"number": 1}"#);
    assert_eq!(folder.json(&["messages", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}

#[test]
fn failed_messages_are_shown_with_their_reason() {
    let folder = Folder::new();
    folder.configure("[[subscription]]\nname = \"f\"\ntopic = \"f.>\"\nhandler = \"fail.wasm\"");
    let _running = folder.start(&["run"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    folder.ok(&["enqueue", "f.x", "reject", "--content-type", "text/plain"]);
    folder.wait_for("the failure", &[], |status| left(status) == Some(0));
    let dead = folder.json(&["dead-letters", "list", "--subscription", "f"]);
    assert_eq!(dead.as_array().unwrap().len(), 1, "{dead}");
    assert!(dead[0]["reason"].as_str().unwrap().starts_with("guest:"), "{dead}");
    let failed = folder.json(&["messages", "list", "--status", "failed"]);
    assert_eq!(failed.as_array().unwrap().len(), 1);
    let table = folder.ok(&["dead-letters", "list"]);
    assert!(table.contains("NUMBER") && table.contains("f.x"), "{table}");
}

#[test]
fn lines_of_standard_input_become_messages() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    folder.ok(&["apply"]);
    let output = folder.feed(&["enqueue", "orders.created", "--lines"], b"{\"n\":1}\n\r\n{\"n\":2}\r\n{\"n\":3}");
    let ids = String::from_utf8(output.stdout).unwrap();
    assert_eq!(ids.lines().count(), 3);
    assert_eq!(left(&folder.json(&["status"])), Some(3));
    let last = folder.json(&["messages", "show", ids.lines().nth(1).unwrap()]);
    assert_eq!(last["payload"], r#"{"n":2}"#);
    for (input, messages) in [(&b""[..], 0), (b"1\n2\n", 2)] {
        let output = folder.feed(&["--json", "enqueue", "orders.created", "--lines"], input);
        let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(results.as_array().unwrap().len(), messages, "{results}");
    }
}

#[test]
fn a_line_that_fails_is_named_and_those_before_it_are_in() {
    let folder = Folder::new();
    folder.configure(&format!("[limits]\npayload_bytes_max = 100\n{COUNTER}"));
    folder.ok(&["apply"]);
    let good = "1\n".repeat(700);
    let large = format!("\"{}\"", "x".repeat(200));
    let mut total = 0;
    // Found here, and refused by the database.
    for (bad, wants) in [("{", "no JSON"), (large.as_str(), "100")] {
        let input = format!("{good}\n{bad}\n{good}");
        let output = folder.feed(&["--json", "enqueue", "orders.created", "--lines"], input.as_bytes());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("line 702 failed; 700 messages of the lines before are in"), "{stderr}");
        assert!(stderr.contains(wants), "{stderr}");
        let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(results.as_array().unwrap().len(), 700);
        total += 700;
        assert_eq!(left(&folder.json(&["status"])), Some(total));
    }
}

#[test]
fn a_signal_ends_the_program_before_it_is_ready() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    // A server that takes the connection and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://someone@{}/nothing", silent.local_addr().unwrap());
    let running = folder.start(&["run", "--storage", &url]);
    folder.wait_for_log("plugin loaded");
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    assert!(folder.log().contains("before anything was claimed"), "{}", folder.log());
}

#[test]
fn a_second_signal_stops_at_once_and_says_that_messages_were_left() {
    let folder = Folder::new();
    folder.configure(
        "[node]\ngrace = \"10m\"\n[[subscription]]\nname = \"h\"\ntopic = \"h.>\"\nhandler = \"hostile.wasm\"\n\
         timeout = \"10m\"",
    );
    std::fs::copy(laneway_tests::plugin("hostile"), folder.path().join("hostile.wasm")).unwrap();
    let running = folder.start(&["run"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    folder.ok(&["enqueue", "h.x", "loop", "--content-type", "text/plain"]);
    folder.wait_for("the attempt", &[], |status| status["subscriptions"][0]["lanes"][0]["leased"] == 1);
    running.signal();
    folder.wait_for_log("draining");
    assert_eq!(running.terminate(), Some(5), "{}", folder.log());
    assert!(folder.log().contains("a second signal"), "{}", folder.log());
}

#[test]
fn a_default_cache_that_cannot_be_made_is_done_without() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    folder.write("cache", "a file where the folder of caches would be");
    let running = folder.start(&["run"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    assert!(folder.log().contains("no cache of compiled plugins"), "{}", folder.log());
    folder.configure(&format!("[sandbox]\ncache_dir = \"cache/mine\"\n{COUNTER}"));
    let error = folder.fails(1, &["run"]);
    assert!(error.contains("cache/mine"), "{error}");
}

#[test]
fn a_second_message_of_one_id_is_reported_as_a_duplicate() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    folder.ok(&["apply"]);
    let arguments = ["enqueue", "orders.created", "{}", "--id", "order-42"];
    assert_eq!(folder.ok(&arguments), "order-42\n");
    assert_eq!(folder.ok(&arguments), "order-42 (duplicate)\n");
    assert_eq!(left(&folder.json(&["status"])), Some(1));
}

#[test]
fn a_changed_configuration_is_applied_only_when_asked() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    assert_eq!(folder.ok(&["apply"]), "Applied topology revision 1 with 1 subscription(s).\n");
    assert_eq!(folder.ok(&["apply"]), "Topology revision 1 is active already.\n");
    folder.configure(&COUNTER.replace("orders.>", "orders.created"));
    let error = folder.fails(1, &["run"]);
    assert!(error.contains("differs from topology revision 1") && error.contains("laneway apply"), "{error}");
    assert!(folder.ok(&["apply"]).contains("revision 2"));
}

#[test]
fn logs_can_be_json_and_never_mix_with_data() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    let running = folder.start(&["run", "--log-format", "json"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    assert_eq!(running.terminate(), Some(0));
    for line in folder.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string(), "{line}");
    }
}

#[test]
fn the_reference_configuration_is_printed() {
    let folder = Folder::new();
    assert!(folder.ok(&["config"]).contains("[[subscription]]"));
}

#[test]
fn a_destination_that_never_answers_does_not_hold_up_another_subscription() {
    // It takes connections, and nobody reads from them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let folder = Folder::new();
    folder.configure(&format!(
        r#"
        [sandbox]
        instances_max = 8
        [[subscription]]
        name = "hung"
        topic = "hung.>"
        publisher = "publish-http.wasm"
        concurrency = 8
        timeout = "2m"
        config = {{ url = "http://{address}/" }}
        grants = {{ http = ["http://{address}"] }}
        {COUNTER}
        "#
    ));
    std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("publish-http.wasm")).unwrap();
    folder.ok(&["apply"]);
    let many: String = (0..40).map(|number| format!("{{\"n\":{number}}}\n")).collect();
    folder.feed(&["enqueue", "hung.x", "--lines"], many.as_bytes());
    let _running = folder.start(&["run"]);
    folder.wait_for_log("adds up to 16, and sandbox.instances_max is 8");
    silent.set_nonblocking(true).unwrap();
    let mut taken = Vec::new();
    let began = std::time::Instant::now();
    // Its own part, and half of what is in common.
    while taken.len() < 4 {
        taken.extend(silent.accept());
        assert!(began.elapsed().as_secs() < 60, "{} requests came: {}", taken.len(), folder.log());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let sent = std::time::Instant::now();
    folder.ok(&["enqueue", "orders.created", r#"{"number": 1}"#, "--id=other"]);
    let settled = || folder.json(&["messages", "show", "other"])["status"] == "processed";
    while !settled() {
        assert!(sent.elapsed().as_secs() < 10, "{}", folder.log());
    }
}
