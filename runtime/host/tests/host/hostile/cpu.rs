//! Guests that never come to an end, in each place where the host calls them.

use super::Ends::{self, Reason, Validate, Well};
use super::Hostile;
use crate::guest::{EFFECTS, Guest, LOG, OK, SLEEP};

const FOREVER: &str = "(loop $again (br $again)) unreachable";
const TIMEOUT: Ends = Reason("timeout");

/// Memory of 255 pages, with the limit's last one left for the message.
const PAGES: u32 = 255;
const ALL: &str = "(i32.const 16000000)";

pub fn corpus() -> Vec<Hostile> {
    let hostile = |name, guest: Guest, ends| Hostile::new(name, &guest, ends);
    let fills = format!("(memory.fill (i32.const 100000) (i32.const 7) {ALL})").repeat(2_000);
    vec![
        hostile("loop", Guest::handler(FOREVER), TIMEOUT),
        hostile(
            "loop-br-table",
            Guest::handler("(loop $a (loop $b (br_table $a $b $a (local.get $i)))) unreachable"),
            TIMEOUT,
        ),
        hostile(
            "loop-of-tail-calls",
            Guest::handler("(return_call $f (i32.const 0))").fields(
                "(func $f (param i32) (result i32) (return_call $g (local.get 0)))
                (func $g (param i32) (result i32) (return_call $f (local.get 0)))",
            ),
            TIMEOUT,
        ),
        hostile(
            "loop-of-indirect-calls",
            Guest::handler("(loop $again (call_indirect (i32.const 0)) (br $again)) unreachable")
                .fields("(table funcref (elem $f)) (func $f)"),
            TIMEOUT,
        ),
        hostile(
            "exponential-recursion",
            Guest::handler("(drop (call $f (i32.const 100))) (i32.const 1024)").fields(
                "(func $f (param i32) (result i32) (if (result i32) (local.get 0)
                    (then (i32.add (call $f (i32.sub (local.get 0) (i32.const 1)))
                        (call $f (i32.sub (local.get 0) (i32.const 1)))))
                    (else (i32.const 1))))",
            ),
            TIMEOUT,
        ),
        hostile(
            "loop-in-start",
            Guest::handler(OK).fields("(func $s (loop $again (br $again))) (start $s)"),
            TIMEOUT,
        ),
        hostile("loop-in-realloc", Guest::handler(OK).alloc(FOREVER), TIMEOUT),
        hostile("loop-in-post-return", Guest::handler(OK).post_return("(loop $again (br $again))"), TIMEOUT),
        hostile("loop-in-validate", Guest::handler(OK).validate(FOREVER), Validate("timeout")),
        hostile(
            "loop-of-memory-fill",
            Guest::handler(&format!(
                "(loop $again (memory.fill (i32.const 100000) (i32.const 7) {ALL}) (br $again)) unreachable"
            ))
            .pages(PAGES),
            TIMEOUT,
        ),
        hostile(
            "loop-of-memory-copy",
            Guest::handler(&format!(
                "(loop $again (memory.copy (i32.const 100000) (i32.const 100001) {ALL}) (br $again)) unreachable"
            ))
            .pages(PAGES),
            TIMEOUT,
        ),
        hostile("fills-without-a-loop", Guest::handler(&format!("{fills} {OK}")).pages(PAGES), TIMEOUT),
        Hostile::raw("calls-without-a-loop", calls_without_a_loop(), TIMEOUT),
        hostile(
            "loop-of-table-fill",
            Guest::handler(
                "(loop $again (table.fill $t (i32.const 0) (ref.null func) (i32.const 32000)) (br $again)) unreachable",
            )
            .fields("(table $t 32000 funcref)"),
            TIMEOUT,
        ),
        hostile(
            "loop-of-refused-growth",
            Guest::handler("(loop $again (drop (memory.grow (i32.const 65535))) (br $again)) unreachable"),
            // The last word is the timeout's; that memory was refused before explains nothing.
            TIMEOUT,
        ),
        hostile(
            "loop-of-host-calls",
            Guest::handler("(loop $again (drop (call $count (i32.const 16) (i32.const 1))) (br $again)) unreachable")
                .fields(EFFECTS)
            .fields(r#"(data (i32.const 16) "k")"#),
            TIMEOUT,
        ),
        hostile(
            "loop-of-log-calls-that-are-cut-short",
            Guest::handler(
                "(loop $again (call $log (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
                    (local.set $i (i32.add (local.get $i) (i32.const 1)))
                    (br_if $again (i32.lt_u (local.get $i) (i32.const 30000)))) (i32.const 1024)",
            )
            .fields(LOG),
            Well,
        ),
        hostile("sleep-for-ever", sleeper("(call $sleep (i64.const -1))"), TIMEOUT),
        hostile("sleep-a-nanosecond-for-ever", sleeper("(loop $again (call $sleep (i64.const 1)) (br $again))"), TIMEOUT),
        hostile(
            "spin-on-a-pollable",
            Guest::handler(
                "(local.set $i (call $subscribe (i64.const -1)))
                (loop $again (drop (call $ready (local.get $i))) (br $again)) unreachable",
            )
            .fields(
                r#"(import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration"
                    (func $subscribe (param i64) (result i32)))
                (import "wasi:io/poll@0.2.0" "[method]pollable.ready" (func $ready (param i32) (result i32)));;--"#,
            )
            .import("wasi:clocks/monotonic-clock@0.2.0")
            .import("wasi:io/poll@0.2.0"),
            TIMEOUT,
        ),
        hostile("loop-in-a-publisher", Guest::publisher(FOREVER), TIMEOUT).publisher(),
    ]
}

/// No loop and no call of a function of WebAssembly, so that no tick is ever met; each call of the host takes a while.
///
/// Written out, for what tools make has functions of its own between a module and the host.
pub fn calls_without_a_loop() -> Vec<u8> {
    let calls = "(call $get (i32.const 100000) (i32.const 8300000) (i32.const 512))".repeat(2_000);
    let text = format!(
        r#"(component
            (import "laneway:plugin/config@0.1.0" (instance $config
                (export "get" (func (param "key" string) (result (option string))))))
            (core module $memory
                (memory (export "memory") {PAGES})
                (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0))
                (func (export "nothing")))
            (core instance $m (instantiate $memory))
            (core func $get (canon lower (func $config "get")
                (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
            (core module $main
                (import "host" "get" (func $get (param i32 i32 i32)))
                (func $start {calls})
                (start $start))
            (core instance (instantiate $main (with "host" (instance (export "get" (func $get))))))
            (func $nothing (canon lift (core func $m "nothing")))
            (instance $lifecycle (export "validate" (func $nothing)))
            (instance $handler (export "handle" (func $nothing)))
            (export "laneway:plugin/lifecycle@0.1.0" (instance $lifecycle))
            (export "laneway:plugin/handler@0.1.0" (instance $handler)))"#
    );
    wat::parse_str(text).expect("the component's text is well formed")
}

fn sleeper(work: &str) -> Guest {
    Guest::handler(&format!("{work} {OK}"))
        .fields(SLEEP)
        .import("wasi:clocks/monotonic-clock@0.2.0")
        .import("wasi:io/poll@0.2.0")
}
