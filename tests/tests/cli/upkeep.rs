//! Behaviours 25, 41, 42, 44, 45: what operators do to dead letters, messages that wait, and what is over its retention.

use crate::run::{Folder, left};

const FAIL: &str = "[[subscription]]\nname = \"f\"\ntopic = \"f.>\"\nhandler = \"fail.wasm\"\n";
const COUNTER: &str = "[[subscription]]\nname = \"count\"\ntopic = \"orders.>\"\nhandler = \"counter.wasm\"\n";

/// A folder whose database has this many processed messages.
fn processed(count: usize) -> Folder {
    let folder = Folder::new();
    folder.configure(COUNTER);
    let running = folder.start(&["run"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    let output = folder.feed(&["enqueue", "orders.created", "--lines"], "1\n".repeat(count).as_bytes());
    assert!(output.status.success());
    folder.wait_for("the messages", &[], |status| left(status) == Some(0));
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    folder
}

#[test]
fn idempotency_markers_are_cleaned_up_with_these_words() {
    let folder = processed(1240);
    assert_eq!(folder.ok(&["idempotency", "cleanup"]), "No idempotency markers to clean up.\n", "a week is kept");
    let now = ["idempotency", "cleanup", "--retention-hours", "0"];
    assert_eq!(folder.ok(&[&now[..], &["--dry-run"]].concat()), "Would delete 1240 idempotency marker(s).\n");
    let cleaned = folder.json(&[&now[..], &["--dry-run"]].concat());
    assert_eq!((cleaned["deleted"].as_u64(), cleaned["dry_run"].as_bool()), (Some(1240), Some(true)), "{cleaned}");
    assert_eq!(folder.ok(&[&now[..], &["--batch-size", "100"]].concat()), "Deleted 1240 idempotency marker(s).\n");
    assert_eq!(folder.ok(&now), "No idempotency markers to clean up.\n");

    let messages = ["messages", "cleanup", "--retention-hours", "0"];
    assert_eq!(folder.ok(&[&messages[..], &["--dry-run"]].concat()), "Would delete 1240 message(s).\n");
    assert_eq!(folder.ok(&messages), "Deleted 1240 message(s).\n");
    assert_eq!(folder.ok(&messages), "No messages to clean up.\n");
    assert_eq!(folder.json(&["status"])["messages"], 0);
}

#[test]
fn what_the_configuration_keeps_for_ever_is_cleaned_up_only_by_a_window_of_its_own() {
    let folder = processed(3);
    folder.configure(&format!("[cleanup.markers]\nretention = \"0s\"\n{COUNTER}"));
    let kept = "The configuration keeps idempotency markers for ever; --retention-hours says otherwise.\n";
    assert_eq!(folder.ok(&["idempotency", "cleanup"]), kept);
    assert_eq!(folder.json(&["idempotency", "cleanup"])["deleted"], 0);
    let now = ["idempotency", "cleanup", "--retention-hours", "0"];
    assert_eq!(folder.ok(&now), "Deleted 3 idempotency marker(s).\n");
}

#[test]
fn messages_are_replayed_to_a_subscription() {
    let folder = processed(5);
    let replay = ["replay", "--subscription", "count", "--topic", "orders.>"];
    assert_eq!(folder.ok(&replay), "No messages to replay.\n", "markers are respected");
    folder.ok(&["idempotency", "cleanup", "--retention-hours", "0"]);
    assert_eq!(folder.ok(&replay), "No messages to replay.\n", "they were processed, whatever is left of markers");
    let said = folder.json(&replay);
    assert_eq!((said["messages"].as_u64(), said["processed"].as_u64()), (Some(0), Some(5)), "{said}");
    let forced = [&replay[..], &["--force"]].concat();
    assert_eq!(folder.ok(&[&forced[..], &["--dry-run"]].concat()), "Would replay 5 message(s).\n");
    assert_eq!(folder.ok(&[&forced[..], &["--priority", "-7"]].concat()), "Replayed 5 message(s).\n");
    let status = folder.json(&["status"]);
    assert_eq!(status["subscriptions"][0]["lanes"][1]["due"], 5, "by the backfill lane: {status}");
    let error = folder.fails(1, &["replay", "--subscription", "nobody"]);
    assert!(error.contains("no active subscription is named `nobody`"), "{error}");
    let running = folder.start(&["run"]);
    folder.wait_for("the messages", &[], |status| left(status) == Some(0));
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}

#[test]
fn a_window_or_batch_that_is_none_is_refused() {
    let folder = Folder::new();
    folder.configure(COUNTER);
    folder.ok(&["apply"]);
    for command in [["idempotency", "cleanup"], ["messages", "cleanup"]] {
        for (option, value) in [
            ("--retention-hours", "-1"),
            ("--batch-size", "0"),
            ("--batch-size", "-5"),
            ("--retention-hours", "soon"),
        ] {
            let error = folder.fails(2, &[&command[..], &[option, value]].concat());
            assert!(error.contains(option), "{error}");
        }
    }
}

#[test]
fn dead_letters_are_shown_replayed_and_purged() {
    let folder = Folder::new();
    folder.configure(FAIL);
    let running = folder.start(&["run"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    let dead = |count: u64| move |status: &serde_json::Value| status["subscriptions"][0]["dead_letters"] == count;
    for n in 0..3 {
        folder.ok(&["enqueue", &format!("f.x{n}"), "reject", "--content-type", "text/plain"]);
        // One after the other: the last is the first that is listed.
        folder.wait_for("the failure", &[], dead(n + 1));
    }
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());

    let letters = folder.json(&["dead-letters", "list", "--topic", "f.*"]);
    assert_eq!(letters.as_array().unwrap().len(), 3);
    let number = letters[0]["id"].as_i64().unwrap().to_string();
    assert_eq!(folder.json(&["dead-letters", "show", &number])["topic"], "f.x2");
    let shown = folder.ok(&["dead-letters", "show", &number]);
    assert!(shown.contains("subscription  f\n") && shown.contains("reason        guest:"), "{shown}");
    let error = folder.fails(1, &["dead-letters", "show", "99"]);
    assert!(error.contains("no dead letter has the number 99"), "{error}");

    for wrong in [&["dead-letters", "replay"][..], &["dead-letters", "purge", "--all", "--topic", "f.x0"]] {
        let error = folder.fails(2, wrong);
        assert!(error.contains("say which dead letters"), "{error}");
    }
    let error = folder.fails(2, &["dead-letters", "purge", "--since", "2026-01-31T00:00"]);
    assert!(error.contains("--since"), "a time without a zone: {error}");

    assert_eq!(folder.ok(&["dead-letters", "replay", "--all", "--dry-run"]), "Would replay 3 dead letter(s).\n");
    assert_eq!(folder.ok(&["dead-letters", "replay", &number]), "Replayed 1 dead letter(s).\n");
    assert_eq!(left(&folder.json(&["status"])), Some(1));
    let error = folder.fails(1, &["dead-letters", "replay", &number]);
    assert!(error.contains(&format!("dead letter {number} is not there")), "{error}");
    assert_eq!(folder.ok(&["dead-letters", "replay", "--reason", "none"]), "No dead letters to replay.\n");
    assert_eq!(folder.ok(&["dead-letters", "purge", "--topic", "f.x0"]), "Purged 1 dead letter(s).\n");
    let purged = folder.json(&["dead-letters", "purge", "--until", "2020-01-01T00:00Z"]);
    assert_eq!(purged["dead_letters"], 0);
    assert_eq!(folder.ok(&["dead-letters", "purge", "--all"]), "Purged 1 dead letter(s).\n");

    // What was replayed fails again.
    let running = folder.start(&["run"]);
    folder.wait_for("the failure", &[], dead(1));
    assert_eq!(folder.json(&["dead-letters", "list"])[0]["attempts"], 1);
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}

/// Runs with a terminal as standard error, and answers standard output and what the terminal was told.
#[cfg(target_os = "linux")]
fn on_a_terminal(folder: &Folder, arguments: &[&str]) -> (String, String) {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::ffi::OsStrExt;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap();
    let stderr = File::options().read(true).write(true).open(OsStr::from_bytes(path.as_bytes())).unwrap();
    let output = folder.command(arguments).stderr(stderr).output().unwrap();
    assert!(output.status.success());
    let mut told = Vec::new();
    // Ends with an error once nobody has the terminal open; by then all of it was read.
    let _ = File::from(terminal).read_to_end(&mut told);
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(told).unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() {
    let folder = Folder::new();
    folder.configure(FAIL);
    let running = folder.start(&["run"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    assert!(folder.feed(&["enqueue", "f.x", "--lines"], "1\n".repeat(250).as_bytes()).status.success());
    folder.wait_for("the failures", &[], |status| status["subscriptions"][0]["dead_letters"] == 250);
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());

    let (said, told) = on_a_terminal(&folder, &["dead-letters", "replay", "--all", "--batch-size", "100"]);
    assert_eq!(said, "Replayed 250 dead letter(s).\n");
    assert!(told.contains("\r100 replayed") && told.contains("\r250 replayed"), "{told:?}");
    assert!(told.ends_with(" \r"), "it is wiped out at the end: {told:?}");
    let output = folder.run(&["messages", "cleanup", "--retention-hours", "0"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_waiting_message_is_cancelled_or_moved_with_distinct_answers() {
    let folder = processed(1);
    let done = folder.json(&["messages", "list"])[0]["id"].as_str().unwrap().to_owned();
    for id in ["a", "b"] {
        folder.ok(&["enqueue", "orders.created", "{}", "--id", id, "--delay", "1h"]);
    }
    assert_eq!(folder.ok(&["messages", "cancel", "a"]), "Cancelled.\n");
    let error = folder.fails(1, &["messages", "cancel", "a"]);
    assert!(error.contains("no message has the id `a`"), "{error}");
    let error = folder.fails(1, &["messages", "cancel", &done]);
    assert!(error.contains("too late"), "{error}");
    let error = folder.fails(2, &["messages", "reschedule", "b", "--at", "2030-01-01T00:00:00"]);
    assert!(error.contains("--at"), "a time without a zone: {error}");
    assert_eq!(folder.ok(&["messages", "reschedule", "b", "--at", "2020-01-01T00:00Z"]), "Rescheduled.\n");
    let status = folder.json(&["status"]);
    assert_eq!(status["subscriptions"][0]["lanes"][0]["due"], 1, "{status}");
    assert_eq!(folder.json(&["messages", "cancel", "b"])["result"], "done");
}
