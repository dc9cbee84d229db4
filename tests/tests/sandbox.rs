//! Hostile guests end with a reason of their own, and harm nobody else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laneway_core::{
    DeadLetterFilter, Name, NewMessage, Priority, RetryPolicy, RetrySchedule, Store, Subscription,
    SubscriptionKind, Topic, TopicPattern, Topology,
};
use laneway_engine::{Binding, Engine, EngineOptions, Runs};
use laneway_host::{Grants, Host, HostOptions, Limits, PluginSpec};
use laneway_store::sqlite::{SqliteOptions, SqliteStore};
use laneway_tests::plugin;

/// Messages of the neighbour.
const NEIGHBOUR: usize = 10_000;
/// Timeout of what loops, which uses it up.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of all else, which ends by itself, however busy the loops keep the threads.
const LONG: Duration = Duration::from_secs(60);
/// Longest wait for all of it.
const PATIENCE: Duration = Duration::from_secs(180);

/// Memory of a guest: enough to make an answer of 100 MB, twice.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// What the guest does, and the reason that its attempt ends with.
const HARM: [(&str, &str); 12] = [
    ("loop", "timeout"),
    ("alloc", "memory_limit"),
    ("trap", "trap"),
    ("unreachable", "guest_panic"),
    ("panic on purpose", "guest_panic"),
    ("recurse", "stack_overflow"),
    ("recurse-memory", "trap"),
    ("big-return", "output_limit"),
    ("flood-log", "log_limit"),
    ("flood-state", "effect_limit"),
    ("flood-emit", "effect_limit"),
    ("flood-resources", "resource_limit"),
];

fn subscription(name: &str, topic: &str, timeout: Duration) -> Subscription {
    Subscription {
        name: Name::parse(name).unwrap(),
        pattern: TopicPattern::parse(topic).unwrap(),
        kind: SubscriptionKind::Handler,
        lane_threshold: Priority::NORMAL,
        ordering: laneway_core::Ordering::None,
        idempotent: true,
        retry: RetryPolicy { schedule: RetrySchedule::None, ..RetryPolicy::default() },
        lease: LONG,
        timeout,
        concurrency: 4,
        claim_batch: 512,
        publish_batch: 1,
        review_unknown_outcome: false,
        backfill_min_share: 0.0,
        rate_limit: None,
        cluster_concurrency: None,
        destination: None,
        breaker: None,
        throttle_max: laneway_core::THROTTLE_MAX_DEFAULT,
    }
}

fn spec(name: &Name, reuse: bool) -> PluginSpec {
    PluginSpec {
        name: name.clone(),
        kind: SubscriptionKind::Handler,
        config: BTreeMap::new(),
        grants: Grants { emit: vec![TopicPattern::parse(">").unwrap()], ..Grants::default() },
        limits: Limits { memory_bytes_max: MEMORY_BYTES_MAX, ..Limits::default() },
        reuse,
        payload_bytes_max: 1 << 20,
    }
}

async fn hostile_guests_harm_only_themselves(reuse: bool) {
    let file = laneway_testing::sqlite::temp_file().unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(SqliteOptions::new(file.path())).await.unwrap());
    let topology = Topology {
        subscriptions: vec![
            subscription("loop", "loop.>", TIMEOUT),
            subscription("hostile", "hostile.>", LONG),
            subscription("neighbour", "neighbour.>", LONG),
        ],
        payload_bytes_max: 1 << 20,
    };
    let applied = store.apply(&topology).await.unwrap();
    let options = HostOptions { memory_bytes_max: MEMORY_BYTES_MAX, instances_max: 32, ..HostOptions::default() };
    let host = Host::new(options).unwrap();
    let guests = [plugin("hostile"), plugin("hostile"), plugin("noop")];
    let mut bindings = Vec::new();
    for (subscription, guest) in topology.subscriptions.iter().zip(guests) {
        let bytes = std::fs::read(guest).unwrap();
        let invoker = host.plugin(&bytes, spec(&subscription.name, reuse)).unwrap();
        let id = applied.subscriptions.iter().find(|(name, _)| *name == subscription.name).unwrap().1;
        bindings.push(Binding { subscription: subscription.clone(), id, runs: Runs::Fixed(invoker) });
    }
    let message = |topic: &str, payload: &str| NewMessage::new(Topic::parse(topic).unwrap(), payload.to_owned());
    let neighbours: Vec<_> = (0..NEIGHBOUR).map(|n| message("neighbour.item", &n.to_string())).collect();
    store.enqueue(&neighbours).await.unwrap();
    let topic = |harm: &str| if harm == "loop" { "loop.item" } else { "hostile.item" };
    let harm: Vec<_> =
        HARM.iter().cycle().take(HARM.len() * 3).map(|(harm, _)| message(topic(harm), harm)).collect();
    store.enqueue(&harm).await.unwrap();

    let sandbox = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let engine_options = EngineOptions::new(Name::parse("test").unwrap());
    let engine = Engine::start(&store, bindings, vec![], engine_options, sandbox.handle());
    let started = Instant::now();
    loop {
        let stats = engine.stats().snapshot();
        if stats.completed == NEIGHBOUR as u64 && stats.dead_lettered == harm.len() as u64 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    engine.drain().await;
    sandbox.shutdown_background();

    let dead = store.dead_letters(&DeadLetterFilter { limit: 100, ..DeadLetterFilter::default() }).await.unwrap();
    for (sent, (word, reason)) in harm.iter().zip(HARM.iter().cycle()) {
        let letter = dead.iter().find(|letter| letter.message_id == sent.id).expect("each harm is a dead letter");
        assert_eq!(&letter.reason, reason, "{word}: {}", letter.error);
        assert!(letter.plugin.is_some() && !letter.error.is_empty(), "{letter:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_guests_in_fresh_instances_harm_only_themselves() {
    hostile_guests_harm_only_themselves(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_guests_in_reused_instances_harm_only_themselves() {
    hostile_guests_harm_only_themselves(true).await;
}
