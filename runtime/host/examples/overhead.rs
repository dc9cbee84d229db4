//! What the sandbox costs: microseconds for one message, with a fresh instance and with one that is reused; and before
//! that, what it takes to load the component.
//!
//! The guest writes one log line and reads the whole body of the message, which has 90 bytes. Arguments put another
//! component in its place: `overhead [COMPONENT [handler|publisher [PAYLOAD [MEMORY_MIB]]]]`.

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
use laneway_host::{Grants, Host, HostOptions, Limits, Plugin, PluginSpec};

#[expect(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../tests/host/guest.rs"]
mod guest;

use guest::{Guest, LOG, OK};

/// Messages of one round at most.
const MESSAGES: usize = 20_000;
/// A round ends after this time, if that is sooner: some languages take milliseconds for a message.
const ROUND: Duration = Duration::from_secs(3);

/// What is measured, from the command line.
struct Subject {
    component: Vec<u8>,
    kind: SubscriptionKind,
    payload: String,
    memory_bytes_max: usize,
}

impl Subject {
    fn from_arguments() -> Result<Self, Box<dyn Error>> {
        let mut arguments = std::env::args().skip(1);
        let component = match arguments.next() {
            Some(path) => std::fs::read(path)?,
            None => small(),
        };
        let kind = match arguments.next().as_deref() {
            None | Some("handler") => SubscriptionKind::Handler,
            Some("publisher") => SubscriptionKind::Publisher,
            Some(other) => return Err(format!("`{other}` is neither `handler` nor `publisher`").into()),
        };
        let payload = arguments.next().unwrap_or_else(|| format!("{{\"order\":\"{}\"}}", "7".repeat(78)));
        let mib: usize = arguments.next().as_deref().unwrap_or("64").parse()?;
        Ok(Self { component, kind, payload, memory_bytes_max: mib << 20 })
    }

    fn load(&self, host: &Arc<Host>, reuse: bool) -> Result<Arc<Plugin>, Box<dyn Error>> {
        let limits = Limits { reuse_max: u32::MAX, memory_bytes_max: self.memory_bytes_max, ..Limits::default() };
        Ok(host.plugin(
            &self.component,
            PluginSpec {
                name: Name::parse("overhead")?,
                kind: self.kind,
                config: BTreeMap::new(),
                grants: Grants::default(),
                limits,
                reuse,
                payload_bytes_max: 1 << 20,
            },
        )?)
    }
}

/// The smallest guest that does something.
fn small() -> Vec<u8> {
    let work = format!(
        "(call $log (i32.const 2) (i32.const 16) (i32.const 5) (i32.const 0) (i32.const 0))
        (loop $again
            (drop (i32.load8_u (i32.add (i32.load (i32.add (local.get $message) (i32.const 60))) (local.get $i))))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.load (i32.add (local.get $message) (i32.const 64))))))
        {OK}"
    );
    Guest::handler(&work).fields(LOG).fields(r#"(data (i32.const 16) "hello")"#).pages(17).build()
}

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
    let subject = Subject::from_arguments()?;
    let call = call(&subject.payload)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cache = tempfile::tempdir()?;
    let options = HostOptions { cache_dir: Some(cache.path().into()), ..HostOptions::default() };
    let host = Host::new(options)?;

    let timed = |reuse| {
        let began = Instant::now();
        let plugin = subject.load(&host, reuse)?;
        Ok::<_, Box<dyn Error>>((plugin, began.elapsed()))
    };
    let (_, compiled) = timed(false)?;
    let (plugin, loaded) = timed(false)?;
    let first = runtime.block_on(invoke(&plugin, &call))?;
    println!(
        "{} bytes: compiled in {compiled:.0?}, from the cache in {loaded:.1?}, first message {first:.1?}",
        subject.component.len()
    );

    for (name, reuse) in [("fresh instance a message", false), ("instance reused", true)] {
        let plugin = subject.load(&host, reuse)?;
        // The first round warms up: slots of the pool, the allocator, the processor's caches.
        runtime.block_on(round(&plugin, &call))?;
        let (mut inside, took) = runtime.block_on(round(&plugin, &call))?;
        inside.sort_unstable();
        let messages = inside.len() as f64;
        println!(
            "{name}: {:.1} µs a message, {:.0}/s; inside p50 {:.1} µs, p99 {:.1} µs",
            took.as_secs_f64() * 1e6 / messages,
            messages / took.as_secs_f64(),
            inside[inside.len() / 2].as_secs_f64() * 1e6,
            inside[inside.len() * 99 / 100].as_secs_f64() * 1e6,
        );
    }
    Ok(())
}

/// Sends messages one after the other: the time that each was inside, and that of all together.
async fn round(plugin: &Plugin, call: &Call) -> Result<(Vec<Duration>, Duration), String> {
    let mut inside = Vec::with_capacity(MESSAGES);
    let began = Instant::now();
    while inside.len() < MESSAGES && began.elapsed() < ROUND {
        inside.push(invoke(plugin, call).await?);
    }
    Ok((inside, began.elapsed()))
}

async fn invoke(plugin: &Plugin, call: &Call) -> Result<Duration, String> {
    let mut elapsed = Duration::ZERO;
    for done in plugin.invoke(std::slice::from_ref(call)).await {
        done.result.map_err(|failure| format!("{failure:?}"))?;
        elapsed += done.used.elapsed;
    }
    Ok(elapsed)
}

fn call(payload: &str) -> Result<Call, Box<dyn Error>> {
    let message = Message {
        id: MessageId::generate(),
        topic: Topic::parse("orders.created")?,
        key: None,
        priority: Priority::NORMAL,
        payload: Bytes::from(payload.to_owned()),
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
    Ok(Call { message: Arc::new(message), attempt, state: Arc::new(NoState), interrupt: Interrupt::default() })
}
