//! A plugin gets what its manifest asks for and the operator grants; a denial says which line grants it.

use std::sync::Arc;

use laneway_core::{Call, SubscriptionKind, TopicPattern};
use laneway_host::{Grants, Manifest, Plugin, PluginError, PluginSpec};

use crate::guest::{EFFECTS, Guest, OK, SLEEP};
use crate::support::{MemoryState, call, call_on, denied, host, run, spec};

const EMIT: &str = "(call $emit
    (i32.const 48) (i32.const 9) (i32.const 0) (i32.const 0) (i32.const 0)
    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
    (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5)
    (i32.const 0) (i64.const 0) (i32.const 512))";
const DATA: &str = r#"(data (i32.const 16) "key") (data (i32.const 48) "mail.send")"#;
const CLOCK: &str = "wasi:clocks/monotonic-clock@0.2.0";

fn effects(work: &str) -> Guest {
    Guest::handler(&format!("{work} {OK}")).fields(EFFECTS).fields(DATA)
}

/// A guest that calls one function of an interface, of this core type.
fn caller(interface: &'static str, function: &str, result: &str, call: &str) -> Guest {
    Guest::handler(&format!("{call} {OK}"))
        .fields(&format!("(import \"{interface}\" \"{function}\" (func $f {result}));;--"))
        .import(interface)
}

fn load(bytes: &[u8], grants: Grants) -> Result<Arc<Plugin>, PluginError> {
    host().plugin(bytes, PluginSpec { grants, ..spec(SubscriptionKind::Handler) })
}

fn plugin(guest: &Guest, grants: Grants) -> Arc<Plugin> {
    load(&guest.build(), grants).unwrap()
}

fn manifest(asks: &str) -> Manifest {
    Manifest::from_json(format!(r#"{{"name":"guest","version":"1.2.3","asks":{{{asks}}}}}"#).as_bytes()).unwrap()
}

fn asking(guest: &Guest, asks: &str) -> Vec<u8> {
    Manifest::embed(&guest.build(), &manifest(asks)).unwrap()
}

fn emitting(patterns: &[&str]) -> Grants {
    let emit = patterns.iter().map(|pattern| TopicPattern::parse(pattern).unwrap()).collect();
    Grants { emit, ..Grants::default() }
}

#[tokio::test]
async fn a_topic_that_is_not_granted_is_denied_with_the_line_to_write() {
    let guest = effects(EMIT);
    let text = denied(&run(&plugin(&guest, Grants::default()), call()).await);
    assert!(text.contains("subscription `test`: grants.emit = [\"mail.send\"]"), "{text}");
    let done = run(&plugin(&guest, emitting(&["orders.>"])), call()).await;
    assert!(denied(&done).contains("grants.emit = [\"orders.>\", \"mail.send\"]"));
    assert!(done.effects.emits.is_empty());
    let done = run(&plugin(&guest, emitting(&["orders.>", "mail.*"])), call()).await;
    done.result.unwrap();
    assert_eq!(done.effects.emits.len(), 1);
}

#[tokio::test]
async fn a_state_that_is_not_granted_is_denied_to_every_function() {
    for work in [
        "(call $get (i32.const 16) (i32.const 3) (i32.const 512))",
        "(call $put (i32.const 16) (i32.const 3) (i32.const 32) (i32.const 5))",
        "(call $delete (i32.const 16) (i32.const 3))",
        "(call $add (i32.const 16) (i32.const 3) (i64.const 1))",
        "(drop (call $count (i32.const 16) (i32.const 3)))",
    ] {
        let on: fn() -> Call = || call_on(MemoryState::with("key", b"old", 1));
        run(&plugin(&effects(work), Grants::default()), on()).await.result.unwrap();
        let done = run(&plugin(&effects(work), Grants { state: false, ..Grants::default() }), on()).await;
        assert!(denied(&done).contains("grants.state = true"), "{work}");
        assert!(done.effects.is_empty(), "{work}");
    }
}

#[tokio::test]
async fn clocks_and_random_numbers_are_linked_for_all_and_work_for_those_who_are_granted_them() {
    let drop_it = "(drop (call $f))";
    for (interface, function, result, work, key) in [
        (CLOCK, "now", "(result i64)", drop_it, "clocks"),
        ("wasi:clocks/wall-clock@0.2.0", "now", "(param i32)", "(call $f (i32.const 512))", "clocks"),
        ("wasi:random/random@0.2.0", "get-random-u64", "(result i64)", drop_it, "random"),
        ("wasi:random/insecure@0.2.0", "get-insecure-random-u64", "(result i64)", drop_it, "random"),
    ] {
        let guest = caller(interface, function, result, work);
        let text = denied(&run(&plugin(&guest, Grants::default()), call()).await);
        assert!(text.contains(&format!("grants.{key} = true")), "{interface}: {text}");
        let other = Grants { clocks: key != "clocks", random: key != "random", ..Grants::default() };
        denied(&run(&plugin(&guest, other), call()).await);
        let this = Grants { clocks: key == "clocks", random: key == "random", ..Grants::default() };
        run(&plugin(&guest, this), call()).await.result.unwrap();
        // A build that imports it and never calls it.
        run(&plugin(&caller(interface, function, result, ""), Grants::default()), call()).await.result.unwrap();
    }
    let seed =
        caller("wasi:random/insecure-seed@0.2.0", "insecure-seed", "(param i32)", "(call $f (i32.const 512))");
    run(&plugin(&seed, Grants::default()), call()).await.result.unwrap();
    let sleep = Guest::handler(&format!("(call $sleep (i64.const 1000)) {OK}")).fields(SLEEP);
    let sleep = sleep.import(CLOCK).import("wasi:io/poll@0.2.0");
    run(&plugin(&sleep, Grants::default()), call()).await.result.unwrap();
}

#[tokio::test]
async fn who_may_send_requests_may_measure_how_long_they_take() {
    let http = || vec!["https://x.example.com".parse().unwrap()];
    let guest = caller(CLOCK, "now", "(result i64)", "(drop (call $f))");
    run(&plugin(&guest, Grants { http: http(), ..Grants::default() }), call()).await.result.unwrap();
    let wall = caller("wasi:clocks/wall-clock@0.2.0", "now", "(param i32)", "(call $f (i32.const 512))");
    denied(&run(&plugin(&wall, Grants { http: http(), ..Grants::default() }), call()).await);
}

#[tokio::test]
async fn a_denial_before_the_first_message_is_found_at_deploy() {
    let guest = caller("wasi:random/random@0.2.0", "get-random-u64", "(result i64)", "");
    let guest = guest.fields("(func $start (drop (call $f))) (start $start)");
    let error = plugin(&guest, Grants::default()).validate().await.unwrap_err().to_string();
    assert!(error.contains("grants.random = true"), "{error}");
}

#[tokio::test]
async fn what_is_granted_but_not_asked_for_is_not_given() {
    let all = || Grants { clocks: true, random: true, ..emitting(&[">"]) };
    let get = effects("(call $get (i32.const 16) (i32.const 3) (i32.const 512))");
    let now = caller(CLOCK, "now", "(result i64)", "(drop (call $f))");
    for (guest, other, asked) in [
        (effects(EMIT), r#""emit":["orders.>"]"#, r#""emit":["mail.>"]"#),
        (get, r#""clocks":true"#, r#""state":true"#),
        (now, r#""state":true"#, r#""clocks":true"#),
    ] {
        let text = denied(&run(&load(&asking(&guest, other), all()).unwrap(), call()).await);
        assert!(text.contains("manifest does not ask"), "{text}");
        run(&load(&asking(&guest, asked), all()).unwrap(), call()).await.result.unwrap();
        // Asked for, and not granted.
        let none = Grants { state: false, ..Grants::default() };
        denied(&run(&load(&asking(&guest, asked), none).unwrap(), call()).await);
    }
    let http = r#"(import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)));;--"#;
    let guest = Guest::handler(OK).fields(http).import("wasi:http/types@0.2.0");
    let granted = || Grants { http: vec!["https://x.example.com".parse().unwrap()], ..Grants::default() };
    let error = load(&asking(&guest, ""), granted()).unwrap_err().to_string();
    assert!(error.contains("manifest"), "{error}");
    load(&asking(&guest, r#""http":["*"]"#), granted()).unwrap();
}

#[test]
fn a_plugin_is_not_loaded_without_what_it_cannot_do_without() {
    let asks = r#""http":["https://api.example.com",{"url":"https://x.example.com","methods":["POST"]}],
        "secrets":["TOKEN"],"config":["url","a key"]"#;
    let bytes = asking(&Guest::handler(OK), asks);
    let granted = Grants { http: vec!["https://y.example.com".parse().unwrap()], ..Grants::default() };
    let error = load(&bytes, granted).unwrap_err().to_string();
    for wants in [
        "guest@1.2.3",
        "HTTP to https://x.example.com (POST)",
        "grants.http = [\"https://y.example.com\", \"https://api.example.com\", \
         { url = \"https://x.example.com\", methods = [\"POST\"] }]",
        "grants.secrets = [\"TOKEN\"]",
        "config.url = \"...\"",
        "config.\"a key\" = \"...\"",
    ] {
        assert!(error.contains(wants), "{wants}: {error}");
    }
}
