//! What is refused at deploy, and in which words.

use laneway_core::SubscriptionKind::{Handler, Publisher};
use laneway_host::{Grants, Limits, PluginError, PluginSpec};

use crate::guest::{EFFECTS, Guest, OK};
use crate::support::{host, refused, spec};

#[test]
fn what_is_no_component_is_refused() {
    let error = refused(b"#!/bin/sh\n", Handler);
    assert!(matches!(error, PluginError::NotWebAssembly { bytes: 10 }), "{error}");
    let error = refused(&wat::parse_str("(module)").unwrap(), Handler);
    assert!(matches!(error, PluginError::CoreModule), "{error}");
    let mut broken = Guest::handler(OK).build();
    broken.truncate(broken.len() / 2);
    let error = refused(&broken, Handler);
    assert!(matches!(error, PluginError::Compile(_)), "{error}");
}

#[test]
fn a_component_of_the_wrong_world_is_refused_with_what_it_has_and_what_it_needs() {
    let error = refused(&Guest::handler(OK).build(), Publisher).to_string();
    assert!(error.contains("is no publisher"), "{error}");
    assert!(error.contains("exports `laneway:plugin/"), "{error}");
    assert!(error.contains("laneway:plugin/handler@0.1.0"), "{error}");
    assert!(
        error.contains("a publisher exports laneway:plugin/lifecycle@0.1.0 and laneway:plugin/publisher@0.1.0"),
        "{error}"
    );
    let empty = wat::parse_str("(component)").unwrap();
    assert!(refused(&empty, Handler).to_string().contains("exports nothing"));
}

#[test]
fn an_import_that_is_not_granted_is_refused_with_the_grant_to_add() {
    let http = r#"(import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)));;--"#;
    let guest =
        Guest::handler("(drop (call $fields)) (i32.const 1024)").fields(http).import("wasi:http/types@0.2.0");
    let error = refused(&guest.build(), Handler).to_string();
    assert!(
        error.contains("`wasi:http/types@0.2.0`") && error.contains("grants.http = [\"https://host\"]"),
        "{error}"
    );
    let grants = Grants { http: vec!["http://127.0.0.1:9".parse().unwrap()], ..Grants::default() };
    host().plugin(&guest.build(), PluginSpec { grants, ..spec(Handler) }).unwrap();

    let evil = r#"(import "evil:host/run@1.0.0" "run" (func $run));;--"#;
    let guest = Guest::handler("(call $run) (i32.const 1024)").fields(evil).import("evil:host/run@1.0.0");
    let error = refused(&guest.build(), Handler);
    assert!(matches!(&error, PluginError::UnknownImport { import } if import == "evil:host/run@1.0.0"), "{error}");
}

#[test]
fn a_publisher_with_effects_is_refused() {
    let work = "(call $delete (i32.const 0) (i32.const 1)) (i32.const 1024)";
    let guest = Guest::publisher(work).fields(EFFECTS).import("laneway:plugin/effects@0.1.0");
    let error = refused(&guest.build(), Publisher);
    assert!(matches!(&error, PluginError::HandlersOnly { .. }), "{error}");
}

#[test]
fn a_component_that_lies_about_an_interface_is_refused() {
    let text = r#"(component
        (import "laneway:plugin/log@0.1.0" (instance (export "shout" (func (param "text" string)))))
        (instance $empty)
        (export "laneway:plugin/lifecycle@0.1.0" (instance $empty))
        (export "laneway:plugin/handler@0.1.0" (instance $empty)))"#;
    let error = refused(&wat::parse_str(text).unwrap(), Handler);
    assert!(matches!(&error, PluginError::Mismatch(text) if text.contains("shout")), "{error}");
    let text = r#"(component
        (instance $empty)
        (export "laneway:plugin/lifecycle@0.1.0" (instance $empty))
        (export "laneway:plugin/handler@0.1.0" (instance $empty)))"#;
    let error = refused(&wat::parse_str(text).unwrap(), Handler);
    assert!(matches!(&error, PluginError::Mismatch(text) if text.contains("validate")), "{error}");
}

#[test]
fn limits_are_checked_when_a_component_is_deployed() {
    let bytes = Guest::handler(OK).pages(400).build();
    let error = refused(&bytes, Handler).to_string();
    assert!(error.contains("26214400") && error.contains("16777216"), "{error}");
    let limits = Limits { memory_bytes_max: 1 << 30, ..Limits::default() };
    let error = host().plugin(&bytes, PluginSpec { limits, ..spec(Handler) }).unwrap_err();
    assert!(matches!(error, PluginError::Limit { .. }), "{error}");
}
