//! A guest reads a placeholder, and tells nobody more than that.

use std::collections::BTreeMap;

use laneway_core::{Failure, Name, SubscriptionKind};
use laneway_host::{Grants, Host, HostOptions, PluginSpec, Secret};

use crate::guest::{FAIL, Guest, LOG};
use crate::support::{Captured, call, run, spec};

const VALUE: &str = "s3cr3t-t0k3n";

#[tokio::test]
async fn a_guest_sees_the_placeholder_and_what_it_says_of_a_secret_is_hidden() {
    // Logs the value of `key`, and fails with it.
    let work = "
        (call $config (i32.const 16) (i32.const 3) (i32.const 512))
        (call $log (i32.const 2) (i32.load (i32.const 516)) (i32.load (i32.const 520)) (i32.const 0) (i32.const 0))
        (call $fail (i32.const 2) (i32.const 16) (i32.const 3) (i32.load (i32.const 516)) (i32.load (i32.const 520)))";
    let bytes = Guest::handler(work)
        .fields(LOG)
        .fields(r#"(import "laneway:plugin/config@0.1.0" "get" (func $config (param i32 i32 i32)));;--"#)
        .fields(FAIL)
        .fields(r#"(data (i32.const 16) "key")"#)
        .build();
    let token = Name::parse("TOKEN").unwrap();
    let secrets = BTreeMap::from([(token.clone(), Secret::new(VALUE).unwrap())]);
    let options = HostOptions { instances_max: 2, secrets, ..HostOptions::default() };
    assert!(!format!("{options:?}").contains(VALUE));
    let host = Host::new(options).unwrap();
    // One that has the placeholder; those that know the value, as from a server that sent it back, the last of them at
    // the end of what is kept of a text.
    let long = format!("{{secret:TOKEN}} {}{VALUE}", "x".repeat(4_039));
    for (value, shown) in [
        ("a {secret:TOKEN}", "a laneway-secret-"),
        ("{secret:TOKEN} s3cr3t-t0k3n", "laneway-"),
        (long.as_str(), "laneway-"),
    ] {
        let spec = PluginSpec {
            config: BTreeMap::from([("key".to_owned(), value.to_owned())]),
            grants: Grants { secrets: [token.clone()].into(), ..Grants::default() },
            ..spec(SubscriptionKind::Handler)
        };
        let plugin = host.plugin(&bytes, spec).unwrap();
        let logged = Captured::default();
        let done = {
            let _guard = tracing::subscriber::set_default(logged.subscriber());
            run(&plugin, call()).await
        };
        let Err(Failure::Reject { error, .. }) = &done.result else { panic!("{:?}", done.result) };
        assert!(error.as_str().starts_with(shown), "{error}");
        assert!(!error.as_str().contains("s3cr"), "{error}");
        let text = logged.text();
        assert!(text.contains("laneway-secret-") && !text.contains(VALUE), "{text}");
    }
}
