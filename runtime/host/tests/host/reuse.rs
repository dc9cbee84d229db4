//! Instances that serve more than one message.

use std::sync::Arc;
use std::time::Duration;

use laneway_core::{Failure, Reason, SubscriptionKind};
use laneway_host::{Host, HostOptions, HttpAnswer, HttpRequest, Limits, LogLine, Mock, Plugin, PluginSpec};

use crate::guest::{EFFECTS, Guest, OK, SEND, SLEEP};
use crate::support::{call, host, retried, run, spec, timed};

/// Adds the number of its calls so far to a counter named `k`; traps at the third.
fn counting(reuse: bool, limits: Limits) -> Arc<Plugin> {
    let work = format!(
        "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (call $add (i32.const 16) (i32.const 1) (i64.extend_i32_u (global.get $calls)))
        (if (i32.eq (global.get $calls) (i32.const 3)) (then unreachable))
        {OK}"
    );
    let guest = Guest::handler(&work)
        .fields(EFFECTS)
        .fields(r#"(global $calls (mut i32) (i32.const 0)) (data (i32.const 16) "k")"#);
    host().plugin(&guest.build(), PluginSpec { reuse, limits, ..spec(SubscriptionKind::Handler) }).unwrap()
}

async fn count(plugin: &Plugin) -> i64 {
    let done = run(plugin, call()).await;
    done.result.unwrap();
    assert_eq!(done.effects.adds.len(), 1, "effects of an earlier message are gone");
    done.effects.adds[0].1
}

#[tokio::test]
async fn a_fresh_instance_serves_each_message_by_default() {
    let plugin = counting(false, Limits::default());
    for _ in 0..5 {
        assert_eq!(count(&plugin).await, 1);
    }
}

#[tokio::test]
async fn a_message_that_traps_in_a_used_instance_runs_again_in_a_fresh_one() {
    let plugin = counting(true, Limits::default());
    plugin.validate().await.unwrap();
    for _ in 0..3 {
        assert_eq!(count(&plugin).await, 1);
        assert_eq!(count(&plugin).await, 2);
    }
}

#[tokio::test]
async fn a_message_that_traps_in_a_fresh_instance_too_has_failed() {
    let works = "(if (i32.eq (global.get $calls) (i32.const 0)) (then (global.set $calls (i32.const 1)))
        (else unreachable))";
    let fails = "(if (i64.lt_u (i64.load (i32.add (local.get $message) (i32.const 88))) (i64.const 5000))
        (then unreachable))";
    let guest = Guest::handler(&format!("{fails} {works} {OK}")).fields("(global $calls (mut i32) (i32.const 0))");
    let plugin = reused(&guest, Limits::default());
    run(&plugin, call()).await.result.unwrap();
    let failed = run(&plugin, timed(Duration::from_secs(2))).await;
    assert_eq!(retried(&failed).0, Reason::PANIC);
    assert!(failed.effects.is_empty());
    run(&plugin, call()).await.result.unwrap();
}

/// Where nothing comes back from.
struct Silence;

impl Mock for Silence {
    fn answer(&self, _: HttpRequest) -> HttpAnswer {
        HttpAnswer::Timeout
    }

    fn log(&self, _: LogLine) {}
}

/// Ends well the first time, and the second time as `ends` says, after it has sent a request if it `sends`.
fn sending(sends: bool, ends: &str) -> Arc<Plugin> {
    let send = if sends { "(call $send)" } else { "" };
    let work = format!(
        "(if (global.get $calls) (then {send} {ends}))
        (global.set $calls (i32.const 1)) {OK}"
    );
    let guest = Guest::handler(&work).fields(SEND).fields("(global $calls (mut i32) (i32.const 0))");
    let guest = guest.import("wasi:http/types@0.2.0").import("wasi:http/outgoing-handler@0.2.0");
    let host = Host::mocked(HostOptions { instances_max: 4, ..HostOptions::default() }, Arc::new(Silence)).unwrap();
    host.plugin(&guest.build(), PluginSpec { reuse: true, ..spec(SubscriptionKind::Handler) }).unwrap()
}

#[tokio::test]
async fn a_message_that_has_sent_something_does_not_run_again_for_what_a_used_instance_did() {
    // More memory than the limit leaves, and a trap.
    let grow = "(if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))";
    for (ends, why) in [("unreachable", Reason::PANIC), (grow, Reason::MEMORY_LIMIT)] {
        let silent = sending(false, ends);
        for _ in 0..4 {
            assert_eq!(run(&silent, call()).await.result, Ok(()), "it has its attempt again in a fresh instance");
        }
        // In a fresh one it would end well too, and nobody would know what became of the first request.
        let plugin = sending(true, ends);
        for _ in 0..3 {
            run(&plugin, call()).await.result.unwrap();
            match run(&plugin, call()).await.result {
                Err(Failure::UnknownOutcome { reason, .. }) => assert_eq!(reason, why),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn reused(guest: &Guest, limits: Limits) -> Arc<Plugin> {
    let spec = PluginSpec { reuse: true, limits, ..spec(SubscriptionKind::Handler) };
    host().plugin(&guest.build(), spec).unwrap()
}

/// Runs many messages, of which none may fail, and answers the most memory that an instance had.
async fn runs_a_thousand(plugin: &Plugin) -> u64 {
    let mut peak = 0;
    for number in 0..1_000 {
        let done = run(plugin, call()).await;
        assert_eq!(done.result, Ok(()), "message {number}");
        peak = peak.max(done.used.memory_peak_bytes);
    }
    peak
}

#[tokio::test]
async fn what_earlier_messages_leave_behind_fails_no_later_one() {
    // A page of memory each: replaced when half is used.
    let grow = |pages: u32| {
        format!("(if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then unreachable)) {OK}")
    };
    let limits = Limits { memory_bytes_max: 100 << 16, ..Limits::default() };
    let peak = runs_a_thousand(&reused(&Guest::handler(&grow(1)), limits.clone())).await;
    assert!((40 << 16..60 << 16).contains(&peak), "{peak}");
    // More each than there is room for twice, which shows too late to replace the instance.
    runs_a_thousand(&reused(&Guest::handler(&grow(60)), limits)).await;
    // Elements of a table.
    let grow = format!(
        "(if (i32.eq (table.grow $t (ref.null func) (i32.const 10)) (i32.const -1)) (then unreachable)) {OK}"
    );
    let limits = Limits { table_elements_max: 100, ..Limits::default() };
    runs_a_thousand(&reused(&Guest::handler(&grow).fields("(table $t 1 funcref)"), limits)).await;
    // Handles.
    let leak = format!("(drop (call $subscribe (i64.const 1))) {OK}");
    let leak = Guest::handler(&leak).fields(SLEEP);
    let leak = leak.import("wasi:clocks/monotonic-clock@0.2.0").import("wasi:io/poll@0.2.0");
    runs_a_thousand(&reused(&leak, Limits { resources_max: 50, ..Limits::default() })).await;
}

#[tokio::test]
async fn a_runtime_that_needs_most_of_its_memory_is_reused_all_the_same() {
    // 80 of 100 pages at the first message, and no more for the others.
    let work = format!(
        "(if (i32.eqz (global.get $calls)) (then (drop (memory.grow (i32.const 78)))))
        (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (call $add (i32.const 16) (i32.const 1) (i64.extend_i32_u (global.get $calls))) {OK}"
    );
    let guest = Guest::handler(&work).fields(EFFECTS);
    let guest = guest.fields(r#"(global $calls (mut i32) (i32.const 0)) (data (i32.const 16) "k")"#);
    let plugin = reused(&guest, Limits { memory_bytes_max: 100 << 16, ..Limits::default() });
    for wants in 1..10 {
        assert_eq!(count(&plugin).await, wants);
    }
}

#[tokio::test]
async fn a_timeout_in_a_used_instance_is_a_timeout() {
    let work = format!(
        "(if (i32.eq (global.get $calls) (i32.const 1)) (then (loop $again (br $again))))
        (global.set $calls (i32.const 1)) {OK}"
    );
    let guest = Guest::handler(&work).fields("(global $calls (mut i32) (i32.const 0))");
    let plugin = reused(&guest, Limits::default());
    run(&plugin, call()).await.result.unwrap();
    let ended = run(&plugin, timed(Duration::from_millis(200))).await;
    assert_eq!(retried(&ended).0, Reason::TIMEOUT);
}

#[tokio::test]
async fn a_reused_instance_is_replaced_after_its_share_of_messages() {
    let plugin = counting(true, Limits { reuse_max: 2, ..Limits::default() });
    for wants in [1, 2, 1, 2, 1] {
        assert_eq!(count(&plugin).await, wants);
    }
}

#[tokio::test]
async fn idle_instances_make_room_for_other_plugins() {
    // 32 instances are there in all; these keep more than that between them.
    let limits = Limits { reuse_max: 1_000, ..Limits::default() };
    let keepers: Vec<_> = (0..40).map(|_| counting(true, limits.clone())).collect();
    for keeper in &keepers {
        assert_eq!(count(keeper).await, 1);
    }
}
