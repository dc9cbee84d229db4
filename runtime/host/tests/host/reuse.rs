//! Instances that serve more than one message.

use std::sync::Arc;

use laneway_core::{Reason, SubscriptionKind};
use laneway_host::{Limits, Plugin, PluginSpec};

use crate::guest::{EFFECTS, Guest, OK};
use crate::support::{call, host, retried, run, spec};

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
async fn a_reused_instance_keeps_its_memory_until_it_traps() {
    let plugin = counting(true, Limits::default());
    plugin.validate().await.unwrap();
    assert_eq!(count(&plugin).await, 1);
    assert_eq!(count(&plugin).await, 2);
    let trapped = run(&plugin, call()).await;
    assert_eq!(retried(&trapped).0, Reason::PANIC);
    assert!(trapped.effects.is_empty());
    assert_eq!(count(&plugin).await, 1);
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
