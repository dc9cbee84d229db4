//! A fresh database for each test, and short words for what tests do with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laneway_core::{
    AppliedTopology, Batch, ClaimRequest, Lane, Message, MessageId, Name, NewMessage, Ordering, Priority,
    RetryPolicy, SettleReport, Settlement, StateRead, StateVersion, StateWrite, Store, Subscription,
    SubscriptionId, SubscriptionKind, Topic, TopicPattern, Topology, Verdict,
};
use laneway_store::Storage;
use laneway_testing::postgres::{self, TestDatabase};
use laneway_testing::skip;
use laneway_testing::sqlite::{self, TempFile};

use crate::sql::Sql;

/// Longer than any test: a lease or a delay of this length does not end by itself.
pub const HOUR: Duration = Duration::from_secs(3600);

/// Longest wait for something that must come, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Largest payload that the tests' topologies accept.
pub const PAYLOAD_BYTES_MAX: u32 = 64 * 1024;

/// Makes each function a test on both databases, `sqlite::...` and `postgres::...`.
macro_rules! conformance {
    ($($(#[$meta:meta])* async fn $name:ident($fixture:ident: &Fixture) $body:block)+) => {
        $($(#[$meta])* async fn $name($fixture: &$crate::fixture::Fixture) $body)+

        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    $crate::fixture::on_sqlite(super::$name).await;
                }
            )+
        }

        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let test = concat!(module_path!(), "::", stringify!($name));
                    $crate::fixture::on_postgres(test, super::$name).await;
                }
            )+
        }
    };
}

/// Which database a test runs on, and what of it is to be kept until the end.
enum Database {
    Sqlite(TempFile),
    Postgres(TestDatabase),
}

/// One test's database, opened by one node.
pub struct Fixture {
    pub store: Arc<dyn Store>,
    // Dropped last: the database goes when nothing is connected to it.
    database: Database,
}

pub async fn on_sqlite(test: impl AsyncFnOnce(&Fixture)) {
    let file = sqlite::temp_file().unwrap();
    test(&Fixture::new(Database::Sqlite(file)).await).await;
}

pub async fn on_postgres(name: &str, test: impl AsyncFnOnce(&Fixture)) {
    match postgres::test_database().unwrap() {
        Some(database) => test(&Fixture::new(Database::Postgres(database)).await).await,
        None => skip(name, "no PostgreSQL server on this machine"),
    }
}

impl Database {
    fn storage(&self) -> Storage {
        Storage::parse(&match self {
            Self::Sqlite(file) => format!("sqlite://{}", file.path().display()),
            Self::Postgres(database) => database.url.clone(),
        })
        .unwrap()
    }
}

impl Fixture {
    async fn new(database: Database) -> Self {
        database.storage().migrate().await.unwrap();
        let store = database.storage().open().await.unwrap();
        Self { store, database }
    }

    pub fn storage(&self) -> Storage {
        self.database.storage()
    }

    pub fn is_sqlite(&self) -> bool {
        matches!(self.database, Database::Sqlite(_))
    }

    /// Where a SQLite database is.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.database {
            Database::Sqlite(file) => Some(file.path().to_owned()),
            Database::Postgres(_) => None,
        }
    }

    /// Opens the database once more, as another node does.
    pub async fn another_node(&self) -> Arc<dyn Store> {
        self.storage().open().await.unwrap()
    }

    /// The same, under a name that PostgreSQL shows for its sessions.
    pub async fn another_node_named(&self, name: &str) -> Arc<dyn Store> {
        let Database::Postgres(database) = &self.database else { return self.another_node().await };
        let storage = Storage::parse(&format!("{}?application_name={name}", database.url)).unwrap();
        storage.open().await.unwrap()
    }

    /// Connects as a plain client.
    pub async fn sql(&self) -> Sql {
        match &self.database {
            Database::Sqlite(file) => Sql::sqlite(file.path()).await,
            Database::Postgres(database) => Sql::postgres(&database.direct_url).await,
        }
    }

    pub async fn apply(&self, subscriptions: Vec<Subscription>) -> AppliedTopology {
        self.store.apply(&Topology { subscriptions, payload_bytes_max: PAYLOAD_BYTES_MAX }).await.unwrap()
    }

    /// Subscribes one handler to all topics below `t`.
    pub async fn subscribe(&self) -> SubscriptionId {
        self.subscribe_to(&[("handler", "t.>")]).await[0]
    }

    /// Subscribes handlers by name and pattern; answers their numbers in the same order.
    pub async fn subscribe_to(&self, subscriptions: &[(&str, &str)]) -> Vec<SubscriptionId> {
        let applied =
            self.apply(subscriptions.iter().map(|(name, pattern)| subscription(name, pattern)).collect()).await;
        subscriptions.iter().map(|(name, _)| number_of(&applied, name)).collect()
    }

    /// Writes messages; none is a duplicate.
    pub async fn enqueue(&self, messages: &[NewMessage]) {
        let enqueued = self.store.enqueue(messages).await.unwrap();
        assert!(enqueued.iter().all(|one| !one.duplicate), "{enqueued:?}");
    }

    /// Writes messages of the topic `t.x` by their ids, at once due.
    pub async fn enqueue_ids(&self, ids: &[&str]) {
        self.enqueue(&ids.iter().map(|id| message(id)).collect::<Vec<_>>()).await;
    }

    /// Claims up to ten deliveries of the primary lane for an hour.
    pub async fn claim(&self, subscription: SubscriptionId) -> Option<Batch> {
        self.store.claim(request(subscription)).await.unwrap()
    }

    /// Claims what must be there.
    pub async fn claim_some(&self, subscription: SubscriptionId) -> Batch {
        self.claim(subscription).await.expect("something is due")
    }

    /// Claims what becomes due soon, such as when a lease ends.
    pub async fn claim_soon(&self, subscription: SubscriptionId) -> Batch {
        claim_soon(&*self.store, subscription).await
    }

    /// Waits until nothing is owed; answers whether that came in time.
    pub async fn drained_within(&self, longest: Duration) -> bool {
        let mut sql = self.sql().await;
        let drained = tokio::time::timeout(longest, async {
            while sql.count("owed").await > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        drained.await.is_ok()
    }

    /// Settles a group that must commit; answers lost leases and duplicates.
    pub async fn settle(&self, group: &[Settlement]) -> (Vec<usize>, Vec<usize>) {
        match self.store.settle(group).await.unwrap() {
            SettleReport::Committed { lost, duplicates } => (lost, duplicates),
            SettleReport::Conflict(conflict) => panic!("{conflict:?}"),
        }
    }

    /// Settles a group of which everything must happen.
    pub async fn settle_all(&self, group: &[Settlement]) {
        assert_eq!(self.settle(group).await, (vec![], vec![]));
    }

    /// Settles a group that must be reported as a conflict of state; answers the stale keys.
    pub async fn settle_stale(&self, store: &dyn Store, group: &[Settlement]) -> Vec<String> {
        match store.settle(group).await.unwrap() {
            SettleReport::Conflict(conflict) => {
                assert_eq!((conflict.lost, conflict.duplicates), (vec![], vec![]));
                conflict.stale.iter().map(|(_, key)| key.to_string()).collect()
            }
            committed => panic!("{committed:?}"),
        }
    }

    /// A state key's value as text, as committed.
    pub async fn state(&self, key: &str) -> Option<String> {
        let entry = self.store.state(&namespace(), key).await.unwrap()?;
        Some(String::from_utf8(entry.value.to_vec()).unwrap())
    }

    pub async fn version(&self, key: &str) -> Option<StateVersion> {
        Some(self.store.state(&namespace(), key).await.unwrap()?.version)
    }

    pub async fn counter(&self, key: &str) -> i64 {
        self.store.counter(&namespace(), key).await.unwrap()
    }
}

pub fn number_of(applied: &AppliedTopology, name: &str) -> SubscriptionId {
    let found = applied.subscriptions.iter().find(|(found, _)| found.as_str() == name);
    found.unwrap_or_else(|| panic!("no subscription {name} in {applied:?}")).1
}

pub fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// The namespace of all state in the tests.
pub fn namespace() -> Name {
    name("tests")
}

pub fn subscription(text: &str, pattern: &str) -> Subscription {
    Subscription {
        name: name(text),
        pattern: TopicPattern::parse(pattern).unwrap(),
        kind: SubscriptionKind::Handler,
        lane_threshold: Priority::NORMAL,
        ordering: Ordering::None,
        idempotent: true,
        retry: RetryPolicy::default(),
        lease: Duration::from_secs(60),
        timeout: Duration::from_secs(30),
        concurrency: 4,
        claim_batch: 100,
        publish_batch: 10,
        review_unknown_outcome: false,
        backfill_min_share: 0.0,
        rate_limit: None,
        cluster_concurrency: None,
        destination: None,
        breaker: None,
        throttle_max: laneway_core::THROTTLE_MAX_DEFAULT,
    }
}

/// A message of the topic `t.x` whose payload tells its id.
pub fn message(id: &str) -> NewMessage {
    NewMessage {
        id: MessageId::parse(id).unwrap(),
        ..NewMessage::new(Topic::parse("t.x").unwrap(), format!("{{\"id\":\"{id}\"}}"))
    }
}

/// Of up to ten deliveries of the primary lane, for an hour.
pub fn request(subscription: SubscriptionId) -> ClaimRequest {
    ClaimRequest {
        subscription,
        lane: Lane::Primary,
        limit: 10,
        lease: HOUR,
        check_markers: false,
        ordered: false,
        in_work_max: None,
    }
}

/// Claims by a node what becomes due soon, such as when a lease ends.
pub async fn claim_soon(store: &dyn Store, subscription: SubscriptionId) -> Batch {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match store.claim(request(subscription)).await.unwrap() {
            Some(batch) => return batch,
            None => assert!(Instant::now() < deadline, "nothing has become due in {PATIENCE:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Settles a group, once more where the answer is lost: not known whether it happened, the fence decides.
pub async fn settle_surely(store: &dyn Store, group: &[Settlement]) {
    for _ in 0..3 {
        match store.settle(group).await {
            Ok(SettleReport::Committed { .. }) => break,
            Ok(SettleReport::Conflict(conflict)) => panic!("{conflict:?}"),
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}

/// The ids of a batch, in order.
pub fn ids(batch: &Batch) -> Vec<&str> {
    batch.deliveries.iter().map(|delivery| delivery.message.id.as_str()).collect()
}

/// The settlement of a delivery of a batch, without effects.
pub fn settlement(batch: &Batch, position: usize, verdict: Verdict) -> Settlement {
    let delivery = &batch.deliveries[position];
    Settlement {
        subscription: batch.subscription,
        delivery: delivery.id,
        token: batch.token,
        message: delivery.message.id.clone(),
        key: delivery.message.key.clone(),
        verdict,
        reads: vec![],
        writes: vec![],
        adds: vec![],
        emits: vec![],
        metadata: None,
    }
}

/// Success with a marker.
pub fn complete(batch: &Batch, position: usize) -> Settlement {
    settlement(batch, position, Verdict::Complete { mark: true })
}

/// Success of a whole batch.
pub fn complete_all(batch: &Batch) -> Vec<Settlement> {
    (0..batch.deliveries.len()).map(|position| complete(batch, position)).collect()
}

pub fn read(key: &str, version: Option<StateVersion>) -> StateRead {
    StateRead { namespace: namespace(), key: key.into(), version }
}

pub fn write(key: &str, value: Option<&str>, version: i64) -> StateWrite {
    StateWrite {
        namespace: namespace(),
        key: key.into(),
        value: value.map(|text| text.to_owned().into()),
        version: StateVersion(version),
    }
}

pub fn add(key: &str, delta: i64) -> laneway_core::CounterAdd {
    laneway_core::CounterAdd { namespace: namespace(), key: key.into(), delta }
}

/// Whether a message is as it was written.
pub fn same(message: &Message, written: &NewMessage) -> bool {
    let mut headers = [message.headers.clone(), written.headers.clone()];
    headers.iter_mut().for_each(|headers| headers.sort_by(|a, b| a.name.cmp(&b.name)));
    message.id == written.id
        && message.topic == written.topic
        && message.key == written.key
        && message.priority == written.priority
        && message.payload == written.payload
        && message.content_type == written.content_type
        && message.tenant == written.tenant
        && headers[0] == headers[1]
}
