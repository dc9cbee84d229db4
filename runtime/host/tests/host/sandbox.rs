//! A plugin can harm only itself: each way to misbehave ends that attempt, with its own reason.

use std::time::{Duration, Instant};

use laneway_core::{Failure, Invoker, Reason, SubscriptionKind};
use laneway_host::{Limits, PluginSpec};

use crate::guest::{EFFECTS, FAIL, Guest, LOG, OK};
use crate::support::{call, handler, host, limited, retried, run, spec, timed};

const FOREVER: &str = "(loop $again (br $again)) unreachable";

#[tokio::test(flavor = "current_thread")]
async fn an_endless_loop_times_out_while_a_neighbour_runs_on_the_same_thread() {
    let (endless, neighbour) = (handler(&Guest::handler(FOREVER)), handler(&Guest::handler(OK)));
    // The machine may stand still for a while; a loop that keeps its thread does so each time.
    let mut all = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        let (stuck, (slowest, served)) = tokio::join!(run(&endless, timed(Duration::from_millis(500))), async {
            let mut slowest = Duration::ZERO;
            let mut served = 0;
            while began.elapsed() < Duration::from_millis(400) {
                let at = Instant::now();
                run(&neighbour, call()).await.result.unwrap();
                slowest = slowest.max(at.elapsed());
                served += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (slowest, served)
        });
        assert_eq!(retried(&stuck).0, Reason::TIMEOUT);
        assert!(began.elapsed() < Duration::from_secs(20), "took {:?}", began.elapsed());
        if slowest < Duration::from_millis(200) && served > 20 {
            return;
        }
        all.push((slowest, served));
    }
    panic!("the neighbour's longest wait, and how often it ran: {all:?}");
}

#[tokio::test]
async fn a_loop_before_the_first_call_times_out_too() {
    let plugin = handler(&Guest::handler(OK).fields("(func $start (loop $again (br $again))) (start $start)"));
    assert_eq!(retried(&run(&plugin, timed(Duration::from_millis(100))).await).0, Reason::TIMEOUT);
}

#[tokio::test]
async fn a_memory_bomb_ends_with_memory_limit() {
    let grow = "(loop $more
        (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable))
        (br $more)) unreachable";
    let (reason, text) = retried(&run(&handler(&Guest::handler(grow)), call()).await);
    assert_eq!(reason, Reason::MEMORY_LIMIT);
    assert!(text.contains("16777216"), "{text}");
}

#[tokio::test]
async fn a_guest_that_copes_with_refused_memory_succeeds() {
    let grow = format!("(drop (memory.grow (i32.const 60000))) {OK}");
    run(&handler(&Guest::handler(&grow)), call()).await.result.unwrap();
}

#[tokio::test]
async fn a_table_bomb_ends_with_table_limit() {
    let grow = "(loop $more
        (if (i32.eq (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)) (then unreachable))
        (br $more)) unreachable";
    let plugin = handler(&Guest::handler(grow).fields("(table $t 1 funcref)"));
    assert_eq!(retried(&run(&plugin, call()).await).0, Reason::TABLE_LIMIT);
}

#[tokio::test]
async fn deep_recursion_ends_with_stack_overflow() {
    let recurse = "(func $f (param i64) (result i64) (i64.add (call $f (local.get 0)) (i64.const 1)))";
    let plugin = handler(&Guest::handler("(drop (call $f (i64.const 1))) (i32.const 1024)").fields(recurse));
    assert_eq!(retried(&run(&plugin, call()).await).0, Reason::STACK_OVERFLOW);
}

#[tokio::test]
async fn unreachable_is_a_guest_panic_and_other_traps_are_traps() {
    let (reason, text) = retried(&run(&handler(&Guest::handler("unreachable")), call()).await);
    assert_eq!(reason, Reason::PANIC);
    assert!(text.contains("unreachable") && text.contains("backtrace"), "{text}");
    let divide = "(i32.div_u (i32.const 1) (local.get $i))";
    let (reason, text) = retried(&run(&handler(&Guest::handler(divide)), call()).await);
    assert_eq!(reason, Reason::TRAP);
    assert!(text.contains("divide by zero"), "{text}");
    let wild = "(i32.load (i32.const -8))";
    assert_eq!(retried(&run(&handler(&Guest::handler(wild)), call()).await).0, Reason::TRAP);
    let beyond = "(i32.const -16)";
    assert_eq!(retried(&run(&handler(&Guest::handler(beyond)), call()).await).0, Reason::TRAP);
}

#[tokio::test]
async fn a_huge_answer_ends_with_output_limit() {
    let guest = Guest::handler(
        "(call $fail (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 65536) (i32.const 104857600))",
    )
    .fields(FAIL)
    .pages(1602);
    let plugin = limited(&guest, Limits { memory_bytes_max: 128 << 20, ..Limits::default() });
    let (reason, text) = retried(&run(&plugin, call()).await);
    assert_eq!(reason, Reason::OUTPUT_LIMIT);
    assert!(text.contains("8388608"), "{text}");
}

#[tokio::test]
async fn too_many_effects_end_with_effect_limit() {
    let emit = "(memory.fill (i32.const 4096) (i32.const 97) (i32.const 1024))
    (loop $again
        (call $put (i32.const 4096) (local.get $i) (i32.const 0) (i32.const 1))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const 5000)))) (i32.const 1024)";
    let done = run(&handler(&Guest::handler(emit).fields(EFFECTS)), call()).await;
    let (reason, text) = retried(&done);
    assert_eq!(reason, Reason::EFFECT_LIMIT);
    assert!(text.contains("1000 effects"), "{text}");
    assert!(done.effects.is_empty());
}

#[tokio::test]
async fn a_log_flood_ends_with_log_limit_and_a_little_too_much_log_does_not() {
    let lines = |count: &str| {
        let work = format!(
            "(loop $again
                (call $log (i32.const 2) (i32.const 0) (i32.const 1000) (i32.const 0) (i32.const 0))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const {count})))) (i32.const 1024)"
        );
        handler(&Guest::handler(&work).fields(LOG))
    };
    run(&lines("500"), call()).await.result.unwrap();
    assert_eq!(retried(&run(&lines("1000000"), call()).await).0, Reason::LOG_LIMIT);
}

#[tokio::test]
async fn a_flood_of_resources_ends_with_resource_limit() {
    let clock = r#"(import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration"
        (func $subscribe (param i64) (result i32)));;--"#;
    let work = "(loop $again (drop (call $subscribe (i64.const 1000000000))) (br $again)) unreachable";
    let guest = Guest::handler(work).fields(clock).import("wasi:clocks/monotonic-clock@0.2.0");
    assert_eq!(retried(&run(&handler(&guest), call()).await).0, Reason::RESOURCE_LIMIT);
}

#[tokio::test]
async fn an_interrupt_ends_a_running_guest_and_those_that_begin_later() {
    let plugin = handler(&Guest::handler(FOREVER));
    let call = call();
    let interrupt = call.interrupt.clone();
    let began = Instant::now();
    let later = call.clone();
    let (done, ()) = tokio::join!(run(&plugin, call), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        interrupt.set();
    });
    assert_eq!(done.result, Err(Failure::Interrupted));
    assert_eq!(run(&plugin, later).await.result, Err(Failure::Interrupted));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_calls_than_instances_wait_their_turn() {
    let plugin = handler(&Guest::handler(OK));
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let plugin = plugin.clone();
            tokio::spawn(async move { run(&plugin, call()).await.result })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_publisher_is_ended_as_a_whole_and_may_have_sent() {
    let bytes = Guest::publisher(FOREVER).build();
    let plugin = host().plugin(&bytes, PluginSpec { reuse: true, ..spec(SubscriptionKind::Publisher) }).unwrap();
    let done = plugin.invoke(&[timed(Duration::from_secs(20)), timed(Duration::from_millis(50))]).await;
    assert_eq!(done.len(), 2);
    for invocation in &done {
        assert!(
            matches!(&invocation.result, Err(Failure::UnknownOutcome { reason, .. }) if *reason == Reason::TIMEOUT),
            "{:?}",
            invocation.result
        );
    }
}

#[tokio::test]
async fn a_call_that_its_caller_drops_harms_nobody() {
    let (endless, neighbour) = (handler(&Guest::handler(FOREVER)), handler(&Guest::handler(OK)));
    for _ in 0..100 {
        let dropped = tokio::time::timeout(Duration::from_millis(3), run(&endless, call())).await;
        assert!(dropped.is_err());
        run(&neighbour, call()).await.result.unwrap();
    }
}
