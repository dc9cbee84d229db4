//! `laneway bench`: enqueue, drain and latency with a handler that does nothing, on an empty database.

mod swaps;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use laneway_core::{
    Attempt, Call, Cleanup, Interrupt, Invocation, Invoker, Lane, Message, MessageId, Name, NewMessage, Ordering,
    PluginDigest, Priority, RetryPolicy, StateEntry, StateError, StateView, Store, Subscription, SubscriptionId,
    SubscriptionKind, Topic, TopicPattern, Topology,
};
use laneway_engine::{Binding, Engine, EngineOptions, Runs, StatsSnapshot, Sweep, Work};
use laneway_host::{Grants, Host, HostOptions, Limits, PluginSpec};
use laneway_store::Storage;
use serde::Serialize;
use tracing::info;

use crate::Shared;
use crate::commands::run::sandbox;
use crate::config::schedules::BATCH_SIZE;
use crate::{exit, output};

/// Messages in one transaction of the producer.
const ENQUEUE_BATCH: usize = 100;
/// Messages that a publisher gets at once.
const PUBLISH_BATCH: u32 = 32;
/// Messages of the measurement of the sandbox alone.
const QUIET: u32 = 20_000;
/// How long a drain may stand still before the measurement is given up.
const STALL: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct Args {
    /// Messages to drain in each measurement
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// Payload of a message, in bytes
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    payload: u32,
    /// Messages a second in the measurement of latency
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Length of the measurement of latency, in seconds; 0 leaves it out
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=3_600))]
    seconds: u32,
    /// Measure latency once more while this many messages of the backfill lane are queued and worked off
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    backfill: u32,
    /// Measure latency once more while the markers of all messages before are cleaned up
    #[arg(long)]
    cleanup: bool,
    /// Give the messages this many keys in turn, and process those of one key one at a time; 0 gives none
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    keys: u32,
    /// Measure latency once more while this many messages of one more key are in line and worked off
    #[arg(long, value_name = "N", default_value_t = 0, requires = "keys",
        value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    hot_key: u32,
    /// Measure latency once more on two nodes, while versions of a plugin are swapped this many times, one each 100 ms at most
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    swaps: u32,
    /// Publisher component for the swaps; without it, the handler alone is swapped
    #[arg(long, value_name = "FILE")]
    publisher: Option<PathBuf>,
    /// Handler component; `cargo xtask plugins` builds one that does nothing
    #[arg(long, value_name = "FILE", default_value = "target/plugins/noop.wasm")]
    handler: PathBuf,
    /// Messages that run at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    concurrency: u32,
    /// Deliveries in one claim
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4096))]
    claim_batch: u32,
}

#[derive(Serialize)]
struct Report {
    storage: &'static str,
    messages: u32,
    enqueue_per_s: f64,
    drain_per_s: Modes,
    latency_ms: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_with_backfill_ms: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_with_hot_key_ms: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_with_cleanup_ms: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cleanup: Option<Cleaned>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    swaps: Vec<swaps::Swapped>,
    /// What the sandbox takes for a message, one after the other, on a machine that does nothing else.
    sandbox_us: Modes,
    /// What it took in the drain, the wait for a processor included.
    sandbox_in_drain_us: Modes,
    round_trips_per_message: f64,
    wal_bytes_per_message: Option<f64>,
}

#[derive(Serialize)]
struct Modes {
    fresh: f64,
    reuse: f64,
}

#[derive(Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

/// What a cleanup did beside the traffic.
#[derive(Serialize)]
struct Cleaned {
    deleted: u64,
    /// Between its first step and its last, or the end of the measurement.
    seconds: f64,
    longest_step_ms: f64,
}

/// What one drain came to.
struct Drain {
    per_second: f64,
    sandbox_us: f64,
    round_trips: f64,
    wal_bytes: Option<f64>,
}

/// Notes when each message's handler starts.
struct Started {
    inner: Arc<dyn Invoker>,
    first: Mutex<Option<Instant>>,
    each: Option<Mutex<HashMap<MessageId, Instant>>>,
}

#[async_trait]
impl Invoker for Started {
    fn digest(&self) -> PluginDigest {
        self.inner.digest()
    }

    async fn invoke(&self, calls: &[Call]) -> Vec<Invocation> {
        let now = Instant::now();
        match &self.each {
            Some(each) => {
                let mut each = each.lock().unwrap_or_else(PoisonError::into_inner);
                for call in calls.iter().filter(|call| call.attempt.lane == Lane::Primary) {
                    each.entry(call.message.id.clone()).or_insert(now);
                }
            }
            None => {
                self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(now);
            }
        }
        self.inner.invoke(calls).await
    }
}

/// For a handler that reads none.
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

struct Bench {
    args: Args,
    storage: Storage,
    store: Arc<dyn Store>,
    topology: Topology,
    id: SubscriptionId,
    host: Arc<Host>,
    component: Vec<u8>,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let Some(storage) = shared.storage.clone() else {
        return Err(exit::usage("bench fills a database: name an empty one with --storage"));
    };
    ensure!(args.hot_key == 0 || args.keys > 0, "--hot-key needs --keys of 1 or more");
    let component = std::fs::read(&args.handler).with_context(|| {
        format!(
            "failed to read {}; build it with `cargo xtask plugins`, or name one with --handler",
            args.handler.display()
        )
    })?;
    storage.migrate().await?;
    let store = storage.open().await?;
    ensure!(
        store
            .topology()
            .await?
            .is_none_or(|topology| topology.subscriptions.iter().all(|(n, _)| n.as_str().starts_with("bench"))),
        "the database has subscriptions already; bench wants an empty one"
    );
    let topology = topology(&args, subscription(&args, "bench", SubscriptionKind::Handler)?);
    let applied = store.apply(&topology).await?;
    let defaults = HostOptions::default();
    let instances_max = args.concurrency.max(defaults.instances_max);
    let concurrency = topology.subscriptions.iter().map(|s| (s.name.clone(), s.concurrency)).collect();
    let host = Host::new(HostOptions { cache_dir: None, instances_max, concurrency, ..defaults })?;
    let id = applied.subscriptions[0].1;
    let bench = Bench { args, storage, store, topology, id, host, component };

    let enqueue_per_s = bench.enqueue().await?;
    info!(per_s = enqueue_per_s as u64, "enqueued");
    let fresh = bench.drain(false).await?;
    info!(per_s = fresh.per_second as u64, "drained with fresh instances");
    bench.enqueue().await?;
    let reuse = bench.drain(true).await?;
    info!(per_s = reuse.per_second as u64, "drained with reused instances");
    let quiet = Modes { fresh: bench.quiet(false).await?, reuse: bench.quiet(true).await? };
    let latency_ms = if bench.args.seconds == 0 { None } else { Some(bench.latency().await?) };
    let mut latency_with_cleanup_ms = None;
    let mut cleanup = None;
    if bench.args.cleanup && bench.args.seconds > 0 {
        let cleaning = tokio::spawn(clean(bench.store.clone()));
        latency_with_cleanup_ms = Some(bench.latency().await?);
        cleanup = Some(cleaning.await??);
    }
    let mut latency_with_hot_key_ms = None;
    if bench.args.hot_key > 0 && bench.args.seconds > 0 {
        bench.enqueue_many(bench.args.hot_key, |message, _| message.key = Some("hot".to_owned())).await?;
        latency_with_hot_key_ms = Some(bench.latency().await?);
    }
    let mut latency_with_backfill_ms = None;
    if bench.args.backfill > 0 && bench.args.seconds > 0 {
        bench.enqueue_many(bench.args.backfill, |message, _| message.priority = Priority::BULK).await?;
        latency_with_backfill_ms = Some(bench.latency().await?);
    }
    let mut swaps = Vec::new();
    if bench.args.swaps > 0 && bench.args.seconds > 0 {
        for component in std::iter::once(&bench.args.handler).chain(&bench.args.publisher) {
            swaps.push(swaps::measure(&bench.args, &bench.storage, component).await?);
        }
    }
    let report = Report {
        storage: bench.storage.kind(),
        messages: bench.args.messages,
        enqueue_per_s: round(enqueue_per_s, 0),
        drain_per_s: Modes { fresh: round(fresh.per_second, 0), reuse: round(reuse.per_second, 0) },
        latency_ms,
        latency_with_backfill_ms,
        latency_with_hot_key_ms,
        latency_with_cleanup_ms,
        cleanup,
        swaps,
        sandbox_us: Modes { fresh: round(quiet.fresh, 2), reuse: round(quiet.reuse, 2) },
        sandbox_in_drain_us: Modes { fresh: round(fresh.sandbox_us, 2), reuse: round(reuse.sandbox_us, 2) },
        round_trips_per_message: round(fresh.round_trips, 5),
        wal_bytes_per_message: fresh.wal_bytes.map(|bytes| round(bytes, 0)),
    };
    output::json(&report)
}

fn round(figure: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (figure * scale).round() / scale
}

fn topology(args: &Args, subscription: Subscription) -> Topology {
    Topology { subscriptions: vec![subscription], payload_bytes_max: args.payload.max(1024 * 1024) }
}

fn subscription(args: &Args, name: &str, kind: SubscriptionKind) -> Result<Subscription> {
    Ok(Subscription {
        name: Name::parse(name)?,
        pattern: TopicPattern::parse("bench.message")?,
        kind,
        lane_threshold: Priority::NORMAL,
        ordering: if args.keys > 0 { Ordering::Key } else { Ordering::None },
        idempotent: true,
        retry: RetryPolicy::default(),
        lease: Duration::from_secs(30),
        timeout: Duration::from_secs(30),
        concurrency: args.concurrency,
        claim_batch: args.claim_batch,
        publish_batch: if kind == SubscriptionKind::Publisher { PUBLISH_BATCH } else { 1 },
        review_unknown_outcome: false,
        backfill_min_share: 0.0,
        rate_limit: None,
        cluster_concurrency: None,
        destination: None,
        breaker: None,
        throttle_max: laneway_core::THROTTLE_MAX_DEFAULT,
    })
}

/// What a subscription runs its plugin with.
fn spec(topology: &Topology, reuse: bool) -> PluginSpec {
    let subscription = &topology.subscriptions[0];
    PluginSpec {
        name: subscription.name.clone(),
        kind: subscription.kind,
        config: BTreeMap::new(),
        grants: Grants::default(),
        limits: Limits::default(),
        reuse,
        payload_bytes_max: u64::from(topology.payload_bytes_max),
    }
}

impl Args {
    fn message(&self) -> Result<NewMessage> {
        Ok(NewMessage::new(Topic::parse("bench.message")?, vec![b'x'; self.payload as usize]))
    }

    /// The key of a message, if they have any.
    fn key(&self, number: usize) -> Option<String> {
        let place = number.checked_rem(self.keys as usize)?;
        Some(format!("key-{place}"))
    }

    /// Commits messages at a steady pace, so many a commit, for as long as it is to go on. Answers when each was there.
    async fn produce(
        &self,
        producer: &dyn Store,
        per_commit: u32,
        goes_on: impl Fn(usize) -> bool,
    ) -> Result<Vec<(MessageId, Instant)>> {
        let mut committed = Vec::new();
        let begin = Instant::now();
        while goes_on(committed.len()) {
            let due = begin + Duration::from_secs_f64(committed.len() as f64 / f64::from(self.rate));
            tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
            let mut batch = Vec::with_capacity(per_commit as usize);
            for number in committed.len()..committed.len() + per_commit as usize {
                batch.push(NewMessage { key: self.key(number), ..self.message()? });
            }
            producer.enqueue(&batch).await?;
            let now = Instant::now();
            committed.extend(batch.into_iter().map(|message| (message.id, now)));
        }
        Ok(committed)
    }
}

/// How long messages waited, from a commit's return in the producer to the start of the handler.
fn waits(committed: &[(MessageId, Instant)], started: &HashMap<MessageId, Instant>) -> Result<Latency> {
    // The handler can win the race against the producer's own return: that is no wait.
    let mut waits: Vec<f64> = committed
        .iter()
        .filter_map(|(id, at)| started.get(id).map(|start| start.saturating_duration_since(*at)))
        .map(|wait| wait.as_secs_f64() * 1000.0)
        .collect();
    ensure!(waits.len() == committed.len(), "{} of {} messages ran", waits.len(), committed.len());
    ensure!(!waits.is_empty(), "no messages were sent");
    waits.sort_by(f64::total_cmp);
    let at = |part: f64| round(waits[((waits.len() - 1) as f64 * part) as usize], 3);
    Ok(Latency { p50: at(0.50), p99: at(0.99) })
}

impl Bench {
    /// The messages of one drain. Messages a second.
    async fn enqueue(&self) -> Result<f64> {
        self.enqueue_many(self.args.messages, |message, number| message.key = self.args.key(number)).await
    }

    /// One producer, committing by hundreds. Messages a second.
    async fn enqueue_many(&self, count: u32, change: impl Fn(&mut NewMessage, usize)) -> Result<f64> {
        let template = self.args.message()?;
        let count = count as usize;
        let started = Instant::now();
        for first in (0..count).step_by(ENQUEUE_BATCH) {
            let batch: Vec<NewMessage> = (first..count.min(first + ENQUEUE_BATCH))
                .map(|number| {
                    let mut message = NewMessage { id: MessageId::generate(), ..template.clone() };
                    change(&mut message, number);
                    message
                })
                .collect();
            self.store.enqueue(&batch).await?;
        }
        let count = count as f64;
        Ok(count / started.elapsed().as_secs_f64())
    }

    fn plugin(&self, reuse: bool) -> Result<Arc<dyn Invoker>> {
        Ok(self.host.plugin(&self.component, spec(&self.topology, reuse))?)
    }

    /// Microseconds of the sandbox for a message, with nothing else to do: the mean after a round that warms up.
    async fn quiet(&self, reuse: bool) -> Result<f64> {
        let plugin = self.plugin(reuse)?;
        let NewMessage { id, topic, payload, content_type, .. } = self.args.message()?;
        let (key, headers, tenant, priority) = (None, Vec::new(), None, Priority::NORMAL);
        let message = Message { id, topic, key, priority, payload, content_type, headers, tenant };
        let attempt = Attempt {
            number: 1,
            max: 1,
            lane: Lane::Primary,
            timeout: Duration::from_secs(30),
            maybe_duplicate: false,
        };
        let state = Arc::new(NoState);
        let call = Call { message: Arc::new(message), attempt, state, interrupt: Interrupt::default() };
        let mut took = Duration::ZERO;
        for _ in 0..2 {
            took = Duration::ZERO;
            for _ in 0..QUIET {
                for invocation in plugin.invoke(std::slice::from_ref(&call)).await {
                    ensure!(invocation.result.is_ok(), "the handler failed: {:?}", invocation.result);
                    took += invocation.used.elapsed;
                }
            }
        }
        Ok(took.as_secs_f64() * 1e6 / f64::from(QUIET))
    }

    fn start(&self, reuse: bool, each: bool, sandbox: &tokio::runtime::Runtime) -> Result<(Engine, Arc<Started>)> {
        let subscription = self.topology.subscriptions[0].clone();
        let started = Arc::new(Started {
            inner: self.plugin(reuse)?,
            first: Mutex::new(None),
            each: each.then(Mutex::default),
        });
        let binding = Binding { subscription, id: self.id, runs: Runs::Fixed(started.clone()) };
        let options = EngineOptions::new(Name::parse("bench")?);
        Ok((Engine::start(&self.store, vec![binding], vec![], options, sandbox.handle()), started))
    }

    /// From the first handler's start to the last durable settlement.
    async fn drain(&self, reuse: bool) -> Result<Drain> {
        let sandbox = sandbox(None)?;
        let wanted = u64::from(self.args.messages);
        let wal = self.storage.wal_position().await?;
        let trips = self.store.round_trips();
        let (engine, started) = self.start(reuse, false, &sandbox)?;
        let stats = engine.stats().clone();
        let snapshot = settled(|| stats.snapshot(), wanted).await?;
        let end = Instant::now();
        let trips = self.store.round_trips() - trips;
        let wal = match (wal, self.storage.wal_position().await?) {
            (Some(before), Some(after)) => Some((after - before) as f64 / wanted as f64),
            _ => None,
        };
        engine.drain().await;
        sandbox.shutdown_background();
        let first = started.first.lock().unwrap_or_else(PoisonError::into_inner).context("nothing ran")?;
        ensure!(snapshot.attempts == wanted, "{} attempts for {wanted} messages", snapshot.attempts);
        Ok(Drain {
            per_second: wanted as f64 / (end - first).as_secs_f64(),
            sandbox_us: snapshot.sandbox_nanos as f64 / snapshot.attempts as f64 / 1000.0,
            round_trips: trips as f64 / wanted as f64,
            wal_bytes: wal,
        })
    }

    /// Messages that no claim has looked at.
    async fn waiting(&self) -> Result<u64> {
        let status = self.store.status().await?;
        let lanes = status.subscriptions.iter().flat_map(|subscription| &subscription.lanes);
        // The next one of the busy key may be among them at any time.
        Ok(lanes.map(|lane| lane.due).sum::<u64>().saturating_sub(1))
    }

    /// From a commit's return in the producer to the start of the handler, by a steady pace, one message a commit.
    async fn latency(&self) -> Result<Latency> {
        let sandbox = sandbox(None)?;
        // A store of its own, as another process would have.
        let producer = self.storage.open().await?;
        let (engine, started) = self.start(false, true, &sandbox)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Messages of a busy key stand before the others until a claim has put them in line.
        let deadline = Instant::now() + STALL;
        while self.args.keys > 0 && self.waiting().await? > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The ranges of both keep it far from the end of the numbers.
        let total = (self.args.rate * self.args.seconds) as usize;
        let committed = self.args.produce(&*producer, 1, |sent| sent < total).await?;
        let each = started.each.as_ref().context("starts were not noted")?;
        let is_missing = || {
            let each = each.lock().unwrap_or_else(PoisonError::into_inner);
            committed.iter().any(|(id, _)| !each.contains_key(id))
        };
        let deadline = Instant::now() + STALL;
        while is_missing() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        engine.drain().await;
        sandbox.shutdown_background();
        let each = each.lock().unwrap_or_else(PoisonError::into_inner);
        waits(&committed, &each)
    }
}

/// Removes all markers, as a cleanup does.
async fn clean(store: Arc<dyn Store>) -> Result<Cleaned> {
    let before = store.now().await?;
    let mut sweep = Sweep::new(Work::Clean { what: Cleanup::Markers, before }, BATCH_SIZE);
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    while sweep.step(&*store).await?.is_some() {
        longest = longest.max(sweep.last_step());
    }
    Ok(Cleaned {
        deleted: sweep.changed(),
        seconds: round(began.elapsed().as_secs_f64(), 1),
        longest_step_ms: round(longest.as_secs_f64() * 1000.0, 1),
    })
}

/// Waits until so many messages are settled as processed.
async fn settled(snapshot: impl Fn() -> StatsSnapshot, wanted: u64) -> Result<StatsSnapshot> {
    let mut last = (0, Instant::now());
    loop {
        let stats = snapshot();
        if stats.completed >= wanted {
            return Ok(stats);
        }
        if stats.completed > last.0 {
            last = (stats.completed, Instant::now());
        }
        if last.1.elapsed() > STALL {
            bail!("the drain stands still at {} of {wanted} messages", stats.completed);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
