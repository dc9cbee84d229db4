//! `laneway doctor`, and what nodes say of a database that is not as they knew it.

use laneway_testing::postgres::test_database;
use laneway_testing::skip;

use crate::databases::{postgres, sqlite};
use crate::run::{Folder, left};

const COUNTER: &str = "[[subscription]]\nname = \"count\"\ntopic = \"orders.>\"\nhandler = \"counter.wasm\"\n";

#[tokio::test]
async fn the_doctor_says_what_is_wrong_and_mends_it() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    folder.ok(&["apply"]);
    assert_eq!(folder.ok(&["doctor"]), "Nothing is wrong.\n");
    folder.ok(&["enqueue", "orders.created", "1"]);
    folder.ok(&["enqueue", "orders.created", "2"]);
    sqlite(
        &folder,
        "DROP TRIGGER laneway_message_deleted; DELETE FROM laneway_message WHERE seq = 1; \
         UPDATE sqlite_sequence SET seq = 0 WHERE name = 'laneway_message'",
    )
    .await;

    let output = folder.run(&["doctor"]);
    assert_eq!(output.status.code(), Some(6));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("stands at 0, and 2 is in use"), "{said}");
    assert!(said.contains("1 delivery(s) have no message any more"), "{said}");
    assert!(said.lines().all(|line| line.contains("laneway doctor --fix")), "{said}");
    let output = folder.run(&["--json", "doctor"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["findings"][0]["trouble"], "late_sequence", "{found}");

    let fixed = folder.ok(&["doctor", "--fix"]);
    assert_eq!(fixed, "Set 1 sequence(s).\nRemoved 1 delivery(s) without a message.\nNothing is wrong.\n");
    assert_eq!(left(&folder.json(&["status"])), Some(1));
}

#[tokio::test]
async fn a_node_says_that_numbers_went_back_and_what_helps() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    let running = folder.start(&["run"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    folder.ok(&["enqueue", "orders.created", "1"]);
    folder.wait_for("the message", &[], |status| left(status) == Some(0));
    sqlite(&folder, "UPDATE sqlite_sequence SET seq = 0 WHERE name = 'laneway_message'").await;
    folder.wait_for_log("laneway doctor --fix");
    folder.ok(&["doctor", "--fix"]);
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}

#[tokio::test]
async fn messages_that_no_trigger_saw_are_told_and_routed() {
    let test = "messages_that_no_trigger_saw_are_told_and_routed";
    let Some(database) = test_database().unwrap() else {
        return skip(test, "there is no PostgreSQL on this machine");
    };
    let folder = Folder::new();
    folder.configure(COUNTER);
    let storage = ["--storage", database.url.as_str()];
    folder.ok(&[&["migrate"], &storage[..]].concat());
    folder.ok(&[&["apply"], &storage[..]].concat());
    postgres(
        &database.url,
        "SET session_replication_role = replica; \
         INSERT INTO laneway.message (topic, payload) VALUES ('orders.created', '1')",
    )
    .await;
    let status = folder.ok(&[&["status"], &storage[..]].concat());
    assert!(status.contains("1 message(s) were never routed"), "{status}");
    folder.fails(6, &[&["doctor"], &storage[..]].concat());
    let fixed = folder.ok(&[&["doctor", "--fix"], &storage[..]].concat());
    assert_eq!(fixed, "Routed 1 message(s).\nNothing is wrong.\n");
    assert_eq!(left(&folder.json(&[&["status"], &storage[..]].concat())), Some(1));
}
