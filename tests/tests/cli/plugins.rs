//! Manifests: what a plugin asks for is read before it runs.

use crate::run::Folder;

#[test]
fn a_plugin_is_packed_with_a_manifest_and_gets_nothing_that_it_asks_for_without_a_grant() {
    let folder = Folder::new();
    let subscription = "[[subscription]]\nname = \"s\"\ntopic = \"t.>\"\nhandler = \"packed.wasm\"\n";
    folder.configure(subscription);
    let asks = r#"{"name":"asker","version":"1.2.3","asks":{"http":["https://api.example.com"],"config":["url"]}}"#;
    folder.write("manifest.json", asks);
    let pack = ["plugin", "pack", "noop.wasm", "--manifest", "manifest.json", "--output", "packed.wasm"];
    assert!(folder.ok(&pack).starts_with("packed.wasm: asker@1.2.3, "));
    let packed = folder.json(&pack);
    assert_eq!(packed["manifest"], serde_json::from_str::<serde_json::Value>(asks).unwrap());

    let error = folder.fails(1, &["run"]);
    for wants in ["asker@1.2.3", "grants.http = [\"https://api.example.com\"]", "config.url = \"...\""] {
        assert!(error.contains(wants), "{wants}: {error}");
    }
    folder.write("manifest.json", r#"{"name":"asker","version":"1","wants":{}}"#);
    assert!(folder.fails(1, &pack).contains("unknown field `wants`"));
    folder.write("noop.wasm", "nonsense");
    folder.write("manifest.json", asks);
    assert!(folder.fails(1, &pack).contains("noop.wasm"));
}
