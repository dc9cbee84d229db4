//! Effects: held back, read back, dropped on failure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use laneway_core::{Failure, Priority, Reason, StateVersion};

use crate::guest::{EFFECTS, Guest, OK};
use crate::support::{MemoryState, call, call_on, handler, retried, run};

/// `key` at 16, `value` at 32, a topic at 48, a bad topic at 64.
const DATA: &str = r#"
    (data (i32.const 16) "key") (data (i32.const 32) "value")
    (data (i32.const 48) "mail.send") (data (i32.const 64) "bad topic")"#;
/// Topic; no key; no priority; no content type; no headers; body; delay; where the answer goes.
const EMIT: &str = "(call $emit
    (i32.const 48) (i32.const 9) (i32.const 0) (i32.const 0) (i32.const 0)
    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
    (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 5)
    (i32.const 1) (i64.const 250) (i32.const 512))";
const GET: &str = "(call $get (i32.const 16) (i32.const 3) (i32.const 512))";
const PUT: &str = "(call $put (i32.const 16) (i32.const 3) (i32.const 32) (i32.const 5))";
const ADD: &str = "(call $add (i32.const 16) (i32.const 3) (i64.const -2))";

fn guest(work: &str) -> Guest {
    Guest::handler(work).fields(EFFECTS).fields(DATA)
}

#[tokio::test]
async fn effects_are_handed_out_after_success() {
    let plugin = handler(&guest(&format!("{GET} {PUT} {ADD} {ADD} {EMIT} {OK}")));
    let done = run(&plugin, call_on(MemoryState::with("key", b"old", -7))).await;
    done.result.unwrap();
    let effects = done.effects;
    assert_eq!(effects.reads, [("key".into(), Some(StateVersion(-7)))]);
    assert_eq!(effects.writes, [("key".into(), Some(Bytes::from_static(b"value")))]);
    assert_eq!(effects.adds, [("key".into(), -4)]);
    let [sent] = effects.emits.as_slice() else { panic!("{:?}", effects.emits) };
    assert_eq!(sent.topic.as_str(), "mail.send");
    assert_eq!(sent.priority, Priority::HIGH, "a child inherits the priority of the message being handled");
    assert_eq!(sent.content_type, "application/json");
    assert_eq!(sent.tenant.as_deref(), Some("acme"));
    assert_eq!(sent.payload, Bytes::from_static(b"value"));
    assert_eq!(sent.delay, Some(Duration::from_millis(250)));
}

#[tokio::test]
async fn an_attempt_reads_its_own_writes_and_does_not_depend_on_the_state_then() {
    // The answer is an entry of five bytes, and its version is not 0.
    let work = format!(
        "{PUT} {GET}
        (if (i32.ne (i32.load8_u (i32.const 512)) (i32.const 1)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 524)) (i32.const 5)) (then unreachable))
        (if (i32.ne (i32.load8_u (i32.load (i32.const 520))) (i32.const 118)) (then unreachable))
        (call $delete (i32.const 16) (i32.const 3)) {GET}
        (if (i32.load8_u (i32.const 512)) (then unreachable))
        {OK}"
    );
    let done = run(&handler(&guest(&work)), call_on(MemoryState::with("key", b"old", 1))).await;
    done.result.unwrap();
    assert!(done.effects.reads.is_empty());
    assert_eq!(done.effects.writes, [("key".into(), None)]);
}

#[tokio::test]
async fn a_version_reaches_the_guest_with_its_bits_unchanged() {
    let work = format!("{GET} (if (i64.ne (i64.load (i32.const 528)) (i64.const -7)) (then unreachable)) {OK}");
    run(&handler(&guest(&work)), call_on(MemoryState::with("key", b"old", -7))).await.result.unwrap();
    let count =
        format!("(if (i64.ne (call $count (i32.const 16) (i32.const 3)) (i64.const 42)) (then unreachable)) {OK}");
    run(&handler(&guest(&count)), call()).await.result.unwrap();
}

#[tokio::test]
async fn a_failed_attempt_keeps_what_it_read_and_drops_what_it_wrote() {
    let failed = "(i32.store8 (i32.const 2048) (i32.const 1)) (i32.const 2048)";
    for end in ["unreachable", failed] {
        let plugin = handler(&guest(&format!("{GET} {PUT} {ADD} {EMIT} {end}")));
        let done = run(&plugin, call()).await;
        assert!(done.result.is_err());
        assert_eq!(done.effects.reads, [("key".into(), None)]);
        assert!(done.effects.writes.is_empty() && done.effects.adds.is_empty() && done.effects.emits.is_empty());
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_sent_is_refused_without_a_trap() {
    // An error of the first case.
    let bad = EMIT.replace("(i32.const 48) (i32.const 9)", "(i32.const 64) (i32.const 9)");
    let check = |case: &str| {
        format!(
            "(if (i32.ne (i32.load8_u (i32.const 512)) (i32.const 1)) (then unreachable))
             (if (i32.ne (i32.load8_u (i32.const 520)) (i32.const {case})) (then unreachable)) {OK}"
        )
    };
    let done = run(&handler(&guest(&format!("{bad} {}", check("0")))), call()).await;
    done.result.unwrap();
    assert!(done.effects.emits.is_empty());
    let large = EMIT.replace("(i32.const 32) (i32.const 5)", "(i32.const 32) (i32.const 1001)");
    run(&handler(&guest(&format!("{large} {}", check("1")))), call()).await.result.unwrap();
}

#[tokio::test]
async fn what_no_database_can_hold_ends_the_attempt_that_wrote_it() {
    // The text `key` with the NUL that follows it, and a key of 1,025 bytes.
    let fill = "(memory.fill (i32.const 4096) (i32.const 97) (i32.const 1025))";
    let calls = [
        "(call $get KEY (i32.const 512))",
        "(call $put KEY (i32.const 32) (i32.const 5))",
        "(call $delete KEY)",
        "(call $add KEY (i64.const 1))",
        "(drop (call $count KEY))",
    ];
    for (key, wants) in [
        ("(i32.const 16) (i32.const 4)", Some("NUL")),
        ("(i32.const 4096) (i32.const 1025)", Some("1025 bytes")),
        ("(i32.const 4096) (i32.const 1024)", None),
    ] {
        for text in calls {
            let done = run(&handler(&guest(&format!("{fill} {} {OK}", text.replace("KEY", key)))), call()).await;
            match wants {
                Some(wants) => {
                    let (reason, error) = retried(&done);
                    assert_eq!(reason, Reason::EFFECT_LIMIT);
                    assert!(error.contains(wants), "{text}: {error}");
                }
                None => done.result.unwrap(),
            }
        }
    }
    let none = "(i32.const 0) (i32.const 0) (i32.const 0)";
    let topic = "(i32.const 48) (i32.const 9)";
    // The ordering key; then a list of one header, whose value has the NUL.
    let keyed =
        EMIT.replace(&format!("{topic} {none}"), &format!("{topic} (i32.const 1) (i32.const 16) (i32.const 4)"));
    let header = "(i32.store (i32.const 96) (i32.const 16)) (i32.store (i32.const 100) (i32.const 3))
        (i32.store (i32.const 104) (i32.const 16)) (i32.store (i32.const 108) (i32.const 4))";
    let body = "(i32.const 32) (i32.const 5)";
    let headed = EMIT
        .replace(&format!("(i32.const 0) (i32.const 0) {body}"), &format!("(i32.const 96) (i32.const 1) {body}"));
    assert!(keyed != EMIT && headed != EMIT);
    // What the outbox does not take is too long, at the limit and over it.
    let letters = "(memory.fill (i32.const 4096) (i32.const 97) (i32.const 61000))";
    let key = |bytes: u32| {
        keyed.replace("(i32.const 16) (i32.const 4)", &format!("(i32.const 4096) (i32.const {bytes})"))
    };
    let value = |bytes: u32| {
        let header = format!(
            "(i32.store (i32.const 96) (i32.const 16)) (i32.store (i32.const 100) (i32.const 3))
            (i32.store (i32.const 104) (i32.const 4096)) (i32.store (i32.const 108) (i32.const {bytes}))"
        );
        format!("{header} {headed}")
    };
    for (emit, wants) in [
        (key(1_024), None),
        (key(1_025), Some("the key of an emitted message has 1025 bytes; at most 1024 are allowed")),
        (value(61_000), None),
        (
            // Each of them is six bytes in JSON.
            format!("(memory.fill (i32.const 4096) (i32.const 1) (i32.const 61000)) {}", value(11_000)),
            Some("the JSON of the headers of an emitted message has 66011 bytes; at most 65536 are allowed"),
        ),
    ] {
        let work = format!("{letters} {emit} {OK}");
        let done = run(&handler(&guest(&work)), call()).await;
        match wants {
            None => done.result.unwrap(),
            Some(wants) => {
                let (reason, error) = retried(&done);
                assert_eq!((reason, error.contains(wants)), (Reason::EFFECT_LIMIT, true), "{error}");
            }
        }
    }
    for (emit, wants) in [(keyed, "the key of an emitted message"), (headed, "a header of an emitted message")] {
        let (reason, error) = retried(&run(&handler(&guest(&format!("{header} {emit} {OK}"))), call()).await);
        assert_eq!(reason, Reason::EFFECT_LIMIT);
        assert!(error.contains(wants) && error.contains("NUL"), "{error}");
    }
}

#[tokio::test]
async fn a_state_that_cannot_be_read_pauses_and_counts_no_attempt() {
    let state = Arc::new(MemoryState { broken: true, ..MemoryState::default() });
    match run(&handler(&guest(&format!("{GET} {OK}"))), call_on(state)).await.result {
        Err(Failure::Throttled { after: Some(_), error }) => {
            assert!(error.as_str().contains("the disk is on fire"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wait_for_the_state_lasts_no_longer_than_the_attempt() {
    let plugin = handler(&guest(&format!("{GET} {OK}")));
    let slow = || Arc::new(MemoryState { delay: Duration::from_secs(60), ..MemoryState::default() });
    let mut call = call_on(slow());
    call.attempt.timeout = Duration::from_millis(50);
    let began = Instant::now();
    assert_eq!(retried(&run(&plugin, call).await).0, Reason::TIMEOUT);
    let call = call_on(slow());
    call.interrupt.set();
    assert_eq!(run(&plugin, call).await.result, Err(Failure::Interrupted));
    let call = call_on(slow());
    let interrupt = call.interrupt.clone();
    let (done, ()) = tokio::join!(run(&plugin, call), async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        interrupt.set();
    });
    assert_eq!(done.result, Err(Failure::Interrupted));
    assert!(began.elapsed() < Duration::from_secs(10));
}
