//! What the sandbox costs: microseconds for one message, with a fresh instance and with one that is reused.
//!
//! The guest writes one log line and reads the whole body of the message, which has 90 bytes.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use laneway_core::{
    Attempt, Call, Interrupt, Invoker, Lane, Message, MessageId, Name, Priority, StateEntry, StateError, StateView,
    SubscriptionKind, Topic,
};
use laneway_host::{Grants, Host, HostOptions, Limits, PluginSpec};

#[expect(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../tests/host/guest.rs"]
mod guest;

use guest::{Guest, LOG, OK};

const MESSAGES: u32 = 20_000;

struct NoState;

#[async_trait]
impl StateView for NoState {
    async fn get(&self, _: &str) -> Result<Option<StateEntry>, StateError> {
        Ok(None)
    }

    async fn counter(&self, _: &str) -> Result<i64, StateError> {
        Ok(0)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let work = format!(
        "(call $log (i32.const 2) (i32.const 16) (i32.const 5) (i32.const 0) (i32.const 0))
        (loop $again
            (drop (i32.load8_u (i32.add (i32.load (i32.add (local.get $message) (i32.const 60))) (local.get $i))))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.load (i32.add (local.get $message) (i32.const 64))))))
        {OK}"
    );
    let component = Guest::handler(&work).fields(LOG).fields(r#"(data (i32.const 16) "hello")"#).pages(17).build();
    // A component from the command line instead, such as one that was built from Rust.
    let component = match std::env::args_os().nth(1) {
        Some(path) => std::fs::read(path)?,
        None => component,
    };
    let host = Host::new(HostOptions::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let message = Message {
        id: MessageId::generate(),
        topic: Topic::parse("orders.created")?,
        key: None,
        priority: Priority::NORMAL,
        payload: Bytes::from(format!("{{\"order\":\"{}\"}}", "7".repeat(78))),
        content_type: "application/json".to_owned(),
        headers: Vec::new(),
        tenant: None,
    };
    let attempt = Attempt {
        number: 1,
        max: 5,
        lane: Lane::Primary,
        timeout: Duration::from_secs(10),
        maybe_duplicate: false,
    };
    let call =
        Call { message: Arc::new(message), attempt, state: Arc::new(NoState), interrupt: Interrupt::default() };
    for (name, reuse) in [("fresh instance a message", false), ("instance reused", true)] {
        let spec = PluginSpec {
            name: Name::parse("overhead")?,
            kind: SubscriptionKind::Handler,
            config: BTreeMap::new(),
            grants: Grants::default(),
            limits: Limits { reuse_max: u32::MAX, ..Limits::default() },
            reuse,
            payload_bytes_max: 1 << 20,
        };
        let plugin = host.plugin(&component, spec)?;
        let mut inside: Vec<Duration> = Vec::with_capacity(MESSAGES as usize);
        let mut took = Duration::ZERO;
        for round in 0..2 {
            // The first round warms up: slots of the pool, the allocator, the processor's caches.
            inside.clear();
            let began = Instant::now();
            runtime.block_on(async {
                for _ in 0..MESSAGES {
                    for done in plugin.invoke(std::slice::from_ref(&call)).await {
                        if let Err(failure) = done.result {
                            return Err(format!("round {round}: {failure:?}"));
                        }
                        inside.push(done.used.elapsed);
                    }
                }
                Ok(())
            })?;
            took = began.elapsed();
        }
        inside.sort_unstable();
        println!(
            "{name}: {:.1} µs a message; inside p50 {:.1} µs, p99 {:.1} µs",
            took.as_secs_f64() * 1e6 / f64::from(MESSAGES),
            inside[inside.len() / 2].as_secs_f64() * 1e6,
            inside[inside.len() * 99 / 100].as_secs_f64() * 1e6,
        );
    }
    Ok(())
}
