//! What an attempt used is told apart: the processor's time, the time as a whole, the memory.

use std::time::Duration;

use laneway_core::{Invoker, SubscriptionKind};
use laneway_host::Limits;

use crate::guest::{Guest, OK, SLEEP};
use crate::support::{call, handler, host, limited, run, spec, timed};

#[tokio::test]
async fn time_at_work_is_told_from_time_that_is_waited() {
    let sleeper = Guest::handler(&format!("(call $sleep (i64.const 100000000)) {OK}")).fields(SLEEP);
    let sleeper = handler(&sleeper.import("wasi:clocks/monotonic-clock@0.2.0").import("wasi:io/poll@0.2.0"));
    let used = run(&sleeper, call()).await.used;
    assert!(used.elapsed >= Duration::from_millis(100), "{used:?}");
    assert!(used.guest > Duration::ZERO && used.guest < Duration::from_millis(50), "{used:?}");
    let busy = handler(&Guest::handler("(loop $again (br $again)) unreachable"));
    let used = run(&busy, timed(Duration::from_millis(100))).await.used;
    assert!(used.guest >= Duration::from_millis(50) && used.guest <= used.elapsed, "{used:?}");
}

#[tokio::test]
async fn the_memory_is_what_the_guest_had_at_its_largest() {
    let grower = Guest::handler(&format!("(drop (memory.grow (i32.const 10))) {OK}")).pages(3);
    assert_eq!(run(&handler(&grower), call()).await.used.memory_peak_bytes, 13 << 16);
    let greedy = Guest::handler("(drop (memory.grow (i32.const 10))) unreachable").pages(3);
    let limits = Limits { memory_bytes_max: 5 << 16, ..Limits::default() };
    assert_eq!(run(&limited(&greedy, limits), call()).await.used.memory_peak_bytes, 3 << 16, "what it was refused");
}

#[tokio::test]
async fn the_messages_of_a_batch_share_its_time() {
    let bytes = Guest::publisher("unreachable").build();
    let plugin = host().plugin(&bytes, spec(SubscriptionKind::Publisher)).unwrap();
    let done = plugin.invoke(&[call(), call(), call()]).await;
    assert!(
        done.iter().all(|it| it.used == done[0].used && it.used.guest <= it.used.elapsed),
        "{:?}",
        done[0].used
    );
}
