//! From `run` on an empty folder to messages processed, shown and failed.

use std::io::Write;
use std::process::Stdio;

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
    let mut command = folder.command(&["enqueue", "orders.created", "--lines"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"{\"n\":1}\n\n{\"n\":2}\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    assert_eq!(left(&folder.json(&["status"])), Some(2));
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
