//! What is wrong is said, with its name, its cause and the next step; and nothing is changed.

use crate::run::Folder;

#[test]
fn a_missing_configuration_is_named() {
    let error = Folder::new().fails(1, &["run"]);
    assert!(error.contains("laneway.toml"), "{error}");
    let error = Folder::new().fails(1, &["status"]);
    assert!(error.contains("--storage") && error.contains("--config"), "{error}");
}

#[test]
fn a_malformed_configuration_names_the_line() {
    let folder = Folder::new();
    folder.configure("[[subscription]\nname = 1");
    let error = folder.fails(1, &["run"]);
    assert!(error.contains("laneway.toml") && error.contains("line 1"), "{error}");
}

#[test]
fn an_unknown_key_comes_with_a_suggestion() {
    let folder = Folder::new();
    folder.configure("[[subscription]]\nname = \"s\"\ntopic = \"a\"\nhandler = \"noop.wasm\"\nlese = \"1s\"");
    let error = folder.fails(1, &["run"]);
    assert!(error.contains("unknown field `lese`") && error.contains("did you mean `lease`?"), "{error}");
}

#[test]
fn a_bad_topic_or_pattern_says_which_and_why() {
    let folder = Folder::new();
    folder.configure("[[subscription]]\nname = \"s\"\ntopic = \"orders..x\"\nhandler = \"noop.wasm\"");
    let error = folder.fails(1, &["apply"]);
    assert!(error.contains("`s`") && error.contains("`orders..x` has an empty segment"), "{error}");
    let error = folder.fails(2, &["enqueue", "a b", "{}"]);
    assert!(error.contains("`a b` contains ' '"), "{error}");
}

#[test]
fn a_payload_that_is_no_json_or_too_large_is_refused() {
    let folder = Folder::new();
    folder.configure(
        "[limits]\npayload_bytes_max = 100\n[[subscription]]\nname = \"s\"\ntopic = \"a\"\nhandler = \"noop.wasm\"",
    );
    folder.ok(&["apply"]);
    let error = folder.fails(1, &["enqueue", "a", "not json"]);
    assert!(error.contains("no JSON") && error.contains("--content-type"), "{error}");
    let large = format!("\"{}\"", "x".repeat(200));
    let error = folder.fails(1, &["enqueue", "a", &large]);
    assert!(error.contains("100"), "{error}");
}

#[test]
fn a_component_that_cannot_run_is_refused_with_the_reason() {
    let folder = Folder::new();
    for (component, kind, wants) in [
        ("missing.wasm", "handler", "failed to read"),
        ("text.wasm", "handler", "text.wasm cannot run"),
        ("noop.wasm", "publisher", "publisher"),
        ("publish-log.wasm", "handler", "handler"),
    ] {
        folder.write("text.wasm", "this is no component");
        folder.configure(&format!("[[subscription]]\nname = \"s\"\ntopic = \"a\"\n{kind} = \"{component}\""));
        let error = folder.fails(1, &["run"]);
        assert!(error.contains(wants) && error.contains("`s`"), "{component}: {error}");
        assert!(!folder.path().join("laneway.db").exists(), "a database was made for nothing");
    }
}

#[test]
fn a_publisher_without_a_url_that_it_can_use_is_refused() {
    let folder = Folder::new();
    std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("publish-http.wasm")).unwrap();
    let granted = "[[subscription]]\nname = \"p\"\ntopic = \"a\"\npublisher = \"publish-http.wasm\"\n\
         grants = { http = [\"https://example.com\"] }\n";
    folder.configure(granted);
    let error = folder.fails(1, &["run"]);
    assert!(error.contains("asks for the configuration `url`") && error.contains("config.url = "), "{error}");
    // What it makes of the value is its own matter.
    folder.configure(&format!("{granted}config = {{ url = \"ftp://example.com\" }}"));
    let error = folder.fails(1, &["run"]);
    assert!(error.contains("does not accept its configuration") && error.contains("url"), "{error}");
}

#[test]
fn what_a_plugin_asks_for_and_was_not_granted_is_said_with_the_grant_to_add() {
    let folder = Folder::new();
    std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("publish-http.wasm")).unwrap();
    folder.configure(
        "[[subscription]]\nname = \"p\"\ntopic = \"a\"\npublisher = \"publish-http.wasm\"\n\
         config = { url = \"https://example.com\" }",
    );
    let error = folder.fails(1, &["run"]);
    assert!(error.contains("asks for HTTP") && error.contains("grants.http = ["), "{error}");
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = Folder::new();
    folder.fails(2, &["no-such-command"]);
    folder.fails(2, &["messages", "list", "--status", "unknown"]);
    folder.fails(2, &["messages", "list", "--limit", "0"]);
    folder.fails(2, &["enqueue", "a", "{}", "--priority", "very"]);
    folder.fails(2, &["enqueue", "a", "{}", "--id", "a b"]);
    folder.fails(2, &["enqueue", "a", "{}", "--lines"]);
    folder.fails(2, &["messages", "show", "a b"]);
    folder.fails(2, &["messages", "list", "--topic", "a..b"]);
    folder.fails(2, &["dead-letters", "list", "--topic", "a..b"]);
    folder.fails(2, &["dead-letters", "list", "--subscription", "a b"]);
    folder.fails(2, &["run", "--node", "a b"]);
    folder.fails(2, &["bench"]);
    folder.fails(2, &["bench", "--storage", "sqlite://bench.db", "--seconds", "5000000"]);
    let error = folder.fails(2, &["status", "--storage", "mysql://me:very-secret@host/db"]);
    assert!(error.contains("--storage") && error.contains("unknown scheme"), "{error}");
    assert!(!error.contains("very-secret"), "{error}");
}

#[test]
fn a_message_that_is_not_there_is_said_so() {
    let folder = Folder::new();
    folder.configure("[[subscription]]\nname = \"s\"\ntopic = \"a\"\nhandler = \"noop.wasm\"");
    let error = folder.fails(1, &["messages", "show", "nobody"]);
    assert!(error.contains("no message has the id `nobody`"), "{error}");
}
