//! WASI is there, and grants nothing.

use std::time::{Duration, Instant};

use laneway_core::Reason;

use crate::guest::{Guest, OK, SLEEP};
use crate::support::{Captured, call, handler, retried, run, timed};

#[tokio::test]
async fn a_guest_that_sleeps_wakes_up_or_ends_with_its_attempt() {
    let sleeper = |nanoseconds: u64| {
        let guest = Guest::handler(&format!("(call $sleep (i64.const {nanoseconds})) {OK}")).fields(SLEEP);
        handler(&guest.import("wasi:clocks/monotonic-clock@0.2.0").import("wasi:io/poll@0.2.0"))
    };
    let began = Instant::now();
    run(&sleeper(20_000_000), call()).await.result.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(20));
    let began = Instant::now();
    let done = run(&sleeper(60_000_000_000), timed(Duration::from_millis(50))).await;
    assert_eq!(retried(&done).0, Reason::TIMEOUT);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_guest_has_no_arguments() {
    let work = format!("(call $args (i32.const 512)) (if (i32.load (i32.const 516)) (then unreachable)) {OK}");
    let guest = Guest::handler(&work)
        .fields(r#"(import "wasi:cli/environment@0.2.0" "get-arguments" (func $args (param i32)));;--"#)
        .import("wasi:cli/environment@0.2.0");
    run(&handler(&guest), call()).await.result.unwrap();
}

#[tokio::test]
async fn standard_output_becomes_log_lines_and_a_flood_of_it_ends_the_attempt() {
    let printer = |end: &str| {
        let work = format!(
            "(local.set $i (call $stdout))
            (loop $again
                (call $write (local.get $i) (i32.const 16) (i32.const 2048) (i32.const 512))
                {end})
            {OK}"
        );
        let guest = Guest::handler(&work)
            .fields(
                r#"(import "wasi:cli/stdout@0.2.0" "get-stdout" (func $stdout (result i32)))
                (import "wasi:io/streams@0.2.0" "[method]output-stream.write"
                    (func $write (param i32 i32 i32 i32)));;--"#,
            )
            .fields(r#"(data (i32.const 16) "first line\nsecond line\n")"#);
        handler(&guest.import("wasi:cli/stdout@0.2.0").import("wasi:io/streams@0.2.0"))
    };
    let logged = Captured::default();
    let quiet = {
        let _guard = tracing::subscriber::set_default(logged.subscriber());
        run(&printer(""), call()).await
    };
    quiet.result.unwrap();
    let text = logged.text();
    assert!(text.contains("INFO laneway::plugin: first line") && text.contains("second line"), "{text}");
    assert!(text.contains("subscription=test"), "{text}");
    assert_eq!(retried(&run(&printer("(br $again)"), call()).await).0, Reason::LOG_LIMIT);
}
