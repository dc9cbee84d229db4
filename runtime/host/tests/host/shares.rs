//! Subscriptions whose messages hang, and the others beside them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laneway_core::{Interrupt, Name, SubscriptionKind};
use laneway_host::{Host, HostOptions, Plugin, PluginSpec};

use crate::guest::{Guest, OK, SLEEP};
use crate::support::{run, spec, timed};

/// So long after it was sent, a message has begun at the latest.
const AT_ONCE: Duration = Duration::from_secs(1);

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// One that waits for two minutes.
fn hanging() -> Vec<u8> {
    let guest = Guest::handler(&format!("(call $sleep (i64.const 120000000000)) {OK}")).fields(SLEEP);
    guest.import("wasi:clocks/monotonic-clock@0.2.0").import("wasi:io/poll@0.2.0").build()
}

/// A node with subscriptions that hang, and another one.
struct Node {
    host: Arc<Host>,
    _cache: tempfile::TempDir,
    interrupt: Interrupt,
    hanging: Vec<(Name, u32)>,
}

impl Node {
    fn new(instances_max: u32, hanging: Vec<(Name, u32)>) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let mut concurrency: BTreeMap<Name, u32> = hanging.iter().cloned().collect();
        concurrency.insert(name("neighbour"), 8);
        let cache_dir = Some(cache.path().to_owned());
        let host = Host::new(HostOptions { cache_dir, instances_max, concurrency, ..HostOptions::default() });
        Self { host: host.unwrap(), _cache: cache, interrupt: Interrupt::default(), hanging }
    }

    fn plugin(&self, name: &Name, bytes: &[u8]) -> Arc<Plugin> {
        self.host.plugin(bytes, PluginSpec { name: name.clone(), ..spec(SubscriptionKind::Handler) }).unwrap()
    }

    /// Sends each as many messages as it runs at once, and lets them take what they can.
    async fn hang(&self) {
        let bytes = hanging();
        for (name, concurrency) in &self.hanging {
            let plugin = self.plugin(name, &bytes);
            for _ in 0..*concurrency {
                let (plugin, interrupt) = (plugin.clone(), self.interrupt.clone());
                tokio::spawn(async move {
                    let mut call = timed(Duration::from_secs(60));
                    call.interrupt = interrupt;
                    run(&plugin, call).await
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    /// The longest that one of many messages of the neighbour's took.
    async fn neighbour(&self) -> Duration {
        let plugin = self.plugin(&name("neighbour"), &Guest::handler(OK).build());
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let began = Instant::now();
            run(&plugin, timed(Duration::from_secs(10))).await.result.unwrap();
            longest = longest.max(began.elapsed());
        }
        longest
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_that_hang_do_not_hold_up_another() {
    let many: Vec<(Name, u32)> = (0..33).map(|number| (name(&format!("hung-{number}")), 8)).collect();
    let one = vec![(name("hung"), 256)];
    let more_than_instances = many[..12].to_vec();
    for (instances_max, hanging) in [(256, many), (256, one), (4, more_than_instances)] {
        let node = Node::new(instances_max, hanging);
        node.hang().await;
        let longest = node.neighbour().await;
        node.interrupt.set();
        assert!(longest < AT_ONCE, "{} hang, of {instances_max}: {longest:?}", node.hanging.len());
    }
}

#[tokio::test]
async fn what_is_to_replace_a_plugin_that_hangs_is_checked_at_once() {
    let node = Node::new(1, vec![(name("hung"), 1)]);
    node.hang().await;
    let began = Instant::now();
    node.plugin(&name("hung"), &Guest::handler(OK).build()).validate().await.unwrap();
    node.interrupt.set();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
