//! Guests that break the rules by which values pass between them and the host.

use super::Ends::{self, Reason, Well};
use super::Hostile;
use crate::guest::{EFFECTS, FAIL, Guest, LOG, OK};

const TRAP: Ends = Reason("trap");
const OUTPUT: Ends = Reason("output_limit");

pub fn corpus() -> Vec<Hostile> {
    let hostile = |name, guest: Guest, ends| Hostile::new(name, &guest, ends);
    // A failure with a text of this address and length, over this data.
    let text = |at: i64, len: i64, data: &str| {
        Guest::handler(&format!(
            "(call $fail (i32.const 0) (i32.const 0) (i32.const 0) (i32.const {at}) (i32.const {len}))"
        ))
        .fields(FAIL)
        .fields(&format!(r#"(data (i32.const 16) "{data}")"#))
    };
    let log = |work: &str| Guest::handler(&format!("{work} {OK}")).fields(LOG);
    let batch = |at: i64, len: i64| {
        Guest::publisher(&format!(
            "(i32.store (i32.const 1032) (i32.const {at})) (i32.store (i32.const 1036) (i32.const {len})) {OK}"
        ))
    };
    vec![
        hostile("answer-outside", Guest::handler("(i32.const -16)"), TRAP),
        hostile("answer-across-the-end", Guest::handler("(i32.const 131064)"), TRAP),
        hostile("answer-unaligned", Guest::handler("(i32.const 1025)"), TRAP),
        hostile("answer-of-no-case", Guest::handler(&format!("(i32.store8 {OK} (i32.const 7)) {OK}")), TRAP),
        hostile(
            "failure-of-no-case",
            Guest::handler("(call $fail (i32.const 9) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))").fields(FAIL),
            TRAP,
        ),
        hostile("text-outside", text(131_071, 2, ""), TRAP),
        hostile("text-of-2-gib", text(16, 0x7fff_ffff, ""), TRAP),
        hostile("text-of-negative-length", text(16, -1, ""), TRAP),
        hostile("text-from-the-last-address", text(-1, 1, ""), TRAP),
        hostile("text-that-is-not-utf8", text(16, 4, r"\ff\fe\fd\fc"), TRAP),
        hostile("text-with-a-surrogate", text(16, 3, r"\ed\a0\80"), TRAP),
        hostile("text-that-is-overlong", text(16, 2, r"\c0\80"), TRAP),
        hostile("text-that-is-cut-short", text(16, 2, r"\e2\82"), TRAP),
        hostile("text-of-a-code-point-too-high", text(16, 4, r"\f4\90\80\80"), TRAP),
        hostile("text-of-control-characters", text(16, 8, r"\00\1b[2J\0a\0d\07"), Reason("guest:")),
        hostile("text-of-100-mib", text(65_536, 104_857_600, "").pages(1_602), OUTPUT).memory(128 << 20),
        hostile("list-outside", batch(131_064, 1), TRAP).publisher(),
        hostile("list-of-a-billion", batch(4096, 1 << 30), TRAP).publisher(),
        hostile("list-that-is-unaligned", batch(4097, 1), TRAP).publisher(),
        hostile("list-of-too-few-answers", batch(4096, 0), Reason("wrong_answer")).publisher(),
        hostile("list-of-too-many-answers", batch(4096, 1000), Reason("wrong_answer")).publisher(),
        hostile(
            "log-of-no-level",
            log("(call $log (i32.const 9) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))"),
            TRAP,
        ),
        hostile(
            "log-from-outside",
            log("(call $log (i32.const 2) (i32.const -1) (i32.const 2) (i32.const 0) (i32.const 0))"),
            TRAP,
        ),
        hostile(
            "log-of-100-mib",
            log("(call $log (i32.const 2) (i32.const 0) (i32.const 104857600) (i32.const 0) (i32.const 0))").pages(1_602),
            OUTPUT,
        )
        .memory(128 << 20),
        hostile(
            "log-of-a-million-fields",
            log("(call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1000000))").pages(250),
            OUTPUT,
        ),
        // Each field is the same megabyte: what a list points to may be far more than the guest has.
        hostile(
            "log-of-one-text-ten-thousand-times",
            log(
                "(loop $again
                    (i32.store (i32.add (i32.const 1048576) (i32.shl (local.get $i) (i32.const 3))) (i32.const 3145728))
                    (i32.store (i32.add (i32.const 1048580) (i32.shl (local.get $i) (i32.const 3))) (i32.const 1048576))
                    (local.set $i (i32.add (local.get $i) (i32.const 1)))
                    (br_if $again (i32.lt_u (local.get $i) (i32.const 20000))))
                (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 1048576) (i32.const 10000))",
            )
            .pages(64),
            OUTPUT,
        ),
        hostile(
            "emit-of-a-flag-that-is-none",
            Guest::handler(&format!(
                "(call $emit (i32.const 0) (i32.const 1) (i32.const 7) (i32.const 0) (i32.const 0) (i32.const 0)
                    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
                    (i32.const 0) (i32.const 0) (i64.const 0) (i32.const 512)) {OK}"
            ))
            .fields(EFFECTS),
            TRAP,
        ),
        hostile("realloc-gives-0", Guest::handler(OK).alloc("(i32.const 0)"), Well),
        hostile("realloc-gives-the-same-place-each-time", Guest::handler(OK).alloc("(i32.const 4096)"), Well),
        hostile("realloc-gives-what-is-outside", Guest::handler(OK).alloc("(i32.const -16)"), TRAP),
        hostile("realloc-gives-what-is-unaligned", Guest::handler(OK).alloc("(i32.const 4097)"), TRAP),
        hostile("realloc-gives-too-little", Guest::handler(OK).alloc("(i32.const 131064)"), TRAP),
        hostile("realloc-divides-by-zero", Guest::handler(OK).alloc("(i32.div_u (i32.const 1) (i32.const 0))"), TRAP),
        hostile(
            "realloc-calls-the-host",
            Guest::handler(OK).fields(LOG).alloc(
                "(call $log (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)) (i32.const 4096)",
            ),
            TRAP,
        ),
        hostile(
            "post-return-calls-the-host",
            Guest::handler(OK)
                .fields(LOG)
                .post_return("(call $log (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0))"),
            TRAP,
        ),
        hostile(
            "the-host-writes-outside",
            Guest::handler(&format!("(call $get (i32.const 16) (i32.const 1) (i32.const -8)) {OK}")).fields(EFFECTS)
            .fields(r#"(data (i32.const 16) "k")"#),
            TRAP,
        ),
    ]
}
