//! An engine on a throw-away SQLite file, with closures for plugins.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use laneway_core::{
    Call, DeadLetterFilter, DeadLetterView, Effects, ErrorText, Failure, Invocation, Invoker, Name, NewMessage,
    PluginDigest, Priority, Reason, RetryPolicy, RetrySchedule, SandboxUse, Store, Subscription, SubscriptionId,
    SubscriptionKind, Topic, TopicPattern, Topology,
};
use laneway_engine::{Binding, Engine, EngineOptions, StatsSnapshot};
use laneway_store::sqlite::{SqliteOptions, SqliteStore};
use laneway_testing::sqlite::{TempFile, temp_file};
use tokio::runtime::Handle;

/// Longest wait of a test for something that should happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a played plugin answers.
pub type Answer = Result<Effects, Failure>;

pub type Play = Arc<dyn Fn(Call) -> std::pin::Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// Makes a plugin of an async closure.
pub fn play<F, T>(function: F) -> Play
where
    F: Fn(Call) -> T + Send + Sync + 'static,
    T: Future<Output = Answer> + Send + 'static,
{
    Arc::new(move |call| Box::pin(function(call)))
}

struct Played {
    play: Play,
    runs: Arc<AtomicU64>,
}

#[async_trait]
impl Invoker for Played {
    async fn invoke(&self, calls: &[Call]) -> Vec<Invocation> {
        let mut invocations = Vec::new();
        for call in calls {
            self.runs.fetch_add(1, Ordering::SeqCst);
            let (result, effects) = match (self.play)(call.clone()).await {
                Ok(effects) => (Ok(()), effects),
                Err(failure) => (Err(failure), Effects::default()),
            };
            let used = SandboxUse { elapsed: Duration::from_micros(1) };
            invocations.push(Invocation { result, effects, plugin: PluginDigest::from_hex("abc"), used });
        }
        invocations
    }
}

pub fn reject(text: &str) -> Failure {
    Failure::Reject { reason: Reason::of_guest("rejected"), error: ErrorText::new(text) }
}

pub fn retry(text: &str) -> Failure {
    Failure::Retry { reason: Reason::of_guest("again"), error: ErrorText::new(text) }
}

pub fn subscription(name: &str) -> Subscription {
    Subscription {
        name: Name::parse(name).unwrap(),
        pattern: TopicPattern::parse("work.>").unwrap(),
        kind: SubscriptionKind::Handler,
        lane_threshold: Priority::NORMAL,
        idempotent: true,
        retry: RetryPolicy {
            schedule: RetrySchedule::Constant,
            base: Duration::from_millis(20),
            cap: Duration::from_millis(20),
            jitter: 0.0,
            max_attempts: 3,
            ..RetryPolicy::default()
        },
        lease: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
        concurrency: 4,
        claim_batch: 64,
        publish_batch: 1,
        review_unknown_outcome: false,
    }
}

pub fn options() -> EngineOptions {
    EngineOptions {
        poll_interval: Duration::from_millis(100),
        grace: Duration::from_millis(500),
        ..EngineOptions::new(Name::parse("test").unwrap())
    }
}

pub fn message(number: usize) -> NewMessage {
    NewMessage::new(Topic::parse("work.item").unwrap(), Bytes::from(number.to_string()))
}

/// A database, and the subscriptions applied to it.
pub struct Rig {
    pub store: Arc<dyn Store>,
    file: TempFile,
    subscriptions: Vec<(Subscription, SubscriptionId)>,
}

/// A running engine and the number of its plugin's runs.
pub struct Running {
    pub engine: Engine,
    pub runs: Arc<AtomicU64>,
}

impl Rig {
    pub async fn new(subscriptions: &[Subscription]) -> Self {
        let file = temp_file().unwrap();
        let store = SqliteStore::open(SqliteOptions::new(file.path())).await.unwrap();
        let topology = Topology { subscriptions: subscriptions.to_vec(), payload_bytes_max: 1 << 20 };
        let applied = store.apply(&topology).await.unwrap();
        let subscriptions = subscriptions
            .iter()
            .map(|s| (s.clone(), applied.subscriptions.iter().find(|(name, _)| *name == s.name).unwrap().1))
            .collect();
        Self { store: Arc::new(store), file, subscriptions }
    }

    /// The same database through another store, as another node has it.
    pub async fn other_store(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(SqliteOptions::new(self.file.path())).await.unwrap())
    }

    /// The same database under another retry policy.
    pub fn with_policy(mut self, retry: RetryPolicy) -> Self {
        self.subscriptions[0].0.retry = retry;
        self
    }

    pub fn id(&self) -> SubscriptionId {
        self.subscriptions[0].1
    }

    pub fn start(&self, play: &Play) -> Running {
        self.start_on(&self.store, play, options())
    }

    pub fn start_on(&self, store: &Arc<dyn Store>, play: &Play, options: EngineOptions) -> Running {
        let runs = Arc::new(AtomicU64::new(0));
        let bindings = self
            .subscriptions
            .iter()
            .map(|(subscription, id)| Binding {
                subscription: subscription.clone(),
                id: *id,
                invoker: Arc::new(Played { play: play.clone(), runs: runs.clone() }),
            })
            .collect();
        Running { engine: Engine::start(store, bindings, options, &Handle::current()), runs }
    }

    pub async fn enqueue(&self, count: usize) {
        let messages: Vec<NewMessage> = (0..count).map(message).collect();
        self.store.enqueue(&messages).await.unwrap();
    }

    /// Deliveries of all subscriptions that are left, of any kind.
    pub async fn left(&self) -> u64 {
        let status = self.store.status().await.unwrap();
        status.subscriptions.iter().flat_map(|s| &s.lanes).map(|lane| lane.due + lane.leased + lane.delayed).sum()
    }

    pub async fn wait_until_empty(&self) {
        let started = Instant::now();
        while self.left().await > 0 {
            assert!(started.elapsed() < PATIENCE, "{} deliveries are left", self.left().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn dead_letters(&self) -> Vec<DeadLetterView> {
        self.store.dead_letters(&DeadLetterFilter { limit: 1000, ..DeadLetterFilter::default() }).await.unwrap()
    }

    pub async fn state(&self, key: &str) -> Option<String> {
        let entry = self.store.state(&self.subscriptions[0].0.name, key).await.unwrap();
        entry.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap())
    }
}

impl Running {
    pub fn stats(&self) -> StatsSnapshot {
        self.engine.stats().snapshot()
    }

    pub async fn wait_for(&self, what: &str, reached: impl Fn(StatsSnapshot) -> bool) {
        let started = Instant::now();
        while !reached(self.stats()) {
            assert!(started.elapsed() < PATIENCE, "waited in vain for {what}: {:?}", self.stats());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A handler that counts up the number under one key: what loses or doubles an effect shows in the sum.
pub fn count_up(key: &'static str) -> Play {
    play(move |call| async move {
        let entry = call.state.get(key).await.map_err(|error| retry(&error.to_string()))?;
        let number: u64 = entry
            .as_ref()
            .map_or(0, |entry| String::from_utf8_lossy(&entry.value).parse().expect("the state holds a number"));
        Ok(Effects {
            reads: vec![(key.into(), entry.map(|entry| entry.version))],
            writes: vec![(key.into(), Some(Bytes::from((number + 1).to_string())))],
            ..Effects::default()
        })
    })
}
