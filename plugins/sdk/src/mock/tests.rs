//! The mock keeps the host's promises, so that what passes here passes there.

use serde_json::json;

use super::*;
use crate::{Attempt, Lane, Outgoing, config, info};

const TOPIC: &str = "orders.created";

fn message() -> Message {
    Message::for_test(TOPIC)
}

/// Runs what stands in a handler's body, which needs no payload.
fn handled(host: &mut MockHost, body: impl Fn(&Context) -> Result<(), Failure>) -> Handled {
    host.handle(|(): (), cx: &Context| body(cx), message())
}

fn ended(body: impl Fn(&Context)) -> (String, String) {
    let ended = handled(&mut MockHost::new(), |cx| {
        cx.state().add("begun", 1);
        body(cx);
        Ok(())
    });
    assert!(ended.added.is_empty(), "what was ended has no effects");
    match ended.result {
        Err(Failure::Retry(detail)) => (detail.code, detail.message),
        other => panic!("not ended: {other:?}"),
    }
}

#[test]
fn a_handler_finds_what_the_test_made_up() {
    let mut host = MockHost::new()
        .with_config("url", "https://example.com")
        .with_state("bytes", *b"\xff")
        .with_state_json("json", &[1, 2])
        .with_counter("orders", 7);
    let sent = Message::for_test(TOPIC)
        .id("id-1")
        .key("k")
        .content_type("text/plain")
        .header("n", "v")
        .tenant("t")
        .priority(-5)
        .body("text");
    let attempt = Attempt::for_test().number(3).max(4).lane(Lane::Backfill).deadline(Duration::from_secs(1));
    let attempt = attempt.maybe_duplicate();
    let check = |text: String, cx: &Context| {
        assert_eq!(text, "text");
        assert_eq!(cx.message(), &sent);
        let Attempt { number, max, lane, deadline_ms, maybe_duplicate } = *cx.attempt();
        assert_eq!((number, max, lane, deadline_ms, maybe_duplicate), (3, 4, Lane::Backfill, 1000, true));
        assert_eq!(cx.config("url").as_deref(), Some("https://example.com"));
        assert_eq!(cx.config("missing"), None);
        assert_eq!(cx.state().get("bytes"), Some(vec![0xff]));
        assert_eq!(cx.state().get_json("json"), Ok(Some(vec![1, 2])));
        assert_eq!(cx.state().get("missing"), None);
        assert_eq!(cx.state().count("orders"), 7);
        Ok(())
    };
    let handled = host.handle(check, (sent.clone(), attempt));
    assert_eq!((handled.result, handled.runs), (Ok(()), 1));
}

#[test]
fn a_payload_that_cannot_be_read_is_rejected_before_the_handler() {
    let handled = MockHost::new().handle(
        |_: crate::Json<u32>, _: &Context| panic!("the handler is not called"),
        message().body("no number"),
    );
    assert!(matches!(handled.result, Err(Failure::Reject(detail)) if detail.code == "bad_payload"));
}

#[test]
fn effects_are_committed_with_success_and_seen_by_the_next_message() {
    let mut host = MockHost::new().with_state("gone", "x").with_counter("c", i64::MAX);
    let first = handled(&mut host, |cx| {
        let state = cx.state();
        state.put("k", b"1");
        assert_eq!(state.get("k"), Some(b"1".to_vec()), "an attempt sees its own writes");
        state.put("k", b"2");
        state.delete("gone");
        assert_eq!(state.get("gone"), None);
        state.add("c", 1);
        state.add("c", 1);
        assert_eq!(state.count("c"), i64::MAX, "a counter reads as last committed");
        cx.annotate("overwritten")?;
        cx.annotate(&json!({"n": 1}))
    });
    assert_eq!(first.result, Ok(()));
    assert_eq!(first.writes, [("gone".to_owned(), None), ("k".to_owned(), Some(b"2".to_vec()))].into());
    assert_eq!(first.added, [("c".to_owned(), 2)].into());
    assert_eq!(first.annotation, Some(json!({"n": 1})));
    assert_eq!((host.state("k"), host.state("gone")), (Some(b"2".as_slice()), None));
    assert_eq!(host.counter("c"), i64::MIN + 1, "a counter wraps");

    let second = handled(&mut host, |cx| {
        assert_eq!(cx.state().get("k"), Some(b"2".to_vec()));
        Ok(())
    });
    assert_eq!(second.result, Ok(()));
    assert_eq!((second.writes, second.added, second.annotation), Default::default());
}

#[test]
fn of_a_failing_handler_nothing_is_kept_but_its_log() {
    let mut host = MockHost::new().with_state("k", "old");
    let failed = handled(&mut host, |cx| {
        info!(n = 1, "begun");
        cx.state().put("k", b"new");
        cx.state().add("c", 1);
        cx.annotate("x")?;
        cx.emit(Outgoing::new("a.b", ""))?;
        Err(Failure::reject("no", "not today"))
    });
    let dropped = (failed.emitted, failed.writes, failed.added, failed.annotation);
    assert_eq!(dropped, Default::default());
    assert_eq!(failed.result, Err(Failure::reject("no", "not today")));
    assert_eq!((host.state("k"), host.counter("c")), (Some(b"old".as_slice()), 0));
    assert_eq!(host.log().len(), 1);
    assert_eq!((host.log()[0].level, host.log()[0].message.as_str()), (Level::Info, "begun"));
    assert_eq!(host.log()[0].field("n"), Some("1"));
}

#[test]
fn an_emitted_message_is_as_the_next_handler_gets_it() {
    let emit = |(): (), cx: &Context| {
        assert_eq!(cx.emit(Outgoing::json("a.plain", &[1])?)?, "emitted-1");
        let full = Outgoing::new("a.full", "x").key("k").priority(9).content_type("text/plain");
        cx.emit(full.header("n", "1").header("m", "2").header("n", "3").delay(Duration::from_secs(2)))?;
        Ok(())
    };
    let handled = MockHost::new().handle(emit, message().priority(7).tenant("t"));
    assert_eq!(handled.result, Ok(()));
    let [plain, full] = handled.emitted.as_slice() else { panic!("{handled:?}") };
    assert_eq!((plain.id.as_str(), plain.topic.as_str(), plain.priority), ("emitted-1", "a.plain", 7));
    assert_eq!((plain.content_type.as_str(), plain.tenant.as_deref()), ("application/json", Some("t")));
    assert_eq!((plain.json::<Vec<u8>>(), plain.delay), (vec![1], None));
    assert_eq!((full.key.as_deref(), full.priority, full.content_type.as_str()), (Some("k"), 9, "text/plain"));
    let headers: Vec<_> = full.headers.iter().map(|header| (header.name.as_str(), header.value.as_str())).collect();
    assert_eq!(headers, [("n", "3"), ("m", "2")], "a header stands once");
    assert_eq!(full.delay, Some(Duration::from_secs(2)));
}

#[test]
fn a_message_that_cannot_be_sent_is_refused_and_the_handler_goes_on() {
    let mut host = MockHost::new().with_payload_bytes_max(3);
    let refused = handled(&mut host, |cx| {
        let emit = |topic: &str, body: &str| match cx.emit(Outgoing::new(topic, body)) {
            Err(Failure::Reject(detail)) if detail.code == "emit_refused" => detail.message,
            other => panic!("{topic}: {other:?}"),
        };
        assert!(emit("", "").contains("empty"));
        assert!(emit("a..b", "").contains("empty segment"));
        assert!(emit("a b", "").contains("' '"));
        assert!(emit(&"a".repeat(256), "").contains("256 bytes"));
        assert_eq!(emit("a.b", "1234"), "message to `a.b` has 4 bytes; at most 3 are allowed");
        cx.emit(Outgoing::new("a".repeat(255), "123"))?;
        Ok(())
    });
    assert_eq!((refused.result, refused.emitted.len()), (Ok(()), 1));
}

#[test]
fn metadata_that_cannot_be_kept_is_refused() {
    let refused = handled(&mut MockHost::new(), |cx| {
        let refused = |metadata: &str| match cx.annotate(metadata) {
            Err(Failure::Reject(detail)) => detail.code == "metadata_refused",
            _ => false,
        };
        assert!(refused("a\0b"));
        assert!(refused(&"x".repeat(4095)));
        assert!(!refused(&"x".repeat(4094)));
        Ok(())
    });
    assert_eq!(refused.result, Ok(()));
}

#[test]
fn a_handler_that_breaks_a_rule_of_the_contract_is_ended() {
    let long = "k".repeat(1025);
    let (code, text) = ended(|cx| cx.state().put(&long, b""));
    assert_eq!(code, "effect_limit");
    assert_eq!(text, "a key of the state has 1025 bytes; at most 1024 are allowed");
    let limit = |body: fn(&Context)| assert_eq!(ended(body).0, "effect_limit");
    limit(|cx| drop(cx.state().get("a\0")));
    limit(|cx| cx.state().delete("a\0"));
    limit(|cx| cx.state().add("a\0", 1));
    limit(|cx| assert_eq!(cx.state().count("a\0"), 0));
    limit(|cx| drop(cx.emit(Outgoing::new("a", "").key("\0"))));
    limit(|cx| drop(cx.emit(Outgoing::new("a", "").content_type("\0"))));
    limit(|cx| drop(cx.emit(Outgoing::new("a", "").header("n", "\0"))));
    // One effect is there before.
    limit(|cx| (0..1000).for_each(|n| cx.state().put(&n.to_string(), b"")));
    limit(|cx| (0..9).for_each(|n| cx.state().put(&n.to_string(), &[0; 1 << 20])));
    let kept = handled(&mut MockHost::new(), |cx| {
        cx.state().put(&"k".repeat(1024), b"");
        (0..10_000).for_each(|_| cx.state().put("same", &[0; 4096]));
        Ok(())
    });
    assert_eq!(kept.result, Ok(()), "what is repeated counts once");
}

#[test]
fn a_log_is_cut_and_a_flood_ends_the_attempt() {
    let mut host = MockHost::new();
    host.run(|| {
        info!(a = "x", b = "y", "{}", "ä\n".repeat(8 << 10));
        (0..200).for_each(|n| info!("{n}"));
    });
    assert_eq!(host.log().len(), 100);
    assert_eq!(host.log()[0].message.len(), 8 << 10);
    assert!(host.log()[0].fields.is_empty() && !host.log()[0].message.contains('\n'));
    assert_eq!(ended(|_| (0..50_000).for_each(|_| info!("x"))).0, "log_limit");
}

#[test]
fn a_handler_whose_read_was_overtaken_runs_again_and_one_that_did_not_read_does_not() {
    let next = |cx: &Context| {
        info!("run");
        cx.state().update_json("n", |n: &mut u64| *n += 1).map(drop)
    };
    let mut host = MockHost::new();
    host.write_meanwhile("n", Some(b"9"));
    host.write_meanwhile("n", None);
    let overtaken = handled(&mut host, next);
    assert_eq!((overtaken.result, overtaken.runs), (Ok(()), 3));
    assert_eq!((host.state("n"), host.log().len()), (Some(b"1".as_slice()), 3));

    host.write_meanwhile("n", Some(b"5"));
    let blind = handled(&mut host, |cx| {
        cx.state().put("n", b"6");
        Ok(())
    });
    assert_eq!((blind.runs, host.state("n")), (1, Some(b"6".as_slice())));

    host.write_meanwhile("n", Some(b"7"));
    let failing = handled(&mut host, |cx| match cx.state().get("n").as_deref() {
        Some(b"7") => Ok(()),
        _ => Err(Failure::retry("early", "")),
    });
    assert_eq!((failing.result, failing.runs), (Ok(()), 2), "a failure of what was overtaken does not stand");
}

#[test]
fn the_next_message_is_refused_when_the_test_says_so() {
    let mut host = MockHost::new();
    host.refuse_emit(EmitError::BadTopic("not that one".to_owned()));
    host.refuse_emit(EmitError::TooLarge(1));
    let refused = handled(&mut host, |cx| {
        assert_eq!(cx.emit(Outgoing::new("a.b", "")), Err(Failure::reject("emit_refused", "not that one")));
        assert!(cx.emit(Outgoing::new("a.b", "")).is_err());
        cx.emit(Outgoing::new("a.b", "")).map(drop)
    });
    assert_eq!((refused.result, refused.emitted.len()), (Ok(()), 1));
}

#[test]
fn a_publisher_has_one_result_for_each_message() {
    let mut host = MockHost::new().with_config("to", "there");
    let publish = |item: &Item| match item.message.topic.as_str() {
        "a.b" => Ok(Receipt { reference: config::get("to") }),
        _ => Err(Failure::retry("no", item.attempt.number)),
    };
    let batch = [(Message::for_test("a.b"), Attempt::for_test()), (message(), Attempt::for_test().number(2))];
    let there = Receipt { reference: Some("there".to_owned()) };
    assert_eq!(host.publish(publish, batch), [Ok(there), Err(Failure::retry("no", 2))]);

    let whole = Failure::misconfigured("config", "no");
    let results = host.publish_batch(|_| Err(whole.clone()), [message(), message()]);
    assert_eq!(results, [Err(whole.clone()), Err(whole.clone())]);
    let results = host.publish_batch(|_| Ok(vec![]), [message()]);
    let text = "the publisher answered for 0 of 1 messages";
    assert_eq!(results, [Err(Failure::unknown_outcome("wrong_answer", text))]);
    assert!(host.publish(|_| panic!("there is nothing to publish"), Vec::<Message>::new()).is_empty());
}

#[test]
fn a_check_reads_the_configuration() {
    let check = || config::get("url").map(drop).ok_or_else(|| vec!["`url` is missing".to_owned()]);
    assert_eq!(MockHost::new().validate(check), Err(vec!["`url` is missing".to_owned()]));
    assert_eq!(MockHost::new().with_config("url", "").validate(check), Ok(()));
}

#[test]
fn a_panic_is_the_tests_own_and_the_host_can_be_used_after_it() {
    let mut host = MockHost::new().with_state("k", "v");
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = handled(&mut host, |cx| {
            cx.state().put("k", b"half");
            std::panic::resume_unwind(Box::new("the plugin's fault"))
        });
    }));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"the plugin's fault"));
    assert_eq!(host.state("k"), Some(b"v".as_slice()));
    assert_eq!(handled(&mut host, |_| Ok(())).writes, BTreeMap::new());
}

#[test]
fn a_host_can_be_used_within_another() {
    let mut outer = MockHost::new().with_config("who", "outer");
    let names = outer.run(|| {
        let inner = MockHost::new().with_config("who", "inner").run(|| config::get("who"));
        (inner, config::get("who"))
    });
    assert_eq!(names, (Some("inner".to_owned()), Some("outer".to_owned())));
}

#[test]
#[should_panic(expected = "`config.get` has no host here")]
fn without_a_host_a_call_says_what_is_missing() {
    info!("only shown");
    let _ = config::get("url");
}
