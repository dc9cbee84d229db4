//! Guests that hold requests and send none of them: what such a request has, the host keeps.

use super::Ends::Reason;
use super::Hostile;
use crate::guest::{Guest, OK, SLEEP};

const HTTP: &str = r#"
    (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.0" "[method]fields.append" (func $append (param i32 i32 i32 i32 i32 i32)))
    (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.body" (func $body (param i32 i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-method"
        (func $set_method (param i32 i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-path-with-query"
        (func $set_path (param i32 i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-authority"
        (func $set_authority (param i32 i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-body.write" (func $stream (param i32 i32)))
    (import "wasi:http/types@0.2.0" "[resource-drop]outgoing-body" (func $drop_body (param i32)))
    (import "wasi:io/streams@0.2.0" "[method]output-stream.check-write" (func $room (param i32 i32)))
    (import "wasi:io/streams@0.2.0" "[method]output-stream.write" (func $write (param i32 i32 i32 i32)))
    (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $drop_stream (param i32)))
;;--"#;

/// Requests that are held at once; each has one handle of the 1,000 that there are.
const HELD: u32 = 900;
/// Nanoseconds for which they are held.
const HOLD: u64 = 2_000_000_000;

/// A mebibyte of what may stand in a name, behind a `/`.
const LETTERS: &str = "
    (memory.fill (i32.const 131072) (i32.const 97) (i32.const 1048576))
    (i32.store8 (i32.const 131071) (i32.const 47))";

/// Makes requests, does something to each, and keeps them for a while.
fn holds(each: &str) -> Guest {
    let work = format!(
        "{LETTERS}
        (loop $again
            (call $each (call $request (call $fields)))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const {HELD}))))
        (call $sleep (i64.const {HOLD})) {OK}"
    );
    of(&work).fields(&format!("(func $each (param $request i32) (local $body i32) (local $stream i32) {each})"))
}

fn of(work: &str) -> Guest {
    Guest::handler(work)
        .fields(HTTP)
        .fields(SLEEP)
        .pages(24)
        .import("wasi:http/types@0.2.0")
        .import("wasi:io/streams@0.2.0")
        .import("wasi:clocks/monotonic-clock@0.2.0")
        .import("wasi:io/poll@0.2.0")
}

/// Each with all of the body that is taken from it.
pub fn bodies() -> Guest {
    holds(
        "(call $body (local.get $request) (i32.const 512))
        (local.set $body (i32.load (i32.const 516)))
        (call $stream (local.get $body) (i32.const 512))
        (local.set $stream (i32.load (i32.const 516)))
        (block $full (loop $more
            (call $room (local.get $stream) (i32.const 512))
            (br_if $full (i64.eqz (i64.load (i32.const 520))))
            (call $write (local.get $stream) (i32.const 131072) (i32.load (i32.const 520)) (i32.const 512))
            (br $more)))
        (call $drop_stream (local.get $stream))
        (call $drop_body (local.get $body))",
    )
}

/// Each with the longest method, path and host that are taken from it.
pub fn texts() -> Guest {
    holds(
        "(drop (call $set_method (local.get $request) (i32.const 9) (i32.const 131072) (i32.const 1048576)))
        (drop (call $set_path (local.get $request) (i32.const 1) (i32.const 131071) (i32.const 65000)))
        (drop (call $set_authority (local.get $request) (i32.const 1) (i32.const 131072) (i32.const 1048576)))",
    )
}

/// Fields with a value of so many bytes.
fn value_of(bytes: u32) -> Guest {
    let append = format!(
        "{LETTERS} (call $append (call $fields) (i32.const 131072) (i32.const 8) (i32.const 131072)
            (i32.const {bytes}) (i32.const 512)) {OK}"
    );
    of(&append)
}

pub fn corpus() -> Vec<Hostile> {
    let hostile = |name, guest: Guest, ends| Hostile::new(name, &guest, ends).with_http();
    vec![
        hostile("holds-bodies-of-requests-that-it-never-sends", bodies(), Reason("timeout")),
        hostile("holds-long-texts-of-requests-that-it-never-sends", texts(), Reason("timeout")),
        hostile("puts-too-much-into-a-header", value_of(20_000), Reason("trap")),
        hostile("puts-much-into-a-header", value_of(15_000), super::Ends::Well),
    ]
}
