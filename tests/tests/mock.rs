//! The SDK's mock of the host is like the host: one handler does the same on both.

#[path = "../guests/examples/steps.rs"]
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use laneway_core::{
    Attempt, Call, Failure, Interrupt, Invocation, Invoker, Lane, MessageId, Name, Priority, StateEntry,
    StateError, StateVersion, StateView, SubscriptionKind, Topic, TopicPattern,
};
use laneway_host::{Grants, Host, HostOptions, Limits, Plugin, PluginSpec};
use laneway_sdk::Message;
use laneway_sdk::mock::{Handled, MockHost};
use laneway_tests::plugin;
use serde_json::{Value, json};

const PAYLOAD_BYTES_MAX: u64 = 100;
/// In the state, before each attempt.
const KEY: (&str, &[u8]) = ("there", b"old");
/// A counter, before each attempt.
const COUNTER: (&str, i64) = ("sum", 42);
const CONFIG: (&str, &str) = ("url", "https://example.com");

struct Before;

#[async_trait]
impl StateView for Before {
    async fn get(&self, key: &str) -> Result<Option<StateEntry>, StateError> {
        let entry = StateEntry { value: Bytes::from_static(KEY.1), version: StateVersion(1) };
        Ok((key == KEY.0).then_some(entry))
    }

    async fn counter(&self, counter: &str) -> Result<i64, StateError> {
        Ok(if counter == COUNTER.0 { COUNTER.1 } else { 0 })
    }
}

fn handler() -> Arc<Plugin> {
    let host = Host::new(HostOptions { instances_max: 4, ..HostOptions::default() }).unwrap();
    let spec = PluginSpec {
        name: Name::parse("steps").unwrap(),
        kind: SubscriptionKind::Handler,
        config: BTreeMap::from([(CONFIG.0.to_owned(), CONFIG.1.to_owned())]),
        grants: Grants { emit: vec![TopicPattern::parse(">").unwrap()], ..Grants::default() },
        limits: Limits::default(),
        reuse: false,
        payload_bytes_max: PAYLOAD_BYTES_MAX,
    };
    host.plugin(&std::fs::read(plugin("steps")).unwrap(), spec).unwrap()
}

/// What the host makes of the steps.
async fn on_the_host(handler: &Plugin, payload: &str) -> Value {
    let message = laneway_core::Message {
        id: MessageId::parse("m-1").unwrap(),
        topic: Topic::parse("orders.created").unwrap(),
        key: None,
        priority: Priority::HIGH,
        payload: payload.to_owned().into(),
        content_type: "application/json".to_owned(),
        headers: vec![],
        tenant: Some("acme".to_owned()),
    };
    let attempt = Attempt {
        number: 1,
        max: 10,
        lane: Lane::Primary,
        timeout: Duration::from_secs(30),
        maybe_duplicate: false,
    };
    let call =
        Call { message: Arc::new(message), attempt, state: Arc::new(Before), interrupt: Interrupt::default() };
    let Invocation { result, effects, .. } = handler.invoke(&[call]).await.remove(0);
    let result = match result {
        Ok(()) => json!("ok"),
        Err(Failure::Retry { reason, error }) => json!(["retry", reason.as_str(), error.as_str()]),
        Err(Failure::Reject { reason, error }) => {
            let code = reason.as_str().strip_prefix("guest:").expect("only the guest rejects");
            json!(["reject", code, error.as_str()])
        }
        Err(other) => panic!("{payload}: {other:?}"),
    };
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let writes: BTreeMap<_, _> =
        effects.writes.iter().map(|(key, value)| (key.to_string(), value.as_ref().map(text))).collect();
    let adds: BTreeMap<_, _> = effects.adds.iter().map(|(key, delta)| (key.to_string(), *delta)).collect();
    let emits = effects.emits.iter().map(|sent| {
        let headers: Vec<_> = sent.headers.iter().map(|header| [&header.name, &header.value]).collect();
        json!({
            "topic": sent.topic, "key": sent.key, "priority": sent.priority.0, "body": text(&sent.payload),
            "content_type": sent.content_type, "headers": headers, "tenant": sent.tenant,
            "delay_ms": sent.delay.map(|delay| delay.as_millis() as u64),
        })
    });
    let emits: Vec<Value> = emits.collect();
    let note: Option<Value> = effects.metadata.map(|note| serde_json::from_str(note.as_str()).unwrap());
    json!({"result": result, "writes": writes, "adds": adds, "emits": emits, "note": note})
}

/// What the mock makes of them.
fn on_the_mock(payload: &str) -> Value {
    let mut host = MockHost::new()
        .with_config(CONFIG.0, CONFIG.1)
        .with_state(KEY.0, KEY.1)
        .with_counter(COUNTER.0, COUNTER.1)
        .with_payload_bytes_max(PAYLOAD_BYTES_MAX);
    let message = Message::for_test("orders.created").priority(50).tenant("acme").body(payload);
    let Handled { result, emitted, writes, added, annotation, .. } = host.handle(steps::handle, message);
    let result = match result {
        Ok(()) => json!("ok"),
        Err(laneway_sdk::Failure::Retry(detail)) => json!(["retry", detail.code, detail.message]),
        Err(laneway_sdk::Failure::Reject(detail)) => json!(["reject", detail.code, detail.message]),
        Err(other) => panic!("{payload}: {other:?}"),
    };
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let writes: BTreeMap<_, _> = writes.iter().map(|(key, value)| (key, value.as_ref().map(text))).collect();
    let emits = emitted.iter().map(|sent| {
        let headers: Vec<_> = sent.headers.iter().map(|header| [&header.name, &header.value]).collect();
        json!({
            "topic": sent.topic, "key": sent.key, "priority": sent.priority, "body": text(&sent.body),
            "content_type": sent.content_type, "headers": headers, "tenant": sent.tenant,
            "delay_ms": sent.delay.map(|delay| delay.as_millis() as u64),
        })
    });
    let emits: Vec<Value> = emits.collect();
    json!({"result": result, "writes": writes, "adds": added, "emits": emits, "note": annotation})
}

#[tokio::test]
async fn a_handler_does_the_same_on_the_mock_as_on_the_host() {
    let long = "k".repeat(1025);
    let full = json!({
        "topic": "a.full", "body": "x", "key": "k", "priority": -3, "content_type": "text/plain", "delay_ms": 250,
        "headers": [["n", "1"], ["m", "2"], ["n", "3"]],
    });
    // The steps, and how they must end: two that agree on nonsense would prove nothing.
    let cases = [
        (json!([]), "ok"),
        (json!("no list"), "bad_payload"),
        (json!([{"put": ["a", "1"]}, {"put": ["a", "2"]}, {"get": ["a", "read"]}]), "ok"),
        (json!([{"get": ["there", "read"]}, {"delete": "there"}, {"get": ["there", "again"]}]), "ok"),
        (json!([{"get": ["missing", "read"]}, {"config": ["url", "a"]}, {"config": ["none", "b"]}]), "ok"),
        (json!([{"add": ["sum", 1]}, {"add": ["sum", i64::MAX]}, {"count": ["sum", "n"]}]), "ok"),
        (json!([{"count": ["missing", "n"]}, {"annotate": "one"}, {"annotate": "two"}]), "ok"),
        (json!([{"emit": {"topic": "a.plain"}}, {"emit": full}]), "ok"),
        (json!([{"put": ["a", "1"]}, {"emit": {"topic": "a"}}, {"annotate": "x"}, {"reject": "no"}]), "asked"),
        (json!([{"emit": {"topic": ""}}]), "emit_refused"),
        (json!([{"emit": {"topic": "a..b"}}]), "emit_refused"),
        (json!([{"emit": {"topic": "a.ä"}}]), "emit_refused"),
        (json!([{"emit": {"topic": "a".repeat(256)}}]), "emit_refused"),
        (json!([{"emit": {"topic": "a.b", "body": "x".repeat(101)}}]), "emit_refused"),
        (json!([{"emit": {"topic": "a.b", "body": "x".repeat(100)}}]), "ok"),
        (json!([{"emit": {"topic": "a", "key": "\0"}}]), "effect_limit"),
        (json!([{"emit": {"topic": "a", "content_type": "\0"}}]), "effect_limit"),
        (json!([{"emit": {"topic": "a", "headers": [["n", "\0"]]}}]), "effect_limit"),
        (json!([{"emit": {"topic": "a", "key": long}}]), "effect_limit"),
        (json!([{"emit": {"topic": "a", "key": &long[1..]}}]), "ok"),
        (json!([{"emit": {"topic": "a", "content_type": "x".repeat(256)}}]), "effect_limit"),
        (json!([{"emit": {"topic": "a", "content_type": "x".repeat(255)}}]), "ok"),
        // As JSON, a line break is two bytes.
        (json!([{"emit": {"topic": "a", "headers": [["n", "\n".repeat(32_763)]]}}]), "ok"),
        (json!([{"emit": {"topic": "a", "headers": [["n", "\n".repeat(32_764)]]}}]), "effect_limit"),
        (json!([{"emit": {"topic": "a", "delay_ms": u64::MAX}}]), "ok"),
        (json!([{"annotate": "a\0"}]), "metadata_refused"),
        (json!([{"annotate": "x".repeat(4095)}]), "metadata_refused"),
        (json!([{"annotate": "x".repeat(9000)}]), "metadata_refused"),
        (json!([{"annotate": "x".repeat(4094)}]), "ok"),
        (json!([{"put": [long, ""]}]), "effect_limit"),
        (json!([{"get": [long, "a"]}]), "effect_limit"),
        (json!([{"add": [long, 1]}]), "effect_limit"),
        (json!([{"count": ["a\0", "a"]}]), "effect_limit"),
        (json!([{"delete": "a\0"}]), "effect_limit"),
        (json!([{"put_many": [1000, 1]}]), "ok"),
        (json!([{"put_many": [1001, 1]}]), "effect_limit"),
        (json!([{"put_many": [1000, 1]}, {"get": ["there", "many/0"]}]), "effect_limit"),
        (json!([{"put_many": [8, (1 << 20) - 6]}]), "ok"),
        (json!([{"put_many": [8, (1 << 20) - 5]}]), "effect_limit"),
        (json!([{"put_many": [8, 1 << 19]}, {"put_many": [8, 1 << 19]}]), "ok"),
        (json!([{"log_many": [1000, 4000]}]), "ok"),
        (json!([{"log_many": [1200, 4000]}]), "log_limit"),
        (json!([{"log_many": [100, 10]}, {"log_many": [41_943, 10]}]), "ok"),
        (json!([{"log_many": [100, 10]}, {"log_many": [41_944, 10]}]), "log_limit"),
    ];
    let handler = handler();
    for (steps, wanted) in cases {
        let payload = steps.to_string();
        let (host, mock) = (on_the_host(&handler, &payload).await, on_the_mock(&payload));
        let name = &payload[..payload.len().min(200)];
        let ended = host["result"].as_str().or(host["result"][1].as_str());
        assert_eq!(ended, Some(wanted), "{name}: {}", host["result"]);
        assert!(host == mock, "{name}:\non the host {host:#}\non the mock {mock:#}");
    }
}
