//! Versions of a plugin swapped one after the other under load, on two nodes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use laneway_core::{
    Call, DeploymentState, Invocation, Invoker, LoadError, MessageId, Name, NewDeployment, NewPlugin, OpenPlugin,
    PluginDigest, PluginLoader, PluginVersion, Store, StoredPlugin,
};
use laneway_engine::{Binding, Engine, EngineOptions, Runs, StatsSnapshot};
use laneway_host::{Host, HostOptions, Inspection};
use laneway_store::Storage;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use super::{Args, Latency, STALL, round, settled, spec, subscription, topology, waits};
use crate::commands::plugin::deploy::wait_for_nodes;
use crate::commands::run::sandbox;
use crate::loader::Loader;

const NODES: usize = 2;
/// Between the beginnings of two swaps, at least.
const SWAP_EVERY: Duration = Duration::from_millis(100);
/// Commits a second of the producer; each has its share of the messages.
const COMMITS_PER_S: u32 = 500;

/// What the swaps of one kind of plugin came to.
#[derive(Serialize)]
pub(super) struct Swapped {
    kind: &'static str,
    swaps: u32,
    /// The same load before, without swaps.
    latency_ms: Latency,
    latency_with_swaps_ms: Latency,
    /// From the start of a deployment until both nodes have begun a message on the new version. Its code is in each
    /// node's cache.
    to_first_message_ms: FirstMessage,
    /// Messages of both loads together. Each ran once, and none failed.
    messages: u64,
    /// The longest time after its end at which an attempt began on an old version.
    began_late_ms: f64,
}

#[derive(Serialize)]
struct FirstMessage {
    p50: f64,
    max: f64,
    /// Of these, from the moment at which the database has the new version as the active one.
    swap_p50: f64,
    swap_max: f64,
}

/// When attempts began, on all nodes.
#[derive(Default)]
struct Watch {
    messages: Mutex<HashMap<MessageId, Instant>>,
    /// First and last, by node and version.
    versions: Mutex<HashMap<(usize, u32), (Instant, Instant)>>,
}

impl Watch {
    /// When both nodes had begun their first on a version.
    fn first(&self, version: u32) -> Option<Instant> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let firsts: Option<Vec<Instant>> =
            (0..NODES).map(|node| versions.get(&(node, version)).map(|(first, _)| *first)).collect();
        firsts?.into_iter().max()
    }

    /// When the last attempt on a version began.
    fn last(&self, version: u32) -> Option<Instant> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        (0..NODES).filter_map(|node| versions.get(&(node, version)).map(|(_, last)| *last)).max()
    }
}

/// A version on one node, watched.
struct Watched {
    inner: Arc<dyn Invoker>,
    node: usize,
    version: u32,
    watch: Arc<Watch>,
}

#[async_trait]
impl Invoker for Watched {
    fn digest(&self) -> PluginDigest {
        self.inner.digest()
    }

    async fn invoke(&self, calls: &[Call]) -> Vec<Invocation> {
        let now = Instant::now();
        {
            let mut messages = self.watch.messages.lock().unwrap_or_else(PoisonError::into_inner);
            for call in calls {
                messages.entry(call.message.id.clone()).or_insert(now);
            }
        }
        {
            let mut versions = self.watch.versions.lock().unwrap_or_else(PoisonError::into_inner);
            versions.entry((self.node, self.version)).or_insert((now, now)).1 = now;
        }
        self.inner.invoke(calls).await
    }
}

struct WatchedLoader {
    loader: Loader,
    node: usize,
    watch: Arc<Watch>,
}

#[async_trait]
impl PluginLoader for WatchedLoader {
    async fn open(&self, plugin: StoredPlugin) -> Result<Arc<dyn OpenPlugin>, LoadError> {
        let version = number(&plugin.component);
        let inner = self.loader.open(plugin).await?;
        Ok(Arc::new(WatchedPlugin { inner, node: self.node, version, watch: self.watch.clone() }))
    }
}

struct WatchedPlugin {
    inner: Arc<dyn OpenPlugin>,
    node: usize,
    version: u32,
    watch: Arc<Watch>,
}

#[async_trait]
impl OpenPlugin for WatchedPlugin {
    async fn load(&self, subscription: &Name) -> Result<Arc<dyn Invoker>, LoadError> {
        let inner = self.inner.load(subscription).await?;
        Ok(Arc::new(Watched { inner, node: self.node, version: self.version, watch: self.watch.clone() }))
    }
}

/// The component with a custom section that has a number in it: another digest, and the same code.
fn variant(component: &[u8], number: u32) -> Vec<u8> {
    // Id of a custom section, its size, its name with the size of that.
    let mut bytes = [component, &[0, 10, 5], b"bench"].concat();
    bytes.extend(number.to_le_bytes());
    bytes
}

fn number(component: &[u8]) -> u32 {
    component.last_chunk().copied().map_or(0, u32::from_le_bytes)
}

struct Swaps {
    plugin: Name,
    subscription: Name,
    store: Arc<dyn Store>,
    /// Loads what is to be deployed first, as `laneway plugin deploy` does.
    checks: Loader,
    watch: Arc<Watch>,
}

impl Swaps {
    fn version(&self, number: u32) -> Result<PluginVersion> {
        Ok(PluginVersion::new(self.plugin.clone(), &number.to_string())?)
    }

    /// Stores a version, and has it compiled into the cache.
    async fn push(&self, component: &[u8], number: u32) -> Result<()> {
        let component = Bytes::from(variant(component, number));
        let digest = Inspection::of(&component)?.digest;
        let plugin = self.version(number)?;
        let stored = StoredPlugin {
            plugin: plugin.clone(),
            digest: digest.clone(),
            component: component.clone(),
            signature: None,
        };
        self.checks.open(stored).await?.load(&self.subscription).await?;
        self.store.push_plugin(&NewPlugin { plugin, digest, component, manifest: None, signature: None }).await?;
        Ok(())
    }

    /// What `laneway plugin deploy` does. Answers when the version was put to work.
    async fn deploy(&self, number: u32) -> Result<Instant> {
        let plugin = self.version(number)?;
        let id = self.store.stage(&NewDeployment { plugin: plugin.clone(), canary: None, back_to: None }).await?;
        let stored = self.store.plugin(&plugin).await?.context("it is not stored any more")?;
        self.checks.open(stored).await?.load(&self.subscription).await?;
        ensure!(self.store.advance(id, DeploymentState::Staged, DeploymentState::Validated, None).await?);
        let late = wait_for_nodes(&*self.store, id, STALL).await?;
        ensure!(late.is_empty(), "nodes are not ready for version {number}: {late:?}");
        ensure!(self.store.advance(id, DeploymentState::Validated, DeploymentState::Active, None).await?);
        Ok(Instant::now())
    }

    async fn all(&self, count: u32) -> Result<Vec<Swap>> {
        let mut swapped = Vec::new();
        let mut turns = tokio::time::interval(SWAP_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 1..=count {
            turns.tick().await;
            swapped.push(self.swap(number).await?);
        }
        Ok(swapped)
    }

    /// Swaps once, and waits until both nodes run the new version.
    async fn swap(&self, number: u32) -> Result<Swap> {
        let began = Instant::now();
        let active = self.deploy(number).await?;
        let first = loop {
            if let Some(first) = self.watch.first(number) {
                break first;
            }
            ensure!(active.elapsed() < STALL, "version {number} gets no messages");
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        Ok(Swap { began, active, first })
    }
}

struct Swap {
    began: Instant,
    active: Instant,
    first: Instant,
}

/// Measures swaps of one plugin.
pub(super) async fn measure(args: &Args, storage: &Storage, path: &Path) -> Result<Swapped> {
    let component = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    let kind = Inspection::of(&component).with_context(|| path.display().to_string())?.kind;
    let subscription = subscription(args, &format!("bench-{}", kind.as_str()), kind)?;
    let name = subscription.name.clone();
    let topology = topology(args, subscription);
    let store = storage.open().await?;
    let applied = store.apply(&topology).await?;
    let id = applied.subscriptions[0].1;
    let spec = spec(&topology, false);
    let cache = tempfile::tempdir()?;
    let loader = || {
        let options = HostOptions { cache_dir: Some(cache.path().into()), ..HostOptions::default() };
        Ok::<_, anyhow::Error>(Loader::of(Host::new(options)?, [spec.clone()]))
    };

    let watch = Arc::new(Watch::default());
    let swaps = Swaps { plugin: name.clone(), subscription: name, store, checks: loader()?, watch };
    for number in 0..=args.swaps {
        swaps.push(&component, number).await?;
    }
    let mut nodes = Vec::new();
    for node in 0..NODES {
        let runtime = sandbox(None)?;
        let loader = Arc::new(WatchedLoader { loader: loader()?, node, watch: swaps.watch.clone() });
        let runs = Runs::Deployed { plugin: swaps.plugin.clone(), loader };
        let binding = Binding { subscription: topology.subscriptions[0].clone(), id, runs };
        let options = EngineOptions::new(Name::parse(&format!("bench-{node}"))?);
        let store = storage.open().await?;
        nodes.push((Engine::start(&store, vec![binding], vec![], options, runtime.handle()), runtime));
    }
    swaps.deploy(0).await?;

    let producer = storage.open().await?;
    let per_commit = (args.rate / COMMITS_PER_S).max(1);
    let total = (args.rate * args.seconds) as usize;
    let quiet = args.produce(&*producer, per_commit, |sent| sent < total).await?;
    let goes_on = AtomicBool::new(true);
    let (loaded, swapped) =
        tokio::join!(args.produce(&*producer, per_commit, |_| goes_on.load(Ordering::Relaxed)), async {
            let swapped = swaps.all(args.swaps).await;
            goes_on.store(false, Ordering::Relaxed);
            swapped
        });
    let (loaded, swapped) = (loaded?, swapped?);

    let messages = (quiet.len() + loaded.len()) as u64;
    let snapshot = || {
        let mut sum = StatsSnapshot::default();
        for (engine, _) in &nodes {
            sum.add(&engine.stats().snapshot());
        }
        sum
    };
    let stats = settled(snapshot, messages).await?;
    for (engine, runtime) in nodes {
        engine.drain().await;
        runtime.shutdown_background();
    }
    ensure!(
        (stats.attempts, stats.completed, stats.retried, stats.dead_lettered) == (messages, messages, 0, 0),
        "of {messages} messages not each ran once and well: {stats:?}"
    );
    let watch = &swaps.watch;
    let began_late = swapped.iter().enumerate().filter_map(|(before, swap)| {
        let last = watch.last(u32::try_from(before).ok()?)?;
        Some(last.saturating_duration_since(swap.active))
    });
    let messages_began = watch.messages.lock().unwrap_or_else(PoisonError::into_inner);
    let millis = |duration: Duration| round(duration.as_secs_f64() * 1000.0, 1);
    let figures = |of: fn(&Swap) -> Duration| {
        let mut all: Vec<Duration> = swapped.iter().map(of).collect();
        all.sort_unstable();
        (millis(all[(all.len() - 1) / 2]), millis(all[all.len() - 1]))
    };
    let (p50, max) = figures(|swap| swap.first - swap.began);
    let (swap_p50, swap_max) = figures(|swap| swap.first.saturating_duration_since(swap.active));
    Ok(Swapped {
        kind: kind.as_str(),
        swaps: args.swaps,
        latency_ms: waits(&quiet, &messages_began)?,
        latency_with_swaps_ms: waits(&loaded, &messages_began)?,
        to_first_message_ms: FirstMessage { p50, max, swap_p50, swap_max },
        messages,
        began_late_ms: began_late.map(millis).fold(0.0, f64::max),
    })
}
