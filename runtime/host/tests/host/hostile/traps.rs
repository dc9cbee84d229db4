//! Guests that trap, in each way that there is.

use super::Ends::{self, Reason, Refused, Validate};
use super::Hostile;
use crate::guest::{Guest, OK};

const TRAP: Ends = Reason("trap");
const PANIC: Ends = Reason("guest_panic");

pub fn corpus() -> Vec<Hostile> {
    let work = |name, work: &str, fields: &str| {
        Hostile::new(name, &Guest::handler(&format!("{work} {OK}")).fields(fields), TRAP)
    };
    let table = "(table $t 4 funcref) (elem (i32.const 0) $f) (func $f (param i64))";
    vec![
        Hostile::new("unreachable", &Guest::handler("unreachable"), PANIC),
        Hostile::new("unreachable-in-start", &Guest::handler(OK).fields("(func $s unreachable) (start $s)"), PANIC),
        Hostile::new("unreachable-in-realloc", &Guest::handler(OK).alloc("unreachable"), PANIC),
        Hostile::new("unreachable-in-post-return", &Guest::handler(OK).post_return("unreachable"), PANIC),
        Hostile::new(
            "unreachable-in-validate",
            &Guest::handler(OK).validate("unreachable"),
            Validate("guest_panic"),
        ),
        work("divides-by-zero", "(drop (i32.div_u (i32.const 1) (local.get $i)))", ""),
        work("overflows-a-division", "(drop (i64.div_s (i64.const 0x8000000000000000) (i64.const -1)))", ""),
        work("truncates-nan", "(drop (i32.trunc_f64_s (f64.const nan)))", ""),
        work("reads-outside", "(drop (i32.load (i32.const -8)))", ""),
        work("reads-far-outside", "(drop (i32.load offset=4294967295 (i32.const -1)))", ""),
        work("writes-outside", "(v128.store (i32.const 131070) (v128.const i64x2 1 2))", ""),
        work("fills-outside", "(memory.fill (i32.const 1) (i32.const 0) (i32.const -1))", ""),
        work("copies-from-outside", "(memory.copy (i32.const 0) (i32.const 131071) (i32.const 2))", ""),
        work("calls-nothing", "(call_indirect (i32.const 1))", table),
        work("calls-another-type", "(call_indirect (i32.const 0))", table),
        work("calls-outside-its-table", "(call_indirect (i32.const 99))", table),
        work("reads-outside-its-table", "(drop (table.get $t (i32.const 4)))", table),
        work("data-outside", "", r#"(data (i32.const 131071) "ab")"#),
        work("elements-outside", "", "(table 1 funcref) (elem (i32.const 1) $f) (func $f)"),
        work("unaligned-atomics", "(drop (i32.load align=1 (i32.const 131069)))", ""),
        Hostile::module("throws-an-exception", "(tag $e) (func (throw $e))", Refused("exceptions")),
        Hostile::module("garbage-collected-types", "(type (struct (field i32)))", Refused("gc")),
    ]
}
