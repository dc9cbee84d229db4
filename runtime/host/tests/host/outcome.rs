//! What guests answer, and what they are told.

use std::collections::BTreeMap;
use std::time::Duration;

use laneway_core::{ErrorText, Failure, Invoker, Reason, SubscriptionKind};
use laneway_host::{PluginError, PluginSpec};

use crate::guest::{FAIL, Guest, OK};
use crate::support::{call, handler, host, run, spec};

#[tokio::test]
async fn each_failure_of_the_contract_arrives_as_it_was_meant() {
    let fail = |case: u32| {
        let work =
            format!("(call $fail (i32.const {case}) (i32.const 16) (i32.const 8) (i32.const 32) (i32.const 9))");
        handler(
            &Guest::handler(&work)
                .fields(FAIL)
                .fields(r#"(data (i32.const 16) "HTTP 404") (data (i32.const 32) "not there")"#),
        )
    };
    let (reason, error) = (Reason::of_guest("HTTP 404"), ErrorText::new("not there"));
    for (case, wants) in [
        (0, Failure::Retry { reason: reason.clone(), error: error.clone() }),
        (2, Failure::Reject { reason: reason.clone(), error: error.clone() }),
        (3, Failure::UnknownOutcome { reason: reason.clone(), error: error.clone() }),
        (4, Failure::Misconfigured { reason: reason.clone(), error: error.clone() }),
    ] {
        assert_eq!(run(&fail(case), call()).await.result, Err(wants));
    }
    let throttled = "
        (i32.store8 (i32.const 2048) (i32.const 1))
        (i32.store8 (i32.const 2056) (i32.const 1))
        (i32.store8 (i32.const 2064) (i32.const 1))
        (i64.store (i32.const 2072) (i64.const 1500))
        (i32.store (i32.const 2080) (i32.const 32))
        (i32.store (i32.const 2084) (i32.const 9))
        (i32.const 2048)";
    let plugin = handler(&Guest::handler(throttled).fields(r#"(data (i32.const 32) "not there")"#));
    let wants = Failure::Throttled { after: Some(Duration::from_millis(1500)), error };
    assert_eq!(run(&plugin, call()).await.result, Err(wants));
}

/// Answers with a failure whose text is a field of the message: the address of its pointer, and its length.
fn echo(pointer: &str, length: &str) -> String {
    format!(
        "(call $fail (i32.const 2) (i32.const 0) (i32.const 0)
            (i32.load (i32.add (local.get $message) (i32.const {pointer})))
            (i32.load (i32.add (local.get $message) (i32.const {length}))))"
    )
}

#[tokio::test]
async fn a_handler_sees_the_message_as_its_producer_wrote_it() {
    for (pointer, length, wants) in [
        ("0", "4", "m-1"),
        ("8", "12", "orders.created"),
        ("20", "24", "customer-7"),
        ("28", "32", "application/json"),
        ("48", "52", "acme"),
        ("60", "64", "{\"total\":42}"),
    ] {
        let plugin = handler(&Guest::handler(&echo(pointer, length)).fields(FAIL));
        match run(&plugin, call()).await.result {
            Err(Failure::Reject { error, .. }) => assert_eq!(error.as_str(), wants),
            other => panic!("{other:?}"),
        }
    }
    let facts = "
        (if (i32.ne (i32.load (i32.add (local.get $message) (i32.const 56))) (i32.const 50)) (then unreachable))
        (if (i32.ne (i32.load (i32.add (local.get $message) (i32.const 40))) (i32.const 1)) (then unreachable))
        (if (i32.ne (i32.load (i32.add (local.get $message) (i32.const 72))) (i32.const 1)) (then unreachable))
        (if (i32.ne (i32.load (i32.add (local.get $message) (i32.const 76))) (i32.const 5)) (then unreachable))
        (if (i64.gt_u
            (i64.sub (i64.const 20000) (i64.load (i32.add (local.get $message) (i32.const 88))))
            (i64.const 10000)) (then unreachable))
        (i32.const 1024)";
    run(&handler(&Guest::handler(facts)), call()).await.result.unwrap();
}

#[tokio::test]
async fn a_publisher_answers_for_each_message_of_its_batch() {
    // A list of results at 4096, 40 bytes each: the second is a failure.
    let work = r"
        (i32.store8 (i32.const 4136) (i32.const 1))
        (i32.store8 (i32.const 4144) (i32.const 2))
        (i32.store (i32.const 1032) (i32.const 4096))
        (i32.store (i32.const 1036) (i32.const 3))
        (i32.const 1024)";
    let plugin = host().plugin(&Guest::publisher(work).build(), spec(SubscriptionKind::Publisher)).unwrap();
    let done = plugin.invoke(&[call(), call(), call()]).await;
    assert_eq!(done[0].result, Ok(()));
    assert!(matches!(&done[1].result, Err(Failure::Reject { .. })), "{:?}", done[1].result);
    assert_eq!(done[2].result, Ok(()));
    assert_eq!(&done[0].plugin, plugin.digest());
    for invocation in plugin.invoke(&[call(), call()]).await {
        match invocation.result {
            Err(Failure::UnknownOutcome { reason, error }) => {
                assert_eq!(reason, Reason::WRONG_ANSWER);
                assert_eq!(error.as_str(), "the publisher answered for 3 of 2 messages");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(plugin.invoke(&[]).await.is_empty());
}

#[tokio::test]
async fn a_configuration_is_read_by_the_guest_and_its_complaints_reach_the_operator() {
    handler(&Guest::handler(OK)).validate().await.unwrap();
    // The value of `url`, as a list of one error; success if it is not set.
    let check = r"
        (call $config (i32.const 16) (i32.const 3) (i32.const 512))
        (if (result i32) (i32.load (i32.const 512))
            (then
                (i32.store8 (i32.const 2048) (i32.const 1))
                (i32.store (i32.const 2052) (i32.const 516))
                (i32.store (i32.const 2056) (i32.const 1))
                (i32.const 2048))
            (else (i32.const 1024)))";
    let bytes = Guest::handler(OK)
        .fields(r#"(import "laneway:plugin/config@0.1.0" "get" (func $config (param i32 i32 i32)));;--"#)
        .fields(r#"(data (i32.const 16) "url")"#)
        .validate(check)
        .build();
    let with = |config: &[(&str, &str)]| {
        let config: BTreeMap<_, _> = config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        host().plugin(&bytes, PluginSpec { config, ..spec(SubscriptionKind::Handler) }).unwrap()
    };
    with(&[]).validate().await.unwrap();
    let error = with(&[("url", "ftp://no")]).validate().await.unwrap_err();
    assert!(matches!(&error, PluginError::Invalid { errors } if errors == &["ftp://no"]), "{error}");
    let error = with(&[("url", "no\nERROR forged\u{1b}[2J")]).validate().await.unwrap_err();
    assert!(error.to_string().ends_with(r"no\nERROR forged\u{1b}[2J"), "{error}");
    let error = handler(&Guest::handler(OK).validate("unreachable")).validate().await.unwrap_err();
    assert!(matches!(&error, PluginError::Validate { reason, .. } if *reason == Reason::PANIC), "{error}");
}
