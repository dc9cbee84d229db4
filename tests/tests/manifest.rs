//! What a plugin asks for is in its component, whichever toolchain built it.

use laneway_tests::plugin;
use serde_json::{Deserializer, Value, json};

/// The manifest of a plugin. There must be one: neither none, nor a second one in the guest's memory.
fn manifest(name: &str) -> Value {
    let component = std::fs::read(plugin(name)).unwrap();
    let section = b"laneway-manifest";
    let places: Vec<usize> =
        component.windows(section.len()).enumerate().filter(|(_, at)| at == section).map(|(at, _)| at).collect();
    let [place] = places.as_slice() else { panic!("{name} has {} sections `laneway-manifest`", places.len()) };
    let rest = &component[place + section.len()..];
    let mut values = Deserializer::from_slice(rest).into_iter();
    let manifest = values.next().unwrap().unwrap();
    let text = &rest[..values.byte_offset()];
    let times = component.windows(text.len()).filter(|at| *at == text).count();
    assert_eq!(times, 1, "{name} has its manifest {times} times");
    manifest
}

#[test]
fn a_plugin_carries_what_it_asks_for() {
    let version = env!("CARGO_PKG_VERSION");
    let publish_http = json!({
        "name": "publish-http",
        "version": version,
        "asks": {"http": ["*"], "secrets": ["*"], "config": ["url"]},
    });
    assert_eq!(manifest("publish-http"), publish_http);
    let publish_log = json!({"name": "publish-log", "version": version, "asks": {}});
    assert_eq!(manifest("publish-log"), publish_log);
    let asks = json!({"emit": ["alerts.delay"], "state": true});
    assert_eq!(manifest("delay-stats"), json!({"name": "delay-stats", "version": version, "asks": asks}));
}
