//! Behaviour 53: versions swap under load, and nothing is lost, failed, or run by a version that had no turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use laneway_core::{
    Call, Canary, CanaryBy, ClaimRequest, DeploymentState, Effects, ErrorText, Failure, Invocation, Invoker, Lane,
    LoadError, MessageId, Name, NewDeployment, NewMessage, NewPlugin, OpenPlugin, PluginDigest, PluginLoader,
    PluginVersion, Reason, SandboxUse, Store, StoredPlugin, Subscription, SubscriptionKind, Topic,
};
use laneway_engine::{ALIVE_FOR, Engine, EngineOptions, Runs};

use tokio::sync::Notify;

use crate::rig::{Gate, On, Rig, comes, options, subscription};

/// What played versions do, by the text of their component.
#[derive(Clone, Default)]
struct Stage {
    log: Arc<Mutex<Vec<Ran>>>,
    /// Lets versions that are `slow` to load come through.
    gate: Arc<Notify>,
    /// Lets attempts on versions that `stand` go on.
    stand: Gate,
    /// Loads of versions that are `unlucky` the first time.
    unlucky: Arc<AtomicU64>,
    /// Versions that were opened.
    opened: Arc<AtomicU64>,
}

/// An attempt.
struct Ran {
    version: String,
    began: Instant,
    message: MessageId,
    well: bool,
}

struct Version {
    /// The component's text: words such as `stands`, `fails`, that say what it does.
    text: String,
    stage: Stage,
    attempts: AtomicU64,
}

#[async_trait]
impl Invoker for Version {
    fn digest(&self) -> PluginDigest {
        PluginDigest::from_hex(&self.text)
    }

    async fn invoke(&self, calls: &[Call]) -> Vec<Invocation> {
        let mut invocations = Vec::new();
        for call in calls {
            let fails =
                self.text.contains("fails") && self.attempts.fetch_add(1, Ordering::SeqCst).is_multiple_of(5);
            let (reason, error) = (Reason::of_guest("played"), ErrorText::new("as played"));
            let result = if fails {
                Err(Failure::Retry { reason, error })
            } else if self.text.contains("rejects") {
                Err(Failure::Reject { reason, error })
            } else if self.text.contains("throttles") {
                Err(Failure::Throttled { after: Some(Duration::from_secs(3600)), error })
            } else {
                Ok(())
            };
            let (version, message, well) = (self.text.clone(), call.message.id.clone(), result.is_ok());
            self.stage.log.lock().unwrap().push(Ran { version, began: Instant::now(), message, well });
            if self.text.contains("stands") {
                self.stage.stand.pass().await;
            }
            let used = SandboxUse { elapsed: Duration::from_micros(50), ..SandboxUse::default() };
            let plugin = PluginDigest::from_hex(&self.text);
            invocations.push(Invocation { result, effects: Effects::default(), plugin, used });
        }
        invocations
    }
}

#[async_trait]
impl PluginLoader for Stage {
    async fn open(&self, plugin: StoredPlugin) -> Result<Arc<dyn OpenPlugin>, LoadError> {
        let text = String::from_utf8(plugin.component.to_vec()).unwrap();
        self.opened.fetch_add(1, Ordering::SeqCst);
        if text.contains("broken") {
            return Err(LoadError::Unfit("it does not compile, as played".to_owned()));
        }
        if text.contains("unlucky") && self.unlucky.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(LoadError::Unavailable("no process is to be had, as played".to_owned()));
        }
        if text.contains("slow") {
            self.gate.notified().await;
        }
        Ok(Arc::new(Open { text, stage: self.clone() }))
    }
}

struct Open {
    text: String,
    stage: Stage,
}

#[async_trait]
impl OpenPlugin for Open {
    async fn load(&self, _: &Name) -> Result<Arc<dyn Invoker>, LoadError> {
        let Self { text, stage } = self;
        Ok(Arc::new(Version { text: text.clone(), stage: stage.clone(), attempts: AtomicU64::new(0) }))
    }
}

impl Stage {
    fn start(&self, rig: &Rig, store: &Arc<dyn Store>, node: &str) -> Engine {
        let loader: Arc<dyn PluginLoader> = Arc::new(self.clone());
        let runs = Runs::Deployed { plugin: Name::parse("enrich").unwrap(), loader };
        let options = EngineOptions { node: Name::parse(node).unwrap(), ..options() };
        rig.start_runs(store, &runs, options)
    }

    fn ran(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|ran| ran.version == text).count()
    }

    /// Holds that no message was tried on this version twice, and that the active one has ended well with each that failed
    /// on it.
    fn gave_no_message_up(&self, trial: &str) {
        let log = self.log.lock().unwrap();
        let mut tries: HashMap<&MessageId, usize> = HashMap::new();
        for (at, ran) in log.iter().enumerate().filter(|(_, ran)| ran.version == trial) {
            *tries.entry(&ran.message).or_default() += 1;
            let later = || {
                log[at..].iter().any(|later| later.message == ran.message && later.version != trial && later.well)
            };
            assert!(ran.well || later(), "{} was given up", ran.message);
        }
        assert!(!tries.is_empty());
        assert!(tries.values().all(|&tries| tries == 1), "tried on the canary again: {tries:?}");
    }
}

/// Stages a version whose component is this text, as far as validated.
async fn validated(store: &dyn Store, number: usize, text: &str, canary: Option<Canary>) -> i64 {
    let plugin: PluginVersion = format!("enrich@{number}").parse().unwrap();
    let digest = PluginDigest::from_hex(text);
    let component = Bytes::from(text.to_owned());
    let new = NewPlugin { plugin: plugin.clone(), digest, component, manifest: None, signature: None };
    store.push_plugin(&new).await.unwrap();
    let id = store.stage(&NewDeployment { plugin, canary, back_to: None }).await.unwrap();
    assert!(store.advance(id, DeploymentState::Staged, DeploymentState::Validated, None).await.unwrap());
    id
}

async fn deploy(store: &dyn Store, number: usize, text: &str) -> i64 {
    let id = validated(store, number, text, None).await;
    assert!(store.advance(id, DeploymentState::Validated, DeploymentState::Active, None).await.unwrap());
    id
}

/// Waits until so many nodes have a deployment ready.
async fn ready(store: &dyn Store, id: i64, nodes: usize) {
    let ready = comes(async || store.reports(&[id], ALIVE_FOR).await.unwrap().len() >= nodes).await;
    assert!(ready, "not all nodes have deployment {id} ready");
}

async fn messages_wait_until_a_version_is_deployed_and_while_none_is(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let stage = Stage::default();
    let engine = stage.start(&rig, &rig.store, "one");
    rig.enqueue(3).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.left().await, 3);
    let first = deploy(&*rig.store, 1, "one").await;
    rig.wait_until_empty().await;
    assert!(rig.store.advance(first, DeploymentState::Active, DeploymentState::Draining, None).await.unwrap());
    let deployments = engine.stats().clone();
    assert!(comes(async || !engine.is_ready(&Name::parse("s").unwrap())).await, "it was drained");
    rig.enqueue(3).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((rig.left().await, stage.ran("one")), (3, 3));
    deploy(&*rig.store, 2, "two").await;
    rig.wait_until_empty().await;
    assert_eq!((stage.ran("one"), stage.ran("two")), (3, 3));
    assert!(engine.drain().await.complete);
    assert_eq!(deployments.snapshot().retried, 0);
}

/// Writes to the database every ten milliseconds. Answers the longest time from one write to the next: for so long the
/// machine alone may have held a node up.
async fn pulse(store: Arc<dyn Store>, stop: Arc<AtomicBool>) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Nobody subscribes to it.
        let beat = NewMessage::new(Topic::parse("pulse.beat").unwrap(), "{}");
        store.enqueue(&[beat]).await.unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}

/// The swap itself, over and over, while two nodes work. No attempt begins on a version that was out for longer than a
/// node takes to hear of it.
async fn fifty_swaps_under_load_lose_and_fail_nothing(on: On, kind: SubscriptionKind) {
    const SWAPS: usize = 50;
    const FOLLOWS_WITHIN: Duration = Duration::from_secs(1);
    let batch = if kind == SubscriptionKind::Publisher { 16 } else { 1 };
    let subscription = Subscription { kind, publish_batch: batch, ..subscription("s") };
    let rig = Rig::new(on, &[subscription]).await;
    let stage = Stage::default();
    deploy(&*rig.store, 0, "v0").await;
    let one = stage.start(&rig, &rig.store, "one");
    let store = rig.other_store().await;
    let two = stage.start(&rig, &store, "two");
    let stop = Arc::new(AtomicBool::new(false));
    let pulse = tokio::spawn(pulse(rig.store.clone(), stop.clone()));
    let (mut in_at, mut out_at) = (HashMap::new(), HashMap::new());
    let mut sent = 0;
    for number in 1..=SWAPS {
        let text = format!("v{number}");
        let id = validated(&*rig.store, number, &text, None).await;
        ready(&*rig.store, id, 2).await;
        rig.enqueue(40).await;
        in_at.insert(text.clone(), Instant::now());
        let active = rig.store.advance(id, DeploymentState::Validated, DeploymentState::Active, None);
        assert!(active.await.unwrap());
        out_at.insert(format!("v{}", number - 1), Instant::now());
        sent += 40;
        // What comes until the nodes have heard of it is the old version's.
        let taken = comes(async || {
            rig.enqueue(10).await;
            sent += 10;
            stage.ran(&text) > 0
        });
        assert!(taken.await, "version {number} got nothing");
    }
    rig.wait_until_empty().await;
    stop.store(true, Ordering::SeqCst);
    let held_up = pulse.await.unwrap();
    let stats = [one.stats().clone(), two.stats().clone()];
    for engine in [one, two] {
        assert!(engine.drain().await.complete);
    }
    let stats = stats.map(|stats| stats.snapshot());
    assert!(rig.dead_letters().await.is_empty());
    let total = |count: fn(&laneway_engine::StatsSnapshot) -> u64| stats.iter().map(count).sum::<u64>();
    assert_eq!((total(|s| s.completed), total(|s| s.retried), total(|s| s.lease_lost)), (sent, 0, 0));
    let log = stage.log.lock().unwrap();
    assert_eq!(log.len() as u64, sent, "each ran once");
    for Ran { version, began, .. } in log.iter() {
        assert!(in_at.get(version).is_none_or(|put| began >= put), "an attempt began on {version} before its turn");
        let late = out_at.get(version).map_or(Duration::ZERO, |&out| began.saturating_duration_since(out));
        assert!(
            late < FOLLOWS_WITHIN + held_up,
            "an attempt began on {version} {late:?} after it was out; the machine held nodes up for {held_up:?}"
        );
    }
}

async fn fifty_swaps_of_a_handler(on: On) {
    fifty_swaps_under_load_lose_and_fail_nothing(on, SubscriptionKind::Handler).await;
}

async fn fifty_swaps_of_a_publisher(on: On) {
    fifty_swaps_under_load_lose_and_fail_nothing(on, SubscriptionKind::Publisher).await;
}

async fn an_attempt_ends_on_the_version_that_it_began_with(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let stage = Stage::default();
    let old = deploy(&*rig.store, 1, "stands").await;
    let engine = stage.start(&rig, &rig.store, "one");
    ready(&*rig.store, old, 1).await;
    rig.enqueue(2).await;
    assert!(comes(async || stage.ran("stands") == 2).await);
    let new = deploy(&*rig.store, 2, "two").await;
    let swapped = comes(async || {
        let reports = rig.store.reports(&[new], ALIVE_FOR).await.unwrap();
        reports.iter().any(|view| view.report.current)
    });
    assert!(swapped.await, "nobody says that the new version is at work");
    rig.enqueue(1).await;
    assert!(comes(async || stage.ran("two") == 1).await, "the new version need not wait for the old one");
    let seen = comes(async || {
        let reports = rig.store.reports(&[old], ALIVE_FOR).await.unwrap();
        reports.iter().any(|view| view.report.in_flight > 0)
    });
    assert!(seen.await, "nobody says that the old version still has work");
    stage.stand.open();
    rig.wait_until_empty().await;
    assert_eq!((stage.ran("stands"), stage.ran("two")), (2, 1));
    let retired = comes(async || {
        let deployments = rig.store.deployments(None, 10).await.unwrap();
        deployments.iter().any(|d| d.id == old && d.state == DeploymentState::Retired)
    });
    assert!(retired.await, "the old version never retired");
    engine.drain().await;
}

fn canary(share: f64) -> Canary {
    Canary {
        share,
        by: CanaryBy::Message,
        window: Duration::from_millis(1500),
        attempts_min: 20,
        failures_over_max: 0.05,
        slower_max: 1000.0,
        promote: true,
    }
}

/// Puts a version on trial under load, and waits until the trial is over. Answers its deployment.
async fn tried(rig: &Rig, stage: &Stage, text: &str) -> laneway_core::Deployment {
    deploy(&*rig.store, 1, "good").await;
    let one = stage.start(rig, &rig.store, "one");
    let store = rig.other_store().await;
    let two = stage.start(rig, &store, "two");
    let id = validated(&*rig.store, 2, text, Some(canary(0.25))).await;
    ready(&*rig.store, id, 2).await;
    assert!(rig.store.advance(id, DeploymentState::Validated, DeploymentState::Canary, None).await.unwrap());
    let mut over = None;
    assert!(
        comes(async || {
            rig.enqueue(20).await;
            let deployments = rig.store.deployments(None, 10).await.unwrap();
            over = deployments.into_iter().find(|d| d.id == id && d.state != DeploymentState::Canary);
            over.is_some()
        })
        .await,
        "the trial never ended"
    );
    rig.wait_until_empty().await;
    one.drain().await;
    two.drain().await;
    over.unwrap()
}

async fn a_canary_that_fails_is_rolled_back_and_its_messages_succeed_on_the_old_version(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let stage = Stage::default();
    let over = tried(&rig, &stage, "fails").await;
    assert_eq!(over.state, DeploymentState::Draining, "{over:?}");
    let reason = over.reason.unwrap();
    assert!(reason.contains("rolled back") && reason.contains("played"), "{reason}");
    assert!(rig.dead_letters().await.is_empty());
    assert!(stage.ran("fails") >= 20);
    stage.gave_no_message_up("fails");
}

async fn a_canary_cannot_dead_letter_a_message(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let stage = Stage::default();
    let over = tried(&rig, &stage, "rejects").await;
    assert_eq!(over.state, DeploymentState::Draining, "{over:?}");
    assert!(rig.dead_letters().await.is_empty());
    stage.gave_no_message_up("rejects");
}

async fn a_canary_that_is_throttled_stops_nobody_and_is_rolled_back(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let stage = Stage::default();
    let over = tried(&rig, &stage, "throttles").await;
    assert_eq!(over.state, DeploymentState::Draining, "{over:?}");
    // For all that it asks for an hour.
    stage.gave_no_message_up("throttles");
}

async fn a_canary_that_holds_becomes_active_after_its_window(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let stage = Stage::default();
    let over = tried(&rig, &stage, "better").await;
    assert_eq!(over.state, DeploymentState::Active, "{over:?}");
    assert!(over.reason.unwrap().contains("held"));
    assert!(stage.ran("better") > 0 && stage.ran("good") > 0);
}

/// It may have ended the node that ran it, though no attempt is counted.
async fn what_lost_its_lease_is_not_tried_on_a_canary(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(5).await;
    // By a node that ends.
    let request = ClaimRequest {
        subscription: rig.id(),
        lane: Lane::Primary,
        limit: 5,
        lease: Duration::from_secs(5),
        check_markers: true,
        ordered: false,
        in_work_max: None,
    };
    let lost = rig.store.claim(request).await.unwrap().unwrap().deliveries;
    assert_eq!(lost.len(), 5);
    let stage = Stage::default();
    deploy(&*rig.store, 1, "good").await;
    let all = Canary { window: Duration::from_secs(3600), ..canary(1.0) };
    let id = validated(&*rig.store, 2, "trial", Some(all)).await;
    assert!(rig.store.advance(id, DeploymentState::Validated, DeploymentState::Canary, None).await.unwrap());
    let engine = stage.start(&rig, &rig.store, "one");
    let on_trial = comes(async || {
        rig.enqueue(1).await;
        stage.ran("trial") > 0
    });
    assert!(on_trial.await, "nothing is tried on the canary");
    rig.wait_until_empty().await;
    assert!(engine.drain().await.complete);
    let log = stage.log.lock().unwrap();
    let of_lost = log.iter().filter(|ran| lost.iter().any(|lost| lost.message.id == ran.message));
    assert_eq!(of_lost.map(|ran| ran.version.as_str()).collect::<Vec<_>>(), ["good"; 5]);
}

async fn a_version_that_cannot_be_loaded_gets_nothing_and_the_one_before_goes_on(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let stage = Stage::default();
    let good = deploy(&*rig.store, 1, "good").await;
    let engine = stage.start(&rig, &rig.store, "one");
    // A node that has never had another version would wait.
    ready(&*rig.store, good, 1).await;
    let broken = deploy(&*rig.store, 2, "broken").await;
    let told = comes(async || {
        let reports = rig.store.reports(&[broken], ALIVE_FOR).await.unwrap();
        reports.iter().any(|view| view.report.error.as_deref().is_some_and(|error| error.contains("as played")))
    });
    assert!(told.await, "nobody says that it cannot be loaded");
    rig.enqueue(5).await;
    rig.wait_until_empty().await;
    assert_eq!(stage.ran("good"), 5);
    // Out as it is, it is at work: whoever removes it leaves the node without any after a restart.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    rig.store.report(&Name::parse("other").unwrap(), &[], ALIVE_FOR).await.unwrap();
    let deployments = rig.store.deployments(None, 10).await.unwrap();
    let state = deployments.iter().find(|deployment| deployment.id == good).map(|deployment| deployment.state);
    assert_eq!(state, Some(DeploymentState::Draining));
    engine.drain().await;
    rig.store.report(&Name::parse("other").unwrap(), &[], ALIVE_FOR).await.unwrap();
    let deployments = rig.store.deployments(None, 10).await.unwrap();
    let state = deployments.iter().find(|deployment| deployment.id == good).map(|deployment| deployment.state);
    assert_eq!(state, Some(DeploymentState::Retired), "a node that stopped in order holds it up no longer");
}

async fn a_version_that_takes_long_to_load_holds_up_neither_swaps_nor_the_end(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let stage = Stage::default();
    let good = deploy(&*rig.store, 1, "good").await;
    let engine = stage.start(&rig, &rig.store, "one");
    ready(&*rig.store, good, 1).await;
    let slow = validated(&*rig.store, 2, "slow", None).await;
    // Until it is being loaded for sure.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.store.advance(good, DeploymentState::Active, DeploymentState::Draining, None).await.unwrap());
    let out = Instant::now();
    assert!(comes(async || !engine.is_ready(&Name::parse("s").unwrap())).await);
    assert!(out.elapsed() < Duration::from_secs(10), "the drain was followed after {:?}", out.elapsed());
    assert!(rig.store.reports(&[slow], ALIVE_FOR).await.unwrap().is_empty(), "it is not ready yet");
    stage.gate.notify_one();
    ready(&*rig.store, slow, 1).await;
    let slower = validated(&*rig.store, 3, "slow too", None).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.store.reports(&[slower], ALIVE_FOR).await.unwrap().is_empty());
    let began = Instant::now();
    assert!(engine.drain().await.complete);
    assert!(began.elapsed() < Duration::from_secs(10), "the node ended after {:?}", began.elapsed());
}

async fn a_node_that_could_not_try_says_nothing_and_tries_again(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let stage = Stage::default();
    let engine = stage.start(&rig, &rig.store, "one");
    let unlucky = validated(&*rig.store, 1, "unlucky", None).await;
    assert!(comes(async || stage.unlucky.load(Ordering::SeqCst) == 1).await);
    // Nobody is to fail the deployment for it: the first that is heard is that it is ready.
    ready(&*rig.store, unlucky, 1).await;
    let report = &rig.store.reports(&[unlucky], ALIVE_FOR).await.unwrap()[0].report;
    assert_eq!((report.readiness, report.error.as_deref()), (laneway_core::Readiness::Ready, None));
    assert_eq!(stage.unlucky.load(Ordering::SeqCst), 2);
    assert!(engine.drain().await.complete);
}

/// Subscriptions that run one plugin.
const MANY: usize = 200;

fn many() -> Vec<Subscription> {
    (0..MANY).map(|number| Subscription { concurrency: 1, ..subscription(&format!("s{number}")) }).collect()
}

async fn a_version_is_read_and_opened_once_for_all_subscriptions_that_run_it(on: On) {
    let rig = Rig::new(on, &many()).await;
    let stage = Stage::default();
    let engine = stage.start(&rig, &rig.store, "one");
    let good = deploy(&*rig.store, 1, "good").await;
    ready(&*rig.store, good, 1).await;
    assert_eq!(stage.opened.load(Ordering::SeqCst), 1);
    let all_ready = || (0..MANY).all(|number| engine.is_ready(&Name::parse(&format!("s{number}")).unwrap()));
    assert!(comes(async || all_ready()).await, "some do not run it");
    // One that cannot be opened is not tried for each of them either.
    let broken = validated(&*rig.store, 2, "broken", None).await;
    ready(&*rig.store, broken, 1).await;
    assert_eq!(stage.opened.load(Ordering::SeqCst), 2);
    rig.enqueue(1).await;
    rig.wait_until_empty().await;
    assert_eq!(stage.ran("good"), MANY);
    assert!(engine.drain().await.complete);
}

/// Signs of life and reports are of the node, not of each subscription.
async fn an_idle_node_tells_no_more_of_many_subscriptions_than_of_one(on: On) {
    let rig = Rig::new(on, &many()).await;
    let stage = Stage::default();
    let good = deploy(&*rig.store, 1, "good").await;
    let options = EngineOptions { poll_interval: Duration::from_secs(1), ..options() };
    let loader: Arc<dyn PluginLoader> = Arc::new(stage.clone());
    let runs = Runs::Deployed { plugin: Name::parse("enrich").unwrap(), loader };
    let engine = rig.start_runs(&rig.store, &runs, options);
    ready(&*rig.store, good, 1).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = rig.store.round_trips();
    // Two of each that come every five seconds, and one of what comes every fifteen.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let asked = rig.store.round_trips() - before;
    assert!(asked <= 80, "{asked} statements in fifteen idle seconds");
    assert!(engine.drain().await.complete);
}

on_both!(
    messages_wait_until_a_version_is_deployed_and_while_none_is,
    fifty_swaps_of_a_handler,
    fifty_swaps_of_a_publisher,
    an_attempt_ends_on_the_version_that_it_began_with,
    a_canary_that_fails_is_rolled_back_and_its_messages_succeed_on_the_old_version,
    a_canary_cannot_dead_letter_a_message,
    a_canary_that_is_throttled_stops_nobody_and_is_rolled_back,
    a_canary_that_holds_becomes_active_after_its_window,
    what_lost_its_lease_is_not_tried_on_a_canary,
    a_version_that_cannot_be_loaded_gets_nothing_and_the_one_before_goes_on,
    a_version_that_takes_long_to_load_holds_up_neither_swaps_nor_the_end,
    a_node_that_could_not_try_says_nothing_and_tries_again,
    a_version_is_read_and_opened_once_for_all_subscriptions_that_run_it,
    an_idle_node_tells_no_more_of_many_subscriptions_than_of_one,
);
