//! Guests that misuse what the host gives them: floods, handles that are not theirs, values beyond all limits.

use super::Ends::{self, Reason, Refused, Validate, Well};
use super::Hostile;
use crate::guest::{EFFECTS, Guest, LOG, OK};

const TRAP: Ends = Reason("trap");
const EFFECT: Ends = Reason("effect_limit");
const RESOURCE: Ends = Reason("resource_limit");

const STDOUT: &str = r#"
    (import "wasi:cli/stdout@0.2.0" "get-stdout" (func $stdout (result i32)))
    (import "wasi:io/streams@0.2.0" "[method]output-stream.write" (func $write (param i32 i32 i32 i32)))
    (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
        (func $write_and_flush (param i32 i32 i32 i32)))
    (import "wasi:io/streams@0.2.0" "[method]output-stream.write-zeroes" (func $zeroes (param i32 i64 i32)))
    (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $close (param i32)))
;;--"#;

const POLL: &str = r#"
    (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $subscribe (param i64) (result i32)))
    (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
    (import "wasi:io/poll@0.2.0" "[resource-drop]pollable" (func $drop (param i32)))
    (import "wasi:io/poll@0.2.0" "poll" (func $poll (param i32 i32 i32)))
;;--"#;

pub fn corpus() -> Vec<Hostile> {
    let hostile = |name, guest: Guest, ends| Hostile::new(name, &guest, ends);
    let effects = |work: &str| Guest::handler(&format!("{work} {OK}")).fields(EFFECTS);
    let again = |work: &str| {
        format!("(loop $again {work} (local.set $i (i32.add (local.get $i) (i32.const 1))) (br $again))")
    };
    let stdout = |work: &str| {
        let work = format!("(local.set $i (call $stdout)) {work} {OK}");
        let guest = Guest::handler(&work).fields(STDOUT);
        guest.import("wasi:cli/stdout@0.2.0").import("wasi:io/streams@0.2.0")
    };
    let random = |work: &str| {
        let guest = Guest::handler(&format!("{work} {OK}"))
            .fields(r#"(import "wasi:random/random@0.2.0" "get-random-bytes" (func $random (param i64 i32)));;--"#);
        guest.import("wasi:random/random@0.2.0")
    };
    let emit = |topic_len: i32, body_len: i32| {
        // What an error's text took is given back, so that no memory is used up.
        again(&format!(
            "(global.set $heap (i32.const 65536))
            (call $emit (i32.const 16) (i32.const {topic_len}) (i32.const 0) (i32.const 0) (i32.const 0)
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
                (i32.const 4096) (i32.const {body_len}) (i32.const 0) (i64.const 0) (i32.const 512))"
        ))
    };
    let topic = r#"(data (i32.const 16) "a.b")"#;
    // A key of the counter's four bytes, which are made characters.
    let key = "(i32.store (i32.const 16) (i32.and (local.get $i) (i32.const 0x7f7f7f7f)))
        (i32.store (i32.const 16) (i32.or (i32.load (i32.const 16)) (i32.const 0x40404040)))
        (i32.store (i32.const 20) (i32.or (i32.and (i32.shr_u (local.get $i) (i32.const 3)) (i32.const 0x3f3f3f3f))
            (i32.const 0x40404040)))";
    let letters = "(memory.fill (i32.const 4096) (i32.const 97) (i32.const 60000))";
    let fields = r#"
        (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
        (import "wasi:http/types@0.2.0" "[resource-drop]fields" (func $drop_fields (param i32)));;--"#;
    let config = r#"(import "laneway:plugin/config@0.1.0" "get" (func $config (param i32 i32 i32)));;--"#;
    vec![
        hostile(
            "logs-without-end",
            Guest::handler(&format!(
                "{} unreachable",
                again("(call $log (i32.const 2) (i32.const 0) (i32.const 1000) (i32.const 0) (i32.const 0))")
            ))
            .fields(LOG),
            Reason("log_limit"),
        ),
        hostile(
            "prints-without-end",
            stdout(
                "(loop $again
                (call $write (local.get $i) (i32.const 16) (i32.const 2048) (i32.const 512)) (br $again))",
            ),
            Reason("log_limit"),
        ),
        hostile(
            "prints-nothing-without-end",
            stdout(
                "(loop $again
                (call $write (local.get $i) (i32.const 16) (i32.const 0) (i32.const 512)) (br $again))",
            ),
            Reason("timeout"),
        ),
        hostile(
            "flushes-too-much-at-once",
            stdout("(call $write_and_flush (local.get $i) (i32.const 0) (i32.const 100000) (i32.const 512))"),
            TRAP,
        ),
        hostile(
            "prints-exabytes-of-zeroes",
            stdout("(call $zeroes (local.get $i) (i64.const -1) (i32.const 512))"),
            TRAP,
        ),
        hostile("opens-streams-without-end", stdout("(loop $again (drop (call $stdout)) (br $again))"), RESOURCE),
        hostile("closes-a-stream-twice", stdout("(call $close (local.get $i)) (call $close (local.get $i))"), TRAP),
        hostile(
            "writes-to-a-closed-stream",
            stdout(
                "(call $close (local.get $i))
                (call $write (local.get $i) (i32.const 0) (i32.const 1) (i32.const 512))",
            ),
            TRAP,
        ),
        hostile(
            "writes-to-a-handle-of-nobody",
            stdout("(call $write (i32.const 12345) (i32.const 0) (i32.const 1) (i32.const 512))"),
            TRAP,
        ),
        hostile(
            "takes-pollables-without-end",
            poll("(loop $again (drop (call $subscribe (i64.const -1))) (br $again))"),
            RESOURCE,
        ),
        hostile("polls-nothing", poll("(call $poll (i32.const 0) (i32.const 0) (i32.const 512))"), TRAP),
        hostile(
            "polls-what-never-comes",
            poll(
                "(i32.store (i32.const 16) (call $subscribe (i64.const -1)))
            (call $poll (i32.const 16) (i32.const 1) (i32.const 512))",
            ),
            Reason("timeout"),
        ),
        hostile("polls-one-pollable-two-million-times", poll_one(2_000_000), Reason("output_limit")),
        hostile("polls-one-pollable-many-times-for-ever", poll_one(900), Reason("timeout")),
        hostile("polls-one-pollable-more-often-than-it-may", poll_one(200_000), RESOURCE),
        hostile(
            "drops-a-pollable-twice",
            poll(
                "(local.set $i (call $subscribe (i64.const 1)))
                (call $drop (local.get $i)) (call $drop (local.get $i))",
            ),
            TRAP,
        ),
        hostile("drops-what-it-never-had", poll("(call $drop (i32.const 0))"), TRAP),
        hostile("blocks-on-a-handle-of-nobody", poll("(call $block (i32.const -1))"), TRAP),
        hostile("asks-for-exabytes-of-random-bytes", random("(call $random (i64.const -1) (i32.const 512))"), TRAP),
        hostile(
            "asks-for-random-bytes-without-end",
            random("(loop $again (call $random (i64.const 1000000) (i32.const 512)) (br $again))"),
            Reason("memory_limit"),
        )
        // Little, so that it ends there before its time does, on any machine.
        .memory(4 << 20),
        hostile(
            "asks-for-random-bytes-and-forgets-them",
            random(
                "(loop $again (global.set $heap (i32.const 65536))
                (call $random (i64.const 1000000) (i32.const 512)) (br $again))",
            )
            .pages(32),
            Reason("timeout"),
        ),
        hostile(
            "reads-standard-input",
            Guest::handler(
                "(local.set $i (call $stdin))
                (loop $again (call $read (local.get $i) (i64.const -1) (i32.const 512)) (br $again)) unreachable",
            )
            .fields(
                r#"(import "wasi:cli/stdin@0.2.0" "get-stdin" (func $stdin (result i32)))
                (import "wasi:io/streams@0.2.0" "[method]input-stream.blocking-read"
                    (func $read (param i32 i64 i32)));;--"#,
            )
            .import("wasi:cli/stdin@0.2.0")
            .import("wasi:io/streams@0.2.0"),
            Reason("timeout"),
        ),
        hostile("exits-well", exit(0), Reason("guest_panic")),
        hostile("exits-badly", exit(1), Reason("guest_panic")),
        hostile("exits-in-another-way", exit(7), TRAP),
        hostile(
            "takes-http-fields-without-end",
            Guest::handler("(loop $again (drop (call $fields)) (br $again)) unreachable")
                .fields(fields)
                .import("wasi:http/types@0.2.0"),
            RESOURCE,
        )
        .with_http(),
        hostile(
            "takes-http-that-is-not-granted",
            Guest::handler(&format!("(drop (call $fields)) {OK}")).fields(fields).import("wasi:http/types@0.2.0"),
            Refused("not given"),
        ),
        hostile(
            "asks-for-a-key-of-100-mib",
            Guest::handler(&format!("(call $config (i32.const 0) (i32.const 104857600) (i32.const 512)) {OK}"))
                .fields(config)
                .pages(1_602),
            Reason("output_limit"),
        )
        .memory(128 << 20),
        hostile(
            "writes-keys-without-end",
            effects(&again(&format!(
                "{key} (call $put (i32.const 16) (i32.const 8) (i32.const 0) (i32.const 100))"
            ))),
            EFFECT,
        ),
        hostile(
            "writes-megabytes-without-end",
            effects(&again(&format!(
                "{key} (call $put (i32.const 16) (i32.const 8) (i32.const 0) (i32.const 1000000))"
            )))
            .pages(20),
            EFFECT,
        ),
        hostile(
            "writes-a-value-of-100-mib",
            effects("(call $put (i32.const 16) (i32.const 1) (i32.const 0) (i32.const 104857600))").pages(1_602),
            Reason("output_limit"),
        )
        .memory(128 << 20),
        hostile(
            "writes-one-key-without-end",
            effects(&again("(call $put (i32.const 16) (i32.const 1) (i32.const 0) (i32.const 1000))"))
                .fields(topic),
            Reason("timeout"),
        ),
        hostile(
            "writes-a-key-that-is-too-long",
            effects(&format!(
                "{letters} (call $put (i32.const 4096) (i32.const 1025) (i32.const 0) (i32.const 1))"
            )),
            EFFECT,
        ),
        hostile(
            "writes-a-key-with-nul",
            effects("(call $put (i32.const 5000) (i32.const 3) (i32.const 0) (i32.const 1))"),
            EFFECT,
        ),
        hostile(
            "reads-keys-without-end",
            effects(&again(&format!("{key} (call $get (i32.const 16) (i32.const 8) (i32.const 512))"))),
            EFFECT,
        ),
        hostile(
            "deletes-keys-without-end",
            effects(&again(&format!("{key} (call $delete (i32.const 16) (i32.const 8))"))),
            EFFECT,
        ),
        hostile(
            "counts-without-end",
            effects(&again(&format!("{key} (call $add (i32.const 16) (i32.const 8) (i64.const -1))"))),
            EFFECT,
        ),
        hostile("emits-without-end", effects(&emit(3, 100)).fields(topic), EFFECT),
        hostile("emits-what-is-too-large-without-end", effects(&emit(3, 60_000)).fields(topic), Reason("timeout")),
        hostile("emits-to-no-topic-without-end", effects(&emit(0, 1)), Reason("timeout")),
        hostile(
            "writes-while-its-configuration-is-checked",
            Guest::handler(OK)
                .fields(EFFECTS)
                .fields(topic)
                .validate(&format!("(call $put (i32.const 16) (i32.const 1) (i32.const 0) (i32.const 1)) {OK}")),
            Validate("trap"),
        ),
        hostile(
            "complains-of-its-configuration-for-100-mib",
            Guest::handler(OK).pages(1_602).validate(
                "(i32.store8 (i32.const 2048) (i32.const 1))
                (i32.store (i32.const 2052) (i32.const 4096))
                (i32.store (i32.const 2056) (i32.const 1))
                (i32.store (i32.const 4096) (i32.const 65536))
                (i32.store (i32.const 4100) (i32.const 104000000))
                (i32.const 2048)",
            ),
            Validate("output_limit"),
        )
        .memory(128 << 20),
        Hostile::component(
            "exports-nothing-of-its-own",
            r#"(component
            (instance $empty)
            (export "laneway:plugin/lifecycle@0.1.0" (instance $empty))
            (export "laneway:plugin/handler@0.1.0" (instance $empty)))"#,
            Refused("validate"),
        ),
        Hostile::component(
            "passes-on-what-it-imports",
            r#"(component
            (import "laneway:plugin/log@0.1.0" (instance $log))
            (export "laneway:plugin/lifecycle@0.1.0" (instance $log))
            (export "laneway:plugin/handler@0.1.0" (instance $log)))"#,
            Refused("validate"),
        ),
        hostile("well-behaved", Guest::handler(OK), Well),
    ]
}

fn poll(work: &str) -> Guest {
    let guest = Guest::handler(&format!("{work} {OK}")).fields(POLL);
    guest.import("wasi:clocks/monotonic-clock@0.2.0").import("wasi:io/poll@0.2.0")
}

/// Waits for one and the same pollable, so many times in one list; it never comes.
fn poll_one(times: u32) -> Guest {
    poll(&format!(
        "(local.set $i (call $subscribe (i64.const -1)))
        (loop $again
            (i32.store (i32.add (i32.const 65536) (i32.shl (global.get $n) (i32.const 2))) (local.get $i))
            (global.set $n (i32.add (global.get $n) (i32.const 1)))
            (br_if $again (i32.lt_u (global.get $n) (i32.const {times}))))
        (call $poll (i32.const 65536) (i32.const {times}) (i32.const 512))"
    ))
    .fields("(global $n (mut i32) (i32.const 0))")
    .pages(200)
}

fn exit(status: u32) -> Guest {
    Guest::handler(&format!("(call $exit (i32.const {status})) {OK}"))
        .fields(r#"(import "wasi:cli/exit@0.2.0" "exit" (func $exit (param i32)));;--"#)
        .import("wasi:cli/exit@0.2.0")
}
