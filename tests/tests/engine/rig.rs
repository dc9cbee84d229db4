//! An engine on a throw-away database, with closures for plugins.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use laneway_core::{
    Call, DeadLetterFilter, DeadLetterView, Effects, ErrorText, Failure, Invocation, Invoker, Lane, Name,
    NewMessage, PluginDigest, Priority, Reason, RetryPolicy, RetrySchedule, SandboxUse, Store, Subscription,
    SubscriptionId, SubscriptionKind, Topic, TopicPattern, Topology,
};
use laneway_engine::{Binding, Engine, EngineOptions, Runs, StatsSnapshot};
use laneway_store::Storage;
use laneway_testing::postgres::{TestDatabase, test_database};
use laneway_testing::skip;
use laneway_testing::sqlite::{TempFile, temp_file};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, SqliteConnection};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Longest wait of a test for something that should happen, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Largest payload that the outbox of a rig accepts.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

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
    fn digest(&self) -> PluginDigest {
        PluginDigest::from_hex("played")
    }

    async fn invoke(&self, calls: &[Call]) -> Vec<Invocation> {
        let mut invocations = Vec::new();
        for call in calls {
            self.runs.fetch_add(1, Ordering::SeqCst);
            let (result, effects) = match (self.play)(call.clone()).await {
                Ok(effects) => (Ok(()), effects),
                Err(failure) => (Err(failure), Effects::default()),
            };
            let used = SandboxUse { elapsed: Duration::from_micros(1), ..SandboxUse::default() };
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
        ordering: laneway_core::Ordering::None,
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
        backfill_min_share: 0.0,
        rate_limit: None,
        cluster_concurrency: None,
        destination: None,
        breaker: None,
        throttle_max: laneway_core::THROTTLE_MAX_DEFAULT,
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

/// Which database a test runs on.
#[derive(Debug, Clone, Copy)]
pub enum On {
    Sqlite,
    Postgres,
}

/// Makes each function a test on both databases, `sqlite::...` and `postgres::...`.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name($crate::rig::On::Sqlite).await;
                }
            )+
        }

        mod postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    let test = concat!(module_path!(), "::", stringify!($name));
                    if $crate::rig::has_postgres(test) {
                        super::$name($crate::rig::On::Postgres).await;
                    }
                }
            )+
        }
    };
}

/// Whether there is a PostgreSQL server; without one the test is skipped.
pub fn has_postgres(test: &str) -> bool {
    let has = test_database().unwrap().is_some();
    if !has {
        skip(test, "no PostgreSQL server on this machine");
    }
    has
}

/// Which database a rig has, and what of it is to be kept until the end.
enum Database {
    Sqlite(TempFile),
    Postgres(TestDatabase),
    /// Of a server that the test has to itself.
    Lone(String),
}

impl Database {
    /// The database as a node opens it. `node` is what PostgreSQL shows for its sessions.
    fn storage(&self, node: &str) -> Storage {
        Storage::parse(&match self {
            Self::Sqlite(file) => format!("sqlite://{}", file.path().display()),
            Self::Postgres(database) => format!("{}?application_name={node}", database.url),
            Self::Lone(url) => format!("{url}?application_name={node}"),
        })
        .unwrap()
    }
}

/// A database, and the subscriptions applied to it.
pub struct Rig {
    pub store: Arc<dyn Store>,
    subscriptions: Vec<(Subscription, SubscriptionId)>,
    // Dropped last: the database goes when nothing is connected to it.
    database: Database,
}

/// A running engine and the number of its plugin's runs.
pub struct Running {
    pub engine: Engine,
    pub runs: Arc<AtomicU64>,
}

/// The node that [`Rig::store`] is of.
pub const NODE: &str = "node-of-the-rig";

impl Rig {
    pub async fn new(on: On, subscriptions: &[Subscription]) -> Self {
        let database = match on {
            On::Sqlite => Database::Sqlite(temp_file().unwrap()),
            On::Postgres => Database::Postgres(test_database().unwrap().expect("there is a server")),
        };
        Self::with(database, subscriptions).await
    }

    /// In an empty PostgreSQL database of the test's own.
    pub async fn at(url: &str, subscriptions: &[Subscription]) -> Self {
        Self::with(Database::Lone(url.to_owned()), subscriptions).await
    }

    async fn with(database: Database, subscriptions: &[Subscription]) -> Self {
        let storage = database.storage(NODE);
        storage.migrate().await.unwrap();
        let store = storage.open().await.unwrap();
        let topology = Topology { subscriptions: subscriptions.to_vec(), payload_bytes_max: PAYLOAD_BYTES_MAX };
        let applied = store.apply(&topology).await.unwrap();
        let subscriptions = subscriptions
            .iter()
            .map(|s| (s.clone(), applied.subscriptions.iter().find(|(name, _)| *name == s.name).unwrap().1))
            .collect();
        Self { store, subscriptions, database }
    }

    /// The same database through another store, as another node has it.
    pub async fn other_store(&self) -> Arc<dyn Store> {
        self.database.storage("other-node").open().await.unwrap()
    }

    /// Connects to a SQLite database as a plain client, which waits for no lock.
    pub async fn sqlite(&self) -> SqliteConnection {
        let Database::Sqlite(file) = &self.database else { panic!("the database is on PostgreSQL") };
        let options = SqliteConnectOptions::new().filename(file.path()).busy_timeout(Duration::ZERO);
        options.connect().await.unwrap()
    }

    /// Connects to a PostgreSQL database as a plain client.
    pub async fn postgres(&self) -> PgConnection {
        let url = match &self.database {
            Database::Postgres(database) => &database.direct_url,
            Database::Lone(url) => url,
            Database::Sqlite(_) => panic!("the database is on SQLite"),
        };
        PgConnection::connect(url).await.unwrap()
    }

    /// The same database under another retry policy.
    pub fn with_policy(mut self, retry: RetryPolicy) -> Self {
        self.subscriptions[0].0.retry = retry;
        self
    }

    /// The same database, under leases of this length from now on.
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.subscriptions[0].0.lease = lease;
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
        let invoker: Arc<dyn Invoker> = Arc::new(Played { play: play.clone(), runs: runs.clone() });
        Running {
            engine: Engine::start(store, self.bindings(&Runs::Fixed(invoker)), vec![], options, &Handle::current()),
            runs,
        }
    }

    /// Starts an engine with a plugin that is not played. Its runs are not counted.
    pub fn start_plugin(&self, invoker: &Arc<dyn Invoker>) -> Running {
        let engine = Engine::start(
            &self.store,
            self.bindings(&Runs::Fixed(invoker.clone())),
            vec![],
            options(),
            &Handle::current(),
        );
        Running { engine, runs: Arc::default() }
    }

    /// Starts an engine whose subscriptions all run this.
    pub fn start_runs(&self, store: &Arc<dyn Store>, runs: &Runs, options: EngineOptions) -> Engine {
        Engine::start(store, self.bindings(runs), vec![], options, &Handle::current())
    }

    fn bindings(&self, runs: &Runs) -> Vec<Binding> {
        let binding = |(subscription, id): &(Subscription, SubscriptionId)| Binding {
            subscription: subscription.clone(),
            id: *id,
            runs: runs.clone(),
        };
        self.subscriptions.iter().map(binding).collect()
    }

    pub async fn enqueue(&self, count: usize) {
        let messages: Vec<NewMessage> = (0..count).map(message).collect();
        self.store.enqueue(&messages).await.unwrap();
    }

    /// Deliveries of all subscriptions that are left, of any kind.
    pub async fn left(&self) -> u64 {
        let status = self.store.status().await.unwrap();
        status
            .subscriptions
            .iter()
            .flat_map(|s| &s.lanes)
            .map(|lane| lane.due + lane.parked + lane.leased + lane.delayed)
            .sum()
    }

    /// Deliveries of one lane that a node holds.
    pub async fn leased(&self, lane: Lane) -> u64 {
        let status = self.store.status().await.unwrap();
        status.subscriptions.iter().flat_map(|s| &s.lanes).filter(|of| of.lane == lane).map(|of| of.leased).sum()
    }

    pub async fn wait_until_empty(&self) {
        let empty = comes(async || self.left().await == 0).await;
        assert!(empty, "{} deliveries are left", self.left().await);
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

    /// Drains, and answers what it has done in all: a commit is seen in the database before it is counted.
    pub async fn drained(self) -> StatsSnapshot {
        let stats = self.engine.stats().clone();
        let report = self.engine.drain().await;
        assert!(report.complete, "{report:?}");
        stats.snapshot()
    }

    pub async fn wait_for(&self, what: &str, reached: impl Fn(StatsSnapshot) -> bool) {
        assert!(comes(async || reached(self.stats())).await, "waited in vain for {what}: {:?}", self.stats());
    }
}

/// Waits for something that should come; answers whether it did.
pub async fn comes(mut reached: impl AsyncFnMut() -> bool) -> bool {
    let started = Instant::now();
    while !reached().await {
        if started.elapsed() > PATIENCE {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// Where played plugins stand until it is opened, once for all.
#[derive(Clone)]
pub struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self::closed()
    }
}

impl Gate {
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub fn open(&self) {
        self.0.add_permits(1);
    }

    pub async fn pass(&self) {
        // The permit goes back at once, for the next.
        drop(self.0.acquire().await.expect("a gate is never torn down"));
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
