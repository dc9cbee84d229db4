//! Components that are made to take long to compile, or much memory while they are.

use std::fmt::Write;

use super::Ends::{Reason, Refused, Well};
use super::Hostile;
use crate::guest::{Guest, OK};

pub fn corpus() -> Vec<Hostile> {
    let hostile = |name, guest: Guest, ends| Hostile::new(name, &guest, ends);
    let function = |locals: &str, body: &str| {
        Guest::handler(OK).fields(&format!("(func $f (export \"f\") (param i32) (result i32) {locals} {body})"))
    };
    vec![
        hostile(
            "fifty-thousand-locals",
            function(&format!("(local{})", " i64".repeat(49_000)), "(i32.const 1)"),
            Well,
        ),
        Hostile::module(
            "sixty-thousand-locals",
            &format!("(func (local{}))", " i64".repeat(60_000)),
            Refused("locals"),
        ),
        hostile(
            "many-locals-in-many-loops",
            function(&locals(2_000), &loops(2_000, 2_000)),
            Refused("milliseconds"),
        ),
        hostile(
            "a-hundred-locals-in-a-thousand-loops",
            function(&locals(100), &loops(100, 1_000)),
            Refused("milliseconds"),
        ),
        hostile("few-locals-in-many-loops", function(&locals(10), &loops(10, 100)), Well),
        hostile(
            "a-branch-with-a-million-targets",
            function("", &format!("(block (br_table{} (local.get 0))) (i32.const 1)", " 0".repeat(1_000_000))),
            Refused("milliseconds"),
        ),
        hostile(
            "ten-thousand-blocks-deep",
            function("", &format!("{} {} (i32.const 1)", "(block".repeat(10_000), ")".repeat(10_000))),
            Well,
        ),
        Hostile::module(
            "a-body-of-ten-mebibytes",
            &format!("(func (param i32) {})", "(drop (local.get 0))".repeat(3_500_000)),
            Refused("milliseconds"),
        ),
        hostile(
            "a-body-of-four-mebibytes",
            function(
                "",
                &format!("{} (local.get 0)", "(local.set 0 (i32.mul (local.get 0) (i32.const 7)))".repeat(990_000)),
            ),
            Refused("milliseconds"),
        ),
        hostile("many-values-at-once", function("", &values(80_000)), Refused("milliseconds")),
        hostile("fifty-thousand-functions", Guest::handler(OK).fields(&"(func)".repeat(50_000)), Well),
        hostile("a-million-functions", Guest::handler(OK).fields(&"(func)".repeat(990_000)), Refused("functions")),
        hostile("nine-thousand-types", Guest::handler(OK).fields(&types(9_000)), Well),
        hostile(
            "a-million-types",
            Guest::handler(OK).fields(&"(type (func))".repeat(990_000)),
            Refused("milliseconds"),
        ),
        hostile("fifty-thousand-exports", Guest::handler(OK).fields(&exports(50_000)), Well),
        Hostile::module(
            "a-name-of-a-mebibyte",
            &format!("(func (export \"{}\"))", "x".repeat(1 << 20)),
            Refused("string size"),
        ),
        hostile("a-name-that-unfolds", named(&unfolding(40)), Reason("guest_panic")),
        hostile("a-name-of-nested-types", named(&format!("_Z1f{}i", "P".repeat(50_000))), Reason("guest_panic")),
        hostile("a-name-of-a-hundred-kilobytes", named(&"n".repeat(99_000)), Reason("guest_panic")),
        Hostile::component("a-type-that-doubles", &doubling(40), Refused("")),
        Hostile::component("fifty-types-deep", &deep_type(50), Refused("is no handler")),
        Hostile::component("a-thousand-types-deep", &deep_type(1_000), Refused("")),
        Hostile::raw("ten-thousand-components-deep", nested(10_000), Refused("deep")),
        Hostile::raw("forty-components-deep", nested(40), Refused("exports nothing")),
        Hostile::component("ten-thousand-core-instances", &instances(10_000), Refused("")),
        Hostile::component("nine-hundred-core-instances", &instances(900), Refused("instances")),
        Hostile::component(
            "ten-thousand-types",
            &format!("(component {})", "(type (list u8))".repeat(10_000)),
            Refused("is no handler"),
        ),
        Hostile::component("instances-that-double", &doubling_instances(30), Refused("")),
        Hostile::raw(
            "a-body-that-says-it-is-4-gib",
            b"\0asm\x0d\0\x01\0\x01\xff\xff\xff\xff\x0f\0asm\x01\0\0\0".to_vec(),
            Refused(""),
        ),
        Hostile::raw("a-header-and-nothing-else", b"\0asm\x0d\0\x01\0".to_vec(), Refused("exports nothing")),
    ]
}

fn locals(count: usize) -> String {
    format!("(local{})", " i32".repeat(count))
}

/// Loops within each other, and all locals read in the innermost: each local is a value of its own in each loop.
fn loops(locals: usize, depth: usize) -> String {
    let mut text = "(loop".repeat(depth);
    for local in 1..=locals {
        let _ = write!(text, "(local.set {local} (i32.add (local.get {local}) (local.get 0)))");
    }
    text.push_str(&"(br_if 0 (local.get 0)))".repeat(depth));
    text.push_str("(local.get 1)");
    text
}

/// So many values on the stack before the first of them is used.
fn values(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        let _ = write!(text, "(i32.load (i32.add (local.get 0) (i32.const {n})))");
    }
    text + &"i32.add ".repeat(count - 1)
}

fn types(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        let params: String = (0..16).map(|bit| if n >> bit & 1 == 0 { " i32" } else { " i64" }).collect();
        let _ = write!(text, "(type (func (param{params})))");
    }
    text
}

fn exports(count: usize) -> String {
    let mut text = "(func $e)".to_owned();
    for n in 0..count {
        let _ = write!(text, "(export \"e{n}\" (func $e))");
    }
    text
}

/// A guest that panics in a function of this name.
fn named(name: &str) -> Guest {
    Guest::handler("(call $f) (i32.const 1024)").fields(&format!("(func $f (@name \"{name}\") unreachable)"))
}

/// A mangled name of C++ each of whose types is twice the one before: `pair<T, T>`, again and again.
fn unfolding(levels: usize) -> String {
    let substitution = |n: usize| match n {
        0 => "S_".to_owned(),
        n => {
            let mut digits = Vec::new();
            let mut rest = n - 1;
            loop {
                digits.push(char::from_digit((rest % 36) as u32, 36).unwrap().to_ascii_uppercase());
                rest /= 36;
                if rest == 0 {
                    break;
                }
            }
            format!("S{}_", digits.iter().rev().collect::<String>())
        }
    };
    // `1a` is no substitution's own, `1aIiE` takes two: the template, and its instance.
    let mut name = "_Z1f1aIiiE".to_owned();
    for level in 0..levels {
        let last = substitution(level + 1);
        let _ = write!(name, "S_I{last}{last}E");
    }
    name
}

fn doubling(levels: usize) -> String {
    let mut text = "(component (type $t0 (tuple u64 u64))".to_owned();
    for level in 1..levels {
        let last = level - 1;
        let _ = write!(text, "(type $t{level} (tuple $t{last} $t{last}))");
    }
    text + ")"
}

fn deep_type(levels: usize) -> String {
    let mut text = "(component (type $t0 (list u8))".to_owned();
    for level in 1..levels {
        let _ = write!(text, "(type $t{level} (list $t{}))", level - 1);
    }
    text + ")"
}

/// Components within components: a header, and a section that is a component.
fn nested(levels: usize) -> Vec<u8> {
    const HEADER: &[u8] = b"\0asm\x0d\0\x01\0";
    const COMPONENT_SECTION: u8 = 4;
    let mut component = HEADER.to_vec();
    for _ in 1..levels {
        let mut outer = HEADER.to_vec();
        outer.push(COMPONENT_SECTION);
        let mut size = component.len();
        while size >= 0x80 {
            outer.push(size as u8 | 0x80);
            size >>= 7;
        }
        outer.push(size as u8);
        outer.extend(component);
        component = outer;
    }
    component
}

fn instances(count: usize) -> String {
    format!("(component (core module $m) {})", "(core instance (instantiate $m))".repeat(count))
}

/// Each component instantiates the one before it twice.
fn doubling_instances(levels: usize) -> String {
    let mut text =
        "(component (core module $m (memory 1)) (component $c0 (core module $m (memory 1)) (core instance (instantiate $m)))".to_owned();
    for level in 1..levels {
        let last = level - 1;
        let _ = write!(
            text,
            "(component $c{level} (alias outer 1 $c{last} (component $c)) (instance (instantiate $c)) (instance (instantiate $c)))"
        );
    }
    let last = levels - 1;
    let _ = write!(text, "(instance (instantiate $c{last})))");
    text
}
