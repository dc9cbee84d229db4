//! Guests that take memory, tables or stack without end.

use super::Ends::{self, Reason, Refused, Well};
use super::Hostile;
use crate::guest::{Guest, LOG, OK};

const MEMORY: Ends = Reason("memory_limit");
const TABLE: Ends = Reason("table_limit");
const STACK: Ends = Reason("stack_overflow");

pub fn corpus() -> Vec<Hostile> {
    let hostile = |name, guest: Guest, ends| Hostile::new(name, &guest, ends);
    let grow = |memory: &str| {
        format!(
            "(loop $more (if (i32.eq (memory.grow {memory} (i32.const 1)) (i32.const -1)) (then unreachable)) (br $more))
            unreachable"
        )
    };
    let memories = |count: usize, pages: usize| format!("(memory {pages})").repeat(count);
    let frame: String = (0..200).map(|n| format!("(local $l{n} i64)")).collect();
    let fill: String =
        (0..200).map(|n| format!("(local.set $l{n} (i64.add (local.get 0) (i64.const {n})))")).collect();
    let spill: String =
        (0..200).map(|n| format!("(local.set 0 (i64.xor (local.get 0) (local.get $l{n})))")).collect();
    let recurse = |body: &str| {
        Guest::handler("(drop (call $f (i64.const 1))) (i32.const 1024)")
            .fields(&format!("(func $f (param i64) (result i64) {body})"))
    };
    vec![
        hostile("grow", Guest::handler(&grow("")), MEMORY),
        hostile(
            "grow-and-touch",
            Guest::handler(
                "(loop $more
                    (local.set $i (memory.grow (i32.const 16)))
                    (if (i32.eq (local.get $i) (i32.const -1)) (then unreachable))
                    (memory.fill (i32.shl (local.get $i) (i32.const 16)) (i32.const 7) (i32.const 1048576))
                    (br $more)) unreachable",
            ),
            MEMORY,
        ),
        hostile("grow-a-second-memory", Guest::handler(&grow("$m")).fields("(memory $m 1)"), MEMORY),
        hostile("grow-in-realloc", Guest::handler(OK).alloc(&grow("")), MEMORY),
        hostile("grow-in-start", Guest::handler(OK).fields(&format!("(func $s {}) (start $s)", grow(""))), MEMORY),
        hostile("starts-with-4-gib", Guest::handler(OK).pages(65_536), Refused("exceeds the limit")),
        hostile("three-memories-of-ten-mib", Guest::handler(OK).fields(&memories(2, 160)), MEMORY),
        hostile("a-hundred-memories", Guest::handler(OK).fields(&memories(99, 0)), Refused("memories")),
        hostile(
            "a-64-bit-memory",
            Guest::handler(&format!("(i64.store $m (i64.const 0x10000000000) (i64.const 7)) {OK}"))
                .fields("(memory $m i64 1)"),
            Reason("trap"),
        ),
        hostile(
            "a-64-bit-memory-of-exabytes",
            Guest::handler("(drop (memory.grow $m (i64.const 0xffffffffffff))) unreachable")
                .fields("(memory $m i64 1)"),
            MEMORY,
        ),
        Hostile::module("starts-with-exabytes", "(memory i64 0xffffffffffff)", Refused("exceeds the limit")),
        Hostile::module("shared-memory", "(memory 1 1 shared)", Refused("threads")),
        Hostile::module(
            "atomic-wait",
            "(memory 1) (func (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1))))",
            Refused("threads"),
        ),
        hostile(
            "grow-a-table",
            Guest::handler(
                "(loop $more
                    (if (i32.eq (table.grow $t (ref.null func) (i32.const 100)) (i32.const -1)) (then unreachable))
                    (br $more)) unreachable",
            )
            .fields("(table $t 1 funcref)"),
            TABLE,
        ),
        hostile(
            "starts-with-ten-million-elements",
            Guest::handler(OK).fields("(table 10000000 funcref)"),
            Refused(""),
        ),
        hostile(
            "four-tables-of-ten-thousand",
            Guest::handler(OK).fields(&"(table 10000 funcref)".repeat(4)),
            TABLE,
        ),
        hostile("a-hundred-tables", Guest::handler(OK).fields(&"(table 1 funcref)".repeat(100)), Refused("tables")),
        hostile("recursion", recurse("(i64.add (call $f (local.get 0)) (i64.const 1))"), STACK),
        hostile(
            "recursion-of-two",
            recurse("(i64.add (call $g (local.get 0)) (i64.const 1))")
                .fields("(func $g (param i64) (result i64) (i64.mul (call $f (local.get 0)) (i64.const 3)))"),
            STACK,
        ),
        hostile(
            "recursion-of-large-frames",
            recurse(&format!(
                "{frame} {fill} (local.set 0 (i64.add (call $f (local.get 0)) (local.get 0))) {spill} (local.get 0)"
            )),
            STACK,
        ),
        hostile(
            "recursion-through-a-table",
            recurse("(i64.add (call_indirect (param i64) (result i64) (local.get 0) (i32.const 0)) (i64.const 1))")
                .fields("(table funcref (elem $f))"),
            STACK,
        ),
        hostile(
            "recursion-that-logs-at-each-depth",
            recurse(
                "(call $log (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0))
                (i64.add (call $f (local.get 0)) (i64.const 1))",
            )
            .fields(LOG),
            STACK,
        ),
        hostile(
            "recursion-in-realloc",
            Guest::handler(OK).alloc(
                "(i32.add (call $alloc (i32.const 0) (i32.const 0) (i32.const 1) (local.get $size)) (i32.const 1))",
            ),
            STACK,
        ),
        hostile("recursion-in-start", Guest::handler(OK).fields("(func $s (call $s) (call $s)) (start $s)"), STACK),
        hostile(
            "a-hundred-thousand-globals",
            Guest::handler(OK).fields(&"(global (mut i64) (i64.const 7))".repeat(99_000)),
            Well,
        ),
        hostile(
            "three-hundred-thousand-globals",
            Guest::handler(OK).fields(&"(global (mut i64) (i64.const 7))".repeat(300_000)),
            Refused("globals"),
        ),
    ]
}
